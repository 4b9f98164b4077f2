"""`patchbay explain` against a gateway that runs."""

import json

from tests.cli.terminal import Terminal, add_main


async def test_it_shows_the_rules_and_the_attempts(terminal: Terminal) -> None:
    await add_main(terminal)
    shown = await terminal.done("explain", "--max-tokens", "50")
    lines = shown.splitlines()
    assert lines[0] == "Resolution"
    (chosen,) = [line for line in lines if line.startswith("  ->")]
    assert "used last" in chosen
    assert chosen.endswith("main  it is the owner's most recently used active connector")
    assert "  1. main (openai_compatible), small" in lines
    assert not terminal.provider.requests


async def test_it_shows_who_is_refused_and_fails_as_the_call_would(terminal: Terminal) -> None:
    await add_main(terminal)
    result = await terminal.run("explain", "--model", "patchbay/auto")
    assert result.code == 5
    assert "Not asked" in result.out
    assert "nothing is known of the quality" in result.out
    assert result.err.startswith("patchbay: the call would fail: ")


async def test_it_prints_json_for_programs(terminal: Terminal) -> None:
    await add_main(terminal)
    result = await terminal.run("explain", "--connector", "nobody", "-o", "json")
    found = json.loads(result.out)
    assert (result.code, found["error_reason"], found["error_field"]) == (4, "CONNECTOR_NOT_FOUND", "connector")
    assert found["steps"][0]["outcome"] == "SKIPPED"
