# %% [markdown]
# # Quiet-STaR, REBASE, and both
# The study of arXiv:2412.16260 (AbdElhameed and Halim), on any Hugging Face model and any GSM8K file:
#
#     python examples/03_quiet_star_vs_rebase.py --model mistralai/Mistral-7B-v0.1 --quiet path/of/quietstar-8-ahead \
#         --reward peiyi9979/math-shepherd-mistral-7b-prm --data test.jsonl --preset published --problems 128
#
# Without options it runs in about two minutes on embedded models: a short training of thoughts, then ten problems. That
# is enough to see the parts work and far too little to compare accuracies: read the intervals.
#
# Two presets. `published` follows the released settings: 96-token steps, a path ends as soon as its last sentences hold
# a digit, nodes that score 0.1 or less are dropped, the best-scored fragment answers, tokens are charged with the
# paper's constant; start and end of a thought are overwritten, as the released code does when it first runs.
# `corrected` keeps steps whole, lets paths end where the model ends them, and votes.

# %%
import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

import inferscale as isc
from inferscale.evaluate import load_problems
from inferscale.flops import CONVENTIONS, model_spec
from inferscale.flops.ledger import Tally
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
from inferscale.quiet_star.data import task_batches
from inferscale.quiet_star.train import start, train

CUE = "\nTherefore, the answer (arabic numerals) is"
ANSWER_PHRASES = ("the answer is", "####", "\\boxed")
STEP_TOKENS = 96

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="policy-s", help="an embedded policy, a model folder, or a hub id")
parser.add_argument("--quiet", help="folder of a trained wrapper; by default one is trained for --train-steps")
parser.add_argument("--reward", help="process reward model: embedded, a folder or a hub id; by default a simulated one")
parser.add_argument("--data", help="GSM8K as .jsonl; by default the embedded task")
parser.add_argument("--preset", choices=("published", "corrected"), default="corrected")
parser.add_argument("--problems", type=int, default=10)
parser.add_argument("--votes", type=int, default=6)
parser.add_argument("--widths", type=int, nargs="+", default=[3, 6, 16])
parser.add_argument("--thought-length", type=int, default=3, help="tokens of a thought (published: 5)")
parser.add_argument("--max-new-tokens", type=int, default=160, help="384 in the paper")
parser.add_argument("--train-steps", type=int, default=10)
parser.add_argument("--ablation", choices=("pruning", "length", "when", "reward"))
parser.add_argument("--seed", type=int, default=0)
args, _ = parser.parse_known_args()
if args.data and not args.reward:
    parser.error("--data needs --reward: the simulated reward only judges the embedded task")

# %% [markdown]
# ## The published rules
# They belong to this study alone. A wrapper ends paths at digits and caps the answer after the cue; a strategy drops
# nodes by a floor; the grader reads the last match of the released pattern, which takes 1248 for 8. What differs: the
# reward model marks every step (the released code one mark at the end), and a sample that ends by itself is not cued.


# %%
class DigitLeaves(isc.Generator):
    """Ends a path where the released code would, and gives 12 tokens to an answer after a cue."""

    def __init__(self, generator: isc.Generator, at_digits: bool) -> None:
        self.generator = generator
        self.at_digits = at_digits

    def generate(self, requests: Sequence[isc.GenerateRequest]) -> list[list[isc.Step]]:
        answers = self.generator.generate([replace(r, max_tokens=12) if r.forced else r for r in requests])
        return [[self._ended(r, step) for step in steps] for r, steps in zip(requests, answers, strict=True)]

    def _ended(self, request: isc.GenerateRequest, step: isc.Step) -> isc.Step:
        if self.at_digits and step.finish_reason == "step" and is_leaf(request.node.text + step.text):
            return replace(step, finish_reason="eos")
        return step

    def max_sample_tokens(self, request: isc.GenerateRequest) -> int | None:
        return self.generator.max_sample_tokens(request)

    def release(self, root: isc.Node) -> None:
        self.generator.release(root)


def is_leaf(text: str) -> bool:
    """An answer phrase, or any digit in the last two sentences."""
    last = re.split(r"(?<=[.!?\n])\s+", text.strip())[-2:]
    return any(phrase in text for phrase in ANSWER_PHRASES) or any(c.isdigit() for c in " ".join(last))


def published_answer(text: str) -> str | None:
    found = re.findall(r"(\d{1,3}(?:,\d{3})*|\d+)", text)
    return found[-1].replace(",", "") if found else None


@dataclass(frozen=True)
class FlooredREBASE(isc.SearchStrategy):
    """REBASE whose nodes are dropped when they score `floor` or less."""

    width: int = 6
    softmax_temperature: float = 0.2
    floor: float = 0.1
    max_depth: int = 10
    needs_scores: ClassVar[bool] = True

    def search(self, root: isc.Node, rng: random.Random) -> isc.Flow[list[isc.Node]]:
        leaves: list[isc.Node] = []
        nodes, counts = [root], [self.width]
        for _ in range(self.max_depth):
            children = yield from isc.expand(nodes, counts)
            yield from isc.score(children)
            kept = [node for node in children if node.score > self.floor]
            leaves += [node for node in kept if node.is_finished]
            nodes = [node for node in kept if not node.is_finished]
            if not nodes or len(leaves) >= self.width:
                break
            scores = [node.score for node in nodes]
            counts = isc.functional.rebase_allocation(scores, self.width - len(leaves), self.softmax_temperature)
        return leaves or root.leaves()


@dataclass(frozen=True)
class CuedVotes(isc.SearchStrategy):
    """Samples to the token limit, then asks for the answer after a cue."""

    n: int = 6

    def search(self, root: isc.Node, rng: random.Random) -> isc.Flow[list[isc.Node]]:
        first = yield from isc.expand([root], self.n)
        open_nodes = [node for node in first if not node.is_finished]
        answers = yield from isc.expand(open_nodes, 1, forced=CUE)
        return [node for node in first if node.is_finished] + answers


# %% [markdown]
# ## Models
# Thoughts are trained here for a few steps if no trained wrapper is given: an untrained one is the base model.


# %%
def load_parts() -> tuple[Any, Any, QuietSTaR]:
    embedded = args.model in {card.name for card in isc.zoo.list()}
    plain = isc.HFGenerator(isc.zoo.path(args.model) if embedded else args.model, cache="none")
    if args.quiet:
        trained = QuietSTaR.from_pretrained(args.quiet)
        if args.preset == "published":  # as released: start and end are overwritten when the model first runs
            dashes = plain.tokenizer("---", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                first = trained.backbone.embed(torch.tensor(dashes, device=trained.start.device))[0]
                trained.start.copy_(first)
                trained.end.copy_(first)
        return plain.model, plain.tokenizer, trained
    thinking = isc.HFGenerator(isc.zoo.path(args.model) if embedded else args.model, cache="none").model
    quiet = QuietSTaR(thinking, args.thought_length, start_token_id=plain.tokenizer("-")["input_ids"][-1])
    if embedded and args.train_steps:
        scales = {"lr": 3e-4, "head_lr_scale": 10.0, "embedding_lr_scale": 10.0}
        objective = Objective(talk_length=1, num_thoughts=2, reinforce_temperature=1.0)
        recipe = Recipe(objective, steps=args.train_steps, accumulation=1, warmup_steps=0, **scales)
        for report in train(start(quiet, recipe), task_batches(4, talk_length=1, level=1)):
            print(
                f"step {report.step}: plain {report.base:.3f}, thinking {report.talk:.3f}, w {report.mixing_weight:.3f}"
            )
    return plain.model, plain.tokenizer, quiet.eval()


base, tokenizer, quiet = load_parts()
if args.data:
    problems = load_problems("gsm8k", args.data)
    random.Random(42).shuffle(problems)
    problems = problems[: args.problems]
else:
    problems = isc.zoo.problems("dev")[: args.problems]


def simulated(nodes: Sequence[isc.Node]) -> list[float]:
    scores = []
    for node in nodes:
        right = all(isc.zoo.task.step_labels(node.problem.prompt, node.text))
        scores.append(isc.zoo.simulated_score(node.problem.prompt + node.text, right, auc=0.85))
    return scores


judges = [card.name for card in isc.zoo.list() if card.kind == "process reward model"]
if args.reward in judges:
    reward = isc.HFProcessRewardModel(*isc.zoo.load(args.reward), good_token="<good>", bad_token="<bad>")
elif args.reward:
    reward = isc.HFProcessRewardModel.from_pretrained(args.reward)
else:
    reward = isc.RewardFunction(simulated)  # the exact label with noise: not a trained model

# %% [markdown]
# ## One row of the table
# Two prices: what the paper charges (its constant for every emitted token; 96 for every node of REBASE, the tokens of a
# path summed again at each node; thoughts, prompts and the reward model are free), and what is computed.

# %%
charged_per_token = CONVENTIONS["abdelhameed2024"](Tally(sampled=1), model_spec(base.config))


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    z, p = 1.96, right / n
    middle, spread = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def row(name: str, strategy: isc.SearchStrategy, thinks: bool, **changes: Any) -> None:
    published = args.preset == "published"
    votes = isinstance(strategy, CuedVotes | isc.RepeatedSampling)
    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "temperature": 1.0}
    if published:  # a delimiter that no text holds: steps end at their length alone
        options |= {"step_delimiter": "\u241e", "max_step_tokens": args.max_new_tokens - 16 if votes else STEP_TOKENS}
    options |= {key: changes.pop(key) for key in list(changes) if key in ("max_step_tokens", "step_delimiter")}
    judge = changes.pop("reward", reward)
    if thinks:
        generator: isc.Generator = QuietSTaRGenerator(quiet, tokenizer, **options, **changes)
    else:
        generator = isc.HFGenerator(base, tokenizer, **options)
    if published:
        generator = DigitLeaves(generator, at_digits=not votes)
    results = isc.solve_batch(
        problems,
        strategy,
        generator,
        reward_model=None if votes else judge,
        aggregator=isc.BestOfN() if published and not votes else isc.MajorityVote(weighted=not votes),
        extract_answer=published_answer if published else isc.extract_answer,
        seed=args.seed,
    )
    right = sum(r.answer is not None and isc.same_answer(r.answer, r.problem.answer) for r in results)
    cost = sum((r.cost for r in results), isc.Cost())
    nodes = [node for r in results for node in r.root.walk() if node.step]
    by_node = published and not votes and not thinks  # how the paper counts plain REBASE
    charged = sum(STEP_TOKENS * node.depth for node in nodes) if by_node else cost.generated_tokens
    low, high = interval(right, len(results))
    shallow = sum(len(t.steps) == 1 for r in results for t in r.trajectories)
    n, trajectories = len(results), sum(len(r.trajectories) for r in results)
    print(
        f"{name:34} {right:3}/{n} [{low:5.1%}, {high:6.1%}]  paper {charged * charged_per_token / n:.3g}  "
        f"true {cost.generator_flops / n:.3g} + reward {cost.reward_flops / n:.3g} FLOPs  {cost.seconds / n:.2f} s  "
        f"{cost.generated_tokens / n:.0f} tokens + {cost.thought_tokens / n:.0f} thought  "
        f"depth 1: {shallow}/{trajectories}"
    )


def rebase(width: int, temperature: float = 0.2) -> isc.SearchStrategy:
    return FlooredREBASE(width, temperature) if args.preset == "published" else isc.REBASE(width, temperature)


sampling = CuedVotes(args.votes) if args.preset == "published" else isc.RepeatedSampling(args.votes)

# %% [markdown]
# ## The table
# In the paper: baseline 10.16 %, Quiet-STaR 32.03 %, REBASE 10.94, 10.16 and 12.50 % at width 3, 6 and 16, both
# together 9.38 %, each of 128 questions, where the standard error is 2.7 points.

# %%
if args.ablation is None:
    print(f"{args.preset} settings, {len(problems)} problems")
    row(f"baseline, majority of {args.votes}", sampling, thinks=False)
    row(f"Quiet-STaR, majority of {args.votes}", sampling, thinks=True)
    for width in args.widths:
        row(f"REBASE-{width}", rebase(width), thinks=False)
    for width in [6] if args.preset == "published" else args.widths:
        row(f"REBASE-{width} + Quiet-STaR", rebase(width), thinks=True)

# %% [markdown]
# ## Ablations
# `pruning`: softmax temperature, width and step length. `length`: tokens of a thought. `when`: before every token, at
# step starts, where the model is unsure, never. `reward`: scored with and without thoughts.

# %%
if args.ablation == "pruning":
    for width in args.widths:
        for temperature in (0.05, 0.2, 1.0):
            row(f"width {width}, T_b {temperature}", rebase(width, temperature), thinks=True)
    for tokens in (16, STEP_TOKENS, 256):
        row(f"steps of at most {tokens}", rebase(6), thinks=True, max_step_tokens=tokens)
if args.ablation == "length":
    for length in (0, 1, 3, 5, 9):
        row(f"thoughts of {length} tokens", rebase(6), thinks=True, thought_length=length)
if args.ablation == "when":
    for when in (EveryToken(), StepStarts(), HighEntropy(0.5), Never()):
        row(repr(when), rebase(6), thinks=True, when=when)
if args.ablation == "reward":
    utility = ThoughtUtility(quiet, tokenizer)
    for weight in (0.0, 0.5, 2.0):
        both = WithThoughts(reward, utility, weight)
        row(f"reward + {weight} * utility", rebase(6), thinks=True, reward=both)
