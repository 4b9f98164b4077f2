"""One exchange with one connector's provider: the credential opened, the request sent, the answer's bytes folded into
events.

The only place that hands an opened credential to an adapter and that reads from a provider.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.adapters import credentials
from patchbay_server.adapters.protocol import Adapter, Capability, FieldKind, Reader
from patchbay_server.adapters.registry import Registry
from patchbay_server.core import origin
from patchbay_server.core.choose import Candidate
from patchbay_server.core.clock import Clock
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, Connector, Event, Notice, PartCompleted, Policy, Prompt, Secret
from patchbay_server.vault import Vault
from patchbay_server.wire.egress import EgressRules, check_url
from patchbay_server.wire.http import HttpAnswer, HttpRequest
from patchbay_server.wire.upstream import Answer, Limits, Upstream

ASK_S_MAX: Final = 60.0
"""Longest time of one small request beside the calls, from connecting to the last byte."""

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
    return rules if any(given) else msgspec.structs.replace(rules, host_allow_list=())


class Attempt:
    """An answer that has begun: the provider accepted the request. Valid inside the `Exchange.start` that gave it."""

    def __init__(self, connector_type: str, reader: Reader, answer: Answer, notices: tuple[Notice, ...]) -> None:
        self._connector_type = connector_type
        self._reader = reader
        self._answer = answer
        self.notices = notices

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """The answer's events, those that arrived in one network read together; the last one is `Finished`.

        Raises:
            PatchbayError: any UPSTREAM reason, STREAMING_UNSUPPORTED.
        """
        async with aclosing(self._answer.frames()) as reads:
            async for frames in reads:
                events: list[Event] = []
                failure: PatchbayError | None = None
                for frame in frames:
                    try:
                        events += self._reader.feed(frame)
                    except PatchbayError as error:
                        # What came before the failure in the same read is the caller's all the same.
                        failure = error
                        break
                if events:
                    yield self._marked(events)
                if failure is not None:
                    raise failure
                if self._reader.finished:
                    return
        last = list(self._reader.finish())
        if last:
            yield self._marked(last)

    def _marked(self, events: list[Event]) -> list[Event]:
        """Events as callers get them: provider state carries the connector type that it belongs to."""
        return [
            PartCompleted(event.part_index, origin.mark(event.part, self._connector_type))
            if isinstance(event, PartCompleted)
            else event
            for event in events
        ]


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
        self, candidate: Candidate, prompt: Prompt, *, call_id: str, streaming: bool, policy: Policy
    ) -> AsyncIterator[Attempt]:
        """Ask the candidate's model; the connection is closed when the context is left, or kept for another call when
        the answer was whole.

        Raises:
            PatchbayError: CREDENTIAL_UNREADABLE, CONNECTOR_MISCONFIGURED, FEATURE_UNSUPPORTED, INVALID_REQUEST and
                STREAMING_UNSUPPORTED
                before anything is sent; any UPSTREAM reason after.
        """
        connector = candidate.connector
        adapter = self._registry.get(connector.type)
        if streaming and Capability.STREAMING not in adapter.info.capabilities:
            raise PatchbayError(
                Reason.STREAMING_UNSUPPORTED, f"connectors of type {connector.type!r} cannot stream; use Chat"
            )
        own_prompt, left_out = origin.for_type(prompt, connector.type)
        call = Call(id=call_id, model=candidate.model, prompt=own_prompt, streaming=streaming)
        secret = self._vault.open(connector.uid, connector.sealed)
        credentials.require_usable(adapter.info, secret)
        adapter.check_model(call.model, secret)
        prepared = adapter.prepare(call, secret, self._clock.now())
        rules = _rules_for(adapter, secret, policy)
        async with self._upstream.send(prepared.request, rules=rules, limits=self._limits_of(connector)) as answer:
            if not answer.ok:
                raise adapter.explain(await answer.whole())
            reader = prepared.reader or adapter.reader(call)
            yield Attempt(connector.type, reader, answer, left_out + prepared.notices)
            if reader.finished:
                # The little that follows the last event, so that the connection can serve another call.
                await answer.drain()

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
            raise adapter.explain(whole)
        return whole

    def _limits_of(self, connector: Connector) -> Limits:
        own = connector.settings
        given = {
            "connect_s": own.connect_timeout_s,
            "first_byte_s": own.first_byte_timeout_s,
            "idle_s": own.idle_timeout_s,
        }
        return msgspec.structs.replace(self._limits, **{name: value for name, value in given.items() if value})
