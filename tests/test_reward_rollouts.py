"""Labels by roll-outs against a generator whose chances are known."""

import math

import pytest

from inferscale.base import Generator
from inferscale.generators import HFGenerator
from inferscale.rewards import label_by_rollouts
from inferscale.testing import ToyGenerator, unit_hash
from inferscale.tree import Node, Problem, Step, branch_key


class Solver(Generator):
    """Ends rightly with a chance that depends on the prefix: 0 after a step "bad", else `chance`."""

    def __init__(self, chance=0.7):
        self.chance, self.calls, self.samples, self.released = chance, 0, 0, []

    def generate(self, requests):
        self.calls += 1
        self.samples += sum(request.n for request in requests)
        return [[self._step(request, draw) for draw in range(request.n)] for request in requests]

    def _step(self, request, draw):
        hopeless = "bad" in request.node.text
        lucky = unit_hash(str(branch_key(request.node.key, request.first + draw))) < self.chance
        return Step("The answer is " + ("4" if lucky and not hopeless else "5"), finish_reason="eos")

    def release(self, root):
        self.released.append(root)


def chain(*texts, end="The answer is 5", answer="4", key=0):
    node = Node(Problem("What is 2 + 2?", answer), key=key)
    for text in texts:
        node = Node(node.problem, Step(text + "\n"), node, branch_key(node.key, 0))
    return Node(node.problem, Step(end, finish_reason="eos"), node, branch_key(node.key, 0)) if end else node


@pytest.mark.parametrize("error", range(7))
def test_halving_finds_the_first_error(error):
    texts = ["fine" if place != error else "bad" for place in range(7)]
    solver = Solver(chance=1.0)
    [found] = label_by_rollouts([chain(*texts)], solver, n=4, target="first_error")
    assert found.first_error == error
    assert found.labels == (*[1.0] * error, 0.0, *[None] * (7 - error))
    assert found.correct is False
    assert solver.samples <= 4 * math.ceil(math.log2(9))
    [soft] = label_by_rollouts([chain(*texts)], solver, n=4)
    assert soft.first_error == error


def test_halving_shares_its_calls_and_trusts_right_solutions():
    solver = Solver(chance=1.0)
    nodes = [chain("fine", "bad", "fine"), chain("bad", key=5), chain("fine", "bad", end="The answer is 4")]
    nodes.append(chain("fine", "fine", end=None))
    found = label_by_rollouts(nodes, solver, n=2, target="first_error")
    assert [item.first_error for item in found] == [1, 0, None, None]
    assert found[2].labels == (1.0, 1.0, 1.0)
    assert found[2].correct is True
    assert found[3].labels == (1.0, 1.0)
    assert found[3].correct is None
    assert solver.calls <= 3
    assert len(solver.released) == 4


def test_soft_labels_are_shares_and_hard_ones_say_whether_any():
    nodes = [chain("fine", "fine", "bad", key=k) for k in range(40)]
    soft = label_by_rollouts(nodes, Solver(0.3), n=16)
    shares = [label for item in soft for label in item.labels[:2]]
    assert all((16 * share).is_integer() for share in shares)
    assert sum(shares) / len(shares) == pytest.approx(0.3, abs=0.04)
    assert {item.labels[2:] for item in soft} == {(0.0, 0.0)}
    assert len(set(shares)) > 4
    hard = label_by_rollouts(nodes, Solver(0.3), n=16, target="hard")
    assert [item.labels for item in hard] == [tuple(float(label > 0) for label in item.labels) for item in soft]


def test_equal_solutions_are_rolled_out_anew():
    labels = {label_by_rollouts([chain("fine", key=k)], Solver(0.5), n=16)[0].labels[0] for k in range(6)}
    assert len(labels) > 1
    one, other = label_by_rollouts([chain("fine"), chain("fine")], Solver(0.5), n=32)
    again, _ = label_by_rollouts([chain("fine"), chain("fine")], Solver(0.5), n=32)
    assert one.labels == again.labels
    assert one.labels[0] != other.labels[0]


def test_inner_steps_of_completions_are_steps():
    text = "fine\nbad\nThe answer is 5"
    ends = ((5, 5), (9, 9), (len(text), len(text)))
    root = Node(Problem("What is 2 + 2?", "4"))
    node = Node(root.problem, Step(text, tuple(range(len(text))), finish_reason="eos", inner_ends=ends), root)
    [found] = label_by_rollouts([node], Solver(1.0), n=2)
    assert found.steps == ("fine\n", "bad\n", "The answer is 5")
    assert found.labels == (1.0, 0.0, 0.0)


def test_a_check_of_ones_own_and_bad_requests():
    [found] = label_by_rollouts([chain("bad")], Solver(), lambda problem, text: "5" in text, n=2)
    assert found.labels == (1.0, 1.0)
    with pytest.raises(ValueError, match="n=0"):
        label_by_rollouts([chain("a")], Solver(), n=0)
    with pytest.raises(ValueError, match="target='firm'"):
        label_by_rollouts([chain("a")], Solver(), target="firm")
    with pytest.raises(ValueError, match="has no steps to label"):
        label_by_rollouts([Node(Problem("p", "1"))], Solver())
    with pytest.raises(ValueError, match="has no gold answer"):
        label_by_rollouts([chain("a", answer=None)], Solver())


class Flaky(Solver):
    """Every second sample fails on its server, or all do."""

    def __init__(self, all_fail=False):
        super().__init__(chance=1.0)
        self.all_fail = all_fail

    def _step(self, request, draw):
        failed = Step("status 503", finish_reason="error")
        return failed if self.all_fail or draw % 2 else super()._step(request, draw)


@pytest.mark.parametrize("target", ["soft", "hard", "first_error"])
def test_samples_that_failed_are_no_wrong_answers(target):
    [found] = label_by_rollouts([chain("fine", "fine", end=None)], Flaky(), n=4, target=target)
    assert found.labels == (1.0, 1.0)
    solver = Flaky(all_fail=True)
    with pytest.raises(RuntimeError, match=r"all 4 completions of .* failed: status 503"):
        label_by_rollouts([chain("fine")], solver, n=4, target=target)
    assert len(solver.released) == 1
    broken = chain("fine", end=None)
    broken = Node(broken.problem, Step("status 503", finish_reason="error"), broken)
    with pytest.raises(ValueError, match="a failed sample for its last one"):
        label_by_rollouts([broken], Solver(), n=4, target=target)


def test_with_the_toy_and_with_a_transformers_model():
    from tests.tiny_models import byte_tokenizer, grow, root, tiny_model

    toy = ToyGenerator()
    node = Node(Problem("How many?", "2"))
    for _ in range(3):
        step = toy.generate([_request(node)])[0][0]
        node = Node(node.problem, step, node, branch_key(node.key, 0))
    [found] = label_by_rollouts([node], toy, n=8)
    assert len(found.labels) == 3
    gen = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=6, max_new_tokens=18)
    leaf = next(n for n in grow(gen, root("b"), 8, until="end") if len(n.inner_steps()) > 1)
    [found] = label_by_rollouts([leaf], gen, lambda problem, text: "a" in text, n=3)
    assert len(found.labels) == len(leaf.inner_steps())


def _request(node):
    from inferscale.flow import GenerateRequest

    return GenerateRequest(node)
