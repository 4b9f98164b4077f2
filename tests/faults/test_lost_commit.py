"""Commits that are done while their answers are lost: the writer tries again, and nothing counts twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.answers import USAGE, error, openai_unary
from tests.support.bench import Bench, assembled

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import AuditType, CallState, FallbackMode, Record


def lose_answers(bench: Bench, nth: int, *, from_then_on: bool) -> list[int]:
    """Lose the answer to the first commit of the n-th group (or of every one from it on); a list that grows by the
    sizes of those groups.
    """
    real = bench.store.write_records
    groups: list[Sequence[Record]] = []
    lost: list[int] = []

    async def write_records(records: Sequence[Record]) -> None:
        await real(records)
        if records in groups:
            return
        groups.append(records)
        if len(groups) == nth or (from_then_on and len(groups) > nth):
            lost.append(len(records))
            raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, "the answer is lost")

    bench.store.write_records = write_records  # type: ignore[method-assign]
    return lost


@pytest.mark.parametrize("from_then_on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("sqlite", [False, True], ids=["memory", "sqlite"])
async def test_a_call_whose_commits_are_not_answered_is_recorded_once(
    tmp_path: Path, sqlite: bool, from_then_on: bool
) -> None:
    lost: list[int] = [0]
    nth = 0
    while lost:
        nth += 1
        async with assembled(sqlite=tmp_path / f"{nth}.db" if sqlite else None) as bench:
            await bench.add("first", is_default=True)
            shared = await bench.add("shared", owner="company")
            await bench.policy(organisation_default=shared.name)
            bench.provider.answer(error(429), name="first")
            bench.provider.answer(openai_unary(), name="shared")
            lost = lose_answers(bench, nth, from_then_on=from_then_on)
            await bench.chat(fallback=FallbackMode.ORG_DEFAULT)
            row = await bench.call()
            assert [attempt.state for attempt in row.attempts] == [CallState.FAILED, CallState.SUCCEEDED]
            assert len(await bench.audits(AuditType.FALLBACK_TRIGGERED)) == 1
            used = USAGE["prompt_tokens"] + USAGE["completion_tokens"]
            assert await bench.store.month_tokens([shared.uid], "2026-11") == {shared.uid: used}
    assert nth > 2
