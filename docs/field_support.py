"""The table of what each connector type makes of each field of a request: what the field probe finds, by type.

The suites in tests/adapters hold every adapter to the rule that nothing is dropped in silence; here the same probe is
asked again, and what comes of it is shown.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from patchbay_server.adapters.protocol import Adapter
from patchbay_server.adapters.registry import BUILT_IN
from patchbay_server.testing.field_probe import PROBES, Outcome, Probe, ask
from patchbay_server.types import Secret


class Asked(msgspec.Struct, frozen=True):
    """A credential that a type takes, and models of it that differ in what they take."""

    credential: Mapping[str, Any]
    models: tuple[str, ...]


_KEY: Final = {"api_key": "example-key-0123456789"}
_AZURE: Final = {**_KEY, "resource": "example", "deployment": "chat"}
_BEDROCK: Final = {**_KEY, "region": "eu-central-1", "model_id": "amazon.nova-pro-v1:0"}

TYPES: Final[Mapping[str, Asked]] = {
    "openai": Asked(_KEY, ("gpt-4.1", "o4-mini", "gpt-5.6-sol", "gpt-5-pro")),
    "openai_compatible": Asked({**_KEY, "base_url": "http://localhost:8000/v1"}, ("any-model",)),
    "anthropic": Asked(_KEY, ("claude-opus-4-6", "claude-opus-5-5", "claude-haiku-4-5")),
    "gemini": Asked(_KEY, ("gemini-3.8-flash", "gemini-4-argon", "gemini-2.5-flash", "gemini-2.0-flash-001")),
    "azure_openai": Asked(_AZURE, ("gpt-4.1", "gpt-5.6-sol")),
    "bedrock": Asked(
        _BEDROCK,
        (
            *("anthropic.claude-opus-4-6-v1", "amazon.nova-pro-v1:0", "us.amazon.nova-2-lite-v1:0"),
            *("meta.llama3-1-70b-instruct-v1:0", "qwen.qwen3-32b-v1:0"),
        ),
    ),
    "openrouter": Asked(_KEY, ("anthropic/claude-opus-5.5",)),
    "xai": Asked(_KEY, ("grok-4.3", "grok-3")),
}

_SHOWN: Final = {
    Outcome.SENT: "yes",
    Outcome.LEFT_OUT: "notice",
    Outcome.REFUSED: "no",
    Outcome.WITHOUT_EFFECT: "as is",
}


def models() -> list[tuple[str, ...]]:
    """The models that stand for each type, a row each."""
    return [(f"`{type_}`", ", ".join(f"`{model}`" for model in asked.models)) for type_, asked in TYPES.items()]


def rows() -> list[tuple[str, ...]]:
    """The head of the table, and a row for each probe."""
    head = ("field", "what it says", *(f"`{adapter.info.type}`" for adapter in BUILT_IN))
    return [
        head,
        *((f"`{probe.path}`", probe.what, *(_cell(adapter, probe) for adapter in BUILT_IN)) for probe in PROBES),
    ]


def _cell(adapter: Adapter, probe: Probe) -> str:
    asked = TYPES[adapter.info.type]
    outcomes = {ask(adapter, Secret(asked.credential), model, probe).outcome for model in asked.models}
    return "by model" if Outcome.REFUSED in outcomes and len(outcomes) > 1 else _SHOWN[max(outcomes, key=_weight)]


def _weight(outcome: Outcome) -> int:
    """Where models differ without refusing, the one that makes most of the field is shown."""
    return [Outcome.REFUSED, Outcome.WITHOUT_EFFECT, Outcome.LEFT_OUT, Outcome.SENT].index(outcome)
