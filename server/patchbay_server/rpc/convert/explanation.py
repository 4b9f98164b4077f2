"""What a call would do, as the contract tells it."""

from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server.core.choose import Step, visible_name
from patchbay_server.core.explain import Explanation, Prospect
from patchbay_server.rpc.convert.answers import notice
from patchbay_server.rpc.convert.enums import OUTCOMES, RESOLVED_BY, error_reason


def explanation(value: Explanation) -> pb.ExplainResponse:
    failure = value.failure
    return pb.ExplainResponse(
        error_reason=error_reason(failure.reason if failure else None),
        error_message=failure.message if failure else "",
        error_field=failure.violations[0].field if failure and failure.violations else "",
        steps=[_step(step, value.owner) for step in value.steps],
        plan=[_candidate(prospect, value.owner) for prospect in value.plan],
        refused=[_candidate(prospect, value.owner) for prospect in value.refused],
    )


def _step(step: Step, owner: str) -> pb.ResolutionStep:
    return pb.ResolutionStep(
        rule=RESOLVED_BY.to_wire[step.rule],
        outcome=OUTCOMES.to_wire[step.outcome],
        connector=visible_name(step.connector, owner) if step.connector else "",
        message=step.message,
    )


def _candidate(prospect: Prospect, owner: str) -> pb.Candidate:
    candidate, failure = prospect.candidate, prospect.failure
    own = candidate.connector.owner == owner
    return pb.Candidate(
        connector=visible_name(candidate.connector, owner),
        provider=candidate.connector.type,
        model=candidate.model,
        resolved_by=RESOLVED_BY.to_wire[candidate.resolved_by],
        error_reason=error_reason(failure.reason if failure else None),
        error_message=failure.message if failure else "",
        notices=[notice(each) for each in prospect.notices],
        # How much another owner has left is that owner's business.
        cap_headroom_tokens=prospect.headroom_tokens if own else None,
        worst_case_cost_usd_nanos=prospect.worst_case_usd_nanos,
        quality=candidate.quality,
        breaker_open=candidate.breaker_open,
    )
