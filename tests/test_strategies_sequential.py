"""Forced text: budget forcing to the token, self-refinement, chains of revisions."""

from dataclasses import replace

import pytest

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.base import Generator, RewardModel
from inferscale.engine import solve
from inferscale.strategies import ABMCTS, BudgetForcing, ParallelSequential, RepeatedSampling, SelfRefine
from inferscale.testing import ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Problem, Step
from inferscale.viz import render_tree
from tests.strategy_fakes import drive, root, search

# -- budget forcing ----------------------------------------------------------------------------------------------------


def thinker(script):
    """A model that continues a text by the words of `script`: what follows depends on the words so far alone.

    Words are tokens. ``script(words)`` gives the next word; ``"\n"`` ends a step and ``None`` ends the answer.
    """

    def sample(request, draw):
        text = request.node.text + request.forced
        made: list[str] = []
        while True:
            word = script((text + "".join(made)).split())
            if word is None:
                return step(request, made, "eos")
            made.append(word)
            if request.until == "step" and word.endswith("\n"):
                return step(request, made, "step")
            if request.max_tokens is not None and len(made) >= request.max_tokens:
                return step(request, made, "budget")

    return sample


def step(request, made, reason):
    n_forced = len(request.forced.split())
    return Step(request.forced + "".join(made), tuple(range(n_forced + len(made))), finish_reason=reason,
                prompt_tokens=n_forced, num_tokens=len(made))  # fmt: skip


def thinks(length):
    """Thinks `length` words after the start or a wait, two words a step, then answers with what it has counted."""

    def script(words):
        if "</think>" in words:
            return "42" if words[-1] != "42" else None
        since = len(words) if "Wait" not in words else words[::-1].index("Wait")
        if since >= length:
            return "</think>\n"
        return f"t{since} " if since % 2 == 0 else f"t{since}\n"

    return script


def force(strategy, script):
    start = root()
    leaves = drive(strategy.search(start, None), thinker(script))
    return leaves, start


def thinking(leaf):
    """Words of thinking, forced ones left out."""
    return [word for word in leaf.text.split("</think>")[0].split() if word.startswith("t")]


def test_one_wait_makes_it_think_again():
    (leaf,), _ = force(BudgetForcing(num_waits=1, wait="Wait "), thinks(3))
    assert leaf.text == "t0 t1\nt2 Wait t0 t1\nt2 </think>\n42"


@pytest.mark.parametrize("waits", [0, 1, 2, 5])
def test_waits_are_counted(waits):
    (leaf,), _ = force(BudgetForcing(num_waits=waits, wait=" Wait "), thinks(3))
    assert leaf.text.count("Wait") == waits
    assert len(thinking(leaf)) == 3 * (waits + 1)


@pytest.mark.parametrize("allowance", range(9))
def test_the_allowance_is_met_to_the_token(allowance):
    (leaf,), start = force(BudgetForcing(allowance, num_waits=0, final=" Final Answer: "), thinks(6))
    assert len(thinking(leaf)) == min(allowance, 6)
    spent = sum(n.step.generated_tokens for n in start.walk() if n.step)
    # Six words and "</think>" are seven tokens of thinking; the answer is one more.
    assert spent == min(allowance, 7) + 1
    assert ("Final Answer:" in leaf.text) == (allowance < 7)
    assert leaf.text.split()[-1] == "42"


@pytest.mark.parametrize("allowance", [4, 5, 7, 8, 9, 20])
def test_waits_share_the_allowance(allowance):
    (leaf,), start = force(BudgetForcing(allowance, num_waits=3, wait=" Wait ", final=" Final: "), thinks(3))
    spent = sum(n.step.generated_tokens for n in start.walk() if n.step)
    # Each round is three words and the end that is dropped.
    assert spent == min(allowance, 16) + 1
    assert leaf.text.split()[-1] == "42"


def test_a_cap_right_after_the_end_of_thinking_leaves_the_answer_to_come():
    def script(words):
        if "</think>" not in words:
            return "t0 " if not words else "</think> "
        return {"</think>": "so ", "so": "42"}.get(words[-1])

    leaves, start = force(BudgetForcing(2, num_waits=0), script)
    assert [leaf.text for leaf in leaves] == ["t0 </think> so 42"]
    assert [node.step.finish_reason for node in start.children] == ["budget", "eos"]


def test_an_engine_without_caps_is_cut_at_the_next_step():
    def uncapped(request, draw):
        return thinker(thinks(6))(replace(request, max_tokens=None), draw)

    (leaf,) = drive(BudgetForcing(3, num_waits=0, final=" Final: ").search(root(), None), uncapped)
    assert len(thinking(leaf)) == 4
    assert leaf.text.endswith("</think> Final: 42")


def test_nothing_forced_is_plain_sampling():
    plain = search(RepeatedSampling(2), reward=None)
    forced = search(BudgetForcing(None, num_waits=0, n=2), reward=None)
    assert render_tree(plain.root) == render_tree(forced.root)
    assert [leaf.text for leaf in plain.leaves] == [leaf.text for leaf in forced.leaves]


def test_a_model_without_thinking_tokens_ends_by_its_answer():
    result = search(BudgetForcing(None, num_waits=2, wait="\nWait, ", final="\nThe answer is "), thinking=False)
    assert result.leaves[0].text.count("Wait, ") == 2
    assert result.leaves[0].step.finish_reason == "eos"
    assert len(result.leaves) == 1


def test_a_path_that_is_full_is_returned_as_it_is():
    def full(request, draw):
        return Step("t0 ", (0,), finish_reason="length")

    (leaf,) = drive(BudgetForcing(num_waits=3).search(root(), None), full)
    assert leaf.step.finish_reason == "length"


def test_endless_thinking_is_ended_at_the_depth_limit():
    result = search(BudgetForcing(None, num_waits=1, max_depth=4), ToyGenerator(depth=None))
    assert "</think>\nFinal Answer:" in result.leaves[0].text
    assert result.leaves[0].depth == 5


def test_chains_are_independent():
    result = search(BudgetForcing(num_waits=1, n=3), thinking=False)
    assert len({leaf.text for leaf in result.leaves}) == 3


# -- self-refine -------------------------------------------------------------------------------------------------------


class Reviser(Generator):
    """Writes "A1", then "A2", ... ; as a critic says "wrong" until `correct_at`."""

    def __init__(self, correct_at):
        self.correct_at = correct_at
        self.requests = []

    def generate(self, requests):
        self.requests += requests
        return [[self.sample(r) for _ in range(r.n)] for r in requests]

    def sample(self, request):
        count = request.forced.count("A")
        if request.forced.endswith("Feedback?"):
            said = "the solution is correct" if count >= self.correct_at else "wrong"
        else:
            said = f"A{count + 1}"
        return Step(request.forced + said, tuple(range(3)), finish_reason="eos", num_tokens=1)


REFINE = SelfRefine(4, feedback=" Feedback?", revise=" again: ")


def test_refinement_stops_when_the_feedback_says_so():
    result = solve("x", REFINE, Reviser(3))
    assert [leaf.text for leaf in result.leaves] == [
        "A1",
        "A1 Feedback?wrong again: A2",
        "A1 Feedback?wrong again: A2 Feedback?wrong again: A3",
    ]
    # Three answers and three rounds of feedback, which are not part of the tree.
    assert result.cost.num_generated == 6
    assert len(result.root.children) == 3


def test_refinement_goes_on_for_its_iterations():
    assert len(solve("x", REFINE, Reviser(99)).leaves) == 5
    assert len(solve("x", SelfRefine(1, stop="", feedback=" Feedback?"), Reviser(0)).leaves) == 2
    assert len(solve("x", SelfRefine(4, feedback=" Feedback?"), Reviser(0)).leaves) == 1


def test_the_best_revision_is_selected_not_the_last():
    class SecondIsBest(RewardModel):
        def score(self, nodes):
            return [float(node.text.endswith("A2")) for node in nodes]

    result = solve("x", REFINE, Reviser(99), reward_model=SecondIsBest(), aggregator=BestOfN(),
                   read_answer=lambda text: text[-2:])  # fmt: skip
    assert result.answer == "A2"


def test_chains_of_refinement_run_side_by_side():
    generator = ToyGenerator()
    result = search(SelfRefine(2, n=3, stop=""), generator)
    assert len(result.leaves) == 9
    assert generator.calls == 1 + 2 * 2


# -- parallel and sequential -------------------------------------------------------------------------------------------


def test_a_chain_sees_its_last_answers_alone():
    generator = Reviser(0)
    result = solve("x", ParallelSequential(1, 4, context=2, instruction="; "), generator)
    assert [request.forced for request in generator.requests] == ["", "A1; ", "A1; A2; ", "A2; A3; "]
    assert len(result.leaves) == 4


def test_chains_share_calls():
    generator = ToyGenerator()
    result = search(ParallelSequential(3, 4), generator, ToyReward())
    assert (generator.calls, len(result.leaves)) == (4, 12)
    assert result.cost.num_generated == 12


def test_the_best_of_each_chain_votes():
    everything = search(ParallelSequential(3, 4))
    best = search(ParallelSequential(3, 4, best_of_chain=True))
    assert len(best.leaves) == 3
    chains = [everything.leaves[i : i + 4] for i in (0, 4, 8)]
    assert [leaf.score for leaf in best.leaves] == [max(leaf.score for leaf in chain) for chain in chains]
    with pytest.raises(ValueError, match="pass reward_model"):
        solve("x", ParallelSequential(best_of_chain=True), ToyGenerator())
    assert solve("x", ParallelSequential(), ToyGenerator(), aggregator=MajorityVote()).answer


def test_a_revision_that_had_no_room_is_no_answer():
    class Full(Reviser):
        """The path holds `room` attempts; the next one ends before its first token."""

        room = 2

        def sample(self, request):
            full = request.forced.count("A") >= self.room
            return Step(request.forced, (0,), finish_reason="length", num_tokens=0) if full else super().sample(request)

    assert len(solve("x", ParallelSequential(1, 4, instruction="; "), Full(0)).leaves) == 2
    assert len(solve("x", REFINE, Full(99)).leaves) == 2
    Full.room = 1
    result = solve("x", ABMCTS(30), Full(0), reward_model=ToyReward())
    assert len(result.leaves) < len(result.root.children) == 30
    assert all(leaf.step.generated_tokens for leaf in result.leaves)


def test_forced_text_is_charged_as_prompt():
    result = solve(Problem("one two"), ParallelSequential(1, 2, instruction=" check it "), ToyGenerator())
    first, second = result.leaves
    assert second.text.startswith(first.text + " check it ")
    assert second.step.prompt_tokens == len(first.text.split()) + 2
    assert result.cost.prompt_tokens == 2 + second.step.prompt_tokens
    assert result.cost.generated_tokens == sum(leaf.step.generated_tokens for leaf in result.leaves)


def test_inner_steps_of_a_revision_are_judged():
    result = search(ParallelSequential(1, 2), reward=ToyProcessReward())
    for leaf in result.leaves:
        assert len(leaf.step_scores) == len(leaf.inner_steps())


def test_bad_hyperparameters_are_refused():
    for kind, options in [
        (BudgetForcing, {"num_waits": -1}),
        (BudgetForcing, {"max_thinking_tokens": -1}),
        (SelfRefine, {"num_iterations": 0}),
        (ParallelSequential, {"context": 0}),
    ]:
        with pytest.raises(ValueError, match=next(iter(options))):
            kind(**options)
