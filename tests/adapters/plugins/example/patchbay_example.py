"""An adapter that someone else wrote: the whole of what it takes to add a provider.

The provider is made up. `POST /generate` takes `{"model", "prompt", "stream"}` and answers with lines of events
`{"text": "..."}`, the last of them `{"done": true, "tokens_in": 1, "tokens_out": 2}`; a whole answer is both in one.
`GET /models` answers `{"models": ["..."]}`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from patchbay_server.plugin import (
    Call,
    Capability,
    CredentialField,
    Event,
    FieldKind,
    Finished,
    FinishReason,
    Frame,
    Framing,
    GenerationConfig,
    HttpAnswer,
    HttpRequest,
    Knobs,
    Message,
    ModelInfo,
    ModelPage,
    Opened,
    Parts,
    PatchbayError,
    Prepared,
    Reason,
    ReasoningConfig,
    Role,
    Secret,
    TextPart,
    TypeInfo,
    Usage,
    count,
    decode,
    encode,
    merged,
    object_or_empty,
    reason_of_status,
    retry_after_s,
    unsupported,
    upstream_error,
)

ROOT = "https://api.example.com/v1"


class ExampleAdapter:
    """Text in, text out. What the provider cannot do is refused by name, never dropped."""

    info = TypeInfo(
        type="example",
        display_name="Example",
        description="A provider that is made up.",
        fields=(
            CredentialField(name="api_key", label="API key", help="", kind=FieldKind.SECRET, required=True),
            CredentialField(name="endpoint", label="Endpoint", help=f"In place of {ROOT}.", kind=FieldKind.URL),
        ),
        capabilities=frozenset({Capability.STREAMING, Capability.MODEL_LIST}),
    )

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        """Nothing beyond what `info.fields` says."""

    def check_model(self, model: str, secret: Secret) -> None:
        """Any model id may exist."""

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        knobs = Knobs(droppable=call.prompt.drop_unsupported)
        body = merged(self._body(call, knobs), call.prompt.provider_options_json)
        request = HttpRequest(
            method="POST",
            url=_address(secret, "generate"),
            headers=(_authorization(secret), ("content-type", "application/json")),
            body=encode(body),
            framing=Framing.SSE if call.streaming else Framing.BODY,
        )
        return Prepared(request=request, notices=knobs.notices)

    def reader(self, call: Call) -> "ExampleReader":
        return ExampleReader(call)

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        return upstream_error(
            reason_of_status(answer.status),
            provider=self.info.type,
            http_status=answer.status,
            request_id=answer.headers.get("x-request-id", ""),
            retry_after_s=retry_after_s(answer.headers, answer.received_at),
        )

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        """The list of models is free, and needs a key that works."""
        return self.prepare_models("", secret, now)

    def prepare_models(self, page: str, secret: Secret, now: datetime) -> HttpRequest:
        return HttpRequest(method="GET", url=_address(secret, "models"), headers=(_authorization(secret),))

    def read_models(self, answer: HttpAnswer) -> ModelPage:
        models = object_or_empty(answer.body).get("models")
        if not isinstance(models, list):
            raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, "the provider sent no list of models")
        return ModelPage(models=tuple(ModelInfo(id=model) for model in models if isinstance(model, str)))

    @staticmethod
    def _body(call: Call, knobs: Knobs) -> dict[str, Any]:
        prompt = call.prompt
        _refuse_knobs(prompt.config, knobs)
        for name in ("tools", "tool_choice", "response_format"):
            if getattr(prompt, name):
                raise unsupported(name, "the example provider writes text only")
        lines = [_line(f"messages[{index}]", message) for index, message in enumerate(prompt.messages)]
        return {"model": call.model, "prompt": "\n".join(lines), "stream": call.streaming}


def _address(secret: Secret, path: str) -> str:
    return f"{secret.text('endpoint').rstrip('/') or ROOT}/{path}"


def _authorization(secret: Secret) -> tuple[str, str]:
    return "authorization", f"Bearer {secret.text('api_key')}"


def _refuse_knobs(config: GenerationConfig, knobs: Knobs) -> None:
    for name in config.__struct_fields__:
        if name != "reasoning" and getattr(config, name) not in (None, ()):
            knobs.refuse(f"config.{name}", "the example provider has no knobs")
    for name in ReasoningConfig.__struct_fields__:
        if config.reasoning is not None and getattr(config.reasoning, name):
            knobs.refuse(f"config.reasoning.{name}", "the example provider does not reason")


def _line(path: str, message: Message) -> str:
    if message.author_name or message.role is Role.TOOL:
        raise unsupported(path, "the example provider knows no names and no tools")
    texts = []
    for index, part in enumerate(message.parts):
        if not isinstance(part, TextPart) or part.cache_breakpoint:
            raise unsupported(f"{path}.parts[{index}]", "the example provider takes plain text only")
        texts.append(part.text)
    return f"{message.role.value}: {' '.join(texts)}"


class ExampleReader:
    """Folds the events of one answer."""

    def __init__(self, call: Call) -> None:
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        self._opened = False
        self.finished = False

    def feed(self, frame: Frame) -> Sequence[Event]:
        if self.finished:
            return ()
        if frame.whole and not frame.data.strip():
            raise PatchbayError(Reason.UPSTREAM_EMPTY_STREAM, "the provider answered without an answer")
        try:
            event = decode(frame.data)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not ("text" in event or event.get("done")):
            raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, "the provider sent an event that cannot be read")
        if frame.whole and self._streaming:
            raise PatchbayError(Reason.STREAMING_UNSUPPORTED, "the provider answered at once")
        return [*self._open(), *self._text(event), *self._end(event)]

    def finish(self) -> Sequence[Event]:
        if self.finished:
            return ()
        reason = Reason.UPSTREAM_TRUNCATED if self._opened else Reason.UPSTREAM_EMPTY_STREAM
        raise PatchbayError(reason, "the provider's answer broke off before its end")

    def _open(self) -> list[Event]:
        first, self._opened = not self._opened, True
        return [Opened()] if first else []

    def _text(self, event: dict[str, Any]) -> list[Event]:
        text = event.get("text")
        return self._parts.text("text", text) if isinstance(text, str) else []

    def _end(self, event: dict[str, Any]) -> list[Event]:
        if event.get("done") is not True:
            return []
        self.finished = True
        given, made = count(event.get("tokens_in")) or 0, count(event.get("tokens_out")) or 0
        usage = Usage(input_tokens=given, output_tokens=made, total_tokens=given + made)
        finished = Finished(finish_reason=FinishReason.STOP, provider_finish_reason="done", usage=usage)
        return [*self._parts.complete_all(), finished]


ADAPTER = ExampleAdapter()
