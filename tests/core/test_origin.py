"""A provider's opaque state goes back to that provider only."""

import pytest
from tests.support import make

from patchbay_server.core import origin
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import NoticeCode, Part, Prompt, ReasoningPart, Role, TextPart, ToolCallPart

STATE = b"\x00opaque:\xff"


def thought(state: bytes) -> ReasoningPart:
    return ReasoningPart(text="hm", provider_state=state)


def asked(state: bytes) -> ToolCallPart:
    return ToolCallPart(id="1", name="f", provider_state=state)


def prompt_of(*parts: Part) -> Prompt:
    return make.prompt(make.message(), make.message(Role.ASSISTANT, *parts))


def states(prompt: Prompt) -> list[bytes]:
    return [getattr(part, "provider_state", b"-") for part in prompt.messages[1].parts]


@pytest.mark.parametrize("part", [thought(STATE), asked(STATE)])
def test_a_state_comes_back_byte_for_byte_to_the_type_that_gave_it(part: ReasoningPart | ToolCallPart) -> None:
    given = origin.mark(part, "anthropic")
    assert isinstance(given, ReasoningPart | ToolCallPart)
    assert given.provider_state != STATE
    origin.check(prompt_of(given))
    back, notices = origin.for_type(prompt_of(given), "anthropic")
    assert (states(back), notices) == ([STATE], ())


def test_a_state_of_another_type_is_left_out_with_a_notice_that_says_where() -> None:
    parts = [origin.mark(thought(STATE), "openai"), TextPart(text="so"), origin.mark(asked(STATE), "anthropic")]
    back, notices = origin.for_type(prompt_of(*parts), "anthropic")
    assert states(back) == [b"", b"-", STATE]
    assert [(notice.code, notice.field) for notice in notices] == [
        (NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[0].reasoning.provider_state")
    ]
    assert isinstance(back.messages[1].parts[0], ReasoningPart)
    assert back.messages[1].parts[0].text == "hm", "what can be read stays"


def test_a_type_s_name_within_another_s_is_not_mistaken_for_it() -> None:
    given = origin.mark(thought(STATE), "openai_compatible")
    assert states(origin.for_type(prompt_of(given), "openai")[0]) == [b""]


def test_parts_without_state_are_given_as_they_are() -> None:
    for part in [thought(b""), asked(b""), TextPart(text="x")]:
        assert origin.mark(part, "openai") is part
    prompt = prompt_of(thought(b""), TextPart(text="x"))
    assert origin.for_type(prompt, "openai") == (prompt, ())
    origin.check(prompt)


@pytest.mark.parametrize("state", [b"x", b"pb1:", b"pb1:openai", b"pb2:openai:x", b"pb1:\xff:x"])
def test_a_state_that_the_gateway_never_gave_out_is_refused_by_its_place(state: bytes) -> None:
    with pytest.raises(PatchbayError) as caught:
        origin.check(prompt_of(TextPart(text="x"), thought(state)))
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.violations[0].field == "messages[1].parts[1].reasoning.provider_state"
