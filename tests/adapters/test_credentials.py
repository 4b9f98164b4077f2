"""Credential fields: what is refused at creation, at rotation and at use, and what may be shown."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.adapters.credentials import describe, last_four, merge, require_usable, validate
from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE
from patchbay_server.adapters.protocol import CredentialField, FieldKind, TypeInfo
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Secret

KEY = "sk-proj-0123456789"
COMPATIBLE = OPENAI_COMPATIBLE.info


def field(name: str, kind: FieldKind = FieldKind.SECRET, **more: Any) -> CredentialField:
    return CredentialField(name=name, label=name, help="", kind=kind, **more)


AZURE_LIKE = TypeInfo(
    type="example",
    display_name="Example",
    description="",
    fields=(
        field("api_key", one_of="key"),
        field("token", one_of="key"),
        field("region", FieldKind.TEXT, required=True, pattern=r"[a-z]{2}-[0-9]", length_max=8),
    ),
    capabilities=frozenset(),
)


def refused(info: TypeInfo, fields: dict[str, Any]) -> dict[str, str]:
    """The fields at fault and what is said of each."""
    with pytest.raises(PatchbayError) as error:
        validate(info, fields)
    assert error.value.reason is Reason.INVALID_REQUEST
    return {violation.field: violation.description for violation in error.value.violations}


def test_a_good_credential_is_kept_without_unset_fields_and_surrounding_spaces() -> None:
    fields = {"api_key": f" {KEY} ", "organization": "", "project": None, "endpoint": "  "}
    assert validate(OPENAI.info, fields) == {"api_key": KEY}


@pytest.mark.parametrize("value", [None, "", "  ", "\t", "\n"])
def test_a_required_field_that_is_blank_is_missing(value: str | None) -> None:
    assert "is needed" in refused(OPENAI.info, {"api_key": value})["api_key"]


@pytest.mark.parametrize("value", ["sk-a\nb", "sk-ab\n", "sk-a\x00b", "sk-a\x7fb", "sk-a\x85b", "sk-a\tb", "\rsk-ab"])
def test_control_characters_are_refused(value: str) -> None:
    assert "control characters" in refused(OPENAI.info, {"api_key": value})["api_key"]


def test_what_goes_into_a_header_is_ascii() -> None:
    assert "ASCII" in refused(OPENAI.info, {"api_key": "sk-schlüssel"})["api_key"]
    assert "ASCII" in refused(OPENAI.info, {"api_key": KEY, "organization": "ünit"})["organization"]
    assert validate(COMPATIBLE, {"base_url": "https://bücher.example/v1"})


def test_values_are_bounded() -> None:
    assert "at most" in refused(OPENAI.info, {"api_key": "sk-" + "a" * 8192})["api_key"]
    assert "at most" in refused(OPENAI.info, {"api_key": KEY, "project": "p" * 257})["project"]


def test_every_field_at_fault_is_named_and_no_value_is_repeated() -> None:
    wrong = refused(OPENAI.info, {"api_key": "sk-ant-canary", "organization": "a\nb", "colour": "red"})
    assert wrong.keys() == {"api_key", "organization", "colour"}
    assert "canary" not in str(wrong)


def test_an_unknown_field_is_named_within_bounds() -> None:
    name = "x\n" + "y" * 500
    assert all(len(known) <= 64 and "\n" not in known for known in refused(OPENAI.info, {"api_key": KEY, name: "1"}))


@pytest.mark.parametrize(
    ("key", "right_type"),
    [
        ("sk-ant-api03-x", "anthropic"),
        ("sk-or-v1-x", "openrouter"),
        ("xai-x", "xai"),
        ("AIzaSyx", "gemini"),
    ],
)
def test_a_key_of_another_provider_is_refused_with_the_right_type(key: str, right_type: str) -> None:
    assert right_type in refused(OPENAI.info, {"api_key": key})["api_key"]
    assert validate(COMPATIBLE, {"base_url": "http://localhost/v1", "api_key": key})["api_key"] == key


@pytest.mark.parametrize("key", ["sk-x", "sk-proj-x", "sk-svcacct-x", "Bearer-less", "gateway.key"])
def test_a_key_of_an_unfamiliar_kind_is_taken(key: str) -> None:
    assert validate(OPENAI.info, {"api_key": key}) == {"api_key": key}


@pytest.mark.parametrize("key", ["sk-admin-x", "sk-ant-admin01-x"])
def test_an_administration_key_is_refused_with_the_reason(key: str) -> None:
    assert "administration key" in refused(OPENAI.info, {"api_key": key})["api_key"]


def test_one_of_a_group_is_needed_and_enough() -> None:
    assert "api_key, token" in refused(AZURE_LIKE, {"region": "eu-1"})["api_key"]
    assert validate(AZURE_LIKE, {"token": "t", "region": "eu-1"}) == {"token": "t", "region": "eu-1"}


@pytest.mark.parametrize("region", ["eu-1.evil.example/", "eu-12345678", "EU-1", "xeu-1x"])
def test_a_pattern_holds_for_the_whole_value(region: str) -> None:
    assert "region" in refused(AZURE_LIKE, {"token": "t", "region": region})


def test_flags_and_choices_take_their_own_values_only() -> None:
    wrong = refused(COMPATIBLE, {"base_url": "http://x/v1", "tools": "yes", "max_tokens_field": "max"})
    assert wrong.keys() == {"tools", "max_tokens_field"}
    good = {"base_url": "http://x/v1", "tools": False, "max_tokens_field": "max_completion_tokens"}
    assert validate(COMPATIBLE, good) == good


@pytest.mark.parametrize("value", [7, [], ["a"], {"a": 1}, True, b"x"])
def test_a_value_of_the_wrong_kind_is_refused(value: Any) -> None:
    assert refused(OPENAI.info, {"api_key": value})
    assert refused(COMPATIBLE, {"base_url": "http://x/v1", "headers": value})


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"authorization": "Basic x"},
        {"Content-Length": "0"},
        {"transfer-encoding": "chunked"},
        {"Connection": "close"},
        {"Proxy-Authorization": "x"},
        {"x y": "1"},
        {"": "1"},
        {"x:": "1"},
        {"x": "a\r\nb: c"},
        {"x": "ü"},
        {"X-A": "1", "x-a": "2"},
        {f"x-{n}": "1" for n in range(33)},
        {"x": "a" * 17_000},
        {"x" * 200: "1"},
    ],
)
def test_headers_that_break_a_request_or_belong_to_the_gateway_are_refused(headers: dict[str, str]) -> None:
    assert "headers" in refused(COMPATIBLE, {"base_url": "http://x/v1", "headers": headers})


def test_ordinary_headers_are_kept() -> None:
    headers = {"X-Team": "blue", "api-key": "k"}
    assert validate(COMPATIBLE, {"base_url": "http://x/v1", "headers": headers})["headers"] == headers


# --- rotation ---


def test_a_rotation_keeps_what_it_leaves_out() -> None:
    old = {"api_key": KEY, "project": "p"}
    assert merge(OPENAI.info, old, {"api_key": "sk-new"}) == {"api_key": "sk-new", "project": "p"}


def test_a_rotation_that_changes_nothing_is_refused() -> None:
    with pytest.raises(PatchbayError, match="at least one"):
        merge(OPENAI.info, {"api_key": KEY}, {})


@pytest.mark.parametrize("empty", ["", " ", None])
def test_a_field_cannot_be_emptied_by_rotation(empty: str | None) -> None:
    with pytest.raises(PatchbayError, match="cannot be emptied"):
        merge(OPENAI.info, {"api_key": KEY, "project": "p"}, {"project": empty})


def test_only_what_changes_is_checked() -> None:
    old = {"base_url": "http://x/v1", "api_key": "old\nkey", "legacy": "gone"}
    assert merge(COMPATIBLE, old, {"tools": False})["tools"] is False
    with pytest.raises(PatchbayError, match="control"):
        merge(COMPATIBLE, old, {"api_key": "new\nkey"})


def test_what_is_required_is_required_after_a_rotation_too() -> None:
    with pytest.raises(PatchbayError, match="is needed"):
        merge(OPENAI.info, {}, {"project": "p"})


# --- use and display ---


def test_a_stored_credential_that_rules_no_longer_allow_is_a_misconfiguration() -> None:
    require_usable(OPENAI.info, Secret({"api_key": KEY}))
    with pytest.raises(PatchbayError) as refusal:
        require_usable(OPENAI.info, Secret({"api_key": "sk-ant-x"}))
    assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED
    assert refusal.value.violations[0].field == "api_key"


def test_only_what_is_not_secret_is_shown() -> None:
    fields = {
        "base_url": "http://x/v1",
        "api_key": "canary-key-0123",
        "headers": {"x-b": "canary", "x-a": "canary"},
        "tools": False,
        "max_tokens_field": "max_tokens",
    }
    assert describe(COMPATIBLE, Secret(fields)) == {
        "base_url": "http://x/v1",
        "headers": "x-a, x-b",
        "tools": "false",
        "max_tokens_field": "max_tokens",
    }


@pytest.mark.parametrize(
    ("key", "shown"), [("sk-proj-0123456789", "6789"), ("0123456789ab", "89ab"), ("0123456789a", ""), ("", "")]
)
def test_four_characters_of_a_long_key_are_shown_and_none_of_a_short_one(key: str, shown: str) -> None:
    assert last_four(OPENAI.info, Secret({"api_key": key})) == shown


@given(st.dictionaries(st.sampled_from([f.name for f in COMPATIBLE.fields] + ["other"]), st.text() | st.booleans()))
def test_any_values_are_taken_or_refused_and_nothing_else(fields: dict[str, Any]) -> None:
    try:
        kept = validate(COMPATIBLE, fields)
    except PatchbayError as error:
        kept, reason = {}, error.reason
    else:
        reason = Reason.INVALID_REQUEST
        assert validate(COMPATIBLE, kept) == kept
    assert reason is Reason.INVALID_REQUEST
