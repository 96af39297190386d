"""What each embedded model is and how it is trained: every number that a run depends on."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM

from inferscale.zoo.tokenizer import BOS, EOS, PAD, VOCABULARY_SIZE


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's size.

    Attributes:
        hidden: Width.
        layers: Number of layers.
        heads: Attention heads.
        feed_forward: Width of the SwiGLU block.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a training run depends on.

    Attributes:
        shape: The model.
        steps: Optimiser steps in all.
        decay_steps: How many of the last ones lower the learning rate to 0 in a straight line.
        warmup_steps: How many of the first ones raise it.
        batch_size: Rows a step.
        matrix_lr: Learning rate of Muon.
        other_lr: Learning rate of AdamW.
        drill_steps: Until this step `early_drills` of the rows are drills, `late_drills` after.
        early_drills: Share of drills at first.
        late_drills: Share of drills later.
        exit_layer: A layer whose output is trained to predict as well, so that a process reward model can build on
            it; 0 for none.
        exit_weight: Weight of that second loss.
        seed: Of weights and data.
    """

    shape: Shape
    steps: int
    decay_steps: int
    warmup_steps: int = 50
    batch_size: int = 24
    matrix_lr: float = 0.02
    other_lr: float = 0.004
    drill_steps: int = 1000
    early_drills: float = 0.5
    late_drills: float = 0.2
    exit_layer: int = 0
    exit_weight: float = 0.3
    seed: int = 0

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step as a share of its peak."""
        warmup = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        decay = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        return max(0.0, min(1.0, warmup, decay))

    def drill_share(self, step: int) -> float:
        """Share of drills among the rows of a step."""
        return self.early_drills if step < self.drill_steps else self.late_drills


POLICIES: dict[str, Recipe] = {
    "policy-xs": Recipe(Shape(48, 3, 4, 144), steps=3100, decay_steps=600),
    "policy-s": Recipe(Shape(64, 4, 4, 192), steps=2800, decay_steps=800),
    "policy-m": Recipe(
        Shape(128, 6, 4, 320), steps=2600, decay_steps=600, matrix_lr=0.015, other_lr=0.003, exit_layer=4
    ),
}


@dataclass(frozen=True, slots=True)
class JudgeRecipe:
    """How a process reward model is trained.

    Attributes:
        parent: The policy that it is branched from.
        recipe: Schedule, batch and learning rates; shape and exit layer are the parent's.
        pairs: Share of rows that come as pairs, right and corrupted; what is neither pair nor drill is a rollout.
        token_weight: Weight of the labels of single tokens beside those of step ends.
        language_weight: Weight of the next-token loss at the exit layer.
    """

    parent: str
    recipe: Recipe
    pairs: float = 0.25
    token_weight: float = 1.0
    language_weight: float = 0.5


JUDGES: dict[str, JudgeRecipe] = {
    "prm-xs": JudgeRecipe(
        "policy-s",
        Recipe(
            POLICIES["policy-s"].shape,
            steps=9000,
            decay_steps=5000,
            matrix_lr=0.015,
            other_lr=0.003,
            drill_steps=2000,
            early_drills=0.6,
            late_drills=0.2,
            exit_layer=3,
            seed=1,
        ),
    ),
    "prm-s": JudgeRecipe(
        "policy-m",
        Recipe(
            POLICIES["policy-m"].shape,
            steps=5500,
            decay_steps=3300,
            matrix_lr=0.01,
            other_lr=0.002,
            drill_steps=1000,
            early_drills=0.6,
            late_drills=0.2,
            exit_layer=POLICIES["policy-m"].exit_layer,
            seed=1,
        ),
    ),
}


def llama_config(shape: Shape) -> LlamaConfig:
    """The transformers configuration of a shape: tied embeddings, RoPE base 1e4."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def new_model(shape: Shape) -> LlamaForCausalLM:
    """A Llama with random weights, from torch's random state."""
    return LlamaForCausalLM(llama_config(shape))
