"""One exchange with one connector's provider: the credential opened, the request sent, the answer's bytes folded into
events.

The only place that hands an opened credential to an adapter and that reads from a provider.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.adapters import credentials
from patchbay_server.adapters.protocol import (
    Adapter,
    Capability,
    FieldKind,
    KeepsFailure,
    NamesModel,
    Prepared,
    Reader,
    TypeInfo,
)
from patchbay_server.adapters.registry import Registry
from patchbay_server.adapters.upstream_ids import request_id
from patchbay_server.core import origin
from patchbay_server.core.choose import Candidate, as_seen_by
from patchbay_server.core.clock import Clock
from patchbay_server.errors import FieldViolation, PatchbayError, Reason, UpstreamFailure
from patchbay_server.types import Call, Connector, Event, Notice, Opened, PartCompleted, Policy, Prompt, Secret
from patchbay_server.vault import Vault
from patchbay_server.wire.egress import EgressRules, check_url
from patchbay_server.wire.http import Frame, HttpAnswer, HttpRequest
from patchbay_server.wire.upstream import Answer, Limits, Upstream

log = logging.getLogger(__name__)

ASK_S_MAX: Final = 60.0
"""Longest time of one small request beside the calls, from connecting to the last byte."""

VALUES_MAX: Final = 500_000
"""Objects and lists in one event or whole answer. So many take a quarter of a second to decode."""

MASKED_CHARS_MIN: Final = 8
"""Shorter values of a credential are not looked for: they would be found in ordinary words."""

Builder = Callable[[Adapter, Secret, datetime], HttpRequest]


def rules_of(policy: Policy) -> EgressRules:
    """Where policy lets addresses go that an owner gave."""
    return EgressRules(private_http=policy.private_http, host_allow_list=policy.host_allow_list)


def _rules_for(adapter: Adapter, secret: Secret, policy: Policy) -> EgressRules:
    """The allow-list judges addresses that owners give; a provider's own address is allowed with its connector type.

    Raises:
        PatchbayError: CONNECTOR_MISCONFIGURED, POLICY_DENIED for an address that could not be given today.
    """
    rules = rules_of(policy)
    given = [secret.text(field.name) for field in adapter.info.fields if field.kind is FieldKind.URL]
    for url in filter(None, given):
        try:
            check_url(url, rules)
        except PatchbayError as error:
            reason = Reason.CONNECTOR_MISCONFIGURED if error.reason is Reason.INVALID_REQUEST else error.reason
            raise PatchbayError(reason, error.message) from None
    chosen = any(given) or any(field.names_host and secret.text(field.name) for field in adapter.info.fields)
    return rules if chosen else msgspec.structs.replace(rules, host_allow_list=())


def _check_structure(data: bytes) -> None:
    """Refuse JSON that would become far more objects than bytes suggest: decoding it would hold up every other call.

    Raises:
        PatchbayError: UPSTREAM_MALFORMED_RESPONSE.
    """
    if len(data) > VALUES_MAX and data.count(b"{") + data.count(b"[") > VALUES_MAX:
        raise PatchbayError(
            Reason.UPSTREAM_MALFORMED_RESPONSE,
            f"the provider sent more than {VALUES_MAX} objects and lists at once; ask for a shorter answer",
        )


@contextmanager
def _contained(connector: Connector) -> Iterator[None]:
    """Keeps the fault of one candidate's adapter, which may be somebody else's code, from those beside it.

    Raises:
        PatchbayError: INTERNAL in place of whatever else was raised.
    """
    try:
        yield
    except PatchbayError:
        raise
    except Exception:
        log.exception("the adapter of type %r failed by a fault of its own", connector.type)
        raise PatchbayError(Reason.INTERNAL, f"the adapter of type {connector.type!r} failed") from None


class _Mask:
    """Hides the secret values of one credential in what its provider, or an adapter of somebody else's, says of a call:
    either may repeat what it was given.
    """

    def __init__(self, info: TypeInfo, secret: Secret) -> None:
        self._provider = info.type
        keys = [secret.text(field.name) for field in info.fields if field.kind is FieldKind.SECRET]
        maps = [secret.pairs(field.name) for field in info.fields if field.kind is FieldKind.HEADERS]
        values = {*keys, *(value for headers in maps for value in headers.values())}
        self._values = sorted((value for value in values if len(value) >= MASKED_CHARS_MIN), key=len, reverse=True)

    def text(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, "***")
        return text

    def error(self, error: PatchbayError, answer: Answer | HttpAnswer) -> PatchbayError:
        """`error`, with which `answer` ended, as callers get it; the answer's headers tell what its body does not."""
        upstream = error.upstream or UpstreamFailure(provider=self._provider, http_status=answer.status)
        upstream = msgspec.structs.replace(
            upstream,
            provider_code=self.text(upstream.provider_code),
            upstream_request_id=self.text(upstream.upstream_request_id or request_id(answer.headers)),
        )
        return PatchbayError(
            error.reason,
            self.text(error.message),
            violations=[FieldViolation(v.field, self.text(v.description)) for v in error.violations],
            retry_after_s=error.retry_after_s,
            quota=error.quota,
            upstream=upstream,
        )


class Attempt:
    """An answer that has begun: the provider accepted the request. Valid inside the `Exchange.start` that gave it."""

    def __init__(
        self,
        connector_type: str,
        reader: Reader,
        answer: Answer,
        notices: tuple[Notice, ...],
        mask: _Mask,
        *,
        whole: Callable[[], Reader] | None,
    ) -> None:
        self._connector_type = connector_type
        self._reader = reader
        self._keeper = reader if isinstance(reader, KeepsFailure) else None
        self._answer = answer
        self._mask = mask
        self._whole = whole
        """Makes the reader of a whole answer, where one is welcome in place of the stream that was asked for."""
        self.notices = notices

    @property
    def finished(self) -> bool:
        """Whether nothing more of the answer matters."""
        return self._reader.finished

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """The answer's events, those that arrived in one network read together; the last one is `Finished`.

        Raises:
            PatchbayError: any UPSTREAM reason, STREAMING_UNSUPPORTED.
        """
        try:
            async with aclosing(self._read()) as batches:
                async for batch in batches:
                    yield [self._marked(event) for event in batch]
        except PatchbayError as error:
            raise self._mask.error(error, self._answer) from None

    async def _read(self) -> AsyncGenerator[list[Event]]:
        try:
            async with aclosing(self._answer.frames()) as reads:
                async for frames in reads:
                    events: list[Event] = []
                    failure: PatchbayError | None = None
                    for frame in frames:
                        try:
                            events += self._fed(frame)
                        except PatchbayError as error:
                            # What came before the failure in the same read is the caller's all the same.
                            failure = error
                            break
                    if events:
                        yield events
                    failure = failure or self._kept(ripe=True)
                    if failure is not None:
                        raise failure
                    if self._reader.finished:
                        return
        except PatchbayError as error:
            # A failure that was told is worth more than how its telling ended.
            raise self._kept(ripe=False) or error from None
        last = self._reader.finish()
        if last:
            yield list(last)

    def _kept(self, *, ripe: bool) -> PatchbayError | None:
        """The failure that the reader keeps, if any; a `ripe` one is not waiting for anything that belongs to it."""
        keeper = self._keeper
        return None if keeper is None or (ripe and keeper.wants_more) else keeper.failure

    def _fed(self, frame: Frame) -> Sequence[Event]:
        if frame.whole and self._whole is not None:
            self._reader, self._whole = self._whole(), None
            self._keeper = self._reader if isinstance(self._reader, KeepsFailure) else None
        _check_structure(frame.data)
        try:
            return self._reader.feed(frame)
        except PatchbayError as error:
            if frame.torn and error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE:
                message = "the provider's answer ended in the middle of an event"
                raise PatchbayError(Reason.UPSTREAM_TRUNCATED, message) from None
            raise

    def _marked(self, event: Event) -> Event:
        """An event as callers get it: provider state carries the connector type that it belongs to."""
        match event:
            case PartCompleted():
                return PartCompleted(event.part_index, origin.mark(event.part, self._connector_type))
            case Opened():
                # What a body calls itself names the answer; the header names the request, and some bodies name nothing.
                upstream_id = request_id(self._answer.headers) or event.upstream_id
                return Opened(upstream_id=self._mask.text(upstream_id), model=self._mask.text(event.model))
            case _:
                return event


class _Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be sent, and what reading its answer takes."""

    adapter: Adapter
    call: Call
    prepared: Prepared
    rules: EgressRules
    mask: _Mask
    notices: tuple[Notice, ...]

    def reader(self) -> Reader:
        return self.prepared.reader or self.adapter.reader(self.call)


class Exchange:
    """Talks to providers on behalf of connectors: knows where credentials, adapters and the network are."""

    def __init__(self, *, registry: Registry, vault: Vault, upstream: Upstream, clock: Clock, limits: Limits) -> None:
        self._registry = registry
        self._vault = vault
        self._upstream = upstream
        self._clock = clock
        self._limits = limits

    @asynccontextmanager
    async def start(
        self,
        candidate: Candidate,
        prompt: Prompt,
        *,
        call_id: str,
        streaming: bool,
        whole_welcome: bool,
        policy: Policy,
    ) -> AsyncIterator[Attempt]:
        """Ask the candidate's model; the connection is closed when the context is left, or kept for another call when
        the answer was whole.

        Args:
            whole_welcome: whether a server that answers at once, although it was asked to stream, is taken at its word.

        Raises:
            PatchbayError: CREDENTIAL_UNREADABLE, CONNECTOR_MISCONFIGURED, FEATURE_UNSUPPORTED, INVALID_REQUEST and
                STREAMING_UNSUPPORTED before anything is sent; any UPSTREAM reason after.
        """
        ready = self._prepare(candidate, prompt, call_id=call_id, streaming=streaming, policy=policy)
        limits = self._limits_of(candidate.connector)
        async with self._upstream.send(ready.prepared.request, rules=ready.rules, limits=limits) as answer:
            if not answer.ok:
                raise ready.mask.error(ready.adapter.explain(await answer.whole()), answer)
            whole: Callable[[], Reader] | None = None
            if streaming and whole_welcome:

                def whole() -> Reader:
                    unary = self._prepare(candidate, prompt, call_id=call_id, streaming=False, policy=policy)
                    return unary.reader()

            attempt = Attempt(candidate.connector.type, ready.reader(), answer, ready.notices, ready.mask, whole=whole)
            yield attempt
            if attempt.finished:
                # The little that follows the last event, so that the connection can serve another call.
                await answer.drain()

    def rehearse(
        self, candidate: Candidate, prompt: Prompt, *, owner: str, streaming: bool, policy: Policy
    ) -> tuple[Notice, ...]:
        """What would be lost of the prompt if the candidate were asked on behalf of `owner`; nothing is sent.

        Raises:
            PatchbayError: as `start` before anything is sent, as the owner may see it; INTERNAL for an adapter's fault.
        """
        connector = candidate.connector
        try:
            with _contained(connector):
                ready = self._prepare(candidate, prompt, call_id="rehearsal", streaming=streaming, policy=policy)
        except PatchbayError as error:
            raise as_seen_by(error, connector, owner) from None
        return ready.notices

    def own_model(self, connector: Connector) -> str:
        """The model that the connector's credential names; "" where credentials of its type name none.

        Raises:
            PatchbayError: CREDENTIAL_UNREADABLE; INTERNAL for an adapter's fault.
        """
        adapter = self._registry.get(connector.type)
        if not isinstance(adapter, NamesModel):
            return ""
        with _contained(connector):
            return adapter.model_of(self._vault.open(connector.uid, connector.sealed))

    def can_stream(self, connector: Connector) -> bool:
        return Capability.STREAMING in self._registry.get(connector.type).info.capabilities

    def _prepare(
        self, candidate: Candidate, prompt: Prompt, *, call_id: str, streaming: bool, policy: Policy
    ) -> "_Ready":
        connector = candidate.connector
        adapter = self._registry.get(connector.type)
        if streaming and not self.can_stream(connector):
            raise PatchbayError(
                Reason.STREAMING_UNSUPPORTED, f"connectors of type {connector.type!r} cannot stream; use Chat"
            )
        own_prompt, left_out = origin.for_type(prompt, connector.type)
        call = Call(id=call_id, model=candidate.model, prompt=own_prompt, streaming=streaming)
        secret = self._vault.open(connector.uid, connector.sealed)
        credentials.require_usable(adapter.info, secret)
        adapter.check_model(call.model, secret)
        prepared = adapter.prepare(call, secret, self._clock.now())
        return _Ready(
            adapter=adapter,
            call=call,
            prepared=prepared,
            rules=_rules_for(adapter, secret, policy),
            mask=_Mask(adapter.info, secret),
            notices=left_out + prepared.notices,
        )

    async def ask(self, connector: Connector, build: Builder, policy: Policy) -> HttpAnswer:
        """One small request beside the calls (a check, a page of models) and its whole answer.

        Raises:
            PatchbayError: as `start`.
        """
        adapter = self._registry.get(connector.type)
        secret = self._vault.open(connector.uid, connector.sealed)
        credentials.require_usable(adapter.info, secret)
        request = build(adapter, secret, self._clock.now())
        rules = _rules_for(adapter, secret, policy)
        limits = self._limits_of(connector)
        try:
            async with asyncio.timeout(ASK_S_MAX), self._upstream.send(request, rules=rules, limits=limits) as answer:
                whole = await answer.whole()
        except TimeoutError:
            # The limits of single waits let a provider drip its answer for ever.
            message = f"the provider took more than {ASK_S_MAX:g} s to answer"
            raise PatchbayError(Reason.UPSTREAM_TIMEOUT, message) from None
        if not answer.ok:
            raise _Mask(adapter.info, secret).error(adapter.explain(whole), whole)
        _check_structure(whole.body)
        return whole

    def _limits_of(self, connector: Connector) -> Limits:
        own = connector.settings
        given = {
            "connect_s": own.connect_timeout_s,
            "first_byte_s": own.first_byte_timeout_s,
            "idle_s": own.idle_timeout_s,
        }
        return msgspec.structs.replace(self._limits, **{name: value for name, value in given.items() if value})
