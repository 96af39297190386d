"""A causal language model seen from outside: embeddings in, hidden states out, its own output head, and its cache.

Thoughts are taken back out of a key-value cache exactly or not at all.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from inferscale._compat import cache_argument, evaluating


class RollbackError(RuntimeError):
    """Failure to put a cache back as it was."""


def is_croppable(cache: Any) -> bool:
    """Return True if `rollback` can serve this cache; ask after the first forward."""
    return all(_layer_is_croppable(layer) for layer in cache.layers)


def _layer_is_croppable(layer: Any) -> bool:
    if isinstance(layer, StaticLayer):
        return type(layer) is StaticLayer  # static layers with a window overwrite what a crop would need
    if getattr(layer, "is_sliding", False) and not getattr(layer, "record_past", False):
        return bool(layer.get_seq_length() < layer.sliding_window)  # once full, it has dropped keys
    return bool(getattr(layer, "is_croppable", isinstance(layer, DynamicLayer)))


def rollback(cache: Any, tokens: int) -> None:
    """Remove the last `tokens` tokens of every row; what is left is what was there before them.

    Raises:
        RollbackError: If a layer cannot forget (a recurrent state, a full sliding window of fixed size): nothing is
            removed then. Work on a `fork` instead.
    """
    if tokens < 0:
        raise ValueError(f"rollback({tokens}): give the number of tokens to remove")
    if tokens == 0:
        return
    stuck = sorted({type(layer).__name__ for layer in cache.layers if not _layer_is_croppable(layer)})
    if stuck:
        raise RollbackError(f"layers of type {', '.join(stuck)} cannot be rolled back: think on a fork() of the cache")
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            if layer.is_initialized:
                layer.cumulative_length.sub_(tokens)  # stale slots after the end are masked
        else:
            layer.crop(-tokens)


def fork(cache: Any, rows: Tensor) -> Any:
    """Copy these rows in this order (a row may come more than once); the original stays as it is."""
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        other = copy.copy(cache)  # keys and values are replaced, never written to: sharing them is safe
        other.layers = [copy.copy(layer) for layer in cache.layers]
    else:
        other = copy.deepcopy(cache)
    select_rows(other, rows)
    return other


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep these rows in this order; a row may come more than once.

    Raises:
        RollbackError: If the cache has a fixed batch.
    """
    if isinstance(cache, StaticCache):
        raise RollbackError("a StaticCache has a fixed batch: use a DynamicCache")
    cache.reorder_cache(rows)


_ATTENTION_KINDS = {"full_attention", "sliding_attention"}
FULL_PRECISION = (torch.float32, torch.float64)
_RECURRENT_FIELDS = ("ssm_cfg", "state_size", "mamba_d_state", "conv_L_cache", "linear_key_head_dim")


class UnsupportedModelError(ValueError):
    """Failure to wrap a model: something about it cannot be done from outside.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from inferscale.quiet_star import QuietSTaR
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> model = BertForMaskedLM(BertConfig(vocab_size=16, **sizes))
        >>> QuietSTaR(model)
        Traceback (most recent call last):
            ...
        inferscale.quiet_star.backbone.UnsupportedModelError: the logits of BertForMaskedLM cannot be had from ...
    """


class Backbone:
    """Causal language model, as Quiet-STaR needs it; its modeling file is neither subclassed nor patched.

    Attributes:
        model: The model.
        decoder: Its part up to the last norm.
        config: Its text configuration.
        kinds: What layers attend to, by the names of the configuration's ``layer_types``.
        window: Positions that a layer with a window sees, itself included; ``None`` if there is no such layer.
        attention_only: True if every layer is softmax attention, as far as the configuration tells.
        masks_padding_once: True if a mask is only for the first tokens: a recurrent state has left padding behind it.
        takes_positions: True if positions can be given; without them a token's place in the cache is its position.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        parts = (model.get_decoder(), model.base_model, getattr(model, "model", model))
        self.decoder: Any = next((part for part in parts if part is not model), None)
        if self.decoder is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} names no decoder: its hidden states cannot be asked for"
            )
        self.config = model.config.get_text_config()
        self.kinds = frozenset(getattr(self.config, "layer_types", None) or ())
        window = getattr(self.config, "sliding_window", None)
        self.window = window if not self.kinds or "sliding_attention" in self.kinds else None
        recurrent = any(getattr(self.config, name, None) for name in _RECURRENT_FIELDS)
        self.attention_only = not recurrent and self.kinds <= _ATTENTION_KINDS
        self.masks_padding_once = recurrent and not hasattr(self.config, "num_attention_heads")
        takes = inspect.signature(self.decoder.forward).parameters
        self.takes_positions = "position_ids" in takes
        self._cache_argument = cache_argument(self.decoder)
        if not {"inputs_embeds", "attention_mask"} <= set(takes):
            raise UnsupportedModelError(
                f"{type(self.decoder).__name__}.forward takes no inputs_embeds or no attention_mask: it cannot "
                "be fed thoughts"
            )
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no output embeddings: give a causal language model"
            )
        self._scale, self._cap = 1.0, None
        self._fit_head()

    @property
    def attention(self) -> str:
        """Attention implementation in use, for example ``"sdpa"``."""
        return str(getattr(self.model.config, "_attn_implementation", "eager") or "eager")

    @property
    def recomputes(self) -> bool:
        """True if gradient checkpointing is on, which rules out a cache."""
        return self.model.training and any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the input embeddings."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """Number of rows of the input embeddings."""
        return len(self.model.get_input_embeddings().weight)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return input embeddings as the embedding module gives them, `[..., hidden]`."""
        embeds: Tensor = self.model.get_input_embeddings()(input_ids)
        return embeds

    @torch.no_grad()
    def first_mark(self, token_id: int | None) -> Tensor:
        """Return a first start- or end-of-thought vector: the embedding of a token, or the mean of all; `[hidden]`.

        Raises:
            ValueError: If the vocabulary has no such id.
        """
        if token_id is None:
            return self.embed(torch.arange(self.vocabulary, device=self.device)).mean(dim=0)
        self.check_ids([token_id])
        return self.embed(torch.tensor(token_id, device=self.device)).clone()

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raise ``ValueError`` if the vocabulary does not have all of `ids`."""
        for token_id in ids:
            if not 0 <= token_id < self.vocabulary:
                raise ValueError(f"token id {token_id} is outside the model's vocabulary of {self.vocabulary}")

    def new_cache(self) -> Any:
        """Make an empty cache for `states` that can be rolled back where the architecture allows it at all.

        Where all layers are softmax attention they get plain layers, which keep every key (a sliding window is then the
        mask's business); other layers get what the configuration asks for.
        """
        if self.attention_only:
            return DynamicCache()
        cache = DynamicCache(config=self.model.config)
        if hasattr(cache, "activate_past_recording"):
            cache.activate_past_recording()
        return cache

    def states(self, embeds: Tensor, mask: Any = None, position_ids: Tensor | None = None, cache: Any = None) -> Tensor:
        """Run new tokens and return their last hidden states (after the final norm), `[rows, new, hidden]`.

        Args:
            embeds: Input embeddings of the new tokens, `[rows, new, hidden]`.
            mask: What the model takes as ``attention_mask``.
            position_ids: `[rows or 1, new]`; left out where the model takes none.
            cache: Keys and values of earlier tokens, extended in place; ``None`` for no cache.
        """
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options[self._cache_argument] = cache
        if position_ids is not None and self.takes_positions:
            options["position_ids"] = position_ids
        output = self.decoder(inputs_embeds=embeds, attention_mask=mask, **options)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's own logits of hidden states, its scale and soft-cap included, `[..., vocabulary]`."""
        logits: Tensor = self._head(hidden.to(self._head.weight.dtype))  # Mamba keeps its residuals in float32
        if self._scale != 1.0:
            logits = logits * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def _fit_head(self) -> None:
        """Find what the model does between its output matrix and its logits, and that embeddings can be fed.

        Raises:
            UnsupportedModelError: If no scale and soft-cap of the configuration reproduces the model's logits.
        """
        config = self.config
        scaling = getattr(config, "logits_scaling", None)
        scale = getattr(config, "logit_scale", None) or (1.0 / scaling if scaling else 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        with evaluating(self.model), torch.no_grad():
            probe = torch.arange(1, 6, device=self.device)[None] * 7 % self.vocabulary
            wanted = self.model(input_ids=probe, use_cache=False).logits.double()
            hidden = self.states(self.embed(probe))
            for self._scale, self._cap in ((1.0, None), (scale, None), (1.0, cap), (scale, cap)):
                error = float((self.logits(hidden).double() - wanted).abs().max() / wanted.std())
                if error < (1e-4 if hidden.dtype in FULL_PRECISION else 0.1):
                    return
        raise UnsupportedModelError(
            f"the logits of {type(self.model).__name__} cannot be had from its last hidden state (off by {error:.2g} "
            "standard deviations): its head does more than scale and soft-cap, or its layers read input_ids again"
        )


def positions_of(keep: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Return position ids of text, `[rows or 1, length]`: padding in front does not count.

    Args:
        keep: Which tokens are text, bool `[rows, length]`; ``None`` for all.
        length: Tokens of a row.
        device: Where to put them when there is no `keep`.
    """
    if keep is None:
        return torch.arange(length, device=device)[None]
    return (keep.long().cumsum(dim=1) - 1).clamp_(min=0)
