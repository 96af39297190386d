"""Logits processors between a model and its sampler: each row's own ids, and objects that keep state along a path.

Transformers' processors are called for a batch of rows that grow together. Rows of a search come and go, so that here
every row is processed alone: an object is given that row's ids ``[1, n]`` and scores ``[1, vocabulary]``, and what it
does depends on the row's path alone. Order and arithmetic are those of ``generate``: repetition penalty, allowed
tokens, the processors that were given; temperature and filters (the `TokenSampler`) come after them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .branch import Branch

Processor: TypeAlias = Callable[[Any, Any], Any]
"""From a row's ids ``[1, n]`` and scores ``[1, vocabulary]`` to scores: a ``transformers.LogitsProcessor``."""

Maker: TypeAlias = tuple[Callable[[], Processor], bool]
"""The maker of a path's processor, and whether that keeps state, so that it must be told of every token."""

_STATEFUL = ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor")  # of transformers


@dataclass(frozen=True)
class LogitsProcessing:
    """Everything that changes the logits of a row before a token is drawn.

    Attributes:
        repetition_penalty: Divides positive logits of tokens that are in the row already, prompt included, and
            multiplies negative ones; 1 leaves all as they are.
        logits_processor: Processors, functions of ids and scores, and functions without arguments that make a
            processor for one path.
        prefix_allowed_tokens_fn: Function of a batch number, which is 0, and a row's ids `[n]` to ids that may follow.
    """

    repetition_penalty: float = 1.0
    logits_processor: Sequence[Any] = ()
    prefix_allowed_tokens_fn: Callable[[int, Any], list[int]] | None = None
    _makers: list[Maker] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses what cannot be called, or copied for each path."""
        penalty = self.repetition_penalty
        if not isinstance(penalty, float | int) or not 0.0 < penalty < float("inf"):
            raise ValueError(f"repetition_penalty={penalty!r}: give a positive number (1 penalises nothing)")
        if not isinstance(self.logits_processor, list | tuple):  # LogitsProcessorList is a list
            raise TypeError(f"logits_processor={self.logits_processor!r}: give a list of processors")
        object.__setattr__(self, "logits_processor", tuple(self.logits_processor))
        if self.prefix_allowed_tokens_fn is not None and not callable(self.prefix_allowed_tokens_fn):
            raise TypeError(
                f"prefix_allowed_tokens_fn={self.prefix_allowed_tokens_fn!r}: give a function of batch_id and input_ids"
            )
        makers = [_maker(given) for given in self.logits_processor]
        if self.prefix_allowed_tokens_fn is not None:
            from transformers import PrefixConstrainedLogitsProcessor

            allowed: Processor = PrefixConstrainedLogitsProcessor(self.prefix_allowed_tokens_fn, 1)
            makers.insert(0, (lambda: allowed, False))
        object.__setattr__(self, "_makers", makers)

    def rows(self) -> ProcessedRows | None:
        """A fresh batch of rows; ``None`` if nothing changes logits."""
        changes = self.repetition_penalty != 1 or bool(self._makers)
        return ProcessedRows(float(self.repetition_penalty), self._makers) if changes else None


def _maker(given: Any) -> Maker:
    """Return the maker of a path's processor, and whether that keeps state.

    Functions and transformers' own processors keep none and serve all rows. Any other object is copied for each path.

    Raises:
        TypeError: If it is neither a processor nor a function that makes one, or an object that cannot be copied.
    """
    from transformers import LogitsProcessor, PreTrainedTokenizerBase

    if isinstance(given, type) or (not isinstance(given, LogitsProcessor) and _num_required(given) == 0):
        return partial(_made, given), True
    if not isinstance(given, LogitsProcessor) and _num_required(given) != 2:
        raise TypeError(
            f"logits_processor holds {given!r}: give LogitsProcessor objects of transformers, functions of input_ids "
            "and scores, or functions without arguments that make one for each path"
        )
    own = type(given).__module__.startswith("transformers.") and type(given).__name__ not in _STATEFUL
    if own or inspect.isroutine(given):
        return lambda: given, False
    # Models and tokenizers are read, never changed, and too large to copy.
    parts = getattr(given, "__dict__", {}).values()
    shared = {id(part): part for part in parts if isinstance(part, torch.nn.Module | PreTrainedTokenizerBase)}
    try:
        pristine = copy.deepcopy(given, dict(shared))
    except Exception as error:
        name = type(given).__name__
        raise TypeError(
            f"every path needs a {name} of its own, since it may keep state, and this one cannot be copied ({error}): "
            f"give a function that makes one, logits_processor=[lambda: {name}(...)]"
        ) from error
    return lambda: copy.deepcopy(pristine, dict(shared)), True


def _made(make: Callable[[], Any]) -> Processor:
    processor = make()
    if not callable(processor):
        raise TypeError(f"logits_processor: {make!r} made {processor!r}, which is no processor")
    made: Processor = processor
    return made


def _num_required(function: Any) -> int | None:
    """Number of positional arguments that a call must have; ``None`` if it cannot be called so."""
    if not callable(function):
        return None
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return None if any(p.kind is p.KEYWORD_ONLY for p in needed) else len(needed)


class ProcessedRows:
    """Rows that decode, each with its ids so far and its own processors.

    A processor that keeps state is called at every token of its path, as in one ``generate`` from the prompt: first
    with the prompt, then after each token, forced ones included. For what was sampled before (earlier steps of the
    path) it is called again, and what it makes of the scores is dropped.

    Attributes:
        needs_looks: True if it must be seen before each token which rows have ended.
    """

    def __init__(self, penalty: float, makers: Sequence[Maker]) -> None:
        self.needs_looks = bool(makers)  # a grammar cannot go on after its end
        self._penalty = penalty
        self._makers = makers
        self._ids = torch.zeros(0, 0, dtype=torch.long)  # `[rows, room]`; behind its own ids a row repeats its first
        self._lengths: list[int] = []
        self._next: tuple[Tensor, Tensor] | None = None  # rows, and their lengths, on the device
        self._seen: list[int] = []  # tokens of each row that its processors which keep state were called for
        self._processors: list[list[Processor]] = []
        self._prompts: list[str] = []

    def add(self, branches: Sequence[Branch], device: torch.device) -> None:
        """Adds rows for branches that have no tokens yet."""
        prefixes = [branch.prefix for branch in branches]
        room = max(max(map(len, prefixes)), self._ids.shape[1])
        new = torch.tensor([[*ids, *ids[:1] * (room - len(ids))] for ids in prefixes], device=device)
        self._ids = torch.cat([_widened(self._ids.to(device), room), new])
        self._lengths += map(len, prefixes)
        self._next = None
        self._seen += [len(branch.prompt) - 1 for branch in branches]
        self._processors += [[make() for make, _ in self._makers] for _ in branches]
        self._prompts += [branch.request.node.problem.prompt for branch in branches]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        self._ids = self._ids[torch.tensor(rows, dtype=torch.long, device=self._ids.device)]
        self._next = None
        for name in ("_lengths", "_seen", "_processors", "_prompts"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])

    def push(self, tokens: Tensor) -> None:
        """Puts one more token `[rows]` behind each row."""
        end = max(self._lengths)
        if end >= self._ids.shape[1]:
            self._ids = _widened(self._ids, end + 64)
        if self._next is None:
            device = self._ids.device
            self._next = torch.arange(len(tokens), device=device), torch.tensor(self._lengths, device=device)
        self._ids[self._next] = tokens
        self._next[1].add_(1)
        self._lengths = [length + 1 for length in self._lengths]

    def __call__(self, logits: Tensor) -> Tensor:
        """Processed scores, float32 `[rows, vocabulary]`; `logits` are left as they are.

        Raises:
            ValueError: If a row is left without a token.
        """
        scores = logits.to(torch.float32, copy=True)
        if self._penalty != 1.0:
            ids = self._ids[:, : max(self._lengths)]
            seen = scores.gather(1, ids)
            scores.scatter_(1, ids, torch.where(seen < 0, seen * self._penalty, seen / self._penalty))
        for row, processors in enumerate(self._processors):
            for (_, keeps_state), processor in zip(self._makers, processors, strict=True):
                ids = self._ids[row : row + 1, : self._lengths[row]]
                if keeps_state:
                    for length in range(self._seen[row] + 1, self._lengths[row]):
                        processor(ids[:, :length], torch.zeros_like(scores[row : row + 1]))
                scores[row : row + 1] = processor(ids, scores[row : row + 1])
            self._seen[row] = self._lengths[row]
        if self._makers and bool((empty := scores.amax(dim=-1).isneginf()).any()):
            prompt = self._prompts[int(empty.nonzero()[0])]
            raise ValueError(
                f"the logits processors leave no token that may come next, after the prompt {prompt[:80]!r}"
            )
        return scores


def _widened(ids: Tensor, room: int) -> Tensor:
    """`ids` with room for so many tokens, filled with each row's first."""
    if not len(ids):
        return ids.reshape(0, room)
    return torch.cat([ids, ids[:, :1].expand(-1, max(room - ids.shape[1], 0))], dim=1)
