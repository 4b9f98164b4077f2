"""Google's own library as the judge: it sends the same requests and reads the same answers from the same bytes."""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from google import genai
from google.genai import errors, types
from google.genai._api_client import HttpResponse

from patchbay_server.adapters.gemini import ADAPTER
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, GoldenCase, cut, golden_cases, read
from patchbay_server.types import (
    Call,
    Event,
    Finished,
    Message,
    Opened,
    PartCompleted,
    Prompt,
    Role,
    Secret,
    TextPart,
    ToolCallPart,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Framing

SECRET: Final = {"api_key": "AQ.test-0123456789"}
CASES: Final = {case.path.name: case for case in golden_cases(Path(__file__).parents[1] / "golden" / "gemini", SECRET)}
NOT_IN_THE_LIBRARY: Final = {
    "error_list_instead_of_a_stream": "the library reads bare JSON line by line and knows objects only",
    "ended_without_its_marker": "the library takes any end of the bytes for the end of the answer",
}
STREAMED: Final = [name for name, case in CASES.items() if case.wire is not None and name not in NOT_IN_THE_LIBRARY]
WHOLE: Final = [name for name, case in CASES.items() if case.body is not None]
REFUSED: Final = {
    Reason.UPSTREAM_UNAVAILABLE: (503, "UNAVAILABLE"),
    Reason.UPSTREAM_CREDENTIAL_REJECTED: (400, "INVALID_ARGUMENT"),
}

Json = dict[str, Any]


class Wire:
    """The provider's side of one exchange: keeps what the library sends and answers with the case's bytes."""

    def __init__(self, answer: bytes, content_type: str) -> None:
        self._answer = answer
        self._content_type = content_type
        self.sent: Json = {}
        self.url = ""
        self.headers: httpx.Headers = httpx.Headers()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent = json.loads(request.read())
        self.url = str(request.url)
        self.headers = request.headers
        return httpx.Response(200, headers={"content-type": self._content_type}, content=self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        half = len(self._answer) // 2
        yield self._answer[:half]
        yield self._answer[half:]

    def client(self) -> genai.Client:
        own = httpx.Client(transport=httpx.MockTransport(self))
        options = types.HttpOptions(api_version="v1beta", httpx_client=own)
        return genai.Client(api_key=SECRET["api_key"], http_options=options)


def parameters(case: GoldenCase) -> Json:
    """The golden body as the library's own parameters; an unknown name would be an error of it."""
    body = dict(case.request["body"])
    contents = body.pop("contents")
    # The library would ask on by itself for what an unfinished answer lacks.
    config = {"automaticContinuation": False, **body.pop("generationConfig", {}), **body}
    return {"model": case.call.model, "contents": contents, "config": config}


def streamed_chunks(case: GoldenCase, wire: Wire) -> list[types.GenerateContentResponse]:
    with wire.client() as client:
        return list(client.models.generate_content_stream(**parameters(case)))


def in_our_spelling(value: Any, name: str = "") -> Any:
    """A body that the library wrote: names in one spelling, base64 in one alphabet, nothing that is empty."""
    match value:
        case dict():
            members = {camel(key): in_our_spelling(member, key) for key, member in value.items()}
            return {key: member for key, member in members.items() if (key, member) != ("generationConfig", {})}
        case list():
            return [in_our_spelling(member) for member in value]
        case str() if camel(name) == "thoughtSignature":
            return standard_alphabet(value)
        case _:
            return value


def camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), name)


def standard_alphabet(text: str) -> str:
    return text.replace("-", "+").replace("_", "/")


def ours(case: GoldenCase, *, streaming: bool = True) -> tuple[list[Event], PatchbayError | None]:
    call = Call(id=case.call.id, model=case.call.model, prompt=case.call.prompt, streaming=streaming)
    return read(ADAPTER.reader(call), case.frames(Framing.SSE_THEN_JSON))


def sent_back(events: Sequence[Event]) -> list[Json]:
    """What is sent of an answer in the next turn."""
    parts = tuple(event.part for event in events if isinstance(event, PartCompleted))
    user = Message(role=Role.USER, parts=(TextPart(text="go on"),))
    prompt = Prompt(messages=(user, Message(role=Role.ASSISTANT, parts=parts or (TextPart(text=""),)), user))
    call = Call(id="02", model="a-model-without-a-row", prompt=prompt, streaming=True)
    body = json.loads(ADAPTER.prepare(call, Secret(SECRET), NOW).request.body)
    said = [part for content in body["contents"] if content["role"] == "model" for part in content["parts"]]
    return [part for part in map(in_our_spelling, said) if part != {"text": ""}]


def kept(chunks: Sequence[types.GenerateContentResponse]) -> list[Json]:
    """What the library would send of an answer in the next turn, the pieces of a part joined."""
    joined: list[Json] = []
    for part in (part for chunk in chunks for part in chunk.parts or ()):
        said = in_our_spelling(part.model_dump(mode="json", by_alias=True, exclude_none=True))
        last = joined[-1] if joined else {}
        if said.get("text") and last.get("text") and last.keys() == said.keys() - {"thoughtSignature"}:
            joined[-1] = {**last, **said, "text": last["text"] + said["text"]}
        elif said != {"text": ""}:
            joined.append(said)
    return joined


def check_agreement(chunks: Sequence[types.GenerateContentResponse], events: Sequence[Event]) -> None:
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert sent_back(events) == kept(chunks)
    parts = [event.part for event in events if isinstance(event, PartCompleted)]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    theirs = [call for chunk in chunks for call in chunk.function_calls or ()]
    assert [(call.name, json.loads(call.arguments_json)) for call in calls] == [(c.name, c.args) for c in theirs]
    assert [call.id for call, their in zip(calls, theirs, strict=True) if their.id] == [c.id for c in theirs if c.id]
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    assert text == "".join(part.text or "" for chunk in chunks for part in chunk.parts or () if not part.thought)
    check_head_and_end(chunks, events[0], finished)


def check_head_and_end(chunks: Sequence[types.GenerateContentResponse], opened: Event, finished: Finished) -> None:
    assert opened == Opened(upstream_id=chunks[0].response_id or "", model=chunks[0].model_version or "")
    ends = [candidate.finish_reason for chunk in chunks for candidate in chunk.candidates or ()]
    blocks = [chunk.prompt_feedback.block_reason for chunk in chunks if chunk.prompt_feedback]
    assert finished.provider_finish_reason == next(reason.value for reason in (*ends, *blocks) if reason)
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata][-1]
    prompt = (counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0)
    output = (counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0)
    assert finished.usage == Usage(
        input_tokens=prompt,
        output_tokens=output,
        total_tokens=counted.total_token_count or 0,
        cached_input_tokens=counted.cached_content_token_count,
        reasoning_tokens=counted.thoughts_token_count,
    )


@pytest.mark.parametrize("name", STREAMED)
def test_the_library_sends_the_same_request_and_reads_the_same_stream(name: str) -> None:
    case = CASES[name]
    wire = Wire(case.wire or b"", "text/event-stream")
    events, error = ours(case)
    if error is None:
        check_agreement(streamed_chunks(case, wire), events)
    elif error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE:
        (candidate,) = streamed_chunks(case, wire)[-1].candidates or [types.Candidate()]
        assert candidate.finish_reason is types.FinishReason.MALFORMED_FUNCTION_CALL
    else:
        with pytest.raises(errors.APIError) as refused:
            streamed_chunks(case, wire)
        assert (refused.value.code, refused.value.status) == REFUSED[error.reason]
    assert in_our_spelling(wire.sent) == in_our_spelling(case.request["body"])
    assert wire.url == case.request["url"]
    assert wire.headers["x-goog-api-key"] == case.request["headers"]["x-goog-api-key"]
    assert "authorization" not in wire.headers


@pytest.mark.parametrize("name", WHOLE)
def test_the_library_reads_the_same_whole_answer(name: str) -> None:
    case = CASES[name]
    body = case.body or b""
    wire = Wire(body, "application/json")
    with wire.client() as client:
        answer = client.models.generate_content(**parameters(case))
    call = Call(id="01", model=case.call.model, prompt=case.call.prompt, streaming=False)
    events, error = read(ADAPTER.reader(call), cut(body, (), Framing.BODY))
    assert error is None
    check_agreement([answer], events)
    assert in_our_spelling(wire.sent) == in_our_spelling(case.request["body"])


@pytest.mark.parametrize("name", STREAMED)
def test_the_library_sees_the_same_chunks_however_the_bytes_are_cut(name: str) -> None:
    wire = CASES[name].wire or b""
    whole = [json.loads(frame.data) for frame in cut(wire, (), Framing.SSE_THEN_JSON)]
    for at in range(1, len(wire)):
        pieces = httpx.Response(200, content=iter((wire[:at], wire[at:])))
        assert list(HttpResponse({}, pieces).segments()) == whole, f"cut at byte {at}"
        frames = cut(wire, (at,), Framing.SSE_THEN_JSON)
        assert [json.loads(frame.data) for frame in frames] == whole, f"cut at byte {at}"


def test_every_finish_and_block_reason_of_the_library_has_a_meaning() -> None:
    def meaning(chunk: Json) -> Any:
        call = next(iter(CASES.values())).call
        events, error = read(ADAPTER.reader(call), cut(b"data: " + json.dumps(chunk).encode(), ()))
        return error.reason if error else events[-1].finish_reason  # type: ignore[union-attr]

    finish = {reason.value: meaning({"candidates": [{"finishReason": reason.value}]}) for reason in types.FinishReason}
    assert {name for name, meant in finish.items() if meant == "other"} == {
        "FINISH_REASON_UNSPECIFIED",
        "OTHER",
        "IMAGE_OTHER",
        "NO_IMAGE",
    }
    blocked = {meaning({"promptFeedback": {"blockReason": reason.value}}) for reason in types.BlockedReason}
    assert blocked == {"content_filter"}


def test_a_signature_means_the_same_bytes_to_the_library() -> None:
    case = CASES["parallel_tools"]
    chunks = streamed_chunks(case, Wire(case.wire or b"", "text/event-stream"))
    (theirs, *_) = [part.thought_signature for chunk in chunks for part in chunk.parts or () if part.thought_signature]
    (call, *_) = [
        event.part
        for event in ours(case)[0]
        if isinstance(event, PartCompleted) and isinstance(event.part, ToolCallPart)
    ]
    assert base64.b64decode(json.loads(call.provider_state)["thoughtSignature"]) == theirs
