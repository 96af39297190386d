"""Enumerable language models and judges for the strategies' oracles, and a driver without the engine."""

import itertools
import random
from dataclasses import dataclass

from inferscale.base import Generator, RewardModel, SearchStrategy
from inferscale.engine import solve
from inferscale.flow import Generate
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Node, Problem, Step


class TreeGenerator(Generator):
    """Draw `d` of a node is its branch ``d % width``, the greedy one branch 0; paths end at `depth`."""

    def __init__(self, depth=4, width=3):
        self.depth, self.width = depth, width
        self.levels = []

    def generate(self, requests):
        self.levels.append(sum(request.n for request in requests))
        return [[self.sample(r, r.first + i) for i in range(r.n)] for r in requests]

    def sample(self, request, draw):
        steps = self.depth - request.node.depth if request.until == "end" else 1
        ends = request.node.depth + steps >= self.depth
        branch = 0 if request.greedy else draw % self.width
        text = f"{branch}/" * steps
        return Step(text, tuple(range(steps)), -1.0 * steps, finish_reason="eos" if ends else "step")


class PathReward(RewardModel):
    """The value of a path's text: leaves have `leaf_value`, inner nodes the mean of their leaves."""

    def __init__(self, leaf_value, depth=4, width=3):
        self.leaf_value, self.depth, self.width = leaf_value, depth, width
        self.known = {}

    def value(self, path):
        if path not in self.known:
            if path.count("/") >= self.depth:
                self.known[path] = self.leaf_value(path)
            else:
                self.known[path] = sum(self.value(f"{path}{b}/") for b in range(self.width)) / self.width
        return self.known[path]

    def score(self, nodes):
        return [self.value(node.text) for node in nodes]


def random_tree(trial, depth=4, width=3):
    """The judge of tree number `trial`, and its best path."""
    reward = PathReward(lambda path: random.Random(f"{trial}/{path[:-1]}").random(), depth, width)
    paths = ["".join(f"{b}/" for b in path) for path in itertools.product(range(width), repeat=depth)]
    return reward, max(paths, key=reward.value)


class TextReward(RewardModel):
    """Scores by whole text, from a table."""

    def __init__(self, table, default=None):
        self.table, self.default = table, default

    def score(self, nodes):
        return [self.table[node.text] if self.default is None else self.table.get(node.text, self.default)
                for node in nodes]  # fmt: skip


def search(strategy, generator=None, reward=None, prompt="How many?", **options):
    """`solve` with toys by default."""
    return solve(prompt, strategy, generator or ToyGenerator(), reward_model=reward or ToyReward(), **options)


def drive(flow, sample, value=None):
    """The result of a flow whose requests are answered by ``sample(request, draw)`` and ``value(node)``."""
    answer = None
    while True:
        try:
            request = flow.send(answer)
        except StopIteration as stop:
            return stop.value
        if isinstance(request, Generate):
            answer = [[attached(r, sample(r, i)) for i in range(r.n)] for r in request.requests]
        else:
            answer = None
            for node in request.nodes:
                node.score = value(node)


def attached(request, step):
    """A new node for `step`."""
    node = Node(request.node.problem, step, request.node)
    if request.attach:
        request.node.children.append(node)
    return node


def root(prompt="How many?"):
    return Node(Problem(prompt))


@dataclass(frozen=True)
class Written(SearchStrategy):
    """A strategy whose search is given."""

    body: object

    def search(self, root, rng):
        return self.body(root)


def run(body, **options):
    """The result of a search whose body is given."""
    return solve("How many?", Written(body), ToyGenerator(), reward_model=ToyReward(), **options)
