"""Sampling from ``p**alpha`` on a language model that can be enumerated, against exact numbers."""

import math
import random
from collections import Counter

import pytest

from inferscale.engine import solve
from inferscale.strategies import PowerMH, PowerSMC
from inferscale.testing import ToyGenerator
from inferscale.tree import Step
from tests.strategy_fakes import drive, root

# A beginning is the likeliest token although its continuations are not: temperature alone gets it wrong.
NEXT = {
    "": {"a": 0.5, "b": 0.4, "c.": 0.1},
    "a": {"1.": 0.25, "2.": 0.25, "3.": 0.25, "4.": 0.25},
    "b": {"1.": 0.9, "x": 0.1},
    "bx": {"1.": 0.6, "2.": 0.4},
}


def enumerated(text="", p=1.0):
    """Every whole text and its probability."""
    if text.endswith("."):
        return {text: p}
    return {whole: q for token, share in NEXT[text].items() for whole, q in enumerated(text + token, p * share).items()}


TEXTS = enumerated()


def sampler(seed):
    rng = random.Random(seed)

    def sample(request, draw):
        table = NEXT[request.node.text]
        power = 1 / request.temperature
        weights = [share**power for share in table.values()]
        token = rng.choices(list(table), weights)[0]
        proposed = math.log(table[token] ** power / sum(weights))
        return Step(token, (0,), proposed, finish_reason="eos" if token.endswith(".") else "step",
                    model_logprob=math.log(table[token]))  # fmt: skip

    return sample


def test_the_toy_sums_to_one():
    assert sum(TEXTS.values()) == pytest.approx(1.0)
    assert len(TEXTS) == 8


@pytest.mark.parametrize(
    "strategy",
    [
        PowerSMC(1, 3.0),
        PowerSMC(4, 3.0, ess_threshold=1.0),
        PowerSMC(3, 2.0, ess_threshold=0.7, resampling="multinomial"),
        PowerSMC(4, 3.0, bridge_depth=2, ess_threshold=1.0, resampling="residual"),
        PowerSMC(4, 3.0, bridge_depth=3, ess_threshold=0.9, resampling="stratified"),
        PowerSMC(4, 3.0, bridge_depth=7, ess_threshold=1.0),  # all have finished before the exponent has risen
    ],
    ids=repr,
)
def test_the_normaliser_is_estimated_without_bias(strategy):
    exact = {text: p**strategy.alpha for text, p in TEXTS.items()}
    runs, total, b1, squares = 600, 0.0, 0.0, 0.0
    for seed in range(runs):
        start = root()
        particles = drive(strategy.search(start, random.Random(seed + 10**6)), sampler(seed))
        z = math.exp(start.stats["log_evidence"])
        total, squares = total + z / runs, squares + z * z / runs
        b1 += z * sum(node.text == "b1." for node in particles) / len(particles) / runs
    bound = 4 * math.sqrt(max(squares - total**2, 1e-12) / runs)
    assert total == pytest.approx(sum(exact.values()), abs=bound)
    assert b1 == pytest.approx(exact["b1."], abs=2 * bound)  # properly weighted, particle by particle


def test_many_particles_have_the_shares_of_the_target_and_temperature_alone_has_not():
    alpha = 3.0
    z = sum(p**alpha for p in TEXTS.values())
    start = root()
    particles = drive(PowerSMC(4000, alpha, bridge_depth=1).search(start, random.Random(1)), sampler(5))
    shares = Counter(node.text for node in particles)
    for text, p in TEXTS.items():
        assert shares[text] / 4000 == pytest.approx(p**alpha / z, abs=0.04)
    # At temperature 1 / alpha alone "a" would begin two in three texts; four in five of the target's are "b1.".
    assert 0.5**alpha / (0.5**alpha + 0.4**alpha + 0.1**alpha) > 0.6
    assert shares["b1."] / 4000 > 0.75


def test_an_exponent_of_one_is_plain_sampling():
    start = root()
    particles = drive(PowerSMC(8, 1.0).search(start, random.Random(0)), sampler(3))
    assert start.stats["log_evidence"] == pytest.approx(0.0)
    assert start.stats["ess"] == pytest.approx([8.0] * len(start.stats["ess"]))
    assert len(set(particles)) == 8


def test_moves_leave_the_target_invariant():
    alpha, chains = 2.0, 400
    z = sum(p**alpha for p in TEXTS.values())
    paths = drive(PowerMH(chains, alpha, num_moves=12, block=5).search(root(), random.Random(2)), sampler(7))
    shares = Counter(node.text for node in paths)
    for text, p in TEXTS.items():
        share = p**alpha / z
        assert shares[text] / chains == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / chains) + 1e-3)


def test_what_they_need_is_said():
    class Silent(ToyGenerator):
        def _sample(self, request, draw):
            return Step("a\n", (0,), -1.0)

    for strategy in (PowerSMC(2), PowerMH(1)):
        with pytest.raises(ValueError, match=f"{type(strategy).__name__} weighs samples by their log-probabilities"):
            solve("How many?", strategy, Silent())
    for make in (lambda: PowerSMC(alpha=0.5), lambda: PowerMH(alpha=math.inf)):
        with pytest.raises(ValueError, match="alpha"):
            make()
