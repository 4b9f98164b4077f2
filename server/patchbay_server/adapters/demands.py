"""What a call demands of its answer, for providers that keep to a schema or take none: what Anthropic's, Gemini's and
Bedrock's dialects have in common.
"""

from typing import Any

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.knobs import Knobs, unsupported
from patchbay_server.types import FunctionTool, GenerationConfig, JsonObjectFormat, JsonSchemaFormat, ResponseFormat


def parameters_of(tool: FunctionTool, path: str) -> Any:
    """The schema of a function's arguments, for providers that need one.

    Raises:
        PatchbayError: INVALID_REQUEST when it is no object.
    """
    schema = tool.parameters_json_schema
    if not schema.strip():
        return {"type": "object", "properties": {}}
    return json_body.embedded_object(schema, f"{path}.parameters_json_schema")


def enforced_schema(response_format: ResponseFormat | None) -> msgspec.Raw | None:
    """The schema that an answer has to keep to; None when it may have any form.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED for JSON without a schema; as `schema_of`.
    """
    match response_format:
        case JsonObjectFormat():
            raise unsupported("response_format.json_object", "the provider takes JSON with a schema only")
        case JsonSchemaFormat():
            return schema_of(response_format)
        case _:
            return None


def schema_of(response_format: JsonSchemaFormat) -> msgspec.Raw:
    """The schema of an answer.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED when it is a mere wish, INVALID_REQUEST when it is no object.
    """
    path = "response_format.json_schema"
    if response_format.strict is False:
        raise unsupported(f"{path}.strict", "the provider always enforces the schema")
    return json_body.embedded_object(response_format.schema_json, f"{path}.schema_json")


def refuse_seed_and_penalties(config: GenerationConfig, knobs: Knobs) -> None:
    """For providers that know neither."""
    if config.seed is not None:
        knobs.refuse("config.seed", "the provider takes no seed")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(config, name):
            knobs.refuse(f"config.{name}", "the provider knows no penalties")
