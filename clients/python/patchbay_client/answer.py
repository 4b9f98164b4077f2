"""What comes back from the gateway: answers, how they were routed, explanations, models."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from patchbay.v1 import content_pb2
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client.content import Part, Reasoning, Refusal, Text, ToolCall, from_parts
from patchbay_client.reading import Value, Word, read
from patchbay_client.usage import Usage


class FinishReason(Word):
    """Why an answer ended."""

    STOP = "STOP"
    MAX_OUTPUT_TOKENS = "MAX_OUTPUT_TOKENS"
    TOOL_CALLS = "TOOL_CALLS"
    CONTENT_FILTER = "CONTENT_FILTER"
    REFUSAL = "REFUSAL"
    CONTEXT_LENGTH = "CONTEXT_LENGTH"
    PAUSE = "PAUSE"
    OTHER = "OTHER"


class FallbackMode(Word):
    """What happens when an attempt fails: where a call goes next."""

    NONE = "NONE"
    ORG_DEFAULT = "ORG_DEFAULT"
    RETRY_THEN_ORG_DEFAULT = "RETRY_THEN_ORG_DEFAULT"
    OWNER_CHAIN = "OWNER_CHAIN"
    OTHER = "OTHER"


class ResolvedBy(Word):
    """Which rule chose a connector."""

    REQUEST = "REQUEST"
    FEATURE_PREFERENCE = "FEATURE_PREFERENCE"
    OWNER_DEFAULT = "OWNER_DEFAULT"
    LAST_USED = "LAST_USED"
    ORG_DEFAULT = "ORG_DEFAULT"
    ROUTING = "ROUTING"
    FALLBACK = "FALLBACK"
    OTHER = "OTHER"


class UpstreamMode(Word):
    """How the provider was asked."""

    UNARY = "UNARY"
    STREAMING = "STREAMING"
    OTHER = "OTHER"


class NoticeCode(Word):
    """What a notice is about."""

    TOOL_ARGUMENTS_INVALID_JSON = "TOOL_ARGUMENTS_INVALID_JSON"
    TOOL_CALL_ID_ASSIGNED = "TOOL_CALL_ID_ASSIGNED"
    FIELD_DROPPED = "FIELD_DROPPED"
    PROVIDER_STATE_LEFT_OUT = "PROVIDER_STATE_LEFT_OUT"
    USAGE_ESTIMATED = "USAGE_ESTIMATED"
    OTHER = "OTHER"


class Capability(Word):
    """What a connector type or a model can do."""

    STREAMING = "STREAMING"
    TOOLS = "TOOLS"
    IMAGES = "IMAGES"
    AUDIO = "AUDIO"
    FILES = "FILES"
    REASONING = "REASONING"
    STRUCTURED_OUTPUT = "STRUCTURED_OUTPUT"
    MODEL_LIST = "MODEL_LIST"
    OTHER = "OTHER"


class ResolutionOutcome(Word):
    """What a rule of the resolution came to."""

    CHOSEN = "CHOSEN"
    NOT_SET = "NOT_SET"
    SKIPPED = "SKIPPED"
    NOT_REACHED = "NOT_REACHED"
    OTHER = "OTHER"


@dataclass(frozen=True, kw_only=True)
class Notice(Value[gateway_pb.Notice]):
    """Something worth knowing that is no failure."""

    code: NoticeCode
    message: str
    field: str


@dataclass(frozen=True, kw_only=True)
class Attempt(Value[gateway_pb.Attempt]):
    """One try at one connector. `error_reason` is empty for the one that answered."""

    connector: str
    model: str
    error_reason: str
    latency: timedelta | None


@dataclass(frozen=True, kw_only=True)
class Route(Value[gateway_pb.Route]):
    """Which connector answered, and how it was chosen. `connector` is empty where it belongs to another owner."""

    connector: str
    provider: str
    requested_model: str
    model: str
    upstream_request_id: str
    resolved_by: ResolvedBy | None
    upstream_mode: UpstreamMode | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class ChatAnswer(Value[gateway_pb.ChatResponse]):
    """One whole answer. It can stand in the next prompt as it is: `[*turns, answer, user("And then?")]`.

    Attributes:
        id: the call's id, as in the call log.
        create_time: when the call was admitted.
        route: which connector answered.
        finish_reason: why it ended; `provider_finish_reason` is the provider's own word, empty when it gave none.
        usage: what the call used, failed attempts included.
        notices: what else is worth knowing.
    """

    id: str
    create_time: datetime | None
    route: Route
    finish_reason: FinishReason
    provider_finish_reason: str
    usage: Usage
    notices: tuple[Notice, ...]
    raw: gateway_pb.ChatResponse = field(repr=False)  # compared, unlike in other values: it holds the parts

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Everything that the model said, in order."""
        return from_parts(self.raw.message.parts)

    @property
    def text(self) -> str:
        """The answer's text; empty when there is none, as in an answer of tool calls."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def reasoning(self) -> str:
        """The readable reasoning; empty where there is none or the provider hides it."""
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def refusal(self) -> str | None:
        """The model's words when it declined, maybe empty; None when it did not."""
        refusals = [part.text for part in self.parts if isinstance(part, Refusal)]
        return "".join(refusals) if refusals else None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model asks for, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    def json(self) -> Any:
        """The text, decoded as JSON; for answers with a `response_format`.

        Raises:
            ValueError: the text is not JSON, as when the answer was cut: see finish_reason.
        """
        return json.loads(self.text)

    def to_message(self) -> content_pb2.ChatMessage:
        """The answer as a turn of the next prompt, byte for byte."""
        return self.raw.message

    def __repr__(self) -> str:
        calls = f", tool_calls={self.tool_calls!r}" if self.tool_calls else ""
        model, finish = self.route.model, self.finish_reason.value
        return f"ChatAnswer(text={self.text!r}{calls}, finish_reason={finish}, model={model!r})"


@dataclass(frozen=True, kw_only=True)
class ResolutionStep(Value[gateway_pb.ResolutionStep]):
    """What one rule of the resolution came to; `connector` is the one it points to, empty for none."""

    rule: ResolvedBy
    outcome: ResolutionOutcome
    connector: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Candidate(Value[gateway_pb.Candidate]):
    """A connector and model that a call could go to. `error_reason` is empty unless it was refused."""

    connector: str
    provider: str
    model: str
    resolved_by: ResolvedBy | None
    error_reason: str
    error_message: str
    notices: tuple[Notice, ...]
    cap_headroom_tokens: int | None
    worst_case_cost_usd_nanos: int | None
    quality: float | None
    breaker_open: bool


@dataclass(frozen=True, kw_only=True)
class Explanation(Value[gateway_pb.ExplainResponse]):
    """What `chat` would do with a request: its attempts, in order, or the reason why it would not start."""

    error_reason: str
    error_message: str
    error_field: str
    steps: tuple[ResolutionStep, ...]
    plan: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class TokenCount(Value[gateway_pb.CountTokensResponse]):
    """A request's input tokens by the provider's own counting, and which connector counted."""

    input_tokens: int
    route: Route


@dataclass(frozen=True, kw_only=True)
class ModelPrice(Value[gateway_pb.ModelPrice]):
    """Billionths of a US dollar for one million tokens. None is unknown, which is not zero."""

    input_per_million_usd_nanos: int | None
    output_per_million_usd_nanos: int | None
    cached_input_per_million_usd_nanos: int | None
    cache_write_input_per_million_usd_nanos: int | None


@dataclass(frozen=True, kw_only=True)
class Model(Value[gateway_pb.ModelInfo]):
    """A model behind a connector. `id` is what `chat(model=...)` takes; None and empty mean unknown."""

    id: str
    display_name: str
    connector: str
    provider: str
    owned_by: str
    capabilities: tuple[Capability, ...]
    max_input_tokens: int | None
    max_output_tokens: int | None
    price: ModelPrice | None
    quality: float | None
    create_time: datetime | None
    retire_time: datetime | None


@dataclass(frozen=True)
class ModelList:
    """The models that an owner can reach. `unreachable`: connectors, by name, whose models could not be listed."""

    models: tuple[Model, ...]
    unreachable: tuple[str, ...]


def read_model_list(pages: Iterable[gateway_pb.ListModelsResponse]) -> ModelList:
    """All pages as one list."""
    models: list[Model] = []
    unreachable: dict[str, None] = {}  # as an ordered set: each page may name a connector again
    for page in pages:
        models += (read(Model, model) for model in page.models)
        unreachable.update(dict.fromkeys(page.unreachable))
    return ModelList(tuple(models), tuple(unreachable))
