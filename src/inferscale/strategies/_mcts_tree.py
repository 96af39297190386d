"""What Monte Carlo tree search knows about its nodes: visits, mean values, and which can still grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from inferscale.tree import Node


class MCTSTree:
    """Counts of one search. A path is a list of nodes from the root of the search down.

    Attributes:
        root: Where the search starts.
        kids: Children of each node that was expanded, roll-outs left out.
        visits: N, the number of values that were backed up through a node.
        value: Q, their mean.
        in_flight: Simulations under way through a node: virtual losses.
        passes: Simulations that went through a node, the one that made it included.
        closed: Nodes that are not selected: finished, at the depth limit, without an open child, or in flight.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.kids: dict[Node, list[Node]] = {}
        self.visits: defaultdict[Node, int] = defaultdict(int)
        self.value: defaultdict[Node, float] = defaultdict(float)
        self.in_flight: defaultdict[Node, int] = defaultdict(int)
        self.passes: defaultdict[Node, int] = defaultdict(int)
        self.closed: set[Node] = set()
        self._num_open: defaultdict[Node, int] = defaultdict(int)

    def open_kids(self, node: Node) -> list[Node]:
        """Children of `node` that can be selected, oldest first."""
        closed = self.closed
        return [kid for kid in self.kids.get(node, ()) if kid not in closed]

    def visits_now(self, node: Node) -> int:
        """N with virtual losses."""
        return self.visits[node] + self.in_flight[node]

    def value_now(self, node: Node) -> float:
        """Q with virtual losses, each of which counts as a value of 0."""
        visits, losses = self.visits[node], self.in_flight[node]
        return self.value[node] * visits / (visits + losses) if losses else self.value[node]

    def begin(self, path: Sequence[Node]) -> None:
        """A simulation is under way along `path`."""
        for node in path:
            self.in_flight[node] += 1
            self.passes[node] += 1

    def end(self, path: Sequence[Node]) -> None:
        """The simulation has come back: its virtual losses are taken off."""
        for node in path:
            self.in_flight[node] -= 1
        self.kids.setdefault(path[-1], [])

    def add(self, path: Sequence[Node], kid: Node, value: float, is_closed: bool) -> None:
        """Hangs a new child under the path's last node and backs its value up to the root."""
        self.kids[path[-1]].append(kid)
        self.passes[kid] = 1
        if is_closed:
            self.closed.add(kid)
        else:
            self._num_open[path[-1]] += 1
        for node in (*path, kid):
            self.visits[node] += 1
            self.value[node] += (value - self.value[node]) / self.visits[node]

    def close(self, path: Sequence[Node]) -> None:
        """Takes the path's last node out of selection, with the ancestors that lose their last open child."""
        for depth in range(len(path) - 1, -1, -1):
            self.closed.add(path[depth])
            if depth:
                self._num_open[path[depth - 1]] -= 1
                if self._num_open[path[depth - 1]]:
                    return

    def reopen(self, path: Sequence[Node]) -> None:
        """Undoes `close` if the path's last node has an open child by now."""
        if not self._num_open[path[-1]]:
            return
        for depth in range(len(path) - 1, -1, -1):
            if path[depth] not in self.closed:
                return
            self.closed.remove(path[depth])
            if depth:
                self._num_open[path[depth - 1]] += 1

    def annotate(self) -> None:
        """Writes visits and values on the nodes, for people to read."""
        for node, visits in self.visits.items():
            node.stats.update(visits=visits, value=self.value[node])
