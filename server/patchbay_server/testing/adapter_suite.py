# ruff: noqa: S101 -- a pytest suite states its rules with `assert`
"""The conformance suite for adapters: subclass `AdapterSuite` in a test module, name your adapter, and run pytest.

    class TestExample(AdapterSuite):
        adapter = EXAMPLE
        secret = {"api_key": "example-key-0123456789"}
        golden = Path(__file__).parent / "golden" / "example"

Golden transcripts are folders, one for each case, so that adding a case is adding a folder:

    call.json      a `Call`, as msgspec writes it (bytes in base64)
    secret.json    optional: the credential fields of this case instead of the suite's
    request.json   what `prepare` makes of the call: {"method", "url", "headers", "body", "notices"?}; the body as JSON
    wire.sse       the provider's answer to the streaming call, byte for byte
    wire.aws       the same where it is an AWS event stream
    body.json      the provider's whole answer to the unary call; with a stream beside it, the same answer
    events.json    what the reader makes of the stream, else of `body.json`: {"events", "error": {"reason", "field"}?}
    source.txt     where the transcript comes from
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import pytest

from patchbay_server.adapters.credentials import validate
from patchbay_server.adapters.protocol import (
    Adapter,
    Capability,
    Checks,
    FieldKind,
    ListsModels,
    ModelPage,
    Prepared,
    Reader,
)
from patchbay_server.adapters.registry import Registry
from patchbay_server.errors import FallBack, PatchbayError, Reason
from patchbay_server.testing.field_probe import HELLO, NOW, PLAIN, PROBES, SCHEMA, Outcome, Probe, Probed, ask, written
from patchbay_server.testing.stream_rules import check_stream, outcome
from patchbay_server.types import (
    Call,
    Event,
    Finished,
    FunctionTool,
    NoticeCode,
    Prompt,
    Secret,
)
from patchbay_server.wire.framing import cutter
from patchbay_server.wire.http import Frame, Framing, HttpAnswer

# --- golden transcripts ----------------------------------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a golden answer fails."""

    reason: Reason
    field: str = ""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """`events.json`."""

    events: list[Event]
    error: Failure | None = None


class GoldenCase:
    """One folder of golden files."""

    def __init__(self, path: Path, secret: Mapping[str, Any]) -> None:
        self.path = path
        self.call = msgspec.json.decode((path / "call.json").read_bytes(), type=Call)
        own_secret = path / "secret.json"
        self.secret = Secret(json.loads(own_secret.read_bytes()) if own_secret.exists() else secret)
        self.expected = msgspec.json.decode((path / "events.json").read_bytes(), type=Expected)

    @property
    def wire(self) -> bytes | None:
        files = (self.path / name for name in ("wire.sse", "wire.aws"))
        return next((file.read_bytes() for file in files if file.exists()), None)

    @property
    def body(self) -> bytes | None:
        file = self.path / "body.json"
        return file.read_bytes() if file.exists() else None

    @property
    def request(self) -> dict[str, Any]:
        request: dict[str, Any] = json.loads((self.path / "request.json").read_bytes())
        return request

    def frames(self, framing: Framing = Framing.SSE) -> list[Frame]:
        """The frames of the answer that `events.json` is about.

        Args:
            framing: of the stream, as the request says.
        """
        if self.wire is not None:
            return cut(self.wire, (), framing)
        assert self.body is not None, f"{self.path.name} has neither a stream nor body.json"
        return [Frame(data=self.body, whole=True)]


def golden_cases(folder: Path | None, secret: Mapping[str, Any]) -> list[GoldenCase]:
    """The cases in `folder`, by name; none when there is no folder."""
    if folder is None or not folder.is_dir():
        return []
    return [GoldenCase(path, secret) for path in sorted(folder.iterdir()) if (path / "call.json").exists()]


def cut(wire: bytes, at: Sequence[int], framing: Framing = Framing.SSE) -> list[Frame]:
    """The frames of `wire`, read in pieces that end at the offsets `at`."""
    own_cutter = cutter(framing)
    frames: list[Frame] = []
    for start, end in pairwise([0, *at, len(wire)]):
        frames += own_cutter.feed(wire[start:end])
    return frames + own_cutter.finish()


def read(reader: Reader, frames: Sequence[Frame]) -> tuple[list[Event], PatchbayError | None]:
    """The events of an answer and the failure that ended it, if any, as the driver of calls would see them."""
    events: list[Event] = []
    try:
        for frame in frames:
            events += reader.feed(frame)
            if reader.finished:
                return events, None
        events += reader.finish()
    except PatchbayError as error:
        return events, error
    return events, None


# --- answers with an error status ------------------------------------------------------------------------------------


class ErrorCase(msgspec.Struct, frozen=True, kw_only=True):
    """An answer with an error status and what it means. `field` and `retry_after_s` are compared when given."""

    name: str
    status: int
    body: str = ""
    headers: Mapping[str, str] = {}
    reason: Reason
    field: str = ""
    retry_after_s: float | None = None

    def answer(self) -> HttpAnswer:
        return HttpAnswer(status=self.status, headers=self.headers, body=self.body.encode(), received_at=NOW)


_CANARY: Final = "canary-7f3a"

STATUS_CASES: Final = (
    ErrorCase(name="401", status=401, reason=Reason.UPSTREAM_CREDENTIAL_REJECTED),
    ErrorCase(name="429", status=429, reason=Reason.UPSTREAM_RATE_LIMITED),
    ErrorCase(
        name="429-wait", status=429, headers={"retry-after": "7"}, reason=Reason.UPSTREAM_RATE_LIMITED, retry_after_s=7
    ),
    ErrorCase(name="500", status=500, reason=Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="502-html", status=502, body=f"<html>{_CANARY}</html>", reason=Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="503", status=503, reason=Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="504", status=504, reason=Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="529", status=529, reason=Reason.UPSTREAM_UNAVAILABLE),
)
"""What a bare status means, whoever the provider is."""

JUNK: Final = (
    b"",
    b" ",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"[[[",
    b"1e999",
    b"<html>canary-7f3a</html>",
    b'"canary-7f3a"',
    b'{"error":"canary-7f3a"}',
    b'{"error":{"message":"canary-7f3a","type":3,"code":{}}}',
    b'{"error":[{"error":1}]}',
    b'{"type":1,"choices":1,"usage":1,"content":1,"message":1,"delta":1,"error":0}',
    b'{"choices":[null,1,{"delta":1,"message":2,"finish_reason":{}}],"usage":[]}',
    b"[" * 5000,
    b'{"a":' * 5000,
)
"""Bytes that no provider should send and that some day one will."""

# --- the suite -------------------------------------------------------------------------------------------------------


class ModelSuite:
    """Rules that an adapter keeps for one model and one form of its credential: what is asked, and answers to distrust.

    An adapter that asks its models differently passes this once for each kind, beside the `AdapterSuite` that it passes
    once.

    Attributes:
        adapter: what is tested.
        secret: credential fields that its `info` accepts.
        model: an ordinary model id, used by the field probe.
        without_effect: paths of request fields that by their meaning change nothing for this model, with the reason;
            a path alone, or the whole name of one probe.
    """

    adapter: ClassVar[Adapter]
    secret: ClassVar[Mapping[str, Any]]
    model: ClassVar[str] = "example-model"
    without_effect: ClassVar[Mapping[str, str]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for name, (values, id_of) in self._tables().items():
            if name in metafunc.fixturenames:
                none = pytest.param(None, marks=pytest.mark.skip(reason=f"no {name} is declared"), id="none")
                metafunc.parametrize(name, [pytest.param(value, id=id_of(value)) for value in values] or [none])

    def _tables(self) -> dict[str, tuple[Sequence[Any], Callable[[Any], str]]]:
        """What tests are run over, by the name of the argument that they ask for, and how one of it is called."""
        return {"probe": (PROBES, lambda probe: probe.name)}

    def _call(self, prompt: Prompt = PLAIN, *, streaming: bool = True) -> Call:
        return Call(id="01", model=self.model, prompt=prompt, streaming=streaming)

    def _prepare(self, call: Call, secret: Secret | None = None) -> Prepared:
        return self.adapter.prepare(call, secret or Secret(self.secret), NOW)

    def _refusal(self, prompt: Prompt) -> PatchbayError | None:
        try:
            self._prepare(self._call(prompt))
        except PatchbayError as refusal:
            return refusal
        return None

    def _reader(self, call: Call, secret: Secret | None = None) -> Reader:
        return self._prepare(call, secret).reader or self.adapter.reader(call)

    def _needs(self, capability: Capability) -> None:
        if capability not in self.adapter.info.capabilities:
            pytest.skip(f"the adapter declares no {capability.value}")

    @staticmethod
    def _names(error: PatchbayError, path: str) -> bool:
        """Whether the error names `path`, the field that holds it or a field within it."""
        named = [violation.field for violation in error.violations]
        return not path or any(field.startswith(path) or path.startswith(field) for field in named if field)

    # --- what it says of itself ---

    def test_registration_accepts_it_and_its_credential(self) -> None:
        registry = Registry([self.adapter])
        assert registry.get(self.adapter.info.type) is self.adapter
        fields = validate(self.adapter.info, self.secret)
        self.adapter.check_credential(fields)
        self.adapter.check_model(self.model, Secret(fields))

    # --- requests ---

    def test_preparing_twice_gives_the_same_request(self) -> None:
        assert self._prepare(self._call()).request == self._prepare(self._call()).request

    def test_a_secret_is_in_no_address_and_in_no_repr(self) -> None:
        prepared = self._prepare(self._call())
        self._check_hides_the_secret(prepared.request.url, repr(prepared))

    def test_streaming_is_asked_for_only_when_it_is_wanted(self) -> None:
        assert self._prepare(self._call()).request != self._prepare(self._call(streaming=False)).request

    def test_a_field_has_effect_or_is_refused_by_name(self, probe: Probe) -> None:
        probed = self._ask(probe)
        explained = bool({probe.path, probe.name} & self.without_effect.keys())
        if probed.outcome in {Outcome.SENT, Outcome.LEFT_OUT}:
            belongs = not isinstance(probed.without, PatchbayError)
            assert belongs, f"`{probe.name}` makes possible what it belongs to"
            assert not explained, f"`{probe.name}` has an effect after all"
        elif probed.outcome is Outcome.WITHOUT_EFFECT:
            assert explained or probe.says_the_default, f"`{probe.name}` is dropped silently"
        elif not isinstance(probed.without, PatchbayError):
            assert isinstance(probed.with_it, PatchbayError)
            self._check_refusal(probed.with_it, probe)

    def test_dropping_leaves_out_knobs_with_a_notice_and_never_content(self, probe: Probe) -> None:
        probed = self._ask(probe)
        if probed.outcome is not Outcome.REFUSED or isinstance(probed.without, PatchbayError):
            return
        lenient = msgspec.structs.replace(probe.with_it, drop_unsupported=True)
        if not probe.path.startswith("config."):
            with pytest.raises(PatchbayError):
                self._prepare(self._call(lenient))
            return
        dropped = [n for n in self._prepare(self._call(lenient)).notices if n.code is NoticeCode.FIELD_DROPPED]
        assert any(notice.field.startswith(probe.path) for notice in dropped)

    def _ask(self, probe: Probe) -> Probed:
        return ask(self.adapter, Secret(self.secret), self.model, probe)

    def _check_refusal(self, refusal: PatchbayError, probe: Probe) -> None:
        # A state that the provider never gave, and arguments that are no JSON, are no features: they are refused as
        # what they are.
        junk = ("provider_state", "arguments_json")
        invalid = any(violation.field.endswith(junk) for violation in refusal.violations)
        allowed = {Reason.FEATURE_UNSUPPORTED, Reason.INVALID_REQUEST if invalid else Reason.FEATURE_UNSUPPORTED}
        assert refusal.reason in allowed, refusal
        assert self._names(refusal, probe.path), f"{refusal.violations} do not name {probe.path}"

    def test_options_of_the_provider_cannot_set_what_the_gateway_decides(self) -> None:
        for options in ('{"model":"other"}', '{"messages":[]}', '{"stream":false}', "[]", "{", "nul"):
            with pytest.raises(PatchbayError) as refused:
                self._prepare(self._call(msgspec.structs.replace(PLAIN, provider_options_json=options)))
            assert refused.value.reason is Reason.INVALID_REQUEST
            assert refused.value.violations[0].field == "provider_options_json"

    def test_embedded_json_keeps_its_key_order_and_its_integers(self) -> None:
        self._needs(Capability.TOOLS)
        tool = FunctionTool(name="add", parameters_json_schema=SCHEMA)
        body = self._prepare(self._call(Prompt(messages=(HELLO,), tools=(tool,)))).request.body
        assert b"12345678901234567890123" in body
        assert body.index(b'"b"') < body.index(b'"a"')

    def test_a_schema_that_is_not_an_object_is_refused_by_name(self) -> None:
        self._needs(Capability.TOOLS)
        for schema in ("[]", "{", "1"):
            tool = FunctionTool(name="add", parameters_json_schema=schema)
            with pytest.raises(PatchbayError) as refused:
                self._prepare(self._call(Prompt(messages=(HELLO,), tools=(tool,))))
            assert refused.value.reason is Reason.INVALID_REQUEST
            assert refused.value.violations[0].field == "tools[0].function.parameters_json_schema"

    # --- answers without trust ---

    @pytest.mark.parametrize("whole", [True, False])
    @pytest.mark.parametrize("streaming", [True, False])
    def test_junk_is_a_failure_of_ours_and_never_an_answer(self, streaming: bool, whole: bool) -> None:
        for junk in JUNK:
            reader = self._reader(self._call(streaming=streaming))
            events, error = read(reader, [Frame(data=junk, whole=whole)])
            assert error is not None, junk
            assert not any(isinstance(event, Finished) for event in events), junk
            assert _CANARY not in str(error)

    def test_a_whole_page_in_answer_to_a_stream_is_malformed(self) -> None:
        page = Frame(data=b"<html>sign in</html>", whole=True)
        _, error = read(self._reader(self._call()), [page])
        assert error is not None
        assert error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE

    # --- abilities ---

    def test_the_check_is_no_call_with_a_token_limit(self) -> None:
        if isinstance(self.adapter, Checks):
            for model in ("", self.model, "a:b/c?d"):
                request = self.adapter.prepare_check(model, Secret(self.secret), NOW)
                assert b"max_" not in request.body
                assert b"maxTokens" not in request.body
                assert "?d" not in request.url
                self._check_hides_the_secret(request.url, repr(request))

    def test_the_model_list_is_asked_for_without_a_body(self) -> None:
        assert isinstance(self.adapter, ListsModels) == (Capability.MODEL_LIST in self.adapter.info.capabilities)
        if isinstance(self.adapter, ListsModels):
            first, next_one = (self.adapter.prepare_models(page, Secret(self.secret), NOW) for page in ("", "a b#c\n"))
            for request in (first, next_one):
                assert (request.method, request.body, request.framing) == ("GET", b"", Framing.BODY)
                assert re.fullmatch(r"[!-~]+", request.url), "a page's name is escaped"
                assert "#" not in request.url
                self._check_hides_the_secret(request.url, repr(request))

    def _check_hides_the_secret(self, *shown: str) -> None:
        kinds = {field.name: field.kind for field in self.adapter.info.fields}
        for secret in (value for name, value in self.secret.items() if kinds[name] is FieldKind.SECRET):
            assert not [text for text in shown if secret in text]


class AdapterSuite(ModelSuite):
    """Rules that every adapter keeps.

    Attributes:
        golden: the folder of its golden transcripts, or None.
        errors: answers with an error status and what each means.
    """

    golden: ClassVar[Path | None] = None
    errors: ClassVar[Sequence[ErrorCase]] = ()

    def _tables(self) -> dict[str, tuple[Sequence[Any], Callable[[Any], str]]]:
        return super()._tables() | {
            "case": (golden_cases(self.golden, self.secret), lambda case: case.path.name),
            "error_case": ((*STATUS_CASES, *self.errors), lambda case: case.name),
        }

    def _framing(self, case: GoldenCase) -> Framing:
        return self._prepare(case.call, case.secret).request.framing

    def _frames(self, case: GoldenCase) -> list[Frame]:
        return case.frames(self._framing(case))

    def _read_case(self, case: GoldenCase, frames: Sequence[Frame]) -> tuple[list[Event], PatchbayError | None]:
        return read(self._reader(case.call, case.secret), frames)

    # --- golden transcripts ---

    def test_a_golden_call_becomes_the_golden_request(self, case: GoldenCase) -> None:
        assert written(self._prepare(case.call, case.secret)) == case.request

    def test_a_golden_answer_becomes_the_golden_events(self, case: GoldenCase) -> None:
        events, error = self._read_case(case, self._frames(case))
        assert events == case.expected.events
        if case.expected.error is None:
            assert error is None
            check_stream(events)
        else:
            assert error is not None
            assert error.reason is case.expected.error.reason
            assert self._names(error, case.expected.error.field)

    def test_an_answer_cut_anywhere_gives_the_same_frames(self, case: GoldenCase) -> None:
        if case.wire is None:
            return
        framing = self._framing(case)
        whole = cut(case.wire, (), framing)
        for at in range(1, len(case.wire)):
            assert cut(case.wire, (at,), framing) == whole, f"cut at byte {at}"
        assert cut(case.wire, range(1, len(case.wire)), framing) == whole

    def test_an_answer_that_breaks_off_is_a_failure_or_complete(self, case: GoldenCase) -> None:
        frames = self._frames(case)
        for count in range(len(frames)):
            events, error = self._read_case(case, frames[:count])
            if error is None:
                check_stream(events)
            else:
                assert not any(isinstance(event, Finished) for event in events)
            if count == 0:
                assert error is not None
                assert error.reason is Reason.UPSTREAM_EMPTY_STREAM

    def test_a_whole_answer_and_a_stream_of_it_are_the_same(self, case: GoldenCase) -> None:
        if case.wire is None or case.body is None:
            return
        streamed, _ = self._read_case(case, self._frames(case))
        unary = msgspec.structs.replace(case.call, streaming=False)
        whole, error = read(self._reader(unary, case.secret), [Frame(data=case.body, whole=True)])
        assert error is None
        check_stream(whole)
        assert outcome(whole) == outcome(streamed)

    def test_nothing_follows_the_terminal_event(self, case: GoldenCase) -> None:
        reader = self._reader(case.call, case.secret)
        for frame in self._frames(case):
            try:
                reader.feed(frame)
            except PatchbayError:
                return
        if reader.finished:
            for frame in self._frames(case):
                assert list(reader.feed(frame)) == []

    # --- errors ---

    def test_an_error_answer_means_what_the_table_says(self, error_case: ErrorCase) -> None:
        error = self.adapter.explain(error_case.answer())
        assert error.reason is error_case.reason
        assert error.upstream is not None
        assert error.upstream.http_status == error_case.status
        assert error.upstream.provider == self.adapter.info.type
        if error_case.field:
            assert [violation.field for violation in error.violations] == [error_case.field]
        if error_case.retry_after_s is not None:
            assert error.retry_after_s == error_case.retry_after_s

    def test_an_error_answer_is_explained_whatever_it_says_and_never_repeated(self) -> None:
        for status in range(300, 600):
            for junk in JUNK[: len(JUNK) if status in {400, 401, 429, 500} else 1]:
                headers = {"retry-after": "soon", "x-request-id": f"{_CANARY}\r\nx: y"}
                answer = HttpAnswer(status=status, headers=headers, body=junk, received_at=NOW)
                error = self.adapter.explain(answer)
                assert _CANARY not in str(error)
                assert error.upstream is not None
                assert _CANARY not in error.upstream.provider_code
                assert "\n" not in error.upstream.upstream_request_id
                if status >= 500:
                    assert error.rule.fall_back is not FallBack.NEVER, status

    # --- the model list ---

    def test_junk_is_no_model_list_or_an_empty_one(self) -> None:
        if isinstance(self.adapter, ListsModels):
            for junk in JUNK:
                assert self._models(self.adapter, junk) in (ModelPage(models=()), Reason.UPSTREAM_MALFORMED_RESPONSE)

    @staticmethod
    def _models(adapter: ListsModels, body: bytes) -> ModelPage | Reason:
        try:
            return adapter.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))
        except PatchbayError as error:
            return error.reason if _CANARY not in str(error) else Reason.INTERNAL
