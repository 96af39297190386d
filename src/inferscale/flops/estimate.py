"""FLOPs of sampling from a model that is not there: a configuration is enough (standard library only)."""

from __future__ import annotations

from typing import Any

from .conventions import count
from .families import model_spec
from .formulas import causal_pairs
from .ledger import Tally, forward_tally
from .spec import ModelSpec


def sampling_tallies(
    spec: ModelSpec, prompt: int, new: int, n: int = 1, shared_prefix: bool = True
) -> tuple[Tally, Tally]:
    """The tallies of prefill and decoding when `n` completions of `new` tokens follow one prompt.

    The last token of a completion is sampled but never read: `new` tokens are a prefill that keeps one position's
    logits and ``new - 1`` decoding steps.

    Args:
        spec: The model's constants.
        prompt: Tokens of the prompt.
        new: Tokens of each completion.
        n: Completions.
        shared_prefix: Whether the prompt is read once for all completions, or once for each.

    Raises:
        ValueError: If a number is too small.
    """
    for name, value, least in (("prompt", prompt, 1), ("new", new, 0), ("n", n, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: it must be at least {least}")
    prefill = forward_tally(spec, prompt, batch=1 if shared_prefix else n, logits=1)
    prefill.sampled = n if new else 0
    return prefill, _decoding(spec, prompt, max(new - 1, 0), n)


def _decoding(spec: ModelSpec, past: int, steps: int, n: int) -> Tally:
    """The tally of `steps` decoding steps of `n` rows, in closed form.

    A single query sees all that is kept of the cache, so rectangle and causal pairs are the same here, and the pairs
    of the steps add up to those of one causal chunk.
    """
    attention = sum(group.per_pair * causal_pairs(steps, past, group.window) for group in spec.attention)
    pairs = causal_pairs(steps, past)
    cached = pairs - steps  # tokens in the cache, summed over the steps
    kv_read = sum(group.kv_width * (causal_pairs(steps, past, group.window) - steps) for group in spec.attention)
    return Tally(
        forwards=steps,
        sequences=n * steps,
        tokens=n * steps,
        sampled=n * steps,
        pairs=n * pairs,
        linear=n * (steps * spec.linear + cached * spec.cached),
        head=n * steps * spec.head,
        attention_full=n * attention,
        attention_causal=n * attention,
        numbers_read=steps * spec.active_weights + n * kv_read,
    )


def estimate_flops(
    config: Any,
    *,
    prompt: int,
    new: int,
    n: int = 1,
    shared_prefix: bool = True,
    convention: str = "causal",
    nominal_parameters: float | None = None,
) -> int:
    """FLOPs of sampling `n` completions of `new` tokens after one prompt, without a model.

    Args:
        config: A transformers configuration, its dictionary, or a `ModelSpec`.
        prompt: Tokens of the prompt.
        new: Tokens of each completion.
        n: Completions.
        shared_prefix: Whether the prompt is read once for all completions, or once for each.
        convention: A name in `inferscale.flops.CONVENTIONS`.
        nominal_parameters: The size in the model's name, for ``"2N_nominal"``.

    Raises:
        UnknownArchitectureError: If the family has no closed form.
        ValueError: If a number is too small or the convention is unknown.
    """
    spec = model_spec(config, nominal_parameters=nominal_parameters)
    prefill, decode = sampling_tallies(spec, prompt, new, n, shared_prefix)
    return count(convention, prefill, spec) + count(convention, decode, spec)
