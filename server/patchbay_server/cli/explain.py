"""`patchbay explain`: what a call would do, without doing it."""

from typing import Annotated, Any

import typer

from patchbay_client.answer import Candidate, Explanation, ResolutionOutcome, ResolutionStep
from patchbay_server.cli.output import Printer
from patchbay_server.cli.session import ExitCode, Session

_MARKS = {ResolutionOutcome.CHOSEN: "->", ResolutionOutcome.SKIPPED: "x"}
_RULES = {
    "REQUEST": "named by the request",
    "FEATURE_PREFERENCE": "preferred for the feature",
    "OWNER_DEFAULT": "the owner's default",
    "LAST_USED": "used last",
    "ORG_DEFAULT": "the organisation's default",
    "ROUTING": "routed by quality and price",
    "FALLBACK": "fallback",
}
_RULE_WIDTH = max(map(len, _RULES.values()))
_SHARED = "organisation default"
_EXIT_CODES = {
    "CAP_REACHED": ExitCode.LIMITED,
    "CONNECTOR_NOT_FOUND": ExitCode.NOT_FOUND,
    "MODEL_NOT_FOUND": ExitCode.NOT_FOUND,
    "POLICY_DENIED": ExitCode.DENIED,
    "DEPENDENCY_UNAVAILABLE": ExitCode.UNAVAILABLE,
}
"""How `chat` ends with these; with any other that is found beforehand it ends with INVALID."""


def explain(  # noqa: PLR0913 - options of a command
    session: Session,
    *,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="The prompt. Default: one short word.", show_default=False)
    ] = None,
    connector: Annotated[str | None, typer.Option(help="As of chat: which connector answers.")] = None,
    model: Annotated[
        str | None, typer.Option(help="As of chat: which model; patchbay/auto and its kin are routed.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="As of chat: whose connectors are used.")] = None,
    feature: Annotated[str | None, typer.Option(help="As of chat: what the call is for.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens to produce; bounds the cost.")] = None,
    min_quality: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The quality floor of a routed model.")
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(help="none, org_default, retry_then_org_default or owner_chain.")
    ] = None,
) -> None:
    """Show what a call would do, without doing it: which rule picks which connector, who follows if it fails, who is
    refused and why, what would be lost, what it can cost. Nothing is spent or recorded. Fails as the call would, once
    everything is shown.

    Examples:
        patchbay explain
        patchbay explain --model patchbay/cost --max-tokens 500
        patchbay explain "Sum this up." --feature search --fallback owner_chain -o json
    """
    knobs: dict[str, Any] = {
        "connector": connector,
        "model": model,
        "owner": owner,
        "feature": feature,
        "max_output_tokens": max_tokens,
        "min_quality": min_quality,
        "fallback": fallback,
    }
    knobs = {name: value for name, value in knobs.items() if value is not None}
    found = session.client.explain(" ".join(prompt or ["Hello"]), **knobs)
    if session.printer.as_json:
        session.printer.facts([], found)
    else:
        _show(session.printer, found)
    if found.error_reason:
        if not session.printer.as_json:
            session.printer.failure(f"the call would fail: {found.error_message}")
        raise typer.Exit(code=_EXIT_CODES.get(found.error_reason, ExitCode.INVALID))


def _show(printer: Printer, found: Explanation) -> None:
    if found.steps:
        printer.line("Resolution")
        for step in found.steps:
            printer.line(_step(step))
    _attempts(printer, "Attempts, each only if those before it fail", found.plan)
    _attempts(printer, "Not asked", found.refused)


def _step(step: ResolutionStep) -> str:
    rule = _RULES.get(step.rule.value, step.rule.value.lower())
    which = f"  {_id(step.connector)}" if step.connector else ""
    return f"  {_MARKS.get(step.outcome, ''):2} {rule:{_RULE_WIDTH}}{which}  {step.message}".rstrip()


def _attempts(printer: Printer, title: str, candidates: tuple[Candidate, ...]) -> None:
    if not candidates:
        return
    printer.line("")
    printer.line(title)
    for number, candidate in enumerate(candidates, start=1):
        rule = candidate.resolved_by.value if candidate.resolved_by else ""
        facts = [
            _RULES.get(rule, rule.lower()),
            "" if candidate.quality is None else f"quality {candidate.quality:.2f}",
            _cost(candidate),
            _headroom(candidate),
            "failed of late, so it comes last" if candidate.breaker_open else "",
        ]
        model = candidate.model or "no model"
        printer.line(f"  {number}. {_id(candidate.connector)} ({candidate.provider}), {model}")
        printer.line(f"     {' · '.join(fact for fact in facts if fact)}")
        if candidate.error_message:
            printer.line(f"     x {candidate.error_message}")
        for notice in candidate.notices:
            printer.line(f"     ! {notice.field}: {notice.message}")


def _id(connector: str) -> str:
    return connector.rpartition("/")[2] or _SHARED


def _cost(candidate: Candidate) -> str:
    nanos = candidate.worst_case_cost_usd_nanos
    return "" if nanos is None else f"at most ${nanos / 1e9:.6f}"


def _headroom(candidate: Candidate) -> str:
    left = candidate.cap_headroom_tokens
    return "" if left is None else f"{left:,} tokens left under its cap"
