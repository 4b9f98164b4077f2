"""JSON that callers hand over keeps its bytes; JSON of providers is read without trust."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.adapters import json_body
from patchbay_server.errors import PatchbayError, Reason

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


def test_an_embedded_object_is_written_byte_for_byte() -> None:
    text = '{ "z" : 123456789012345678901234567890, "a" : 1.10 }'
    raw = json_body.embedded_object(text, "field")
    assert json_body.encode({"schema": raw}) == b'{"schema":' + text.encode() + b"}"


@pytest.mark.parametrize("text", ["", " ", "{", "[]", "1", "null", '"a"', "{}{}", '{"a":01}', "{'a':1}", "[" * 5000])
def test_what_is_not_one_object_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        json_body.embedded_object(text, "tools[0].x")
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert refused.value.violations[0].field == "tools[0].x"


def test_options_are_merged_member_by_member_and_everything_else_is_replaced() -> None:
    body = {"model": "m", "stream_options": {"include_usage": True}, "stop": ["a"], "n": 1}
    options = '{"stream_options":{"x":{"y":1}},"stop":["b"],"n":{"deep":1},"new":99999999999999999999}'
    assert json_body.encode(json_body.merged(body, options)) == (
        b'{"model":"m","stream_options":{"include_usage":true,"x":{"y":1}},"stop":["b"],"n":{"deep":1},'
        b'"new":99999999999999999999}'
    )


@given(OBJECTS, OBJECTS)
def test_merging_agrees_with_a_plain_deep_merge(body: dict[str, object], options: dict[str, object]) -> None:
    try:
        written = json_body.encode(json_body.merged(body, json.dumps(options)))
    except PatchbayError:
        return  # a number that has no place in JSON's common range
    assert json.loads(written) == json.loads(json.dumps(_deep_merge(body, options)))


def _deep_merge(ours: dict[str, object], theirs: dict[str, object]) -> dict[str, object]:
    merged = dict(ours)
    for name, value in theirs.items():
        old = merged.get(name)
        merged[name] = _deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


@pytest.mark.parametrize("name", ["model", "messages", "stream"])
def test_options_cannot_set_what_the_gateway_decides(name: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        json_body.merged({}, json.dumps({"x": 1, name: 1}))
    assert refused.value.violations[0].field == "provider_options_json"


def test_blank_options_change_nothing() -> None:
    assert json_body.merged({"a": 1}, " ") == {"a": 1}


def test_half_a_surrogate_pair_is_read_and_mended() -> None:
    value = json_body.decode_leniently(b'{"t":"a\\ud83d"}')
    assert json_body.mended(value["t"]) == "a\ufffd"
    assert json_body.mended("\ud83d\ude42") == "\U0001f642"


@given(st.text(st.characters()))
def test_mending_makes_any_text_fit_to_be_sent(text: str) -> None:
    mended = json_body.mended(text)
    mended.encode()
    assert mended == text or any(0xD800 <= ord(char) <= 0xDFFF for char in text)


@given(st.binary())
def test_reading_any_bytes_gives_a_value_or_one_error(data: bytes) -> None:
    for read in (json_body.decode, json_body.decode_leniently):
        try:
            read(data)
        except ValueError:
            continue
    assert isinstance(json_body.object_or_empty(data), dict)


def test_compact_json_says_the_same_byte_for_byte() -> None:
    indented = b'{\n  "b" : [ 1.0, 12345678901234567890123, 1e5 ],\n  "a": "x  \\u002b \\/ y"\n}'
    assert json_body.compact(indented) == b'{"b":[1.0,12345678901234567890123,1e5],"a":"x  \\u002b \\/ y"}'


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'"\xff"', b"[" * 5000, b"[] x", b"01"])
def test_what_is_no_json_cannot_be_compact(data: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        json_body.compact(data)


@pytest.mark.parametrize(("value", "text"), [("a", "a"), ("", ""), (None, ""), (1, ""), (b"a", ""), (["a"], "")])
def test_only_text_is_text(value: object, text: str) -> None:
    assert json_body.text_or_empty(value) == text
