"""Who is calling and what they may do: bearer tokens, scopes, owner binding, and rate limits per caller.

A token's text is `pb_<id>_<secret>`. The store keeps the id and the SHA-256 of the text, compared in constant time; the
text is shown once, when the token is made. The secret has 256 bits of its own randomness, so that a fast digest is as
good as a slow one.
"""

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NewType

import msgspec

from patchbay_server.core.clock import Clock
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Store
from patchbay_server.types import RESOURCE_ID, Caller, Scope, Token

DEFAULT_OWNER: Final = "default"
"""The own owner of a token that may act for any owner."""
TOKEN_AGE_MAX_S: Final = 2.0
"""How long a token read from the store is believed: a revocation by another process takes effect within this time."""
TOKENS_CACHED_MAX: Final = 10_000
_TOKEN_TEXT: Final = re.compile(r"pb_([a-z0-9]{8,32})_([A-Za-z0-9_-]{32,128})")

TokenText = NewType("TokenText", str)


def new_token_text(text: str | None = None) -> tuple[str, TokenText, bytes]:
    """A token: its id, its text (to be shown once) and the digest to keep.

    Args:
        text: a text that was chosen elsewhere, or None for a fresh one.

    Raises:
        PatchbayError: INVALID_REQUEST when `text` does not have a token's form.
    """
    text = text or f"pb_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    token_id = parse_token_text(text)
    if token_id is None:
        raise PatchbayError(
            Reason.INVALID_REQUEST,
            "a token is `pb_`, 8 to 32 of a-z and 0-9, `_`, and 32 to 128 of A-Z, a-z, 0-9, _ and -",
        )
    return token_id, TokenText(text), digest_of(text)


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def parse_token_text(text: str) -> str | None:
    """The id within a token's text, or None when it is not one."""
    match = _TOKEN_TEXT.fullmatch(text)
    return match[1] if match else None


class RateRule(msgspec.Struct, frozen=True):
    """At most `count` requests of one caller within any `window_s` seconds."""

    count: int
    window_s: float = 60.0


class RateLimits:
    """Sliding windows per (caller, operation); remembers at most the callers seen last."""

    CALLERS_MAX: Final = 10_000

    def __init__(self, rules: Mapping[str, RateRule], clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def spend(self, caller: Caller, operation: str) -> None:
        """Count one request.

        Raises:
            PatchbayError: RATE_LIMITED with the seconds until the next one is allowed.
        """
        rule = self._rules.get(operation)
        if rule is None:
            return
        now = self._clock.monotonic()
        times = self._seen.setdefault((caller.id, operation), deque(maxlen=rule.count))
        self._seen.move_to_end((caller.id, operation))
        while len(self._seen) > self.CALLERS_MAX:
            self._seen.popitem(last=False)
        while times and times[0] <= now - rule.window_s:
            times.popleft()
        if len(times) >= rule.count:
            raise PatchbayError(
                Reason.RATE_LIMITED,
                f"at most {rule.count} requests of this kind in {rule.window_s:g} s; wait and try again",
                retry_after_s=times[0] + rule.window_s - now,
                quota=f"tokens/{caller.id}:{operation}",
            )
        times.append(now)


class Access:
    """Authenticates callers and decides what they may touch."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._cached: OrderedDict[str, tuple[float, Token]] = OrderedDict()
        self._used: dict[str, datetime] = {}
        self._forgotten = 0

    async def authenticate(self, text: str) -> Caller:
        """The caller that a bearer token's text belongs to.

        Raises:
            PatchbayError: CALLER_UNAUTHENTICATED, the same for every kind of bad token.
        """
        token_id = parse_token_text(text)
        token = await self._find(token_id) if token_id else None
        # Compared even when there is no such token, so that time tells nothing about which ids exist.
        matches = token_id is not None and hmac.compare_digest(token.digest if token else bytes(32), digest_of(text))
        return self._caller(token if matches else None, "the bearer token")

    async def authenticated(self, token_id: str) -> Caller:
        """The caller that a token stands for, when something else than its text has proved who calls.

        Raises:
            PatchbayError: CALLER_UNAUTHENTICATED, the same for every kind of bad token.
        """
        return self._caller(await self._find(token_id), "the token that stands for this certificate")

    def _caller(self, token: Token | None, what: str) -> Caller:
        now = self._clock.now()
        if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
            raise PatchbayError(
                Reason.CALLER_UNAUTHENTICATED,
                f"{what} is unknown, expired or revoked; ask an administrator for a new one",
            )
        self._used[token.id] = now
        return Caller(id=token.id, owner=token.owner, scopes=token.scopes)

    async def _find(self, token_id: str) -> Token | None:
        now = self._clock.monotonic()
        cached = self._cached.get(token_id)
        if cached is not None and now - cached[0] < TOKEN_AGE_MAX_S:
            return cached[1]
        forgotten = self._forgotten
        token = await self._store.find_token(token_id)
        if token is None:
            self._cached.pop(token_id, None)
            return None
        if forgotten != self._forgotten:
            # What was read may be older than the revocation that came meanwhile: good for this once at the most.
            return token
        self._cached[token_id] = (now, token)
        self._cached.move_to_end(token_id)
        while len(self._cached) > TOKENS_CACHED_MAX:
            self._cached.popitem(last=False)
        return token

    def forget(self, token_id: str) -> None:
        """Make the next use of a token read the store again."""
        self._cached.pop(token_id, None)
        self._forgotten += 1

    async def write_last_used(self) -> None:
        """Keep the moments of last use gathered since the last time; called from the background, never by a request."""
        for token_id, at in list(self._used.items()):
            await self._store.touch_token(token_id, at)
            if self._used.get(token_id) == at:
                del self._used[token_id]


def require(caller: Caller, scope: Scope) -> None:
    """Raises: PatchbayError: CALLER_NOT_AUTHORIZED when the caller's token lacks `scope`."""
    if scope not in caller.scopes:
        raise PatchbayError(
            Reason.CALLER_NOT_AUTHORIZED,
            f"this needs a token with the scope `{scope.value}`; ask an administrator for one",
        )


def acting_owner(caller: Caller, owner: str, *, field: str = "owner") -> str:
    """The owner that a request acts for.

    Args:
        owner: the id that the request names, or "" for the caller's own.
        field: the request's field, for the error.

    Raises:
        PatchbayError: CALLER_NOT_AUTHORIZED when the caller is bound to another owner, INVALID_REQUEST when it is no
            owner id.
    """
    if not owner:
        return caller.owner or DEFAULT_OWNER
    if not RESOURCE_ID.fullmatch(owner):
        raise PatchbayError(
            Reason.INVALID_REQUEST, "an owner id is 1 to 63 of a-z, 0-9 and -, starting with a letter", field=field
        )
    if caller.owner is not None and caller.owner != owner:
        raise PatchbayError(Reason.CALLER_NOT_AUTHORIZED, "this token may not act for that owner")
    return owner
