"""One exchange with a provider, and what adapters of other people can do to it."""

import pytest
from tests.support import answers, make
from tests.support.bench import assembled
from tests.support.clock import Clock

from patchbay_server.adapters.azure_openai import ADAPTER as AZURE
from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE
from patchbay_server.adapters.protocol import Capability, Prepared, TypeInfo
from patchbay_server.core.attempt import _rules_for
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Call,
    CallState,
    ChatAnswer,
    Event,
    FallbackMode,
    Finished,
    FinishReason,
    Opened,
    Price,
    Secret,
    TextDelta,
    UsageUpdated,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame


class Reader:
    """A reader whose feeding and whose end a test decides."""

    def __init__(self, feed: list[Event] | Exception, finish: list[Event]) -> None:
        self._feed = feed
        self._finish = finish
        self.finished = False

    def feed(self, frame: Frame) -> list[Event]:
        if isinstance(self._feed, Exception):
            raise self._feed
        fed, self._feed = self._feed, []
        return fed

    def finish(self) -> list[Event]:
        return self._finish


class Foreign:
    """Somebody's adapter: asks as an OpenAI-compatible one does, and reads the answer in its own way."""

    def __init__(self, reader: Reader | None, *, of_request: bool = False, streaming: bool = True) -> None:
        self._reader = reader
        self._of_request = of_request
        info = OPENAI_COMPATIBLE.info
        self.info = TypeInfo(
            type="foreign",
            display_name="Foreign",
            description="A test's.",
            fields=info.fields,
            capabilities=frozenset({Capability.STREAMING} if streaming else ()),
        )
        self.check_credential = OPENAI_COMPATIBLE.check_credential
        self.check_model = OPENAI_COMPATIBLE.check_model
        self.explain = OPENAI_COMPATIBLE.explain

    def prepare(self, call: Call, secret: Secret, now: object) -> Prepared:
        prepared = OPENAI_COMPATIBLE.prepare(call, secret, now)
        return Prepared(request=prepared.request, reader=self._reader if self._of_request else None)

    def reader(self, call: Call) -> Reader:
        assert self._reader is not None
        assert not self._of_request, "the request's own reader is to be used"
        return self._reader


async def answered_by(adapter: Foreign) -> tuple[ChatAnswer | PatchbayError, CallState]:
    """The answer or the failure of one streamed call over `adapter`, and how it is recorded."""
    async with assembled(clock=Clock(), adapters=(adapter,)) as bench:
        await bench.add(type="foreign")
        bench.provider.always_answer(answers.openai_stream())
        result: ChatAnswer | PatchbayError
        try:
            result = await bench.streamed()
        except PatchbayError as error:
            result = error
        return result, (await bench.call()).state


DONE = Finished(finish_reason=FinishReason.STOP)


async def test_a_reader_that_belongs_to_the_request_reads_its_answer() -> None:
    reader = Reader([Opened()], [DONE])
    answer, state = await answered_by(Foreign(reader, of_request=True))
    assert state is CallState.SUCCEEDED
    assert isinstance(answer, ChatAnswer)
    assert answer.finish_reason is FinishReason.STOP


async def test_an_answer_without_an_end_is_never_told_as_a_good_one() -> None:
    for finish in ([], [TextDelta(0, "more")]):
        error, state = await answered_by(Foreign(Reader([Opened()], finish)))
        assert isinstance(error, PatchbayError)
        assert (error.reason, state) == (Reason.UPSTREAM_TRUNCATED, CallState.FAILED)


async def test_an_adapter_that_breaks_is_a_fault_that_is_recorded_and_kept_to_the_log() -> None:
    error, state = await answered_by(Foreign(Reader(KeyError("inside"), [])))
    assert isinstance(error, PatchbayError)
    assert (error.reason, state) == (Reason.INTERNAL, CallState.FAILED)
    assert "inside" not in str(error)


async def test_an_adapter_that_cannot_stream_says_so_before_anything_is_sent() -> None:
    async with assembled(clock=Clock(), adapters=(Foreign(None, streaming=False),)) as bench:
        await bench.add(type="foreign")
        with pytest.raises(PatchbayError) as caught:
            await bench.streamed()
        assert caught.value.reason is Reason.STREAMING_UNSUPPORTED
        assert bench.provider.requests == []


async def test_a_routed_stream_goes_to_a_connector_that_can_stream() -> None:
    async with assembled(clock=Clock(), adapters=(Foreign(None, streaming=False),)) as bench:
        await bench.add("cheap", type="foreign", model_hint="cheap-model")
        await bench.add("dear", model_hint="dear-model")
        await bench.policy(
            quality_priors={"*/cheap-model": 0.6, "*/dear-model": 0.6},
            price_overrides={"*/cheap-model": Price(input_usd_nanos=1, output_usd_nanos=1)},
        )
        bench.provider.answer(answers.openai_stream(), name="dear")
        answer = await bench.streamed(model="patchbay/auto")
        assert [attempt.connector for attempt in answer.route.attempts] == ["owners/acme/connectors/dear"]


async def test_running_totals_stand_in_for_a_report_at_the_end() -> None:
    totals = Usage(input_tokens=3, output_tokens=2, total_tokens=5)
    answer, _ = await answered_by(Foreign(Reader([Opened(), UsageUpdated(totals)], [DONE])))
    assert isinstance(answer, ChatAnswer)
    assert (answer.usage, answer.notices) == (totals, ())


async def test_a_provider_that_only_counts_does_not_fill_the_memory() -> None:
    totals = [UsageUpdated(Usage(input_tokens=1, output_tokens=number)) for number in range(1_000)]
    adapter = Foreign(Reader([Opened(), *totals], [DONE]))
    async with assembled(clock=Clock(), adapters=(adapter,)) as bench:
        await bench.add("first", type="foreign")
        await bench.add("second")
        bench.provider.answer(answers.openai_stream(), name="first")
        events = await bench.stream(connector="first", fallback=FallbackMode.OWNER_CHAIN)
    assert [event for event in events if isinstance(event, UsageUpdated)] == totals[-1:]


def test_the_allow_list_judges_a_host_that_an_owner_gives_a_part_of() -> None:
    policy = make.policy(host_allow_list=("a.test",))
    own = Secret({"api_key": "k" * 32, "resource": "somebody-elses", "deployment": "d"})
    assert _rules_for(AZURE, own, policy).host_allow_list == ("a.test",)
    assert _rules_for(OPENAI, Secret({"api_key": "k" * 32}), policy).host_allow_list == ()
