"""Two ways to label steps, compared: the exact checker, and roll-outs (Math-Shepherd, OmegaPRM).

``python -m studies.embedded.labels`` samples solutions of development problems with policy-s and labels every step by
the checker and by completions of each policy. Rows: how often the labels agree, step by step up to the first error,
whether they name the same first error, and what the labels cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu

from inferscale import HFGenerator, RepeatedSampling, solve_batch, zoo
from inferscale.flow import GenerateRequest
from inferscale.rewards import LabelledSolution, label_by_rollouts
from inferscale.tree import Node, Step

HEADER = """\
| labels | agreement, % | right steps kept, % | first errors found, % | AUC of the label | same first error, % \
| completions a solution | MFLOPs a solution |
|---|---|---|---|---|---|---|---|"""


class Billed(HFGenerator):
    """A generator that adds up what it was asked for."""

    flops = 0
    samples = 0

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """The steps, counted."""
        answers = super().generate(requests)
        self.flops += sum(step.flops for steps in answers for step in steps)
        self.samples += sum(len(steps) for steps in answers)
        return answers


def row(name: str, nodes: Sequence[Node], labelled: Sequence[LabelledSolution], generator: Billed) -> str:
    """One line of the table."""
    pairs: list[tuple[bool, float]] = []
    same_error = []
    for node, solution in zip(nodes, labelled, strict=True):
        exact = zoo.task.step_labels(node.problem.prompt, node.text)
        error = exact.index(False) if False in exact else None
        judged = exact if error is None else exact[: error + 1]
        labels = solution.labels[: len(judged)]
        pairs += [(e, float(v)) for e, v in zip(judged, labels, strict=True) if v is not None]
        same_error.append(solution.first_error == error)
    right = np.array([value for truth, value in pairs if truth])
    wrong = np.array([value for truth, value in pairs if not truth])
    auc = mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))
    agree = np.mean([(value > 0) == truth for truth, value in pairs])
    shares = [agree, (right > 0).mean(), (wrong == 0).mean()]
    cells = [name, *(f"{100 * share:.1f}" for share in shares), f"{auc:.3f}", f"{100 * np.mean(same_error):.1f}"]
    cells += [f"{generator.samples / len(nodes):.1f}", f"{generator.flops / len(nodes) / 1e6:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--solutions", type=int, default=2, help="of each problem")
    parser.add_argument("--rollouts", type=int, default=8, help="after each step")
    options = parser.parse_args()
    sampler = HFGenerator(*zoo.load("policy-s"), max_new_tokens=160)
    problems = zoo.problems("dev")[: options.problems]
    results = solve_batch(problems, RepeatedSampling(options.solutions), sampler)
    nodes = [leaf for result in results for leaf in result.leaves if leaf.inner_steps() and not leaf.is_failed]
    right = np.mean([zoo.task.is_correct(node.problem.prompt, node.text) for node in nodes])
    print(f"{len(nodes)} solutions of {len(problems)} development problems by policy-s, {100 * right:.1f} % right")
    print(HEADER)
    for policy in ("policy-s", "policy-m"):
        for target in ("soft", "first_error"):
            generator = Billed(*zoo.load(policy), max_new_tokens=160)
            labelled = label_by_rollouts(nodes, generator, n=options.rollouts, target=target)
            print(row(f"{options.rollouts} roll-outs by {policy}, {target}", nodes, labelled, generator), flush=True)


if __name__ == "__main__":
    main()
