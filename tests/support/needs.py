"""What a test needs that not every machine has."""

import os

import pytest


def needs(tool_found: bool, reason: str) -> None:
    """Go on only with the tool. Without it the test is skipped with the reason, and fails in CI, which has it all."""
    if tool_found:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI must have this: {reason}")
    pytest.skip(reason)
