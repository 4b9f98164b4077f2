"""The words of the gateway: calls, messages, events, connectors, policy, records.

Every value is immutable and knows no transport, provider or table. JSON whose shape is not ours travels as text
(`..._json`), so that key order and 64-bit integers survive. Moments are aware UTC datetimes and end in `_at`.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NoReturn

import msgspec

from patchbay_server.errors import Reason, UpstreamFailure
from patchbay_server.usage import Usage

# --- content ----------------------------------------------------------------------------------------------------------


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    text: str
    cache_breakpoint: bool = False


class MediaPart(msgspec.Struct, frozen=True, kw_only=True, tag="media"):
    """An image, sound or file. Exactly one of `data`, `uri` and `provider_file_id` is set."""

    mime_type: str = ""
    data: bytes | None = None
    uri: str | None = None
    provider_file_id: str | None = None
    file_name: str = ""
    cache_breakpoint: bool = False


class ReasoningPart(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    """Reasoning of the model. `provider_state` is the provider's signature or encrypted form, to be sent back byte for
    byte.
    """

    text: str = ""
    provider_state: bytes = b""
    cache_breakpoint: bool = False


class ToolCallPart(msgspec.Struct, frozen=True, kw_only=True, tag="tool_call"):
    """The model asks for a tool. `arguments_json` is as the model wrote it; `{}` when it wrote nothing."""

    id: str
    name: str
    arguments_json: str = "{}"
    provider_state: bytes = b""
    cache_breakpoint: bool = False


class ToolResultPart(msgspec.Struct, frozen=True, kw_only=True, tag="tool_result"):
    """What a tool answered: text and media parts only."""

    tool_call_id: str
    parts: tuple[TextPart | MediaPart, ...] = ()
    failed: bool = False
    cache_breakpoint: bool = False


class RefusalPart(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    text: str
    cache_breakpoint: bool = False


Part = TextPart | MediaPart | ReasoningPart | ToolCallPart | ToolResultPart | RefusalPart


class Message(msgspec.Struct, frozen=True, kw_only=True):
    role: Role
    parts: tuple[Part, ...]
    author_name: str = ""


# --- what a caller asks for -------------------------------------------------------------------------------------------


class Effort(StrEnum):
    """How much a model reasons. A provider or model takes a subset."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    """At most one of `effort` and `budget_tokens` is set. `include_text` asks for readable reasoning."""

    effort: Effort | None = None
    budget_tokens: int | None = None
    include_text: bool = False


class GenerationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Generation knobs. None (or no stop sequence) leaves the provider's default."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning: ReasoningConfig | None = None
    parallel_tool_calls: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A function that the model may call. `parameters_json_schema` is a JSON object or empty for no parameters."""

    name: str
    description: str = ""
    parameters_json_schema: str = ""
    strict: bool | None = None


class ProviderTool(msgspec.Struct, frozen=True, kw_only=True, tag="provider"):
    """A provider's own tool: its JSON object, sent as it is."""

    json: str


Tool = FunctionTool | ProviderTool


class ToolMode(StrEnum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`mode`, or the name of the one function that must be called."""

    mode: ToolMode | None = None
    function_name: str | None = None


class TextFormat(msgspec.Struct, frozen=True, tag="text"):
    pass


class JsonObjectFormat(msgspec.Struct, frozen=True, tag="json_object"):
    pass


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True, tag="json_schema"):
    """Structured output. `schema_json` is a JSON object."""

    name: str
    schema_json: str
    strict: bool | None = None


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class FallbackMode(StrEnum):
    NONE = "none"
    ORG_DEFAULT = "org_default"
    RETRY_THEN_ORG_DEFAULT = "retry_then_org_default"
    OWNER_CHAIN = "owner_chain"


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is to be given, in the gateway's own words, before a connector is chosen.

    `drop_unsupported` allows generation knobs (never content) that the provider refuses to be left out, each with a
    notice. `provider_options_json` is a JSON object merged into the provider's body, or empty.
    """

    messages: tuple[Message, ...]
    config: GenerationConfig = GenerationConfig()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    response_format: ResponseFormat | None = None
    drop_unsupported: bool = False
    provider_options_json: str = ""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One `Chat` or `Stream`. Empty strings mean "not given": the caller's own owner, the resolved connector, the
    connector's model.
    """

    prompt: Prompt
    owner: str = ""
    feature: str = ""
    connector: str = ""
    model: str = ""
    fallback: FallbackMode | None = None
    min_quality: float | None = None
    labels: Mapping[str, str] = {}
    request_id: str = ""
    content_hash: bytes = b""
    """SHA-256 of the request as received, to tell a retry from a reuse of `request_id`; not kept after the call."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's input for an adapter: the prompt, the model that was decided on, and how the answer is to come."""

    id: str
    model: str
    prompt: Prompt
    streaming: bool


# --- what a provider answers: the events an adapter's reader gives, in this order -------------------------------------


class FinishReason(StrEnum):
    STOP = "stop"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    CONTEXT_LENGTH = "context_length"
    PAUSE = "pause"
    OTHER = "other"


class NoticeCode(StrEnum):
    TOOL_ARGUMENTS_INVALID_JSON = "TOOL_ARGUMENTS_INVALID_JSON"
    FIELD_DROPPED = "FIELD_DROPPED"
    PROVIDER_STATE_LEFT_OUT = "PROVIDER_STATE_LEFT_OUT"
    TOOL_CALL_ID_ASSIGNED = "TOOL_CALL_ID_ASSIGNED"
    USAGE_ESTIMATED = "USAGE_ESTIMATED"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Something the caller should know about an answer that is otherwise complete. `field` is a request or answer path,
    or empty.
    """

    code: NoticeCode
    message: str
    field: str = ""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """The provider began to answer. Either may be empty when it did not say."""

    upstream_id: str = ""
    model: str = ""


class TextDelta(msgspec.Struct, frozen=True, gc=False, tag="text_delta"):
    part_index: int
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False, tag="reasoning_delta"):
    part_index: int
    text: str


class ToolCallStarted(msgspec.Struct, frozen=True, gc=False, tag="tool_call_started"):
    part_index: int
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False, tag="tool_call_delta"):
    part_index: int
    arguments_json: str


class PartCompleted(msgspec.Struct, frozen=True, tag="part_completed"):
    """A part is whole: its deltas add up to it. Part indexes count 0, 1, 2, ... in the order in which parts began."""

    part_index: int
    part: Part


class UsageUpdated(msgspec.Struct, frozen=True, tag="usage_updated"):
    """Running totals; the last one wins."""

    usage: Usage


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The provider's own terminal marker was seen. `usage` is None when it reported none."""

    finish_reason: FinishReason
    provider_finish_reason: str = ""
    usage: Usage | None = None
    notices: tuple[Notice, ...] = ()


Delta = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta
Event = Opened | Delta | PartCompleted | UsageUpdated | Finished


# --- what the gateway answers -----------------------------------------------------------------------------------------


class ResolvedBy(StrEnum):
    """Which step of the resolution named the connector."""

    REQUEST = "request"
    FEATURE_PREFERENCE = "feature_preference"
    OWNER_DEFAULT = "owner_default"
    LAST_USED = "last_used"
    ORG_DEFAULT = "org_default"
    ROUTING = "routing"
    FALLBACK = "fallback"


class UpstreamMode(StrEnum):
    UNARY = "unary"
    STREAMING = "streaming"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one connector. `reason` is None for the one that answered."""

    connector: str
    model: str
    reason: Reason | None
    latency_s: float


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered and how it came to that. `connector` is a name, or empty where the caller may not see it."""

    connector: str
    provider: str
    requested_model: str
    model: str
    upstream_request_id: str
    resolved_by: ResolvedBy
    mode: UpstreamMode
    attempts: tuple[Attempt, ...] = ()


class ChatStarted(msgspec.Struct, frozen=True, kw_only=True):
    call_id: str
    created_at: datetime
    route: Route


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    call_id: str
    created_at: datetime
    route: Route
    message: Message
    finish_reason: FinishReason
    provider_finish_reason: str
    usage: Usage
    notices: tuple[Notice, ...] = ()


class ChatCompleted(msgspec.Struct, frozen=True, kw_only=True):
    """The one terminal event; the call's record is durable by the time it is seen."""

    answer: ChatAnswer


ChatEvent = ChatStarted | Delta | PartCompleted | UsageUpdated | ChatCompleted


# --- secrets ----------------------------------------------------------------------------------------------------------


class Secret:
    """Opened credential fields. Prints as `***`, is not picklable, and is handed to an adapter's `prepare` only."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)

    def text(self, name: str, default: str = "") -> str:
        """The text field `name`, or `default` when it is not set."""
        value = self._fields.get(name, default)
        return value if isinstance(value, str) else default

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._fields.get(name, default)
        return value if isinstance(value, bool) else default

    def pairs(self, name: str) -> Mapping[str, str]:
        """The map field `name` (such as extra headers), or an empty map."""
        value = self._fields.get(name)
        return value if isinstance(value, dict) else {}

    def reveal(self) -> dict[str, Any]:
        """All fields, for sealing and for showing the non-secret ones."""
        return dict(self._fields)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret does not leave the process")


class Sealed(msgspec.Struct, frozen=True):
    """Encrypted credential fields, bound to one connector uid, and the id of the master key that sealed them."""

    blob: bytes
    key_id: str


# --- connectors and policy --------------------------------------------------------------------------------------------


class ConnectorState(StrEnum):
    ACTIVE = "active"
    AUTH_INVALID = "auth_invalid"
    DISABLED = "disabled"
    REVOKED = "revoked"


class CapMode(StrEnum):
    """What happens at a connector's `monthly_token_cap`; means nothing without one."""

    SOFT = "soft"
    """Checked before a call; a call that was admitted may pass the cap."""
    HARD = "hard"
    """A call holds its upper bound beforehand, so that calls together do not pass the cap."""


class CheckResult(StrEnum):
    """Verdict of one cheap real call to a provider."""

    OK = "ok"
    AUTH_INVALID = "auth_invalid"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    ERROR = "error"


class ConnectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A connector's own limits, in seconds; None leaves the service's."""

    connect_timeout_s: float | None = None
    first_byte_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    call_timeout_s: float | None = None


class Connector(msgspec.Struct, frozen=True, kw_only=True):
    """One owner's sealed credential for one provider.

    `uid` never changes and is never reused; (`owner`, `id`) is the address. `version` grows with every change and is
    the etag.
    """

    uid: str
    owner: str
    id: str
    type: str
    display_name: str
    sealed: Sealed
    model_hint: str | None = None
    state: ConnectorState = ConnectorState.ACTIVE
    is_default: bool = False
    settings: ConnectorSettings = ConnectorSettings()
    labels: Mapping[str, str] = {}
    monthly_token_cap: int | None = None
    cap_mode: CapMode = CapMode.SOFT
    last_used_at: datetime | None = None
    last_test_at: datetime | None = None
    last_test_result: CheckResult | None = None
    rotated_at: datetime
    created_at: datetime
    updated_at: datetime
    version: int = 1

    @property
    def name(self) -> str:
        return f"owners/{self.owner}/connectors/{self.id}"


class PrivateHttp(StrEnum):
    """How far connectors may reach into non-public networks."""

    NONE = "none"
    LOOPBACK = "loopback"
    PRIVATE = "private"


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars in billionths per million tokens, by kind; None leaves the price list's value."""

    input_usd_nanos: int | None = None
    output_usd_nanos: int | None = None
    cached_input_usd_nanos: int | None = None
    cache_write_usd_nanos: int | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What administrators allow.

    `allowed_types` None allows every registered type; an empty tuple allows none. `host_allow_list` empty allows every
    host that the address rules allow; an entry is a host name, or `*.` and a domain for all hosts below it.
    `organisation_default` is a connector's resource name or None.
    """

    allowed_types: tuple[str, ...] | None = None
    host_allow_list: tuple[str, ...] = ()
    private_http: PrivateHttp = PrivateHttp.NONE
    organisation_default: str | None = None
    call_log_retention_days: int = 30
    default_fallback: FallbackMode = FallbackMode.NONE
    model_aliases: Mapping[str, str] = {}
    quality_priors: Mapping[str, float] = {}
    price_overrides: Mapping[str, Price] = {}
    updated_at: datetime
    version: int = 1


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    feature: str
    connector_uid: str
    connector: str
    updated_at: datetime


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to resolve a call of one owner, as of one version of the store.

    `connectors` are the owner's in any state; `organisation_default` is the connector that policy names if it exists,
    whoever owns it.
    """

    version: int
    owner: str
    connectors: tuple[Connector, ...]
    preferences: Mapping[str, str]
    """Feature -> connector uid."""
    organisation_default: Connector | None
    policy: Policy
    unreadable: frozenset[str] = frozenset()
    """Ids of the owner's connectors that are stored and cannot be read."""


# --- access -----------------------------------------------------------------------------------------------------------


class Scope(StrEnum):
    CHAT = "chat"
    CONNECTORS = "connectors"
    ADMIN = "admin"


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's bearer token as stored. `owner` None acts for any owner."""

    id: str
    digest: bytes
    display_name: str
    scopes: frozenset[Scope]
    owner: str | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling, once authenticated. `id` is the token's id; `owner` None may act for any owner."""

    id: str
    owner: str | None
    scopes: frozenset[Scope]


# --- audit and records ------------------------------------------------------------------------------------------------


class AuditType(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    ROTATED = "rotated"
    DELETED = "deleted"
    REVOKED = "revoked"
    AUTH_INVALID = "auth_invalid"
    HEALTH_FAILED = "health_failed"
    DEFAULT_SET = "default_set"
    DEFAULT_UNSET = "default_unset"
    PREFERENCE_SET = "preference_set"
    PREFERENCE_CLEARED = "preference_cleared"
    POLICY_CHANGED = "policy_changed"
    CAP_CHANGED = "cap_changed"
    TOKEN_CREATED = "token_created"  # noqa: S105 -- the name of an event
    TOKEN_REVOKED = "token_revoked"  # noqa: S105 -- the name of an event
    KEY_ROTATED = "key_rotated"
    FALLBACK_TRIGGERED = "fallback_triggered"


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of a credential's life. Names changed fields, never values.

    `qualifier` completes the type where it has kinds (`fallback_triggered:rate_limited`). `subject` is a resource name.
    """

    type: AuditType
    at: datetime
    actor: str
    subject: str
    owner: str = ""
    connector_uid: str = ""
    qualifier: str = ""
    changed_fields: tuple[str, ...] = ()
    call_id: str = ""


class CallState(StrEnum):
    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class RoutingOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What routing among candidates came to. `connector_uid` and `model` are empty, and `quality` is None, when nothing
    was chosen.

    `reserved_model` is the one that was asked for, after aliases; `eligible_count` of `candidate_count` candidates
    cleared `quality_floor` and were allowed.
    """

    reserved_model: str
    quality_floor: float
    candidate_count: int
    eligible_count: int
    connector_uid: str = ""
    model: str = ""
    quality: float | None = None


class CallOpened(msgspec.Struct, frozen=True, kw_only=True, tag="call_opened"):
    """A call was admitted. Counts and names only: no field can hold what was said.

    `routing` None marks a direct call: the request or the resolution chose its connector.
    """

    call_id: str
    process_id: str
    caller: str
    owner: str
    feature: str
    requested_model: str
    streaming: bool
    labels: Mapping[str, str]
    request_id: str
    started_at: datetime
    routing: RoutingOutcome | None = None


class AttemptOpened(msgspec.Struct, frozen=True, kw_only=True, tag="attempt_opened"):
    call_id: str
    number: int
    """1, 2, 3, ... within the call."""
    connector_uid: str
    provider: str
    model: str
    started_at: datetime


class AttemptClosed(msgspec.Struct, frozen=True, kw_only=True, tag="attempt_closed"):
    call_id: str
    number: int
    state: CallState
    reason: Reason | None
    failure: UpstreamFailure
    usage: Usage | None
    first_output_s: float | None
    latency_s: float
    ended_at: datetime


class CallClosed(msgspec.Struct, frozen=True, kw_only=True, tag="call_closed"):
    """How a call ended. `connector_uid`, `provider` and `model` are of the attempt that counted last, or empty when
    none was made.
    """

    call_id: str
    state: CallState
    reason: Reason | None
    connector_uid: str
    provider: str
    model: str
    resolved_by: ResolvedBy | None
    finish_reason: FinishReason | None
    usage: Usage | None
    attempts: int
    first_output_s: float | None
    latency_s: float
    ended_at: datetime


class ConnectorUsed(msgspec.Struct, frozen=True, kw_only=True, tag="connector_used"):
    connector_uid: str
    at: datetime


class Audited(msgspec.Struct, frozen=True, tag="audited"):
    """An audit event that belongs to a call and is written with its records."""

    event: AuditEvent


Record = CallOpened | AttemptOpened | AttemptClosed | CallClosed | ConnectorUsed | Audited


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a connector's hard cap, 0 or more, that the attempt `number` of a call may yet use. It counts until
    `expires_at`.
    """

    call_id: str
    number: int
    connector_uid: str
    tokens: int
    expires_at: datetime


class CapUse(msgspec.Struct, frozen=True, kw_only=True):
    """What of a connector's cap is taken: tokens used in the month, and tokens of live holds."""

    tokens: int = 0
    held: int = 0


class CallRow(msgspec.Struct, frozen=True, kw_only=True):
    """A call as stored, for reading: what was opened and, unless it is still open, how it closed."""

    opened: CallOpened
    state: CallState
    closed: CallClosed | None
    attempts: tuple["AttemptRow", ...] = ()


class AttemptRow(msgspec.Struct, frozen=True, kw_only=True):
    opened: AttemptOpened
    state: CallState
    closed: AttemptClosed | None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a connector offers, as its provider describes it. None where the provider does not say."""

    id: str
    display_name: str = ""
    owned_by: str = ""
    created_at: datetime | None = None
    retires_at: datetime | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None


# --- names ------------------------------------------------------------------------------------------------------------

RESOURCE_ID: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""An owner's or connector's id: lower case, 1 to 63 characters, RFC 1034 labels that start with a letter."""
FEATURE: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
"""A feature's name."""
LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
"""The key of a label, on a call or on a connector."""
LABELS_MAX: Final = 16
LABEL_VALUE_CHARS_MAX: Final = 128
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that no name, hint or label holds."""


def month_of(moment: datetime) -> str:
    """The UTC month that caps count by, such as `2026-11`."""
    return f"{moment.year:04d}-{moment.month:02d}"
