"""OpenAI's own library reads the golden streams as we do, however the network cuts them and wherever they break off."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx2
import msgspec
import openai
import pytest
from openai._models import construct_type
from openai._streaming import SSEDecoder, Stream
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from pydantic import TypeAdapter

from patchbay_server.adapters.azure_openai import ADAPTER as AZURE
from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE, OpenAiAdapter
from patchbay_server.adapters.openrouter import ADAPTER as OPENROUTER
from patchbay_server.adapters.xai import ADAPTER as XAI
from patchbay_server.testing.adapter_suite import NOW, GoldenCase, cut, golden_cases, read
from patchbay_server.testing.stream_rules import outcome
from patchbay_server.types import (
    Event,
    Finished,
    ReasoningPart,
    RefusalPart,
    TextDelta,
    TextPart,
    ToolCallPart,
    UsageUpdated,
)
from patchbay_server.wire.http import Frame

GOLDEN = Path(__file__).parent.parent / "golden"
SECRETS: list[tuple[OpenAiAdapter, dict[str, str]]] = [
    (OPENAI, {"api_key": "sk-test"}),
    (OPENAI_COMPATIBLE, {"base_url": "http://localhost/v1"}),
    (AZURE, {"api_key": "0123456789abcdef", "resource": "acme-west", "deployment": "chat-prod"}),
    (OPENROUTER, {"api_key": "sk-or-v1-test"}),
    (XAI, {"api_key": "xai-test"}),
]
CASES = [(adapter, case) for adapter, secret in SECRETS for case in golden_cases(GOLDEN / adapter.info.type, secret)]
RESPONSES = [(adapter, case) for adapter, case in CASES if case.path.name.startswith("responses_")]
CHAT = [(adapter, case) for adapter, case in CASES if (adapter, case) not in RESPONSES]
STREAMED = [(adapter, case) for adapter, case in CHAT if case.wire is not None]
WHOLE = [(adapter, case) for adapter, case in CHAT if case.body is not None and case.expected.error is None]

DIFFERS = {
    "ollama_tools_all_index_0": "the library merges calls of one index",
    "tools_without_index": "the library needs an index",
    "tool_arguments_as_object": "the library takes text only",
    "tool_index_counts_on": "the library believes the index",
    "tool_id_and_name_repeated": "the library adds repeated names and arguments up",
    "legacy_function_call": "the library keeps the deprecated form apart",
    "mistral_thinking": "the library knows content as text only",
    "groq": "the library does not look for usage where Groq puts it",
    "odd_values": "the library does not fold what is of the wrong type",
    "half_a_surrogate_pair": "the library passes on half a character",
    "several_choices": "the library folds every choice",
    "error_after_text": "it ends in the error",
    "filter_that_runs_behind": "the library needs a delta in every choice",
}
"""Cases that the library reads otherwise, with the reason: what it yields before it folds is compared all the same."""

PLACES_MAX = 100

CLIENT = openai.OpenAI(api_key="sk-test", http_client=httpx2.Client(transport=httpx2.MockTransport(lambda _: None)))  # type: ignore[arg-type]


class Seen:
    """What one reader made of an answer."""

    def __init__(self, text: str, fold: dict[str, Any] | None, usage: tuple[int, int] | None) -> None:
        self.text = text
        self.fold = fold
        self.usage = usage


def chunks_of(pieces: Sequence[bytes]) -> list[ChatCompletionChunk]:
    """The chunks that the library yields before it fails or ends."""
    request = httpx2.Request("POST", "https://api.openai.com/v1/chat/completions")
    response = httpx2.Response(200, content=iter(pieces), request=request)
    chunks: list[ChatCompletionChunk] = []
    try:
        for chunk in Stream(cast_to=ChatCompletionChunk, response=response, client=CLIENT):
            chunks.append(chunk)  # noqa: PERF402 -- what came before a failure counts
    except (openai.APIError, json.JSONDecodeError):
        pass
    return chunks


def theirs(chunks: Sequence[ChatCompletionChunk], *, folded: bool) -> Seen:
    texts = [
        choice.delta.content
        for chunk in chunks
        for choice in chunk.choices or ()
        if choice.index in (0, None, "0") and choice.delta and isinstance(choice.delta.content, str)
    ]
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    usage = (usages[-1].prompt_tokens, usages[-1].completion_tokens) if usages else None
    if not folded:
        return Seen("".join(texts), None, usage)
    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(chunk)
    choice = state.current_completion_snapshot.choices[0]
    return Seen("".join(texts), message_of(choice.message, choice.finish_reason), usage)


def message_of(message: Any, finish_reason: str | None) -> dict[str, Any]:
    return {
        "text": message.content or "",
        "refusal": message.refusal or "",
        # Nothing and the empty object are both no arguments.
        "tools": [(c.id, c.function.name, c.function.arguments or "{}") for c in message.tool_calls or ()],
        "finish_reason": finish_reason or "",
    }


def ours(events: Sequence[Event]) -> Seen:
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    updates = [event.usage for event in events if isinstance(event, UsageUpdated)]
    usage = (updates[-1].input_tokens, updates[-1].output_tokens) if updates else None
    if not isinstance(events[-1] if events else None, Finished):
        return Seen(text, None, usage)
    whole = outcome(events)
    assert whole.end is not None
    fold = {
        "text": "".join(part.text for part in whole.parts if isinstance(part, TextPart)),
        "refusal": "".join(part.text for part in whole.parts if isinstance(part, RefusalPart)),
        "tools": [(p.id, p.name, p.arguments_json) for p in whole.parts if isinstance(p, ToolCallPart)],
        "finish_reason": whole.end.provider_finish_reason,
    }
    return Seen(text, fold, usage)


def run(adapter: OpenAiAdapter, case: GoldenCase, frames: Sequence[Frame]) -> list[Event]:
    reader = adapter.prepare(case.call, case.secret, NOW).reader
    assert reader is not None
    return read(reader, frames)[0]


def data_of(pieces: Sequence[bytes]) -> list[str]:
    """The data of the events that the library cuts."""
    return [event.data for event in SSEDecoder().iter_bytes(iter(pieces))]


def name_of(value: Any) -> str:
    return value.path.name if isinstance(value, GoldenCase) else ""


@pytest.mark.parametrize(("adapter", "case"), STREAMED, ids=name_of)
def test_the_library_folds_a_golden_stream_to_the_same_message(adapter: OpenAiAdapter, case: GoldenCase) -> None:
    assert case.wire is not None
    complete = case.expected.error is None and case.path.name not in DIFFERS
    we = ours(run(adapter, case, cut(case.wire, ())))
    they = theirs(chunks_of([case.wire, b"\n\n"]), folded=complete)
    if "surrogate" not in case.path.name and "mistral_thinking" not in case.path.name:
        assert we.text == they.text
    if complete:
        assert we.fold == they.fold
    if complete and "outside_output" not in case.path.name:
        assert we.usage == they.usage


@pytest.mark.parametrize(("adapter", "case"), STREAMED, ids=name_of)
def test_the_library_cuts_events_as_we_do_at_every_byte(adapter: OpenAiAdapter, case: GoldenCase) -> None:
    wire = case.wire
    assert wire is not None
    complete = wire if wire.endswith((b"\n\n", b"\r\n\r\n")) else wire + b"\n\n"
    whole = data_of([complete])
    frames = [frame.data.decode() for frame in cut(wire, ())]
    # The library keeps the byte order mark and so loses the first event.
    assert whole == (frames[1:] if wire.startswith(b"\xef\xbb\xbf") else frames)
    for at in range(1, len(complete)):
        assert data_of([complete[:at], complete[at:]]) == whole, f"cut at byte {at}"


@pytest.mark.parametrize(("adapter", "case"), STREAMED, ids=name_of)
def test_the_library_reads_the_same_text_of_an_answer_that_breaks_off_anywhere(
    adapter: OpenAiAdapter, case: GoldenCase
) -> None:
    if case.path.name in {"half_a_surrogate_pair", "mistral_thinking"}:
        pytest.skip(DIFFERS[case.path.name])
    assert case.wire is not None

    @cache
    def our_text(frames: tuple[tuple[bytes, str], ...]) -> str:
        return ours(run(adapter, case, [Frame(data=data, event=event) for data, event in frames])).text

    @cache
    def their_text(frames: tuple[tuple[bytes, str], ...]) -> str:
        # An event that the end cuts off is dropped by the library and given by us, so it gets its blank line here.
        chunks = chunks_of([b"event: %s\ndata: %s\n\n" % (event.encode(), data) for data, event in frames])
        return theirs(chunks, folded=False).text

    # Every byte of a small answer, and of a larger one as many places as keep this quick.
    for at in range(1, len(case.wire), 1 + len(case.wire) // PLACES_MAX):
        frames = tuple((frame.data, frame.event) for frame in cut(case.wire[:at], ()))
        assert our_text(frames) == their_text(frames), f"broken off at byte {at}"


@pytest.mark.parametrize(("adapter", "case"), WHOLE, ids=name_of)
def test_the_library_reads_a_whole_golden_answer_as_we_do(adapter: OpenAiAdapter, case: GoldenCase) -> None:
    if case.path.name in DIFFERS:
        pytest.skip(DIFFERS[case.path.name])
    assert case.body is not None
    choice = construct_type(value=json.loads(case.body), type_=ChatCompletion).choices[0]  # type: ignore[attr-defined]
    unary = msgspec.structs.replace(case.call, streaming=False)
    events, error = read(adapter.reader(unary), [Frame(data=case.body, whole=True)])
    assert error is None
    assert ours(events).fold == message_of(choice.message, choice.finish_reason)


# --- the Responses API -----------------------------------------------------------------------------------------------


def response_events(pieces: Sequence[bytes]) -> list[Any]:
    request = httpx2.Request("POST", "https://api.openai.com/v1/responses")
    response = httpx2.Response(200, content=iter(pieces), request=request)
    events: list[Any] = []
    try:
        stream: Stream[Any] = Stream(cast_to=cast("Any", ResponseStreamEvent), response=response, client=CLIENT)
        for event in stream:
            events.append(event)  # noqa: PERF402 -- what came before a failure counts
    except (openai.APIError, json.JSONDecodeError):
        pass
    return events


def response_fold(response: Response) -> dict[str, Any]:
    return {
        "text": response.output_text,
        "refusal": "".join(
            content.refusal
            for item in response.output
            if item.type == "message"
            for content in item.content
            if content.type == "refusal"
        ),
        "tools": [(i.call_id, i.name, i.arguments or "{}") for i in response.output if i.type == "function_call"],
        "reasoning": [i.to_dict(mode="json") for i in response.output if i.type == "reasoning"],
        "usage": response.usage and (response.usage.input_tokens, response.usage.output_tokens),
    }


def our_response_fold(events: Sequence[Event]) -> dict[str, Any]:
    whole = outcome(events)
    assert whole.end is not None
    assert whole.end.usage is not None
    return {
        "text": "".join(part.text for part in whole.parts if isinstance(part, TextPart)),
        "refusal": "".join(part.text for part in whole.parts if isinstance(part, RefusalPart)),
        "tools": [(p.id, p.name, p.arguments_json) for p in whole.parts if isinstance(p, ToolCallPart)],
        "reasoning": [json.loads(p.provider_state) for p in whole.parts if isinstance(p, ReasoningPart)],
        "usage": (whole.end.usage.input_tokens, whole.end.usage.output_tokens),
    }


@pytest.mark.parametrize(("adapter", "case"), [pair for pair in RESPONSES if pair[1].wire is not None], ids=name_of)
def test_the_library_reads_a_golden_response_stream_as_we_do_at_every_cut(
    adapter: OpenAiAdapter, case: GoldenCase
) -> None:
    wire = case.wire
    assert wire is not None
    they = response_events([wire])
    we, error = read(adapter.reader(case.call), cut(wire, ()))
    text = "".join(event.text for event in we if isinstance(event, TextDelta))
    if "items_only_at_the_end" not in case.path.name:
        assert text == "".join(event.delta for event in they if event.type == "response.output_text.delta")
    ends = [event.response for event in they if event.type in ("response.completed", "response.incomplete")]
    assert (error is None) == bool(ends)
    if ends:
        assert our_response_fold(we) == response_fold(ends[0])
    whole = data_of([wire])
    for at in range(1, len(wire), 1 + len(wire) // (10 * PLACES_MAX)):
        assert data_of([wire[:at], wire[at:]]) == whole, f"cut at byte {at}"
    assert [frame.data.decode() for frame in cut(wire, ())] == whole


@pytest.mark.parametrize(("adapter", "case"), [pair for pair in RESPONSES if pair[1].body is not None], ids=name_of)
def test_the_library_reads_a_whole_golden_response_as_we_do(adapter: OpenAiAdapter, case: GoldenCase) -> None:
    assert case.body is not None
    response: Any = construct_type(value=json.loads(case.body), type_=Response)
    unary = msgspec.structs.replace(case.call, streaming=False)
    events, error = read(adapter.reader(unary), [Frame(data=case.body, whole=True)])
    assert error is None
    assert our_response_fold(events) == response_fold(response)


# --- requests --------------------------------------------------------------------------------------------------------


def consumed(value: Any) -> Any:
    """A validated value with the lists that pydantic checks only when they are walked."""
    if isinstance(value, dict):
        return {name: consumed(inner) for name, inner in value.items()}
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value
    return [consumed(inner) for inner in value]


@pytest.mark.parametrize("case", [case for adapter, case in CHAT if adapter in (OPENAI, AZURE)], ids=name_of)
def test_the_librarys_types_know_every_golden_chat_request(case: GoldenCase) -> None:
    body = case.request["body"]
    kind = CompletionCreateParamsStreaming if case.call.streaming else CompletionCreateParamsNonStreaming
    types = TypeAdapter[Any](kind)
    known = consumed(types.validate_python(body))
    assert known.keys() == body.keys(), "the types know every member"


@pytest.mark.parametrize("case", [case for adapter, case in RESPONSES if adapter in (OPENAI, AZURE)], ids=name_of)
def test_the_librarys_types_know_every_golden_responses_request(case: GoldenCase) -> None:
    if case.path.name == "responses_history":
        pytest.skip("the types want the provider's ids of earlier answers, which the API does not")
    body = case.request["body"]
    kind = ResponseCreateParamsStreaming if case.call.streaming else ResponseCreateParamsNonStreaming
    types = TypeAdapter[Any](kind)
    known = consumed(types.validate_python(body))
    assert known.keys() == body.keys(), "the types know every member"
