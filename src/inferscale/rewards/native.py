"""Model classes of published reward models whose own code is not part of transformers, in their checkpoints' layout."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from inferscale._caches import cache_argument


class _StepModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A backbone called ``model`` and a head that gives outputs for every position."""

    base_model_prefix = "model"
    config_class = PretrainedConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        self._add_head(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _add_head(self, config: Any) -> None:
        raise NotImplementedError

    def _outputs(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's."""
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: Tensor | int = 0,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Outputs of the head, `[batch, positions, outputs]`, at the positions that are kept."""
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{cache_argument(self.model): past_key_values},
            **kwargs,
        ).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return TokenClassifierOutput(logits=self._outputs(hidden[:, kept, :]))


class Qwen2ForProcessRewardModel(_StepModel):  # type: ignore[no-untyped-call]
    """Qwen2.5-Math-PRM: a Qwen2 backbone and ``score``, two linear layers with a ReLU between them.

    The published remote code leaves the rotary embeddings at zero under transformers 5, and then scores every step
    0.5; it is not needed here.
    """

    _keys_to_ignore_on_load_unexpected: list[str] | set[str] | None = [r"^lm_head\."]  # noqa: RUF012

    def _add_head(self, config: Any) -> None:
        width = config.hidden_size
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.num_labels))

    def _outputs(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.score(hidden)
        return outputs


class _ValueHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.summary(hidden.to(self.summary.weight.dtype))
        return outputs


class ValueHeadForTokenClassification(_StepModel):  # type: ignore[no-untyped-call]
    """A backbone and ``v_head.summary``, one linear output: Skywork-o1-Open-PRM and PQM.

    The checkpoint's language model head is not loaded.
    """

    _keys_to_ignore_on_load_unexpected: list[str] | set[str] | None = [r"^lm_head\.", r"^pretrained_model\.lm_head\."]  # noqa: RUF012

    def _add_head(self, config: Any) -> None:
        config.num_labels = 1
        self.v_head = _ValueHead(config.hidden_size)

    def _outputs(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.v_head(hidden)
        return outputs


VALUE_KEYS = {r"^pretrained_model\.model\.": "model."}
"""Names in value-head checkpoints that were saved with their wrapper's prefix, and what they are called here."""
