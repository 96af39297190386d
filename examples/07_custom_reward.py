# %% [markdown]
# # Your own reward model
# Any function is a reward model. So is a token classifier, a published process reward model, an ensemble, or a class of
# your own with one method.

# %%
import random

import inferscale as isc
from inferscale.rewards import (
    CalibratedReward,
    EnsembleProcessReward,
    LabelledSolution,
    RewardFunction,
    WeightedReward,
    diagnose,
)
from inferscale.testing import check_reward_model


def short_steps(nodes):
    """A function of nodes: long lines are suspicious."""
    return [-max((len(text) for text, _ in node.inner_steps()), default=0) / 100 for node in nodes]


def says_answer(completions, **columns):
    """In TRL's signature; `None` abstains where there is nothing to judge yet."""
    return [1.0 if "answer" in text else None for text in completions]


reward = WeightedReward([short_steps, RewardFunction(says_answer)], [1.0, 0.5])
check_reward_model(reward)

# %% [markdown]
# A process reward model judges every step. Here is one that adds up the digits of a step, which is of no use, and a
# noisy copy of the exact checker.


# %%
class DigitSum(isc.ProcessRewardModel):
    """The last digit of the sum of all digits so far, as a share of 9."""

    def step_scores(self, nodes):
        return [[self._score(node, k) for k in range(1, len(node.inner_steps()) + 1)] for node in nodes]

    def _score(self, node, steps):
        digits = [int(c) for text, _ in node.inner_steps()[:steps] for c in text if c.isdigit()]
        return sum(digits) % 10 / 9


class Noisy(isc.ProcessRewardModel):
    """The exact checker of the embedded task, wrong now and then, and unsure of itself."""

    def step_scores(self, nodes):
        exact = isc.CheckerReward().step_scores(nodes)
        return [
            [self._blur(node, k, score) for k, score in enumerate(row)] for node, row in zip(nodes, exact, strict=True)
        ]

    def _blur(self, node, step, score):
        rng = random.Random(f"{node.problem.prompt}/{node.text}/{step}")
        return 0.45 + 0.1 * score + rng.gauss(0, 0.03)


check_reward_model(DigitSum())

# %% [markdown]
# Is it any good? Sample solutions of the embedded task, label their steps with the exact checker, and ask.

# %%
model, tokenizer = isc.zoo.load("policy-s")
generator = isc.HFGenerator(model, tokenizer, temperature=1.0, max_new_tokens=160)
problems = isc.zoo.problems("test")[:30]
results = isc.solve_batch(problems, isc.RepeatedSampling(8), generator, reward_model=isc.CheckerReward())


def labelled(leaf):
    texts = tuple(text for text, _ in leaf.inner_steps())
    return LabelledSolution(leaf.problem, texts, leaf.step_scores, bool(leaf.step_scores[-1]))


groups = [[labelled(leaf) for leaf in result.leaves if leaf.step_scores] for result in results]
groups = [group for group in groups if len(group) == 8]
solutions = [item for group in groups for item in group]
half = len(groups) // 2
for judge in (DigitSum(), Noisy()):
    found = diagnose(judge, [item for group in groups[half:] for item in group], groups[half:])
    print(type(judge).__name__, f"first-error AUC {found.first_error_auc:.2f}")
    print("   best of 8", round(found.selection[-1].best_of_n, 2), "oracle", round(found.selection[-1].oracle, 2))

# %% [markdown]
# Its numbers are not probabilities: all lie near 0.5. Calibrated on the other half of the problems, they are, and two
# models can be combined on one scale.

# %%
train = [item for group in groups[:half] for item in group]
calibrated = CalibratedReward.fit(Noisy(), train)
held_out = [item for group in groups[half:] for item in group]
for each in (Noisy(), calibrated):
    print(type(each).__name__, f"calibration error {diagnose(each, held_out).calibration_error:.3f}")
both = EnsembleProcessReward([calibrated, CalibratedReward.fit(DigitSum(), train)], weights=[3, 1])
[result] = isc.solve_batch(problems[:1], isc.REBASE(width=8), generator, reward_model=both)
print(result.answer, "of", problems[0].answer)
