"""Where connectors may reach: the boundary that keeps callers' URLs off addresses they must not touch.

Two steps, both needed at every call. `check_url` judges what is written: its form, the host's spelling, literal
addresses, the allow-list. `check_address` judges each address that a name resolves to, before a connection is made to
that very address. Whatever is not plainly public, loopback or RFC 1918 is refused under every policy. Pure: resolves
and opens nothing.
"""

import ipaddress
import re
import unicodedata
from enum import Enum, auto
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import idna
import msgspec

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import PrivateHttp

URL_CHARACTERS_MAX: Final = 8192


class EgressRules(msgspec.Struct, frozen=True, kw_only=True):
    """What policy says about the hosts that connectors may reach.

    Args:
        private_http: how far into non-public networks; PRIVATE includes LOOPBACK. Plain http to public addresses is
            never allowed.
        host_allow_list: empty allows every host that the address rules allow. An entry is a host (name or address), or
            `*.` and a domain for all hosts below it but not itself. It only narrows.
    """

    private_http: PrivateHttp = PrivateHttp.NONE
    host_allow_list: tuple[str, ...] = ()


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL that passed `check_url`, taken apart.

    Args:
        scheme: `https` or `http`.
        host: a lower-case ASCII name without a trailing dot, or an address in canonical form without brackets.
        port: as written, else the scheme's.
        path: as written, percent-encoded; empty or starts with `/`.
        query: as written, without `?`; empty when there is none.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    query: str = ""

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port, as a `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole as text that nobody can read in another way: what was judged, and so what to send to."""
        return f"{self.scheme}://{self.authority}{self.path}{'?' if self.query else ''}{self.query}"


def check_url(url: str, rules: EgressRules, *, query_allowed: bool = False) -> Target:
    """The parts of `url` when it is well-formed and, as far as its text tells, allowed.

    A name that passes still has to pass `check_address` for each of its addresses.

    Args:
        query_allowed: False for a base URL; True for the URL of a request. A fragment never passes.

    Raises:
        PatchbayError: INVALID_REQUEST for what no policy allows; POLICY_DENIED for what `rules` forbid.
    """
    if len(url) > URL_CHARACTERS_MAX:
        raise _invalid(f"the URL must have at most {URL_CHARACTERS_MAX} characters")
    if _NEVER_IN_URL.search(url):
        raise _invalid("the URL must not contain spaces, control characters or backslashes")
    match = _URL.fullmatch(url)
    if match is None:
        raise _invalid("the URL must start with https:// or http:// and name a host")
    scheme, authority, path, query, fragment = match.group("scheme", "authority", "path", "query", "fragment")
    if fragment is not None:
        raise _invalid("the URL must not have a fragment; leave out `#` and what follows")
    if query is not None and not query_allowed:
        raise _invalid("the URL must not have a query; leave out `?` and what follows")
    _check_path(path, query or "")
    scheme = scheme.lower()
    host, port = _host_and_port(authority)
    target = Target(scheme=scheme, host=host, port=port or _PORTS[scheme], path=path, query=query or "")
    _check_host(target, rules)
    return target


def check_address(address: str | IPv4Address | IPv6Address, scheme: str, rules: EgressRules) -> None:
    """Refuse to connect to `address`, an IP address, under `scheme`.

    Raises:
        PatchbayError: INVALID_REQUEST for an address that no policy allows under `scheme`; POLICY_DENIED for one that
            `rules` forbid.
    """
    zone = _zone(address)
    if zone is None:
        raise _invalid("the host has an address that cannot be read; use another host")
    _check_zone(zone, scheme, rules)


def check_allow_list_entry(entry: str) -> str:
    """The canonical form of an entry for `EgressRules.host_allow_list`: lower-case ASCII without a trailing dot.

    Raises:
        PatchbayError: INVALID_REQUEST when it is no host and no `*.` with a domain.
    """
    wildcard = "*." if entry.startswith("*.") else ""
    name = entry.removeprefix("*.")
    try:
        host, port = _host_and_port(f"[{name}]" if name.count(":") > 1 else name)
    except PatchbayError:
        raise _no_entry() from None
    if port is not None or (wildcard and _literal(host) is not None):
        raise _no_entry()
    return wildcard + host


# --- text -------------------------------------------------------------------------------------------------------------

_PORTS: Final = {"https": 443, "http": 80}
_NEVER_IN_URL: Final = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029]")
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]+)(?P<path>(?:/[^?#]*)?)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?",
    re.IGNORECASE | re.ASCII,
)
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_QUERY: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_DOT_SEGMENT: Final = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_BRACKETED: Final = re.compile(r"\[(?P<host>[^\[\]]*)\](?::(?P<port>[^:]*))?")
_NAMED: Final = re.compile(r"(?P<host>[^:\[\]]*)(?::(?P<port>[^:]*))?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _check_path(path: str, query: str) -> None:
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise _invalid("the URL's path has characters that must be percent-encoded")
    if _DOT_SEGMENT.search(path):
        raise _invalid("the URL's path must not have `.` or `..` as a segment")


def _host_and_port(authority: str) -> tuple[str, int | None]:
    """The canonical host of `authority`, and its port if one is written."""
    if "@" in authority:
        raise _invalid("the URL must not contain a user name or password; credentials go into their own fields")
    match = _BRACKETED.fullmatch(authority)
    if match is not None:
        host = _ipv6(match["host"])
    else:
        match = _NAMED.fullmatch(authority)
        if match is None:
            raise _invalid(
                "the URL's host cannot be read; an IPv6 address needs brackets, as in https://[2001:db8::1]/"
            )
        host = _name(match["host"])
    port = match["port"]
    if port is None:
        return host, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise _invalid("the URL's port must be a number from 1 to 65535")
    return host, int(port)


def _ipv6(text: str) -> str:
    if "%" in text:
        raise _invalid("the URL's host must not have an IPv6 zone; addresses of one link are never allowed")
    try:
        return IPv6Address(text).compressed
    except ipaddress.AddressValueError:
        raise _invalid("the URL's host is not an IPv6 address") from None


def _name(text: str) -> str:
    """The canonical form of a name or dotted-quad address.

    A host whose last label is a number is an address by the rules that browsers and resolvers share, in one of its many
    spellings (`127.1`, `0x7f.1`, `2130706433`, `0177.0.0.1`). Only the plain spelling passes, so that nobody downstream
    can read another address than the one that was judged.
    """
    name = text.lower() if text.isascii() else _ascii_name(text)
    name = name.removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        if name != text or _literal(name) is None:
            raise _invalid(
                "the URL's host looks like an address but is not four plain numbers; write it as in 192.0.2.1"
            )
        return name
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid("the URL's host is not a valid host name")
    return name


def _ascii_name(text: str) -> str:
    try:
        return idna.encode(unicodedata.normalize("NFKC", text), uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        raise _invalid("the URL's host is not a valid internationalised host name") from None


# --- hosts and addresses ----------------------------------------------------------------------------------------------


class _Zone(Enum):
    PUBLIC = auto()
    LOOPBACK = auto()
    PRIVATE = auto()
    NEVER = auto()


def _check_host(target: Target, rules: EgressRules) -> None:
    address = _literal(target.host)
    if address is not None and _zone(address) is _Zone.NEVER:
        _check_zone(_Zone.NEVER, target.scheme, rules)
    if rules.host_allow_list and not any(_matches(target.host, entry) for entry in rules.host_allow_list):
        raise _denied("this host is not on the allow-list; use one that is, or ask an administrator to add it")
    if address is not None:
        check_address(address, target.scheme, rules)
    elif target.host == "localhost" or target.host.endswith(".localhost"):
        _check_zone(_Zone.LOOPBACK, target.scheme, rules)
    elif target.scheme == "http" and rules.private_http is PrivateHttp.NONE:
        raise _denied("plain http is not allowed; use https, or an administrator can set `private_http`")


def _matches(host: str, entry: str) -> bool:
    entry = entry.lower().removesuffix(".")
    if entry.startswith("*."):
        return host.endswith(entry[1:]) and _literal(host) is None
    return host == entry


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_zone(zone: _Zone, scheme: str, rules: EgressRules) -> None:
    match zone:
        case _Zone.NEVER:
            raise _invalid("the host is or resolves to an address that is never allowed; use a public host")
        case _Zone.PUBLIC:
            if scheme != "https":
                raise _invalid("plain http is only for loopback and private addresses; use https")
        case _Zone.LOOPBACK:
            if rules.private_http is PrivateHttp.NONE:
                raise _denied("loopback addresses are not allowed; an administrator can set `private_http` to LOOPBACK")
        case _Zone.PRIVATE:
            if rules.private_http is not PrivateHttp.PRIVATE:
                raise _denied("private addresses are not allowed; an administrator can set `private_http` to PRIVATE")


def _zone(address: str | IPv4Address | IPv6Address) -> _Zone | None:
    """Where `address` lies; None when it is no address."""
    parsed = _literal(address) if isinstance(address, str) else address
    match parsed:
        case IPv4Address():
            return _zone_of_v4(parsed)
        case IPv6Address():
            return _zone_of_v6(parsed)
        case _:
            return None


def _zone_of_v4(address: IPv4Address) -> _Zone:
    if any(address in network for network in _NEVER_V4):
        return _Zone.NEVER
    if address in _LOOPBACK_V4:
        return _Zone.LOOPBACK
    if any(address in network for network in _PRIVATE_V4):
        return _Zone.PRIVATE
    return _Zone.PUBLIC


def _zone_of_v6(address: IPv6Address) -> _Zone:
    if address.scope_id is not None:
        return _Zone.NEVER
    if address == _LOOPBACK_V6:
        return _Zone.LOOPBACK
    if address in _MAPPED or address in _COMPATIBLE:
        return _zone_of_v4(_low_32_bits(address))
    if address in _NAT64:
        # The translator's own loopback and private networks are not ours to reach; RFC 6052, 3.1 forbids them here.
        return _Zone.PUBLIC if _zone_of_v4(_low_32_bits(address)) is _Zone.PUBLIC else _Zone.NEVER
    if address not in _GLOBAL_V6 or any(address in network for network in _NEVER_V6):
        return _Zone.NEVER
    return _Zone.PUBLIC


def _low_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)


_LOOPBACK_V4: Final = IPv4Network("127.0.0.0/8")
_PRIVATE_V4: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918
# Source: https://www.iana.org/assignments/iana-ipv4-special-registry (read 2026-11-20), and what the clouds add to it.
_NEVER_V4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata address
            "168.63.129.16/32",  # Azure's platform address
            "169.254.0.0/16",  # link-local; metadata of most clouds
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata address
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)

_LOOPBACK_V6: Final = IPv6Address("::1")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_COMPATIBLE: Final = IPv6Network("::/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_GLOBAL_V6: Final = IPv6Network("2000::/3")  # unique local, link-local and multicast addresses lie outside
# Source: https://www.iana.org/assignments/iana-ipv6-special-registry (read 2026-11-20).
_NEVER_V6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)


def _no_entry() -> PatchbayError:
    return _invalid("an allow-list entry must be a host such as api.example.com or a domain such as *.example.com")


def _invalid(message: str) -> PatchbayError:
    return PatchbayError(Reason.INVALID_REQUEST, message)


def _denied(message: str) -> PatchbayError:
    return PatchbayError(Reason.POLICY_DENIED, message)
