"""Llama on InvokeModel: the prompt that it is given, and calls told from text in what it writes."""

import base64
import json
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.eventstream import event

from patchbay_server.adapters.bedrock import ADAPTER
from patchbay_server.adapters.bedrock_llama_calls import CallFinder, Found, FoundCall
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, cut, read
from patchbay_server.testing.stream_rules import check_stream, outcome
from patchbay_server.types import (
    Call,
    Event,
    Finished,
    FinishReason,
    FunctionTool,
    GenerationConfig,
    JsonSchemaFormat,
    MediaPart,
    Message,
    NoticeCode,
    Part,
    Prompt,
    ProviderTool,
    ReasoningPart,
    Role,
    Secret,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame, Framing

SECRET: Final = {"region": "us-east-1", "model_id": "x.y", "api_key": "ABSKexample0123456789"}
LLAMA: Final = "meta.llama3-8b-instruct-v1:0"
HELLO: Final = Message(role=Role.USER, parts=(TextPart(text="hello"),))
ADD: Final = FunctionTool(name="add")
CALLED: Final = Message(role=Role.ASSISTANT, parts=(ToolCallPart(id="1", name="add", arguments_json='{"a":1}'),))

# --- calls within text ------------------------------------------------------------------------------------------------

NAMES: Final = ("add", "add_all")
SUM: Final = FoundCall("add", '{"a": 1}')
ALL: Final = FoundCall("add_all", '{"b": [1, {"c": "}\\"{"}]}')
SUM_TEXT: Final = '{"name": "add", "parameters": {"a": 1}}'
ALL_TEXT: Final = '{"type": "function", "name": "add_all", "parameters": {"b": [1, {"c": "}\\"{"}]}}'


def found(pieces: Iterable[str], names: Sequence[str] = NAMES) -> list[Found]:
    """What is found, with texts that follow each other as one."""
    finder = CallFinder(names)
    items = [item for piece in pieces for item in finder.feed(piece)] + finder.finish()
    joined: list[Found] = []
    for item in items:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


EXAMPLES: Final[dict[str, list[Found]]] = {
    SUM_TEXT: [SUM],
    f"\n {SUM_TEXT} \n": [SUM],
    f"<|python_tag|>{SUM_TEXT}": [SUM],
    f"<|python_tag|> {SUM_TEXT};{ALL_TEXT}": [SUM, ALL],
    f"{SUM_TEXT}\n{ALL_TEXT}\n{SUM_TEXT}": [SUM, ALL, SUM],
    f"[{SUM_TEXT}, {ALL_TEXT}]": [SUM, ALL],
    '{"name":"add","arguments":{}}': [FoundCall("add", "{}")],
    '{"name":"add"}': [FoundCall("add", "")],
    '{"name":"add","parameters":null}': [FoundCall("add", "null")],
    '{ "name" : "add" , "parameters" : { } }': [FoundCall("add", "{ }")],
    f"{SUM_TEXT}\nThat adds one.": [SUM, "\nThat adds one."],
    # Text, whatever it holds later.
    "": [],
    "  ": ["  "],
    "hello": ["hello"],
    f"I call {SUM_TEXT}": [f"I call {SUM_TEXT}"],
    '{"name": "subtract", "parameters": {}}': ['{"name": "subtract", "parameters": {}}'],
    '{"name": "addition", "parameters": {}}': ['{"name": "addition", "parameters": {}}'],
    '{"city": "Bern"}': ['{"city": "Bern"}'],
    '{"parameters": {}, "name": "add"}': ['{"parameters": {}, "name": "add"}'],
    '{"name": "add", "parameters": [1]}': ['{"name": "add", "parameters": [1]}'],
    '{"name": "add", "parameters": "{}"}': ['{"name": "add", "parameters": "{}"}'],
    '{"name": "add", nonsense}': ['{"name": "add", nonsense}'],
    "[1, 2, 3]": ["[1, 2, 3]"],
    "<|python_tag|>print(1)": ["<|python_tag|>print(1)"],
    "{": ["{"],
    "```json": ["```json"],
    # Cut off.
    '{"name": "add", "parameters": {"a": ': [FoundCall("add", '{"a": ')],
    '{"type": "function", "name": "add", "arguments":': [FoundCall("add", "")],
    '{"name": "add", "par': ['{"name": "add", "par'],
    '{"name": "subtract", "parameters": {': ['{"name": "subtract", "parameters": {'],
    f'{SUM_TEXT}; {{"name": "add_all", "parameters": {{"b': [SUM, FoundCall("add_all", '{"b')],
    f"{SUM_TEXT}; {{": [SUM, "; {"],
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_calls_are_told_from_text(text: str) -> None:
    assert found([text]) == EXAMPLES[text]


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_cut_anywhere_finds_the_same(text: str) -> None:
    for at in range(len(text) + 1):
        assert found([text[:at], text[at:]]) == EXAMPLES[text], f"cut at {at}"
    assert found(text) == EXAMPLES[text]


@pytest.mark.parametrize("text", EXAMPLES)
def test_without_tools_all_is_text(text: str) -> None:
    assert found([text], ()) == ([text] if text else [])


STARTS: Final = ('{"name":"add"', '{"type":"function",', '"name": "add_all"', ',"parameters":', '{"a":"', SUM_TEXT)
MARKS: Final = ("<|python_tag|>", "<|py", "}", "}}", '"', "\\", "{", "[", "]", ";", ":", ",", " ", "\n", "text", "é")
PIECES: Final = st.lists(st.sampled_from((*STARTS, *MARKS)), max_size=12)


@given(pieces=PIECES)
@example(pieces=['{"name":"add"', ',"parameters":', '{"a":"', "\\", '"', "}}"])
def test_any_text_is_kept_whole_however_it_comes(pieces: list[str]) -> None:
    whole = found(["".join(pieces)])
    assert found(pieces) == whole
    text = "".join(pieces)
    for item in whole:
        assert (item if isinstance(item, str) else item.arguments) in text


def test_text_is_given_as_soon_as_it_can_be_no_call() -> None:
    finder = CallFinder(NAMES)
    assert finder.feed('{"na') == []
    assert finder.feed('med": ') == ['{"named": ']
    assert finder.feed(SUM_TEXT) == [SUM_TEXT]


def test_a_call_is_given_with_the_piece_that_completes_it() -> None:
    finder = CallFinder(NAMES)
    assert finder.feed(SUM_TEXT[:-1]) == []
    assert finder.feed("}") == [SUM]


def test_long_arguments_take_linear_time() -> None:
    finder = CallFinder(NAMES)
    started = time.process_time()
    finder.feed('{"name": "add", "parameters": {"a": "')
    for _ in range(20_000):
        assert finder.feed('word \\" {}') == []
    assert len(finder.feed('"}}')) == 1
    assert time.process_time() - started < 1.0  # measured 0.05; the rest is for a busy machine


def test_blanks_without_end_are_not_held() -> None:
    finder = CallFinder(NAMES)
    assert [item for _ in range(2000) for item in finder.feed(" ")]
    assert finder.feed(SUM_TEXT) == [SUM_TEXT]


# --- the prompt -------------------------------------------------------------------------------------------------------


def call(*messages: Message, model: str = LLAMA, streaming: bool = True, **prompt: Any) -> Call:
    prompt.setdefault("tools", (ADD,))
    return Call(id="01", model=model, prompt=Prompt(messages=messages or (HELLO,), **prompt), streaming=streaming)


def body_of(asked: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body)
    return body


def refused(asked: Call) -> tuple[Reason, str]:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.prepare(asked, Secret(SECRET), NOW)
    return refusal.value.reason, refusal.value.violations[0].field


def notices_of(asked: Call) -> list[tuple[NoticeCode, str]]:
    return [(notice.code, notice.field) for notice in ADAPTER.prepare(asked, Secret(SECRET), NOW).notices]


def said(*parts: Part, role: Role = Role.USER) -> Message:
    return Message(role=role, parts=parts)


def turns(asked: Call) -> list[tuple[str, str]]:
    """Role and text of each turn of a Llama 3 prompt."""
    prompt: str = body_of(asked)["prompt"]
    start, *found_turns, last = prompt.split("<|start_header_id|>")
    assert (start, last) == ("<|begin_of_text|>", "assistant<|end_header_id|>\n\n")
    pairs = (turn.removesuffix("<|eot_id|>").split("<|end_header_id|>\n\n") for turn in found_turns)
    return [(role, text) for role, text in pairs]


def test_each_message_is_a_turn_and_tools_stand_at_the_head() -> None:
    system = said(TextPart(text="be brief"), role=Role.SYSTEM)
    (role, text), *rest = turns(call(system, HELLO, said(TextPart(text="a"), TextPart(text="b")), system))
    assert role == "system"
    assert text.startswith("You have access to the following functions.")
    assert text.endswith('"parameters":{"type":"object","properties":{}}}}\n\nbe brief')
    assert rest == [("user", "hello"), ("user", "a\nb"), ("system", "be brief")]


def test_calls_and_results_are_told_as_the_model_writes_and_reads_them() -> None:
    result = said(
        ToolResultPart(tool_call_id="1", parts=(TextPart(text="a"), TextPart(text="b"))),
        ToolResultPart(tool_call_id="unknown", parts=(TextPart(text="no"),), failed=True),
        role=Role.TOOL,
    )
    assert turns(call(HELLO, CALLED, result, tools=())) == [
        ("user", "hello"),
        ("assistant", '{"name":"add","parameters":{"a":1}}'),
        ("ipython", '{"name":"add","output":"a\\nb"}\n{"name":"","error":"no"}'),
    ]


@pytest.mark.parametrize("mark", ["<|eot_id|>", "<|start_header_id|>", "<|eot|>", "<|begin_of_text|>", "<|x_1|>"])
def test_no_text_can_end_its_turn(mark: str) -> None:
    spaced = mark.replace("<|", "< |")
    tool = FunctionTool(name="add", description=mark)
    called = said(ToolCallPart(id="1", name="add", arguments_json=json.dumps({"a": mark})), role=Role.ASSISTANT)
    result = said(ToolResultPart(tool_call_id="1", parts=(TextPart(text=mark),)), role=Role.TOOL)
    asked = call(said(TextPart(text=mark)), called, result, tools=(tool,))
    texts = [text for _, text in turns(asked)]
    assert all(mark not in text and spaced in text for text in texts)
    assert len(texts) == 4


def test_text_that_only_looks_like_a_mark_stays() -> None:
    assert turns(call(said(TextPart(text="a <| b |> <|")), CALLED, tools=()))[0] == ("user", "a <| b |> <|")


def test_the_limit_is_the_largest_where_none_is_given() -> None:
    assert body_of(call())["max_gen_len"] == 2048
    config = GenerationConfig(max_output_tokens=7, temperature=0.5, top_p=0.25)
    body = body_of(call(config=config))
    assert {name: body[name] for name in body if name != "prompt"} == {
        "max_gen_len": 7,
        "temperature": 0.5,
        "top_p": 0.25,
    }


PICTURE: Final = MediaPart(mime_type="image/png", data=b"x")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (call(said(PICTURE)), "messages[0].parts[0].media"),
        (
            call(HELLO, CALLED, said(ToolResultPart(tool_call_id="1", parts=(PICTURE,)), role=Role.TOOL)),
            "messages[2].parts[0].tool_result.parts[0].media",
        ),
        (call(Message(role=Role.USER, parts=(TextPart(text="a"),), author_name="ann")), "messages[0].author_name"),
        (call(tool_choice=ToolChoice(mode=ToolMode.REQUIRED)), "tool_choice.mode"),
        (call(tool_choice=ToolChoice(function_name="add")), "tool_choice.function_name"),
        (call(tools=(ADD, ProviderTool(json="{}"))), "tools[1].provider_tool_json"),
        (call(tools=(FunctionTool(name="add", strict=True),)), "tools[0].function.strict"),
        (call(response_format=JsonSchemaFormat(name="a", schema_json="{}")), "response_format.json_schema"),
        (call(config=GenerationConfig(stop_sequences=("a",))), "config.stop_sequences"),
        (call(config=GenerationConfig(top_k=1)), "config.top_k"),
        (call(config=GenerationConfig(seed=1)), "config.seed"),
        (call(config=GenerationConfig(temperature=1.5)), "config.temperature"),
        (call(config=GenerationConfig(parallel_tool_calls=False)), "config.parallel_tool_calls"),
    ],
)
def test_what_a_prompt_cannot_say_is_refused_by_name(asked: Call, field: str) -> None:
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, field)


def test_what_has_no_place_in_a_prompt_is_left_out_with_a_notice() -> None:
    reasoning = said(ReasoningPart(text="hm"), TextPart(text="a", cache_breakpoint=True), role=Role.ASSISTANT)
    asked = call(HELLO, reasoning)
    assert turns(asked)[2] == ("assistant", "a")
    assert notices_of(asked) == [
        (NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[0].reasoning"),
        (NoticeCode.FIELD_DROPPED, "messages[1].parts[1].cache_breakpoint"),
    ]


def test_options_for_the_model_cannot_change_the_prompt() -> None:
    def asked(**own: Any) -> Call:
        return call(provider_options_json=json.dumps({"additionalModelRequestFields": own}))

    assert body_of(asked(max_gen_len=9))["max_gen_len"] == 9
    assert refused(asked(prompt="x")) == (Reason.INVALID_REQUEST, "provider_options_json")


# --- the answer -------------------------------------------------------------------------------------------------------


def streamed(asked: Call, *chunks: dict[str, Any]) -> tuple[list[Event], PatchbayError | None]:
    wire = b"".join(event("chunk", {"bytes": base64.b64encode(json.dumps(each).encode()).decode()}) for each in chunks)
    return read(ADAPTER.reader(asked), cut(wire, (), Framing.EVENT_STREAM))


def answered(asked: Call, **body: Any) -> tuple[list[Event], PatchbayError | None]:
    return read(ADAPTER.reader(asked), [Frame(json.dumps(body).encode(), whole=True)])


def end_of(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.mark.parametrize("text", EXAMPLES)
@pytest.mark.parametrize("tools", [(FunctionTool(name="add"), FunctionTool(name="add_all")), ()])
def test_a_stream_and_a_whole_answer_are_the_same_wherever_they_are_cut(
    text: str, tools: tuple[FunctionTool, ...]
) -> None:
    history = (HELLO, CALLED, HELLO)
    whole, error = answered(
        call(*history, tools=tools, streaming=False),
        generation=text,
        prompt_token_count=9,
        generation_token_count=4,
        stop_reason="stop",
    )
    assert error is None
    check_stream(whole)
    assert any(isinstance(part, ToolCallPart) for part in outcome(whole).parts) is (
        bool(tools) and any(isinstance(item, FoundCall) for item in EXAMPLES[text])
    )
    for a, b in pairwise([0, len(text) // 3, len(text)]):
        head, tail = text[:a] + text[a:b], text[b:]
        events, error = streamed(
            call(*history, tools=tools),
            {"generation": head, "prompt_token_count": 9, "generation_token_count": 1, "stop_reason": None},
            {"generation": tail, "prompt_token_count": None, "generation_token_count": 4, "stop_reason": "stop"},
        )
        assert error is None
        check_stream(events)
        assert outcome(events) == outcome(whole)


@pytest.mark.parametrize(
    ("stop_reason", "text", "reason"),
    [
        ("stop", "a", FinishReason.STOP),
        ("length", "a", FinishReason.MAX_OUTPUT_TOKENS),
        ("stop", SUM_TEXT, FinishReason.TOOL_CALLS),
        ("length", SUM_TEXT, FinishReason.MAX_OUTPUT_TOKENS),
        ("a_future_reason", "a", FinishReason.OTHER),
    ],
)
def test_stop_reasons(stop_reason: str, text: str, reason: FinishReason) -> None:
    events, _ = answered(call(streaming=False), generation=text, stop_reason=stop_reason)
    assert end_of(events).finish_reason is reason
    assert end_of(events).provider_finish_reason == stop_reason
    assert end_of(events).usage is None


def test_counts_that_are_missing_late_or_unusable_do_not_cost_the_stream() -> None:
    events, error = streamed(
        call(),
        {"generation": "a", "prompt_token_count": 9, "generation_token_count": "x"},
        {"generation": None, "prompt_token_count": None, "generation_token_count": 4, "stop_reason": "stop"},
    )
    assert error is None
    assert end_of(events).usage == Usage(input_tokens=9, output_tokens=4, total_tokens=13)


METRICS: Final = {"inputTokenCount": 7, "outputTokenCount": 5, "invocationLatency": 1, "firstByteLatency": 1}


def test_the_service_s_counts_stand_in_where_the_model_s_are_missing() -> None:
    last = {"generation": "", "stop_reason": "stop", "amazon-bedrock-invocationMetrics": METRICS}
    events, _ = streamed(call(), {"generation": "a", "prompt_token_count": None, "generation_token_count": None}, last)
    assert end_of(events).usage == Usage(input_tokens=7, output_tokens=5, total_tokens=12)
    events, _ = streamed(call(), {"generation": "a", "prompt_token_count": 9}, {**last, "generation_token_count": 4})
    assert end_of(events).usage == Usage(input_tokens=9, output_tokens=4, total_tokens=13)
    events, _ = streamed(call(), {"generation": "a"}, {**last, "amazon-bedrock-invocationMetrics": [1]})
    assert end_of(events).usage is None


def test_a_call_is_text_where_none_may_be_made() -> None:
    asked = call(HELLO, CALLED, HELLO, tool_choice=ToolChoice(mode=ToolMode.NONE), streaming=False)
    events, error = answered(asked, generation=SUM_TEXT, stop_reason="stop")
    assert error is None
    assert outcome(events).parts == (TextPart(text=SUM_TEXT),)


def test_arguments_that_were_cut_off_are_delivered_with_a_notice() -> None:
    events, error = answered(
        call(streaming=False), generation='{"name": "add", "parameters": {"a', stop_reason="length"
    )
    assert error is None
    (part,) = outcome(events).parts
    assert isinstance(part, ToolCallPart)
    assert part.arguments_json == '{"a'
    codes = {notice.code for notice in end_of(events).notices}
    assert codes == {NoticeCode.TOOL_ARGUMENTS_INVALID_JSON, NoticeCode.TOOL_CALL_ID_ASSIGNED}


def test_a_guardrail_is_told() -> None:
    events, _ = streamed(
        call(), {"generation": "no", "stop_reason": "stop", "amazon-bedrock-guardrailAction": "INTERVENED"}
    )
    assert end_of(events).finish_reason is FinishReason.CONTENT_FILTER


def test_an_end_without_a_stop_reason_is_truncated() -> None:
    _, error = streamed(call(), {"generation": "a"})
    assert error is not None
    assert error.reason is Reason.UPSTREAM_TRUNCATED


@pytest.mark.parametrize("body", [{"generation": None}, {"generation": 3}, {"outputs": []}])
def test_a_whole_answer_that_is_no_text_is_malformed(body: dict[str, Any]) -> None:
    _, error = answered(call(streaming=False), **body)
    assert error is not None
    assert error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_whole_answer_to_a_stream_is_no_stream() -> None:
    _, error = answered(call(), generation="a", stop_reason="stop")
    assert error is not None
    assert error.reason is Reason.STREAMING_UNSUPPORTED
