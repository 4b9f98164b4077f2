"""The process's log: structured, bounded, without credentials."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from patchbay_server import telemetry
from patchbay_server.errors import PatchbayError, Reason

SECRETS = [
    "sk-abcdefghijklmnop",
    "sk-my-team-key-4711-abcdefgh",
    "sk-proj-A1b2C3d4E5f6_-A1b2",
    "sk-ant-api03-A1b2C3d4E5f6",
    "sk-or-v1-0123456789abcdef",
    "xai-A1b2C3d4E5f6",
    "gsk_A1b2C3d4E5f6",
    "AIzaSyA1b2C3d4E5f6",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "ABSKQmVkcm9ja0FQ+SUtleS1/abc==",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "pb_0123456789ab_A1b2C3d4E5f6A1b2C3d4E5f6A1b2C3d4",
]
PREFIXES = (
    "sk-ant-",
    "sk-proj-",
    "sk-or-",
    "sk-",
    "xai-",
    "gsk_",
    "AIza",
    "AKIA",
    "ASIA",
    "ABSK",
    "eyJ",
    "pb_0123456789ab_",
)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = handlers, level


def lines(root: logging.Logger, style: str, level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    telemetry.set_up_logging(level=level, style=style, stream=stream)
    return stream


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "key={} refused", '"{}"', "Authorization: Bearer {}", "https://x/?key={}&a=b"]
)
def test_whatever_looks_like_a_key_is_masked_but_for_its_kind(secret: str, around: str) -> None:
    told = telemetry.redact(around.format(secret))
    kind = next(prefix for prefix in PREFIXES if secret.startswith(prefix))
    own = secret.removeprefix(kind)
    assert "***" in told
    assert not any(own[start : start + 5] in told for start in range(len(own) - 4))


@pytest.mark.parametrize("text", ["Basic dXNlcjpwYXNzd29yZA==", "bearer abcdef012345", "BEARER  abcdef012345"])
def test_what_follows_an_authentication_scheme_is_masked(text: str) -> None:
    scheme, _, secret = text.partition(" ")
    told = telemetry.redact(f"authorization: {text}")
    assert scheme in told
    assert secret.strip() not in told


def test_the_password_in_an_address_is_masked() -> None:
    told = telemetry.redact("cannot reach postgresql://patchbay:hunter2@db:5432/patchbay")
    assert told == "cannot reach postgresql://patchbay:***@db:5432/patchbay"


@pytest.mark.parametrize(
    "text",
    [
        "the task-force and risk-averse disk-drives",
        "call 018f3a answered in 12 ms",
        "https://api.test:8080/v1/a@b",
        "basic",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert telemetry.redact(text) == text


def test_a_line_is_one_json_object_with_the_call_it_belongs_to(root: logging.Logger) -> None:
    stream = lines(root, "json")
    token = telemetry.call_id.set("call-1")
    logging.getLogger("patchbay_server.core").warning("two %s\nlines", "or three")
    telemetry.call_id.reset(token)
    logging.getLogger("patchbay_server.core").info("outside")
    one, two = (json.loads(line) for line in stream.getvalue().splitlines())
    assert one["time"].endswith("+00:00")
    del one["time"]
    assert one == {
        "level": "warning",
        "logger": "patchbay_server.core",
        "message": "two or three\nlines",
        "call_id": "call-1",
    }
    assert "call_id" not in two


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_traceback_is_redacted_too(root: logging.Logger, style: str) -> None:
    stream = lines(root, style)
    try:
        raise ValueError("sk-abcdefghijklmnop is wrong")  # noqa: TRY301
    except ValueError:
        logging.getLogger("x").exception("failed with %s", "xai-A1b2C3d4E5f6")
    told = stream.getvalue()
    assert "ValueError" in told
    assert "abcdefgh" not in told
    assert "A1b2C3d4" not in told


def test_a_line_is_bounded(root: logging.Logger) -> None:
    stream = lines(root, "json")
    try:
        raise ValueError("y" * 10**6)  # noqa: TRY301
    except ValueError:
        logging.getLogger("x").exception("x" * 10**6)
    assert len(stream.getvalue()) < 3 * telemetry.LINE_CHARS_MAX


@pytest.mark.parametrize("style", ["json", "text"])
def test_half_a_character_does_not_stop_a_line(root: logging.Logger, style: str) -> None:
    stream = lines(root, style)
    logging.getLogger("x").warning("file %s", "a\udcffb")
    assert "file a" in stream.getvalue()


def test_a_message_cannot_forge_a_line_of_text(root: logging.Logger) -> None:
    stream = lines(root, "text")
    logging.getLogger("x").warning("innocent\n2026-01-01 INFO forged")
    assert len(stream.getvalue().splitlines()) == 1


def test_the_level_counts_and_libraries_that_tell_too_much_are_quiet(root: logging.Logger) -> None:
    stream = lines(root, "text", "info")
    logging.getLogger("patchbay_server").debug("unseen")
    logging.getLogger("patchbay_server").info("seen")
    for name in ("aiohttp.client", "httpx", "sqlalchemy.engine", "grpc", "asyncio"):
        logging.getLogger(name).info("headers and statements")
    assert len(stream.getvalue().splitlines()) == 1
    assert len(root.handlers) == 1


def fall(words: str) -> None:
    try:
        int(words)
    except ValueError as error:
        raise ExceptionGroup(words, [KeyError(words)]) from error


def test_what_went_wrong_is_told_by_type_and_place_but_not_in_its_words(root: logging.Logger) -> None:
    stream = lines(root, "json")
    words = "what was in hand".upper()
    try:
        fall(words)
    except ExceptionGroup:
        logging.getLogger("x").exception("it broke")
    told = json.loads(stream.getvalue())["error"]
    for kind in ("ValueError", "ExceptionGroup", "KeyError", "test_telemetry.py", "in fall"):
        assert kind in told
    assert words not in told


def test_the_gateway_s_own_errors_keep_their_words(root: logging.Logger) -> None:
    stream = lines(root, "text")
    error = PatchbayError(Reason.OVERLOADED, "the gateway is full")
    logging.getLogger("x").error("it broke", exc_info=error)
    assert "PatchbayError: OVERLOADED: the gateway is full" in stream.getvalue()
