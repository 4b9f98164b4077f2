"""A provider's id of a request, which its support asks for: every provider puts it into a header of its answers.

Source: `_request_id` of the openai library 3.52.0 (`x-request-id`) and of the anthropic library 2.11.0 (`request-id`);
botocore 1.44.5, `botocore/parsers.py` (`x-amzn-requestid`); Azure API Management (`apim-request-id`) (read 2026-11-21).
"""

import re
from collections.abc import Mapping
from typing import Final

_HEADERS: Final = (
    "request-id",
    "x-amzn-requestid",
    "x-request-id",
    "apim-request-id",
    "x-goog-request-id",
)
"""In this order: what stands before a provider may add an id of its own under one of the later names."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id(headers: Mapping[str, str]) -> str:
    """The id that an answer's headers give, or empty.

    Args:
        headers: names in lower case.
    """
    return next((value for name in _HEADERS if (value := plain(headers.get(name)))), "")


def plain(value: object) -> str:
    """`value`, which is untrusted, if it looks like an id; else empty."""
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else ""
