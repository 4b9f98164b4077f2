"""The faults that a gateway is there for, as a caller meets them: through a real server, in real time.

Each has a healthy connector to fall back to. What is looked at is what a caller cares for: who answered and how soon,
what the failure says when nobody could, how often each provider was asked, and what is written of it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.e2e.gateway import OWNER, GatewayHere, asking, gateway_here, read
from tests.rpc.bench import Failure, check_sequence, kinds
from tests.support import answers
from tests.support.provider import Cut, Head, Reset, Script, Silence, Step, Wait

from patchbay.v1 import admin_service_pb2, connector_service_pb2, error_pb2
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay.v1.usage_pb2 import UsageSource
from patchbay_server.core import breaker
from patchbay_server.core.call import RETRY_WAIT_S
from patchbay_server.errors import Reason
from patchbay_server.store.protocol import Page
from patchbay_server.types import AuditType, CallRow, CallState, ConnectorState

SILENCE_S: Final = 2.0
"""What the gateway is told to wait for the first byte, and for each following one."""
AT_ONCE_S_MAX: Final = 1.5
"""Whatever waits for no limit is done by then: no limit here is so short."""
DEADLINE_S: Final = 20.0
"""How long callers wait; what hangs takes this long."""

MAIN, SPARE = f"{OWNER}/connectors/main", f"{OWNER}/connectors/spare"
CHAIN, RETRY, NONE = pb.FALLBACK_MODE_OWNER_CHAIN, pb.FALLBACK_MODE_RETRY_THEN_ORG_DEFAULT, pb.FALLBACK_MODE_NONE
PRICES: Final = {"small": (1_000, 2_000), "large": (30_000, 50_000)}
"""Billionths of a dollar for a token of input and of output, by the model of `main` and that of `spare`."""
TOKENS: Final = (11, 4)
"""Input and output of `answers.USAGE`."""

both = pytest.mark.parametrize("rpc", ["chat", "stream"])


@dataclass(frozen=True)
class Seen:
    """One call as its caller saw it: an answer or a failure, and for `stream` the chunks before it."""

    call_id: str
    took_s: float
    answer: pb.ChatResponse | None
    chunks: list[pb.ChatResponseChunk]
    failure: Failure | None

    @property
    def text(self) -> str:
        """What was delivered."""
        if self.chunks:
            return "".join(chunk.text_delta.text for chunk in self.chunks)
        return "".join(part.text for part in self.answer.message.parts) if self.answer else ""

    @property
    def tries(self) -> list[tuple[str, str]]:
        """Each attempt's connector, and why it failed; "" for the one that answered."""
        assert self.answer is not None
        return [
            (attempt.connector.rpartition("/")[2], _reason(attempt.error_reason))
            for attempt in self.answer.route.attempts
        ]


def _reason(value: "error_pb2.ErrorReason.ValueType") -> str:
    return error_pb2.ErrorReason.Name(value).removeprefix("ERROR_REASON_") if value else ""


class Drip:
    """An answer that shows signs of life for ever and never says anything."""

    def __init__(self, *first: Step, sign: bytes) -> None:
        self._first, self._sign = first, sign

    def __iter__(self) -> Iterator[Step]:
        yield from self._first
        while True:
            yield self._sign
            yield Wait(0.2)


class World:
    """A gateway with the connectors `main`, which a test lets fail, and `spare`, which answers."""

    def __init__(self, here: GatewayHere, rpc: str) -> None:
        self.here = here
        self.provider = here.provider
        self._rpc = rpc

    async def prepare(self) -> None:
        client = self.here.client
        await client.add_connector(self.provider.url("spare") + "/v1", "spare", model="large")
        policy = admin_service_pb2.Policy(org_default_connector=SPARE)
        for model, (given, written) in PRICES.items():
            price = pb.ModelPrice(
                input_per_million_usd_nanos=given * 1_000_000, output_per_million_usd_nanos=written * 1_000_000
            )
            policy.price_overrides.append(admin_service_pb2.PriceOverride(model=model, price=price))
        mask = FieldMask(paths=["org_default_connector", "price_overrides"])
        request = admin_service_pb2.UpdatePolicyRequest(policy=policy, update_mask=mask)
        await client.admin.UpdatePolicy(request, metadata=client.metadata)
        self.provider.always_answer(self.whole(), name="spare")

    async def expect_end_marks(self) -> None:
        """From now on `main` is known to end its streams with a mark."""
        changed = connector_service_pb2.OpenaiCompatibleCredential(requires_done_marker=True)
        request = connector_service_pb2.RotateCredentialRequest(
            name=MAIN, credential=connector_service_pb2.Credential(openai_compatible=changed)
        )
        await self.here.client.connectors.RotateCredential(request, metadata=self.here.client.metadata)

    def whole(self) -> Script:
        """A whole answer, as it is asked for."""
        return answers.openai_stream() if self._rpc == "stream" else answers.openai_unary()

    def stopped(self, *then: Step) -> Script:
        """An answer of which as much as can be told has come, and then what `then` says."""
        if self._rpc == "stream":
            return answers.openai_interrupted(*then)
        head, body = answers.openai_unary()
        assert isinstance(body, bytes)
        return [head, body[: len(body) // 2], *then]

    async def ask(self, fallback: "pb.FallbackMode.ValueType", deadline_s: float = DEADLINE_S) -> Seen:
        """One call of `main`, to its end."""
        request = asking("main", fallback=fallback, stream_options=pb.StreamOptions(include_final_response=True))
        began = asyncio.get_running_loop().time()
        call = getattr(self.here.client, self._rpc)(request=request, timeout=deadline_s)
        got: list[Any] = []
        failure = None
        try:
            await read(call, got)
        except grpc.aio.AioRpcError as error:
            failure = Failure(error)
        took_s = asyncio.get_running_loop().time() - began
        call_id = str(dict(await call.initial_metadata())["patchbay-call-id"])
        if self._rpc == "chat":
            return Seen(call_id, took_s, got[0] if got else None, [], failure)
        check_sequence(got)
        answer = got[-1].completed.response if kinds(got)[-1:] == ["completed"] else None
        assert (answer is None) == (failure is not None), "a stream ends with `completed` or with a failure"
        return Seen(call_id, took_s, answer, got, failure)

    @property
    def asked(self) -> tuple[int, int]:
        """Requests that `main`'s provider got, and `spare`'s."""
        return len(self.provider.asked("main")), len(self.provider.asked("spare"))

    async def record(self, seen: Seen) -> CallRow:
        """The call's record, whose attempts are closed and add up."""
        service = self.here.service
        await service.recorder.flush()
        row = await service.store.find_call(seen.call_id)
        assert row is not None
        assert row.closed is not None
        assert row.closed.attempts == len(row.attempts)
        used = [attempt.closed.usage for attempt in row.attempts if attempt.closed and attempt.closed.usage]
        whole = row.closed.usage
        assert sum(usage.input_tokens for usage in used) == (whole.input_tokens if whole else 0)
        assert sum(usage.output_tokens for usage in used) == (whole.output_tokens if whole else 0)
        assert sum(usage.cost_usd_nanos or 0 for usage in used) == ((whole.cost_usd_nanos or 0) if whole else 0)
        return row

    async def fallbacks(self) -> list[tuple[str, str]]:
        """The target and the trigger of each fallback so far, as audited."""
        rows = await self.here.service.store.list_audit(Page(size=1000))
        return [(row.subject, row.qualifier) for row in rows if row.type is AuditType.FALLBACK_TRIGGERED]

    async def check_spare_answered(self, seen: Seen, reason: Reason, trigger: str) -> None:
        """One attempt at `main` failed with `reason`, one at `spare` answered, and that is what is told and written."""
        assert seen.failure is None
        assert seen.text == answers.TEXT
        assert seen.tries == [("main", reason.value), ("spare", "")]
        assert seen.answer is not None
        assert (seen.answer.route.connector, seen.answer.route.resolved_by) == (SPARE, pb.RESOLVED_BY_FALLBACK)
        row = await self.record(seen)
        assert row.state is CallState.SUCCEEDED
        assert _ends(row) == [("main", reason), ("spare", None)]
        assert await self.fallbacks() == [(SPARE, trigger)]

    async def check_failed_openly(self, seen: Seen, reason: Reason, *, delivered: str) -> CallRow:
        """`main` failed, and nobody else was asked: the caller is told so, and how far it got."""
        failure = seen.failure
        assert failure is not None
        assert failure.reason == reason.value
        assert seen.text == delivered
        upstream = failure.details["UpstreamFailure"]
        assert (upstream.connector, upstream.attempt_count) == (MAIN, 1)
        assert ("PartialResult" in failure.details) == bool(seen.chunks)
        row = await self.record(seen)
        assert (row.state, row.closed and row.closed.reason) == (CallState.FAILED, reason)
        assert _ends(row) == [("main", reason)]
        if seen.chunks:
            partial = failure.details["PartialResult"]
            assert (partial.call_id, partial.last_sequence) == (seen.call_id, len(seen.chunks))
            assert row.closed is not None
            assert row.closed.usage is not None
            assert partial.usage.output_tokens == row.closed.usage.output_tokens > 0
        assert await self.fallbacks() == []
        return row


def _ends(row: CallRow) -> list[tuple[str, Reason | None]]:
    """Each attempt's connector, told by its model, and why it failed."""
    names = {"small": "main", "large": "spare"}
    return [(names[a.opened.model], a.closed.reason if a.closed else None) for a in row.attempts]


@asynccontextmanager
async def world(folder: Path, rpc: str, **settings: Any) -> AsyncIterator[World]:
    """Leaving it checks that nothing is left of any call but its one record."""
    limits: dict[str, Any] = {"first_byte_timeout_s": SILENCE_S, "idle_timeout_s": SILENCE_S}
    async with gateway_here(folder / "data", **(limits | settings)) as here:
        made = World(here, rpc)
        await made.prepare()
        yield made
        await here.check_nothing_is_left()
        status = await here.client.status()
        assert status.calls_without_record == 0
        assert not here.provider.unexpected, "the provider was asked more often than scripted"
        assert not [connection for connection in here.provider.connections if connection.abandoned]


# --- before any output: somebody else answers, at once ----------------------------------------------------------------


@both
async def test_429_with_retry_after_is_waited_for_where_that_pays_and_told_where_nobody_waits(
    tmp_path: Path, rpc: str
) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(answers.error(429, headers={"retry-after": "1"}), at.whole())
        waited = await at.ask(RETRY)
        assert 1.0 <= waited.took_s < 1.0 + AT_ONCE_S_MAX
        assert waited.tries == [("main", "UPSTREAM_RATE_LIMITED"), ("main", "")]
        assert at.asked == (2, 0)
        assert await at.fallbacks() == []
        assert _ends(await at.record(waited)) == [("main", Reason.UPSTREAM_RATE_LIMITED), ("main", None)]

        at.provider.answer(answers.error(429, headers={"retry-after": "3600"}))
        diverted = await at.ask(RETRY)
        assert diverted.took_s < AT_ONCE_S_MAX
        assert at.asked == (3, 1)
        await at.check_spare_answered(diverted, Reason.UPSTREAM_RATE_LIMITED, "rate_limited")

        at.provider.answer(answers.error(429, headers={"retry-after": "3600"}))
        told = await at.ask(NONE)
        assert told.took_s < AT_ONCE_S_MAX
        assert at.asked == (4, 1)
        assert told.failure is not None
        assert (told.failure.code, told.failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "UPSTREAM_RATE_LIMITED",
        )
        assert told.failure.details["RetryInfo"].retry_delay.seconds == 3600
        assert told.failure.details["UpstreamFailure"].http_status == 429
        assert told.failure.trailers["grpc-retry-pushback-ms"] == "-1"


@both
async def test_429_without_a_time_is_tried_once_more_and_then_elsewhere(tmp_path: Path, rpc: str) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(answers.error(429), answers.error(429))
        seen = await at.ask(RETRY)
        assert RETRY_WAIT_S <= seen.took_s < RETRY_WAIT_S + AT_ONCE_S_MAX
        limited = ("main", "UPSTREAM_RATE_LIMITED")
        assert seen.tries == [limited, limited, ("spare", "")]
        assert seen.text == answers.TEXT
        assert at.asked == (2, 1)
        assert await at.fallbacks() == [(SPARE, "rate_limited")]
        assert (await at.record(seen)).state is CallState.SUCCEEDED

        at.provider.answer(answers.error(429), answers.error(429))
        at.provider.answer(answers.error(429, headers={"retry-after": "7"}), name="spare")
        in_vain = await at.ask(RETRY)
        assert RETRY_WAIT_S <= in_vain.took_s < RETRY_WAIT_S + AT_ONCE_S_MAX
        assert at.asked == (4, 2)
        assert in_vain.failure is not None
        assert in_vain.failure.reason == "ALL_CANDIDATES_FAILED"
        assert in_vain.failure.details["RetryInfo"].retry_delay.seconds == 7
        assert in_vain.failure.details["UpstreamFailure"].attempt_count == 3
        assert len((await at.record(in_vain)).attempts) == 3


@both
@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_is_replaced_at_once(tmp_path: Path, rpc: str, status: int) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(answers.error(status))
        seen = await at.ask(CHAIN)
        assert seen.took_s < AT_ONCE_S_MAX
        assert at.asked == (1, 1)
        await at.check_spare_answered(seen, Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable")
        assert (await at.record(seen)).attempts[0].closed.failure.http_status == status  # type: ignore[union-attr]


@both
@pytest.mark.parametrize("headers", [False, True], ids=["before the headers", "after the headers"])
async def test_a_reset_connection_is_replaced_at_once(tmp_path: Path, rpc: str, headers: bool) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer([at.whole()[0], Reset()] if headers else [Reset()])
        seen = await at.ask(CHAIN)
        assert seen.took_s < AT_ONCE_S_MAX
        assert at.asked == (1, 1)
        await at.check_spare_answered(seen, Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable")


@both
async def test_a_silent_upstream_is_replaced_when_its_limit_has_passed(tmp_path: Path, rpc: str) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer([Silence()])
        seen = await at.ask(CHAIN)
        assert SILENCE_S <= seen.took_s < SILENCE_S + AT_ONCE_S_MAX
        assert at.asked == (1, 1)
        await at.check_spare_answered(seen, Reason.UPSTREAM_TIMEOUT, "provider_unavailable")


@both
async def test_a_silent_upstream_with_nobody_to_replace_it_is_told_when_its_limit_has_passed(
    tmp_path: Path, rpc: str
) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer([Silence()])
        seen = await at.ask(NONE)
        assert SILENCE_S <= seen.took_s < SILENCE_S + AT_ONCE_S_MAX
        assert at.asked == (1, 0)
        await at.check_failed_openly(seen, Reason.UPSTREAM_TIMEOUT, delivered="")


@both
async def test_a_slow_first_token_is_waited_for_as_long_as_the_limits_allow(tmp_path: Path, rpc: str) -> None:
    async with world(tmp_path, rpc) as at:
        head, *rest = at.whole()
        slow_s = SILENCE_S * 0.6
        sign = b": working on it\n\n" if rpc == "stream" else b""
        at.provider.answer([head, *([sign] if sign else []), Wait(slow_s), *rest])
        seen = await at.ask(CHAIN)
        assert slow_s <= seen.took_s < slow_s + AT_ONCE_S_MAX
        assert seen.tries == [("main", "")]
        assert seen.text == answers.TEXT
        assert at.asked == (1, 0)
        row = await at.record(seen)
        assert row.closed is not None
        assert row.closed.first_output_s is not None
        assert row.closed.first_output_s >= slow_s


@both
async def test_a_first_token_that_never_comes_costs_no_more_than_its_share_of_the_deadline(
    tmp_path: Path, rpc: str
) -> None:
    """Signs of life pass every limit on silence; the deadline is shared with the one who could answer instead."""
    async with world(tmp_path, rpc) as at:
        sign = b": working on it\n\n" if rpc == "stream" else b" "
        at.provider.answer(Drip(Head(200, {"content-type": "text/event-stream"}), sign=sign))  # type: ignore[arg-type]
        deadline_s = 2 * SILENCE_S + 1.0
        seen = await at.ask(CHAIN, deadline_s)
        assert deadline_s * 0.45 <= seen.took_s < deadline_s
        assert at.asked == (1, 1)
        await at.check_spare_answered(seen, Reason.UPSTREAM_TIMEOUT, "provider_unavailable")


# --- after output: the truth, and nobody else -------------------------------------------------------------------------


@both
async def test_an_answer_cut_in_the_middle_is_an_error_once_a_word_of_it_was_delivered(
    tmp_path: Path, rpc: str
) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(at.stopped(Cut()))
        seen = await at.ask(CHAIN)
        assert seen.took_s < AT_ONCE_S_MAX
        if rpc == "stream":
            await at.check_failed_openly(seen, Reason.UPSTREAM_STREAM_BROKEN, delivered=answers.TEXT)
            assert at.asked == (1, 0)
        else:
            await at.check_spare_answered(seen, Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable")
            assert at.asked == (1, 1)


@both
async def test_an_answer_that_stalls_in_the_middle_ends_when_the_limit_on_silence_has_passed(
    tmp_path: Path, rpc: str
) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(at.stopped(Silence()))
        seen = await at.ask(CHAIN)
        assert SILENCE_S <= seen.took_s < SILENCE_S + AT_ONCE_S_MAX
        if rpc == "stream":
            await at.check_failed_openly(seen, Reason.UPSTREAM_TIMEOUT, delivered=answers.TEXT)
            assert at.asked == (1, 0)
        else:
            await at.check_spare_answered(seen, Reason.UPSTREAM_TIMEOUT, "provider_unavailable")
            assert at.asked == (1, 1)


@both
async def test_a_malformed_chunk_is_an_error_once_a_word_was_delivered_and_replaced_before(
    tmp_path: Path, rpc: str
) -> None:
    async with world(tmp_path, rpc) as at:
        if rpc == "stream":
            at.provider.answer(at.stopped(answers.event("{no json")))
            seen = await at.ask(CHAIN)
            assert seen.took_s < AT_ONCE_S_MAX
            await at.check_failed_openly(seen, Reason.UPSTREAM_MALFORMED_RESPONSE, delivered=answers.TEXT)
            assert at.asked == (1, 0)
        before = at.asked[0]
        at.provider.answer([at.whole()[0], answers.event("{no json")] if rpc == "stream" else [Head(200), b"{no json"])
        seen = await at.ask(CHAIN)
        assert seen.took_s < AT_ONCE_S_MAX
        await at.check_spare_answered(seen, Reason.UPSTREAM_MALFORMED_RESPONSE, "provider_unavailable")
        assert at.asked == (before + 1, 1)


async def test_a_stream_without_its_end_mark_is_an_error_where_the_server_is_known_to_send_one(tmp_path: Path) -> None:
    """Only streams have an end mark, and not every server sends one: where none is due, a finish reason is enough."""
    async with world(tmp_path, "stream") as at:
        unmarked = answers.openai_stream()[:-1]
        at.provider.answer(unmarked)
        assert (await at.ask(CHAIN)).tries == [("main", "")]

        at.provider.answer(at.stopped())
        cut = await at.ask(CHAIN)
        assert cut.took_s < AT_ONCE_S_MAX
        await at.check_failed_openly(cut, Reason.UPSTREAM_TRUNCATED, delivered=answers.TEXT)

        await at.expect_end_marks()
        at.provider.answer(unmarked)
        unended = await at.ask(CHAIN)
        assert unended.took_s < AT_ONCE_S_MAX
        row = await at.check_failed_openly(unended, Reason.UPSTREAM_TRUNCATED, delivered=answers.TEXT)
        assert row.closed is not None
        assert row.closed.usage is not None
        assert (row.closed.usage.input_tokens, row.closed.usage.output_tokens) == TOKENS
        assert at.asked == (3, 0)


# --- answers that are none of the gateway's business to improve -------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("context_length_exceeded", Reason.CONTEXT_LENGTH_EXCEEDED),
        ("content_policy_violation", Reason.CONTENT_POLICY_VIOLATION),
    ],
)
async def test_a_prompt_that_is_too_long_or_forbidden_is_told_and_taken_nowhere_else(
    tmp_path: Path, rpc: str, code: str, reason: Reason
) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(answers.error(400, code))
        seen = await at.ask(RETRY)
        assert seen.took_s < AT_ONCE_S_MAX
        assert at.asked == (1, 0)
        await at.check_failed_openly(seen, reason, delivered="")
        assert seen.failure is not None
        assert seen.failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "what the provider said" not in str(seen.failure.status)


@both
async def test_an_answer_that_a_content_filter_ended_is_an_answer(tmp_path: Path, rpc: str) -> None:
    async with world(tmp_path, rpc) as at:
        words = ("I cannot",)
        at.provider.answer(
            answers.openai_stream(words, finish="content_filter")
            if rpc == "stream"
            else answers.openai_unary(words[0], finish="content_filter")
        )
        seen = await at.ask(RETRY)
        assert seen.took_s < AT_ONCE_S_MAX
        assert (seen.text, seen.tries) == (words[0], [("main", "")])
        assert seen.answer is not None
        assert seen.answer.finish_reason == pb.FINISH_REASON_CONTENT_FILTER
        assert at.asked == (1, 0)
        assert await at.fallbacks() == []
        assert (await at.record(seen)).state is CallState.SUCCEEDED


# --- when the fallback is no help, and in the long run ----------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, Reason.UPSTREAM_REJECTED_REQUEST), (401, Reason.UPSTREAM_CREDENTIAL_REJECTED)],
)
async def test_a_fallback_that_rejects_ends_the_call_and_both_reasons_are_told(
    tmp_path: Path, rpc: str, status: int, reason: Reason
) -> None:
    async with world(tmp_path, rpc) as at:
        at.provider.answer(answers.error(503))
        at.provider.answer(answers.error(status), name="spare")
        seen = await at.ask(CHAIN)
        assert seen.took_s < AT_ONCE_S_MAX
        assert at.asked == (1, 1)
        assert seen.failure is not None
        assert (seen.failure.code, seen.failure.reason) == (grpc.StatusCode.UNAVAILABLE, "ALL_CANDIDATES_FAILED")
        assert f"UPSTREAM_UNAVAILABLE, {reason.value}" in str(seen.failure.message)
        upstream = seen.failure.details["UpstreamFailure"]
        assert (upstream.connector, upstream.http_status, upstream.attempt_count) == (SPARE, status, 2)
        row = await at.record(seen)
        assert (row.state, row.closed and row.closed.reason) == (CallState.FAILED, Reason.ALL_CANDIDATES_FAILED)
        assert _ends(row) == [("main", Reason.UPSTREAM_UNAVAILABLE), ("spare", reason)]
        assert await at.fallbacks() == [(SPARE, "provider_unavailable")]
        spare = await at.here.service.store.find_connector("acme", "spare")
        assert spare is not None
        assert spare.state is (ConnectorState.AUTH_INVALID if status == 401 else ConnectorState.ACTIVE)


@both
async def test_a_flapping_primary_is_left_alone_until_one_probe_finds_it_well(
    tmp_path: Path, rpc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cool_down_s = 3.0
    monkeypatch.setattr(breaker, "COOL_DOWN_S", cool_down_s)
    async with world(tmp_path, rpc) as at:
        down = answers.error(503)
        # Down and up by turns: each caller is served, and nobody asks twice.
        at.provider.answer(*[down, at.whole()] * 3)
        for served in ["spare", "main"] * 3:
            assert (await at.ask(CHAIN)).tries[-1] == (served, "")
        assert at.asked == (6, 3)

        # Down for good: after so many failures callers do not wait for it any more.
        at.provider.always_answer(down)
        for _ in range(breaker.FAILURES_MAX + 5):
            seen = await at.ask(CHAIN)
            assert seen.tries[-1] == ("spare", "")
            assert seen.took_s < AT_ONCE_S_MAX
        opened = asyncio.get_running_loop().time()
        assert at.asked == (6 + breaker.FAILURES_MAX, 3 + breaker.FAILURES_MAX + 5)
        assert seen.tries == [("spare", "")]
        assert (await at.fallbacks()).count((SPARE, "breaker_open")) == 5
        [state] = (await at.here.client.status()).breakers
        assert (state.connector, state.model) == (MAIN, "small")

        # Well again: of many callers who come together one asks it, and the next ones all do.
        at.provider.always_answer([Wait(0.3), *at.whole()])
        await asyncio.sleep(cool_down_s - (asyncio.get_running_loop().time() - opened))
        crowd = await asyncio.gather(*[at.ask(CHAIN) for _ in range(10)])
        assert sorted(seen.tries[-1][0] for seen in crowd) == ["main"] + ["spare"] * 9
        assert (await at.ask(CHAIN)).tries == [("main", "")]
        assert list((await at.here.client.status()).breakers) == []
        assert at.asked == (6 + breaker.FAILURES_MAX + 2, 3 + breaker.FAILURES_MAX + 5 + 9)


@both
async def test_after_a_failover_each_connector_is_charged_what_it_used(tmp_path: Path, rpc: str) -> None:
    async with world(tmp_path, rpc) as at:
        if rpc == "stream":
            counted = answers.chunk({"role": "assistant"}, usage={"prompt_tokens": 9, "completion_tokens": 0})
            at.provider.answer([answers.EVENT_STREAM, counted, Reset()])
        else:
            at.provider.answer(at.stopped(Reset()))
        seen = await at.ask(CHAIN)
        assert seen.took_s < AT_ONCE_S_MAX
        assert at.asked == (1, 1)
        await at.check_spare_answered(seen, Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable")

        failed, answered = [attempt.closed for attempt in (await at.record(seen)).attempts]
        assert failed is not None
        assert failed.usage is not None
        assert answered is not None
        assert answered.usage is not None
        if rpc == "stream":
            assert (failed.usage.input_tokens, failed.usage.output_tokens) == (9, 0)
        assert failed.usage.source.value == ("partial" if rpc == "stream" else "estimated")
        assert (answered.usage.input_tokens, answered.usage.output_tokens) == TOKENS
        for usage, model in ((failed.usage, "small"), (answered.usage, "large")):
            given, written = PRICES[model]
            assert usage.cost_usd_nanos == usage.input_tokens * given + usage.output_tokens * written

        assert seen.answer is not None
        told = seen.answer.usage
        assert told.input_tokens == failed.usage.input_tokens + answered.usage.input_tokens
        assert told.output_tokens == failed.usage.output_tokens + answered.usage.output_tokens
        assert told.cost_usd_nanos == (failed.usage.cost_usd_nanos or 0) + (answered.usage.cost_usd_nanos or 0)
        assert told.source != UsageSource.USAGE_SOURCE_PROVIDER, "a part of it is not the provider's count"
        months = at.here.records.query(
            "SELECT connectors.id, months.tokens FROM months JOIN connectors ON connectors.uid = months.connector_uid"
        )
        assert {row["id"]: row["tokens"] for row in months} == {
            "main": failed.usage.input_tokens + failed.usage.output_tokens,
            "spare": sum(TOKENS),
        }
