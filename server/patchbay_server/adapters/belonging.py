"""Which connector type a key, an address or a model id plainly belongs to: a mix-up is named where it is made."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from patchbay_server.errors import PatchbayError, Reason

# Longer prefixes first: `sk-` alone begins the keys of several providers and says nothing.
# Source: each provider's documentation of its keys (read 2026-11-20).
_KEY_PREFIXES: Final = (
    ("sk-ant-", "anthropic"),
    ("sk-or-", "openrouter"),
    ("sk-proj-", "openai"),
    ("sk-svcacct-", "openai"),
    ("xai-", "xai"),
    ("AIza", "gemini"),
    ("AKIA", "bedrock"),
    ("ASIA", "bedrock"),
    ("ABSK", "bedrock"),
)

_HOSTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "api.openai.com": "openai",
        "api.anthropic.com": "anthropic",
        "generativelanguage.googleapis.com": "gemini",
        "openai.azure.com": "azure_openai",
        "openai.azure.us": "azure_openai",
        "openai.azure.cn": "azure_openai",
        "services.ai.azure.com": "azure_openai",
        "api.x.ai": "xai",
        "openrouter.ai": "openrouter",
        "api.groq.com": "openai_compatible",
        "api.mistral.ai": "openai_compatible",
        "api.together.ai": "openai_compatible",
        "api.together.xyz": "openai_compatible",
        "api.cerebras.ai": "openai_compatible",
    }
)
"""A host or the domain it lies below -> the connector type that speaks with it."""


def type_of_key(key: str) -> str:
    """The connector type whose well-known prefix `key` wears; empty for an unfamiliar one."""
    return next((owner for prefix, owner in _KEY_PREFIXES if key.startswith(prefix)), "")


def type_of_address(url: str) -> str:
    """The connector type that the host of `url` belongs to; empty for an unfamiliar one."""
    host = host_of(url)
    return next((owner for known, owner in _HOSTS.items() if host == known or host.endswith(f".{known}")), "")


def host_of(url: str) -> str:
    """The host of an address in lower case; empty when it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def port_of(url: str) -> int | None:
    """The port that an address names; None when it names none."""
    try:
        return urlsplit(url).port
    except ValueError:
        return None


def check_address(url: str, connector_type: str) -> None:
    """Refuse an address of another connector type; an empty one is the provider's own.

    Raises:
        PatchbayError: CONNECTOR_MISCONFIGURED naming the right type.
    """
    owner = type_of_address(url)
    if owner and owner != connector_type:
        raise misplaced("this address", connector_type, owner)


def misplaced(what: str, connector_type: str, right_type: str) -> PatchbayError:
    """The refusal of something that belongs to another connector type."""
    return PatchbayError(
        Reason.CONNECTOR_MISCONFIGURED,
        f"{what} does not belong to a connector of type `{connector_type}`: create one of type `{right_type}`",
    )
