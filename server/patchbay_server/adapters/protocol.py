"""What an adapter is: the protocols that every connector type implements, and the values that describe one.

An adapter turns a `Call` into one `HttpRequest`, folds the frames of the answer into canonical events, and says what a
refusal means. It is
pure: no I/O, clock, log or retry. Abilities that not every provider has are protocols of their own, so that no method
    exists only to say that it is not implemented.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import msgspec

from patchbay_server.errors import PatchbayError
from patchbay_server.types import Call, Event, ModelInfo, Notice, Secret
from patchbay_server.wire.http import Frame, HttpAnswer, HttpRequest


class FieldKind(StrEnum):
    """How a client should ask for a credential field, and how its value is checked."""

    SECRET = "secret"  # noqa: S105 -- the kind of a form field
    TEXT = "text"
    URL = "url"
    HEADERS = "headers"
    FLAG = "flag"
    CHOICE = "choice"


class CredentialField(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a connector type's credential.

    `one_of` names a group of which at least one field must be given (an API key or a token); `required` fields stand
    alone. `pattern` is matched against the whole of a text value. HEADERS values are secret, SECRET values are never
    shown. `replaces` names fields that belong to another kind of credential, or to the value that this one had: a
    rotation that gives this field and not those removes them.
    """

    name: str
    label: str
    help: str
    kind: FieldKind
    required: bool = False
    one_of: str = ""
    choices: tuple[str, ...] = ()
    pattern: str = ""
    length_max: int = 4096
    names_host: bool = False
    """Whether a text becomes part of the host that is called."""
    replaces: tuple[str, ...] = ()


class Capability(StrEnum):
    STREAMING = "streaming"
    TOOLS = "tools"
    IMAGES = "images"
    AUDIO = "audio"
    FILES = "files"
    REASONING = "reasoning"
    STRUCTURED_OUTPUT = "structured_output"
    MODEL_LIST = "model_list"


class TypeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A connector type, described so that a client can draw a form from it."""

    type: str
    display_name: str
    description: str
    fields: tuple[CredentialField, ...]
    capabilities: frozenset[Capability]
    documentation_uri: str = ""
    self_hosted: bool = False


class Reader(Protocol):
    """Folds the frames of one answer into canonical events. Used once."""

    def feed(self, frame: Frame) -> Sequence[Event]:
        """The events that `frame` completes, in order; often none.

        Frames after the provider's terminal marker give no events.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE, STREAMING_UNSUPPORTED, or what an error inside the answer means.
        """
        ...

    def finish(self) -> Sequence[Event]:
        """The events that the end of the body completes; the last of them, or of `feed`'s, is the one `Finished`.

        Raises:
            PatchbayError: UPSTREAM_EMPTY_STREAM when nothing of an answer was seen, UPSTREAM_TRUNCATED when the
                terminal marker never came.
        """
        ...

    @property
    def finished(self) -> bool:
        """Whether `Finished` has been given: nothing more of the body matters."""
        ...


@runtime_checkable
class KeepsFailure(Protocol):
    """A reader that gives what came beside a failure, such as its tokens, before it raises it."""

    @property
    def failure(self) -> PatchbayError | None:
        """What the next `feed` or `finish` raises, or may raise once it has seen more."""
        ...

    @property
    def wants_more(self) -> bool:
        """Whether the provider may tell more of the failure in what follows."""
        ...


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is ready to send, and what of the call had to be left out of it.

    `reader` reads this request's answer where that depends on the connector (its switches, the API that was chosen);
    None leaves it to `Adapter.reader`.
    """

    request: HttpRequest
    notices: tuple[Notice, ...] = ()
    reader: Reader | None = None


@runtime_checkable
class Adapter(Protocol):
    """One connector type."""

    @property
    def info(self) -> TypeInfo: ...

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        """Refuse field values that can never work, beyond what `info.fields` says.

        Raises:
            PatchbayError: INVALID_REQUEST, `field` is the field's name.
        """
        ...

    def check_model(self, model: str, secret: Secret) -> None:
        """Refuse a model or address that plainly belongs to another connector type, naming the right one.

        Raises:
            PatchbayError: CONNECTOR_MISCONFIGURED.
        """
        ...

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        """The one request that asks the provider for `call`.

        Args:
            now: for signatures that carry a time.

        Raises:
            PatchbayError: FEATURE_UNSUPPORTED naming the field that the provider cannot express, INVALID_REQUEST.
        """
        ...

    def reader(self, call: Call) -> Reader: ...

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        """What an answer with an error status means. Judges structure before status and text, and repeats nothing of
        the body.
        """
        ...


@runtime_checkable
class NamesModel(Protocol):
    """A type whose connectors may name their one model themselves, so that a call needs neither a model nor a hint."""

    def model_of(self, secret: Secret) -> str:
        """The model or deployment that the credential names; "" when it names none."""
        ...


@runtime_checkable
class Checks(Protocol):
    """A cheap true check of a credential: any 2xx means that it works, `explain` judges the rest."""

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        """A request that costs nothing and proves the credential. `model` may be empty."""
        ...


@runtime_checkable
class ReadsChecks(Protocol):
    """A check whose answer is read, where a 2xx alone does not prove the credential."""

    def read_check(self, answer: HttpAnswer) -> None:
        """Raises: PatchbayError: what a 2xx answer to `prepare_check`'s request says against the credential."""
        ...


@runtime_checkable
class JudgesChecks(Protocol):
    """A check that is passed by some refusals, too, where no free request is granted to every good credential."""

    def passes_check(self, failure: PatchbayError) -> bool:
        """Whether `failure`, what the answer to `prepare_check`'s request means, proves the credential all the same."""
        ...


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some of a connector's models; `next_page` is "" after the last page."""

    models: tuple[ModelInfo, ...]
    next_page: str = ""


@runtime_checkable
class ListsModels(Protocol):
    def prepare_models(self, page: str, secret: Secret, now: datetime) -> HttpRequest:
        """The request for one page of the provider's model list; `page` is "" for the first."""
        ...

    def read_models(self, answer: HttpAnswer) -> ModelPage:
        """Raises: PatchbayError: UPSTREAM_MALFORMED_RESPONSE."""
        ...
