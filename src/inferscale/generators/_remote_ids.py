"""Samples whose token ids the server returns."""

from __future__ import annotations

from dataclasses import replace

from inferscale.tree import Step

from ._remote_replies import Choice
from ._remote_samples import RemoteSample
from ._remote_server import Prefix
from .branch import Branch


class IdSample(RemoteSample):
    """A sample whose ids are known: it is stepped as in `HFGenerator`, token by token."""

    def __init__(self, branch: Branch) -> None:
        super().__init__(branch.request, branch.index, branch.limits, branch.room)
        self._branch = branch

    def prefix(self) -> Prefix:
        """Ids of prompt, path, forced text and what was sampled so far."""
        return Prefix("", ids=self._branch.prefix + tuple(self._branch.tokens))

    @property
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""
        return len(self._branch.forced)

    def _extend(self, choice: Choice, cut_short: bool) -> None:
        branch, ids = self._branch, choice.token_ids or ()
        for place, token in enumerate(ids, 1):
            if not branch.push(token, 0.0, 0.0):
                self._logprobs = self._logprobs if place == len(ids) else None  # what came after the step's end is cut
                break
        if branch.finish is None and choice.finish == "length":
            branch.finish = self._reason_at_length(cut_short)
        elif branch.finish is None and not self._at_delimiter(choice):
            branch.finish = "eos"
        self.finish = branch.finish

    def _at_delimiter(self, choice: Choice) -> bool:
        """Whether a delimiter ended the answer that ends no step, since nothing but white space stands before it."""
        text = self._branch.text
        if not choice.token_ids or self.request.until == "end":
            return False
        if choice.tells_stop:
            return choice.stopped_by == text.delimiter
        return text.delimiter in text.decode(choice.token_ids, final=True)

    def _made(self) -> Step:
        self._branch.finish = self.finish
        step = self._branch.step(lambda branch: (0, 0))
        return step if self.sampled == step.generated_tokens else replace(step, num_tokens=self.sampled)
