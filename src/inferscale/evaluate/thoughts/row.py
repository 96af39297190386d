"""One row of the study's table."""

from __future__ import annotations

from dataclasses import dataclass

from inferscale.cost import Cost


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
        """The row as one line."""
        low, high = self.interval
        n, cost = self.problems, self.cost
        return (
            f"{self.name:43} {self.right:3}/{n} [{low:5.1%}, {high:6.1%}]  paper {self.charged_flops / n:.3g}  "
            f"true {cost.generator_flops / n:.3g} + reward {cost.reward_flops / n:.3g} FLOPs  "
            f"{cost.seconds / n:.2f} s  {cost.generated_tokens / n:.0f} tokens + {cost.thought_tokens / n:.0f} thought"
            f"  depth 1: {self.depth_one}/{self.trajectories}"
        )
