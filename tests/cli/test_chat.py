"""`patchbay chat` against a gateway that runs."""

import asyncio
import json
import signal
import time
from pathlib import Path

from tests.cli.terminal import WAIT_S, Terminal, add_main
from tests.support.answers import TEXT, error, openai_interrupted, openai_stream, openai_unary
from tests.support.provider import Cut, Pause, Silence


async def test_the_answer_goes_to_standard_output_and_its_summary_to_standard_error(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_stream())
    result = await terminal.run("chat", "Tell", "me", "about the sea.")
    assert result.code == 0
    assert result.out == f"{TEXT}\n"
    assert result.err.startswith("main · small-2026 · 11 + 4 tokens · ")
    (request,) = terminal.provider.requests
    assert json.loads(request.body)["messages"] == [{"role": "user", "content": "Tell me about the sea."}]


async def test_options_reach_the_provider(terminal: Terminal, tmp_path: Path) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_stream())
    image, schema = tmp_path / "cat.png", tmp_path / "schema.json"
    image.write_bytes(b"\x89PNG")
    schema.write_text('{"type": "object"}')
    await terminal.done(
        *("chat", "What is this?", "--connector", "main", "--model", "large", "--system", "Be brief."),
        *("--max-tokens", "7", "--temperature", "0.5", "--image", str(image), "--schema", str(schema), "--quiet"),
    )
    body = json.loads(terminal.provider.requests[0].body)
    assert (body["model"], body["temperature"], body["messages"][0]) == (
        "large",
        0.5,
        {"role": "system", "content": "Be brief."},
    )
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert 7 in body.values()


async def test_standard_input_is_the_prompt_alone_or_where_the_dash_is(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.always_answer(openai_stream())
    await terminal.run("chat", stdin="from a pipe\n")
    await terminal.run("chat", "Sum this up:", "-", stdin="a long text\n")
    await terminal.run("chat", "a - b", stdin="not this")
    asked = [json.loads(each.body)["messages"][0]["content"] for each in terminal.provider.requests]
    assert asked == ["from a pipe", "Sum this up: \na long text", "a - b"]


async def test_json_is_one_object_and_json_lines_one_event_a_line(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_stream(), openai_stream(), openai_stream())
    for option in (("--json",), ("-o", "json")):
        answer = json.loads(await terminal.done("chat", "Hi", *option))
        assert (answer["text"], answer["finish_reason"], answer["usage"]["total_tokens"]) == (TEXT, "STOP", 15)
        assert answer["route"]["connector"] == "owners/default/connectors/main"
    lines = (await terminal.done("chat", "Hi", "--json-lines")).splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "started"
    assert "".join(each["text"] for each in events if each["event"] == "text_delta") == TEXT
    assert (events[-1]["event"], events[-1]["text"]) == ("completed", TEXT)


async def test_an_answer_can_be_waited_for_as_a_whole(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_unary())
    assert await terminal.done("chat", "Hi", "--no-stream") == f"{TEXT}\n"
    assert "stream" not in json.loads(terminal.provider.requests[0].body)


async def test_an_answer_cut_at_the_token_limit_says_so(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_stream(finish="length"))
    result = await terminal.run("chat", "Hi")
    assert result.code == 0
    assert "cut at the token limit" in result.err


async def test_text_is_shown_as_soon_as_it_comes(terminal: Terminal) -> None:
    await add_main(terminal)
    pause = Pause()
    terminal.provider.answer(openai_interrupted(pause))
    process = await terminal.start("chat", "Hi")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readexactly(len(TEXT)), WAIT_S) == TEXT.encode()
    assert process.returncode is None


async def test_ctrl_c_cancels_the_call_and_ends_with_130(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_interrupted(Silence()))
    process = await terminal.start("chat", "Hi")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readexactly(len(TEXT)), WAIT_S)
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(terminal.provider.connections[-1].closed.wait(), WAIT_S)
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 130
    assert b"Traceback" not in errors


async def test_a_broken_answer_keeps_what_came_and_ends_with_7(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(openai_interrupted(Cut()))
    result = await terminal.run("chat", "Hi")
    assert result.code == 7
    assert result.out == f"{TEXT}\n"
    assert result.err.startswith("patchbay: UPSTREAM_")
    assert result.err.count("\n") == 1


async def test_a_failure_is_one_line_with_its_reason_and_what_to_do(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(error(401))
    result = await terminal.run("chat", "Hi")
    assert result.code == 5
    assert result.out == ""
    assert result.err.startswith("patchbay: UPSTREAM_CREDENTIAL_REJECTED: ")
    assert "patchbay connectors rotate" in result.err
    assert result.err.count("\n") == 1


async def test_a_rate_limit_says_when_to_come_back(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer(error(429, headers={"retry-after": "7"}))
    result = await terminal.run("chat", "Hi")
    assert result.code == 6
    assert "retry in 7.0 s" in result.err


async def test_nothing_to_ask_is_wrong_usage(terminal: Terminal) -> None:
    for stdin in ("", " \n"):
        result = await terminal.run("chat", stdin=stdin)
        assert (result.code, result.err) == (2, "patchbay: nothing to ask; the prompt is empty\n")


async def test_a_timeout_ends_the_command_in_time(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.answer([Silence()])
    began = time.monotonic()
    result = await terminal.run("chat", "Hi", "--timeout", "0.2")
    assert result.code == 7
    assert time.monotonic() - began < 60, "it ended by a limit of the gateway's"
