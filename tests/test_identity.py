"""Every part says what its texts or scores depend on; what it does not say cannot be mistaken for the same."""

import copy
import inspect
import json
import pickle
import re
from dataclasses import dataclass
from functools import partial

import pytest

from inferscale import Budget, Generator, RewardModel, Solver, solve_batch
from inferscale.answers import Choice, Number
from inferscale.evaluate import ChangedRunError, run_evaluation
from inferscale.generators import HFGenerator
from inferscale.identity import Identified, compare, identity_of, unknown_in
from inferscale.rewards import (
    CachedProcessReward,
    CachedReward,
    CheckerReward,
    EnsembleReward,
    RewardFunction,
    WeightedReward,
)
from inferscale.strategies import REBASE, RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward
from studies.thoughts.released import ReleasedPaths

PROBLEMS = ["What is 1?", "What is 2?"]


class Own(Generator):
    """A user's, which says nothing about itself."""

    def __init__(self, depth=3):
        self.toy = ToyGenerator(depth)

    def generate(self, requests):
        return self.toy.generate(requests)


class Told(Own):
    def identity(self):
        return super().identity()


@dataclass
class Counted(RewardModel):
    """A dataclass of a user's, with a public counter."""

    scale: float = 1.0
    calls: int = 0

    def score(self, nodes):
        self.calls += 1
        return [self.scale * len(node.text) for node in nodes]


def scorer(scale):
    def score(nodes):
        return [scale * len(node.text) for node in nodes]

    return score


def test_an_option_cannot_be_forgotten():
    class Part(Identified):
        def __init__(self, first, *rest, last=3, **more):
            pass

        def identity(self):
            return super().identity()

    about = Part(1, 2, last=4, other=5).identity()
    assert {name: about[name] for name in ("first", "rest", "last", "other")} == {
        "first": 1, "rest": [2], "last": 4, "other": 5,
    }  # fmt: skip
    assert Part.identity(Part(1))["last"] == 3
    assert list(inspect.signature(Part).parameters) == ["first", "rest", "last", "more"]


def test_an_option_that_a_part_does_not_have_is_refused_with_the_nearest_one():
    with pytest.raises(TypeError, match=r"REBASE\(\) got an unknown option 'widht': did you mean width\?"):
        REBASE(widht=3)
    with pytest.raises(TypeError, match=r"HFGenerator\(\) got an unknown option 'min_pp': did you mean min_p\?"):
        HFGenerator(None, None, min_pp=0.1)


def test_signatures_and_errors_are_those_of_the_constructor():
    class Inherits(CheckerReward):
        pass

    assert list(inspect.signature(Inherits).parameters) == ["reduction"]
    assert list(inspect.signature(REBASE).parameters)[:2] == ["width", "softmax_temperature"]
    with pytest.raises(TypeError, match="ToyReward"):
        ToyReward(1, 2, 3)

    class NoOptions(RewardModel):
        def score(self, nodes):
            return []

    with pytest.raises(TypeError, match=r"NoOptions\(\) takes no arguments"):
        NoOptions(1)
    assert not inspect.signature(NoOptions).parameters


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (REBASE(4), REBASE(width=4), REBASE(5)),
        (CheckerReward(), CheckerReward("last"), CheckerReward("min")),
        (Counted(), Counted(1.0), Counted(2.0)),
        (RewardFunction(scorer(1)), RewardFunction(scorer(1)), RewardFunction(scorer(2))),
        (RewardFunction(scorer(1)), RewardFunction(scorer(1)), RewardFunction(scorer(1), judge="final")),
        (WeightedReward([ToyReward()], [1]), WeightedReward([ToyReward()], [1.0]), WeightedReward([ToyReward()], [2])),
        (EnsembleReward([ToyReward()]), EnsembleReward((ToyReward(),)), EnsembleReward([RewardFunction(len)])),
        (CachedReward(Counted()), CachedReward(Counted(), 7), CachedReward(Counted(2.0))),
        (
            CachedProcessReward(CheckerReward()),
            CachedProcessReward(CheckerReward(), max_entries=5),
            CachedProcessReward(CheckerReward("min")),
        ),
        (
            ReleasedPaths(ToyGenerator(), True),
            ReleasedPaths(ToyGenerator(), True),
            ReleasedPaths(ToyGenerator(depth=2), True),
        ),
        (partial(int, base=2), partial(int, base=2), partial(int, base=3)),
        (re.compile("a"), re.compile("a"), re.compile("a", re.IGNORECASE)),
        (Choice("AB"), Choice("AB"), Choice("ABC")),
        (lambda text: text.strip(), lambda text: text.strip(), lambda text: text.lstrip()),
        (len, len, sorted),
        ({"b", "a"}, {"a", "b"}, {"a"}),
        (BrokenGenerator(die_after=1), ToyGenerator(), BrokenGenerator(change=lambda step, node: step)),
    ],
)
def test_equal_parts_have_equal_identities_and_others_have_not(one, same, other):
    assert compare(identity_of(one), identity_of(same)).changed == {}
    assert compare(identity_of(one), identity_of(other)).changed
    assert json.loads(json.dumps(identity_of(one))) == identity_of(one)
    assert not unknown_in(identity_of(one))


def test_parts_keep_their_identity_in_another_process():
    for part in (REBASE(4), WeightedReward([CachedReward(Counted())], [2]), ToyGenerator(2)):
        assert pickle.loads(pickle.dumps(part)).identity() == part.identity()  # noqa: S301
        assert copy.deepcopy(part).identity() == part.identity()


def test_what_is_assigned_later_counts_where_it_has_an_effect():
    reward = ToyProcessReward()
    before = reward.identity()
    reward.reduction = "min"
    assert compare(before, reward.identity()).changed == {"reduction": ("last", "min")}


def test_counters_and_caches_do_not_change_a_part():
    parts = [ToyGenerator(), ToyReward(), Counted(), CachedReward(Counted()), CachedProcessReward(ToyProcessReward())]
    before = [part.identity() for part in parts]
    for reward in parts[1:]:
        solve_batch(PROBLEMS, REBASE(2), parts[0], reward_model=reward)
    assert parts[0].calls > 0
    assert parts[2].calls > 0
    assert [part.identity() for part in parts] == before


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (Own(), ["Own"]),
        (RewardFunction(partial(scorer, scale=Own())), ["Own"]),
        (RewardFunction(scorer(object())), ["object"]),
        (WeightedReward([RewardFunction(scorer(Own())), ToyReward()], [1, 1]), ["Own"]),
    ],
)
def test_what_nothing_is_known_of_is_unknown_wherever_it_is(part, names):
    assert [name.rpartition(".")[2] for name in unknown_in(identity_of(part))] == names


def test_a_method_that_returns_something_else_is_told():
    class Bad(Own):
        def identity(self):
            return "v1"

    with pytest.raises(TypeError, match=r"Bad.identity\(\) returned 'v1': return a dictionary"):
        identity_of(Bad())


def test_a_function_that_calls_itself_has_an_identity():
    def again(nodes):
        return again(nodes)

    assert identity_of(again)["closure"] == {"again": "..."}


def run(folder, generator, **options):
    return run_evaluation(PROBLEMS, RepeatedSampling(2), generator, folder, **options)


def test_a_run_with_an_unknown_part_is_gone_on_with_only_by_force(tmp_path):
    with pytest.warns(UserWarning, match=r"Own does cannot be compared.*cannot be resumed safely.*def identity"):
        run(tmp_path, Own())
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(ChangedRunError, match=r"Own, which has no identity\(\).*force"):
        run(tmp_path, Own())
    again = Own()
    with pytest.warns(UserWarning, match="resumed safely"):
        assert run(tmp_path, again, force=True).is_complete
    assert again.toy.calls == 0
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_part_that_has_come_to_know_itself_keeps_its_records_by_force(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="resumed safely"):
        run(tmp_path, Own())
    monkeypatch.setattr(Own, "identity", lambda self: {"depth": 3}, raising=False)
    again = Own()
    with pytest.raises(ChangedRunError, match="force"):
        run(tmp_path, again)
    assert len(run(tmp_path, again, force=True).records) == 2
    assert run(tmp_path, again).is_complete
    assert again.toy.calls == 0


def test_a_run_refuses_parts_that_its_reward_wraps(tmp_path):
    def judged(scale):
        return CachedReward(RewardFunction(scorer(scale)))

    run(tmp_path, Told(), reward_model=judged(1))
    run(tmp_path, Told(), reward_model=judged(1))
    with pytest.raises(ChangedRunError, match=r"reward_model.model.function.closure.scale was 1 and is 2\)"):
        run(tmp_path, Told(), reward_model=judged(2))
    with pytest.raises(ChangedRunError, match=r"generator.depth was 3 and is 4; reward_model was 'CachedReward'"):
        run(tmp_path, Told(4))


def test_a_journal_knows_the_models(tmp_path):
    path = tmp_path / "journal.jsonl"
    options = {"journal": path, "budget": Budget(tokens=50)}
    solve_batch(PROBLEMS, REBASE(2), Told(), reward_model=ToyReward(), **options)
    solve_batch(PROBLEMS, REBASE(2), Told(), reward_model=ToyReward(), **options)
    with pytest.raises(
        ValueError, match=r"another call \(generator.depth was 3 and is 2; reward_model was 'ToyReward'"
    ):
        solve_batch(PROBLEMS, REBASE(2), Told(2), reward_model=Counted(), **options)
    unknown = tmp_path / "unknown.jsonl"
    for _ in range(2):  # it is told, and what was paid for is kept
        own = Own()
        with pytest.warns(UserWarning, match="resumed safely"):
            solve_batch(PROBLEMS, RepeatedSampling(2), own, journal=unknown)
    assert own.toy.calls == 0


def test_a_solver_is_known_by_all_that_leads_its_searches():
    solver = Solver(REBASE(2), ToyGenerator(), ToyReward(), read_answer=Number())
    about = json.loads(json.dumps(solver.identity()))
    assert {*about} == {
        *("strategy", "generator", "reward_model", "aggregator", "read_answer", "thinking", "budget", "seed"),
    }
    assert about == solver.identity()


def test_differences_are_short_and_begin_where_the_values_do():
    long = "You are a helpful assistant. " * 20
    told = str(compare({"a": long + "Be brief.", "b": [1, 2]}, {"a": long + "Think.", "b": [1, 3], "c": None}))
    assert "Be brief." in told
    assert "Think." in told
    assert "b[1] was 2 and is 3; c was 'absent' and is None" in told
    assert len(told) < 300
    many = compare({}, {str(index): index for index in range(20)})
    assert str(many).endswith("and 14 more")
    assert str(compare({"x": float("nan")}, {"x": float("nan")})) == ""
