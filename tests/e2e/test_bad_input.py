"""Whatever is wrong with a request: the code and reason of the contract, the field by its path, and nothing written.

The cases are those that the comments in the protos promise, written as protobuf's text format, against one server.
"""

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import text_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tests.e2e.gateway import OWNER, Client, GatewayHere, gateway_here, read
from tests.rpc.bench import Failure, failure_of

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.errors import RULES, Reason

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES = {
    method.name: method
    for file in (gateway_pb, connector_pb, admin_pb)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
MAIN = f'name: "{OWNER}/connectors/main"'
SAID = 'messages { role: ROLE_USER parts { text: "Hello" } }'
KEY = 'credential { openai { api_key: "key-0123456789" } }'
NAMED = 'connector { display_name: "another" }'
TOKEN = 'display_name: "t" scopes: SCOPE_CHAT any_owner: true'
UUID = "123e4567-e89b-42d3-a456-426614174000"


def chat(fields: str, said: str = SAID) -> str:
    """A request that is good but for `fields`."""
    good = {"owner": f'owner: "{OWNER}"', "connector": 'connector: "main"'}
    return " ".join([*(text for name, text in good.items() if f"{name}:" not in fields), said, fields])


def said(parts: str, role: str = "ROLE_USER") -> str:
    return chat("", f"messages {{ role: {role} {parts} }}")


def image(inner: str) -> str:
    return said(f"parts {{ media {{ {inner} }} }}")


def credential(inner: str) -> str:
    return f'parent: "{OWNER}" {NAMED} credential {{ {inner} }}'


def policy(path: str, value: str) -> str:
    return f'policy {{ {value} }} update_mask {{ paths: "{path}" }}'


LONG = "x" * 5000
DEEP = json.dumps("[" * 100_000)

INVALID: list[tuple[str, str, list[str]]] = [
    # --- calls: the envelope
    ("Chat", f'owner: "{OWNER}" connector: "main"', ["messages"]),
    ("Chat", chat("", ""), ["messages"]),
    ("Chat", chat('owner: "owners/Acme"'), ["owner"]),
    ("Chat", chat('owner: "owners/acme/connectors/main"'), ["owner"]),
    ("Chat", chat('owner: "owners/"'), ["owner"]),
    ("Chat", chat('connector: "owners/acme"'), ["connector"]),
    ("Chat", chat('connector: "owners/acme/connectors/"'), ["connector"]),
    ("Chat", chat('connector: "owners/acme/connectors/main/x"'), ["connector"]),
    ("Chat", chat('feature: "Summaries"'), ["feature"]),
    ("Chat", chat('feature: "9"'), ["feature"]),
    ("Chat", chat(f'feature: "{"a" * 65}"'), ["feature"]),
    ("Chat", chat('feature: "a b"'), ["feature"]),
    ("Chat", chat('feature: "a\\n"'), ["feature"]),
    ("Chat", chat(f'model: "{"m" * 257}"'), ["model"]),
    ("Chat", chat('model: "a\\nb"'), ["model"]),
    ("Chat", chat("fallback: 99"), ["fallback"]),
    ("Chat", chat("unsupported: 99"), ["unsupported"]),
    ("Chat", chat("min_quality: 1.1"), ["min_quality"]),
    ("Chat", chat("min_quality: -0.1"), ["min_quality"]),
    ("Chat", chat("min_quality: nan"), ["min_quality"]),
    ("Chat", chat('request_id: "7"'), ["request_id"]),
    ("Chat", chat(f'request_id: "{{{UUID}}}"'), ["request_id"]),
    ("Chat", chat(f'request_id: "{UUID}\\n"'), ["request_id"]),
    ("Chat", chat('labels { key: "Team" value: "x" }'), ["labels"]),
    ("Chat", chat('labels { key: "" value: "x" }'), ["labels"]),
    ("Chat", chat(f'labels {{ key: "team" value: "{"x" * 129}" }}'), ["labels['team']"]),
    ("Chat", chat('labels { key: "team" value: "a\\nb" }'), ["labels['team']"]),
    ("Chat", chat(" ".join(f'labels {{ key: "l{n}" value: "x" }}' for n in range(17))), ["labels"]),
    ("Chat", chat('provider_options_json: "["'), ["provider_options_json"]),
    ("Chat", chat('provider_options_json: "[]"'), ["provider_options_json"]),
    ("Chat", chat('provider_options_json: "null"'), ["provider_options_json"]),
    ("Chat", chat('provider_options_json: "{\\"a\\": NaN}"'), ["provider_options_json"]),
    ("Chat", chat(f"provider_options_json: {DEEP}"), ["provider_options_json"]),
    ("Stream", chat("stream_options { coalescing: 7 }"), ["stream_options.coalescing"]),
    ("Stream", chat("stream_options { heartbeat_interval { nanos: 1 } }"), ["stream_options.heartbeat_interval"]),
    ("Stream", chat("stream_options { heartbeat_interval { seconds: 301 } }"), ["stream_options.heartbeat_interval"]),
    ("Stream", chat("stream_options { heartbeat_interval { seconds: -1 } }"), ["stream_options.heartbeat_interval"]),
    # --- calls: messages
    ("Chat", said('parts { text: "x" }', "ROLE_UNSPECIFIED"), ["messages[0].role"]),
    ("Chat", said('parts { text: "x" }', "9"), ["messages[0].role"]),
    ("Chat", said(""), ["messages[0].parts"]),
    ("Chat", said("parts {}"), ["messages[0].parts[0]"]),
    ("Chat", said("parts { media {} }"), ["messages[0].parts[0].media"]),
    ("Chat", image('data: "x"'), ["messages[0].parts[0].media.mime_type"]),
    ("Chat", image('mime_type: "image/png" data: ""'), ["messages[0].parts[0].media"]),
    ("Chat", image('mime_type: "image/png" uri: ""'), ["messages[0].parts[0].media"]),
    ("Chat", image('provider_file_id: ""'), ["messages[0].parts[0].media"]),
    ("Chat", said('parts { tool_call { id: "1" name: "f" } }'), ["messages[0].parts[0]"]),
    ("Chat", said('parts { reasoning { text: "x" } }'), ["messages[0].parts[0]"]),
    ("Chat", said('parts { refusal { text: "x" } }'), ["messages[0].parts[0]"]),
    ("Chat", said('parts { tool_result { tool_call_id: "1" } }'), ["messages[0].parts[0]"]),
    ("Chat", said('parts { media { uri: "https://x.example" } }', "ROLE_SYSTEM"), ["messages[0].parts[0]"]),
    ("Chat", said('parts { text: "x" }', "ROLE_TOOL"), ["messages[0].parts[0]"]),
    ("Chat", said('parts { tool_call { name: "f" } }', "ROLE_ASSISTANT"), ["messages[0].parts[0].tool_call.id"]),
    ("Chat", said('parts { tool_call { id: "1" } }', "ROLE_ASSISTANT"), ["messages[0].parts[0].tool_call.name"]),
    ("Chat", said("parts { tool_result {} }", "ROLE_TOOL"), ["messages[0].parts[0].tool_result.tool_call_id"]),
    (
        "Chat",
        said('parts { tool_result { tool_call_id: "1" parts { refusal {} } } }', "ROLE_TOOL"),
        ["messages[0].parts[0].tool_result.parts[0]"],
    ),
    (
        "Chat",
        said('parts { reasoning { text: "x" provider_state: "not ours" } }', "ROLE_ASSISTANT"),
        ["messages[0].parts[0].reasoning.provider_state"],
    ),
    # --- calls: knobs and tools
    *(
        ("Chat", chat(f"config {{ {name}: {value} }}"), [f"config.{name}"])
        for name, value in [
            *(("max_output_tokens", value) for value in ("0", "-1", "2147483648")),
            *(("temperature", value) for value in ("-0.1", "2.1", "nan", "inf")),
            *(("top_p", value) for value in ("-0.1", "1.1", "nan")),
            *(("top_k", value) for value in ("0", "-1", "2147483648")),
            *(("frequency_penalty", value) for value in ("-2.1", "2.1", "nan")),
            *(("presence_penalty", value) for value in ("-2.1", "2.1", "nan")),
        ]
    ),
    ("Chat", chat('config { stop_sequences: "" }'), ["config.stop_sequences"]),
    ("Chat", chat("config { " + 'stop_sequences: "x" ' * 17 + "}"), ["config.stop_sequences"]),
    ("Chat", chat("config { reasoning { effort: 0 } }"), ["config.reasoning.effort"]),
    ("Chat", chat("config { reasoning { effort: 99 } }"), ["config.reasoning.effort"]),
    ("Chat", chat("config { reasoning { budget_tokens: -1 } }"), ["config.reasoning.budget_tokens"]),
    ("Chat", chat("tools {}"), ["tools[0]"]),
    ("Chat", chat("tools { function {} }"), ["tools[0].function.name"]),
    ("Chat", chat('tools { function { name: "a b" } }'), ["tools[0].function.name"]),
    ("Chat", chat(f'tools {{ function {{ name: "{"a" * 129}" }} }}'), ["tools[0].function.name"]),
    ("Chat", chat('tools { function { name: "f" } } tools { function { name: "f" } }'), ["tools[1].function.name"]),
    (
        "Chat",
        chat('tools { function { name: "f" parameters_json_schema: "{" } }'),
        ["tools[0].function.parameters_json_schema"],
    ),
    (
        "Chat",
        chat('tools { function { name: "f" parameters_json_schema: "[]" } }'),
        ["tools[0].function.parameters_json_schema"],
    ),
    (
        "Chat",
        chat('tools { function { name: "f" parameters_json_schema: "{\\"type\\": \\"array\\"}" } }'),
        ["tools[0].function.parameters_json_schema"],
    ),
    ("Chat", chat('tools { provider_tool_json: "7" }'), ["tools[0].provider_tool_json"]),
    ("Chat", chat("tool_choice {}"), ["tool_choice"]),
    ("Chat", chat("tool_choice { mode: 0 }"), ["tool_choice.mode"]),
    ("Chat", chat("tool_choice { mode: TOOL_CHOICE_MODE_REQUIRED }"), ["tool_choice.mode"]),
    ("Chat", chat('tool_choice { function_name: "f" }'), ["tool_choice.function_name"]),
    (
        "Chat",
        chat('tools { function { name: "f" } } tool_choice { function_name: "g" }'),
        ["tool_choice.function_name"],
    ),
    ("Chat", chat("response_format {}"), ["response_format"]),
    ("Chat", chat('response_format { json_schema { schema_json: "{}" } }'), ["response_format.json_schema.name"]),
    (
        "Chat",
        chat('response_format { json_schema { name: "n" } }'),
        ["response_format.json_schema.schema_json"],
    ),
    (
        "Chat",
        chat('response_format { json_schema { name: "n" schema_json: "7" } }'),
        ["response_format.json_schema.schema_json"],
    ),
    # --- connectors
    ("CreateConnector", "", ["credential"]),
    ("CreateConnector", f'parent: "acme/" {NAMED} {KEY}', ["parent"]),
    ("CreateConnector", f'parent: "{OWNER}" {NAMED}', ["credential"]),
    ("CreateConnector", f'parent: "{OWNER}" {NAMED} credential {{}}', ["credential"]),
    ("CreateConnector", f'parent: "{OWNER}" {KEY}', ["connector.display_name"]),
    *(
        ("CreateConnector", f'parent: "{OWNER}" connector_id: "{id_}" {NAMED} {KEY}', ["connector_id"])
        for id_ in ("A", "9a", "-a", "a-", "a_b", "a.b", "a/b", "ä", "a\\n", "a" * 64)
    ),
    *(
        ("CreateConnector", f'parent: "{OWNER}" connector {{ {fields} }} {KEY}', [path])
        for fields, path in [
            ('display_name: "  "', "connector.display_name"),
            ('display_name: "a\\tb"', "connector.display_name"),
            (f'display_name: "{"x" * 81}"', "connector.display_name"),
            (f'display_name: "x" model_hint: "{"x" * 81}"', "connector.model_hint"),
            ('display_name: "x" model_hint: "a\\x7fb"', "connector.model_hint"),
            ('display_name: "x" model_hint: "anthropic/claude-3"', "connector.model_hint"),
            ('display_name: "x" labels { key: "A" value: "" }', "connector.labels"),
            ('display_name: "x" settings { connect_timeout { seconds: 61 } }', "connector.settings.connect_timeout"),
            (
                'display_name: "x" settings { connect_timeout { nanos: 99999999 } }',
                "connector.settings.connect_timeout",
            ),
            ('display_name: "x" settings { idle_timeout { seconds: -1 } }', "connector.settings.idle_timeout"),
            ('display_name: "x" settings { call_timeout { seconds: 86401 } }', "connector.settings.call_timeout"),
            ('display_name: "x" settings { first_byte_timeout {} }', "connector.settings.first_byte_timeout"),
        ]
    ),
    *(
        ("CreateConnector", credential(inner), [f"credential.{path}"])
        for inner, path in [
            ("openai {}", "openai.api_key"),
            ('openai { api_key: "" }', "openai.api_key"),
            ('openai { api_key: "   " }', "openai.api_key"),
            ('openai { api_key: "a\\nb" }', "openai.api_key"),
            ('openai { api_key: "schl\\303\\274ssel" }', "openai.api_key"),
            (f'openai {{ api_key: "{LONG}" }}', "openai.api_key"),
            ('openai { api_key: "sk-ant-0123456789" }', "openai.api_key"),
            ('openai { api_key: "sk-admin-0123456789" }', "openai.api_key"),
            ('anthropic { api_key: "sk-proj-0123456789" }', "anthropic.api_key"),
            ('openai { api_key: "k" endpoint: "api.openai.com" }', "openai.endpoint"),
            ('openai { api_key: "k" endpoint: "https://u:p@api.openai.com" }', "openai.endpoint"),
            ('openai { api_key: "k" endpoint: "https://api.openai.com/v1?x=1" }', "openai.endpoint"),
            ('openai { api_key: "k" endpoint: "https://api.openai.com/v1/chat/completions" }', "openai.endpoint"),
            ("openai_compatible {}", "openai_compatible.base_url"),
            ('openai_compatible { base_url: "ftp://x.example" }', "openai_compatible.base_url"),
            ('openai_compatible { base_url: "http://8.8.8.8/v1" }', "openai_compatible.base_url"),
            (
                'openai_compatible { base_url: "https://x.example" headers { key: "host" value: "y" } }',
                "openai_compatible.headers",
            ),
            (
                'openai_compatible { base_url: "https://x.example" headers { key: "a b" value: "y" } }',
                "openai_compatible.headers",
            ),
            (
                'openai_compatible { base_url: "https://x.example" headers { key: "x" value: "a\\r\\nb: c" } }',
                "openai_compatible.headers",
            ),
            (
                'openai_compatible { base_url: "https://x.example" max_tokens_field: "tokens" }',
                "openai_compatible.max_tokens_field",
            ),
            ('plugin { fields_json: "{}" }', "plugin.type"),
            ('plugin { type: "openai" fields_json: "{}" }', "plugin.type"),
            ('plugin { type: "x" fields_json: "[]" }', "plugin.fields_json"),
        ]
    ),
    ("RotateCredential", f"{MAIN}", ["credential"]),
    ("RotateCredential", f"{MAIN} credential {{ openai_compatible {{}} }}", ["credential.openai_compatible"]),
    (
        "RotateCredential",
        f'{MAIN} credential {{ openai_compatible {{ api_key: "" }} }}',
        ["credential.openai_compatible.api_key"],
    ),
    (
        "RotateCredential",
        f'{MAIN} credential {{ openai_compatible {{ base_url: " " }} }}',
        ["credential.openai_compatible.base_url"],
    ),
    ("RotateCredential", f"{MAIN} {KEY}", ["credential"]),
    *(
        (rpc, f'name: "{name}"' + more, ["name"])
        for name in (
            "",
            "main",
            "owners/acme",
            "owners/acme/connectors/",
            "owners/a/connectors/b/c",
            "owners/A/connectors/b",
        )
        for rpc, more in [
            ("GetConnector", ""),
            ("DeleteConnector", ""),
            ("TestConnector", ""),
            ("SetDefaultConnector", ""),
            ("RotateCredential", f" {KEY}"),
        ]
    ),
    ("UpdateConnector", 'update_mask { paths: "display_name" } connector { display_name: "x" }', ["connector.name"]),
    ("UpdateConnector", f"connector {{ {MAIN} }}", ["update_mask"]),
    *(
        ("UpdateConnector", f'connector {{ {MAIN} }} update_mask {{ paths: "{path}" }}', ["update_mask"])
        for path in ("*", "name", "type", "credential", "etag", "monthly_token_cap", "settings.nothing", "")
    ),
    (
        "UpdateConnector",
        f'connector {{ {MAIN} display_name: " " }} update_mask {{ paths: "display_name" }}',
        ["connector.display_name"],
    ),
    *(
        (
            "UpdateConnector",
            f'connector {{ {MAIN} state: {state} }} update_mask {{ paths: "state" }}',
            ["connector.state"],
        )
        for state in ("0", "99", "CONNECTOR_STATE_REVOKED", "CONNECTOR_STATE_AUTH_INVALID")
    ),
    ("TestConnector", f'{MAIN} model: "{"m" * 257}"', ["model"]),
    ("SetFeaturePreference", f'parent: "{OWNER}" feature: "F" connector: "{OWNER}/connectors/main"', ["feature"]),
    ("SetFeaturePreference", f'parent: "{OWNER}" connector: "{OWNER}/connectors/main"', ["feature"]),
    ("SetFeaturePreference", f'parent: "{OWNER}" feature: "f" connector: "main"', ["connector"]),
    ("ClearFeaturePreference", f'parent: "{OWNER}" feature: "a b"', ["feature"]),
    ("ClearDefaultConnector", 'parent: "owners/"', ["parent"]),
    ("GetEffectivePolicy", 'parent: "owners/A"', ["parent"]),
    ("ListConnectorModels", 'parent: "main"', ["parent"]),
    *(
        (rpc, f"{parent} {fields}", [path])
        for rpc, parent in [
            ("ListConnectors", f'parent: "{OWNER}"'),
            ("ListFeaturePreferences", f'parent: "{OWNER}"'),
            ("ListTokens", ""),
        ]
        for fields, path in [
            ("page_size: -1", "page_size"),
            ('page_token: "x"', "page_token"),
            ('page_token: "\\303\\251"', "page_token"),
            ('filter: "nothing = 1"', "filter"),
            ('filter: "type ="', "filter"),
            ('filter: "= = ="', "filter"),
            (f'filter: "{"(" * 5000}"', "filter"),
            ('order_by: "nothing"', "order_by"),
            ('order_by: "name; DROP TABLE calls"', "order_by"),
        ]
    ),
    # --- administration
    *(
        ("CreateToken", f"token {{ {fields} }}", [f"token.{path}"])
        for fields, path in [
            ('scopes: SCOPE_CHAT any_owner: true display_name: ""', "display_name"),
            (f'scopes: SCOPE_CHAT any_owner: true display_name: "{"x" * 81}"', "display_name"),
            ('scopes: SCOPE_CHAT any_owner: true display_name: "a\\nb"', "display_name"),
            ('display_name: "t" any_owner: true', "scopes"),
            ('display_name: "t" any_owner: true scopes: SCOPE_CHAT scopes: SCOPE_CHAT', "scopes"),
            ('display_name: "t" any_owner: true scopes: 0', "scopes[0]"),
            ('display_name: "t" any_owner: true scopes: 99', "scopes[0]"),
            ('display_name: "t" scopes: SCOPE_CHAT owner: "owners/A"', "owner"),
            (TOKEN + " expire_time { seconds: 1 }", "expire_time"),
            (TOKEN + " expire_time { seconds: 999999999999 }", "expire_time"),
            (TOKEN + " expire_time { seconds: 4000000000 nanos: -1 }", "expire_time"),
        ]
    ),
    *(
        ("CreateToken", f'token {{ display_name: "t" scopes: SCOPE_CHAT {binding} }}', ["token"])
        for binding in ("", "any_owner: false", 'owner: ""')
    ),
    *(("RevokeToken", f'name: "{name}"', ["name"]) for name in ("", "x", "tokens/", "owners/acme")),
    ("UpdatePolicy", "", ["update_mask"]),
    ("UpdatePolicy", policy("*", ""), ["update_mask"]),
    ("UpdatePolicy", policy("etag", 'etag: "1"'), ["update_mask"]),
    ("UpdatePolicy", policy("nothing", ""), ["update_mask"]),
    (
        "UpdatePolicy",
        policy("call_log_retention_days", "call_log_retention_days: 6"),
        ["policy.call_log_retention_days"],
    ),
    (
        "UpdatePolicy",
        policy("call_log_retention_days", "call_log_retention_days: 366"),
        ["policy.call_log_retention_days"],
    ),
    ("UpdatePolicy", policy("call_log_retention_days", ""), ["policy.call_log_retention_days"]),
    ("UpdatePolicy", policy("default_fallback", ""), ["policy.default_fallback"]),
    ("UpdatePolicy", policy("default_fallback", "default_fallback: 99"), ["policy.default_fallback"]),
    ("UpdatePolicy", policy("private_http", "private_http: 99"), ["policy.private_http"]),
    (
        "UpdatePolicy",
        policy("allowed_connector_types", 'allowed_connector_types { types: "nothing" }'),
        ["policy.allowed_connector_types"],
    ),
    *(
        ("UpdatePolicy", policy("host_allow_list", f'host_allow_list: "{host}"'), ["policy.host_allow_list"])
        for host in ("", "*", "https://x.example", "x.example/v1", "x.example:443", "*.*.example", "a b")
    ),
    ("UpdatePolicy", policy("model_aliases", 'model_aliases { key: "default" value: "x" }'), ["policy.model_aliases"]),
    ("UpdatePolicy", policy("model_aliases", 'model_aliases { key: "a" value: "" }'), ["policy.model_aliases"]),
    (
        "UpdatePolicy",
        policy("model_aliases", 'model_aliases { key: "patchbay/x" value: "y" }'),
        ["policy.model_aliases"],
    ),
    (
        "UpdatePolicy",
        policy("org_default_connector", 'org_default_connector: "main"'),
        ["policy.org_default_connector"],
    ),
]

UNFIT: list[tuple[str, Reason, str]] = [
    *(
        (f'provider_options_json: "{{\\"{name}\\": 1}}"', Reason.INVALID_REQUEST, "provider_options_json")
        for name in ("model", "messages", "stream", "api_key")
    ),
    ("config { reasoning { budget_tokens: 5 } }", Reason.FEATURE_UNSUPPORTED, "config.reasoning.budget_tokens"),
]
"""What only the provider's adapter can judge: the call is recorded, and nobody is asked."""

OTHERS: list[tuple[str, str, Reason, list[str]]] = [
    ("Chat", chat('connector: "nobody"'), Reason.CONNECTOR_NOT_FOUND, ["connector"]),
    ("Chat", chat('connector: "owners/others/connectors/main"'), Reason.CONNECTOR_NOT_FOUND, ["connector"]),
    ("Chat", f'owner: "owners/empty" {SAID}', Reason.CONNECTOR_NOT_CONFIGURED, []),
    ("Chat", chat('connector: "disabled"'), Reason.CONNECTOR_INACTIVE, ["connector"]),
    ("GetConnector", f'name: "{OWNER}/connectors/nobody"', Reason.CONNECTOR_NOT_FOUND, ["name"]),
    ("DeleteConnector", f'name: "{OWNER}/connectors/nobody"', Reason.CONNECTOR_NOT_FOUND, ["name"]),
    ("DeleteConnector", f'{MAIN} etag: "999"', Reason.ETAG_MISMATCH, ["etag"]),
    (
        "RotateCredential",
        f'{MAIN} etag: "x" credential {{ openai_compatible {{ api_key: "k" }} }}',
        Reason.ETAG_MISMATCH,
        ["etag"],
    ),
    ("SetDefaultConnector", f'name: "{OWNER}/connectors/disabled"', Reason.CONNECTOR_INACTIVE, ["name"]),
    (
        "SetFeaturePreference",
        f'parent: "{OWNER}" feature: "f" connector: "{OWNER}/connectors/disabled"',
        Reason.CONNECTOR_INACTIVE,
        ["connector"],
    ),
    (
        "SetFeaturePreference",
        f'parent: "{OWNER}" feature: "f" connector: "owners/others/connectors/main"',
        Reason.CONNECTOR_NOT_FOUND,
        ["connector"],
    ),
    (
        "CreateConnector",
        f'parent: "{OWNER}" connector_id: "main" {NAMED} {KEY}',
        Reason.ALREADY_EXISTS,
        ["connector_id"],
    ),
    (
        "CreateConnector",
        f'parent: "{OWNER}" connector {{ display_name: "main" }} {KEY}',
        Reason.ALREADY_EXISTS,
        ["connector.display_name"],
    ),
    (
        "CreateConnector",
        credential('openai_compatible { base_url: "http://10.0.0.1/v1" }'),
        Reason.POLICY_DENIED,
        ["credential.openai_compatible.base_url"],
    ),
    ("RevokeToken", 'name: "tokens/0123456789ab"', Reason.RESOURCE_NOT_FOUND, ["name"]),
    (
        "UpdatePolicy",
        policy("org_default_connector", f'org_default_connector: "{OWNER}/connectors/nobody"'),
        Reason.CONNECTOR_NOT_FOUND,
        ["policy.org_default_connector"],
    ),
    (
        "UpdatePolicy",
        policy("org_default_connector", f'org_default_connector: "{OWNER}/connectors/disabled"'),
        Reason.CONNECTOR_INACTIVE,
        ["policy.org_default_connector"],
    ),
    (
        "UpdatePolicy",
        policy("private_http", 'private_http: PRIVATE_HTTP_NONE etag: "999"'),
        Reason.ETAG_MISMATCH,
        ["policy.etag"],
    ),
    ("CountTokens", "", Reason.NOT_IMPLEMENTED, []),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayHere]:
    async with gateway_here(tmp_path_factory.mktemp("bad") / "data") as gateway:
        await gateway.client.add_connector("https://llm.example/v1", "disabled")
        await call(
            gateway.client,
            "UpdateConnector",
            f'connector {{ name: "{OWNER}/connectors/disabled" state: CONNECTOR_STATE_DISABLED }}'
            ' update_mask { paths: "state" }',
        )
        yield gateway
        assert not gateway.provider.requests, "the provider was asked"


def request_of(rpc: str, fields: str) -> Message:
    message: Message = GetMessageClass(SERVICES[rpc].input_type)()
    return text_format.Parse(fields, message)


async def call(client: Client, rpc: str, fields: str, **options: Any) -> Any:
    """One RPC of any service; a stream is read to its end."""
    method = SERVICES[rpc]
    path = f"/{method.containing_service.full_name}/{rpc}"
    answer = GetMessageClass(method.output_type)
    asked = {"metadata": client.metadata, "timeout": 10.0} | options
    serialize = method.input_type._concrete_class.SerializeToString
    stub: Any = client.channel.unary_stream(path, serialize, answer.FromString)
    return await read(stub(request_of(rpc, fields), **asked))


async def refused(here: GatewayHere, rpc: str, fields: str) -> Failure:
    before = here.records.counts()
    failure = await failure_of(call(here.client, rpc, fields))
    await here.service.recorder.flush()
    assert here.records.counts() == before, "something was written"
    assert failure.code.name == RULES[Reason(failure.reason)].code.name
    assert len(failure.status.SerializeToString()) < 4096
    return failure


@pytest.mark.parametrize(("rpc", "fields", "paths"), INVALID, ids=lambda value: str(value)[:60])
async def test_a_malformed_request_names_its_field_and_writes_nothing(
    here: GatewayHere, rpc: str, fields: str, paths: list[str]
) -> None:
    failure = await refused(here, rpc, fields)
    assert (failure.reason, failure.code) == ("INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT), failure.message
    assert failure.fields == paths
    assert LONG not in str(failure.message)


@pytest.mark.parametrize(("rpc", "fields", "reason", "paths"), OTHERS, ids=lambda value: str(value)[:60])
async def test_a_request_that_cannot_be_met_says_why_and_writes_nothing(
    here: GatewayHere, rpc: str, fields: str, reason: Reason, paths: list[str]
) -> None:
    failure = await refused(here, rpc, fields)
    assert failure.reason == reason.value, failure.message
    assert ("BadRequest" in failure.details and failure.fields) == (bool(paths) and paths)


@pytest.mark.parametrize(("fields", "reason", "path"), UNFIT, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("rpc", ["Chat", "Stream"])
async def test_what_a_provider_cannot_be_asked_is_refused_by_name_and_recorded(
    here: GatewayHere, rpc: str, fields: str, reason: Reason, path: str
) -> None:
    before = here.records.states()
    failure = await failure_of(call(here.client, rpc, chat(fields)))
    assert (failure.reason, failure.fields) == (reason.value, [path]), failure.message
    made = {call_id: state for call_id, state in here.records.states().items() if call_id not in before}
    assert made == {failure.details["ErrorInfo"].metadata["call_id"]: "failed"}


async def test_every_fault_of_a_request_is_named(here: GatewayHere) -> None:
    faults = chat('feature: "A B" min_quality: 7 config { temperature: 9 top_p: 9 } tool_choice { function_name: "f" }')
    failure = await refused(here, "Chat", faults)
    assert failure.fields == [
        *("feature", "min_quality", "config.temperature", "config.top_p", "tool_choice.function_name")
    ]


# --- who asks ---------------------------------------------------------------------------------------------------------


HEADERS = [
    (),
    (("authorization", ""),),
    (("authorization", "Bearer"),),
    (("authorization", "Bearer "),),
    (("authorization", "Bearer x"),),
    (("authorization", "Basic dXNlcjpwYXNz"),),
    (("authorization", f"Bearer pb_0123456789ab_{'x' * 43}"),),
    (("authorization", f"Bearer {'x' * 5000}"),),
    (("authorization-bin", b"Bearer x"),),
    (("authorization", "Bearer x"), ("authorization", "Bearer y")),
]


@pytest.mark.parametrize("metadata", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("rpc", ["Chat", "Stream", "GetConnector", "GetStatus", "CreateToken"])
async def test_nobody_gets_in_without_a_token(here: GatewayHere, metadata: Any, rpc: str) -> None:
    before = here.records.counts()
    failure = await failure_of(call(here.client, rpc, "", metadata=metadata))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")
    assert here.records.counts() == before


async def token_of(here: GatewayHere, fields: str) -> Client:
    [made] = await call(here.client, "CreateToken", f'token {{ display_name: "t" {fields} }}')
    return Client(here.client.channel, made.secret)


@pytest.mark.parametrize(
    ("scope", "allowed"), [("CHAT", "GatewayService"), ("CONNECTORS", "ConnectorService"), ("ADMIN", "AdminService")]
)
async def test_a_scope_opens_its_own_service_and_no_other(here: GatewayHere, scope: str, allowed: str) -> None:
    client = await token_of(here, f"any_owner: true scopes: SCOPE_{scope}")
    for rpc, method in SERVICES.items():
        if method.containing_service.name != allowed:
            failure = await failure_of(call(client, rpc, ""))
            assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_AUTHORIZED"), rpc


async def test_a_token_of_one_owner_sees_nothing_of_another(here: GatewayHere) -> None:
    client = await token_of(
        here, 'owner: "owners/others" scopes: SCOPE_CHAT scopes: SCOPE_CONNECTORS scopes: SCOPE_ADMIN'
    )
    before = here.records.counts()

    async def reason(rpc: str, fields: str) -> str:
        return (await failure_of(call(client, rpc, fields))).reason

    for rpc in ("GetConnector", "DeleteConnector", "TestConnector", "SetDefaultConnector"):
        theirs = await failure_of(call(client, rpc, MAIN))
        nobodys = await failure_of(call(client, rpc, f'name: "{OWNER}/connectors/nobody"'))
        assert theirs.status == nobodys.status, "it can be told whether the connector exists"
        assert theirs.reason == "CONNECTOR_NOT_FOUND"
    assert await reason("Chat", f'connector: "{OWNER}/connectors/main" {SAID}') == "CONNECTOR_NOT_FOUND"
    assert await reason("Chat", f'owner: "{OWNER}" {SAID}') == "CALLER_NOT_AUTHORIZED"
    for rpc in ("ListConnectors", "ListFeaturePreferences", "GetEffectivePolicy", "ClearDefaultConnector"):
        assert await reason(rpc, f'parent: "{OWNER}"') == "CALLER_NOT_AUTHORIZED"
    assert await reason("CreateConnector", f'parent: "{OWNER}" {NAMED} {KEY}') == "CALLER_NOT_AUTHORIZED"
    for rpc in ("GetPolicy", "UpdatePolicy", "CreateToken", "ListTokens", "RevokeToken", "GetStatus"):
        assert await reason(rpc, "") == "CALLER_NOT_AUTHORIZED"
    assert here.records.counts() == before
    [listed] = await call(client, "ListConnectors", "")
    assert not listed.connectors


# --- what is no request at all ----------------------------------------------------------------------------------------


async def sent(here: GatewayHere, path: str, data: bytes, **options: Any) -> Any:
    stub: Any = here.client.channel.unary_stream(path, lambda raw: raw, lambda raw: raw)
    return await read(stub(data, **({"metadata": here.client.metadata, "timeout": 10.0} | options)))


GARBAGE = [b"\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe", secrets.token_bytes(100), b"\x2a" + b"\x80" * 20, b"{}"]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("path", ["GatewayService/Chat", "GatewayService/Stream", "ConnectorService/CreateConnector"])
async def test_bytes_that_are_no_message_are_a_failure_of_their_sender(
    here: GatewayHere, path: str, data: bytes
) -> None:
    before = here.records.counts()
    failure = await failure_of(sent(here, f"/patchbay.v1.{path}", data))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert here.records.counts() == before


async def test_what_is_nested_without_end_is_refused(here: GatewayHere) -> None:
    data = b""
    for _ in range(200):  # messages[0].parts[0].tool_result.parts[0]...
        data = b"\x2a" + _length(data) + data  # ContentPart.tool_result
        data = b"\x12" + _length(data) + data  # ToolResult.parts
    part = b"\x2a" + _length(data) + data
    message = b"\x08\x04\x12" + _length(part) + part
    failure = await failure_of(sent(here, "/patchbay.v1.GatewayService/Chat", b"\x2a" + _length(message) + message))
    assert failure.reason == "INVALID_REQUEST"


def _length(data: bytes) -> bytes:
    size, encoded = len(data), b""
    while size > 0x7F:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return encoded + bytes([size])


async def test_a_message_beyond_the_bound_is_refused_before_it_is_read(here: GatewayHere) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await sent(here, "/patchbay.v1.GatewayService/Chat", b"\x2a" + bytes(33 * 1024 * 1024))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "path", ["/patchbay.v1.GatewayService/Nothing", "/nothing/Nothing", "/patchbay.v1.GatewayService/chat"]
)
async def test_there_is_no_other_rpc(here: GatewayHere, path: str) -> None:
    failure = await failure_of(sent(here, path, b""))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    nobody = await failure_of(sent(here, path, b"", metadata=()))
    assert nobody.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_deadline_that_has_passed_is_a_failure_of_time(here: GatewayHere) -> None:
    call_ = here.client.chat(timeout=0.0)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await read(call_)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
