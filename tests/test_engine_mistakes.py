"""What the engine says to strategies, models and callers that are wrong."""

import asyncio
import math

import pytest

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Budget, Cost
from inferscale.engine import asolve, solve, solve_batch, stream
from inferscale.evaluate import run_evaluation
from inferscale.flow import expand, score
from inferscale.rewards import RewardFunction
from inferscale.strategies import DVTS, MCTS, REBASE, BeamSearch, ComputeOptimal, DepthFirst, Greedy, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Problem, Step, UnscoredNodeError
from tests.strategy_fakes import Written, run

PROMPTS = [f"How many {thing}?" for thing in ("apples", "pears")]


# -- mistakes of strategies -------------------------------------------------------------------------------------------


def test_yield_without_from_says_what_to_write():
    def body(root):
        yield expand([root])

    with pytest.raises(TypeError, match=r'write "yield from expand\(\.\.\.\)"'):
        run(body)


def test_yielding_something_else_is_refused():
    def body(root):
        yield [root]

    with pytest.raises(TypeError, match="yielded list"):
        run(body)


def test_a_search_that_is_no_generator_is_refused():
    with pytest.raises(TypeError, match="returned list, not a flow"):
        run(lambda root: [root])


def test_reading_an_unscored_node_is_an_error():
    def body(root):
        nodes = yield from expand([root])
        return sorted(nodes, key=lambda node: node.score)

    with pytest.raises(UnscoredNodeError, match="yield from score"):
        run(body)


def test_returning_no_leaf_is_an_error():
    def body(root):
        yield from expand([root])
        return []

    with pytest.raises(ValueError, match="returned no leaf"):
        run(body)


@pytest.mark.parametrize("value", [None, "text", [1]])
def test_returning_something_else_is_an_error(value):
    def body(root):
        yield from expand([root])
        return value

    with pytest.raises(TypeError, match="must return a list of nodes"):
        run(body)


def test_expanding_a_finished_node_is_an_error():
    def body(root):
        nodes = yield from expand([root], until="end")
        return (yield from expand(nodes))

    with pytest.raises(ValueError, match="has finished and cannot be expanded"):
        run(body)


def test_scoring_without_a_reward_model_is_an_error_when_it_is_not_declared():
    def body(root):
        nodes = yield from expand([root])
        yield from score(nodes)
        return nodes

    with pytest.raises(ValueError, match=r"pass reward_model=\.\.\."):
        solve("How many?", Written(body), ToyGenerator())


# -- bad input, before any compute ------------------------------------------------------------------------------------


def test_bad_calls_are_refused_before_any_compute():
    generator, by_median = ToyGenerator(), ToyProcessReward()
    by_median.reduction = "median"
    cases = [
        (ValueError, "no problems", lambda: solve_batch([], Greedy(), generator)),
        (TypeError, "takes a list", lambda: solve_batch("How many?", Greedy(), generator)),
        (TypeError, "iterable of problems", lambda: stream("How many?", Greedy(), generator)),
        (ValueError, "needs a prompt", lambda: solve("", Greedy(), generator)),
        (ValueError, "half a character", lambda: solve("How \ud83d?", Greedy(), generator)),
        (ValueError, "half a character", lambda: solve_batch([Problem("How \udc80?")], Greedy(), generator)),
        (TypeError, "a problem is a Problem", lambda: solve(3, Greedy(), generator)),
        (TypeError, "the class REBASE", lambda: solve("x", REBASE, generator)),
        (TypeError, "HFGenerator", lambda: solve("x", Greedy(), object())),
        (TypeError, "RewardFunction", lambda: solve("x", Greedy(), generator, reward_model=len)),
        (ValueError, "reduction='median'", lambda: solve("x", Greedy(), generator, reward_model=by_median)),
        (TypeError, "aggregator must be", lambda: solve("x", Greedy(), generator, aggregator=max)),
        (TypeError, "budget must be", lambda: solve("x", Greedy(), generator, budget=100)),
        (TypeError, "read_answer", lambda: solve("x", Greedy(), generator, read_answer="boxed")),
        (ValueError, "batch_size=0", lambda: solve_batch(["x"], Greedy(), generator, batch_size=0)),
        (ValueError, "batch_size=2.5", lambda: solve_batch(["x"], Greedy(), generator, batch_size=2.5)),
        (TypeError, "seed must be an integer, not None", lambda: solve("x", Greedy(), generator, seed=None)),
        (TypeError, "seed must be an integer, not 0.5", lambda: solve("x", Greedy(), generator, seed=0.5)),
        (ValueError, r"REBASE\(width=16.*scores its nodes", lambda: solve("x", REBASE(), generator)),
        (ValueError, "BestOfN.*reads scores", lambda: solve("x", Greedy(), generator, aggregator=BestOfN())),
        (ValueError, "weighted=True.*reads scores",
         lambda: solve("x", Greedy(), generator, aggregator=MajorityVote(weighted=True))),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert generator.calls == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: REBASE(width=0), r"REBASE\(width=0\): width must be an integer >= 1"),
        (lambda: REBASE(width=2.5), "must be an integer"),
        (lambda: REBASE(width=True), "must be an integer"),
        (lambda: REBASE(softmax_temperature=0), "must be greater than 0"),
        (lambda: REBASE(softmax_temperature=math.nan), "must be greater than 0"),
        (lambda: REBASE(softmax_temperature="0.1"), "must be greater than 0"),
        (lambda: MCTS(c_uct=math.inf), "must be a finite number"),
        (lambda: DepthFirst(threshold=math.nan), "would prune every child"),
        (lambda: ComputeOptimal([RepeatedSampling(1)] * 2, [math.nan]), "ascending order"),
        (lambda: Budget(calls=2.5), r"Budget\(calls=2.5\): give a whole number"),
        (lambda: Budget(tokens="5"), r"Budget\(tokens='5'\): a cap must be greater than 0"),
        (lambda: Budget(tokens=0.5), r"Budget\(tokens=0.5\): give a whole number"),
        (lambda: Budget(tokens=math.inf), "leave it out for no cap"),
        (lambda: REBASE(rounding="floor"), "choose one of 'exact'"),
        (lambda: REBASE(truncate_ratio=0.0), "share in"),
        (lambda: RepeatedSampling(0), "n must be"),
        (lambda: BeamSearch(beam_width=0), "beam_width must be"),
        (lambda: BeamSearch(branching=-1), "branching must be"),
        (lambda: BeamSearch(lookahead=-1), "lookahead must be"),
        (lambda: DVTS(num_subtrees=0), "num_subtrees must be"),
    ],
)
def test_bad_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def wrong_count(generator):
    class Short(ToyGenerator):
        def generate(self, requests):
            return generator(super().generate(requests))

    return Short()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda answers: answers[:-1], ValueError, "answered 1 of 2 requests"),
        (lambda answers: [steps[:-1] for steps in answers], ValueError, "returned 2 steps where 3 were asked for"),
        (lambda answers: [["text"] * 3] * 2, TypeError, "must return Step objects, not str"),
        (lambda answers: [[*steps[:2], "text"] for steps in answers], TypeError, "Step objects, not str 'text'"),
        (lambda answers: None, TypeError, "must return a list of steps for each request, not None"),
        (lambda answers: [iter(steps) for steps in answers], TypeError, "must return a list of steps"),
        (lambda answers: [[Step(None)] * 3] * 2, TypeError, "whose text is None"),
        (lambda answers: [[Step("a", finish_reason="stop")] * 3] * 2, ValueError, "'stop': choose one of 'step'"),
        (lambda answers: [[Step("a")] * 3] * 2, ValueError, r'ended a completion \(until="end"\)'),
    ],
)
def test_a_generator_that_answers_wrongly_is_an_error(change, kind, message):
    with pytest.raises(kind, match=message):
        solve_batch(PROMPTS[:2], RepeatedSampling(3), wrong_count(change))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "good", [0.5], 10**400])
def test_a_reward_that_is_no_finite_number_is_an_error(value):
    class Bad(RewardModel):
        def score(self, nodes):
            return [0.5] * (len(nodes) - 1) + [value]

    with pytest.raises(ValueError, match="a score must be a finite number"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=Bad())


@pytest.mark.parametrize("call", [solve, solve_batch, stream, run_evaluation])
def test_an_option_that_there_is_not_is_refused_with_the_nearest(call):
    said = rf"{call.__name__}\(\) got an unknown option 'read_anwser': did you mean read_answer\?"
    with pytest.raises(TypeError, match=said):
        call(PROMPTS, REBASE(4), ToyGenerator(), read_anwser=str)
    with pytest.raises(TypeError, match=r"asolve\(\) got an unknown option 'sede': did you mean seed\?"):
        asyncio.run(asolve(PROMPTS[0], REBASE(4), ToyGenerator(), sede=1))


@pytest.mark.parametrize("where", ["reward", "reader", "callback"])
def test_a_stop_iteration_of_a_part_is_an_error_that_keeps_what_is_paid_for(where):
    def stop(nodes):
        raise StopIteration("gone")

    options = {"reward": {"reward_model": RewardFunction(stop)}, "reader": {"read_answer": stop}}
    with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
        solve_batch(PROMPTS, RepeatedSampling(2), ToyGenerator(), **options.get(where, {"on_step": stop}))
    assert len(raised.value.partial) == 2
    assert sum(len(result.trajectories) for result in raised.value.partial) >= 2


def test_a_reward_model_that_miscounts_is_an_error():
    class Bad(RewardModel):
        def score(self, nodes):
            return [0.5]

    class NoSteps(ProcessRewardModel):
        def step_scores(self, nodes):
            return [[] for _ in nodes]

    class Seven(ProcessRewardModel):
        def step_scores(self, nodes):
            return [[0.5] * 7 for _ in nodes]

    class ByNode(RewardModel):
        def score(self, nodes):
            return dict.fromkeys(range(len(nodes)), 0.5)

    class Forgot(RewardModel):
        def score(self, nodes):
            """Returns nothing."""

    class Cheap(ToyReward):
        def cost(self, nodes):
            return [Cost()]

    with pytest.raises(ValueError, match=r"Seven gave 7 step scores to <Node depth=1 .*each of the 1 steps"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=Seven())
    with pytest.raises(TypeError, match=r"ByNode must return a list of scores, not dict \{0: 0.5"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ByNode())
    with pytest.raises(TypeError, match="Forgot must return a list of scores, not NoneType"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=Forgot())
    with pytest.raises(ValueError, match=r"Cheap.cost\(\) returned 1 costs for 4 nodes"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=Cheap())
    with pytest.raises(ValueError, match="returned 1 scores for 4 nodes"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=Bad())
    with pytest.raises(ValueError, match="gave no step score"):
        solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=NoSteps())


def test_an_answer_reader_must_return_text():
    with pytest.raises(TypeError, match="read_answer must return a string"):
        solve(PROMPTS[0], Greedy(), ToyGenerator(), read_answer=len)


def test_a_table_is_no_list_of_problems():
    class Frame:
        columns = ("question", "answer")

        def __iter__(self):
            return iter(self.columns)

    for table in (Frame(), {"question": ["1 + 1?"], "answer": ["2"]}):
        for call in (solve_batch, stream):
            with pytest.raises(
                TypeError,
                match=rf"{call.__name__}\(\) takes .* of problems, not {type(table).__name__}: .*load_problems",
            ):
                call(table, RepeatedSampling(1), ToyGenerator())
