"""`patchbay chat`: asks a model and prints the answer as it comes."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from patchbay_client import ChatAnswer, ChatStream, FinishReason, Media, Message
from patchbay_client.events import Completed, ReasoningDelta, TextDelta
from patchbay_server.cli.output import Printer, seconds, snake_case, to_plain
from patchbay_server.cli.session import Session, fail

_ENDS = {
    FinishReason.MAX_OUTPUT_TOKENS: "cut at the token limit",
    FinishReason.CONTENT_FILTER: "stopped by the provider's filter",
    FinishReason.CONTEXT_LENGTH: "the context is full",
}


def chat(  # noqa: PLR0913 - options of a command
    session: Session,
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="The prompt. A dash is standard input; so is no prompt at all.", show_default=False),
    ] = None,
    connector: Annotated[str | None, typer.Option(help="Which connector answers: its id or name.")] = None,
    model: Annotated[str | None, typer.Option(help="Which model. Default: the connector's.")] = None,
    owner: Annotated[str | None, typer.Option(help="Whose connectors are used. Default: your token's owner.")] = None,
    feature: Annotated[str | None, typer.Option(help="What the call is for; selects the preferred connector.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions, put before the prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens to produce.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 is sober, 2 is wild.")] = None,
    reasoning: Annotated[
        str | None, typer.Option(help="How much to think: none, minimal, low, medium, high, xhigh, max, or tokens.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An image, or another file that the model can take. Repeatable."),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with a JSON Schema that the answer is to follow.")
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(help="none, org_default, retry_then_org_default or owner_chain.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds that it may take. Default: 600.")] = None,
    show_reasoning: Annotated[bool, typer.Option("--show-reasoning", help="Print what the model thinks, dim.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Wait for the whole answer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
    json_lines: Annotated[bool, typer.Option("--json-lines", help="Print each event as a line of JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not sum up on standard error.")] = False,
) -> None:
    """Ask a model and see the answer as it comes.

    Examples:
        patchbay chat "What is the capital of France?"
        git diff | patchbay chat --system "Review this change." --model gpt-5.1
        cat notes.txt | patchbay chat "Sum this up in three lines:" -
        patchbay chat "What is in this picture?" --image cat.png
        patchbay chat "Three rivers of Europe" --schema rivers.json --json | jq .text
    """
    started = time.monotonic()
    knobs: dict[str, Any] = {
        "connector": connector,
        "model": model,
        "owner": owner,
        "feature": feature,
        "system": system,
        "max_output_tokens": max_tokens,
        "temperature": temperature,
        "reasoning": int(reasoning) if reasoning and reasoning.isdigit() else reasoning,
        "include_reasoning": show_reasoning or None,
        "response_format": None if schema is None else _schema(schema),
        "fallback": fallback,
    }
    knobs = {name: value for name, value in knobs.items() if value is not None}
    asked = [Message("user", [_text(prompt or []), *_attached(image or [])])]
    printer = session.printer
    if no_stream:
        answer = session.client.chat(asked, timeout=timeout, **knobs)
        if not (as_json or printer.as_json):
            printer.line(answer.text or answer.refusal or "")
    else:
        with session.client.stream(asked, timeout=timeout, **knobs) as stream:
            if json_lines:
                answer = _print_events(stream, printer)
            elif as_json or printer.as_json:
                answer = stream.collect()
            else:
                answer = _print_text(stream, printer)
    if (as_json or printer.as_json) and not json_lines:
        printer.json(to_plain(answer))
    if not quiet:
        printer.remark(_summary(answer, time.monotonic() - started))


def _print_text(stream: ChatStream, printer: Printer) -> ChatAnswer:
    last = ""
    try:
        for event in stream:
            if isinstance(event, TextDelta):
                printer.write(last := event.text)
            elif isinstance(event, ReasoningDelta):
                printer.aside(event.text)
        if stream.answer.refusal and not stream.answer.text:
            printer.write(last := stream.answer.refusal)
    finally:
        if last and not last.endswith("\n"):
            printer.write("\n")
    return stream.answer


def _print_events(stream: ChatStream, printer: Printer) -> ChatAnswer:
    for event in stream:
        told = event.answer if isinstance(event, Completed) else event
        printer.json({"event": snake_case(type(event).__name__), **to_plain(told)}, indent=None)
    return stream.answer


def _text(words: Sequence[str]) -> str:
    """The prompt: the words, with standard input in place of a dash, or standard input alone."""
    if not words and sys.stdin.isatty():
        fail('nothing to ask; give a prompt, as in: patchbay chat "Hello"')
    text = " ".join(f"\n{sys.stdin.read()}\n" if word == "-" else word for word in words or ["-"]).strip()
    if not text:
        fail("nothing to ask; the prompt is empty")
    return text


def _attached(files: Sequence[Path]) -> list[Media]:
    try:
        return [Media.from_file(path) for path in files]
    except OSError as error:
        fail(f"cannot read {error.filename}: {error.strerror}")


def _schema(path: Path) -> Any:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except ValueError as error:
        fail(f"{path} is not JSON: {error}")
    if not isinstance(schema, dict):
        fail(f"{path} is not a JSON Schema, which is an object")
    return schema


def _summary(answer: ChatAnswer, elapsed: float) -> str:
    usage = answer.usage
    parts = [
        answer.route.connector.rpartition("/")[2] or "organisation default",
        answer.route.model,
        f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens",
        f"${usage.cost_usd:.6f}".rstrip("0").rstrip(".") if usage.cost_usd is not None else "price unknown",
        seconds(elapsed),
        _ENDS.get(answer.finish_reason, ""),
        *(notice.message for notice in answer.notices),
    ]
    return " · ".join(part for part in parts if part)
