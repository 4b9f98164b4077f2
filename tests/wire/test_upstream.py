"""What travels, what comes back, and how every failure is called, against real sockets."""

import asyncio
import hashlib
import os
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

import httpx
import psutil
import pytest
from tests.support.clock import START
from tests.support.needs import needs
from tests.support.stopwatch import Stopwatch
from tests.wire.conftest import Authority, FixedNames, Serve
from tests.wire.raw_server import AT_ONCE_S, Peer, until

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import PrivateHttp
from patchbay_server.wire.egress import EgressRules
from patchbay_server.wire.http import ANSWER_BYTES_MAX, ERROR_BYTES_MAX, Frame, Framing, HttpAnswer, HttpRequest
from patchbay_server.wire.upstream import Limits, Upstream
from patchbay_server.wire.upstream.transport import AiohttpTransport

NONE = EgressRules()
LOOPBACK = EgressRules(private_http=PrivateHttp.LOOPBACK)
PRIVATE = EgressRules(private_http=PrivateHttp.PRIVATE)
LIMITS = Limits(connect_s=20, first_byte_s=20, idle_s=20)
"""Never reached in a test that does not make them shorter."""
KEY = "sk-secret-key"
PATH = "/secret-path"


def post(
    url: str, *, body: bytes = b'{"model":"m"}', framing: Framing = Framing.BODY, method: str = "POST"
) -> HttpRequest:
    headers = (("authorization", f"Bearer {KEY}"), ("content-type", "application/json"))
    return HttpRequest(method=method, url=url, headers=headers, body=body, framing=framing)


async def whole(
    upstream: Upstream, request: HttpRequest, rules: EgressRules = LOOPBACK, limits: Limits = LIMITS
) -> HttpAnswer:
    async with upstream.send(request, rules=rules, limits=limits) as answer:
        return await answer.whole()


async def reads(
    upstream: Upstream, request: HttpRequest, rules: EgressRules = LOOPBACK, limits: Limits = LIMITS
) -> list[list[Frame]]:
    async with upstream.send(request, rules=rules, limits=limits) as answer:
        return [frames async for frames in answer.frames()]


async def refusal(
    upstream: Upstream, request: HttpRequest, rules: EgressRules = LOOPBACK, limits: Limits = LIMITS
) -> PatchbayError:
    """The error that asking for the whole answer, or for its events, ends with."""
    ask = whole if request.framing is Framing.BODY else reads
    with pytest.raises(PatchbayError) as caught:
        await ask(upstream, request, rules, limits)
    tells_nothing(caught.value)
    return caught.value


def tells_nothing(error: BaseException) -> None:
    """Neither the error nor anything that it refers to shows the key, the path or the body."""
    chain: list[BaseException] = [error]
    for link in chain:
        chain += [other for other in (link.__cause__, link.__context__) if other is not None and other not in chain]
    shown = "".join(traceback.format_exception(error)) + "".join(f"{e!s} {e!r} {vars(e)!r} {e.args!r}" for e in chain)
    for secret in (KEY, PATH, "tell-nobody"):
        assert secret not in shown


# --- what travels -----------------------------------------------------------------------------------------------------


async def test_a_request_goes_out_as_it_was_made(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b'{"ok":true}', headers=b"X-Request-Id: abc\r\nset-cookie: a=b\r\nx-two: 1\r\nX-Two: 2\r\n")

    server = await serve(script)
    path = "/v1/models/a%3Ab%2fc@001:generate?alt=sse&x=%20'"
    answer = await whole(upstream, post(server.url + path))
    assert answer.body == b'{"ok":true}'
    assert answer.status == 200
    assert answer.received_at == START
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["x-two"] == "1, 2"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    assert line == f"POST {path} HTTP/1.1"
    assert sorted(header.lower() for header in headers) == [
        "accept-encoding: identity",
        f"authorization: bearer {KEY}",
        "content-length: 13",
        "content-type: application/json",
        f"host: 127.0.0.1:{server.port}",
    ]
    assert body == b'{"model":"m"}'


async def test_a_get_has_no_body(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()

    server = await serve(script)
    await whole(upstream, HttpRequest(method="GET", url=server.url + "/v1/models"))
    assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert b"content-length" not in server.requests[0].lower()


async def test_a_big_body_arrives_whole(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.answer(hashlib.sha256(request.partition(b"\r\n\r\n")[2]).hexdigest().encode())

    server = await serve(script)
    body = os.urandom(3 * 2**20 + 7)
    assert (await whole(upstream, post(server.url, body=body))).body.decode() == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("transfer-encoding", "chunked"), ("content-length", "1"), ("connection", "upgrade"), ("host", "evil.test")),
        *(("x-a", "b\r\nx-evil: 1"), ("x-a", "b\x00"), ("x-a", "é"), ("x a", "b"), ("x-a\r\nx-evil", "1"), ("", "b")),
    ],
)
async def test_a_header_cannot_change_the_request(upstream: Upstream, serve: Serve, name: str, value: str) -> None:
    server = await serve(Peer.answer)
    request = HttpRequest(method="POST", url=server.url, headers=((name, value),), body=b"tell-nobody")
    assert (await refusal(upstream, request)).reason is Reason.CONNECTOR_MISCONFIGURED
    assert not server.peers


async def test_no_cookie_is_kept(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.answer(headers=b"set-cookie: session=1; path=/\r\n")

    server = await serve(script)
    for _ in range(2):
        await whole(upstream, post(server.url))
    assert b"cookie" not in server.requests[1].lower()


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect"])
async def test_a_redirect_is_an_answer_and_not_followed(upstream: Upstream, serve: Serve, status: str) -> None:
    elsewhere = await serve(Peer.answer)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(status=status, headers=f"location: {elsewhere.url}/x\r\n".encode())

    server = await serve(script)
    async with upstream.send(post(server.url), rules=LOOPBACK, limits=LIMITS) as answer:
        assert answer.status == int(status[:3])
        assert not answer.ok
        assert (await answer.whole()).headers["location"] == f"{elsewhere.url}/x"
    assert not elsewhere.peers


async def test_the_environment_plays_no_part(
    serve: Serve, authority: Authority, names: FixedNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()

    proxy = await serve(script)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    plain = await serve(script)
    encrypted = await serve(script, authority.server("provider.test"))
    upstream = Upstream(now=lambda: START, resolver=names)
    await whole(upstream, post(plain.url))
    error = await refusal(upstream, post(f"https://provider.test:{encrypted.port}"))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert "certificate" in error.message
    assert not proxy.peers
    await upstream.close()


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_frames_come_with_the_reads_that_complete_them(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_chunked()
        for chunk in (b"data: a\n\ndata: b\n\n", b": ping\n\n", b"data: c\n", b"\n"):
            await peer.chunk(chunk)
            await asyncio.sleep(0.03)
        await peer.chunk(b"data: d")
        await peer.end()

    server = await serve(script)
    a, b, c, d = Frame(b"a"), Frame(b"b"), Frame(b"c"), Frame(b"d", torn=True)
    got = await reads(upstream, post(server.url, framing=Framing.SSE))
    assert got in ([[a, b], [], [], [c], [], [d]], [[a, b], [], [], [c], [d]])


@pytest.mark.parametrize("framing", list(Framing))
async def test_json_in_place_of_a_stream_is_one_whole_frame(upstream: Upstream, serve: Serve, framing: Framing) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b'{"error":1}\n\n', headers=b"content-type: text/event-stream\r\n")

    server = await serve(script)
    frames = [frame for read in await reads(upstream, post(server.url, framing=framing)) for frame in read]
    assert frames == [Frame(b'{"error":1}\n\n', whole=True)]


@pytest.mark.parametrize("body", ["length", "chunked", "until-close"])
async def test_a_slow_consumer_gets_every_byte(upstream: Upstream, serve: Serve, body: str) -> None:
    content = os.urandom(4 * 2**20)

    async def script(peer: Peer) -> None:
        await peer.request()
        if body == "chunked":
            await peer.start_chunked("x/y")
            for at in range(0, len(content), 40_000):
                await peer.chunk(content[at : at + 40_000])
            await peer.end()
            await peer.request()
        elif body == "length":
            await peer.answer(content)
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + content)

    server = await serve(script)
    async with upstream.send(post(server.url), rules=LOOPBACK, limits=LIMITS) as answer:
        frames: list[Frame] = []
        count = 0
        async for read in answer.frames():
            frames += read
            count += 1
            if count % 10 == 0:
                await asyncio.sleep(0.005)
    assert frames == [Frame(content, whole=True)]


async def test_a_consumer_that_stops_stops_the_provider(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_chunked()
        while peer.sent < 2**28:
            await peer.chunk(b"data: " + b"x" * 60_000 + b"\n\n")

    server = await serve(script)
    rss_before = psutil.Process().memory_info().rss
    async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
        frames = answer.frames()
        await anext(frames)
        sent = -1
        while sent != server.peers[0].sent:
            sent = server.peers[0].sent
            await asyncio.sleep(0.05)
        assert sent < 2**24  # what the kernel's socket buffers hold
        assert psutil.Process().memory_info().rss - rss_before < 2**23
        await anext(frames)


async def test_an_answer_beyond_the_bound_is_malformed(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"x" * (ANSWER_BYTES_MAX + 1))

    server = await serve(script)
    assert (await refusal(upstream, post(server.url))).reason is Reason.UPSTREAM_MALFORMED_RESPONSE


async def test_an_error_body_is_cut_and_the_rest_left_unread(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n")
        while peer.sent < 2**28:
            await peer.chunk(b"y" * 50_000)

    server = await serve(script)
    answer = await whole(upstream, post(server.url))
    assert answer.status == 500
    assert answer.body == b"y" * ERROR_BYTES_MAX
    await until(lambda: server.open == 0)
    assert server.peers[0].sent < 2**24


@pytest.mark.parametrize("ending", ["short", "reset", "stall"])
async def test_an_error_status_counts_however_its_body_ends(upstream: Upstream, serve: Serve, ending: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b'HTTP/1.1 401 No\r\ncontent-length: 99\r\n\r\n{"error":')
        await asyncio.sleep(0.02)
        if ending == "reset":
            peer.reset()
        elif ending == "stall":
            await peer.gone()

    server = await serve(script)
    answer = await whole(upstream, post(server.url), limits=Limits(idle_s=0.05))
    assert (answer.status, answer.body) == (401, b'{"error":')


async def test_what_a_server_says_in_the_meantime_is_skipped(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
            await peer.answer(b"good")

    server = await serve(script)
    for _ in range(2):
        assert (await whole(upstream, post(server.url))).body == b"good"


async def test_a_server_that_wants_another_protocol_is_refused(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello")
        await peer.gone()

    server = await serve(script)
    async with upstream.send(post(server.url), rules=LOOPBACK, limits=LIMITS) as answer:
        assert (answer.ok, (await answer.whole()).status) == (False, 101)
    await until(lambda: server.open == 0, AT_ONCE_S)


@pytest.mark.parametrize("status", ["204 No Content", "200 OK", "404 Not Found"])
async def test_an_empty_body_is_a_body(upstream: Upstream, serve: Serve, status: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"", status)

    server = await serve(script)
    assert (await whole(upstream, post(server.url))).body == b""


# --- broken answers ---------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("framing", list(Framing))
@pytest.mark.parametrize(
    ("parts", "ending", "reason"),
    [
        ([], "close", Reason.UPSTREAM_UNAVAILABLE),
        ([], "reset", Reason.UPSTREAM_UNAVAILABLE),
        ([b"HTTP/1.1 200 O"], "close", Reason.UPSTREAM_UNAVAILABLE),
        ([HEAD + b"content-length: 9\r\n\r\n", b"data"], "close", Reason.UPSTREAM_STREAM_BROKEN),
        ([HEAD + b"content-length: 9\r\n\r\n", b"data"], "reset", Reason.UPSTREAM_STREAM_BROKEN),
        ([HEAD + b"content-length: 9\r\n\r\n"], "close", Reason.UPSTREAM_STREAM_BROKEN),
        ([CHUNKED, b"4\r\ndata\r\n"], "close", Reason.UPSTREAM_STREAM_BROKEN),
        ([CHUNKED, b"4\r\ndata\r\n"], "reset", Reason.UPSTREAM_STREAM_BROKEN),
        ([CHUNKED, b"9\r\ndata"], "close", Reason.UPSTREAM_STREAM_BROKEN),
        ([CHUNKED, b"4\r\ndata\r\n0\r\n"], "close", Reason.UPSTREAM_STREAM_BROKEN),
        ([HEAD + b"\r\n", b"data"], "reset", Reason.UPSTREAM_STREAM_BROKEN),
        ([CHUNKED, b"4\r\ndata\r\n", b"zz\r\ndata\r\n"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([CHUNKED + b"zz\r\ndata\r\n"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([b"tell-nobody\r\n\r\n"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([HEAD + b"content-length: x\r\n\r\n"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([HEAD + b"x: " + b"a" * 200_000], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([HEAD + b"a: b\r\n" * 50_000], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([b"HTTP/1.1 200 " + b"a" * 200_000], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nx"], "wait", Reason.UPSTREAM_MALFORMED_RESPONSE),
    ],
)
async def test_a_broken_answer_is_called_by_its_name(
    upstream: Upstream, serve: Serve, framing: Framing, parts: Sequence[bytes], ending: str, reason: Reason
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*parts, pause_s=0.02)
        if ending == "reset":
            peer.reset()
        elif ending == "wait":
            await peer.gone()

    server = await serve(script)
    assert (await refusal(upstream, post(server.url + PATH, framing=framing))).reason is reason
    await until(lambda: server.open == 0)


async def test_a_provider_that_hangs_up_and_reads_on_is_unavailable(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        peer.shut()
        await peer.gone()

    server = await serve(script)
    error = await refusal(upstream, post(server.url, body=b"x" * 2**25))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE


async def test_what_came_before_the_break_is_delivered(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_chunked()
        await peer.chunk(b"data: a\n\ndata: b")
        await asyncio.sleep(0.02)
        peer.reset()

    server = await serve(script)
    async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
        frames = answer.frames()
        assert await anext(frames) == [Frame(b"a")]
        with pytest.raises(PatchbayError):
            await anext(frames)


# --- reaching the provider --------------------------------------------------------------------------------------------


async def test_nobody_listening_is_unavailable(upstream: Upstream, unused_tcp_port: int) -> None:
    error = await refusal(upstream, post(f"http://127.0.0.1:{unused_tcp_port}{PATH}"))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE


async def test_a_name_that_nobody_knows_is_unavailable(upstream: Upstream) -> None:
    error = await refusal(upstream, post(f"http://nowhere.test{PATH}"))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert "name" in error.message


async def test_the_system_resolves_names_by_default(serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()

    server = await serve(script)
    upstream = Upstream(now=lambda: START)
    assert (await whole(upstream, post(f"http://localhost:{server.port}"))).status == 200
    assert f"host: localhost:{server.port}".encode() in server.requests[0].lower()
    await upstream.close()


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


async def test_an_ipv6_address_can_be_called(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()

    needs(has_ipv6(), "IPv6 on loopback")
    server = await serve(script, host="::1")
    assert (await whole(upstream, post(f"http://[::1]:{server.port}"))).status == 200
    assert f"host: [::1]:{server.port}".encode() in server.requests[0].lower()


async def test_tls_with_the_right_name_works(upstream: Upstream, serve: Serve, authority: Authority) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"secure")

    server = await serve(script, authority.server("provider.test"))
    assert (await whole(upstream, post(f"https://provider.test:{server.port}"))).body == b"secure"


async def test_tls_under_another_name_is_unavailable(upstream: Upstream, serve: Serve, authority: Authority) -> None:
    server = await serve(Peer.answer, authority.server("provider.test"))
    error = await refusal(upstream, post(f"https://other.test:{server.port}{PATH}"))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert "certificate" in error.message


async def test_tls_to_an_unknown_authority_is_unavailable(
    serve: Serve, authority: Authority, names: FixedNames
) -> None:
    server = await serve(Peer.answer, authority.server("provider.test"))
    upstream = Upstream(now=lambda: START, resolver=names)
    error = await refusal(upstream, post(f"https://provider.test:{server.port}{PATH}"))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    await upstream.close()


async def test_tls_to_a_server_without_tls_is_unavailable(upstream: Upstream, serve: Serve) -> None:
    server = await serve(lambda peer: peer.send(b"HTTP/1.1 200 OK\r\n\r\n"))
    error = await refusal(upstream, post(f"https://provider.test:{server.port}{PATH}"))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE


# --- the address rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("127.1", "2130706433", "017700000001", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "[::1%lo]"),
        *("%31%32%37.0.0.1", "127.0.0.1%00", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "127.0.0.\u00ad1"),
        *("user@127.0.0.1", "example.com\\@127.0.0.1", "127.0.0.1\t", "127.0.0.1\n", " 127.0.0.1", "0", "0.0.0.0"),
    ],
)
@pytest.mark.parametrize("rules", [NONE, LOOPBACK, PRIVATE])
async def test_a_hostile_spelling_never_reaches_the_listener(
    upstream: Upstream, serve: Serve, names: FixedNames, host: str, rules: EgressRules
) -> None:
    server = await serve(Peer.answer)
    for scheme in ("http", "https"):
        error = await refusal(upstream, post(f"{scheme}://{host}:{server.port}{PATH}"), rules)
        assert error.reason is Reason.CONNECTOR_MISCONFIGURED
    assert not server.peers
    assert not names.asked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "a.localhost", "[::ffff:127.0.0.1]", "provider.test"])
async def test_policy_keeps_calls_off_loopback(
    upstream: Upstream, serve: Serve, authority: Authority, host: str
) -> None:
    server = await serve(Peer.answer, authority.server("provider.test"))
    for scheme in ("http", "https"):
        error = await refusal(upstream, post(f"{scheme}://{host}:{server.port}{PATH}"), NONE)
        assert error.reason is Reason.POLICY_DENIED
    assert not server.peers


@pytest.mark.parametrize(
    ("addresses", "rules", "reason"),
    [
        (["127.0.0.1", "169.254.169.254"], PRIVATE, Reason.CONNECTOR_MISCONFIGURED),
        (["127.0.0.1", "fe80::1%eth0"], PRIVATE, Reason.CONNECTOR_MISCONFIGURED),
        (["127.0.0.1", "8.8.8.8"], LOOPBACK, Reason.CONNECTOR_MISCONFIGURED),  # plain http to a public address
        (["127.0.0.1", "10.0.0.1"], LOOPBACK, Reason.POLICY_DENIED),
        (["::ffff:169.254.169.254"], PRIVATE, Reason.CONNECTOR_MISCONFIGURED),
        (["127.1"], PRIVATE, Reason.CONNECTOR_MISCONFIGURED),
        ([], LOOPBACK, Reason.UPSTREAM_UNAVAILABLE),
    ],
)
async def test_one_forbidden_address_spoils_a_name(
    upstream: Upstream, serve: Serve, names: FixedNames, addresses: list[str], rules: EgressRules, reason: Reason
) -> None:
    server = await serve(Peer.answer)
    for order in (addresses, addresses[::-1]):
        names.names["mixed.test"] = [order]
        error = await refusal(upstream, post(f"http://mixed.test:{server.port}{PATH}"), rules)
        assert error.reason is reason
    assert not server.peers


async def test_the_name_that_was_judged_is_the_name_that_is_called(
    upstream: Upstream, serve: Serve, names: FixedNames
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()

    server = await serve(script)
    names.names["xn--bcher-kva.test"] = [["127.0.0.1"]]
    for host in ("BÜCHER。test.", "xn--bcher-kva.TEST", "bu\u0308cher.test"):
        await whole(upstream, post(f"http://{host}:{server.port}"))
    assert set(names.asked) == {"xn--bcher-kva.test"}
    for request in server.requests:
        assert f"host: xn--bcher-kva.test:{server.port}\r\n".encode() in request.lower()


async def test_a_name_is_resolved_once_for_each_connection_and_checked_each_time(
    upstream: Upstream, serve: Serve, names: FixedNames
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(headers=b"connection: close\r\n")

    server = await serve(script)
    names.names["rebind.test"] = [["127.0.0.1"], ["169.254.169.254"]]
    request = post(f"http://rebind.test:{server.port}{PATH}")
    assert (await whole(upstream, request)).status == 200
    assert names.asked == ["rebind.test"]
    assert (await refusal(upstream, request)).reason is Reason.CONNECTOR_MISCONFIGURED
    assert len(server.peers) == 1


async def test_a_connection_does_not_outlive_a_stricter_policy(
    upstream: Upstream, serve: Serve, authority: Authority
) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.answer()

    server = await serve(script, authority.server("provider.test"))
    request = post(f"https://provider.test:{server.port}{PATH}")
    for _ in range(2):
        await whole(upstream, request, LOOPBACK)
    assert len(server.peers) == 1
    assert (await refusal(upstream, request, NONE)).reason is Reason.POLICY_DENIED
    allowed_elsewhere = EgressRules(private_http=PrivateHttp.LOOPBACK, host_allow_list=("other.test",))
    assert (await refusal(upstream, request, allowed_elsewhere)).reason is Reason.POLICY_DENIED
    assert len(server.requests) == 2


async def test_a_literal_address_is_checked_again_where_it_is_dialled(serve: Serve, authority: Authority) -> None:
    server = await serve(Peer.answer)
    transport = AiohttpTransport(
        scheme="http", rules=NONE, resolver=FixedNames(), tls=authority.trusting(), connections_max=1
    )
    request = httpx.Request("POST", server.url, extensions={"timeout": {"connect": 1, "read": 1}})
    with pytest.raises(PatchbayError) as caught:
        await transport.handle_async_request(request)
    assert caught.value.reason is Reason.POLICY_DENIED
    assert not server.peers
    await transport.aclose()


# --- limits -----------------------------------------------------------------------------------------------------------


class Silence:
    """A resolver that never answers."""

    def __init__(self) -> None:
        self.cancelled = False

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return []


async def wait_for_the_end(peer: Peer) -> None:
    await peer.gone()


async def test_a_name_that_is_not_resolved_in_time_is_unavailable() -> None:
    upstream = Upstream(now=lambda: START, resolver=Silence())
    error = await refusal(upstream, post(f"http://slow.test{PATH}"), limits=Limits(connect_s=0.05))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert "0.05 s" in error.message
    await upstream.close()


async def test_tls_that_is_not_agreed_in_time_is_unavailable(upstream: Upstream, serve: Serve) -> None:
    server = await serve(wait_for_the_end)
    error = await refusal(upstream, post(f"https://provider.test:{server.port}"), limits=Limits(connect_s=0.05))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_a_full_pool_counts_as_connecting(serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await asyncio.sleep(0.1)
            await peer.answer()

    server = await serve(script)
    upstream = Upstream(now=lambda: START, connections_max=1)
    first = asyncio.create_task(whole(upstream, post(server.url)))
    await until(lambda: bool(server.requests))
    error = await refusal(upstream, post(server.url), limits=Limits(connect_s=0.03))
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert [(await whole(upstream, post(server.url))).status, (await first).status] == [200, 200]
    assert len(server.peers) == 1
    await upstream.close()


@pytest.mark.parametrize("sent", [b"", CHUNKED, HEAD + b"content-length: 9\r\n\r\n"])
@pytest.mark.parametrize("framing", list(Framing))
async def test_no_first_byte_in_time_is_a_timeout(
    upstream: Upstream, serve: Serve, sent: bytes, framing: Framing
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.gone()

    server = await serve(script)
    limits = Limits(first_byte_s=0.08, idle_s=0.01)
    watch, started = Stopwatch(), time.perf_counter()
    error = await refusal(upstream, post(server.url + PATH, framing=framing), limits=limits)
    assert error.reason is Reason.UPSTREAM_TIMEOUT
    assert "0.08 s" in error.message
    assert time.perf_counter() - started >= 0.08
    assert watch.seconds < 0.5
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_the_first_byte_is_waited_for_from_sending_not_from_the_status(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.2)
        await peer.send(CHUNKED)
        await peer.gone()

    server = await serve(script)
    watch = Stopwatch()
    error = await refusal(upstream, post(server.url), limits=Limits(first_byte_s=0.3))
    assert error.reason is Reason.UPSTREAM_TIMEOUT
    assert watch.seconds < 0.45


async def test_a_slow_connection_takes_nothing_from_the_first_byte(serve: Serve) -> None:
    class Slow:
        async def resolve(self, host: str, port: int) -> Sequence[str]:
            await asyncio.sleep(0.6)
            return ["127.0.0.1"]

    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.6)
        await peer.answer()

    server = await serve(script)
    upstream = Upstream(now=lambda: START, resolver=Slow())
    limits = Limits(connect_s=1.1, first_byte_s=1.1)
    assert (await whole(upstream, post(f"http://slow.test:{server.port}"), limits=limits)).status == 200
    await upstream.close()


async def test_silence_in_mid_answer_is_a_timeout_and_any_byte_is_traffic(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_chunked()
        await peer.chunk(b"data: a\n\n")
        for _ in range(4):
            await asyncio.sleep(0.2)
            await peer.chunk(b":\n")
        await peer.gone()

    server = await serve(script)
    started = time.perf_counter()
    error = await refusal(upstream, post(server.url, framing=Framing.SSE), limits=Limits(idle_s=0.6))
    assert error.reason is Reason.UPSTREAM_TIMEOUT
    assert "0.6 s" in error.message
    assert time.perf_counter() - started >= 4 * 0.2 + 0.6
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_time_that_the_consumer_takes_is_not_the_providers(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_chunked()
        await peer.chunk(b"data: a\n\n")
        await asked_again.wait()
        await peer.chunk(b"data: b\n\n")
        await peer.end()

    asked_again = asyncio.Event()
    server = await serve(script)
    limits = Limits(idle_s=0.2)
    async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=limits) as answer:
        frames = answer.frames()
        assert await anext(frames) == [Frame(b"a")]
        await asyncio.sleep(0.3)
        asked_again.set()
        assert await anext(frames) == [Frame(b"b")]


# --- cancelling -------------------------------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.gone()


async def status_only(peer: Peer) -> None:
    await peer.request()
    await peer.start_chunked()
    await peer.gone()


async def half_a_body(peer: Peer) -> None:
    await peer.request()
    await peer.start_chunked()
    await peer.chunk(b"data: a\n\n")
    await peer.gone()


async def endless(peer: Peer) -> None:
    await peer.request()
    await peer.start_chunked()
    while True:
        await peer.chunk(b"data: " + b"x" * 10_000 + b"\n\n")


async def deaf(peer: Peer) -> None:
    """Reads nothing of the request; looks for the peer now and then."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.15)
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await peer.gone()


@pytest.mark.parametrize("script", [silent, status_only, half_a_body, endless, wait_for_the_end])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_cancel_closes_the_connection_at_once_in_any_phase(
    upstream: Upstream, serve: Serve, authority: Authority, script: Any, scheme: str
) -> None:
    gone = asyncio.Event()

    async def watched(peer: Peer) -> None:
        try:
            await script(peer)
        finally:
            gone.set()

    server = await serve(watched, authority.server("provider.test") if scheme == "https" else None)
    request = post(f"{scheme}://provider.test:{server.port}", framing=Framing.SSE)
    call = asyncio.create_task(reads(upstream, request))
    await until(lambda: server.open == 1)
    await asyncio.sleep(0.05)
    watch = Stopwatch()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    await gone.wait()
    assert watch.seconds < AT_ONCE_S


async def test_a_cancel_during_the_tls_handshake_closes_the_connection(upstream: Upstream, serve: Serve) -> None:
    server = await serve(wait_for_the_end)
    call = asyncio.create_task(reads(upstream, post(f"https://provider.test:{server.port}")))
    await until(lambda: server.open == 1)
    await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_a_cancel_during_resolving_reaches_the_resolver() -> None:
    resolver = Silence()
    upstream = Upstream(now=lambda: START, resolver=resolver)
    call = asyncio.create_task(reads(upstream, post("http://slow.test")))
    await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert resolver.cancelled
    await upstream.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_cancel_does_not_wait_for_an_upload_that_nobody_reads(
    upstream: Upstream, serve: Serve, authority: Authority, scheme: str
) -> None:
    server = await serve(deaf, authority.server("provider.test") if scheme == "https" else None)
    descriptors = psutil.Process().num_fds()
    call = asyncio.create_task(whole(upstream, post(f"{scheme}://provider.test:{server.port}", body=b"x" * 2**25)))
    await until(lambda: server.open == 1)
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    await asyncio.sleep(0.01)
    assert psutil.Process().num_fds() <= descriptors + 1  # the server's own end
    await until(lambda: server.open == 0)


async def test_a_tls_connection_is_closed_below_tls(upstream: Upstream, serve: Serve, authority: Authority) -> None:
    """A peer that never answers a TLS farewell must not keep the connection."""
    server = await serve(half_a_body, authority.server("provider.test"))
    frozen = asyncio.Event()

    async def relay(peer: Peer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

        async def back() -> None:
            while data := await reader.read(65536):
                if not frozen.is_set():
                    await peer.send(data)

        task = asyncio.create_task(back())
        while data := await peer._reader.read(65536):
            if not frozen.is_set():
                writer.write(data)
        task.cancel()
        writer.transport.abort()

    between = await serve(relay)
    request = post(f"https://provider.test:{between.port}", framing=Framing.SSE)
    async with upstream.send(request, rules=LOOPBACK, limits=LIMITS) as answer:
        assert await anext(answer.frames()) == [Frame(b"a")]
        frozen.set()
    await until(lambda: between.open == 0, AT_ONCE_S)


async def test_a_cancel_in_the_tick_of_a_timeout_is_a_cancel(upstream: Upstream, serve: Serve) -> None:
    server = await serve(silent)
    call = asyncio.create_task(whole(upstream, post(server.url), limits=Limits(first_byte_s=0.5)))
    await until(lambda: bool(server.requests))
    time.sleep(0.51)  # noqa: ASYNC251 -- holds the loop past the limit
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def test_a_callers_own_deadline_stays_the_callers(upstream: Upstream, serve: Serve) -> None:
    server = await serve(half_a_body)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reads(upstream, post(server.url, framing=Framing.SSE))
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_nothing_is_left_of_500_cancelled_calls(upstream: Upstream, serve: Serve) -> None:
    server = await serve(half_a_body)
    request = post(server.url, framing=Framing.SSE)

    async def round_of(count: int) -> None:
        calls = [asyncio.create_task(reads(upstream, request)) for _ in range(count)]
        await asyncio.sleep(0.0005 * count)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
        await until(lambda: server.open == 0)

    await round_of(50)
    descriptors, tasks = psutil.Process().num_fds(), len(asyncio.all_tasks())
    for _ in range(10):
        await round_of(50)
    assert psutil.Process().num_fds() <= descriptors
    assert len(asyncio.all_tasks()) <= tasks


async def test_an_exception_in_the_callers_block_closes_the_connection(upstream: Upstream, serve: Serve) -> None:
    server = await serve(half_a_body)

    async def fail() -> None:
        async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
            await anext(answer.frames())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await until(lambda: server.open == 0, AT_ONCE_S)


# --- reuse ------------------------------------------------------------------------------------------------------------


async def polite(peer: Peer) -> None:
    while await peer.request():
        await peer.start_chunked()
        await peer.chunk(b"data: a\n\n")
        await peer.chunk(b"data: [DONE]\n\n")
        await peer.end()


async def test_a_connection_serves_on_after_a_whole_answer(upstream: Upstream, serve: Serve) -> None:
    server = await serve(polite)
    for _ in range(5):
        await reads(upstream, post(server.url, framing=Framing.SSE))
    assert len(server.peers) == 1


async def test_a_connection_serves_nobody_after_an_early_exit(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.start_chunked()
            await peer.chunk(b"data: a\n\n")
            await asyncio.sleep(0.05)
            await peer.end()

    server = await serve(script)
    for count in (1, 2):
        async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
            await anext(answer.frames())
        assert len(server.peers) == count


async def test_draining_saves_the_connection(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.start_chunked()
            await peer.chunk(b"data: [DONE]\n\n")
            await asyncio.sleep(0.03)
            await peer.chunk(b"\n: bye\n")
            await peer.end()

    server = await serve(script)
    for _ in range(3):
        async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
            frames = answer.frames()
            assert await anext(frames) == [Frame(b"[DONE]")]
            await frames.aclose()
            await answer.drain()
    assert len(server.peers) == 1


@pytest.mark.parametrize("script", [half_a_body, endless])
async def test_draining_gives_up_soon(upstream: Upstream, serve: Serve, script: Any) -> None:
    server = await serve(script)
    async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
        await anext(answer.frames())
        watch = Stopwatch()
        await answer.drain()
        assert watch.seconds < (0.2 if script is endless else 0.4)
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_draining_a_broken_answer_does_not_fail(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_chunked()
        await peer.chunk(b"data: [DONE]\n\n")
        await asyncio.sleep(0.02)
        peer.reset()

    server = await serve(script)
    async with upstream.send(post(server.url, framing=Framing.SSE), rules=LOOPBACK, limits=LIMITS) as answer:
        await anext(answer.frames())
        await answer.drain()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_pooled_connection_that_the_provider_closed_is_not_used(
    upstream: Upstream, serve: Serve, authority: Authority, scheme: str
) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.answer()

    server = await serve(script, authority.server("provider.test") if scheme == "https" else None)
    request = post(f"{scheme}://provider.test:{server.port}")
    await whole(upstream, request)
    server.peers[0].shut()  # The client's loop has had no chance to see it.
    assert (await whole(upstream, request)).status == 200
    assert [len(peer.requests) for peer in server.peers] == [1, 1]


@pytest.mark.parametrize("at", ["with the answer", "later"])
async def test_an_answer_that_nobody_asked_for_is_given_to_nobody(upstream: Upstream, serve: Serve, at: str) -> None:
    unasked = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"

    async def script(peer: Peer) -> None:
        while await peer.request():
            good = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
            if at == "later":
                await peer.send(good, unasked, pause_s=0.03)
            else:
                await peer.send(good + unasked)

    server = await serve(script)
    for _ in range(3):
        assert (await whole(upstream, post(server.url))).body == b"good"
        await asyncio.sleep(0.05)


async def test_a_post_is_never_sent_twice_and_a_get_may_be(upstream: Upstream, serve: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        await peer.request()
        peer.reset()

    server = await serve(script)
    await whole(upstream, post(server.url))
    assert (await refusal(upstream, post(server.url))).reason is Reason.UPSTREAM_UNAVAILABLE
    assert len(server.requests) == 2
    get = HttpRequest(method="GET", url=server.url)
    assert (await whole(upstream, get)).status == 200
    assert (await whole(upstream, get)).status == 200


async def test_an_answer_before_the_end_of_the_upload_is_heard_and_ends_the_connection(
    upstream: Upstream, serve: Serve
) -> None:
    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.answer(b'{"error":"too big"}', "413 Content Too Large")
        await asyncio.sleep(0.1)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.gone()

    server = await serve(script)
    descriptors = psutil.Process().num_fds()
    answer = await whole(upstream, post(server.url, body=b"x" * 2**25))
    assert (answer.status, answer.body) == (413, b'{"error":"too big"}')
    await asyncio.sleep(0.02)
    assert psutil.Process().num_fds() <= descriptors + 1  # the server's own end
    await until(lambda: server.open == 0)


async def test_closing_closes_connections_in_use(serve: Serve) -> None:
    server = await serve(half_a_body)
    upstream = Upstream(now=lambda: START)
    call = asyncio.create_task(refusal(upstream, post(server.url, framing=Framing.SSE)))
    await until(lambda: server.open == 1)
    await asyncio.sleep(0.02)
    await upstream.close()
    assert (await call).reason is Reason.UPSTREAM_STREAM_BROKEN
    await until(lambda: server.open == 0, AT_ONCE_S)


async def test_closing_does_not_wait_for_an_upload_that_nobody_reads(serve: Serve) -> None:
    server = await serve(deaf)
    upstream = Upstream(now=lambda: START)
    call = asyncio.create_task(refusal(upstream, post(server.url, body=b"x" * 2**25)))
    await until(lambda: server.open == 1)
    await asyncio.sleep(0.02)
    watch = Stopwatch()
    await upstream.close()
    assert watch.seconds < AT_ONCE_S
    assert (await call).reason is Reason.UPSTREAM_UNAVAILABLE
