"""The study of arXiv:2412.16260 for any models (`ThoughtStudy`), and its ablations, one thing changed at a time.

Two prices stand in every row: what the paper charges (its constant for every emitted token; for REBASE the cap of a
step for every node, summed again along the path; thoughts, prompts and the reward model are free), and what is
computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from inferscale import zoo
from inferscale.aggregators import BestOfN, BordaVote, MajorityVote
from inferscale.answers import Reader, read_answer, same_answer
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.cost import Cost
from inferscale.engine import solve_batch
from inferscale.evaluate.datasets import load_problems
from inferscale.evaluate.parts import embedded, make_reward
from inferscale.flops import CONVENTIONS, model_spec
from inferscale.flops.ledger import Tally
from inferscale.generators import HFGenerator
from inferscale.quiet_star import (
    EveryToken,
    HighEntropy,
    Never,
    Objective,
    QuietSTaR,
    QuietSTaRGenerator,
    Recipe,
    StepStarts,
    ThoughtUtility,
    WithThoughts,
)
from inferscale.quiet_star.train import start, task_batches, train
from inferscale.strategies import REBASE, RepeatedSampling
from inferscale.tree import Problem
from studies.experiments import SimulatedReward

from .released import (
    ANSWER_TOKENS,
    CUE,
    NO_DELIMITER,
    PRESETS,
    PROMPTS,
    REPAIRS,
    STEP_TOKENS,
    CuedVotes,
    FlooredREBASE,
    ReleasedPaths,
    Rules,
    overwrite_marks,
    released_answer,
)


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One row of the table; FLOPs, seconds and tokens are of one problem.

    Attributes:
        name: What was run.
        right: Problems solved.
        problems: Problems.
        cost: Of all problems together.
        charged_flops: What the paper's convention charges for all of them.
        depth_one: Trajectories of one step.
        trajectories: Trajectories.
    """

    name: str
    right: int
    problems: int
    cost: Cost
    charged_flops: int
    depth_one: int
    trajectories: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        z, n, p = 1.959964, self.problems, self.right / self.problems
        middle, spread = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))

    def __str__(self) -> str:
        """Return the row as one line."""
        low, high = self.interval
        n, cost = self.problems, self.cost
        return (
            f"{self.name:43} {self.right:3}/{n} [{low:5.1%}, {high:6.1%}]  paper {self.charged_flops / n:.3g}  "
            f"true {cost.generator_flops / n:.3g} + reward {cost.reward_flops / n:.3g} FLOPs  "
            f"{cost.seconds / n:.2f} s  {cost.generated_tokens / n:.0f} tokens + {cost.thought_tokens / n:.0f} thought"
            f"  depth 1: {self.depth_one}/{self.trajectories}"
        )


def study_problems(data: str | PathLike[str] | None, count: int) -> list[Problem]:
    """Return the first problems of the embedded task's development set, or of a shuffled GSM8K file.

    Raises:
        ValueError: If `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"problems={count}: take at least 1")
    if data is None:
        return zoo.problems("dev")[:count]
    problems = load_problems("gsm8k", data, style=PROMPTS)
    random.Random(42).shuffle(problems)  # the seed of the released code
    return problems[:count]


@dataclass(frozen=True)
class ThoughtStudy:
    """Models, problems and rules of a study; `table` and the functions of `ABLATIONS` run it row by row.

    Attributes:
        model: The base model.
        tokenizer: Its tokenizer.
        quiet: The model that thinks.
        reward: Scores steps.
        problems: Problems with gold answers.
        rules: Rules of the released study that hold.
        votes: Samples of a majority vote.
        widths: Of REBASE.
        step_tokens: Where steps are cut, if they are.
        max_new_tokens: Most tokens of a solution (384 in the paper).
        read_answer: Answer reader, unless the released pattern is used.
        seed: Any integer.
    """

    model: Any
    tokenizer: Any
    quiet: QuietSTaR
    reward: RewardModel
    problems: Sequence[Problem]
    rules: Rules = field(default_factory=Rules)
    votes: int = 6
    widths: Sequence[int] = (3, 6, 16)
    step_tokens: int = STEP_TOKENS
    max_new_tokens: int = 160
    read_answer: Reader = read_answer
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
        """Load a study by names.

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
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r}: choose one of {', '.join(PRESETS)}")
        source = zoo.path(model) if model in embedded() else model
        plain = HFGenerator.from_pretrained(source, cache="none")
        first = plain.tokenizer("---", add_special_tokens=False)["input_ids"][0]
        if quiet is not None:
            thinking = QuietSTaR.from_pretrained(quiet)
        elif isinstance(source, Path):
            untaught = HFGenerator.from_pretrained(source, cache="none").model  # its weights will change
            thinking = QuietSTaR(untaught, thought_length, start_token_id=first)
            objective = Objective(talk_length=1, num_thoughts=2, reinforce_temperature=1.0)
            recipe = Recipe(
                objective,
                lr=3e-4,
                head_lr_scale=10.0,
                embedding_lr_scale=10.0,
                steps=train_steps,
                accumulation=1,
                warmup_steps=0,
            )
            for _ in train(start(thinking, recipe), task_batches(4, talk_length=1, level=1)):
                pass
        else:
            raise ValueError(
                f"quiet=None: {model} has no trained thoughts, and an untrained wrapper is the model itself: give the "
                "folder of a trained one (python -m inferscale.quiet_star.train), or a published checkpoint"
            )
        if preset == "published":
            overwrite_marks(thinking, first)
        if reward in ("simulated", "checker") and data is not None:
            raise ValueError(
                f"reward={reward!r} only judges the embedded task: give a process reward model for this data"
            )
        judge = SimulatedReward(auc=0.85) if reward == "simulated" else make_reward(reward, model)
        if data is not None:
            options.setdefault("read_answer", PROMPTS.reader())
        found = study_problems(data, problems)
        return cls(plain.model, plain.tokenizer, thinking.eval(), judge, found, rules=PRESETS[preset], **options)

    def table(self) -> Iterator[StudyRow]:
        """Measure the baseline, Quiet-STaR, REBASE of every width, and both (published: at width 6)."""
        votes = CuedVotes(self.votes) if self.rules.cue else RepeatedSampling(self.votes)
        yield self.measure(f"baseline, majority of {self.votes}", votes, thinks=False)
        yield self.measure(f"Quiet-STaR, majority of {self.votes}", votes, thinks=True)
        for width in self.widths:
            yield self.measure(f"REBASE-{width}", self.rebase(width), thinks=False)
        for width in [6] if self.rules == PRESETS["published"] else self.widths:
            yield self.measure(f"REBASE-{width} + Quiet-STaR", self.rebase(width), thinks=True)

    def rebase(self, width: int, softmax_temperature: float = 0.2) -> SearchStrategy:
        """Make REBASE by the rules."""
        kind = FlooredREBASE if self.rules.floor else REBASE
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
        """Measure one row.

        Args:
            name: Its name.
            strategy: REBASE, or a vote of samples, which needs no scores.
            thinks: True for the model that thinks, False for the base.
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
            aggregator=aggregator
            or (BestOfN(drop_abstentions=True) if scored and rules.best_of else MajorityVote(weighted=scored)),
            read_answer=released_answer if rules.released_answers else self.read_answer,
            seed=self.seed,
        )
        cost = sum((result.cost for result in results), Cost())
        emitted = cost.generated_tokens
        if scored and rules.cut_steps and not thinks:  # the paper's count: the cap of a step, again along every path
            nodes = [node for result in results for node in result.root.walk() if node.step]
            emitted = sum(self.step_tokens * node.depth for node in nodes)
        pairs = [(result.answer, result.problem.answer) for result in results]
        return StudyRow(
            name,
            right=sum(found is not None and gold is not None and same_answer(found, gold) for found, gold in pairs),
            problems=len(results),
            cost=cost,
            charged_flops=CONVENTIONS["abdelhameed2024"](Tally(sampled=emitted), model_spec(self.model.config)),
            depth_one=sum(len(t.steps) == 1 for r in results for t in r.trajectories),
            trajectories=sum(len(r.trajectories) for r in results),
        )

    def _generator(self, scored: bool, thinks: bool, step_tokens: int | None, thinking: dict[str, Any]) -> Generator:
        options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": self.max_new_tokens}
        rules = self.rules
        if rules.cut_steps if scored else rules.cue:
            options["step_delimiter"] = NO_DELIMITER
            options["max_step_tokens"] = self.step_tokens if scored else self.max_new_tokens
        if not scored and rules.cue:
            cue = self.tokenizer(CUE, add_special_tokens=False)["input_ids"]
            options["max_new_tokens"] += len(cue) + ANSWER_TOKENS
        if step_tokens is not None:
            options["max_step_tokens"] = step_tokens
        if not thinks:
            plain = HFGenerator(self.model, self.tokenizer, **options)
            return ReleasedPaths(plain, scored and rules.digit_leaves)
        thinker = QuietSTaRGenerator(self.quiet, self.tokenizer, **options, **thinking)
        each = 1 + thinker.settings.tokens
        return ReleasedPaths(thinker, scored and rules.digit_leaves, ANSWER_TOKENS * each)


def rules(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Go from the published rules of REBASE-6 to the corrected ones, one more mended in every row; both models."""
    published = replace(study, rules=PRESETS["published"])
    for thinks, kind in ((False, "base"), (True, "Quiet-STaR")):
        yield published.measure(f"{kind}, majority of {study.votes}", CuedVotes(study.votes), thinks)
        mended = published
        for name, repair in REPAIRS:
            mended = replace(mended, rules=replace(mended.rules, **repair))
            yield mended.measure(f"{kind}, REBASE-6 {name}", mended.rebase(6), thinks)


def pruning(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Vary softmax temperature, width and step length, with thoughts."""
    for width in study.widths:
        for temperature in (0.05, 0.2, 1.0):
            yield study.measure(f"width {width}, T_b {temperature}", study.rebase(width, temperature), True)
    for tokens in (16, STEP_TOKENS, 256):
        yield study.measure(f"steps of at most {tokens}", study.rebase(6), True, step_tokens=tokens)


def length(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Vary the tokens of a thought."""
    for tokens in (0, 1, 3, 5, 9):
        yield study.measure(f"thoughts of {tokens} tokens", study.rebase(6), True, thought_length=tokens)


def when(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Think before every token, at step starts, where the model is unsure, never."""
    for rule in (EveryToken(), StepStarts(), HighEntropy(0.5), Never()):
        yield study.measure(repr(rule), study.rebase(6), True, when=rule)


def reward(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Score steps without and with what thoughts add to their tokens; vote by rank, since sums can be negative."""
    utility = ThoughtUtility(study.quiet, study.tokenizer)
    for weight in (0.0, 0.5, 2.0):
        both = WithThoughts(study.reward, utility, weight)
        name = f"reward + {weight} * utility"
        yield study.measure(name, study.rebase(6), True, reward=both, aggregator=BordaVote())


ABLATIONS: dict[str, Callable[[ThoughtStudy], Iterator[StudyRow]]] = {
    function.__name__: function for function in (rules, pruning, length, when, reward)
}
"""By name; each takes a study and yields its rows."""
