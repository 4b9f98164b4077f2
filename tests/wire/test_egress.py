# ruff: noqa: RUF001 -- characters that look like others are what is tested
"""Which URLs and addresses pass, under each policy, in every spelling."""

from urllib.parse import urlsplit

import httpx
import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import PrivateHttp
from patchbay_server.wire.egress import EgressRules, Target, check_address, check_allow_list_entry, check_url

NONE = EgressRules()
LOOPBACK = EgressRules(private_http=PrivateHttp.LOOPBACK)
PRIVATE = EgressRules(private_http=PrivateHttp.PRIVATE)
ALL_RULES = [NONE, LOOPBACK, PRIVATE]


def verdict(url: str, rules: EgressRules) -> Reason | None:
    try:
        check_url(url, rules)
    except PatchbayError as error:
        return error.reason
    return None


def address_verdict(address: str, scheme: str, rules: EgressRules) -> Reason | None:
    try:
        check_address(address, scheme, rules)
    except PatchbayError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://api.openai.com/v1", Target(scheme="https", host="api.openai.com", port=443, path="/v1")),
        ("HTTPS://API.OpenAI.com", Target(scheme="https", host="api.openai.com", port=443)),
        ("https://example.com.:8443/", Target(scheme="https", host="example.com", port=8443, path="/")),
        ("https://my_host/a%2Fb%3a", Target(scheme="https", host="my_host", port=443, path="/a%2Fb%3a")),
        ("https://bücher.example", Target(scheme="https", host="xn--bcher-kva.example", port=443)),
        ("https://BÜCHER。example", Target(scheme="https", host="xn--bcher-kva.example", port=443)),
        ("https://8.8.8.8:1", Target(scheme="https", host="8.8.8.8", port=1)),
        ("https://[2606:4700:0::1111]/", Target(scheme="https", host="2606:4700::1111", port=443, path="/")),
        ("https://1password.com", Target(scheme="https", host="1password.com", port=443)),
        ("https://127.0.0.1.example", Target(scheme="https", host="127.0.0.1.example", port=443)),
    ],
)
def test_public_https_passes_under_every_policy_and_is_canonical(url: str, target: Target) -> None:
    for rules in ALL_RULES:
        assert check_url(url, rules) == target


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://a.example:443", "a.example"),
        ("https://a.example:80", "a.example:80"),
        ("https://[2606:4700::1]", "[2606:4700::1]"),
        ("https://[2606:4700::1]:8443", "[2606:4700::1]:8443"),
    ],
)
def test_the_authority_is_what_a_host_header_has(url: str, authority: str) -> None:
    assert check_url(url, NONE).authority == authority


LOOPBACK_SPELLINGS = [
    *("127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7f.1", "0177.0.0.1", "0x7F.0x0.0x0.0x1"),
    *("127.0.0.01", "127.0.0.1.", "127.0.0.1..", "127.000.000.001", "00127.0.0.1", "0x7f.0.1", "4294967297", "0x"),
    *("%31%32%37.0.0.1", "127%2e0%2e0%2e1", "127.0.0.1%00", "127.0.0.1%09", "localhost%00", "%6cocalhost"),
    *("１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "１２７．０．０．１", "𝟏𝟐𝟕.𝟎.𝟎.𝟏"),
    *("127.0.0.\u00ad1", "127.0.0.1\u200b", "\u2060127.0.0.1", "127.0.0.1\ufe0f"),
    *(
        "[::1%lo]",
        "[::1%25lo]",
        "[::1",
        "::1]",
        "::1",
        "[[::1]]",
        "[127.0.0.1]",
        "[::ffff:127.1]",
        "[0:0:0:0:0:0:0:0:1]",
    ),
    *("127.0.0.1:80:80", "127.0.0.1 ", "127.0.0.1\t", "127.0.0.1\n", "127.0.0.1\x00", "127.0.0.1\\@example.com"),
    *("example.com@127.0.0.1", "example.com:80@127.0.0.1", "@127.0.0.1", "127.0.0.1@example.com", ":@localhost"),
    *("", ".", "..", "-", "a..b", "-a.example", "a-.example", "a" * 64 + ".example", "a." * 127 + "a", "xn--a\u0660"),
    *("127.0.0.1,example.com", "127.0.0.1;example.com", "ex ample.com", "ex\u3000ample.com", "example.com|", "[]"),
]


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("port", ["", ":8080"])
def test_no_other_spelling_of_a_host_passes_any_policy(host: str, scheme: str, port: str) -> None:
    for rules in ALL_RULES:
        assert verdict(f"{scheme}://{host}{port}/v1", rules) is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "//example.com", "https:example.com", "https:/example.com", "https:///v1", "https://"),
        *("ftp://example.com", "file:///etc/passwd", "gopher://example.com", "javascript:alert(1)", "unix:///x"),
        *(" https://example.com", "https://example.com ", "ht\ttps://example.com", "https://example.com/\r\nhost: x"),
        *(
            "https:\\\\example.com",
            "https://example.com\\@127.0.0.1",
            "https://example.com/a\\b",
            "https://exa\x7fmple",
        ),
        *("https://example.com/?a=b", "https://example.com?", "https://example.com/#x", "https://example.com#"),
        *("https://user@example.com", "https://user:pass@example.com", "https://@example.com", "https://:@example.com"),
        *("https://example.com:0", "https://example.com:65536", "https://example.com:", "https://example.com:+80"),
        *("https://example.com:080", "https://example.com:8o", "https://example.com:-1", "https://example.com:４４３"),
        *(
            "https://example.com/../v1",
            "https://example.com/v1/..",
            "https://example.com/%2e%2E/v1",
            "https://e.com/./a",
        ),
        *("https://example.com/a%2", "https://example.com/%zz", "https://example.com/é", 'https://example.com/"'),
        *("https://" + "a" * 9000, "https://example.com/" + "a" * 9000, "https://example.com/a\u2028b"),
    ],
)
def test_a_malformed_base_url_never_passes(url: str) -> None:
    for rules in ALL_RULES:
        assert verdict(url, rules) is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("https://user:pass@example.com", "user name or password"),
        ("https://example.com\\@127.0.0.1", "backslashes"),
        ("https://example.com/\n", "spaces, control characters"),
        ("https://127.1", "four plain numbers"),
        ("https://2606:4700::1/", "brackets"),
        ("https://example.com/?key=1", "query"),
        ("http://8.8.8.8", "use https"),
        ("http://127.0.0.1", "`private_http` to LOOPBACK"),
    ],
)
def test_a_refusal_says_what_to_do_and_repeats_nothing(url: str, advice: str) -> None:
    with pytest.raises(PatchbayError, match=advice) as caught:
        check_url(url, NONE)
    assert "pass@" not in caught.value.message
    assert caught.value.__cause__ is None


def test_the_url_of_a_request_may_carry_a_query_but_no_fragment() -> None:
    url = "https://example.com/v1/models?alt=sse&x=%20"
    assert check_url(url, NONE, query_allowed=True).query == "alt=sse&x=%20"
    for bad in ("https://example.com/?a#b", "https://example.com/?a=é", "https://example.com/?a=%0"):
        with pytest.raises(PatchbayError):
            check_url(bad, NONE, query_allowed=True)


NEVER = [
    *("0.0.0.0", "0.1.2.3", "100.64.0.1", "100.100.100.200", "100.127.255.255", "168.63.129.16"),
    *("169.254.0.1", "169.254.169.254", "169.254.170.2", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    "255.255.255.255",
    *("::", "fe80::1", "fec0::1", "ff02::1", "fc00::1", "fd00:ec2::254", "fdff::1", "100::1", "2001:db8::1", "3fff::1"),
    *("2001::1", "2001:2::1", "2001:10::1", "2002:7f00:1::", "2002:808:808::1", "4000::1", "5f00::1", "64:ff9b:1::1"),
    *("::ffff:169.254.169.254", "::ffff:0.0.0.0", "::169.254.169.254", "::ffff:100.64.0.1", "::ffff:224.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "::ffff:0:127.0.0.1"),
]


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_such_addresses_are_never_allowed(address: str, scheme: str) -> None:
    host = f"[{address}]" if ":" in address else address
    for rules in [*ALL_RULES, EgressRules(private_http=PrivateHttp.PRIVATE, host_allow_list=(address,))]:
        assert address_verdict(address, scheme, rules) is Reason.INVALID_REQUEST
        assert verdict(f"{scheme}://{host}/", rules) is Reason.INVALID_REQUEST


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700::1%1", "::1%lo", "not an address", "", "127.1", "1"])
def test_what_a_resolver_should_not_say_is_never_allowed(address: str) -> None:
    for rules in ALL_RULES:
        assert address_verdict(address, "https", rules) is Reason.INVALID_REQUEST


PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.15.255.255",
    "172.32.0.0",
    "11.0.0.0",
    "192.167.255.255",
    "100.63.0.1",
    "100.128.0.1",
]
PUBLIC_V6 = ["2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
LOOPBACKS = ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::127.0.0.1"]
PRIVATES = ["10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("address", PUBLIC + PUBLIC_V6)
def test_public_addresses_are_for_https_only(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    for rules in ALL_RULES:
        assert address_verdict(address, "https", rules) is None
        assert verdict(f"https://{host}", rules) is None
        assert address_verdict(address, "http", rules) is Reason.INVALID_REQUEST
        assert verdict(f"http://{host}", rules) is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    ("addresses", "denied", "allowed"),
    [(LOOPBACKS, [NONE], [LOOPBACK, PRIVATE]), (PRIVATES, [NONE, LOOPBACK], [PRIVATE])],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_other_addresses_are_open_as_far_as_policy_says(
    addresses: list[str], denied: list[EgressRules], allowed: list[EgressRules], scheme: str
) -> None:
    for address in addresses:
        url = f"{scheme}://[{address}]:8000/v1" if ":" in address else f"{scheme}://{address}:8000/v1"
        for rules in denied:
            assert address_verdict(address, scheme, rules) is Reason.POLICY_DENIED
            assert verdict(url, rules) is Reason.POLICY_DENIED
        for rules in allowed:
            assert address_verdict(address, scheme, rules) is None
            assert verdict(url, rules) is None


@given(st.ip_addresses())
def test_every_address_has_a_verdict_and_only_named_ranges_open_with_policy(address: object) -> None:
    text = str(address)
    strict, wide = (address_verdict(text, "https", rules) for rules in (NONE, PRIVATE))
    assert strict in {None, Reason.INVALID_REQUEST, Reason.POLICY_DENIED}
    assert (strict is Reason.POLICY_DENIED) == (strict != wide)


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "https://localhost", "http://LOCALHOST.", "http://a.localhost:1"]
)
def test_localhost_names_are_loopback_names(url: str) -> None:
    assert verdict(url, NONE) is Reason.POLICY_DENIED
    assert verdict(url, LOOPBACK) is None
    assert verdict(url, PRIVATE) is None


def test_a_plain_http_name_is_refused_where_no_address_could_be_allowed() -> None:
    assert verdict("http://ollama:11434/v1", NONE) is Reason.POLICY_DENIED
    assert verdict("http://ollama:11434/v1", LOOPBACK) is None
    assert verdict("http://ollama:11434/v1", PRIVATE) is None


@pytest.mark.parametrize(
    ("entries", "allowed", "denied"),
    [
        (
            ("api.example.com",),
            ["api.example.com", "API.EXAMPLE.COM."],
            ["example.com", "x.api.example.com", "api.example.co"],
        ),
        (
            ("*.example.com",),
            ["a.example.com", "a.b.example.com"],
            ["example.com", "badexample.com", "example.com.evil.net"],
        ),
        (("*.Example.COM.", "8.8.8.8"), ["a.example.com", "8.8.8.8"], ["8.8.4.4"]),
        (("xn--bcher-kva.example",), ["bücher.example"], ["bucher.example"]),
        (("*.8.8",), [], ["8.8.8.8"]),
        (("2606:4700::1",), ["[2606:4700:0::1]"], ["[2606:4700::2]"]),
    ],
)
def test_the_allow_list_narrows(entries: tuple[str, ...], allowed: list[str], denied: list[str]) -> None:
    rules = EgressRules(host_allow_list=entries)
    for host in allowed:
        assert verdict(f"https://{host}/", rules) is None
    for host in denied:
        assert verdict(f"https://{host}/", rules) is Reason.POLICY_DENIED


def test_the_allow_list_never_lifts_the_address_rules() -> None:
    rules = EgressRules(host_allow_list=("127.0.0.1", "localhost", "10.0.0.1", "ollama"))
    for host in rules.host_allow_list:
        assert verdict(f"http://{host}:8000", rules) is Reason.POLICY_DENIED


@pytest.mark.parametrize(
    ("entry", "canonical"),
    [
        ("API.example.com.", "api.example.com"),
        ("*.Bücher.example", "*.xn--bcher-kva.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("2606:4700:0::1", "2606:4700::1"),
        ("localhost", "localhost"),
    ],
)
def test_an_allow_list_entry_has_a_canonical_form(entry: str, canonical: str) -> None:
    assert check_allow_list_entry(entry) == canonical


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.",
        "a.*",
        "*a.example",
        "**.a",
        "https://a.example",
        "a.example:443",
        "a/b",
        "*.10.0.0.1",
        "u@a",
        "127.1",
    ],
)
def test_what_is_no_host_is_no_allow_list_entry(entry: str) -> None:
    with pytest.raises(PatchbayError) as caught:
        check_allow_list_entry(entry)
    assert caught.value.reason is Reason.INVALID_REQUEST


@given(st.text(max_size=60))
def test_any_text_is_judged_without_another_exception(text: str) -> None:
    for url in (text, f"https://{text}", f"http://{text}/v1"):
        assert verdict(url, PRIVATE) in {None, Reason.INVALID_REQUEST, Reason.POLICY_DENIED}


HOSTS = st.lists(
    st.sampled_from(
        [*"aZ0_-.:[]%@/?#\\é。１ß\u00ad", "xn--", "0x7f", "127", "::1", "localhost", "example.com", "1-2", "bücher"]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@given(
    host=HOSTS, port=st.sampled_from(["", ":80", ":443", ":8443"]), path=st.sampled_from(["", "/", "/a%2Fb%3a", "/v1"])
)
def test_whoever_reads_a_judged_url_reads_the_same_host(host: str, port: str, path: str) -> None:
    try:
        target = check_url(f"https://{host}{port}{path}", PRIVATE)
    except PatchbayError:
        return
    assert check_url(target.url, PRIVATE) == target
    ours = (target.host, target.port, target.path or "/")
    plain, by_aiohttp, by_httpx = urlsplit(target.url), yarl.URL(target.url, encoded=True), httpx.URL(target.url)
    assert (plain.hostname, plain.port or 443, plain.path or "/") == ours
    assert (by_aiohttp.raw_host, by_aiohttp.port, by_aiohttp.raw_path) == ours
    assert (by_httpx.raw_host.decode(), by_httpx.port or 443, by_httpx.raw_path.decode()) == ours
