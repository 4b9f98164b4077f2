"""Makes the seeds anew: `python -m tests.fuzz.make_seeds`. Those that were found are left alone.

They are the starts of golden transcripts, and what the standard of event streams allows and providers seldom do.
"""

from hashlib import sha256
from pathlib import Path
from typing import Final

from patchbay_server.testing.adapter_suite import cut
from patchbay_server.wire.http import Framing

HERE: Final = Path(__file__).parent
GOLDEN: Final = HERE.parent / "golden"
SEED_BYTES_MAX: Final = 400
SEEDS_MAX: Final = 24
RARE: Final = {
    "sse": (
        "\ufeffdata: one\ndata: two\n\n: comment\n\nevent: named\ndata:three\nid: 1\nretry: 5\n\ndata\n\ndata: 你好 🙂",
        "event: gone\n\ndata:  spaced\n\ndata: last",
    ),
}
"""In each of the three line endings."""


def main() -> None:
    for target, suffix in (("sse", "sse"), ("eventstream", "aws")):
        starts = {start(file.read_bytes(), target) for file in sorted(GOLDEN.glob(f"*/*/wire.{suffix}"))}
        folder = HERE / "seeds" / target
        folder.mkdir(parents=True, exist_ok=True)
        for seed in sorted(starts - {b""}, key=len)[:SEEDS_MAX]:
            (folder / f"golden-{sha256(seed).hexdigest()[:8]}").write_bytes(seed)
        for number, text in enumerate(RARE.get(target, ())):
            for ending, name in (("\n", "lf"), ("\r", "cr"), ("\r\n", "crlf")):
                (folder / f"rare-{number}-{name}").write_bytes(text.replace("\n", ending).encode())


def start(wire: bytes, target: str) -> bytes:
    """As much of a stream as makes whole events and is short."""
    if target == "sse":
        return wire[: wire.rfind(b"\n\n", 0, SEED_BYTES_MAX) + 2]
    end = 0
    while end + 4 <= len(wire) and end + int.from_bytes(wire[end : end + 4], "big") <= SEED_BYTES_MAX:
        end += int.from_bytes(wire[end : end + 4], "big")
    assert cut(wire[:end], (), Framing.EVENT_STREAM) or not end
    return wire[:end]


if __name__ == "__main__":
    main()
