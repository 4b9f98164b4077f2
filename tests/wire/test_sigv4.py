"""Signatures against the vectors that AWS publishes, and against botocore for everything else."""

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from unittest.mock import patch
from urllib.parse import quote

import httpx
import msgspec
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.wire.http import HttpRequest
from patchbay_server.wire.sigv4 import Credentials, signed

KEY: Final = "AKIDEXAMPLE"
SECRET: Final = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"  # the one of AWS's documentation
UNRESERVED: Final = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def request(url: str, method: str = "GET", body: bytes = b"", **headers: str) -> HttpRequest:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return HttpRequest(method=method, url=url, headers=named, body=body)


def authorization(made: HttpRequest) -> str:
    return dict(made.headers)["authorization"]


def signature(made: HttpRequest) -> str:
    return authorization(made).rpartition("Signature=")[2]


# --- the published vectors --------------------------------------------------------------------------------------------

SUITE_AT: Final = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
SUITE: Final = {
    "get-vanilla": (request("/"), "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    "get-unreserved": (
        request(f"/{UNRESERVED}"),
        "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    "get-vanilla-empty-query-key": (
        request("/?Param1=value1"),
        "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
    ),
    "get-vanilla-query-order-key-case": (
        request("/?Param2=value2&Param1=value1"),
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    "get-vanilla-query-order-encoded": (
        request("/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1"),
        "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    ),
    "get-vanilla-query-order-key": (
        request("/?Param1=value2&Param1=Value1"),
        "eedbc4e291e521cf13422ffca22be7d2eb8146eecf653089df300a15b2382bd1",
    ),
    "get-vanilla-query-unreserved": (
        request(f"/?{UNRESERVED}={UNRESERVED}"),
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    ),
    "get-header-value-trim": (
        request("/", my_header1=" value1", my_header2=' "a   b   c"'),
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    "get-header-value-order": (
        HttpRequest(method="GET", url="/", headers=tuple(("my-header1", f"value{n}") for n in (4, 1, 3, 2))),
        "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    ),
    "post-vanilla": (
        request("/", "POST"),
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    "post-header-value-case": (
        request("/", "POST", my_header1="VALUE1"),
        "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
    ),
    "post-vanilla-query": (
        request("/?Param1=value1", "POST"),
        "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    ),
    "post-x-www-form-urlencoded": (
        request("/", "POST", b"Param1=value1", content_type="application/x-www-form-urlencoded"),
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
}


@pytest.mark.parametrize("name", SUITE)
def test_the_published_vectors(name: str) -> None:
    unsigned, expected = SUITE[name]
    unsigned = msgspec.structs.replace(unsigned, url=f"https://example.amazonaws.com{unsigned.url}")
    credentials = Credentials(access_key_id=KEY, secret_access_key=SECRET)
    made = signed(unsigned, credentials, service="service", region="us-east-1", now=SUITE_AT)
    assert signature(made) == expected
    assert authorization(made).startswith(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="
    )
    assert dict(made.headers)["x-amz-date"] == "20150830T123600Z"


# --- requests as Bedrock gets them ------------------------------------------------------------------------------------

HOST: Final = "https://bedrock-runtime.us-east-1.amazonaws.com"
BODY: Final = b'{"a":1}'
AT: Final = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ARN: Final = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-x"


def for_bedrock(unsigned: HttpRequest, session_token: str = "", now: datetime = AT) -> HttpRequest:
    credentials = Credentials(access_key_id=KEY, secret_access_key=SECRET, session_token=session_token)
    return signed(unsigned, credentials, service="bedrock", region="us-east-1", now=now)


def posted(path: str) -> HttpRequest:
    return request(f"{HOST}{path}", "POST", BODY, content_type="application/json")


@pytest.mark.parametrize(
    ("unsigned", "session_token", "names", "expected"),
    [
        (
            posted("/model/anthropic.claude-sonnet-4-20250514-v1%3A0/invoke"),
            "",
            "content-type;host;x-amz-date",
            "f0256eec45ca02efd0b5478390143b90baae2e87e63605b438fcd5cfe1a8c738",
        ),
        (
            posted("/model/anthropic.claude-sonnet-4-20250514-v1:0/invoke"),
            "",
            "content-type;host;x-amz-date",
            "c3f06ed07e69f96a16df27de7fecc1bc0168f656513ee6252377189ead84b833",
        ),
        (
            posted("/model/meta.llama3-1-8b-instruct-v1%3A0/converse-stream"),
            "SESSIONTOKENEXAMPLE",
            "content-type;host;x-amz-date;x-amz-security-token",
            "856872da5905a7c93cedd7b1455a15238a839084b374922488c751688450cb55",
        ),
        (
            posted(f"/model/{quote(ARN, safe='')}/converse"),
            "",
            "content-type;host;x-amz-date",
            "d27e8732c33cca1e35a2c6ef1c0bc2c812c2eb98d748c8f545ab5586bcc34aa7",
        ),
        (
            request("https://bedrock.us-east-1.amazonaws.com/foundation-models?byOutputModality=TEXT"),
            "",
            "host;x-amz-date",
            "c40498e9bdb7112704cfa76b7cedc52462f853ae0866b04ede39fa9f2909ef12",
        ),
    ],
    ids=["encoded colon", "bare colon", "session token", "arn", "list"],
)
def test_requests_of_the_service(unsigned: HttpRequest, session_token: str, names: str, expected: str) -> None:
    made = for_bedrock(unsigned, session_token)
    assert f"SignedHeaders={names}, " in authorization(made)
    assert signature(made) == expected
    assert dict(made.headers).get("x-amz-security-token", "") == session_token


def test_the_path_is_signed_as_it_goes_out() -> None:
    made = for_bedrock(posted(f"/model/{quote(ARN, safe='')}/converse"))
    on_the_wire = httpx.URL(made.url).raw_path.decode()
    assert made.url.endswith(on_the_wire)
    assert signature(for_bedrock(posted(on_the_wire))) == signature(made)


def test_the_time_is_signed_in_utc_whatever_the_clock_shows() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=9)))
    assert for_bedrock(posted("/"), now=elsewhere) == for_bedrock(posted("/"))


def test_a_signature_that_is_there_is_replaced() -> None:
    once = for_bedrock(posted("/"), "TOKEN")
    assert for_bedrock(once, "TOKEN") == once
    assert len([name for name, _ in once.headers if name == "authorization"]) == 1


def test_the_hash_of_the_body_can_be_given() -> None:
    given_hash = "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    made = for_bedrock(request(f"{HOST}/x", "POST", b"", x_amz_content_sha256=given_hash))
    assert signature(made) == by_botocore(request(f"{HOST}/x", "POST", BODY, x_amz_content_sha256=given_hash))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://EXAMPLE.com/", "example.com"),
        ("https://example.com:443/", "example.com"),
        ("http://example.com:80/", "example.com"),
        ("https://example.com:80/", "example.com:80"),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000"),
        ("http://[::1]:8000/", "[::1]:8000"),
        ("https://[::1]/", "[::1]"),
        ("https://example.com./", "example.com"),
    ],
)
def test_the_host_is_signed_as_it_is_sent(url: str, host: str) -> None:
    told = request(url.replace("example.com.", "example.com"), host=host)
    assert signature(for_bedrock(request(url))) == by_botocore(told)


def test_credentials_show_nothing_of_themselves() -> None:
    credentials = Credentials(access_key_id=KEY, secret_access_key=SECRET, session_token="token")
    assert repr(credentials) == str(credentials) == f"{credentials}" == "***"
    with pytest.raises(TypeError):
        pickle.dumps(credentials)


# --- botocore as the judge --------------------------------------------------------------------------------------------


def by_botocore(unsigned: HttpRequest, session_token: str = "") -> str:
    judged: Any = AWSRequest(method=unsigned.method, url=unsigned.url, data=unsigned.body)
    for name, value in unsigned.headers:
        judged.headers.add_header(name, value)
    signer = SigV4Auth(BotocoreCredentials(KEY, SECRET, session_token or None), "bedrock", "us-east-1")
    with patch("botocore.auth.get_current_datetime", return_value=AT.replace(tzinfo=None)):
        signer.add_auth(judged)
    text: str = judged.headers["Authorization"]
    return text.rpartition("Signature=")[2]


WORDS: Final = st.text(alphabet="abcXYZ019-._~", max_size=12)
ENCODED: Final = st.text(max_size=8).map(lambda text: quote(text, safe=""))
NAMES: Final = st.sampled_from(["content-type", "accept", "x-amzn-bedrock-trace", "user-agent", "traceparent", "x-b"])
VALUES: Final = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
# Botocore takes out dot segments and empty ones, which no path of ours has.
SEGMENTS: Final = (WORDS | ENCODED | st.just("a:b")).filter(lambda segment: segment.strip("."))


@given(
    method=st.sampled_from(["GET", "POST"]),
    segments=st.lists(SEGMENTS, max_size=4),
    query=st.lists(st.tuples(WORDS | ENCODED, WORDS | ENCODED), max_size=4),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    body=st.binary(max_size=50),
    session_token=st.sampled_from(["", "TOKEN/+=="]),
)
def test_any_request_is_signed_as_by_botocore(
    method: str,
    segments: list[str],
    query: list[tuple[str, str]],
    headers: list[tuple[str, str]],
    body: bytes,
    session_token: str,
) -> None:
    text = "&".join(f"{name}={value}" for name, value in query)
    url = f"{HOST}/{'/'.join(segments)}{'?' if text else ''}{text}"
    unsigned = HttpRequest(method=method, url=url, headers=tuple(headers), body=body)
    assert signature(for_bedrock(unsigned, session_token)) == by_botocore(unsigned, session_token)
