"""A verifier that thinks in words before it judges: the chance of "yes" after a sampled verification."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from inferscale.base import RewardModel
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import BranchFactory, Limits
from inferscale.runtime.charges import Charges
from inferscale.runtime.decoding import ModelRunner
from inferscale.runtime.loading import context_length, eos_ids, evaluating, load_model, tokenizer_of
from inferscale.runtime.sampling import Sampler
from inferscale.tree import Node, Problem, Step, branch_key

from .formats import TextEncoder
from .paths import BatchReader, Part, Path, read_pair

THINK_PRM_PROMPT = (
    "You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n{problem}\n\n"
    "[Solution]\n\n{solution}\n\nReview and critique each step in the proposed solution to determine whether each step "
    "is correct. If the solution is incomplete, only verify the provided steps."
)
"""The prompt that ThinkPRM's models were trained with."""

_DRAW = 2**32  # no search draws so many samples from a node: verifications have streams of their own


@dataclass(frozen=True, slots=True)
class Verification:
    """One sampled judgement.

    Attributes:
        text: What the verifier wrote.
        chance: P("yes") against P("no") after it.
    """

    text: str
    chance: float


class GenerativeVerifier(RewardModel):
    """Samples a verification of the solution so far, asks "Is the solution correct?", and reads the chance of "yes".

    ThinkPRM (Khalifa et al. 2025, arXiv:2504.16828). Several chains are averaged; or one chain is taken up again for
    some rounds. The whole solution is in the prompt, so nothing is shared between a path and its prefix: every node
    costs its verification, in `scored_tokens` and `reward_flops`. A node is verified once, whatever asks for it.

    Differs from the paper: a step that the verifier invents beyond the last one does not end its chain.

    Attributes:
        runner: Samples the verifications.
        chains: How many for each node.
        rounds: How often each chain is taken up.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        chains: int = 1,
        rounds: int = 1,
        temperature: float = 0.7,
        max_new_tokens: int = 8192,
        prompt: str = THINK_PRM_PROMPT,
        step: str = "Step {number}: {step}",
        question: str = "\nIs the solution correct?",
        again: str = "\nWait, let me double check...\n",
        yes: str = " yes",
        no: str = " no",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        micro_batch: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **load_options: Any,
    ) -> None:
        """Loads the verifier and checks its answers.

        Args:
            model: A causal language model: an object, a local folder or a hub id.
            tokenizer: Its tokenizer; by default the one beside the model.
            chains: Verifications of each node, averaged.
            rounds: Times that a chain goes on after `again`.
            temperature: Of sampling.
            max_new_tokens: Most tokens of a chain.
            prompt: What the verifier is asked, with ``{problem}`` and ``{solution}``.
            step: Each line of the solution, with ``{number}`` and ``{step}``.
            question: Put after the chain; a chain that asks it itself, or closes its thoughts, is cut there.
            again: Put before a further round.
            yes: The answer whose chance is the score, one token as it stands after `question`.
            no: The other answer.
            chat_template: Whether the prompt is a user's turn; by default if the tokenizer has a template.
            system_prompt: System turn of the chat.
            micro_batch: Most rows decoded at a time.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            load_options: Passed on to ``from_pretrained``.

        Raises:
            TagError: If an answer is not one token.
            ValueError: If `chains` or `rounds` is not positive, or there is no question.
        """
        from transformers import AutoModelForCausalLM

        if chains < 1 or rounds < 1:
            raise ValueError(f"chains={chains}, rounds={rounds}: at least one of each is needed")
        if not question.strip():
            raise ValueError(f"question={question!r}: every chain would be cut at its start; give a question")
        self.chains, self.rounds = chains, rounds
        verifier = load_model(model, AutoModelForCausalLM, device=device, dtype=dtype, **load_options)
        tokenizer = tokenizer_of(verifier, model, tokenizer)
        branches = BranchFactory(
            tokenizer,
            eos_ids(verifier, tokenizer, None),
            Limits(max_new_tokens, max_new_tokens, context_length(verifier.config)),
            chat_template=chat_template,
            system_prompt=system_prompt,
        )
        self.runner = ModelRunner(verifier, branches, Sampler(temperature), micro_batch=micro_batch)
        self._text = TextEncoder(tokenizer)
        self._layout = (prompt, step)
        self._again = again
        self._question = self._text.continued(question)
        self._stops = (question.strip(), "</think>")
        read = read_pair(self._text.one_id(yes), self._text.one_id(no))
        self._reader = BatchReader(self.runner.model, read, micro_batch or 32)
        self._charges = Charges(self.runner.model)
        self._known: dict[Node, tuple[list[Verification], Cost]] = {}

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The mean chance of "yes" over each node's chains."""
        return [fmean(item.chance for item in found) for found in self.verify(nodes)]

    def verify(self, nodes: Sequence[Node]) -> list[list[Verification]]:
        """The verifications of each node; nodes that have some are not verified again until their search ends."""
        new = [node for node in dict.fromkeys(nodes) if node not in self._known]
        if new:
            self._verify(new)
        return [list(self._known[node][0]) for node in nodes]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What verifying each node costs: it has to be done to be known."""
        self.verify(nodes)
        return [self._known[node][1] for node in nodes]

    def release(self, root: Node) -> None:
        """Forgets the verifications of a search that has ended."""
        for node in [node for node in self._known if node.root is root]:
            del self._known[node]

    def prompt_of(self, node: Node) -> str:
        """What the verifier is asked about a node."""
        prompt, line = self._layout
        texts = [re.sub(r"^\s*Step \d+:", "", text).strip() for text, _ in node.inner_steps()]
        lines = [line.replace("{number}", str(k)).replace("{step}", text) for k, text in enumerate(texts, 1)]
        head, _, tail = prompt.partition("{solution}")
        # filled in from the end: nothing written in a problem or a step is taken for a field
        return head.replace("{problem}", node.problem.prompt) + "\n".join(lines) + tail

    def _verify(self, nodes: Sequence[Node]) -> None:
        asked = [Problem(self.prompt_of(node)) for node in nodes]
        roots = [Node(p, key=branch_key(node.key, _DRAW)) for p, node in zip(asked, nodes, strict=True)]
        answers = self.runner.generate([GenerateRequest(root, self.chains, until="end") for root in roots])
        ends = [
            self._chain(root, draw, step)
            for root, steps in zip(roots, answers, strict=True)
            for draw, step in enumerate(steps)
        ]
        for _ in range(self.rounds - 1):
            more = self.runner.generate([GenerateRequest(e, until="end", forced=self._again) for e in ends])
            ends = [self._chain(end, 0, steps[0]) for end, steps in zip(ends, more, strict=True)]
        paths = [self._asked(end) for end in ends]
        with evaluating(self.runner.model), torch.inference_mode():
            chances = [values[0] for values in self._reader.read(paths)]
        for root in roots:
            self.runner.release(root)
        for place, node in enumerate(nodes):
            own = slice(place * self.chains, (place + 1) * self.chains)
            found = [Verification(end.text, chance) for end, chance in zip(ends[own], chances[own], strict=True)]
            self._known[node] = found, self._bill(ends[own], paths[own])

    def _chain(self, parent: Node, draw: int, step: Step) -> Node:
        """The node after a sample, cut where the verifier asks or closes, and open for what comes next."""
        text, ids = step.text, step.token_ids
        while ids and ids[-1] in self._text.specials:  # the end of sequence
            ids = ids[:-1]
        cut = min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=len(text))
        if cut < len(text):
            text = text[:cut].rstrip()
            ids = self._text.continued(text)
        kept = replace(
            step, text=text, token_ids=ids, finish_reason="step", inner_ends=(), num_tokens=step.generated_tokens
        )
        return Node(parent.problem, kept, parent, branch_key(parent.key, draw))

    def _asked(self, end: Node) -> Path:
        ids = (*end.token_ids, *self._question)
        part = Part(end.key, ids, (len(ids) - 1,), (), (1,), True)
        return Path(end.root.key, self.runner.branches.encode(end.problem.prompt), (part,))

    def _bill(self, ends: Sequence[Node], paths: Sequence[Path]) -> Cost:
        steps = [step for end in ends for step in end.steps]
        sampled = sum(step.prompt_tokens + step.generated_tokens for step in steps)
        total = Cost(scored_tokens=sampled, reward_flops=sum(step.flops for step in steps))
        return sum((self._charges.scoring(len(path), 1) for path in paths), total)
