"""Every signing vector that AWS publishes, from the source distribution of botocore, against our signer.

A few of them are signed here in `tests/wire`, where nothing has to be fetched.
"""

import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
from tests.support.fetched import sources

from patchbay_server.wire.http import HttpRequest
from patchbay_server.wire.sigv4 import Credentials, signed

pytestmark = pytest.mark.slow

AT: Final = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
KEY: Final = "AKIDEXAMPLE"
SECRET: Final = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN: Final = re.compile("^x-amz-security-token:(.*)$", re.MULTILINE)
"""Where a vector is signed for a temporary key."""

NOT_OURS: Final = {
    "get-header-value-multiline": "HTTP has no headers of several lines any more",
    "get-utf8": "an address is ASCII before it is signed",
    "normalize-path/get-relative": "no path of ours has dot segments",
    "normalize-path/get-relative-relative": "no path of ours has dot segments",
    "normalize-path/get-slash-dot-slash": "no path of ours has dot segments",
    "normalize-path/get-slash-pointless-dot": "no path of ours has dot segments",
    "normalize-path/get-slashes": "no path of ours has empty segments",
    "normalize-path/get-slash": "no path of ours has empty segments",
    "normalize-path/get-space": "an address has no spaces before it is signed",
    "get-vanilla-utf8-query": "an address is ASCII before it is signed",
}
"""Vectors about what never comes to the signer; its docstring says what has to be done before."""


@pytest.fixture(scope="module")
def vectors() -> dict[str, Path]:
    folder = sources("botocore", version("botocore"), "tests/unit/auth/aws4_testsuite")
    return {str(file.parent.relative_to(folder)): file.parent for file in sorted(folder.rglob("*.req"))}


def parsed(text: str) -> HttpRequest:
    """The request of a `.req` file, without the headers that signing adds."""
    head, _, body = text.partition("\n\n")
    first, *lines = head.split("\n")
    method, path, _ = re.fullmatch(r"(\S+) (.*) (HTTP/1.1)", first).groups()  # type: ignore[union-attr]
    pairs = [(name.lower(), value) for name, _, value in (line.partition(":") for line in lines if line)]
    kept = tuple(pair for pair in pairs if pair[0] not in {"host", "x-amz-date", "x-amz-security-token"})
    url = f"https://{dict(pairs)['host']}{path}"
    return HttpRequest(method=method, url=url, headers=kept, body=body.encode())


def test_the_signer_agrees_with_every_published_vector(vectors: dict[str, Path]) -> None:
    assert len(vectors) > 30
    assert NOT_OURS.keys() <= vectors.keys()
    wrong = []
    for name in vectors.keys() - NOT_OURS.keys():
        stem = vectors[name] / vectors[name].name
        unsigned = parsed(stem.with_suffix(".req").read_text(encoding="utf-8"))
        token = TOKEN.search(stem.with_suffix(".creq").read_text(encoding="utf-8"))
        credentials = Credentials(access_key_id=KEY, secret_access_key=SECRET, session_token=token[1] if token else "")
        made = signed(unsigned, credentials, service="service", region="us-east-1", now=AT)
        if dict(made.headers)["authorization"] != stem.with_suffix(".authz").read_text(encoding="utf-8").strip():
            wrong.append(name)
    assert sorted(wrong) == []
