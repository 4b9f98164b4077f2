"""AWS's own codec for JavaScript writes what our decoder reads, and reads what our tests write."""

import json
import random
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support import eventstream
from tests.support.fetched import node_packages
from tests.support.needs import needs

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import cut
from patchbay_server.wire.eventstream import Decoder
from patchbay_server.wire.http import Frame, Framing

pytestmark = pytest.mark.slow

SCRIPT: Final = Path(__file__).parent / "eventstream.mjs"
GOLDEN: Final = Path(__file__).parents[1] / "golden" / "bedrock"

TEXTS: Final = ("", "contentBlockDelta", "größe 你好 🙂", "x" * 1000)
HEADERS: Final[dict[str, Any]] = {
    "yes": {"type": "boolean", "value": True},
    "no": {"type": "boolean", "value": False},
    "int8": {"type": "byte", "value": -1},
    "int16": {"type": "short", "value": -256},
    "int32": {"type": "integer", "value": 2**31 - 1},
    "int64": {"type": "long", "value": "-9007199254740991"},
    "bytes": {"type": "binary", "value": b64encode(bytes(range(256))).decode()},
    "time": {"type": "timestamp", "value": 1_764_000_000_000},
    "uuid": {"type": "uuid", "value": "01234567-89ab-cdef-0123-456789abcdef"},
}
"""One of every type that there is."""


def smithy(*, write: Sequence[dict[str, Any]] = (), read: Sequence[bytes] = ()) -> tuple[list[bytes], list[Any]]:
    """The messages that the codec writes of `write`, and what it reads from each of `read`."""
    needs(shutil.which("node") is not None, "Node is not installed")
    asked = {"write": write, "read": [b64encode(message).decode() for message in read]}
    told = json.dumps(asked)
    command = ["node", SCRIPT, node_packages()]
    run = subprocess.run(command, input=told, capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(run.stdout)
    return [b64decode(message) for message in answer["written"]], answer["read"]


def asked(event: str, payload: bytes, **more: Any) -> dict[str, Any]:
    headers = {
        ":message-type": {"type": "string", "value": "event"},
        ":event-type": {"type": "string", "value": event},
        **more,
    }
    return {"headers": headers, "body": b64encode(payload).decode()}


def test_what_smithy_writes_is_read_however_it_is_cut() -> None:
    payloads = [b"", b'{"a":1}', bytes(range(256)) * 40]
    write = [asked(text, payload, **HEADERS) for text in TEXTS for payload in payloads]
    messages, _ = smithy(write=write)
    stream = b"".join(messages)
    expected = [Frame(payload, text) for text in TEXTS for payload in payloads]
    assert decoded(stream) == expected
    chance = random.Random(0)
    for _ in range(50):
        places = sorted(chance.sample(range(len(stream)), 40))
        assert cut(stream, places, Framing.EVENT_STREAM) == expected


def test_smithy_reads_what_the_tests_write() -> None:
    written = [eventstream.event(text or "e", {"text": text}) for text in TEXTS]
    written += [eventstream.exception("throttlingException", {"message": "slow"}), eventstream.error("Internal", "no")]
    _, read = smithy(read=written)
    types = [{name: header["value"] for name, header in message["headers"].items()} for message in read]
    assert [told[":message-type"] for told in types] == ["event"] * len(TEXTS) + ["exception", "error"]
    assert [told[":event-type"] for told in types[: len(TEXTS)]] == [text or "e" for text in TEXTS]
    bodies = [json.loads(b64decode(message["body"])) for message in read[: len(TEXTS)]]
    assert bodies == [{"text": text} for text in TEXTS]


def test_smithy_reads_every_transcript_as_we_do() -> None:
    files = [file for file in sorted(GOLDEN.glob("*/wire.aws")) if not file.read_bytes().startswith(b"{")]
    wires = [messages_of(file.read_bytes()) for file in files]
    _, read = smithy(read=[message for wire in wires for message in wire])
    told = [(kind_of(message["headers"]), b64decode(message["body"])) for message in read]
    frames = [frame for file in files for frame in cut(file.read_bytes(), (), Framing.EVENT_STREAM)]
    assert [(frame.event.rpartition(":")[2], frame.data) for frame in frames] == told


def decoded(stream: bytes) -> list[Frame]:
    decoder = Decoder()
    return decoder.feed(stream) + decoder.finish()


def messages_of(wire: bytes) -> list[bytes]:
    """The messages of a stream, by the lengths that they begin with."""
    messages = []
    while wire:
        length = int.from_bytes(wire[:4], "big")
        messages.append(wire[:length])
        wire = wire[length:]
    return messages


def kind_of(headers: dict[str, Any]) -> str:
    names = (":event-type", ":exception-type", ":error-code")
    return str(next(headers[name]["value"] for name in names if name in headers))


def test_what_smithy_refuses_is_refused_here() -> None:
    good = eventstream.event("messageStop", {"stopReason": "end_turn"})
    chance = random.Random(1)
    wrong = []
    for _ in range(200):
        changed = bytearray(good)
        changed[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        wrong.append(bytes(changed))
    _, read = smithy(read=wrong)
    assert all("error" in message for message in read)
    for message in wrong:
        with pytest.raises(PatchbayError) as refused:
            decoded(message)
        assert refused.value.reason in {Reason.UPSTREAM_MALFORMED_RESPONSE, Reason.UPSTREAM_TRUNCATED}
