"""What a strategy is called on a curve."""

from __future__ import annotations

from dataclasses import fields

from inferscale.base import SearchStrategy

_SIZES = frozenset({"n", "width", "beam_width", "num_subtrees", "num_particles", "num_simulations", "num_expansions",
                    "max_samples"})  # fmt: skip


def is_sampling(strategy: SearchStrategy | str) -> bool:
    """Whether a strategy draws independent samples, so that a part of them is a smaller run."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    return name.split("(")[0] == "RepeatedSampling"


def short_name(strategy: SearchStrategy) -> str:
    """The strategy without its number of samples and without options that have their default values.

    ``REBASE(width=16)`` and ``REBASE(width=4)`` are points of one curve, ``REBASE``;
    ``REBASE(softmax_temperature=0.2)`` is another one.
    """
    options = [
        f"{option.name}={getattr(strategy, option.name)!r}"
        for option in fields(strategy)  # type: ignore[arg-type]
        if option.init and option.name not in _SIZES and getattr(strategy, option.name) != option.default
    ]
    return type(strategy).__name__ + (f"({', '.join(options)})" if options else "")
