"""An adapter that breaks where the model's name says, as careless code does: with what it had in hand in its words."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from patchbay_server.adapters.registry import BUILT_IN
from patchbay_server.plugin import (
    Call,
    Event,
    Frame,
    HttpAnswer,
    HttpRequest,
    PatchbayError,
    Prepared,
    Reader,
    Secret,
    TypeInfo,
)

[WORKING] = [adapter for adapter in BUILT_IN if adapter.info.type == "openai_compatible"]


class BreakingReader:
    def __init__(self, reader: Reader, model: str) -> None:
        self._reader = reader
        self._model = model

    @property
    def finished(self) -> bool:
        return self._reader.finished

    def feed(self, frame: Frame) -> Sequence[Event]:
        if self._model == "break-feed":
            raise KeyError(frame.data.decode())
        return self._reader.feed(frame)

    def finish(self) -> Sequence[Event]:
        return self._reader.finish()


class BreakingAdapter:
    info = TypeInfo(
        type="breaking",
        display_name="Breaking",
        description="Breaks.",
        fields=WORKING.info.fields,
        capabilities=WORKING.info.capabilities,
    )

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        if fields.get("tools") is False:
            raise ValueError(f"cannot use {fields}")

    def check_model(self, model: str, secret: Secret) -> None:
        if model == "break-check_model":
            raise ValueError(f"bad key {secret.reveal()}")

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        if call.model == "break-prepare":
            try:
                int(secret.text("api_key"))
            except ValueError as error:
                raise RuntimeError(f"cannot ask {call.prompt.messages}") from error
        prepared = WORKING.prepare(call, secret, now)
        return Prepared(
            request=prepared.request, reader=BreakingReader(prepared.reader or WORKING.reader(call), call.model)
        )

    def reader(self, call: Call) -> Reader:
        return BreakingReader(WORKING.reader(call), call.model)

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        raise LookupError(f"no such error: {answer.headers} {answer.body!r}")

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        raise RuntimeError(f"cannot check {secret.text('api_key')}")


ADAPTER = BreakingAdapter()
