"""A verifier that thinks in words before it judges: the chance of "yes" after a sampled verification."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Self

import torch

from inferscale.base import RewardModel, Traffic, check_judge
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import BranchFactory, Limits
from inferscale.runtime.charges import Charges
from inferscale.runtime.decoding import ModelRunner, check_counts
from inferscale.runtime.loading import check_length, check_pair, context_length, eos_ids, evaluating, load_pair
from inferscale.runtime.prompts import TextEncoder
from inferscale.runtime.sampling import Sampler
from inferscale.thinking import Thinking
from inferscale.tree import Judge, Node, Problem, Step, branch_key

from .scorer import BatchScorer, EncodedPath, PathPart, pair_probability

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
        probability: P("yes") against P("no") after it.
    """

    text: str
    probability: float


class GenerativeVerifier(RewardModel):
    """Samples verifications of the solution so far, and scores P("yes") after "Is the solution correct?".

    ThinkPRM (Khalifa et al. 2025, arXiv:2504.16828). Several verifications are averaged; or each goes on for some
    rounds. The whole solution is in the prompt, so nothing is shared between a path and its prefix: every node
    costs its verification, in `scored_tokens` and `reward_flops`. A node is verified once, whatever asks for it.

    Differs from the paper: a step that the verifier invents beyond the last one does not end its verification.

    Attributes:
        runner: Samples the verifications.
        n: Verifications of each node.
        num_rounds: Rounds of each.
        prompt: The verifier's task.
        step: A line of the solution in it.
        question: Put after a verification.
        again: Put before a further round.
        judge: The part of a solution that is verified.

    Example:
        Needs ThinkPRM's weights, and memory for them::

            judge = isc.rewards.GenerativeVerifier.from_pretrained("launch/ThinkPRM-1.5B", n=4, max_new_tokens=4096)
            solver = isc.Solver(isc.RepeatedSampling(8), generator, judge, isc.BestOfN())
            result = solver.solve("What is 12 * 13?")
    """

    no_effect = frozenset({"micro_batch"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        n: int = 1,
        num_rounds: int = 1,
        temperature: float = 0.7,
        max_new_tokens: int = 8192,
        prompt: str = THINK_PRM_PROMPT,
        step: str = "Step {number}: {step}",
        question: str = "\nIs the solution correct?",
        again: str = "\nWait, let me double check...\n",
        yes: str = " yes",
        no: str = " no",
        judge: Judge = "all",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        micro_batch: int | None = None,
    ) -> None:
        """Checks that the verifier can answer.

        Args:
            model: A causal language model; it stays where it is.
            tokenizer: Its tokenizer.
            n: Verifications of each node, averaged.
            num_rounds: Rounds of each verification; all but the first begin with `again`.
            temperature: Of sampling.
            max_new_tokens: Most tokens of a verification.
            prompt: The verifier's task, with ``{problem}`` and ``{solution}``.
            step: Each line of the solution, with ``{number}`` and ``{step}``.
            question: Put after the verification; one that asks it itself, or closes its thoughts, ends there.
            again: Put before a further round.
            yes: The answer whose probability is the score, one token as it stands after `question`.
            no: The other answer.
            judge: The part of a solution that is verified, where the policy thinks: ``"all"`` steps, the ``"final"``
                part or the ``"thoughts"``. A path that holds nothing of it scores 0, and costs nothing.
            chat_template: Whether the prompt is a user's turn; by default if the tokenizer has a template.
            system_prompt: System turn of the chat.
            micro_batch: Most rows decoded at a time.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            TagError: If an answer is not one token.
            ValueError: If `n` or `num_rounds` is not positive, there is no question, or another option does not fit.
        """
        _check_verification(n, num_rounds, question)
        model = check_pair(model, tokenizer, type(self).__name__)
        self.n, self.num_rounds, self.judge = n, num_rounds, check_judge(judge)
        self._text = TextEncoder(tokenizer)
        self._question_ids = self._text.continued(question)
        self._context = context_length(model.config, tokenizer)
        # a verification that fills the context leaves room for the question
        room = None if self._context is None else self._context - len(self._question_ids)
        branches = BranchFactory(
            tokenizer,
            eos_ids(model, tokenizer, None),
            Limits(max_new_tokens, max_new_tokens, room),
            chat_template=chat_template,
            system_prompt=system_prompt,
        )
        self.runner = ModelRunner(model, branches, Sampler(temperature), micro_batch=micro_batch)
        self.prompt, self.step, self.question, self.again = prompt, step, question, again
        self._stops = (question.strip(), (branches.thinking or Thinking()).end)
        probability = pair_probability(self._text.one_id(yes), self._text.one_id(no))
        self._scorer = BatchScorer(model, probability, micro_batch or 32)
        self._charges = Charges(model)
        self._known: dict[Node, tuple[list[Verification], Cost]] = {}

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        n: int = 1,
        num_rounds: int = 1,
        temperature: float = 0.7,
        max_new_tokens: int = 8192,
        prompt: str = THINK_PRM_PROMPT,
        step: str = "Step {number}: {step}",
        question: str = "\nIs the solution correct?",
        again: str = "\nWait, let me double check...\n",
        yes: str = " yes",
        no: str = " no",
        judge: Judge = "all",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        **load_options: Any,
    ) -> Self:
        """A verifier that is loaded; the options that are not named here are those of the class.

        Args:
            path_or_id: A local folder (never touches the network) or a hub id.
            tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
            device: Where to run; by default a GPU if there is one.
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            load_options: Passed on to transformers' ``from_pretrained``.

        Raises:
            TypeError: If an object is given in place of a folder or hub id.
            TagError: If an answer is not one token.
            ValueError: If an option or the tokenizer does not fit.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        _check_verification(n, num_rounds, question)  # told before the model is loaded
        check_counts(micro_batch=micro_batch)
        check_judge(judge), Sampler(temperature)
        limits = Limits(max_new_tokens, max_new_tokens, None)
        model, tokenizer = load_pair(
            path_or_id,
            AutoModelForCausalLM,
            tokenizer,
            loader=cls.from_pretrained,
            check=lambda tokenizer: _check_tokenizer(tokenizer, (yes, no), limits, chat_template, system_prompt),
            device=device,
            dtype=dtype,
            **load_options,
        )
        return cls(
            model,
            tokenizer,
            n=n,
            num_rounds=num_rounds,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            prompt=prompt,
            step=step,
            question=question,
            again=again,
            yes=yes,
            no=no,
            judge=judge,
            chat_template=chat_template,
            system_prompt=system_prompt,
            micro_batch=micro_batch,
        )

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The mean probability of "yes" over each node's verifications; 0 where there is nothing to verify."""
        return [fmean(item.probability for item in found) if found else 0.0 for found in self.verify(nodes)]

    def verify(self, nodes: Sequence[Node]) -> list[list[Verification]]:
        """The verifications of each node; nodes that have some are not verified again until their search ends."""
        new = [node for node in dict.fromkeys(nodes) if node not in self._known]
        if self.judge != "all":
            empty = [node for node in new if not node.part(self.judge).inner_steps()]
            self._known |= {node: ([], Cost()) for node in empty}
            new = [node for node in new if node not in self._known]
        if new:
            self._verify(new)
        return [list(self._known[node][0]) for node in nodes]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of verifying each node, which has to be done for it to be known.

        Raises:
            ValueError: If the verifier's task, with the solution in it, leaves no room in the model's context.
        """
        self.verify(nodes)
        return [self._known[node][1] for node in nodes]

    def check_prompt(self, root: Node) -> None:
        """Refuses a problem that leaves no room in the verifier's context."""
        self._task(root)

    def release(self, root: Node) -> None:
        """Forgets the verifications of a search that has ended."""
        for node in [node for node in self._known if node.root is root]:
            del self._known[node]

    def prompt_of(self, node: Node) -> str:
        """The verifier's task for a node."""
        part = node.part(self.judge)
        texts = [text for text, _ in part.inner_steps()]
        texts[:1] = [part.problem.prefill + text for text in texts[:1]]
        texts = [re.sub(r"^\s*Step \d+:", "", text).strip() for text in texts]
        lines = [self.step.replace("{number}", str(k)).replace("{step}", text) for k, text in enumerate(texts, 1)]
        head, _, tail = self.prompt.partition("{solution}")
        # filled in from the end: nothing written in a problem or a step is taken for a field
        return head.replace("{problem}", node.problem.question.prompt) + "\n".join(lines) + tail

    def _task(self, node: Node) -> Problem:
        """The verifier's task as a problem of its own, once it leaves room for the question and one token before it."""
        task = Problem(self.prompt_of(node))
        length = len(self.runner.branches.encode(task.prompt)) + 1 + len(self._question_ids)
        check_length(length, self._context, node, f"{type(self.runner.model).__name__}, with the verifier's own words,")
        return task

    def _verify(self, nodes: Sequence[Node]) -> None:
        problems = [self._task(node) for node in nodes]
        roots = [Node(p, key=branch_key(node.key, _DRAW)) for p, node in zip(problems, nodes, strict=True)]
        requests = self._requests(roots, self.n)
        answers = self.runner.generate(requests)
        calls = [(requests, answers)]
        ends = [
            self._cut(root, draw, step)
            for root, steps in zip(roots, answers, strict=True)
            for draw, step in enumerate(steps)
        ]
        for _ in range(self.num_rounds - 1):
            requests = self._requests(ends, forced=self.again)
            more = self.runner.generate(requests)
            calls.append((requests, more))
            ends = [self._cut(end, 0, steps[0]) for end, steps in zip(ends, more, strict=True)]
        paths = [self._question_path(end) for end in ends]
        with evaluating(self.runner.model), torch.inference_mode():
            probabilities = [values[0] for values in self._scorer.score(paths)]
        for root in roots:
            self.runner.release(root)
        bytes_of, trees = self._traffic(nodes, calls), [node.root for node in nodes for _ in range(self.n)]
        # the question is scored on the whole text, once for each verification
        asked = self._charges.scorings([(len(path), 0, 1) for path in paths], trees)
        for place, (node, moved) in enumerate(zip(nodes, bytes_of, strict=True)):
            own = slice(place * self.n, (place + 1) * self.n)
            found = [Verification(end.text, p) for end, p in zip(ends[own], probabilities[own], strict=True)]
            sampled = [step for end in ends[own] for step in end.steps]
            cost = Cost(
                scored_tokens=sum(step.prompt_tokens + step.generated_tokens for step in sampled),
                reward_flops=sum(step.flops for step in sampled),
                reward_bytes=None if moved is None else sum(moved),
                cache_bytes=None if moved is None else moved.cache,
            )
            self._known[node] = found, sum(asked[own], cost)

    def _traffic(
        self, nodes: Sequence[Node], calls: Sequence[tuple[Sequence[GenerateRequest], Sequence[Sequence[Step]]]]
    ) -> list[Traffic | None]:
        """Bytes of sampling: the first node of each tree is charged with those of all, which share their forwards."""
        charged: list[Traffic | None] = [Traffic(0, 0) for _ in nodes]
        for tree in {node.root: None for node in nodes}:
            places = [place for place, node in enumerate(nodes) if node.root is tree]
            moved = []
            for requests, answers in calls:
                each = len(requests) // len(nodes)  # one for a node, or one for each of its verifications
                own = [i for place in places for i in range(place * each, (place + 1) * each)]
                moved.append(self.runner.traffic([requests[i] for i in own], [answers[i] for i in own]))
            known = [one for one in moved if one is not None]
            total = Traffic(sum(one.weights for one in known), sum(one.cache for one in known))
            charged[places[0]] = total if len(known) == len(moved) else None
        return charged

    def _requests(self, nodes: Sequence[Node], n: int = 1, forced: str = "") -> list[GenerateRequest]:
        return [GenerateRequest(node, n, until="end", forced=forced, stop=self._stops) for node in nodes]

    def _cut(self, parent: Node, draw: int, step: Step) -> Node:
        """The node after a sample, which ends where the verifier asks or closes, and is open for what comes next."""
        text, ids = step.text, step.token_ids
        is_stopped = step.finish_reason == "eos" and ids[-1] not in self.runner.branches.text.eos_ids
        while ids and ids[-1] in self._text.specials:  # the end of sequence
            ids = ids[:-1]
        if is_stopped:
            text = text.rstrip()
            ids = self._text.continued(text)
        kept = replace(
            step, text=text, token_ids=ids, finish_reason="step", inner_ends=(), num_tokens=step.generated_tokens
        )
        return Node(parent.problem, kept, parent, branch_key(parent.key, draw))

    def _question_path(self, end: Node) -> EncodedPath:
        """Prompt, verification and question, scored at the question's last id."""
        ids = (*end.token_ids, *self._question_ids)
        part = PathPart(end.key, ids, (len(ids) - 1,), (0,), (1,), True)
        return EncodedPath(end.root.key, self.runner.branches.encode(end.problem), (part,))


def _check_tokenizer(
    tokenizer: Any, answers: Sequence[str], limits: Limits, chat_template: bool | None, system_prompt: str | None
) -> None:
    BranchFactory(tokenizer, (), limits, chat_template=chat_template, system_prompt=system_prompt)
    for answer in answers:
        TextEncoder(tokenizer).one_id(answer)


def _check_verification(n: int, num_rounds: int, question: str) -> None:
    if n < 1 or num_rounds < 1:
        raise ValueError(f"n={n}, num_rounds={num_rounds}: at least one of each is needed")
    if not question.strip():
        raise ValueError(f"question={question!r}: every verification would be cut at its start; give a question")
