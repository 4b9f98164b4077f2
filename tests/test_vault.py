"""Sealing credentials, and keeping the keys that seal them."""

import asyncio
import copy
import logging
import os
import pickle
import re
import stat
import traceback
import tracemalloc
from base64 import urlsafe_b64decode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Sealed
from patchbay_server.vault import (
    CREDENTIAL_BYTES_MAX,
    HOW_TO_MAKE_A_KEY,
    SEALED_BYTES_MAX,
    Keyring,
    Vault,
    load_or_create_key_file,
)

OLD, NEW = (urlsafe_b64encode(bytes(range(start, start + 32))) for start in (0, 32))
FIELDS = {"api_key": "sk-very-secret-4242", "headers": {"x-team": "search"}, "stream_usage": True, "none": None}


@pytest.fixture
def vault() -> Vault:
    return Vault(Keyring([("k1", OLD)]))


def refused(error: pytest.ExceptionInfo[PatchbayError], *secrets: bytes | str) -> str:
    """The message of a CREDENTIAL_UNREADABLE that gives nothing away."""
    assert error.value.reason is Reason.CREDENTIAL_UNREADABLE
    assert error.value.__cause__ is None
    assert isinstance(error.value.__context__, OSError | None)
    shown = "".join(traceback.format_exception(error.value)) + repr(error.value)
    for secret in secrets:
        assert (secret if isinstance(secret, str) else secret.decode()) not in shown
    return str(error.value)


# --- sealing --------------------------------------------------------------------------------------------------------


def test_what_was_sealed_for_a_connector_opens_for_it(vault: Vault) -> None:
    sealed = vault.seal("uid-1", FIELDS)
    assert sealed.key_id == "k1"
    assert vault.open("uid-1", sealed).reveal() == FIELDS


values = st.recursive(
    st.none() | st.booleans() | st.text() | st.integers(-(2**53), 2**53),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(uid=st.text(max_size=40), fields=st.dictionaries(st.text(), values, max_size=5))
def test_any_fields_come_back_as_they_were(uid: str, fields: dict[str, Any]) -> None:
    vault = Vault(Keyring([("k1", OLD)]))
    assert vault.open(uid, vault.seal(uid, fields)).reveal() == fields


def test_a_sealed_form_shows_neither_fields_nor_connector_and_never_repeats(vault: Vault) -> None:
    sealed, again = vault.seal("uid-1", FIELDS), vault.seal("uid-1", FIELDS)
    decoded = urlsafe_b64decode(sealed.blob)
    for plain in (b"sk-very-secret", b"4242", b"api_key", b"uid-1", b"x-team"):
        assert plain not in sealed.blob
        assert plain not in decoded
        assert urlsafe_b64encode(plain).rstrip(b"=") not in sealed.blob
    assert sealed.blob != again.blob


def test_a_sealed_form_copied_to_another_connector_does_not_open(vault: Vault) -> None:
    sealed = vault.seal("uid-1", FIELDS)
    with pytest.raises(PatchbayError) as caught:
        vault.open("uid-2", sealed)
    assert "another connector's" in refused(caught, "sk-very-secret-4242")
    with pytest.raises(PatchbayError):
        Vault(Keyring([("k2", NEW), ("k1", OLD)])).reseal("uid-2", sealed)


def test_no_altered_byte_goes_unnoticed(vault: Vault) -> None:
    sealed = vault.seal("uid-1", {"api_key": "x"})
    raw = urlsafe_b64decode(sealed.blob)
    for at in range(len(raw)):
        altered = bytearray(raw)
        altered[at] ^= 1
        with pytest.raises(PatchbayError) as caught:
            vault.open("uid-1", Sealed(urlsafe_b64encode(altered), "k1"))
        assert "altered" in refused(caught)


@pytest.mark.parametrize("blob", [b"", b"x", b"\xff\x00", b"gAAAAA", b"A" * 200])
def test_what_is_no_sealed_form_does_not_open(vault: Vault, blob: bytes) -> None:
    with pytest.raises(PatchbayError) as caught:
        vault.open("uid-1", Sealed(blob, "k1"))
    refused(caught)


@pytest.mark.parametrize("document", [b"", b"[]", b'{"uid":"uid-1"}', b'{"uid":1,"fields":{}}', b"\xff"])
def test_a_document_of_another_shape_does_not_open(vault: Vault, document: bytes) -> None:
    with pytest.raises(PatchbayError) as caught:
        vault.open("uid-1", Sealed(Fernet(OLD).encrypt(document), "k1"))
    refused(caught)


def test_another_key_does_not_open_it_under_whatever_id(vault: Vault) -> None:
    sealed = vault.seal("uid-1", FIELDS)
    with pytest.raises(PatchbayError, match="keyring lacks"):
        Vault(Keyring([("k2", NEW)])).open("uid-1", sealed)
    with pytest.raises(PatchbayError, match="another key bears"):
        Vault(Keyring([("k1", NEW)])).open("uid-1", sealed)


def test_the_size_of_a_credential_is_bounded_both_ways(vault: Vault) -> None:
    frame = len(msgspec.json.encode({"uid": "uid-1", "fields": {"api_key": ""}}))
    longest = {"api_key": "x" * (CREDENTIAL_BYTES_MAX - frame)}
    sealed = vault.seal("uid-1", longest)
    assert len(sealed.blob) <= SEALED_BYTES_MAX
    assert vault.open("uid-1", sealed).reveal() == longest
    with pytest.raises(PatchbayError, match="at most 65536 bytes") as caught:
        vault.seal("uid-1", {"api_key": longest["api_key"] + "x"})
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert [violation.field for violation in caught.value.violations] == ["credential"]
    with pytest.raises(PatchbayError, match="too long"):
        vault.open("uid-1", Sealed(b"x" * (SEALED_BYTES_MAX + 1), "k1"))


# --- rotation -------------------------------------------------------------------------------------------------------


def test_the_first_key_seals_and_all_open() -> None:
    before = Vault(Keyring([("k1", OLD)]))
    during = Vault(Keyring([("k2", NEW), ("k1", OLD)]))
    after = Vault(Keyring([("k2", NEW)]))
    sealed = before.seal("uid-1", FIELDS)
    assert during.open("uid-1", sealed).reveal() == FIELDS

    anew = during.reseal("uid-1", sealed)
    assert anew is not None
    assert anew.key_id == "k2"
    assert after.open("uid-1", anew).reveal() == FIELDS
    assert during.reseal("uid-1", anew) is None
    with pytest.raises(PatchbayError, match="put that key back"):
        after.reseal("uid-1", sealed)


def test_a_keyring_knows_its_ids_in_order() -> None:
    keyring = Keyring.parse(f"# new\nk2:{NEW.decode()}\n\n  k1 : {OLD.decode()}  \n")
    assert (keyring.primary_id, keyring.ids) == ("k2", ("k2", "k1"))
    assert Keyring.parse(f"k2:{NEW.decode()},k1:{OLD.decode()}").ids == ("k2", "k1")


# --- keys that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        (OLD.decode(), "entry 1 is not `id:key`"),
        (f"k1:{OLD.decode()}\n{NEW.decode()}", "entry 2 is not `id:key`"),
        (f"k1:{OLD.decode()[:-4]}", "key k1 is not 32 bytes"),
        (f"k1:{OLD.decode()[:-1]}", "key k1 is not 32 bytes"),
        ("k1:correct horse battery staple", "key k1 is not 32 bytes"),
        ("k1:", "key k1 is not 32 bytes"),
        (f"k1:{OLD.decode()}é", "key k1 is not 32 bytes"),
        (f":{OLD.decode()}", "a key id is"),
        (f"k 1:{OLD.decode()}", "a key id is"),
        (f"{'k' * 65}:{OLD.decode()}", "a key id is"),
        (f"k1:{OLD.decode()}\nk1:{NEW.decode()}", "key id k1 occurs twice"),
        ("\n".join(f"k{i}:{OLD.decode()}" for i in range(101)), "more than 100 keys"),
        ("#" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_a_keyring_that_cannot_be_used_is_refused_without_showing_it(text: str, message: str) -> None:
    with pytest.raises(PatchbayError) as caught:
        Keyring.parse(text)
    shown = refused(caught, OLD[:20], NEW[:20], "correct horse")
    assert message in shown


def test_the_way_to_a_key_that_the_errors_tell_works() -> None:
    with pytest.raises(PatchbayError, match=re.escape(HOW_TO_MAKE_A_KEY)):
        Keyring.parse("a passphrase")
    source = HOW_TO_MAKE_A_KEY.removeprefix('python -c "').removesuffix('"').replace("print(", "result = (")
    namespace: dict[str, str] = {}
    exec(source, namespace)
    assert Keyring.parse(f"k1:{namespace['result']}").ids == ("k1",)


# --- nothing leaves -------------------------------------------------------------------------------------------------


def test_keys_and_secrets_do_not_print(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    keyring = Keyring([("k1", OLD)])
    secret = vault.open("uid-1", vault.seal("uid-1", FIELDS))
    logging.getLogger("test").warning("%s %r", keyring, [vault, secret])
    for thing in (keyring, vault, secret):
        assert (str(thing), repr(thing), f"{thing}", f"{thing!s:>3}") == ("***",) * 4
        assert not hasattr(thing, "__dict__")
    assert caplog.messages == ["*** [***, ***]"]


def test_keys_and_secrets_are_not_pickled_or_copied(vault: Vault) -> None:
    secret = vault.open("uid-1", vault.seal("uid-1", FIELDS))
    for thing in (Keyring([("k1", OLD)]), vault, secret):
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="does not leave the process"):
                leave(thing)


def test_what_cannot_be_sealed_is_not_shown(vault: Vault) -> None:
    with pytest.raises(TypeError) as caught:
        vault.seal("uid-1", FIELDS | {"wrong": object()})
    assert "sk-very-secret" not in "".join(traceback.format_exception(caught.value))


# --- the key file ---------------------------------------------------------------------------------------------------


def test_a_first_start_makes_a_private_key_file_and_later_ones_read_it(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    keyring, created = load_or_create_key_file(path)
    assert created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["master.key"]
    sealed = Vault(keyring).seal("uid-1", FIELDS)

    again, created = load_or_create_key_file(path)
    assert not created
    assert again.ids == keyring.ids
    assert Vault(again).open("uid-1", sealed).reveal() == FIELDS


def test_a_key_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        load_or_create_key_file(tmp_path / "master.key")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "master.key").stat().st_mode) == 0o600


async def test_of_many_that_start_together_one_makes_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        starts = [loop.run_in_executor(threads, load_or_create_key_file, path) for _ in range(16)]
        results = await asyncio.gather(*starts)
    assert [created for _, created in results].count(True) == 1
    assert len({keyring.ids for keyring, _ in results}) == 1


def test_a_key_file_that_appears_meanwhile_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "master.key"
    first, _ = load_or_create_key_file(path)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    second, created = load_or_create_key_file(path)
    assert not created
    assert second.ids == first.ids
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_key_file_that_others_may_open_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    load_or_create_key_file(path)
    path.chmod(mode)
    for read in (Keyring.read, load_or_create_key_file):
        with pytest.raises(PatchbayError) as caught:
            read(path)
        assert f"chmod 600 {path}" in refused(caught)


def test_a_key_file_that_cannot_be_read_or_made_is_refused_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(PatchbayError, match="No such file"):
        Keyring.read(tmp_path / "absent")
    with pytest.raises(PatchbayError, match="cannot be made: No such file"):
        load_or_create_key_file(tmp_path / "absent" / "master.key")
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o700)
    with pytest.raises(PatchbayError, match="Is a directory"):
        Keyring.read(directory)
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)))
    binary.chmod(0o600)
    with pytest.raises(PatchbayError) as caught:
        Keyring.read(binary)
    assert "is not text" in refused(caught)


def test_a_key_file_that_cannot_be_written_whole_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PatchbayError, match="No space left"):
        load_or_create_key_file(tmp_path / "master.key")
    assert list(tmp_path.iterdir()) == []


def test_a_huge_key_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.touch(mode=0o600)
    os.truncate(path, 2**25)
    tracemalloc.start()
    try:
        with pytest.raises(PatchbayError, match="longer than 65536 bytes"):
            Keyring.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
