"""Whole rows through a model's own forward and its own cache, in the fastest way that leaves every row as it is alone.

Rows of unequal length can share a batch only if they are padded, and many models see the padding: positions that count
it, windows and top-k selections that hold it, recurrent states that run over it. `plain_way` tries a padded batch once
for each kind of model, against forwards of single rows, and falls back to batches of equal length.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferscale._compat import cache_argument
from inferscale.flops.calibration import unwatched

FAILURES = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError)
"""Exceptions of a forward that a model cannot do."""


@dataclass(frozen=True)
class Way:
    """The way in which rows are run.

    Attributes:
        pads: True if rows of unequal length stand in one batch, padded on the left, with positions of their own; else
            rows are of equal length, and the model counts positions by itself.
        caches: True if the model's cache is kept between the tokens; else whole rows are read for each.
    """

    pads: bool
    caches: bool


_WAYS = (Way(True, True), Way(False, True), Way(False, False))


class PlainRows:
    """Rows that are read from whole prefixes, then token by token.

    Attributes:
        way: How; rows of equal length are not padded in any.
    """

    def __init__(self, model: Any, way: Way) -> None:
        self.way = way
        self._model = model
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = cache_argument(model)
        self._cache: Any = None
        self._ids = torch.empty(0)  # [rows, tokens], padding included
        self._mask = torch.empty(0)
        # Lengths at which the keys that are held were turned by other angles than those of the new token.
        self._stale = range(0)
        rope = changing_rope(model.config)
        if rope is not None:
            self._stale = range(rope[1] + 1, rope[1] + 2 if rope[0] == "longrope" else sys.maxsize)
        # Dynamic angles of a longer sequence stay until these are reset.
        self._angles = list(model.modules()) if rope is not None and rope[0] == "dynamic" else []

    def start(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Logits `[rows, vocabulary]` after each prefix."""
        width = max(map(len, prefixes))
        ids = [[0] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
        mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
        self._ids = torch.tensor(ids, device=self._model.device)
        self._mask = torch.tensor(mask, device=self._model.device)
        self._cache = None
        return self._forward(self._ids)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        if self._ids.shape[1] in self._stale:
            self._cache = None
        return self._forward(self._ids if self._cache is None else tokens[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        index = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        self._mask, self._ids = self._mask[index], self._ids[index]
        if not rows:
            self._cache = None
        elif self._cache is not None:
            self._cache.reorder_cache(index)

    def _forward(self, ids: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        if self.way.pads and "position_ids" in self._parameters:
            positions = self._mask.cumsum(dim=1) - 1
            options["position_ids"] = positions[:, -ids.shape[1] :].clamp(min=0)
        if "logits_to_keep" in self._parameters:
            options["logits_to_keep"] = 1
        if self._cache is not None:
            options[self._cache_argument] = self._cache
        forget_longer_rows(self._angles)
        output = self._model(input_ids=ids, attention_mask=self._mask, use_cache=self.way.caches, **options)
        forget_longer_rows(self._angles)
        cache = output.get(self._cache_argument) if self.way.caches else None
        self._cache = cache if hasattr(cache, "reorder_cache") else None
        logits: Tensor = output.logits[:, -1]
        return logits


def alike_in_rope(config: Any, length: int) -> int:
    """A number that is equal for lengths whose rows are turned by the same angles in any batch of theirs."""
    rope = changing_rope(config)
    if rope is None or length <= rope[1]:
        return 0
    return 1 if rope[0] == "longrope" else length


def forget_longer_rows(modules: Iterable[Any]) -> None:
    """Makes dynamic rotary embeddings compute their angles for the next length, not for the longest so far."""
    for module in modules:
        for name in vars(module):
            if name.endswith("max_seq_len_cached"):
                setattr(module, name, 0)


_RANGE = re.compile(r"window|chunk|index_topk|index_block|block_size|local_att|budget")
_SELECTION = re.compile(r"index_topk|budget|keep_window")
_NO_RANGE = re.compile(r"layers|pattern|experts|multiple|num_|moe|logits")
_LEAST_RANGE = 5  # shorter ones are passed by the rows of every probe


def ranges(config: Any, names: re.Pattern[str] = _RANGE) -> tuple[int, ...]:
    """The lengths, ascending, beyond which a model may compute otherwise: windows, chunks, selections, rotary ranges.

    What holds for the short rows of a probe need not hold beyond them.
    """

    def named(values: Mapping[str, Any]) -> Iterator[int]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from named(value)
            elif isinstance(value, int) and value >= _LEAST_RANGE and names.search(str(name)):
                yield from () if _NO_RANGE.search(str(name)) else (value,)

    text, rope = text_config(config), changing_rope(config)
    found = set(named(text.to_dict() if hasattr(text, "to_dict") else vars(text)))
    return tuple(sorted(found | (set() if rope is None else {rope[1]})))


def used_ranges(config: Any) -> tuple[int, ...]:
    """The `ranges` without those windows of a configuration that none of its layers uses."""
    text = text_config(config)
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or any("sliding" in str(kind) or "chunked" in str(kind) for kind in kinds)
    if slides and getattr(text, "use_sliding_window", True):
        return ranges(config)
    unused = {getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")}
    return tuple(r for r in ranges(config) if r not in unused)


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    try:
        return config.get_text_config(decoder=True)
    except (AttributeError, ValueError):  # no such part, or several
        return config


def changing_rope(config: Any) -> tuple[str, int] | None:
    """The kind of rotary embedding whose angles depend on the sequence's length, and the length that it begins after.

    ``"longrope"`` takes other angles for every position of a longer sequence, ``"dynamic"`` others for each length.
    """
    text = text_config(config)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for part in (rope, *rope.values()):  # some name one for each kind of layer
        kind = str(part.get("rope_type", part.get("type", ""))) if isinstance(part, Mapping) else ""
        if kind in ("dynamic", "longrope"):
            original = part.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            return kind, int(original or text.max_position_embeddings)
    return None


_known: dict[tuple[Any, ...], Way] = {}


def kind_of(model: Any) -> tuple[Any, ...] | None:
    """Facts that decide how a model computes: class, configuration, dtype and device; ``None`` if not known."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return None
    attention = getattr(config, "_attn_implementation", None)
    return type(model), config.to_json_string(), model.dtype, model.device.type, attention


def plain_way(model: Any, beyond: int = 0) -> Way:
    """The fastest way that gives every row of a batch what it gets alone; found once for each kind of model.

    The model must be in evaluation mode.

    Args:
        model: The model.
        beyond: The longest of the model's `ranges` that rows pass; 0 if they pass none.
    """
    kind = kind_of(model)
    way = None if kind is None else _known.get((*kind, beyond))
    if way is None:
        with torch.inference_mode(), perturbed(model):
            way = unwatched(lambda: _find_way(model, beyond))
        if kind is not None:
            _known[(*kind, beyond)] = way
    return way


def _find_way(model: Any, beyond: int) -> Way:
    """Tries the ways on rows within and beyond a range, of which one ends; the last way needs no proof."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = [(7919 * (i + 1)) % size for i in range(beyond + 12)]
    references: dict[tuple[int, ...], Tensor] = {}

    def error(row: Sequence[int], logits: Tensor) -> float:
        """The largest difference from a forward of the row alone, in units of what rounding may make."""
        if tuple(row) not in references:
            references[tuple(row)] = whole_logits(model, row)
        return difference(logits, references[tuple(row)], model)

    # Keys that are equally strong are chosen by their place, which padding changes; random keys would not show it.
    chooses = beyond >= min(ranges(model.config, _SELECTION), default=sys.maxsize)
    for way in _WAYS[1 if chooses else 0 : -1]:
        # Of unequal lengths: one beyond the range, one within it that the padding takes beyond, and one about to pass.
        rows = [ids[: beyond + 9], ids[4:7], ids[3 : max(beyond, 5) + 2]]
        if not way.pads:
            rows = [ids[: beyond + 5], ids[6 : beyond + 11]]
        try:
            run = PlainRows(model, way)
            run.start(rows)
            tokens = torch.tensor([ids[-1], ids[-2], ids[-3]][: len(rows)], device=model.device)
            logits = run.step(tokens)
            worst = error([*rows[0], ids[-1]], logits[0])
            left = list(range(1, len(rows)))
            run.keep(left)
            logits = run.step(tokens[: len(left)])
            for place, row in enumerate(left):
                worst = max(worst, error([*rows[row], ids[-1 - row], ids[-1 - place]], logits[place]))
        except FAILURES:
            continue
        if worst <= 1:
            return way
    return _WAYS[-1]


def whole_logits(model: Any, row: Sequence[int]) -> Tensor:
    """Logits `[vocabulary]` after a row, in a forward of it alone without a cache: what every other way must give."""
    ids = torch.tensor([list(row)], device=model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
    return logits


def difference(found: Tensor, expected: Tensor, model: Any) -> float:
    """The largest difference of logits over what the roundings of `model` may make of such numbers; NaN is infinite.

    About a hundred roundings in eight layers or fewer; beyond, they add up as the root of the layers does.
    """
    layers = getattr(text_config(model.config), "num_hidden_layers", None) or 8
    eps, expected = torch.finfo(model.dtype).eps, expected.float()
    spread = float(expected.std(correction=0)) or 1.0
    allowed = max(1e-3, 16 * eps * max(1.0, math.sqrt(layers / 8))) * spread
    # A head of one or two outputs may give large numbers that lie close together: they are rounded as large ones are.
    allowed += 8 * eps * float(expected.abs().max())
    worst = float((found.float() - expected).abs().max()) / allowed
    return worst if worst == worst else float("inf")


_LARGEST_PERTURBED = 1 << 16  # numbers


@contextmanager
def perturbed(model: Any) -> Iterator[None]:
    """Small parameters and buffers that are equal throughout are not, inside.

    In a model that was not trained, masks, biases and gates are zero, and a probe would not see that they are left out.
    """
    generator = torch.Generator().manual_seed(0)
    before: list[tuple[Tensor, Tensor]] = []
    for tensor in (*model.parameters(), *model.buffers()):
        tensor = tensor.data  # a view without history, so that a backward pass that waits is not disturbed
        ordinary = tensor.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        ordinary = ordinary and type(tensor) is Tensor  # torchao's packed weights are tensors of their own kind
        if not ordinary or tensor.is_meta or not 0 < tensor.numel() <= _LARGEST_PERTURBED:
            continue
        if tensor.min() == tensor.max():
            before.append((tensor, tensor.clone()))
            tensor += (0.2 * torch.randn(tensor.shape, generator=generator)).to(tensor)
    try:
        yield
    finally:
        for tensor, values in before:
            tensor.copy_(values)
