"""What reward models that judge steps are made of: a model, its encoder, and a reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch

from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.generators.charges import Charges
from inferscale.generators.kv_store import KVStore, check_cache_options, default_cache_bytes
from inferscale.generators.loading import evaluating
from inferscale.generators.selfcheck import checked_session, length_bound
from inferscale.tree import Node

from .heads import Read
from .paths import Path
from .readers import BatchReader, Reader, TreeReader, split

CacheKind: TypeAlias = Literal["tree", "none"]
PathOf: TypeAlias = Callable[[Node], Path]

_ROWS = {"tree": 64, "none": 32}


class SingleReading(ProcessRewardModel):
    """A process reward model that reads one model."""

    _reading: StepReading

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: with ``cache="tree"`` the tokens that it adds, else its whole text."""
        return self._reading.cost(nodes)

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        self._reading.release(root)


class StepReading:
    """Reads a model along the paths of nodes.

    With ``cache="tree"`` every node is read once, whatever is scored when; what a node costs is what it adds to the
    nodes read before. Otherwise whole texts are read, and paid for, each time.
    """

    def __init__(
        self,
        model: Any,
        path_of: PathOf,
        read: Read,
        *,
        rows: int | None,
        cache: CacheKind,
        max_cache_bytes: int | None,
    ) -> None:
        check_cache_options(cache, max_cache_bytes)
        if rows is not None and rows < 1:
            raise ValueError(f"micro_batch={rows}: give a positive number")
        self._model, self._path_of = model, path_of
        self._charges = Charges(model)
        self._plain: Reader = BatchReader(model, read, rows or _ROWS["none"])
        self._tree: Reader | None = None
        self._lock = threading.Lock()
        self._bound = length_bound(model.config)
        session = checked_session(model) if cache == "tree" else None
        if session is not None:
            size = default_cache_bytes(model) if max_cache_bytes is None else max_cache_bytes
            self._tree = TreeReader(session, KVStore(size), read, rows or _ROWS["tree"])

    def values(self, nodes: Sequence[Node]) -> list[list[list[float]]]:
        """For each node and each of its steps, the numbers at the step's marks."""
        paths = [self._path_of(node) for node in nodes]
        found: dict[int, list[float]] = {}
        with self._lock, evaluating(self._model), torch.inference_mode():
            for reader, chosen in self._assigned(paths):
                found.update(zip(chosen, reader.read([paths[i] for i in chosen]), strict=True))
        counts = [[count for part in path.parts for count in part.counts] for path in paths]
        return [split(found[i], counts[i]) for i in range(len(paths))]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs."""
        paths = [self._path_of(node) for node in nodes]
        bills: dict[int, tuple[int, int, int]] = {}
        for reader, chosen in self._assigned(paths):
            bills.update(zip(chosen, reader.unread([paths[i] for i in chosen]), strict=True))
        return [self._charges.scoring(new, marks, past) for new, past, marks in (bills[i] for i in range(len(paths)))]

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        if self._tree is not None:
            with self._lock:
                self._tree.release(root.key)

    def _assigned(self, paths: Sequence[Path]) -> list[tuple[Reader, list[int]]]:
        """Which reader reads which paths."""
        every = list(range(len(paths)))
        if self._tree is None:
            return [(self._plain, every)]
        bound = self._bound
        short = [i for i in every if bound is None or len(paths[i]) <= bound]
        long = [i for i in every if bound is not None and len(paths[i]) > bound]
        return [(self._tree, short), (self._plain, long)]
