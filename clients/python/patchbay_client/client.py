"""The blocking client."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, Unpack

from patchbay.v1.gateway_service_pb2 import ChatRequest
from patchbay_client import admin, connectors, gateway
from patchbay_client.answer import ChatAnswer, Explanation, ModelList, TokenCount, read_model_list
from patchbay_client.channel import TlsOptions, call_metadata, target
from patchbay_client.connectors import Connector
from patchbay_client.content import Prompt
from patchbay_client.request import ChatOptions, ListOptions, Ref, StreamOptions, chat_request
from patchbay_client.streams import ChatStream, ServerStream
from patchbay_client.transport import Terms, Transport

TIMEOUT_S = 600.0
MANAGEMENT_TIMEOUT_S = 30.0


class PatchbayClient:
    """Calls any model through a Patchbay gateway, and manages it.

        with PatchbayClient("localhost:50051", token) as client:
            print(client.chat("What is the capital of France?").text)

    Threads may share one. Every failure of a call is a `PatchbayError`.

    Args:
        address: `host:port`, which is plain text unless there is `tls`; `https://host[:port]`, `http://host[:port]` or
            `unix:/path`.
        token: the caller token; None for callers that a client certificate names.
        tls: how TLS is spoken; None: as usual, where the address says https.
        timeout: seconds that a call which waits for a provider may take, unless the call says otherwise; None: no limit
            of the client's.
        management_timeout: the same for calls that the gateway answers by itself.
        insecure: True: the token may go to another machine in plain text. Only for networks that nobody else can hear.

    Raises:
        ValueError: not an address, a token that cannot be one, or one that would go to another machine in plain text.
        OSError: a file of `tls` cannot be read.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        tls: TlsOptions | None = None,
        timeout: float | None = TIMEOUT_S,
        management_timeout: float | None = MANAGEMENT_TIMEOUT_S,
        insecure: bool = False,
    ) -> None:
        terms = Terms(metadata=call_metadata(token), provider_timeout=timeout, gateway_timeout=management_timeout)
        self._transport = Transport(target(address, token, tls, insecure=insecure), terms)
        self.connectors = Connectors(self._transport)
        self.admin = Admin(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are running are cancelled."""
        self._transport.close()

    def chat(
        self, prompt: Prompt | ChatRequest, *, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """One whole answer.

            client.chat("Name three rivers.", model="gpt-5", max_output_tokens=200)
            client.chat([system("Be brief."), user("Hello")], feature="greeting", fallback="owner_chain")

        Args:
            prompt: a text, turns, or a ChatRequest that carries everything itself.
            timeout: seconds; None: the client's.
            options: see `ChatOptions`.
        """
        return self._transport.unary(gateway.chat(chat_request(prompt, options)), timeout)

    def stream(
        self, prompt: Prompt | ChatRequest, *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> ChatStream:
        """The answer as it comes; see `ChatStream`. Arguments as for `chat`."""
        return ChatStream(self._transport.stream(gateway.stream(chat_request(prompt, options)), timeout))

    def explain(self, prompt: Prompt | ChatRequest, **options: Unpack[ChatOptions]) -> Explanation:
        """What `chat` would do with the same arguments, without doing it."""
        return self._transport.unary(gateway.explain(chat_request(prompt, options)))

    def count_tokens(
        self, prompt: Prompt | ChatRequest, *, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> TokenCount:
        """The prompt's tokens by the provider's own counting; NotSupported where the provider has none."""
        return self._transport.unary(gateway.count_tokens(chat_request(prompt, options)), timeout)

    def models(self, owner: str | None = None, **options: Unpack[ListOptions]) -> ModelList:
        """The models that an owner can reach; None is the caller's own owner."""
        return read_model_list(self._transport.pages(gateway.list_models(owner, options)))


class Connectors:
    """An owner's connectors. `owner` None is the caller's own; a connector is given as a `Connector` or by its name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        connector_type: str,
        credential: connectors.Credential,
        *,
        display_name: str,
        **options: Unpack[connectors.NewConnector],
    ) -> Connector:
        """Stores a connector and seals its credential.

        client.connectors.create("anthropic", {"api_key": key}, display_name="Claude", model_hint="claude-sonnet-4-5")
        """
        return self._transport.unary(connectors.create(connector_type, credential, display_name, options))

    def get(self, connector: Ref) -> Connector:
        """One connector."""
        return self._transport.unary(connectors.get(connector))

    def list(self, owner: str | None = None, **options: Unpack[ListOptions]) -> Iterator[Connector]:
        """The owner's connectors, page after page."""
        for page in self._transport.pages(connectors.list_(owner, options)):
            yield from page

    def update(self, connector: Ref, **changes: Unpack[connectors.ConnectorChanges]) -> Connector:
        """Changes what is given; see `ConnectorChanges`."""
        return self._transport.unary(connectors.update(connector, changes))

    def delete(self, connector: Ref, *, etag: str = "") -> None:
        """Deletes a connector and its credential, and whatever points to it."""
        self._transport.unary(connectors.delete(connector, etag))

    def rotate(self, connector: Ref, credential: connectors.Credential, *, etag: str = "") -> Connector:
        """Replaces the given fields of the credential; the others stay. A name costs one read before the change."""
        known = connector if isinstance(connector, Connector) else self.get(connector)
        return self._transport.unary(connectors.rotate(known, credential, etag))

    def test(self, connector: Ref, *, model: str = "", timeout: float | None = None) -> connectors.TestReport:
        """One cheap call to the provider; its failure is a result, not an error."""
        return self._transport.unary(connectors.test(connector, model), timeout)

    def set_default(self, connector: Ref) -> Connector:
        """Pins the owner's default."""
        return self._transport.unary(connectors.set_default(connector))

    def clear_default(self, owner: str | None = None) -> None:
        """Unpins the owner's default."""
        self._transport.unary(connectors.clear_default(owner))

    def preferences(
        self, owner: str | None = None, **options: Unpack[ListOptions]
    ) -> Iterator[connectors.FeaturePreference]:
        """Which connector is preferred for which feature."""
        for page in self._transport.pages(connectors.preferences(owner, options)):
            yield from page

    def set_preference(self, feature: str, connector: Ref, *, owner: str | None = None) -> connectors.FeaturePreference:
        """Prefers a connector for a feature."""
        return self._transport.unary(connectors.set_preference(feature, connector, owner))

    def clear_preference(self, feature: str, *, owner: str | None = None) -> None:
        """Forgets the preference for a feature."""
        self._transport.unary(connectors.clear_preference(feature, owner))

    def types(self, owner: str | None = None) -> Iterator[connectors.ConnectorType]:
        """Every registered connector type and the fields of its credential."""
        for page in self._transport.pages(connectors.types(owner)):
            yield from page

    def models(self, connector: Ref, **options: Unpack[ListOptions]) -> connectors.ConnectorModels:
        """A connector's models by the provider's own list."""
        return connectors.read_models(self._transport.pages(connectors.models(connector, options)))

    def effective_policy(self, owner: str | None = None) -> connectors.EffectivePolicy:
        """The part of the policy that concerns the owner."""
        return self._transport.unary(connectors.effective_policy(owner))

    def watch(self, owner: str | None = None, *, resume_token: str = "") -> ServerStream[connectors.ConnectorEvent]:
        """The connectors as they are, then every change, until the stream is closed.

        After a broken stream, watch again with the last event's `resume_token`: nothing is missed.
        """
        return self._transport.stream(connectors.watch(owner, resume_token))


class Admin:
    """The whole gateway, across owners; needs a token with scope ADMIN."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def policy(self) -> admin.Policy:
        """The rules for all owners."""
        return self._transport.unary(admin.get_policy())

    def update_policy(self, **changes: Unpack[admin.PolicyChanges]) -> admin.Policy:
        """Changes what is given; see `PolicyChanges`."""
        return self._transport.unary(admin.update_policy(changes))

    def connectors(self, **options: Unpack[ListOptions]) -> Iterator[admin.ConnectorOverview]:
        """The connectors of all owners, with this month's tokens."""
        for page in self._transport.pages(admin.list_connectors(options)):
            yield from page

    def revoke_connector(self, connector: Ref, *, etag: str = "") -> Connector:
        """Destroys a connector's credential, for good."""
        return self._transport.unary(admin.revoke_connector(connector, etag))

    def set_cap(self, connector: Ref, monthly_token_cap: int, *, mode: str | None = None, etag: str = "") -> Connector:
        """Caps a connector's input and output tokens of a UTC month; mode is "soft", "hard", or None: as before."""
        return self._transport.unary(admin.set_cap(connector, monthly_token_cap, mode, etag))

    def clear_cap(self, connector: Ref, *, etag: str = "") -> Connector:
        """Removes a connector's cap."""
        return self._transport.unary(admin.clear_cap(connector, etag))

    def usage(
        self, *, group_by: Sequence[str] = (), label_key: str = "", **options: Unpack[admin.RangeOptions]
    ) -> admin.UsageReport:
        """Calls, tokens, cost and latency of a range, this month's unless given.

        client.admin.usage(group_by=["owner", "model"], start_time=datetime(2026, 11, 1, tzinfo=UTC))
        """
        return admin.read_usage(self._transport.pages(admin.query_usage(group_by, label_key, options)))

    def calls(self, **options: Unpack[admin.RangeOptions]) -> Iterator[admin.CallRecord]:
        """The call log, oldest first unless ordered otherwise."""
        for page in self._transport.pages(admin.list_calls(options)):
            yield from page

    def call(self, call_id: str) -> admin.CallRecord:
        """One call of the log with its attempts."""
        return self._transport.unary(admin.get_call(call_id))

    def export_calls(self, **options: Unpack[admin.ExportOptions]) -> ServerStream[bytes]:
        """The call log as CSV, in pieces."""
        return self._transport.stream(admin.export_calls(options))

    def audit_events(self, **options: Unpack[admin.RangeOptions]) -> Iterator[admin.AuditEvent]:
        """The audit trail, oldest first unless ordered otherwise."""
        for page in self._transport.pages(admin.list_audit_events(options)):
            yield from page

    def export_audit_events(self, **options: Unpack[admin.ExportOptions]) -> ServerStream[bytes]:
        """The audit trail as CSV, in pieces."""
        return self._transport.stream(admin.export_audit_events(options))

    def verify_audit(self, *, known_sequence: int = 0, known_hash: bytes = b"") -> admin.AuditVerification:
        """Whether the audit trail is whole, and still holds the event that was noted before, if one is given."""
        return self._transport.unary(admin.verify_audit(known_sequence, known_hash))

    def create_token(
        self,
        display_name: str,
        scopes: Sequence[str],
        *,
        owner: str | None = None,
        any_owner: bool = False,
        expire_time: datetime | None = None,
    ) -> admin.NewToken:
        """A caller token for one owner, or with any_owner for all of them. Its secret is shown this once.

        client.admin.create_token("search service", ["chat"], owner="search").secret
        """
        operation = admin.create_token(display_name, scopes, owner, any_owner=any_owner, expire_time=expire_time)
        return self._transport.unary(operation)

    def tokens(self, **options: Unpack[ListOptions]) -> Iterator[admin.CallerToken]:
        """The caller tokens, without their secrets."""
        for page in self._transport.pages(admin.list_tokens(options)):
            yield from page

    def revoke_token(self, token: Ref) -> admin.CallerToken:
        """Revokes a caller token, for good."""
        return self._transport.unary(admin.revoke_token(token))

    def rotate_master_key(self, *, batch_size: int | None = None) -> ServerStream[admin.KeyRotationProgress]:
        """Re-seals every credential under the keyring's first key; the last progress has `done`."""
        return self._transport.stream(admin.rotate_master_key(batch_size))

    def run_health_checks(self, *, filter: str = "") -> ServerStream[admin.HealthCheck]:  # noqa: A002
        """Tests active connectors one after the other; the last result has `done`."""
        return self._transport.stream(admin.run_health_checks(filter))

    def status(self) -> admin.Status:
        """How the replica that answers does."""
        return self._transport.unary(admin.get_status())
