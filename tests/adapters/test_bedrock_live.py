"""Bedrock over real sockets: what goes out is what was signed, and a call runs through the whole gateway."""

import json
from typing import Any, Final

import msgspec
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.support.bench import PLANTED, Bench
from tests.support.clock import Clock
from tests.support.eventstream import event, exception
from tests.support.provider import Cut, Head, Provider, Request, Script

from patchbay_server.adapters.bedrock import ADAPTER
from patchbay_server.core.listing import Query
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    AuditType,
    Call,
    CallState,
    ChatAnswer,
    CheckResult,
    Connector,
    ConnectorState,
    FinishReason,
    Message,
    PrivateHttp,
    Prompt,
    Role,
    Secret,
    TextPart,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.egress import EgressRules
from patchbay_server.wire.http import Frame
from patchbay_server.wire.upstream import Limits, Upstream

KEY: Final = {"access_key_id": "AKIDEXAMPLE0123456", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
MODEL: Final = "us.anthropic.claude-opus-4-6-v1"
ARN: Final = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-6-v1"
STREAM: Final = Head(200, {"content-type": "application/vnd.amazon.eventstream", "x-amzn-requestid": "0b9c-1"})
EVENTS: Final = (
    event("messageStart", {"role": "assistant"}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "The sea "}}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "is wide."}}),
    event("contentBlockStop", {"contentBlockIndex": 0}),
    event("messageStop", {"stopReason": "end_turn"}),
    event("metadata", {"usage": {"inputTokens": 11, "outputTokens": 4, "totalTokens": 15}}),
)
WHOLE: Final = {
    "output": {"message": {"role": "assistant", "content": [{"text": "The sea is wide."}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 11, "outputTokens": 4, "totalTokens": 15},
}
USED: Final = Usage(input_tokens=11, output_tokens=4, total_tokens=15)


def answer(body: object, status: int = 200, **headers: str) -> Script:
    text = json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [Head(status, {"content-type": "application/json", "content-length": str(len(text)), **named}), text]


# --- what goes out ----------------------------------------------------------------------------------------------------


def check_signature(request: Request, now: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign what arrived as the service does to compare: the path of the request line, the headers that are named."""
    told = request.headers["authorization"]
    names = told.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    judged: Any = AWSRequest(
        method=request.method, url=f"http://{request.headers['host']}{request.path}", data=request.body
    )
    for name in names:
        if name not in ("host", "x-amz-date", "x-amz-security-token"):
            judged.headers.add_header(name, request.headers[name])
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.now().replace(tzinfo=None))
    keys = Credentials(*KEY.values(), request.headers.get("x-amz-security-token"))
    SigV4Auth(keys, "bedrock", "us-east-1").add_auth(judged)
    assert judged.headers["Authorization"] == told


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("token", [{}, {"session_token": "IQoJ/+=="}])
@pytest.mark.parametrize("model", [MODEL, ARN, "amazon.nova-pro-v1:0"])
async def test_what_arrives_is_what_was_signed(
    model: str, token: dict[str, str], streaming: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Message(role=Role.USER, parts=(TextPart(text="hellö"),))
    call = Call(id="01", model=model, prompt=Prompt(messages=(said,)), streaming=streaming)
    upstream = Upstream(now=clock.now)
    try:
        async with Provider() as provider:
            provider.always_answer(answer(WHOLE))
            secret = Secret({"region": "us-east-1", "model_id": "x.y", "endpoint": provider.url(), **KEY, **token})
            request = ADAPTER.prepare(call, secret, clock.now()).request
            rules = EgressRules(private_http=PrivateHttp.LOOPBACK)
            async with upstream.send(request, rules=rules, limits=Limits()) as got:
                assert got.status == 200
            (arrived,) = provider.requests
            assert request.url.endswith(arrived.path)
            check_signature(arrived, clock, monkeypatch)
    finally:
        await upstream.close()


async def test_a_stream_is_cut_into_its_messages_wherever_the_network_cuts_it(clock: Clock) -> None:
    said = Message(role=Role.USER, parts=(TextPart(text="hello"),))
    call = Call(id="01", model=MODEL, prompt=Prompt(messages=(said,)), streaming=True)
    wire = b"".join(EVENTS)
    upstream = Upstream(now=clock.now)
    try:
        async with Provider() as provider:
            secret = Secret({"region": "us-east-1", "model_id": "x.y", "endpoint": provider.url(), **KEY})
            request = ADAPTER.prepare(call, secret, clock.now()).request
            rules = EgressRules(private_http=PrivateHttp.LOOPBACK)
            for step in (1, 7, 64, len(wire)):
                provider.answer([STREAM, *(wire[at : at + step] for at in range(0, len(wire), step))])
                async with upstream.send(request, rules=rules, limits=Limits()) as got:
                    frames: list[Frame] = [frame async for read in got.frames() for frame in read]
                assert [frame.event for frame in frames] == [
                    *("messageStart", "contentBlockDelta", "contentBlockDelta"),
                    *("contentBlockStop", "messageStop", "metadata"),
                ]
    finally:
        await upstream.close()


# --- through the gateway ----------------------------------------------------------------------------------------------


async def add(bench: Bench) -> Connector:
    """A Bedrock connector whose provider is the bench's."""
    connector = await bench.add("aws", type="bedrock", model_hint=MODEL)
    root = bench.provider.url("aws")
    fields = {"region": "us-east-1", "model_id": MODEL, "endpoint": root, **KEY, "session_token": PLANTED}
    sealed = msgspec.structs.replace(
        connector, sealed=bench.vault.seal(connector.uid, fields), version=connector.version + 1
    )
    await bench.store.save_connector(sealed, connector.version, [bench.audit(AuditType.ROTATED, connector)])
    await bench.snapshots.refresh()
    return sealed


def text_of(done: ChatAnswer) -> str:
    return "".join(part.text for part in done.message.parts if isinstance(part, TextPart))


async def test_a_whole_answer_and_a_stream_are_the_same(bench: Bench) -> None:
    await add(bench)
    bench.provider.answer(answer(WHOLE), [STREAM, *EVENTS], name="aws")
    whole = await bench.chat(connector="aws")
    streamed = await bench.streamed(connector="aws")
    for done in (whole, streamed):
        assert text_of(done) == "The sea is wide."
        assert done.finish_reason is FinishReason.STOP
        assert done.usage.input_tokens == USED.input_tokens
        assert done.route.model == MODEL
    paths = [request.path for request in bench.provider.asked("aws")]
    assert paths == [f"/aws/model/{MODEL}/converse", f"/aws/model/{MODEL}/converse-stream"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            answer({"message": "Too many tokens"}, 400, x_amzn_errortype="ThrottlingException:"),
            Reason.UPSTREAM_RATE_LIMITED,
        ),
        (
            answer({"message": "no"}, 400, x_amzn_errortype="ServiceQuotaExceededException"),
            Reason.UPSTREAM_BILLING_EXHAUSTED,
        ),
        ([STREAM, *EVENTS[:2], exception("throttlingException", {"message": "no"})], Reason.UPSTREAM_RATE_LIMITED),
        ([STREAM, *EVENTS[:3], EVENTS[3][:20]], Reason.UPSTREAM_TRUNCATED),
        ([STREAM, *EVENTS[:3], Cut()], Reason.UPSTREAM_STREAM_BROKEN),
        ([STREAM, *EVENTS[:3]], Reason.UPSTREAM_TRUNCATED),
        ([STREAM, EVENTS[0], EVENTS[1][:-1] + b"\x00"], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([STREAM], Reason.UPSTREAM_EMPTY_STREAM),
        (answer({"message": "no", "__type": "ThrottlingException"}), Reason.UPSTREAM_RATE_LIMITED),
    ],
)
async def test_a_failure_is_recorded_as_what_it_is(script: Script, reason: Reason, bench: Bench) -> None:
    await add(bench)
    bench.provider.answer(script, name="aws")
    with pytest.raises(PatchbayError) as failure:
        await bench.stream(connector="aws")
    assert failure.value.reason is reason
    row = await bench.call()
    assert row.state is CallState.FAILED
    assert row.closed is not None
    assert row.closed.reason is reason


DENIED: Final = "User: arn:aws:iam::1:user/x is not authorized to perform: bedrock:"


@pytest.mark.parametrize(
    ("script", "result", "state"),
    [
        (answer({"inputTokens": 8}), CheckResult.OK, ConnectorState.ACTIVE),
        (
            answer({"message": "doesn't support counting tokens."}, 400, x_amzn_errortype="ValidationException"),
            CheckResult.OK,
            ConnectorState.ACTIVE,
        ),
        (
            answer({"message": f"{DENIED}CountTokens"}, 403, x_amzn_errortype="AccessDeniedException"),
            CheckResult.OK,
            ConnectorState.ACTIVE,
        ),
        (
            answer(
                {"message": "The provided model identifier is invalid."}, 400, x_amzn_errortype="ValidationException"
            ),
            CheckResult.ERROR,
            ConnectorState.ACTIVE,
        ),
        (
            answer({"message": "no"}, 403, x_amzn_errortype="UnrecognizedClientException"),
            CheckResult.AUTH_INVALID,
            ConnectorState.AUTH_INVALID,
        ),
        (
            answer({"message": "no"}, 429, x_amzn_errortype="ThrottlingException"),
            CheckResult.RATE_LIMITED,
            ConnectorState.ACTIVE,
        ),
    ],
)
async def test_the_check_finds_a_good_credential_good(
    script: Script, result: CheckResult, state: ConnectorState, bench: Bench
) -> None:
    connector = await add(bench)
    bench.provider.answer(script, name="aws")
    policy = await bench.store.policy()
    verdict = await bench.health.check(connector, "", policy, actor="test")
    assert verdict.result is result
    assert (await bench.found(connector)).state is state


async def test_a_list_that_is_denied_leaves_the_credential_good(bench: Bench) -> None:
    connector = await add(bench)
    denied = answer({"message": f"{DENIED}ListFoundationModels"}, 403, x_amzn_errortype="AccessDeniedException")
    bench.provider.answer(denied, name="aws")
    with pytest.raises(PatchbayError) as failure:
        await bench.connectors.models(bench.caller, connector.owner, "aws", Query())
    assert failure.value.reason is Reason.UPSTREAM_REJECTED_REQUEST
    assert (await bench.found(connector)).state is ConnectorState.ACTIVE


async def test_models_and_profiles_are_one_list(bench: Bench) -> None:
    connector = await add(bench)
    bench.provider.answer(
        answer({"modelSummaries": [{"modelId": "amazon.nova-pro-v1:0"}]}),
        answer({"inferenceProfileSummaries": [{"inferenceProfileId": "us.x.y"}], "nextToken": "a/b"}),
        answer({"inferenceProfileSummaries": [{"inferenceProfileId": "us.x.z"}]}),
        name="aws",
    )
    models, _ = await bench.connectors.models(bench.caller, connector.owner, "aws", Query())
    assert [model.id for model in models.models] == ["amazon.nova-pro-v1:0", "us.x.y", "us.x.z"]
    assert bench.provider.asked("aws")[-1].path.endswith("&nextToken=a%2Fb")
