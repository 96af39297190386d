"""From what the user passed to what is watched: labels, modules and closed forms."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from inferscale.base import Generator, RewardModel

from .calibration import calibrate
from .config import SPARSE, UnknownArchitectureError
from .families import HeadKind, head_of_class, model_spec
from .spec import ModelSpec
from .targets import Target, target_of, unwrap


def label_models(models: Sequence[Any], labelled: Mapping[str, Any]) -> dict[str, Target]:
    """What to watch by label; models without one are called after what they are.

    Raises:
        TypeError: If something is not a model.
        ValueError: If a model is given twice, or is a part of another one.
    """
    named: dict[str, Any] = dict(labelled)
    for model in models:
        base = _default_label(model)
        labels = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        named[next(label for label in labels if label not in named)] = model
    targets = {label: target_of(model) for label, model in named.items()}
    for label, target in targets.items():
        for other, part in targets.items():
            if label != other and any(part.module is inner for inner in target.module.modules()):
                raise ValueError(f"{other!r} is {label!r} itself or a part of it: watch one of the two")
    return targets


def _default_label(model: Any) -> str:
    if isinstance(model, Generator):
        return "generator"
    return "reward" if isinstance(model, RewardModel) else "model"


def forms_of(
    targets: Mapping[str, Target],
    exact: bool,
    specs: Mapping[str, ModelSpec] | None,
    nominal_parameters: Mapping[str, float] | None,
) -> dict[str, ModelSpec | None]:
    """The closed form of each watched model, by label.

    Args:
        targets: What is watched.
        exact: Whether a model may do without: it is counted op by op.
        specs: Closed forms in the place of those found here.
        nominal_parameters: Sizes in the models' names.

    Raises:
        UnknownArchitectureError: If a model has no closed form, and calibration failed.
        ValueError: If an option is for a model that is not watched.
    """
    given, nominal = dict(specs or {}), dict(nominal_parameters or {})
    for name, option in (("specs", given), ("nominal_parameters", nominal)):
        unknown = set(option) - set(targets)
        if unknown:
            raise ValueError(f"{name} names {sorted(unknown)}, and the watched models are {sorted(targets)}")
    find = known_form if exact else closed_form
    forms = {label: given.get(label) or find(target.module) for label, target in targets.items()}
    for label, size in nominal.items():
        spec = forms[label]
        if spec is not None:
            forms[label] = dataclasses.replace(spec, nominal_parameters=int(size))
    return forms


def closed_form(model: Any) -> ModelSpec:
    """The closed form of a live model: from its configuration, or calibrated if there is none or it does not fit.

    A configuration does not fit where the model has other matrices than its family: adapters, added layers, heads.

    Args:
        model: A torch module, or what holds one as ``.model``.

    Raises:
        UnknownArchitectureError: If there is none, and calibration failed.
    """
    module = target_of(model).module
    return known_form(module) or calibrate(unwrap(module))


def known_form(module: nn.Module) -> ModelSpec | None:
    """The closed form of a live model's configuration, if there is one and it has the model's matrices."""
    inner = unwrap(module)
    config = getattr(inner, "config", None)
    if config is None:
        return None
    try:
        spec = model_spec(config, head=_head_kind(inner))
    except UnknownArchitectureError:
        return None
    # The matrices of other towers, and of stacked experts, cannot be told apart so easily.
    is_simple = getattr(config, "text_config", None) is None and spec.family not in SPARSE
    if is_simple and _matrix_flops(inner) != spec.linear + spec.head:
        return None
    if getattr(config, "quantization_config", None) is not None:
        return spec  # packed weights: their number of elements is not the number of parameters
    return dataclasses.replace(spec, parameters=sum(parameter.numel() for parameter in inner.parameters()))


def _head_kind(module: nn.Module) -> HeadKind:
    """The head of a live model, by the first of its classes whose name tells."""
    names = [kind.__name__ for kind in type(module).__mro__]
    for name in names:
        if "For" in name or name.endswith("LMHeadModel"):
            return head_of_class(name)
    return head_of_class(next((name for name in names if name.endswith("Model")), names[0]))


def _matrix_flops(module: nn.Module) -> int:
    """FLOPs of one position in all linear layers."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            total += 2 * part.in_features * part.out_features
        elif type(part).__name__ == "Conv1D":  # GPT-2's linear layer
            total += 2 * int(part.nx) * int(part.nf)  # type: ignore[arg-type]
    return total
