"""Client certificates: the names by which a caller is known. grpc has verified a certificate before it is looked at.

The names are the subject alternative ones (DNS names, URIs such as SPIFFE ids, mail addresses, IP addresses). The
common name counts for a certificate that has none of them.

Source: RFC 9525, 2 and 6.3: a subject's common name is no identity beside its alternative names (read 2026-11-27).
"""

from collections.abc import Iterable, Mapping

from patchbay_server.errors import PatchbayError, Reason


def token_of(auth_context: Mapping[str, Iterable[bytes]], tokens: Mapping[str, str]) -> str:
    """The id of the token that stands for the certificate's holder.

    Args:
        auth_context: what grpc tells of the peer.
        tokens: token ids by certificate name; DNS names in lower case.

    Raises:
        PatchbayError: CALLER_UNAUTHENTICATED when no token, or more than one, stands for its names.
    """
    found = {tokens[name] for name in _names(auth_context) if name in tokens}
    if len(found) != 1:
        raise PatchbayError(
            Reason.CALLER_UNAUTHENTICATED,
            "no caller is known by this certificate; send the header `authorization: Bearer <token>`,"
            " or ask an administrator to enter its name",
        )
    return found.pop()


def _names(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    alternative = _decoded(auth_context.get("x509_subject_alternative_name", ()))
    return alternative or _decoded(auth_context.get("x509_common_name", ()))


def _decoded(values: Iterable[bytes]) -> list[str]:
    texts = [value.decode("utf-8", "replace") for value in values]
    return [text if "://" in text else text.lower() for text in texts]
