"""The connector type `azure_openai`: OpenAI's models as deployments of an Azure resource.

A connector is bound to one deployment, which every request names. The model of a call says what the deployment serves,
and so what it takes; it is not sent.

Source: Microsoft's references of Azure OpenAI's v1 API and of its dated versions; the Azure client of openai 3.52.0
(read 2026-11-20).
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from patchbay_server.adapters.openai_chat import OpenAiAdapter, endpoint_field
from patchbay_server.adapters.openai_dialect import OPENAI, Dialect
from patchbay_server.adapters.protocol import Capability, CredentialField, FieldKind, TypeInfo
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Secret

V1: Final = "v1"

_DIALECT: Final = msgspec.structs.replace(
    OPENAI,
    type="azure_openai",
    name="Azure OpenAI",
    root="",
    key_header="api-key",
    key_prefix="",
    credential_headers=(),
    # Padding of streams is not in the reference of every version, and what is not there is refused.
    stream_options={"include_usage": True},
    responses_stream_options={},
    model_by_id=False,
)

_MODERN: Final = "2024-09-01"
"""Dated versions from here on know `max_completion_tokens` and `stream_options`."""
_WITH_RESPONSES: Final = "2025-03-01"
"""Dated versions from here on have the Responses API."""


def azure(secret: Secret) -> Dialect:
    """The dialect of one `azure_openai` connector, by its deployment, its kind of key and its surface."""
    deployment = secret.text("deployment").strip()
    version = secret.text("api_version").strip() or V1
    dated = version != V1
    dialect = msgspec.structs.replace(
        _DIALECT, root=_root(secret, "openai" if dated else "openai/v1"), root_field="", deployment=deployment
    )
    if secret.text("entra_token").strip():
        dialect = msgspec.structs.replace(
            dialect, key_field="entra_token", key_header="authorization", key_prefix="Bearer "
        )
    if not dated:
        return dialect
    modern = version >= _MODERN
    return msgspec.structs.replace(
        dialect,
        query=f"api-version={quote(version, safe='')}",
        chat_path=("deployments", quote(deployment, safe=""), "chat", "completions"),
        max_tokens_field=_DIALECT.max_tokens_field if modern else "max_tokens",
        stream_options=_DIALECT.stream_options if modern else {},
        responses=version >= _WITH_RESPONSES,
    )


def _root(secret: Secret, path: str) -> str:
    """The API's root; `path` is where it lies on a host of Azure, and on an endpoint that is given without a path."""
    endpoint = secret.text("endpoint").strip()
    if not endpoint:
        return f"https://{quote(secret.text('resource').strip(), safe='')}.openai.azure.com/{path}"
    return endpoint if _path(endpoint) else f"{endpoint.rstrip('/')}/{path}"


def _path(url: str) -> str:
    """The path of an address, without slashes around it; empty when there is none, or the address is none."""
    try:
        return urlsplit(url).path.strip("/")
    except ValueError:
        return ""


def _check(fields: Mapping[str, Any]) -> None:
    if fields.get("api_key") and fields.get("entra_token"):
        raise _refused("entra_token", "give the resource's key or an Entra token, not both")
    version, endpoint = fields.get("api_version"), fields.get("endpoint")
    if version not in (None, V1) and isinstance(endpoint, str) and re.search(r"/v1/*\Z", endpoint):
        raise _refused("endpoint", "with a dated `api_version` the endpoint ends before /v1, as in /openai")


def _refused(field: str, message: str) -> PatchbayError:
    return PatchbayError(Reason.INVALID_REQUEST, message, field=field)


ADAPTER: Final = OpenAiAdapter(
    TypeInfo(
        type=_DIALECT.type,
        display_name="Azure OpenAI",
        description="A deployment of an OpenAI model on an Azure resource.",
        fields=(
            CredentialField(
                name="api_key",
                label="API key",
                help="One of the resource's two keys.",
                kind=FieldKind.SECRET,
                one_of="key",
                replaces=("entra_token",),
            ),
            CredentialField(
                name="entra_token",
                label="Entra token",
                help="A Microsoft Entra access token instead of a key; used as it is and not renewed.",
                kind=FieldKind.SECRET,
                one_of="key",
                replaces=("api_key",),
            ),
            CredentialField(
                name="resource",
                label="Resource",
                help="The resource's name, the first part of its address.",
                kind=FieldKind.TEXT,
                one_of="address",
                # It becomes part of a host's name, so it can hold nothing that ends one.
                pattern=r"[A-Za-z0-9][A-Za-z0-9-]{0,62}[A-Za-z0-9]",
                length_max=64,
                names_host=True,
            ),
            msgspec.structs.replace(
                endpoint_field(
                    "https://{resource}.openai.azure.com/openai/v1",
                    such_as="a private link, a proxy, a test server",
                ),
                one_of="address",
            ),
            CredentialField(
                name="deployment",
                label="Deployment",
                help="The deployment's name. It answers every call; a call's model says what it serves.",
                kind=FieldKind.TEXT,
                required=True,
                # Not of dots alone: such a name would climb the path.
                pattern=r"[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*",
                length_max=64,
            ),
            CredentialField(
                name="api_version",
                label="API version",
                help="A dated version such as 2024-10-21; v1, and none, is the undated surface.",
                kind=FieldKind.TEXT,
                pattern=r"v1|20[0-9]{2}-[0-9]{2}-[0-9]{2}(-preview)?",
                length_max=32,
            ),
        ),
        capabilities=frozenset(Capability),
        documentation_uri="https://learn.microsoft.com/azure/ai-foundry/openai/",
    ),
    _DIALECT,
    azure,
    _check,
)
