"""What a thinking sample is charged with: closed-form FLOPs that do not depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence

from inferscale.flops.binding import closed_form
from inferscale.flops.formulas import ModelSpec, UnknownArchitectureError, forward_flops
from inferscale.generators.branch import Branch

from .model import QuietSTaR
from .thinking import Thinking


class ThoughtCharges:
    """Closed-form costs, convention ``causal``: every visible token pays for itself and the thoughts before the next.

    With context c (tokens before the newest one), a thought of T tokens reads T + 3 tokens in one causal chunk, runs
    the output head for the T sampled ones and for the mixed state, and the mixing head once::

        flops(c) = chunk(T + 3 tokens after c, T + 1 logits) + 6 d² + 2 d

    Attributes:
        spec: The constants of the closed form; ``None`` where there is none, and every charge is 0.
    """

    def __init__(self, quiet: QuietSTaR, thinking: Thinking) -> None:
        self.thinking = thinking
        self.mixing = quiet.head.flops
        self.spec: ModelSpec | None
        try:
            self.spec = closed_form(quiet.model)
        except UnknownArchitectureError:
            self.spec = None  # the generator inside has warned

    def token(self, context: int, thinks: bool = True, read: bool = True) -> int:
        """FLOPs of one visible token.

        Args:
            context: Tokens before the newest one.
            thinks: Whether it was thought about.
            read: Whether the newest token is charged here; a sibling may have paid for it.
        """
        if self.spec is None:
            return 0
        length, count = self.thinking.length, self.thinking.num_thoughts
        if not thinks:
            return forward_flops(self.spec, 1, context, logits=1).causal if read else 0
        newest = forward_flops(self.spec, int(read), context, logits=0).causal
        thought = forward_flops(self.spec, length + 2, context + 1, logits=length + 1).causal
        return newest + count * (thought + self.mixing)

    def sample(self, branch: Branch, thought: Sequence[bool]) -> tuple[int, int, int]:
        """Prompt tokens, thought tokens and FLOPs of one finished sample.

        As for a plain generator, the first draw from a node pays for what nothing has read yet (the prompt at the
        root, the node's last token elsewhere), and the first sample of a request for its forced text.

        Args:
            branch: The sample.
            thought: For each of its tokens whether it was thought about.
        """
        sampled, forced, path = len(branch.tokens), len(branch.forced), len(branch.path)
        if not sampled:
            return 0, 0, 0
        first_draw = branch.request.first + branch.index == 0
        unread = (1 if path else len(branch.prompt)) if first_draw else 0
        own = unread + (forced if branch.index == 0 else 0)
        prefix = len(branch.prefix)
        flops = 0
        if self.spec is not None and own > 1:
            flops += forward_flops(self.spec, own - 1, prefix - own, logits=0).causal
        for number, thinks in enumerate(thought[:sampled]):
            flops += self.token(prefix - 1 + number, thinks, read=number > 0 or own > 0)
        prompt_tokens = (len(branch.prompt) if first_draw and not path else 0) + (forced if branch.index == 0 else 0)
        return prompt_tokens, sum(thought[:sampled]) * self.thinking.tokens, flops
