"""The conformance checks of generators and aggregators: good parts pass, and each broken promise is named."""

from dataclasses import replace

import pytest

import inferscale as isc
from inferscale.generators import HFGenerator
from inferscale.testing import BrokenGenerator, ToyGenerator, check_aggregator, check_generator

GOOD = [
    isc.MajorityVote(),
    isc.MajorityVote(weighted=True),
    isc.BestOfN(),
    isc.BordaVote(p=0.5),
    isc.HedgedBestOfN(3),
    isc.ConfidenceVote(),
    isc.Medoid(),
    isc.Medoid(of="answer"),
    isc.BestOfN(drop_abstentions=True),
    isc.Oracle(),
]


@pytest.mark.parametrize("aggregator", GOOD, ids=repr)
def test_every_vote_keeps_its_promises(aggregator):
    check_aggregator(aggregator)


class First(isc.Aggregator):
    def select(self, trajectories):
        if not trajectories:
            raise ValueError("no trajectories")
        return trajectories[0]


class Copies(First):
    def select(self, trajectories):
        return replace(super().select(trajectories))


class Scored(isc.Aggregator):
    def select(self, trajectories):
        answered = [t for t in trajectories if t.answer is not None] or trajectories
        return max(answered, key=lambda t: 2 * t.score)


class NeverMindNothing(isc.Aggregator):
    def select(self, trajectories):
        return isc.MajorityVote().select(trajectories) if trajectories else None


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (First(), "without an answer though others have one"),
        (Copies(), "none of the trajectories"),
        (NeverMindNothing(), "are a ValueError"),
    ],
)
def test_a_broken_vote_is_named(aggregator, message):
    with pytest.raises(AssertionError, match=message):
        check_aggregator(aggregator)


def test_a_vote_that_reads_scores_must_say_so():
    with pytest.raises(TypeError):
        check_aggregator(Scored())


def test_the_toy_and_an_embedded_policy_keep_their_promises():
    check_generator(ToyGenerator())
    check_generator(ToyGenerator(depth=None))
    prompts = [problem.prompt for problem in isc.zoo.problems("test")[:2]]
    check_generator(HFGenerator(*isc.zoo.load("policy-xs"), max_new_tokens=16), prompts)


class Short(ToyGenerator):
    def generate(self, requests):
        return [steps[: len(steps) - 1] or steps for steps in super().generate(requests)]


class Counting(ToyGenerator):
    """Draws by the number of calls so far, as a script of replies would."""

    def generate(self, requests):
        return [
            [replace(step, text=f"{self.calls} {step.text}") for step in steps] for steps in super().generate(requests)
        ]


class Positional(ToyGenerator):
    """What a request gets depends on its place in the batch."""

    def generate(self, requests):
        return [
            [replace(step, text=f"{step.text[:-1]} {place}{step.text[-1]}") for step in steps]
            for place, steps in enumerate(super().generate(requests))
        ]


class Bounded(ToyGenerator):
    def max_sample_tokens(self, request):
        return 1


class Unforced(ToyGenerator):
    def generate(self, requests):
        return super().generate([replace(request, forced="") for request in requests])


class Restless(ToyGenerator):
    """Samples where the likeliest tokens are asked for."""

    def generate(self, requests):
        return super().generate([replace(request, greedy=False) for request in requests])


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (Short(), "gave 1 steps for n=2"),
        (Counting(), "asked again"),
        (Positional(), "in reversed order"),
        (Bounded(), "more than 1 tokens"),
        (Unforced(), "begins with the forced one"),
        (Restless(), "greedy samples differ"),
        (BrokenGenerator(lambda step, node: replace(step, finish_reason="step")), "ends with another reason"),
        (BrokenGenerator(lambda step, node: replace(step, text=" ", inner_ends=())), "white space"),
        (BrokenGenerator(lambda step, node: replace(step, flops=-1)), "negative"),
        (BrokenGenerator(lambda step, node: replace(step, inner_ends=((1, 1),))), "inner steps end"),
    ],
)
def test_a_broken_generator_is_named(generator, message):
    with pytest.raises(AssertionError, match=message):
        check_generator(generator)


def test_a_server_without_seeds_is_asked_for_the_rest():
    check_generator(Restless(), reproducible=False)
    with pytest.raises(AssertionError, match="steps for n=2"):
        check_generator(Short(), reproducible=False)
