"""Seals and opens credentials under a keyring of master keys.

A credential's fields are one JSON document, encrypted together with the uid of the connector that it belongs to, so
that a sealed form copied to another connector does not open. The only place that holds master keys; no key and no field
is ever part of a text, an error or a pickle.
"""

import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
from cryptography.fernet import Fernet, InvalidToken

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Sealed, Secret

CREDENTIAL_BYTES_MAX: Final = 64 * 1024
"""Of a credential's fields as JSON, uid included."""
SEALED_BYTES_MAX: Final = 96 * 1024
"""Of a sealed form: what `CREDENTIAL_BYTES_MAX` becomes by encryption and base64, and some."""
KEYRING_BYTES_MAX: Final = 64 * 1024
KEYS_MAX: Final = 100

HOW_TO_MAKE_A_KEY: Final = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'

_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(rb"[A-Za-z0-9_-]{43}=")


class Keyring:
    """Master keys by id. The first, the primary one, seals; each opens what it sealed.

    Rotation is a keyring with a new key in front: what the old keys sealed still opens until it is sealed anew.
    """

    __slots__ = ("_fernets", "primary_id")

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        """
        Args:
            keys: ids and keys, the primary one first, at least one, no id twice. A key is 32 bytes in urlsafe base64.

        Raises:
            CREDENTIAL_UNREADABLE when they are not that; the message names ids, never keys.
        """
        if not keys:
            raise _unusable(f"it holds no key; make one with: {HOW_TO_MAKE_A_KEY}")
        if len(keys) > KEYS_MAX:
            raise _unusable(f"it holds more than {KEYS_MAX} keys; take out those that nothing is sealed under")
        self._fernets: dict[str, Fernet] = {}
        for key_id, key in keys:
            if not _KEY_ID.fullmatch(key_id):
                raise _unusable("a key id is 1 to 64 letters, digits, dots, underscores or hyphens")
            if key_id in self._fernets:
                raise _unusable(f"key id {key_id} occurs twice")
            self._fernets[key_id] = _fernet(key_id, key)
        self.primary_id = keys[0][0]

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """The keyring written as `id:key`, one a line or separated by commas, the primary one first. `#` starts a
        comment line.

        Raises:
            CREDENTIAL_UNREADABLE; the message names the entry by its number, never its text.
        """
        if len(text) > KEYRING_BYTES_MAX:
            raise _unusable(f"it is longer than {KEYRING_BYTES_MAX} bytes")
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
        keys = []
        for number, entry in enumerate(entries, start=1):
            key_id, colon, key = entry.partition(":")
            if not colon:
                raise _unusable(f"entry {number} is not `id:key`; choose any id, make a key with: {HOW_TO_MAKE_A_KEY}")
            keys.append((key_id.strip(), key.strip().encode()))
        return cls(keys)

    @classmethod
    def read(cls, path: Path) -> "Keyring":
        """The keyring in a file that nobody but its owner may read, in the form that `parse` takes.

        Raises:
            CREDENTIAL_UNREADABLE when the file cannot be read, others may read it, or it holds no keyring.
        """
        return cls.parse(_read_private(path))

    @property
    def ids(self) -> tuple[str, ...]:
        """All key ids, the primary one first."""
        return tuple(self._fernets)

    @property
    def primary(self) -> Fernet:
        """What seals under the primary key."""
        return self._fernets[self.primary_id]

    def fernet(self, key_id: str) -> Fernet | None:
        """What opens what was sealed under that key; None when the keyring has no such key."""
        return self._fernets.get(key_id)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Keyring does not leave the process")


class Vault:
    """Turns credential fields into their sealed form and back."""

    __slots__ = ("_keyring",)

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def seal(self, uid: str, fields: Mapping[str, Any]) -> Sealed:
        """The fields of the connector `uid`, sealed under the primary key.

        Args:
            fields: texts, flags, numbers and maps of them: whatever JSON has.

        Raises:
            INVALID_REQUEST when they are longer than `CREDENTIAL_BYTES_MAX`.
        """
        document = msgspec.json.encode(_Document(uid=uid, fields=dict(fields)))
        if len(document) > CREDENTIAL_BYTES_MAX:
            message = f"a credential is at most {CREDENTIAL_BYTES_MAX} bytes long; shorten its fields"
            raise PatchbayError(Reason.INVALID_REQUEST, message, field="credential")
        return Sealed(blob=self._keyring.primary.encrypt(document), key_id=self._keyring.primary_id)

    def open(self, uid: str, sealed: Sealed) -> Secret:
        """The fields that were sealed for the connector `uid`.

        Raises:
            CREDENTIAL_UNREADABLE when the keyring lacks the key, the sealed form was altered, or it is another
            connector's.
        """
        fernet = self._keyring.fernet(sealed.key_id)
        if fernet is None:
            raise _unreadable(uid, "it is sealed under a master key that the keyring lacks; put that key back")
        if len(sealed.blob) > SEALED_BYTES_MAX:
            raise _unreadable(uid, "its sealed form is too long to be one of ours")
        document = _decrypt(fernet, sealed.blob)
        if document is None:
            raise _unreadable(uid, "its sealed form was altered, or another key bears its key's id")
        if document.uid != uid:
            raise _unreadable(uid, "its sealed form is another connector's")
        return Secret(document.fields)

    def reseal(self, uid: str, sealed: Sealed) -> Sealed | None:
        """The same credential sealed under the primary key; None when it already is. Raises: as `open`."""
        if sealed.key_id == self._keyring.primary_id:
            return None
        return self.seal(uid, self.open(uid, sealed).reveal())

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Vault does not leave the process")


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is encrypted."""

    uid: str
    fields: dict[str, Any]

    def __repr__(self) -> str:
        return "***"


def load_or_create_key_file(path: Path) -> tuple[Keyring, bool]:
    """The keyring in the file `path`, and whether it was made just now: then it holds one new key, with mode 0600, and
    is on the disk.

    Of two processes that start together one makes the file and both read it. Whoever loses the file loses every
    credential sealed under it.

    Raises:
        CREDENTIAL_UNREADABLE when there is a file that is no private keyring, or none can be made.
    """
    created = False
    if not path.exists():
        try:
            created = _create_private(path, f"key-{secrets.token_hex(4)}:{Fernet.generate_key().decode()}\n")
        except OSError as error:
            raise _unusable(f"the key file {path} cannot be made: {error.strerror}") from None
    return Keyring.read(path), created


def _create_private(path: Path, text: str) -> bool:
    """Put a whole new file at `path`, or nothing and False when there is one by now."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(draft, path)  # unlike a rename, it never replaces a key that another process has just made
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    _sync_directory(path.parent)
    return True


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a directory cannot be opened
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _read_private(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode  # of the open file, so that it cannot be exchanged in between
            content = stream.read(KEYRING_BYTES_MAX + 1)
    except OSError as error:
        raise _unusable(f"the key file {path} cannot be read: {error.strerror}") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _unusable(f"others may read the key file {path}; run: chmod 600 {path}")
    if not content.isascii():  # asked first, because a decoding error would carry the content with it
        raise _unusable(f"the key file {path} is not text of the form `id:key`")
    return content.decode("ascii")


def _fernet(key_id: str, key: bytes) -> Fernet:
    # Checked here because base64 decoding skips what is not base64, such as a stray character.
    if not _KEY.fullmatch(key):
        raise _unusable(f"key {key_id} is not 32 bytes in urlsafe base64; make one with: {HOW_TO_MAKE_A_KEY}")
    return Fernet(key)


def _decrypt(fernet: Fernet, blob: bytes) -> _Document | None:
    try:
        return msgspec.json.decode(fernet.decrypt(blob), type=_Document)
    except (InvalidToken, msgspec.MsgspecError, UnicodeError):
        return None


def _unusable(message: str) -> PatchbayError:
    return PatchbayError(Reason.CREDENTIAL_UNREADABLE, f"the master keyring cannot be used: {message}")


def _unreadable(uid: str, message: str) -> PatchbayError:
    return PatchbayError(Reason.CREDENTIAL_UNREADABLE, f"the credential of connector {uid} cannot be opened: {message}")
