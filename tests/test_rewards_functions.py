"""Functions as rewards, TRL's signature, and the exact checker."""

import asyncio

import numpy as np
import pytest

from inferscale.rewards import CheckerReward, RewardFunction
from inferscale.tree import Node, Problem, Step
from inferscale.zoo import task


def node_of(prompt="p", text="abc", answer=None):
    start = Node(Problem(prompt, answer, "7"))
    return Node(start.problem, Step(text, (1, 2)), start)


def test_functions_of_nodes():
    def length(nodes):
        return [len(node.text) for node in nodes]

    assert RewardFunction(length).score([node_of(), node_of(text="ab")]) == [3, 2]
    assert RewardFunction(lambda nodes: np.array([0.5, 1.5])).score([node_of(), node_of()]) == [0.5, 1.5]
    assert repr(RewardFunction(length)) == "RewardFunction(length)"


def test_trl_functions_get_the_keywords_that_they_take():
    def right(completions, answer, **kwargs):
        assert set(kwargs) == {"prompts", "completion_ids", "id", "trainer_state", "log_extra", "log_metric", "scale"}
        assert kwargs["scale"] == [2.0, 2.0]
        assert kwargs["completion_ids"] == [[1, 2], [1, 2]]
        kwargs["log_metric"]("x", 1.0)
        return [2.0 * (c == a) for c, a in zip(completions, answer, strict=True)]

    nodes = [node_of(text="12", answer="12"), node_of(text="13", answer="12")]
    assert RewardFunction(right, columns={"scale": 2.0}).score(nodes) == [2.0, 0.0]

    def narrow(prompts, completions, solution):
        return [float(s == c) for s, c in zip(solution, completions, strict=True)]

    reward = RewardFunction(narrow, columns={"solution": lambda node: node.problem.answer})
    assert reward.score(nodes) == [1.0, 0.0]


def test_conversational_functions_and_abstention():
    def first(prompts, completions):
        assert prompts[0] == [{"role": "user", "content": "p"}]
        return [None if c[0]["content"] == "abc" else 1.0 for c in completions]

    assert RewardFunction(first, conversational=True).score([node_of(), node_of(text="x")]) == [None, 1.0]


def test_coroutines_run_with_and_without_a_running_loop():
    async def slow(completions):
        await asyncio.sleep(0)
        return [float(len(c)) for c in completions]

    reward = RewardFunction(slow)
    assert reward.score([node_of()]) == [3.0]

    async def inside():
        return reward.score([node_of(text="ab")])

    assert asyncio.run(inside()) == [2.0]


def test_what_cannot_be_called_is_refused():
    def needy(completions, solution):
        return []

    def foreign(a, b):
        return []

    with pytest.raises(TypeError, match="not int"):
        RewardFunction(3)
    with pytest.raises(ValueError, match=r"needy needs solution: pass columns=\{'solution'"):
        RewardFunction(needy).score([node_of()])
    with pytest.raises(ValueError, match=r"foreign\(a, b\) is neither"):
        RewardFunction(foreign)


@pytest.mark.parametrize("answer", [0.5, None, {"a": 1.0}, "0.5"])
def test_what_is_no_list_of_scores_is_named(answer):
    def lonely(nodes):
        return answer

    with pytest.raises(TypeError, match=r"lonely returned .*: return a list with one number for each node"):
        RewardFunction(lonely).score([node_of(text="a")])


def test_the_checker_judges_every_step():
    [problem] = task.generate(1, seed=3)
    solution = task.solution(problem.prompt)
    lines = solution.splitlines(keepends=True)
    start = Node(problem)
    node = start
    for line in lines:
        node = Node(problem, Step(line), node)
    wrong = Node(problem, Step(lines[0]), start)
    wrong = Node(problem, Step("1 + 1 = 3\n"), wrong)
    wrong = Node(problem, Step(lines[1]), wrong)
    reward = CheckerReward()
    assert reward.step_scores([node, wrong]) == [[1.0] * len(lines), [1.0, 0.0, 0.0]]
    assert reward.score([node, wrong]) == [1.0, 0.0]
    assert CheckerReward("mean").score([wrong]) == [pytest.approx(1 / 3)]
