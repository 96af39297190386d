"""The study of arXiv:2412.16260 for any models: thoughts, reward-balanced search, and both (`ThoughtStudy`).

Two prices stand in every row: what the paper charges (its constant for every emitted token; for REBASE the cap of a
step for every node, summed again along the path; thoughts, prompts and the reward model are free), and what is
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.answers import extract_answer, same_answer
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.cost import Cost
from inferscale.engine import solve_batch
from inferscale.flops import CONVENTIONS, model_spec
from inferscale.flops.ledger import Tally
from inferscale.generators import HFGenerator
from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
from inferscale.result import SearchResult
from inferscale.strategies import REBASE, RepeatedSampling
from inferscale.tree import Problem

from . import released
from .models import load_models, load_reward, study_problems
from .row import StudyRow


@dataclass(frozen=True)
class ThoughtStudy:
    """The models, problems and rules of a study; `table` and `ablation` run it row by row.

    Attributes:
        model: The base model.
        tokenizer: Its tokenizer.
        quiet: The model that thinks.
        reward: Scores steps.
        problems: Problems with gold answers.
        rules: Which rules of the released study hold.
        votes: Samples of a majority vote.
        widths: Of REBASE.
        step_tokens: Where steps are cut, if they are.
        max_new_tokens: Most tokens of a solution (384 in the paper).
        read_answer: Reads an answer, unless the released pattern does.
        seed: Any integer.
    """

    model: Any
    tokenizer: Any
    quiet: QuietSTaR
    reward: RewardModel
    problems: Sequence[Problem]
    rules: released.Rules = field(default_factory=released.Rules)
    votes: int = 6
    widths: Sequence[int] = (3, 6, 16)
    step_tokens: int = released.STEP_TOKENS
    max_new_tokens: int = 160
    read_answer: Callable[[str], str | None] = extract_answer
    seed: int = 0

    @classmethod
    def load(
        cls,
        model: str = "policy-s",
        *,
        quiet: str | PathLike[str] | None = None,
        reward: str = "simulated",
        data: str | PathLike[str] | None = None,
        preset: str = "corrected",
        problems: int = 10,
        thought_length: int = 3,
        train_steps: int = 10,
        **options: Any,
    ) -> ThoughtStudy:
        """A study by names.

        Args:
            model: An embedded policy, a folder, or a hub id.
            quiet: Folder of a trained wrapper; without one, an embedded policy is taught for `train_steps`.
            reward: ``"simulated"`` (the exact labels of the embedded task with noise: no trained model), or what
                `make_reward` takes.
            data: GSM8K as ``.jsonl``; by default the embedded task.
            preset: ``"corrected"`` or ``"published"``, which also overwrites start and end of thoughts, as the released
                code does when it first runs.
            problems: How many; those of a file are shuffled as in the paper.
            thought_length: Tokens of a thought that is taught here (published: 5).
            train_steps: Steps of that.
            options: Further attributes of the study.

        Raises:
            ValueError: If there is no such preset, or a part is missing that the others need.
        """
        if preset not in released.PRESETS:
            raise ValueError(f"preset={preset!r}: choose one of {', '.join(released.PRESETS)}")
        base, tokenizer, thinking = load_models(model, quiet, thought_length, train_steps, preset == "published")
        judge = load_reward(reward, model, embedded_task=data is None)
        if data is not None:
            options.setdefault("read_answer", released.PROMPTS.reader())
        found = study_problems(data, problems)
        return cls(base, tokenizer, thinking, judge, found, rules=released.PRESETS[preset], **options)

    def table(self) -> Iterator[StudyRow]:
        """Baseline, Quiet-STaR, REBASE of every width, and both (published: at width 6)."""
        votes = released.CuedVotes(self.votes) if self.rules.cue else RepeatedSampling(self.votes)
        yield self.measure(f"baseline, majority of {self.votes}", votes, thinks=False)
        yield self.measure(f"Quiet-STaR, majority of {self.votes}", votes, thinks=True)
        for width in self.widths:
            yield self.measure(f"REBASE-{width}", self.rebase(width), thinks=False)
        for width in [6] if self.rules == released.PRESETS["published"] else self.widths:
            yield self.measure(f"REBASE-{width} + Quiet-STaR", self.rebase(width), thinks=True)

    def rebase(self, width: int, softmax_temperature: float = 0.2) -> SearchStrategy:
        """REBASE by the rules."""
        kind = released.FlooredREBASE if self.rules.floor else REBASE
        return kind(width, softmax_temperature)

    def measure(
        self,
        name: str,
        strategy: SearchStrategy,
        thinks: bool,
        *,
        reward: RewardModel | None = None,
        aggregator: Aggregator | None = None,
        step_tokens: int | None = None,
        **thinking: Any,
    ) -> StudyRow:
        """One row.

        Args:
            name: Its name.
            strategy: REBASE, or a vote of samples, which needs no scores.
            thinks: Whether the model thinks.
            reward: Instead of the study's.
            aggregator: Instead of the rules'.
            step_tokens: Most tokens of a step, instead of the rules'.
            thinking: Options of `QuietSTaRGenerator`.
        """
        scored, rules = strategy.needs_scores, self.rules
        results = solve_batch(
            self.problems,
            strategy,
            self._generator(scored, thinks, step_tokens, thinking),
            reward_model=(reward or self.reward) if scored else None,
            aggregator=aggregator or (BestOfN() if scored and rules.best_of else MajorityVote(weighted=scored)),
            extract_answer=released.released_answer if rules.released_answers else self.read_answer,
            seed=self.seed,
        )
        return self._row(name, results, by_node=scored and rules.cut_steps and not thinks)

    def _generator(self, scored: bool, thinks: bool, step_tokens: int | None, thinking: dict[str, Any]) -> Generator:
        options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": self.max_new_tokens}
        rules = self.rules
        if rules.cut_steps if scored else rules.cue:
            options["step_delimiter"] = released.NO_DELIMITER
            options["max_step_tokens"] = self.step_tokens if scored else self.max_new_tokens
        if not scored and rules.cue:
            cue = self.tokenizer(released.CUE, add_special_tokens=False)["input_ids"]
            options["max_new_tokens"] += len(cue) + released.ANSWER_TOKENS
        if step_tokens is not None:
            options["max_step_tokens"] = step_tokens
        if not thinks:
            plain = HFGenerator(self.model, self.tokenizer, **options)
            return released.ReleasedPaths(plain, scored and rules.digit_leaves)
        thinker = QuietSTaRGenerator(self.quiet, self.tokenizer, **options, **thinking)
        each = 1 + thinker.thinking.tokens
        return released.ReleasedPaths(thinker, scored and rules.digit_leaves, released.ANSWER_TOKENS * each)

    def _row(self, name: str, results: Sequence[SearchResult], by_node: bool) -> StudyRow:
        cost = sum((result.cost for result in results), Cost())
        nodes = [node for result in results for node in result.root.walk() if node.step]
        emitted = sum(self.step_tokens * node.depth for node in nodes) if by_node else cost.generated_tokens
        return StudyRow(
            name,
            right=sum(map(_is_right, results)),
            problems=len(results),
            cost=cost,
            charged_flops=CONVENTIONS["abdelhameed2024"](Tally(sampled=emitted), model_spec(self.model.config)),
            depth_one=sum(len(t.steps) == 1 for r in results for t in r.trajectories),
            trajectories=sum(len(r.trajectories) for r in results),
        )


def _is_right(result: SearchResult) -> bool:
    gold = result.problem.answer
    return gold is not None and result.answer is not None and same_answer(result.answer, gold)
