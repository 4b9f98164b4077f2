"""What is known of an attempt while it runs: what it told, what it used, whether somebody else could still answer."""

from functools import cached_property

import msgspec

from patchbay_server.core import estimate
from patchbay_server.core.choose import Candidate
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    ChatEvent,
    Event,
    Finished,
    Hold,
    Opened,
    Part,
    PartCompleted,
    Prompt,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageUpdated,
)
from patchbay_server.usage import Usage, UsageSource


class Progress:
    """One attempt at `candidate`.

    Args:
        prompt: what it is asked, for estimates.
        started: when it began, by the monotonic clock.
        alone: whether no other try could follow if this one failed.
        streaming: whether the provider is asked to stream.
        delivers: whether the caller gets events as they come, rather than the whole answer at its end.
    """

    def __init__(
        self,
        candidate: Candidate,
        prompt: Prompt,
        started: float,
        *,
        alone: bool,
        streaming: bool,
        delivers: bool,
    ) -> None:
        self.candidate = candidate
        self.started = started
        self.alone = alone
        self.streaming = streaming
        self._prompt = prompt
        self._delivers = delivers
        self.hold: Hold | None = None
        """What it holds of its connector's hard cap."""
        self.probe = False
        """Whether it is the probe of a half-open breaker."""
        self.accepted = False
        self.committed = False
        self.has_output = False
        self.upstream_id = ""
        self.model = ""
        self.parts: dict[int, Part] = {}
        self.held: list[ChatEvent] = []
        self.finished: Finished | None = None
        self.reported: Usage | None = None
        """Running totals, as the provider gave them last."""
        self.cut_short = False
        """Whether it was ended to leave time for others, which says nothing of the provider."""
        self.failure: PatchbayError | None = None
        """Why it failed by itself, whatever becomes of its call."""
        self._opened = False
        self._weight = 0

    @property
    def may_commit(self) -> bool:
        """Whether the caller's next event is this attempt's: something to see came, or nobody else could answer."""
        if self.finished is not None:
            return True
        return self._delivers and (self.has_output or (self.alone and self._opened))

    def take(self, batch: list[Event]) -> list[ChatEvent]:
        """The provider's events as the caller's, after counting what they tell."""
        events: list[ChatEvent] = []
        for event in batch:
            match event:
                case TextDelta() | ReasoningDelta():
                    self._weight += estimate.weight(event.text)
                    self.has_output = True
                    events.append(event)
                case ToolCallDelta():
                    self._weight += estimate.weight(event.arguments_json)
                    self.has_output = True
                    events.append(event)
                case ToolCallStarted():
                    self.has_output = True
                    events.append(event)
                case PartCompleted():
                    self.has_output = True
                    self.parts[event.part_index] = event.part
                    events.append(event)
                case UsageUpdated():
                    self.reported = event.usage
                    events.append(event)
                case Opened():
                    self._opened = True
                    self.upstream_id = event.upstream_id or self.upstream_id
                    self.model = event.model or self.model
                case Finished():
                    self.finished = event
        return events

    def judged(self, error: PatchbayError) -> PatchbayError:
        """A connection that broke before anything was seen is no broken stream: somebody else may answer."""
        if error.reason is Reason.UPSTREAM_STREAM_BROKEN and not (self._delivers and self.has_output):
            return PatchbayError(Reason.UPSTREAM_UNAVAILABLE, error.message, upstream=error.upstream)
        return error

    def spent(self) -> Usage | None:
        """What an attempt that did not finish used: what the provider reported so far, else an estimate; None if it was
        not accepted. What was written since the report, which may stand at the answer's beginning, is estimated.
        """
        if self.finished is not None and self.finished.usage is not None:
            return self.finished.usage
        if self.reported is None:
            return self.estimate() if self.accepted else None
        told, written = self.reported, self.estimate().output_tokens
        if told.output_tokens >= written:
            return msgspec.structs.replace(told, source=UsageSource.PARTIAL)
        return msgspec.structs.replace(
            told,
            output_tokens=written,
            total_tokens=told.input_tokens + written,
            cost_usd_nanos=None,
            source=UsageSource.ESTIMATED,
        )

    def tokens(self) -> int:
        """Tokens used so far, as the provider reported them or as they are estimated, whichever is more."""
        guess = self.estimate()
        told = self.reported or guess
        return max(guess.total_tokens, told.input_tokens + told.output_tokens)

    def estimate(self) -> Usage:
        return estimate.usage(self._given, self._weight)

    @cached_property
    def _given(self) -> int:
        return estimate.input_tokens(self._prompt)
