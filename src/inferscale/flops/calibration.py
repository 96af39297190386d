"""Closed forms of live models: from the configuration where it fits, or else from a few forwards counted op by op.

One row of a decoder costs ``A·s + B·s·(s + past) + C·nl + D·past`` with s new tokens and nl logits kept: matrices,
attention, head, and (latent attention) the expansion of the cache. Four forwards give the four constants, a fifth
decides whether the form holds. One of an encoder costs ``A·s + B·s² + R``, and every forward ``F + G·s`` whatever its
rows. No key of the configuration is guessed.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from inferscale._compat import CACHE_NAMES, cache_argument, evaluating, without_wrapper

from .ops import ExactMode, OpFlops
from .spec import (
    SPARSE,
    AttentionGroup,
    HeadKind,
    ModelSpec,
    UnknownArchitectureError,
    forward_flops,
    head_of_class,
    model_spec,
)

T = TypeVar("T")

_LONGEST = 8  # tokens in the longest probe
_ADVICE = 'count it op by op with FlopCounter(mode="exact")'

is_calibrating: ContextVar[bool] = ContextVar("inferscale_flops_is_calibrating", default=False)
"""True where forwards are probes, which no counter counts or misses."""


def unwatched(probe: Callable[[], T]) -> T:
    """The result of `probe`, whose forwards no counter counts or misses."""
    context = Context()  # in it no counter is active
    context.run(is_calibrating.set, True)
    return context.run(probe)


class CalibrationError(UnknownArchitectureError):
    """Failure to calibrate: a model cannot be run on its own, or no closed form describes what it costs.

    Example:
        >>> import torch
        >>> from inferscale.flops import calibrate
        >>> calibrate(torch.nn.Linear(4, 4))
        Traceback (most recent call last):
            ...
        inferscale.flops.calibration.CalibrationError: Linear cannot be calibrated: a forward of 4 tokens fails ...
    """


def language_model(model: Any) -> tuple[nn.Module, tuple[nn.Linear, ...]]:
    """The language model in `model` (itself, or what its attribute ``model`` holds), and the layers beside it.

    Generators, reward models and wrappers of these hold a model as ``.model``; a module that wraps one may run linear
    layers of its own beside it.

    Raises:
        TypeError: If there is no torch module.
    """
    found = model
    while found is not None and not isinstance(found, nn.Module):
        found = getattr(found, "model", None)
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"FlopCounter watches torch modules, and generators and reward models that hold one as `.model`; got "
            f"{type(model).__name__}. For a served model, count with counter.add(config, prompt=..., new=...)"
        )
    # the wrappers of torch.compile and of peft run the hooks of what they wrap
    module: nn.Module = without_wrapper(getattr(found, "_orig_mod", found))
    inner = getattr(module, "model", None)
    if is_transformers_model(module) or not (isinstance(inner, nn.Module) and is_transformers_model(inner)):
        return module, ()
    inside = set(map(id, inner.modules()))
    return inner, tuple(part for part in module.modules() if isinstance(part, nn.Linear) and id(part) not in inside)


def is_transformers_model(module: nn.Module) -> bool:
    """True for a whole model of transformers, or for the body of one."""
    return hasattr(module, "base_model_prefix") and hasattr(module, "get_output_embeddings")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module in a data-parallel wrapper, or the module itself."""
    is_wrapper = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = without_wrapper(module.module) if is_wrapper else module
    assert isinstance(inner, nn.Module)
    return inner


def closed_form(model: Any) -> ModelSpec:
    """The closed form of a live model: from its configuration, or calibrated if there is none or it does not fit.

    A configuration does not fit where the model has other matrices than its family: adapters, added layers, heads.

    Args:
        model: A torch module, or what holds one as ``.model``.

    Raises:
        TypeError: If there is no torch module.
        UnknownArchitectureError: If there is none, and calibration failed.

    Example:
        >>> from inferscale import zoo
        >>> from inferscale.flops import closed_form
        >>> spec = closed_form(zoo.load("policy-xs")[0])
        >>> spec.family, spec.parameters, spec.num_layers
        ('llama', 100944, 3)
    """
    module = unwrapped(language_model(model)[0])
    return configured_form(module) or calibrate(module)


def configured_form(module: nn.Module) -> ModelSpec | None:
    """The closed form of a live model's configuration, if there is one and it has the model's matrices."""
    config = getattr(module, "config", None)
    if config is None:
        return None
    try:
        spec = model_spec(config, head=_head_kind(module))
    except UnknownArchitectureError:
        return None
    # Adapters, added layers and other heads show in the linear layers. The matrices of other towers, and of stacked
    # experts, cannot be told apart so easily: there the configuration is believed.
    if getattr(config, "text_config", None) is None and spec.family not in SPARSE:
        weights = 0
        for part in module.modules():
            sizes = getattr(part, "in_features", None), getattr(part, "out_features", None)
            if isinstance(sizes[0], int) and isinstance(sizes[1], int):  # layers of packed weights are no nn.Linear
                weights += sizes[0] * sizes[1]
            elif type(part).__name__ == "Conv1D":  # GPT-2's linear layer
                weights += int(part.nx) * int(part.nf)  # type: ignore[arg-type]
        if weights != spec.active_weights:
            return None
    if getattr(config, "quantization_config", None) is not None:
        return spec  # packed weights: their number of elements is not the number of parameters
    return dataclasses.replace(spec, parameters=sum(parameter.numel() for parameter in module.parameters()))


def _head_kind(module: nn.Module) -> HeadKind:
    """The head of a live model, by the first of its classes whose name tells."""
    names = [kind.__name__ for kind in type(module).__mro__]
    for name in names:
        if "For" in name or name.endswith(("LMHeadModel", "WithLMHead")):
            return head_of_class(name)
    return head_of_class(next((name for name in names if name.endswith("Model")), names[0]))


def _is_language_model(module: nn.Module) -> bool:
    try:
        return _head_kind(module) == "lm"
    except UnknownArchitectureError:
        return False


def calibrate(model: Any) -> ModelSpec:
    """The closed form of a model, measured with a few forwards of some tokens.

    A model that gives keys and values back is a decoder. So is a classifier whose body does: its head is what it costs
    beyond the body. Any other is an encoder.

    Shapes (d, L, heads) stay unknown, so conventions that need them cannot be used with it. Windows, and the sizes of
    keys, values and states, are taken from a decoder's own cache; the windows of an encoder from the configuration.

    Args:
        model: A live model (``input_ids`` in; of decoders a cache in and out), or a transformers configuration, whose
            causal language model is then built without memory for its weights.

    Raises:
        CalibrationError: If the model cannot be run so, or no form describes what it costs.

    Example:
        >>> from transformers import OPTConfig, OPTForCausalLM
        >>> from inferscale.flops import calibrate, forward_flops
        >>> config = OPTConfig(hidden_size=32, ffn_dim=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=100)
        >>> spec = calibrate(OPTForCausalLM(config))  # a family without a closed form of its own
        >>> forward_flops(spec, new=1, past=500).causal
        167424
    """
    if not isinstance(model, nn.Module):
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            # there, grouped products of experts know no other numbers
            model = AutoModelForCausalLM.from_config(model, dtype=torch.bfloat16)
    model = without_wrapper(model)
    with evaluating(model), torch.no_grad():
        return unwatched(lambda: _calibrated(model))


def _calibrated(model: nn.Module) -> ModelSpec:
    if _returns_cache(model):
        return _decoder_form(model)
    body = getattr(model, "base_model", model)
    if body is model or not _returns_cache(body):
        return _encoder_form(model)
    head, rest = divmod(_count(model, 1, _LONGEST) - _count(body, 1, _LONGEST), _LONGEST)
    if rest:
        raise CalibrationError(f"{type(model).__name__} has a head that does not run at every position; {_ADVICE}")
    return dataclasses.replace(
        configured_form(body) or _decoder_form(body),
        head=head,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _returns_cache(model: nn.Module) -> bool:
    """True if the model takes a cache, and a forward gives one back."""
    parameters = inspect.signature(model.forward).parameters
    if not any(name in parameters for name in (*CACHE_NAMES, "cache_params")):
        return False
    name = cache_argument(model)
    ids = torch.arange(1, 3, device=next(model.parameters()).device)[None]
    try:
        with _failing_as_calibration(model, 2):
            return getattr(model(input_ids=ids, **{name: None}, use_cache=True), name, None) is not None
    except CalibrationError:  # it may run without one
        return False


def _decoder_form(model: nn.Module) -> ModelSpec:
    """The form out of four constants where it is exact, or else out of single steps, or of whole forwards."""
    try:
        (linear, pair, head, cached), windows, kept = _solve(model)
    except CalibrationError as first:
        try:
            return _stepwise_form(model)
        except CalibrationError:
            try:  # what fails with a cache
                return _encoder_form(model)
            except CalibrationError:
                raise first from None
    window = windows[0] if windows else None
    groups = (AttentionGroup(pair, 0, window),) if pair else ()
    return _keeping(_measured_spec(model, linear, head, groups, cached=cached), *kept)


def _measured_spec(
    model: nn.Module, linear: int, head: int, attention: tuple[AttentionGroup, ...], **others: Any
) -> ModelSpec:
    return ModelSpec(
        family=str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)),
        linear=linear,
        head=head,
        attention=attention,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        active_weights=(linear + head) // 2,
        **others,
    )


class _Kept(NamedTuple):
    """What a layer's cache holds of one row: its window, and numbers in the model's dtype and in float32 beside it."""

    window: int | None
    narrow: int
    wide: int


def _kept(model: nn.Module, cache: Any) -> list[_Kept]:
    """What each layer of a cache holds."""
    dtype = getattr(model, "dtype", None)

    def tensors(held: Any) -> Iterator[torch.Tensor]:
        if isinstance(held, torch.Tensor):
            yield held
        elif isinstance(held, dict | list | tuple):
            for each in held.values() if isinstance(held, dict) else held:
                yield from tensors(each)

    found = []
    for layer in getattr(cache, "layers", None) or [cache]:
        own = [each for each in tensors(getattr(layer, "__dict__", layer)) if each.is_floating_point()]
        wide = sum(each.numel() for each in own if each.dtype == torch.float32 != dtype)
        narrow = sum(each.numel() for each in own) - wide
        found.append(_Kept(getattr(layer, "sliding_window", None), narrow, wide))
    return found


def _keeping(spec: ModelSpec, few: int, before: Sequence[_Kept], many: int, after: Sequence[_Kept]) -> ModelSpec:
    """The form with the keys, values and states that the caches of `few` and of `many` tokens show.

    Keys and values grow with the text, until a window is full; states do not. Of a cache that is neither, or that shows
    nothing, the states are ``None``.
    """
    groups = {group.window: group for group in spec.attention}
    narrow = 0
    for (window, least, wide), (_, most, wider) in zip(before, after, strict=True):
        if window is None:
            width, rest = divmod(most - least, many - few)
            own = least - width * few
        else:  # of which nothing may be left to grow
            filled = [min(tokens, max(window - 1, 1)) for tokens in (few, many)]
            width, own = least // filled[0], 0
            rest = abs(least - width * filled[0]) + abs(most - width * filled[1])
        if rest or min(width, own) < 0 or wide != wider:
            return dataclasses.replace(spec, states=None)
        narrow += own
        group = groups.get(window) or AttentionGroup(0, 0, window)
        groups[window] = dataclasses.replace(group, kv_width=group.kv_width + width)
    wide = sum(each.wide for each in before)
    kept = tuple(group for group in groups.values() if group.per_pair or group.kv_width)
    is_seen = any(each.narrow or each.wide for each in before)
    return dataclasses.replace(spec, attention=kept, states=(narrow, wide) if is_seen else None)


_FAR = 24  # tokens that the last checks of a form stand after
_STEPS = range(_FAR, _FAR + 4)
_SCANS = (2, 4, 8, 16, 64, 256, 512)  # tokens of the forwards that are measured as a whole


def _stepwise_form(model: nn.Module) -> ModelSpec:
    """The form of a model with recurrent layers, convolutions, or windows of several kinds, out of single new tokens.

    One token after p others costs ``g(p) = A + C + sum over windows w of B_w * min(p + 1, w)``: a recurrent layer does
    the same for every token. The slope of g falls by B_w where the window w is full. Where g is not such a function
    (layers that compress every few tokens), A is the mean over a few steps. A part of the slope may be the expansion
    of a latent cache, which is done once for all new tokens: two of them tell it from the pairs, which double. What
    else a forward of several tokens runs beyond its steps is measured at some lengths.

    A copy without weights is measured, if there can be one: then it costs no time that grows with the model's width.
    """
    config: Any = getattr(model, "config", None)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    kind = (type(model), config.to_json_string() if hasattr(config, "to_json_string") else id(model), numbers)
    if kind not in _forms:
        twin = _without_weights(model)
        try:
            found = None if twin is None else _stepwise(twin, model, _SCANS)
        except CalibrationError:  # what cannot run without numbers, such as loops over chosen experts
            found = None
        _forms[kind] = found or _stepwise(model, model, _SCANS[:4])
    return _forms[kind]


_forms: dict[tuple[Any, ...], ModelSpec] = {}  # by class, configuration and size


def _stepwise(model: nn.Module, owner: nn.Module, lengths: Sequence[int]) -> ModelSpec:
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    head = (_measure(model, 4, 0, 4)[0] - _measure(model, 4, 0, 1)[0]) // 3 if keeps_logits else 0

    costs: dict[int, int] = {}

    def step(past: int) -> int:
        if past not in costs:
            costs[past] = _measure(model, 1, past, 1)[0]
        return costs[past]

    layers = getattr(_measure(model, 2, 0, 1)[1], "layers", ())
    found = {int(layer.sliding_window) for layer in layers if getattr(layer, "sliding_window", None) is not None}
    windows = sorted(w for w in found if model is not owner or w <= lengths[-1])
    slope = first_slope = step(3) - step(2)
    groups: list[AttentionGroup] = []
    for window in windows:
        beyond = step(window + 2) - step(window + 1)
        groups.append(AttentionGroup(slope - beyond, 0, window))
        slope = beyond
    groups = [group for group in (*groups, AttentionGroup(slope, 0)) if group.per_pair]
    pairs = {past: sum(g.per_pair * min(past + 1, g.window or past + 1) for g in groups) for past in _STEPS}
    linear = sum(step(past) - pairs[past] - head for past in _STEPS) // len(_STEPS)
    early = linear + head + sum(g.per_pair * min(3, g.window or 3) for g in groups)
    if linear <= 0 or any(group.per_pair < 0 for group in groups) or abs(early - step(2)) > 0.1 * step(2):
        raise CalibrationError(
            f"one token after 2, 3 and {max(_STEPS)} others costs {type(model).__name__} {step(2):,}, {step(3):,} and "
            f"{step(max(_STEPS)):,} FLOPs, which no form describes; {_ADVICE}"
        )
    # Another cached token costs one new token B + D, and two of them 2·B + D.
    cached = max(2 * first_slope - (_measure(model, 2, 3, 1)[0] - _measure(model, 2, 2, 1)[0]), 0)
    if groups and groups[-1].window is None:
        cached = min(cached, groups[-1].per_pair)
        groups[-1] = dataclasses.replace(groups[-1], per_pair=groups[-1].per_pair - cached)
        groups, linear = [group for group in groups if group.per_pair], linear + cached
    else:
        cached = 0
    spec = _measured_spec(owner, linear, head, tuple(groups), cached=cached)
    whole = {n: _measure(model, n, 0, 1) for n in lengths}
    scan = tuple((n, count - forward_flops(spec, n, logits=1).full) for n, (count, _) in whole.items())
    spec = dataclasses.replace(spec, scan=scan if any(extra for _, extra in scan) else ())
    return _keeping(spec, 8, _kept(model, whole[8][1]), 16, _kept(model, whole[16][1]))


def _without_weights(model: nn.Module) -> nn.Module | None:
    """A copy on the meta device; ``None`` if the configuration does not make a model with the same parameters."""
    make, config = getattr(type(model), "_from_config", None), getattr(model, "config", None)
    if make is None or config is None:
        return None
    try:
        with torch.device("meta"):
            twin = make(copy.deepcopy(config), dtype=torch.bfloat16)  # grouped products of experts know no others there
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError):
        return None
    shapes = ({name: p.shape for name, p in part.named_parameters()} for part in (model, twin))
    return twin.eval() if next(shapes) == next(shapes) else None


def _encoder_form(model: nn.Module) -> ModelSpec:
    """The form of an encoder, ``f(b, s) = b·(A·s + B·s² + R) + F + G·s`` for b rows of s tokens.

    What a second row adds gives A, B and R out of three lengths, the rest F and G; f(3, 5) is the check.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "attention_type", None) == "block_sparse":  # BigBird attends to all of a short text alone
        raise CalibrationError(f"{type(model).__name__} attends to blocks of long texts; {_ADVICE}")
    lengths = (4, 6, 8)
    causal = _is_language_model(model)  # one without a cache (GPT, XLM) is counted as if it had one
    parameters = inspect.signature(model.forward).parameters
    keep: dict[str, Any] = {"use_cache": False} if causal and "use_cache" in parameters else {}
    head = 0
    if causal and "logits_to_keep" in parameters:
        keep["logits_to_keep"] = 1
        head = (_forward(model, 1, 4, {**keep, "logits_to_keep": 4})[0] - _forward(model, 1, 4, keep)[0]) // 3
    once = [_forward(model, 1, length, keep)[0] for length in lengths]
    added = [_forward(model, 2, length, keep)[0] - first for length, first in zip(lengths, once, strict=True)]
    pair = (added[2] - 2 * added[1] + added[0]) // 8
    linear = (added[2] - added[0] - 48 * pair) // 4
    row = added[0] - 4 * linear - 16 * pair
    position = (once[2] - added[2] - once[0] + added[0]) // 4
    forward = once[0] - added[0] - 4 * position
    predicted, check = 3 * (5 * linear + 25 * pair + row) + forward + 5 * position, _forward(model, 3, 5, keep)[0]
    if min(linear, pair, row, position, forward) < 0 or linear == 0 or predicted != check:
        raise CalibrationError(
            f"{type(model).__name__} is no decoder, and does not cost b·(A·s + B·s² + R) + F + G·s: 3 rows of 5 tokens "
            f"should be {predicted:,} FLOPs and were {check:,}; {_ADVICE}"
        )
    kinds = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    local = pair * sum(kinds) // len(kinds) if kinds else 0
    window = int(config.sliding_window) if local else None
    if window and not causal:
        window = 2 * window + 1  # half of it on either side, and the token itself
    groups = (AttentionGroup(local, 0, window, causal), AttentionGroup(pair - local, 0, None, causal))
    matrices = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    spec = ModelSpec(
        family=str(getattr(config, "model_type", type(model).__name__)),
        linear=linear,
        head=head,
        attention=tuple(group for group in groups if group.per_pair),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        active_weights=matrices,
        per_row=row - head,
        per_forward=forward,
        per_position=position,
        states=None if causal else (0, 0),
    )
    if not causal:
        return spec
    # Attention in chunks of its own (Reformer) shows beyond the probes.
    longer = [(n, _forward(model, 1, n, keep)[0] - forward_flops(spec, n, logits=1).full) for n in (8, 16, 32, 64)]
    return dataclasses.replace(spec, scan=tuple(longer)) if any(extra for _, extra in longer) else spec


def _solve(
    model: nn.Module,
) -> tuple[tuple[int, int, int, int], list[int | None], tuple[int, list[_Kept], int, list[_Kept]]]:
    """The constants A, B, C and D, checked by a fifth forward, the window of each layer of the cache, what it holds.

    With f(s, past, nl) the FLOPs of one row, the four probes are::

        f(4, 0, 4) =  4·A +  16·B + 4·C            f(8, 0, 8) = 8·A + 64·B + 8·C
        f(8, 0, 1) =  8·A +  64·B +   C            f(2, 6, 2) = 2·A + 16·B + 2·C + 6·D

    so that C comes from two that differ in the logits alone, B from two of which one is twice as long, and the rest by
    insertion. A model that always computes all logits has none kept apart: its head is a part of A, and C is 0.
    """
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    first, few = _measure(model, 4, 0, 4)
    second, many = _measure(model, _LONGEST, 0, _LONGEST)
    third = _measure(model, _LONGEST, 0, 1)[0] if keeps_logits else second
    fourth = _measure(model, 2, 6, 2)[0]
    check, cache = _measure(model, 5, 3, 5)
    windows = [getattr(layer, "sliding_window", None) for layer in getattr(cache, "layers", ())]
    if len(set(windows)) > 1 or any(window is not None and window < _LONGEST for window in windows):
        raise CalibrationError(f"{type(model).__name__} has windows that short probes do not tell apart; {_ADVICE}")
    head = (second - third) // 7
    pair = (second - 2 * first) // 32
    linear = (first - 16 * pair) // 4 - head
    cached = (fourth - 2 * linear - 16 * pair - 2 * head) // 6
    predicted = 5 * linear + 40 * pair + 5 * head + 3 * cached
    if min(linear, pair, head, cached) < 0 or linear == 0 or predicted != check:
        raise CalibrationError(
            f"{type(model).__name__} does not cost A·s + B·s·(s + past) + C·logits + D·past: 5 tokens on a cache of 3 "
            f"should be {predicted:,} FLOPs and were {check:,}; {_ADVICE}"
        )
    # Far beyond the probes: layers that choose among keys, or compress them, differ there.
    seen = min(_FAR + 1, windows[0] or _FAR + 1) if windows else _FAR + 1
    far, count = linear + pair * seen + head + cached * _FAR, _measure(model, 1, _FAR, 1)[0]
    if far != count:
        raise CalibrationError(
            f"one token after {_FAR} others should cost {type(model).__name__} {far:,} FLOPs and cost {count:,}; "
            f"{_ADVICE}"
        )
    return (linear, pair, head, cached), windows, (4, _kept(model, few), _LONGEST, _kept(model, many))


def _measure(model: nn.Module, new: int, past: int, kept: int) -> tuple[int, Any]:
    """FLOPs of `new` tokens on a cache of `past` with `kept` logits, and the cache after them."""
    name = cache_argument(model)
    options: dict[str, Any] = {name: None, "use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = kept
    if past:
        with _failing_as_calibration(model, past):
            options[name] = getattr(model(input_ids=_probe_ids(model, 1, past), **options), name)
    total, output = _forward(model, 1, new, options)
    return total, getattr(output, name, None)


def _probe_ids(model: nn.Module, rows: int, length: int) -> torch.Tensor:
    return torch.arange(length, device=next(model.parameters()).device).remainder(40).add(1).expand(rows, length)


def _count(model: nn.Module, rows: int, length: int) -> int:
    """FLOPs of a forward of `rows` texts of `length` tokens that gives nothing back but its outputs."""
    return _forward(model, rows, length, {})[0]


def _forward(model: nn.Module, rows: int, length: int, options: dict[str, Any]) -> tuple[int, Any]:
    """FLOPs and output of one forward.

    Raises:
        CalibrationError: If it fails, or runs an operator that has no formula.
    """
    total, unknown = 0, set()

    def record(operator: Any, flops: OpFlops | None) -> None:
        nonlocal total
        if flops is None:
            unknown.add(str(operator))
        else:
            total += flops.full

    with _failing_as_calibration(model, length), ExactMode(record):
        output = model(input_ids=_probe_ids(model, rows, length), **options)
    if unknown:
        raise CalibrationError(
            f"{type(model).__name__} runs {', '.join(sorted(unknown))}, which has no formula: give it one with "
            f"inferscale.flops.register_flop_formula and calibrate again, or {_ADVICE}"
        )
    return total, output


@contextmanager
def _failing_as_calibration(model: nn.Module, length: int) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{type(model).__name__} cannot be calibrated: a forward of {length} tokens fails "
            f"({type(error).__name__}: {error}); {_ADVICE}"
        ) from error
