"""Which connector types exist, and what keeps a bad one out."""

from typing import Any

import msgspec
import pytest

from patchbay_server.adapters.openai_chat import OPENAI, OpenAiAdapter
from patchbay_server.adapters.openai_dialect import OPENAI as DIALECT
from patchbay_server.adapters.protocol import CredentialField, FieldKind, TypeInfo
from patchbay_server.adapters.registry import BUILT_IN, Registry
from patchbay_server.errors import PatchbayError, Reason


def adapter(**info: Any) -> OpenAiAdapter:
    return OpenAiAdapter(msgspec.structs.replace(OPENAI.info, type="example", **info), DIALECT)


def field(name: str = "key", kind: FieldKind = FieldKind.SECRET, **more: Any) -> CredentialField:
    return CredentialField(**{"name": name, "label": "Key", "help": "", "kind": kind, **more})


def test_the_built_in_types_are_all_there_and_described() -> None:
    types = [info.type for info in Registry(BUILT_IN).types()]
    assert types == [
        "openai",
        "openai_compatible",
        "anthropic",
        "gemini",
        "azure_openai",
        "bedrock",
        "openrouter",
        "xai",
    ]
    assert all(info.display_name and info.description for info in Registry(BUILT_IN).types())


def test_a_type_that_does_not_exist_is_refused_naming_those_that_do() -> None:
    with pytest.raises(PatchbayError, match=", ".join(sorted(adapter.info.type for adapter in BUILT_IN))) as refused:
        Registry(BUILT_IN).get("opanai")
    assert refused.value.reason is Reason.INVALID_REQUEST


def test_a_duplicate_registration_is_an_error() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        Registry([adapter(), adapter()])


def test_built_in_types_are_told_from_others() -> None:
    registry = Registry([*BUILT_IN, adapter()])
    assert registry.is_built_in("openai")
    assert not registry.is_built_in("example")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ((field(), field()), "two fields"),
        ((field("Key"),), "a name has to match"),
        ((field(label=""),), "a label"),
        ((field(kind=FieldKind.CHOICE),), "choices"),
        ((field(choices=("a",)),), "choices"),
        ((field(required=True, one_of="g"),), "no group"),
        ((field(length_max=0),), "positive"),
        ((field(pattern="("),), "no regular expression"),
    ],
)
def test_a_type_that_describes_itself_wrongly_is_an_error(fields: tuple[CredentialField, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Registry([adapter(fields=fields)])


def test_what_is_no_adapter_is_an_error() -> None:
    class Half:
        info = TypeInfo(type="half", display_name="", description="", fields=(), capabilities=frozenset())

    with pytest.raises(ValueError, match="not an adapter"):
        Registry([Half()])  # type: ignore[list-item]  # that is the point
    broken = adapter()
    broken._info = msgspec.structs.replace(OPENAI.info, type="../x")
    with pytest.raises(ValueError, match=r"info\.type"):
        Registry([broken])
