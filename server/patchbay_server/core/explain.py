"""What a call would do: the plan that `Chat` would follow, with what each candidate would cost and lose.

Asks no provider, holds no tokens, writes nothing.
"""

import asyncio

import msgspec

from patchbay_server.core import choose, estimate
from patchbay_server.core.call import Means
from patchbay_server.core.choose import Candidate, Plan, Step
from patchbay_server.core.meter import cap_reached, is_hard
from patchbay_server.errors import PatchbayError
from patchbay_server.types import ChatRequest, Notice, Snapshot
from patchbay_server.usage import Usage


class Prospect(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate as the call would find it.

    `failure` is why it would not be asked. `headroom_tokens` are left under its monthly cap, None without one.
    `worst_case_usd_nanos` is the most that it could cost, with the output limit used up; None where price or limit is
    unknown.
    """

    candidate: Candidate
    notices: tuple[Notice, ...] = ()
    failure: PatchbayError | None = None
    headroom_tokens: int | None = None
    worst_case_usd_nanos: int | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of `owner` would do. `failure` is what it would end with before it reached a provider."""

    owner: str
    failure: PatchbayError | None = None
    steps: tuple[Step, ...] = ()
    plan: tuple[Prospect, ...] = ()
    refused: tuple[Prospect, ...] = ()


async def explain(snapshot: Snapshot, request: ChatRequest, plan: Plan, means: Means) -> Explanation:
    """The explanation of a plan.

    Raises:
        PatchbayError: DEPENDENCY_UNAVAILABLE when caps cannot be known.
    """
    refused = choose.refusals(snapshot, plan)
    asked = [candidate.connector for candidate in plan.candidates]
    headroom = await means.meter.headroom([*asked, *(refusal.candidate.connector for refusal in refused)])
    bound = estimate.input_bound(request.prompt)

    def seen(candidate: Candidate, failure: PatchbayError | None) -> Prospect:
        left = headroom.get(candidate.connector.uid)
        notices: tuple[Notice, ...] = ()
        if failure is None:
            try:
                notices = means.exchange.rehearse(
                    candidate, request.prompt, owner=snapshot.owner, streaming=False, policy=snapshot.policy
                )
            except PatchbayError as error:
                failure = error
        wanted = estimate.tokens_needed(request.prompt) if is_hard(candidate.connector) else 0
        if failure is None and left is not None and left < max(wanted, 1):
            failure = cap_reached(candidate.connector, snapshot.owner, wanted=wanted)
        return Prospect(
            candidate=candidate,
            notices=notices,
            failure=failure,
            headroom_tokens=left,
            worst_case_usd_nanos=_worst_case(candidate, snapshot, request, bound, means),
        )

    prospects: list[Prospect] = []
    for candidate in plan.candidates:
        prospects.append(seen(candidate, None))
        await asyncio.sleep(0)  # a long prompt takes a while to translate, and others have calls to make
    return Explanation(
        owner=snapshot.owner,
        failure=plan.failure or (prospects[0].failure if prospects else None),
        steps=plan.steps,
        plan=tuple(prospects),
        refused=tuple(seen(refusal.candidate, refusal.failure) for refusal in refused),
    )


def _worst_case(candidate: Candidate, snapshot: Snapshot, request: ChatRequest, bound: int, means: Means) -> int | None:
    limit = estimate.output_limit(request.prompt)
    if limit is None or not candidate.model:
        return None
    most = Usage(input_tokens=bound, output_tokens=limit, total_tokens=bound + limit)
    return means.prices.cost_usd_nanos(
        candidate.connector.type, candidate.model, most, snapshot.policy, on=means.clock.now().date()
    )
