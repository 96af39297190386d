"""Flows driven by hand: `next` is ask, `send` is tell."""

import random
from dataclasses import replace

import numpy as np
import pytest

from inferscale.flow import Answer, Generate, GenerateRequest, Score, answer, expand, gather, limit, rewrite, score
from inferscale.strategies import REBASE, AdaptiveConsistency, BeamSearch, RepeatedSampling
from inferscale.tree import Node, Problem, Step

RNG = random.Random(0)


def child(parent: Node, text: str, value: float | None = None, reason: str = "step") -> Node:
    node = Node(parent.problem, Step(text, finish_reason=reason), parent)
    parent.children.append(node)
    if value is not None:
        node.score = value
    return node


def root() -> Node:
    return Node(Problem("How many?"))


def test_expand_asks_for_each_node_and_flattens_the_answer():
    a, b, c = root(), root(), root()
    flow = expand([a, b, c], [2, 0, 1], until="end")
    request = next(flow)
    assert request == Generate((GenerateRequest(a, 2, "end"), GenerateRequest(c, 1, "end")))
    kids = [[child(a, "x"), child(a, "y")], [child(c, "z")]]
    with pytest.raises(StopIteration) as stop:
        flow.send(kids)
    assert [node.step.text for node in stop.value.value] == ["x", "y", "z"]


def test_expand_leaves_failed_samples_out():
    top = root()
    flow = expand([top], 3)
    next(flow)
    answer = [[child(top, "x"), child(top, " ", reason="empty"), child(top, "down", reason="error")]]
    with pytest.raises(StopIteration) as stop:
        flow.send(answer)
    assert [node.step.text for node in stop.value.value] == ["x"]
    assert len(top.children) == 3


def test_expanding_nothing_asks_nothing():
    with pytest.raises(StopIteration) as stop:
        next(expand([], 3))
    assert stop.value.value == []


def test_expand_refuses_finished_nodes_and_wrong_counts():
    done = child(root(), "x", reason="eos")
    with pytest.raises(ValueError, match="has finished"):
        next(expand([done]))
    with pytest.raises(ValueError, match="1 nodes and 2 counts"):
        next(expand([root()], [1, 2]))
    with pytest.raises(ValueError, match="at least one sample"):
        next(expand([root()], [-1]))
    with pytest.raises(ValueError, match=r"the count 2\.7: give whole numbers"):
        next(expand([root()], [2.7]))


@pytest.mark.parametrize("counts", [np.int64(3), np.array([3]), np.array([3.0]), [np.int32(3)]], ids=repr)
def test_counts_may_be_numbers_of_numpy(counts):
    (request,) = next(expand([root()], counts)).requests
    assert (request.n, type(request.n)) == (3, int)


def test_a_sample_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="max_tokens=0: give each sample at least one token"):
        GenerateRequest(root(), max_tokens=0)


def test_score_asks_once_for_each_unscored_node():
    top = root()
    a, b = child(top, "a", 0.5), child(top, "b")
    assert next(score([a, b, b])) == Score((b,))
    with pytest.raises(StopIteration):
        next(score([a]))


def test_rebase_by_hand():
    top = root()
    flow = REBASE(width=4, softmax_temperature=0.2).search(top, RNG)
    assert next(flow).requests[0].n == 4
    kids = [child(top, text) for text in "abcd"]
    assert flow.send([kids]) == Score(tuple(kids))
    for node, value in zip(kids, [0.9, 0.8, 0.7, 0.1], strict=True):
        node.score = value
    request = flow.send(None)
    assert [(r.node, r.n) for r in request.requests] == [(kids[0], 3), (kids[1], 1)]
    last = [[child(kids[0], "e", reason="eos") for _ in range(3)], [child(kids[1], "f")]]
    flow.send(last)
    for node in [*last[0], *last[1]]:
        node.score = 0.5
    request = flow.send(None)
    assert [(r.node, r.n) for r in request.requests] == [(last[1][0], 1)]


def test_gather_merges_requests_and_keeps_results_apart():
    tops = [root(), root()]
    flow = gather([RepeatedSampling(1).search(tops[0], RNG), BeamSearch(1, 2).search(tops[1], RNG)])
    request = next(flow)
    assert [r.node for r in request.requests] == tops
    first = [child(tops[0], "done", reason="eos")]
    second = [child(tops[1], "a", reason="eos"), child(tops[1], "b")]
    assert flow.send([first, second]) == Score(tuple(second))
    second[0].score, second[1].score = 0.9, 0.1
    with pytest.raises(StopIteration) as stop:
        flow.send(None)
    assert stop.value.value == [first, [second[0]]]


def test_gather_serves_generation_before_scores_and_deduplicates_scores():
    top = root()
    shared = child(top, "a")

    def scores_first():
        yield from score([shared])
        return "scored"

    def generates_first():
        nodes = yield from expand([top], 1)
        yield from score([shared])
        return nodes

    flow = gather([scores_first(), generates_first()])
    assert isinstance(next(flow), Generate)
    new = child(top, "b")
    assert flow.send([[new]]) == Score((shared,))
    shared.score = 1.0
    with pytest.raises(StopIteration) as stop:
        flow.send(None)
    assert stop.value.value == ["scored", [new]]


def test_gather_of_nothing_is_nothing():
    with pytest.raises(StopIteration) as stop:
        next(gather([]))
    assert stop.value.value == []


def test_limit_returns_the_leaves_when_the_samples_are_spent():
    top = root()
    flow = limit(BeamSearch(2, 1).search(top, RNG), top, n=3)
    next(flow)
    kids = [child(top, "a", 0.5), child(top, "b", 0.5)]
    with pytest.raises(StopIteration) as stop:
        flow.send([kids])
    assert stop.value.value == kids


def test_limit_lets_a_search_that_fits_through():
    top = root()
    flow = limit(RepeatedSampling(2).search(top, RNG), top, n=2)
    next(flow)
    kids = [child(top, "a", reason="eos"), child(top, "b", reason="eos")]
    with pytest.raises(StopIteration) as stop:
        flow.send([kids])
    assert stop.value.value == kids


def test_limits_within_limits_end_at_their_own():
    top = root()

    def inner():
        yield from limit(BeamSearch(2, 1).search(top, RNG), top, n=2)
        return (yield from expand([top], 2))

    flow = limit(inner(), top, n=4)
    next(flow)
    kids = [child(top, "a", 0.5), child(top, "b", 0.5)]
    assert flow.send([kids]) == Generate((GenerateRequest(top, 2),))
    more = [child(top, "c"), child(top, "d")]
    with pytest.raises(StopIteration) as stop:
        flow.send([more])
    assert stop.value.value == more


def test_rewriting_changes_requests_for_samples_and_nothing_else():
    top = root()
    body = BeamSearch(1, 2).search(top, RNG)
    flow = rewrite(body, lambda asked: Generate(tuple(replace(r, max_tokens=5) for r in asked.requests)))
    assert next(flow) == Generate((GenerateRequest(top, 2, max_tokens=5),))
    kids = [child(top, "a", reason="eos"), child(top, "b")]
    assert flow.send([kids]) == Score(tuple(kids))
    kids[0].score, kids[1].score = 0.9, 0.1
    with pytest.raises(StopIteration) as stop:
        flow.send(None)
    assert stop.value.value == [kids[0]]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_answers_are_asked_for_and_given_in_order():
    top = root()
    nodes = [child(top, "x", reason="eos"), child(top, "y", reason="eos")]
    flow = answer(node for node in nodes)
    assert next(flow) == Answer(tuple(nodes))
    with pytest.raises(StopIteration) as stop:
        flow.send(["4", None])
    assert stop.value.value == ["4", None]


def test_answers_of_nothing_ask_nothing_and_those_of_no_node_are_refused():
    with pytest.raises(StopIteration) as stop:
        next(answer([]))
    assert stop.value.value == []
    with pytest.raises(TypeError, match=r"answers of nodes, not of str 'x'"):
        next(answer(["x"]))
    with pytest.raises(TypeError, match=r"yield from answer\(\.\.\.\)"):
        next(gather([wrong() for _ in range(1)]))


def wrong():
    yield answer([root()])


def test_flows_side_by_side_read_answers_at_once():
    def reading(top, times):
        found = []
        for _ in range(times):
            nodes = yield from expand([top])
            found += yield from answer(nodes)
        return found

    first, second = root(), root()
    flow = rewrite(gather([reading(first, 2), reading(second, 1)]), lambda request: request)
    request = next(flow)
    assert request == Generate((GenerateRequest(first), GenerateRequest(second)))
    nodes = child(first, "a", reason="eos"), child(second, "b", reason="eos")
    assert flow.send([[node] for node in nodes]) == Answer((nodes[0],))
    assert flow.send(["1"]) == Answer((nodes[1],))
    assert flow.send(["2"]) == Generate((GenerateRequest(first),))
    last = child(first, "c", reason="eos")
    assert flow.send([[last]]) == Answer((last,))
    with pytest.raises(StopIteration) as stop:
        flow.send([None])
    assert stop.value.value == [["1", None], ["2"]]


def test_a_limit_lets_answers_be_read():
    top = root()

    def reading():
        nodes = yield from expand([top])
        yield from answer(nodes)
        return (yield from expand([top]))

    flow = limit(reading(), top, 1)
    next(flow)
    node = child(top, "a", reason="eos")
    assert flow.send([[node]]) == Answer((node,))
    with pytest.raises(StopIteration) as stop:
        flow.send(["1"])
    assert stop.value.value == [node]


def test_adaptive_consistency_by_hand():
    top = root()
    flow = AdaptiveConsistency(16).search(top, RNG)
    request = next(flow)
    for _ in range(4):
        assert request == Generate((GenerateRequest(top, 1, "end"),))
        node = child(top, "so it is 4", reason="eos")
        assert flow.send([[node]]) == Answer((node,))
        request = flow.send(["4"]) if len(top.children) < 4 else None
    with pytest.raises(StopIteration) as stop:
        flow.send(["4"])
    assert stop.value.value == top.children
