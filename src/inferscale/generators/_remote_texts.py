"""Samples of which only the text is known."""

from __future__ import annotations

from inferscale.flow import GenerateRequest
from inferscale.tree import FinishReason, Step

from ._remote_probes import Stops
from ._remote_replies import Choice
from ._remote_samples import RemoteSample
from ._remote_server import Prefix
from .branch import Limits
from .text import step_end

_BLANKS = 3


class TextSample(RemoteSample):
    """A sample of which only the text is known.

    Attributes:
        forced: Tokens of the forced text; ``None`` estimates them by their share of the characters.
    """

    def __init__(
        self,
        request: GenerateRequest,
        index: int,
        limits: Limits,
        delimiter: str,
        server_stops: Stops,
        forced: int | None,
    ) -> None:
        path = sum(step.generated_tokens for step in request.node.steps)
        super().__init__(request, index, limits, limits.room(0, path))
        self.forced = forced
        self._delimiter = delimiter
        self._server_stops = server_stops
        self._text = request.forced
        self._blanks = 0

    def prefix(self) -> Prefix:
        """Text of prompt, path, forced text and what was sampled so far."""
        node = self.request.node
        return Prefix(node.problem.prompt, node.text + self._text)

    @property
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""
        forced = self.forced
        if forced is None:
            node = self.request.node
            whole = len(node.problem.prompt) + len(node.text) + len(self.request.forced)
            forced = round(self.read * len(self.request.forced) / whole)
        return max(min(forced, self.read - 1), 0)

    def _extend(self, choice: Choice, cut_short: bool) -> None:
        self._text += choice.text
        stops = self.request.until == "step"
        if stops and self._cut(choice):
            self.finish = self._end_of_step
        elif choice.finish == "length":
            self.finish = self._reason_at_length(cut_short)
        elif stops and self._at_delimiter(choice):
            self._text += "" if self._delimiter in choice.text else self._delimiter
            self.finish = self._end_of_step if self._cut(choice) else None
        else:
            self._text = self._text if self._text.strip() else self.request.forced
            self.finish = "eos"

    @property
    def _end_of_step(self) -> FinishReason:
        return "length" if self._spent >= self._room else "step"

    def _cut(self, choice: Choice) -> bool:
        """Whether the text has come to the end of a step.

        What follows the delimiter belongs to its token where the server stopped there; what a server that overlooks
        stop strings sends beyond it is cut.
        """
        end = step_end(self._text, self._delimiter, len(self.request.forced))
        if 0 <= end < len(self._text) and not (self._server_stops == "kept" and choice.finish == "stop"):
            self._text, self._logprobs = self._text[:end], None
        return end >= 0

    def _at_delimiter(self, choice: Choice) -> bool:
        """Whether the delimiter ended the answer, and not the model.

        A server that takes the delimiter off and does not say what ended a sample leaves that open. A text is then a
        step: if the model had ended, it will end again. Nothing, several times in a row, is the end.
        """
        if self._delimiter in choice.text:
            return True
        if choice.tells_stop or self._server_stops != "hidden":
            return choice.stopped_by == self._delimiter
        self._blanks = 0 if choice.text.strip() else self._blanks + 1
        return self._blanks <= _BLANKS

    def _made(self) -> Step:
        reason: FinishReason = self.finish or "length"
        if reason in ("step", "length") and not self._text.strip():
            reason = "empty"
        ends: list[int] = []
        start = 0
        while self.request.until == "end" and start < len(self._text):
            length = step_end(self._text[start:], self._delimiter, 0 if ends else len(self.request.forced))
            start = start + length if length >= 0 else len(self._text)
            ends.append(start)
        inner = tuple((end, 0) for end in ends) if len(ends) > 1 else ()
        return Step(self._text, finish_reason=reason, inner_ends=inner, num_tokens=self.sampled)
