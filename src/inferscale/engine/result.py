"""The result of a search: the chosen trajectory, all others, the tree and the cost."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from inferscale.aggregators import joining_of
from inferscale.answers import (
    AnswerGroups,
    AnswerReader,
    Reader,
    answer_of,
    chosen_reader,
    equality_of,
    kind_of,
    reader_of,
)
from inferscale.base import Aggregator
from inferscale.cost import Cost
from inferscale.thinking import Thinking, thinking_for
from inferscale.tree import FinishReason, Node, Problem, Step, Trajectory

from .files import SEAL, sealed, unsealed, write_atomically

FORMAT = "inferscale.SearchResult"
VERSION = 1


MANY = 0.1
"""Share of trajectories without an answer for one reason from which on `Abstentions` says so."""


@dataclass(frozen=True)
class Abstentions:
    """Trajectories without an answer, by the reason: they have no vote. Counts of several searches can be added.

    Attributes:
        trajectories: All trajectories.
        by_length: Those cut by ``max_new_tokens`` before their answer was complete.
        by_budget: Those cut by the budget before it was.
        unfinished: Those that the search left before their end.
        failed: Those of an error, or of nothing but white space.
        unread: Those that ended by themselves, with no answer that the reader found.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.testing.ToyGenerator()
        >>> result = isc.solve("How many?", isc.RepeatedSampling(8), generator, budget=isc.Budget(tokens=40))
        >>> result.abstentions.by_budget, result.abstentions.trajectories
        (1, 3)
        >>> print(result.abstentions.notes[0])
        1 of 3 trajectories were cut by the budget and abstain: raise it, or ask for fewer samples
    """

    trajectories: int = 0
    by_length: int = 0
    by_budget: int = 0
    unfinished: int = 0
    failed: int = 0
    unread: int = 0

    @classmethod
    def count(cls, ends: Iterable[tuple[str | None, FinishReason | None]]) -> Abstentions:
        """Count trajectories, of which each has an answer and a reason why its last step ended (if it has a step)."""
        given = list(ends)
        reasons = Counter(reason for answer, reason in given if answer is None)
        return cls(
            len(given), reasons["length"], reasons["budget"], reasons["step"],
            reasons["empty"] + reasons["error"] + reasons[None], reasons["eos"],
        )  # fmt: skip

    def __add__(self, other: Abstentions) -> Abstentions:
        """The counts of both together."""
        return Abstentions(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def cut(self) -> int:
        """Those that did not end by themselves."""
        return self.by_length + self.by_budget + self.unfinished

    @property
    def abstaining(self) -> int:
        """All without an answer."""
        return self.cut + self.failed + self.unread

    @property
    def notes(self) -> list[str]:
        """Advice about reasons that take away a tenth of the votes or more: one line each, most often none."""
        said = {
            "by_length": "were cut by length and abstain: raise max_new_tokens",
            "by_budget": "were cut by the budget and abstain: raise it, or ask for fewer samples",
            "unfinished": "were left unfinished and abstain: raise max_depth or the budget",
            "failed": "failed and abstain: their texts tell the error",
            "unread": "ended without an answer that was found: say what it is by kind=... or read_answer=...",
        }
        counts = {name: getattr(self, name) for name in said}
        return [
            f"{count:,} of {self.trajectories:,} trajectories {said[name]}"
            for name, count in counts.items()
            if count and count >= MANY * self.trajectories
        ]


@dataclass(frozen=True)
class SearchResult:
    """The outcome of one search.

    Attributes:
        problem: The problem.
        selected: The trajectory that the aggregator picked.
        trajectories: One for each leaf that the search returned, in order.
        leaves: The leaves themselves, in the order of `trajectories`.
        root: The root of the search tree.
        cost: The cost of the search.
        stopped_by: The cap that ended it or cut its last sample (``"tokens"``, ``"flops"``, ``"seconds"``,
            ``"calls"``), ``"pool"`` where it shared a budget with other problems and depends on them, ``"cancel"`` if
            it was cancelled, ``"error"`` for the best so far of a search that was broken off, or ``None``.

    Example:
        >>> import inferscale as isc
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyProcessReward()
        >>> result = isc.solve("How many?", isc.RepeatedSampling(8), generator, reward_model=reward)
        >>> result.answer, result.cost.tokens, len(result.trajectories)
        ('1', 126, 8)
        >>> path = result.save("result.json")
        >>> isc.SearchResult.load(path).reaggregate(isc.BestOfN()).answer  # another vote, for nothing
        '0'
    """

    problem: Problem
    selected: Trajectory
    trajectories: tuple[Trajectory, ...]
    leaves: tuple[Node, ...] = field(repr=False)
    root: Node = field(repr=False)
    cost: Cost
    stopped_by: str | None = None

    @property
    def answer(self) -> str | None:
        """The selected trajectory's answer; ``None`` if every trajectory abstained."""
        return self.selected.answer

    @property
    def text(self) -> str:
        """The selected trajectory's text."""
        return self.selected.text

    @property
    def is_correct(self) -> bool | None:
        """True if the answer is the gold one; ``None`` if the problem has no gold answer."""
        return self.selected.is_correct

    @property
    def final_text(self) -> str | None:
        """The selected trajectory's final part, thoughts left out; ``None`` if its thinking never ended."""
        return self.selected.final_text

    @property
    def abstentions(self) -> Abstentions:
        """Count how many trajectories have no answer, and why."""
        return Abstentions.count((t.answer, t.steps[-1].finish_reason if t.steps else None) for t in self.trajectories)

    @property
    def selected_leaf(self) -> Node:
        """The leaf of the selected trajectory."""
        return self.leaves[self._place]

    def reaggregate(self, aggregator: Aggregator) -> SearchResult:
        """Return the same search with another vote; nothing is generated or scored."""
        return replace(self, selected=voted(aggregator, self.trajectories))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result with its whole tree as versioned JSON; return the path.

        Of what read the answers the kind is kept; of a reader of your own, nothing but the answers.
        """
        target = Path(path)
        write_atomically(target, sealed(self.to_dict()))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Load what `save` wrote.

        Raises:
            ValueError: If the file is not a result, or was written by a newer version.
        """
        text = Path(path).read_bytes()
        data = unsealed(text)
        if data is None:
            try:
                data = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path} is not a saved search result: {error}") from error
            if isinstance(data, dict) and (SEAL in data or data.get("format") == FORMAT):
                raise ValueError(f"{path} is damaged (its checksum is another): restore it, or search again")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the tree as a flat table of nodes, parents first."""
        nodes = list(self.root.walk())
        index = {node: i for i, node in enumerate(nodes)}
        rows = []
        for node in nodes:
            row: dict[str, Any] = {"parent": None if node.parent is None else index[node.parent], "key": node.key}
            if node.step is not None:
                row["step"] = step_to_dict(node.step)
            if node.is_scored:
                row["score"] = node.score
            if node.step_scores is not None:
                row["step_scores"] = node.step_scores
            if node.stats:
                row["stats"] = finite(node.stats)
            # Children are counted again when they are loaded; look-ahead is in no table, and solutions that were asked
            # for by another prompt are children which were not drawn from here.
            if node.num_draws != len(node.children):
                row["unattached_draws"] = node.num_draws - len(node.children)
            rows.append(row)
        return {
            "format": FORMAT,
            "version": VERSION,
            "problem": self.problem.to_dict(),
            "cost": self.cost.to_dict(),
            "stopped_by": self.stopped_by,
            "thinking": None if self.root.thinking is None else asdict(self.root.thinking),
            "nodes": rows,
            "side_notes": [
                {
                    "problem": note.problem.to_dict(),
                    "key": note.key,
                    "draws": note.num_draws,
                    "replies": [
                        {"node": index[reply]}
                        if reply in index
                        else {"key": reply.key, "step": step_to_dict(reply.step or Step(""))}
                        for reply in note.children
                    ],
                }
                for note in self.root.side_notes
            ],
            "trajectories": [
                {"node": index[leaf], "answer": t.answer, "score": t.score, "step_scores": t.step_scores}
                for leaf, t in zip(self.leaves, self.trajectories, strict=True)
            ],
            "selected": self._place,
            "kind": kind_of(self.selected.reader),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchResult:
        """Return the result that `to_dict` turned into `data`.

        Raises:
            ValueError: If that is no result, is damaged, or was written by a newer version.
        """
        form = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        if form != FORMAT:
            raise ValueError(f"not a saved search result: format is {form!r}, expected {FORMAT!r}")
        version = data.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise ValueError(f"written by a newer inferscale (version {version} > {VERSION}): update to read it")
        try:
            return cls._rebuilt(data)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"damaged search result ({type(error).__name__}: {error})") from error

    @classmethod
    def _rebuilt(cls, data: Mapping[str, Any]) -> SearchResult:
        problem = Problem(**data["problem"])
        markers = None if data.get("thinking") is None else Thinking(**data["thinking"])
        nodes: list[Node] = []
        for row in data["nodes"]:
            parent = None if row["parent"] is None else nodes[row["parent"]]
            node = Node(problem, step_from_dict(row["step"]) if "step" in row else None, parent, row["key"], markers)
            node.num_draws = row.get("unattached_draws", 0)
            if parent is not None:
                parent.children.append(node)
                parent.num_draws += 1
            if "score" in row:
                node.score = row["score"]
            node.step_scores = _as_tuple(row.get("step_scores"))
            node.stats.update(row.get("stats", {}))
            nodes.append(node)
        for row in data.get("side_notes", ()):
            asked = Problem(**row["problem"])
            note = Node(asked, key=row["key"], thinking=thinking_for(asked.prompt, asked.prefill, markers))
            note.num_draws = row["draws"]
            for reply in row["replies"]:
                known = "node" in reply
                note.children.append(
                    nodes[reply["node"]] if known else Node(asked, step_from_dict(reply["step"]), note, reply["key"])
                )
            nodes[0].side_notes.append(note)
        reader = None if data.get("kind") is None else reader_of(data["kind"])
        leaves = tuple(nodes[row["node"]] for row in data["trajectories"])
        trajectories = tuple(
            Trajectory(problem, leaf.steps, _as_tuple(row["step_scores"]), row["answer"], row["score"], reader, markers)
            for leaf, row in zip(leaves, data["trajectories"], strict=True)
        )
        selected = trajectories[data["selected"]]
        return cls(problem, selected, trajectories, leaves, nodes[0], Cost.from_dict(data["cost"]), data["stopped_by"])

    def to_html(self) -> str:
        """Return answer, votes, cost and tree as a piece of HTML: no script, nothing from outside, model text escaped.

        It is ASCII, so that ``Path("result.html").write_text(result.to_html())`` shows the same in any browser.
        """
        from inferscale.viz.html import page

        cost, silent, thought = self.cost, self.abstentions, self.cost.shares.get("thinking")
        why = f" ({silent.cut} cut, {silent.unread} unread)" if silent.abstaining else ""
        facts = {
            "problem": self.problem.prompt,
            "trajectories": f"{len(self.trajectories)}, {silent.abstaining} abstained{why}",
            "tokens": f"{cost.tokens:,} sampled, {cost.scored_tokens:,} scored",
            **{
                "side prompts" if name == "ask" else f"by {name}": f"{each.prompt_tokens:,} tokens read, "
                f"{each.tokens:,} sampled, {each.generator_flops:.3g} FLOPs"
                for name, each in cost.shares.items()
                if name != "thinking"
            },
            **({} if thought is None else {"thoughts": f"{thought.generated_tokens:,} of the sampled tokens"}),
            "FLOPs": f"{cost.generator_flops:.3g} generator, {cost.reward_flops:.3g} reward model",
            **({} if cost.bytes is None else {"bytes": f"{cost.bytes:.3g}, {cost.cache_bytes:.3g} of keys and values"}),
            "seconds": f"{cost.seconds:.3g}",
            **({} if cost.joules is None else {"joules": f"{cost.joules:.3g}"}),
            "stopped by": self.stopped_by or "the strategy",
            **({"note": ". ".join(silent.notes)} if silent.notes else {}),
        }
        return page(self.root, self.leaves, self.trajectories, self._place, facts)

    def _repr_html_(self) -> str:
        """Return `to_html`, for notebooks."""
        return self.to_html()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the table of nodes: the linked nodes of a deep tree would pass Python's recursion limit."""
        return SearchResult.from_dict, (self.to_dict(),)

    @property
    def _place(self) -> int:
        return self.trajectories.index(self.selected)


def answer_at(node: Node, reader: Reader) -> str | None:
    """Return the answer of a node; one that failed, never left its thoughts or was cut before the answer, abstains."""
    if node.step is None or node.is_failed or not node.is_finished:
        return None
    cut = node.step.finish_reason in ("length", "budget")
    answer: object = answer_of(reader, node.problem.prefill + node.text, cut, node.thinking)
    if answer is not None and not isinstance(answer, str):
        raise TypeError(f"read_answer must return a string or None, not {type(answer).__name__}: {answer!r:.100}")
    return answer


def trajectory(leaf: Node, reader: Reader) -> Trajectory:
    """Return the record of a leaf."""
    path, step_scores = leaf.path, leaf.step_scores
    if step_scores is None and path and all(node.is_scored for node in path):
        step_scores = tuple(node.score for node in path)  # of an outcome model, which scored each prefix
    answer, score = answer_at(leaf, reader), leaf.score if leaf.is_scored else None
    known = reader if isinstance(reader, AnswerReader) else None
    return Trajectory(leaf.problem, leaf.steps, step_scores, answer, score, known, leaf.thinking)


class Answers:
    """Answers that a search asks for while it runs, read as those of its result are.

    Args:
        read_answer: What `solve` was given.
        kind: That of the problem.
        vote: Says which are the same: they are given as one text, the first of them that was read.
    """

    def __init__(self, read_answer: Reader | None, kind: str | None, vote: Aggregator) -> None:
        self._reader = chosen_reader(read_answer, kind)
        self._groups = AnswerGroups(*joining_of(vote), equality_of(self._reader, kind))
        self._read: dict[Node, str | None] = {}

    def __call__(self, nodes: Sequence[Node]) -> list[str | None]:
        """Return the answer of each node."""
        for node in nodes:
            if node not in self._read:
                answer = answer_at(node, self._reader)
                self._read[node] = None if answer is None else self._groups.first(self._groups.add(answer))
        return [self._read[node] for node in nodes]


def voted(aggregator: Aggregator, trajectories: Sequence[Trajectory]) -> Trajectory:
    """Return the pick of `aggregator`; one that needs scores is shown the trajectories that have one, if any does.

    Raises:
        ValueError: If it picks something else than one of them.
    """
    shown = trajectories
    if aggregator.needs_scores:
        shown = tuple(t for t in trajectories if t.score is not None) or trajectories
    selected = aggregator.select(shown)
    if selected not in shown:
        raise ValueError(f"{aggregator!r}.select() must return one of the trajectories, not {selected!r:.100}")
    return selected


def step_to_dict(step: Step) -> dict[str, Any]:
    """Return the step as plain data; a log-probability or confidence that is not finite is not known."""
    row = {field.name: getattr(step, field.name) for field in fields(step)}
    return row | {name: finite(row[name]) for name in ("logprob", "confidence", "model_logprob")}


def finite(value: Any) -> Any:
    """Return plain data in which ``None`` stands for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def step_from_dict(row: Mapping[str, Any]) -> Step:
    """Return the `Step` that `step_to_dict` turned into `row`; JSON's lists become tuples again."""
    ends = tuple((text_end, id_end) for text_end, id_end in row["inner_ends"])
    return Step(**{**row, "token_ids": tuple(row["token_ids"]), "inner_ends": ends})


def _as_tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
