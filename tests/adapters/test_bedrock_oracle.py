"""AWS's own library as the judge: it sends the same requests and reads the same answers from the same bytes."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import EventStreamError
from botocore.session import Session

from patchbay_server.adapters.bedrock import ADAPTER
from patchbay_server.errors import PatchbayError
from patchbay_server.testing.adapter_suite import NOW, GoldenCase, golden_cases, read
from patchbay_server.types import (
    Event,
    Finished,
    MediaPart,
    PartCompleted,
    ReasoningPart,
    Secret,
    TextPart,
    ToolCallPart,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import HttpRequest

SECRET: Final = {
    "region": "us-east-1",
    "model_id": "anthropic.claude-opus-4-6-v1",
    "access_key_id": "AKIDEXAMPLE0123456",
    "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
}
CASES: Final = {case.path.name: case for case in golden_cases(Path(__file__).parents[1] / "golden" / "bedrock", SECRET)}
NOT_OF_THE_LIBRARY: Final = {
    "error_instead_of_a_stream": "the library waits for the rest of a message of 2 GB",
    "whole_message_instead_of_a_stream": "the same",
}
CONVERSE: Final = [
    name for name, case in CASES.items() if "/converse" in case.request["url"] and name not in NOT_OF_THE_LIBRARY
]
INVOKE: Final = [name for name, case in CASES.items() if "/invoke" in case.request["url"]]
SIGNED: Final = [name for name, case in CASES.items() if "api_key" not in case.secret]


@pytest.fixture(scope="module")
def session() -> Session:
    # The service's model takes a moment to load, so one session serves all.
    return Session()


class Wire(io.BytesIO):
    """The provider's side of one exchange, as the library's HTTP layer has it."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        data = self.read()
        half = len(data) // 2
        yield data[:half]
        yield data[half:]


class Exchange:
    """One call of the library, answered with a case's bytes."""

    def __init__(self, session: Session, case: GoldenCase) -> None:
        self.sent: Any = None
        self._answer = case.wire if case.wire is not None else case.body or b""
        self._client: Any = session.create_client(
            "bedrock-runtime",
            region_name=case.secret.text("region"),
            aws_access_key_id="AKIDEXAMPLE",
            aws_secret_access_key="secret",
            endpoint_url=case.secret.text("endpoint") or None,
            config=Config(retries={"total_max_attempts": 1}),
        )
        self._client.meta.events.register("before-send.bedrock-runtime.*", self._send)

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        self.sent = request
        kind = "application/vnd.amazon.eventstream" if request.url.endswith("stream") else "application/json"
        return AWSResponse(request.url, 200, {"content-type": kind}, Wire(self._answer))

    def converse(self, case: GoldenCase) -> Any:
        streaming = case.call.streaming
        asked = {**blobs(case.request["body"]), "modelId": model_of(case)}
        return (self._client.converse_stream if streaming else self._client.converse)(**asked)

    def invoke(self, case: GoldenCase) -> Any:
        streaming = case.call.streaming
        operation = self._client.invoke_model_with_response_stream if streaming else self._client.invoke_model
        return operation(modelId=model_of(case), body=json.dumps(case.request["body"]), contentType="application/json")


def model_of(case: GoldenCase) -> str:
    return unquote(urlsplit(case.request["url"]).path.split("/")[2])


def blobs(value: Any) -> Any:
    """The body as the library's parameters: what goes out in base64 is bytes there."""
    if isinstance(value, list):
        return [blobs(item) for item in value]
    if not isinstance(value, dict):
        return value
    binary = {"bytes", "redactedContent"}
    return {name: base64.b64decode(item) if name in binary else blobs(item) for name, item in value.items()}


def ours(case: GoldenCase) -> tuple[list[Event], PatchbayError | None]:
    prepared = ADAPTER.prepare(case.call, case.secret, NOW)
    assert prepared.reader is not None
    return read(prepared.reader, case.frames(prepared.request.framing))


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERSE)
def test_the_library_takes_the_body_as_its_parameters_and_sends_the_same(name: str, session: Session) -> None:
    case = CASES[name]
    exchange = Exchange(session, case)
    exchange.converse(case)
    assert json.loads(exchange.sent.body) == case.request["body"]
    assert exchange.sent.url == case.request["url"]


@pytest.mark.parametrize("name", INVOKE)
def test_the_library_invokes_the_same_address(name: str, session: Session) -> None:
    case = CASES[name]
    exchange = Exchange(session, case)
    exchange.invoke(case)
    assert exchange.sent.url == case.request["url"]


@pytest.mark.parametrize("name", SIGNED)
def test_the_library_signs_the_same_request_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    request = ADAPTER.prepare(case.call, case.secret, NOW).request
    check_signature(request, case.secret, monkeypatch)


def check_signature(request: HttpRequest, secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: NOW.replace(tzinfo=None))
    judged: Any = AWSRequest(method=request.method, url=request.url, data=request.body)
    for header, value in request.headers:
        judged.headers.add_header(header, value)
    keys = Credentials(
        secret.text("access_key_id"), secret.text("secret_access_key"), secret.text("session_token") or None
    )
    SigV4Auth(keys, "bedrock", secret.text("region")).add_auth(judged)
    assert judged.headers["Authorization"] == dict(request.headers)["authorization"]


@pytest.mark.parametrize("page", ["", "profiles", "profiles:a+b/c=="])
def test_the_library_signs_the_same_list_alike(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Secret(SECRET)
    check_signature(ADAPTER.prepare_models(page, secret, NOW), secret, monkeypatch)


def test_the_library_counts_tokens_at_the_address_of_the_check(session: Session) -> None:
    case = CASES["text"]
    exchange = Exchange(session, case)
    request = ADAPTER.prepare_check(case.call.model, case.secret, NOW)
    exchange._answer = b'{"inputTokens":8}'
    assert exchange._client.count_tokens(modelId=case.call.model, **json.loads(request.body))["inputTokens"] == 8
    assert (exchange.sent.url, json.loads(exchange.sent.body)) == (request.url, json.loads(request.body))


def test_the_library_knows_the_same_addresses(session: Session) -> None:
    loader = session.get_component("data_loader")
    partitions = loader.load_data("partitions")
    regions = [region for partition in partitions["partitions"] for region in partition["regions"]]
    for service in ("bedrock-runtime", "bedrock"):
        provider = EndpointProvider(loader.load_service_model(service, "endpoint-rule-set-1"), partitions)
        for region in (region for region in regions if not region.endswith("-global")):
            judged = provider.resolve_endpoint(Region=region, UseDualStack=False, UseFIPS=False)
            assert address(service, region).startswith(f"{judged.url}/"), region


def address(service: str, region: str) -> str:
    secret = Secret({**SECRET, "region": region})
    if service == "bedrock":
        return ADAPTER.prepare_models("", secret, NOW).url
    return ADAPTER.prepare(CASES["text"].call, secret, NOW).request.url


# --- answers ----------------------------------------------------------------------------------------------------------


def said(content: list[dict[str, Any]]) -> list[Any]:
    """What a message of the library says, in a form that both sides can be brought to."""
    return [told for told in map(_said, content) if told]


def _said(block: dict[str, Any]) -> Any:
    match block:
        case {"text": text}:
            return text
        case {"citationsContent": {"content": pieces}}:
            return "".join(piece["text"] for piece in pieces)
        case {"toolUse": {"type": "server_tool_use"}} | {"toolResult": _}:
            return block
        case {"toolUse": {"toolUseId": id, "name": name, "input": arguments}}:
            return (id, name, arguments)
        case {"reasoningContent": {"reasoningText": {"text": text, **more}}}:
            return ("reasoning", text, more.get("signature", ""))
        case {"reasoningContent": {"redactedContent": data}}:
            return ("redacted", data)
        case {"image": {"format": kind, "source": {"bytes": data}}}:
            return (f"image/{kind}", data)
        case _:
            return None


def told(events: list[Event]) -> list[Any]:
    return [_told(event.part) for event in events if isinstance(event, PartCompleted)]


def _told(part: object) -> Any:
    match part:
        case TextPart(text=text):
            return text
        case ToolCallPart(id=id, name=name, arguments_json=arguments):
            return (id, name, _parsed(arguments))
        case MediaPart(mime_type=mime_type, data=data):
            return (mime_type, data)
        case ReasoningPart(text=text, provider_state=b""):
            return ("reasoning", text, "")
        case ReasoningPart(text=text, provider_state=state):
            return _state_told(text, json.loads(state))
    raise AssertionError(f"{part!r} is nothing that a model says")


def _state_told(text: str, block: dict[str, Any]) -> Any:
    match block:
        case {"reasoningContent": {"redactedContent": data}}:
            return ("redacted", base64.b64decode(data))
        case {"reasoningContent": {"reasoningText": reasoning}}:
            assert reasoning["text"] == text
            return ("reasoning", text, reasoning["signature"])
        case _:
            return block


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def assembled(stream: Any) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
    """Content, stop reason and usage of a stream, put together from the library's events as its users do."""
    blocks: dict[int, dict[str, Any]] = {}
    reason, usage = "", {}
    for part in stream:
        match part:
            case {"contentBlockStart": {"start": start, "contentBlockIndex": index}}:
                blocks[index] = json.loads(json.dumps(start))
            case {"contentBlockDelta": {"delta": delta, "contentBlockIndex": index}}:
                _grow(blocks.setdefault(index, {}), delta)
            case {"messageStop": {"stopReason": told_reason}}:
                reason = told_reason
            case {"metadata": {"usage": told_usage}}:
                usage = told_usage
    for block in blocks.values():
        if "toolUse" in block:
            block["toolUse"]["input"] = _parsed(block["toolUse"].get("input") or "{}")
    return [blocks[index] for index in sorted(blocks)], reason, usage


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    match delta:
        case {"text": text}:
            block["text"] = block.get("text", "") + text
        case {"toolUse": {"input": piece}}:
            block["toolUse"]["input"] = block["toolUse"].get("input", "") + piece
        case {"toolResult": pieces}:
            content = block["toolResult"].setdefault("content", [])
            for piece in pieces:
                if "text" in piece and content and "text" in content[-1]:
                    content[-1]["text"] += piece["text"]
                else:
                    content.append(dict(piece))
        case {"image": {"source": {"bytes": data}}}:
            source = block["image"].setdefault("source", {"bytes": b""})
            source["bytes"] += data
        case {"reasoningContent": {"redactedContent": data}}:
            reasoning = block.setdefault("reasoningContent", {})
            reasoning["redactedContent"] = reasoning.get("redactedContent", b"") + data
        case {"reasoningContent": {**piece}}:
            reasoning = block.setdefault("reasoningContent", {}).setdefault("reasoningText", {"text": ""})
            for name, value in piece.items():
                reasoning[name] = reasoning.get(name, "") + value


def check_agreement(content: list[dict[str, Any]], reason: str, usage: dict[str, Any], events: list[Event]) -> None:
    assert told(events) == said(content)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.provider_finish_reason == reason
    cached, written = usage.get("cacheReadInputTokens"), usage.get("cacheWriteInputTokens")
    prompt = usage["inputTokens"] + (cached or 0) + (written or 0)
    assert finished.usage == Usage(
        input_tokens=prompt,
        output_tokens=usage["outputTokens"],
        total_tokens=prompt + usage["outputTokens"],
        cached_input_tokens=cached,
        cache_write_input_tokens=written,
    )


STREAMED: Final = [name for name in CONVERSE if CASES[name].wire is not None]
WHOLE: Final = [name for name in CONVERSE if CASES[name].body is not None]
NO_ANSWER: Final = {
    "answer_that_nobody_can_read": "the library gives it as it came",
    "ended_without_metadata": "the library takes any end of the bytes for the end of the answer",
}


@pytest.mark.parametrize("name", [name for name in STREAMED if name not in NO_ANSWER])
def test_the_library_reads_the_same_stream(name: str, session: Session) -> None:
    case = CASES[name]
    stream = Exchange(session, case).converse(case)["stream"]
    events, failure = ours(case)
    if failure is None:
        check_agreement(*assembled(stream), events)
        return
    assert failure.upstream is not None
    with pytest.raises(EventStreamError) as refused:
        list(stream)
    code = refused.value.response["Error"]["Code"]
    assert code[:1].upper() + code[1:] == failure.upstream.provider_code


@pytest.mark.parametrize("name", WHOLE)
def test_the_library_reads_the_same_whole_answer(name: str, session: Session) -> None:
    case = CASES[name]
    body = case.body or b""
    exchange = Exchange(session, case)
    exchange._answer = body
    answer = exchange._client.converse(
        **{**blobs(case.request["body"]), "modelId": model_of(case)} | without_stream_options(case)
    )
    events, _ = ours(case)
    check_agreement(answer["output"]["message"]["content"], answer["stopReason"], answer["usage"], events)


def without_stream_options(case: GoldenCase) -> dict[str, Any]:
    """What a streaming call says that a whole answer has no word for."""
    guardrail = case.request["body"].get("guardrailConfig")
    if guardrail is None:
        return {}
    return {"guardrailConfig": {name: value for name, value in guardrail.items() if name != "streamProcessingMode"}}


@pytest.mark.parametrize("name", [name for name in INVOKE if CASES[name].wire is not None])
def test_the_library_finds_the_same_chunks(name: str, session: Session) -> None:
    case = CASES[name]
    theirs = [part["chunk"]["bytes"] for part in Exchange(session, case).invoke(case)["body"]]
    request = ADAPTER.prepare(case.call, case.secret, NOW).request
    frames = case.frames(request.framing)
    assert [base64.b64decode(json.loads(frame.data)["bytes"]) for frame in frames] == theirs
