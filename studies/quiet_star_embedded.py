r"""A trained wrapper of an embedded policy against the policy: equal visible tokens, and equal FLOPs.

Train one first, then run::

    python -m inferscale.quiet_star.train policy-s --folder runs/thoughts --steps 150 --thought-length 3 \
        --talk-length 1 --num-thoughts 3 --batch-size 8 --accumulation 1 --lr 3e-4 --head-lr-scale 10 \
        --embedding-lr-scale 10 --reinforce-temperature 1
    python -m studies.quiet_star_embedded runs/thoughts --policy policy-s

``without thoughts`` is the trained wrapper with its thoughts turned off: what training did to the base alone. At equal
visible tokens, likeliest completions are compared; at equal FLOPs, a vote of the policy with as many samples as the
thoughts' FLOPs would buy. Before that, what thoughts do to the likelihood of fresh reference solutions: of all tokens,
and of the tenth that the trained wrapper without thoughts finds hardest.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from inferscale import Cost, Greedy, HFGenerator, MajorityVote, RepeatedSampling, solve_batch, zoo
from inferscale.base import Generator, SearchStrategy
from inferscale.quiet_star import Never, QuietSTaR, QuietSTaRGenerator
from inferscale.quiet_star.train import task_batches
from inferscale.tree import Problem
from inferscale.zoo.models import load_model, load_tokenizer


def row(name: str, problems: list[Problem], strategy: SearchStrategy, generator: Generator) -> list[bool]:
    """Print one row, and return True for each problem that was right."""
    started = time.perf_counter()
    results = solve_batch(problems, strategy, generator, aggregator=MajorityVote(), batch_size=100)
    right = [result.answer is not None and result.answer == result.problem.answer for result in results]
    cost = sum((r.cost for r in results), Cost())
    n, seconds = len(right), time.perf_counter() - started
    share = sum(right) / n
    error = (share * (1 - share) / n) ** 0.5
    print(
        f"| {name} | {100 * share:.1f} ± {100 * error:.1f} | {cost.generated_tokens / n:.0f} "
        f"| {cost.thought_tokens / n:.0f} | {cost.generator_flops / n / 1e6:.0f}M | {seconds:.0f} s |",
        flush=True,
    )
    return right


def likelihood(quiet: QuietSTaR, batches: int) -> None:
    """Print nats a token without and with thoughts, and their paired difference."""
    base, mixed = [], []
    batch_of = task_batches(16, talk_length=1, seed=1)
    for number in range(batches):
        batch = batch_of(number)
        assert batch.in_loss is not None
        assert batch.positions is not None
        found = quiet.score(batch.input_ids, batch.attention_mask, positions=batch.positions, temperature=1.0)
        counted = batch.in_loss[:, batch.positions + 1]
        base.append(-found.base[counted])
        mixed.append(-found.mixed[counted])
    plain, thinking = torch.cat(base), torch.cat(mixed)
    hardest = plain >= plain.quantile(0.9)
    for name, chosen in (("all", torch.ones_like(hardest)), ("the hardest tenth", hardest)):
        gain = plain[chosen] - thinking[chosen]
        error = float(gain.std()) / len(gain) ** 0.5
        print(
            f"{len(gain)} tokens, {name}: {float(plain[chosen].mean()):.4f} nats without, "
            f"{float(thinking[chosen].mean()):.4f} with thoughts, gain {float(gain.mean()):+.4f} ± {error:.4f}"
        )


def paired(name: str, one: list[bool], other: list[bool]) -> None:
    """Print the difference of two rows with its paired standard error."""
    differences = torch.tensor([float(a) - float(b) for a, b in zip(one, other, strict=True)])
    error = float(differences.std()) / len(one) ** 0.5
    print(f"{name}: {100 * float(differences.mean()):+.1f} ± {100 * error:.1f} points (paired)")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what the training command wrote")
    parser.add_argument("--policy", default="policy-s", help="embedded policy that it was trained from, or its folder")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--votes", type=int, default=2, help="samples with thoughts")
    parser.add_argument("--batches", type=int, default=10, help="of 16 reference solutions, for the likelihood")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    embedded = given.policy in {card.name for card in zoo.list()}
    policy = zoo.path(given.policy) if embedded else Path(given.policy)
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    quiet = QuietSTaR.from_pretrained(given.folder).eval()
    problems = zoo.problems("test")[: given.problems]
    options: dict[str, Any] = {"max_new_tokens": 160, "temperature": 1.0}
    base = HFGenerator(model, tokenizer, **options)
    silent = QuietSTaRGenerator(quiet, tokenizer, when=Never(), **options)
    thinking = QuietSTaRGenerator(quiet, tokenizer, **options)
    likelihood(quiet, given.batches)
    print(f"T={quiet.thought_length}, {len(problems)} problems, {given.policy}")
    print("| run | right, % | visible tokens | thought tokens | FLOPs | time |\n|---|---|---|---|---|---|")
    plain = row("policy, likeliest", problems, Greedy(), base)
    without = row("trained, without thoughts, likeliest", problems, Greedy(), silent)
    thoughts = row("trained, with thoughts, likeliest", problems, Greedy(), thinking)
    many = given.votes * (quiet.thought_length + 3)
    voted = row(f"policy, vote of {many}", problems, RepeatedSampling(many), base)
    thought_votes = row(
        f"trained, with thoughts, vote of {given.votes}", problems, RepeatedSampling(given.votes), thinking
    )
    paired("likeliest, thoughts less policy", thoughts, plain)
    paired("likeliest, thoughts less the same without", thoughts, without)
    paired("votes at about equal FLOPs, thoughts less policy", thought_votes, voted)


if __name__ == "__main__":
    main()
