"""Every causal architecture of the installed transformers, small and random, judged: ``python -m benchmarks.families``.

``--jobs 2`` judges two families at a time; ``--page docs/project/families.md`` writes the documentation's page.

For each family of ``AutoModelForCausalLM`` a model of a few thousand weights is made from its own configuration class,
of which the sizes are replaced. Weights that are equal throughout (zeros, ones) are perturbed, so that nothing hides
behind them, and windows, chunks and top-k selections are so short that the rows pass them. The table says for each:

* path: ``tree`` if prefixes are shared, ``plain`` if not (cached or not, padded or in batches of equal length);
* forward: greedy and sampled steps have the log-probabilities of whole forwards of their own row, without a cache;
* generate: greedy tokens equal transformers' ``generate`` (for information: it is wrong for some);
* batch: rows alone and in a batch of rows of other lengths give equal tokens;
* tree: a search that forks and comes back gives equal trees with and without shared prefixes;
* flops: a prompt and a further token cost what an operator-by-operator count of the model's own forward says.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import multiprocessing
import random
import re
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from inferscale._compat import cache_argument
from inferscale.base import SearchStrategy
from inferscale.engine import solve, solve_batch
from inferscale.engine.result import SearchResult
from inferscale.flops import UnknownArchitectureError, closed_form, forward_flops
from inferscale.flops.ops import ExactMode, OpFlops
from inferscale.flow import Flow, GenerateRequest, expand
from inferscale.generators import HFGenerator
from inferscale.tree import Node, Problem, root_key

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 256
_LARGEST = 8_000_000  # numbers in a small model


def _named(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


# Sizes of the small models, by the names that configurations give them; an option that is off by default stays off.
_SIZES: dict[str, Any] = {
    **_named(
        VOCABULARY + 64,
        "vocab_size unpadded_vocab_size vocab_size_per_layer_input ngram_vocab_size_base pronunciation_vocab_size "
        "encoder_hash_byte_group_vocab shape_vocab_size",
    ),
    **_named(
        32,
        "hidden_size d_model n_embd emb_dim embedding_size input_embedding_size output_embedding_size dim_model_base "
        "word_embed_proj_dim backbone_hidden_size pronunciation_embed_dim shape_embed_dim prompt_mid_dim lru_width "
        "hidden_size_global",
    ),
    **_named(
        48,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff d_inner feed_forward_size "
        "intermediate_size_mlp ffn_hidden_size shared_intermediate_size dense_intermediate_size classifier_proj_size",
    ),
    **_named(
        24,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "moe_shared_expert_intermediate_size",
    ),
    **_named(4, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"),
    **_named(4, "num_encoder_layers num_attention_heads n_head n_heads num_heads attention_heads"),
    **_named(4, "decoder_attention_heads encoder_attention_heads num_decoder_attention_heads"),
    **_named(4, "num_encoder_attention_heads swa_num_attention_heads"),
    **_named(2, "num_key_value_heads swa_num_key_value_heads num_global_key_value_heads"),
    **_named(
        8,
        "head_dim swa_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels global_head_dim dim_head "
        "attention_head_size linear_key_head_dim linear_value_head_dim linear_head_dim",
    ),
    **_named(4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_named(2, "num_experts_per_tok moe_topk moe_k linear_num_key_heads"),
    **_named(1, "n_group topk_group"),
    **_named(16, "index_n_heads kv_lora_rank q_lora_rank index_head_dim hc_lowrank o_lora_rank"),
    **_named(12, "sliding_window sliding_window_size attention_chunk_size attention_window_size window_size"),
    **_named(12, "local_attention keep_window_size local_attention_window_len"),
    **_named(4, "linear_num_value_heads linear_num_heads mamba_d_state state_size ssm_state_size mamba_dt_rank"),
    **_named(10, "index_topk"),
    **_named(4, "index_block_size"),
    **_named(2, "index_topk_blocks"),
    **_named(512, "max_position_embeddings n_positions max_seq_len n_ctx context_length max_target_positions"),
    **_named(512, "max_source_positions"),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_MLA = {"num_key_value_heads": 4}  # latent attention has as many heads of keys as of queries
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
_ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl"
)
_QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 4,
}
_DOTS3 = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "sliding_window": 12,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}

# What the sizes alone do not make a model of: shapes that depend on each other, every kind of layer within four.
_CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in _ENCODERS.split()},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": (16, 32),
        "axial_pos_embds_dim": (16, 16),
        "num_buckets": 8,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
        "hash_seed": 1,
    },
    **dict.fromkeys(["axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"], _MLA),
    **dict.fromkeys(["minicpm3", "youtu", "sarvam_mla"], _MLA),
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dots3_note_text": _DOTS3,
    "bailing_hybrid": {**_MLA, "layer_group_size": 2},
    "kimi_linear": {**_MLA, "layer_types": [_LINEAR, _LINEAR, _FULL, _LINEAR]},
    "bamba": {**_MAMBA2, "attn_layer_indices": [2]},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in (_SLIDING, _FULL)},
    },
    "dbrx": {  # its attention reads a base and a clip that its configuration does not set
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    **{key: {"layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING]} for key in ["gemma3_text", "kolibri1"]},
    "gemma3": {"text_config": {"layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING]}},
    "gemma3n_text": {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 8,
    },
    **{
        key: {"layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"]}
        for key in ["inkling_text", "inkling2_text", "inkling2_loop_text"]
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    **{key: {"head_dim": 8} for key in ["hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"]},
    "lfm2": {"layer_types": ["conv", "conv", _FULL, "conv"]},
    "lfm2_moe": {"layer_types": ["conv", _FULL, "conv", _FULL]},
    "lfm3": {"layer_types": ["conv", _FULL, "conv", _SLIDING], "sliding_window": 12},
    "nemotron": {"num_key_value_heads": 2},
    "phi3": {"sliding_window": None},
    "xlstm": {"hidden_size": 128},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2, "n_mamba_heads": 2},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
        "num_hidden_layers": 6,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "sliding_window": 12, "layer_types": ["hybrid", "hybrid_sliding"] * 2},
    "moshi": {"audio_vocab_size": 64},
    "qwen4_exp_text": _QSA,
    "qwen4_exp": {"text_config": _QSA},
}

DIFFERENCES: dict[str, str] = {
    "doge": "keeps the strongest keys of a window, and those of equal tokens are equally strong",
}
"""Families whose whole forwards differ among themselves, and why."""

ESTIMATED: dict[str, str] = {
    "prophetnet": "predicts several tokens ahead, in streams that its cache leaves out",
    "reformer": "hashes keys into buckets, whose number follows the length",
}
"""Families whose FLOPs are off by up to a tenth, and why."""

EXCEPTIONS: dict[str, str] = {
    "dots3_note": "its configuration writes per-layer sizes for 46 layers; its language model is dots3_note_text",
    "gemma3n": "its vision tower needs the package timm; its language model is judged as gemma3n_text",
    "gemma4_assistant": "a drafter, which reads the hidden states and keys of the model that it drafts for",
    "gemma4_unified_assistant": "a drafter, which reads the hidden states and keys of the model that it drafts for",
    "musicgen": "writes several tokens of audio at a time, and its class takes another configuration than its name",
    "musicgen_melody": "writes several tokens of audio at a time, and its class takes another configuration",
}
"""Families that are not judged, and why."""


def small_config(family: str) -> Any:
    """The configuration of a family with small sizes and every kind of its layers."""
    return CONFIG_MAPPING[family](**_arguments(CONFIG_MAPPING[family], _CHANGES.get(family, {})))


def _arguments(kind: Any, changes: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in _SIZES and (field.default not in (None, 0) or field.name.endswith("_token_id")):
            given[field.name] = _SIZES[field.name]
    if kind.sub_configs:
        default = kind()
        for name, declared in kind.sub_configs.items():
            part = getattr(default, name, None)
            if part is not None:
                given[name] = _arguments(type(part), {})
                if declared.__name__ == "AutoConfig":
                    given[name]["model_type"] = part.model_type
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(given.get(name), dict)
        given[name] = {**given[name], **value} if nested else value
    return given


def small_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32 of a family; its logits are far from uniform.

    Raises:
        ValueError: If the sizes did not make it small.
    """
    config = small_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.device("meta"):
        numbers = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if numbers > _LARGEST:
        raise ValueError(f"{family} has {numbers:,} numbers after shrinking")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and parameter.numel():
                    if parameter.max() == parameter.min():
                        parameter += 0.2 * torch.randn_like(parameter)
                    elif parameter.dim() > 1:
                        parameter *= 0.2 / parameter.std().clamp(min=0.02)
    return model


@cache
def tokenizer() -> Any:
    """One word for each id; the last one ends a step."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY - 1)), "\n"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_tokens(["\n"])  # taken out before words are split at blanks
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


PROMPTS = tuple(" ".join(f"w{3 + (7 * i + 31 * n) % 250}" for i in range(n)) for n in (3, 8, 15, 26))
"""Prompts of unequal lengths; windows, chunks and selections end at 8 to 12 tokens."""


@dataclass(frozen=True)
class Wander(SearchStrategy):
    """A search that forks, prunes and comes back to old nodes."""

    rounds: int = 4

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All leaves."""
        yield from expand([root], 3)
        for turn in range(self.rounds):
            live = [node for node in root.walk() if not node.is_finished]
            if live:
                picked = rng.sample(live, min(2, len(live)))
                yield from expand(picked, 2, until="end" if turn == 2 else "step")
        return root.leaves()


@dataclass(frozen=True)
class Verdict:
    """What was found for a family; ``None`` where there is nothing to compare.

    Attributes:
        family: Its ``model_type``.
        path: How it is run.
        forward: Steps have the log-probabilities of whole forwards, and greedy tokens are their likeliest.
        generate: Greedy tokens are those of transformers' ``generate``.
        batch: Alone and batched are equal.
        tree: With and without shared prefixes are equal.
        flops: Charged FLOPs over counted ones, the one farthest from 1 of a prompt and of a further token.
        note: What went wrong.
    """

    family: str
    path: str = ""
    forward: bool | None = None
    generate: bool | None = None
    batch: bool | None = None
    tree: bool | None = None
    flops: float | None = None
    note: str = ""

    @property
    def is_silent(self) -> bool:
        """True if something differs."""
        return False in (self.forward, self.batch, self.tree)


def whole_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities `[vocabulary]` of the token after `ids`, by a whole forward of this row alone."""
    row = torch.tensor([list(ids)])
    with torch.no_grad():
        output = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    logits: torch.Tensor = output.logits[0, -1]
    return logits.float().log_softmax(-1)


def equals_forwards(model: Any, prompt: Sequence[int], tokens: Sequence[int], logprob: float, greedy: bool) -> bool:
    """True if `tokens` after `prompt` have this log-probability in whole forwards, and are the likeliest if greedy."""
    ids, total = list(prompt), 0.0
    for token in tokens:
        row = whole_logprobs(model, ids)
        if greedy and float(row.max() - row[token]) > 1e-3:
            return False
        total += float(row[token])
        ids.append(token)
    return abs(total - logprob) < 1e-3 * max(len(tokens), 1)


def equals(model: Any, one: Sequence[SearchResult], other: Sequence[SearchResult]) -> bool:
    """True if the trees are equal.

    In single precision a draw now and then falls on the border between two tokens: where trees part, they may if both
    steps have the log-probabilities of whole forwards.
    """
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine.root.walk(), theirs.root.walk(), strict=False):
            if a.step is None or b.step is None or a.parent is None:
                continue
            same = (a.step.token_ids, a.step.finish_reason) == (b.step.token_ids, b.step.finish_reason)
            if same and a.step.flops != b.step.flops:
                return False
            if not same or abs((a.step.logprob or 0.0) - (b.step.logprob or 0.0)) > 1e-3 * len(a.step.token_ids):
                start = [*tokenizer()(a.problem.prompt)["input_ids"], *a.parent.token_ids]
                if not all(
                    equals_forwards(model, start, x.token_ids, x.logprob or 0.0, False) for x in (a.step, b.step)
                ):
                    return False
                break
    return True


def judge(family: str, generate: bool = True, seeds: int = 3) -> Verdict:
    """The verdict on a family.

    Routers and top-k selections jump: where two experts are equal but for rounding, a forward of another shape takes
    the other one. What differs with one seed alone is that; what differs with all of `seeds` is a mistake.
    """
    verdict = Verdict(family)
    for seed in range(seeds):
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                verdict = _judged(family, small_model(family, seed), generate)
            reasons = [str(w.message).partition("equal results: ")[2] for w in warned]
            reason = " ".join(next(filter(None, reasons), "").split())
            verdict = replace(verdict, note=verdict.note or reason[:150])
        except Exception as error:  # one family in trouble is a row of the table
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:150]
            return Verdict(family, note=f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno})")
        if not verdict.is_silent:
            break
    return verdict


def _judged(family: str, model: Any, generate: bool) -> Verdict:
    options: dict[str, Any] = {"max_step_tokens": 7, "max_new_tokens": 21}
    generator = HFGenerator(model, tokenizer(), **options)
    path = "tree" if generator.shares_prefixes else "plain"
    verdict = Verdict(family, path)

    together = solve_batch(PROMPTS, Wander(), generator)
    alone = [solve(prompt, Wander(), generator) for prompt in PROMPTS]
    batch = equals(model, together, alone)
    tree = None
    if generator.shares_prefixes:
        plain = solve_batch(PROMPTS, Wander(), HFGenerator(model, tokenizer(), cache="none", **options))
        tree = equals(model, together, plain)

    # Greedy completions, and the first step of each sampled tree, against whole forwards.
    forward = True
    requests = [
        GenerateRequest(Node(Problem(p), key=root_key(p)), greedy=True, until="end", max_tokens=14) for p in PROMPTS
    ]
    greedy = [steps[0] for steps in generator.generate(requests)]
    same = True
    for prompt, step, result in zip(PROMPTS, greedy, together, strict=True):
        ids = tokenizer()(prompt)["input_ids"]
        forward = forward and equals_forwards(model, ids, step.token_ids, step.logprob or 0.0, True)
        first = result.root.children[0].step
        assert first is not None
        forward = forward and equals_forwards(model, ids, first.token_ids, first.logprob or 0.0, False)
        if generate:
            row = torch.tensor([ids])
            try:
                out = model.generate(row, attention_mask=row * 0 + 1, do_sample=False, max_new_tokens=14)
                same = same and out[0, len(ids) :].tolist()[: len(step.token_ids)] == list(step.token_ids)
            except Exception:
                same = False
    return replace(
        verdict,
        forward=forward,
        generate=same if generate else None,
        batch=batch,
        tree=tree,
        flops=flops_ratio(model),
    )


def _first_forward(model: Any) -> Any:
    """The output of a forward with a cache, or nothing if there can be none."""
    try:
        with torch.no_grad():
            return model(input_ids=torch.arange(3, 5)[None], use_cache=True)
    except (AssertionError, AttributeError):
        return None


def flops_ratio(model: Any) -> float | None:
    """FLOPs of the closed form over those counted operator by operator; 0 if there is no form."""
    try:
        spec = closed_form(model)
    except UnknownArchitectureError:
        return 0.0
    ratios = []
    name, row = cache_argument(model), torch.arange(3, 3 + 24)[None]
    options: dict[str, Any] = {"use_cache": getattr(_first_forward(model), name, None) is not None}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    for ids, past in ((row[:, :23], 0), (row[:, 23:], 23)):
        counted = 0

        def record(operator: Any, flops: OpFlops | None) -> None:
            nonlocal counted
            counted += 0 if flops is None else flops.full

        try:
            with torch.no_grad(), ExactMode(record):
                output = model(input_ids=ids, **options)
        except RuntimeError:  # a model that cannot go on from its own cache
            break
        kept = 1 if "logits_to_keep" in options else None
        ratios.append(forward_flops(spec, ids.shape[1], past, logits=kept).full / counted)
        options[name] = output.get(name)
        if options[name] is None:
            break
    return max(ratios, key=lambda ratio: abs(ratio - 1), default=None)


SIGNS = {True: "yes", False: "NO", None: "-"}


def row(verdict: Verdict) -> str:
    """A line of the table."""
    cells = [SIGNS[x] for x in (verdict.forward, verdict.generate, verdict.batch, verdict.tree)]
    flops = "-" if verdict.flops is None else f"{verdict.flops:.4f}"
    return (
        f"{verdict.family:26} {verdict.path:6} " + " ".join(f"{c:>8}" for c in cells) + f" {flops:>8}  {verdict.note}"
    )


def summary(verdicts: Sequence[Verdict], total: int = len(FAMILIES)) -> str:
    """The counts."""
    judged = [v for v in verdicts if v.forward is not None]
    return (
        f"{len(judged)} of {total} families judged, "
        f"{sum(v.path == 'tree' for v in judged)} share prefixes, {sum(v.is_silent for v in judged)} differ, "
        f"{sum(v.flops == 0 for v in judged)} cost 0 FLOPs"
    )


_PAGE = """# Model families

Every causal architecture of transformers {version}, small and random in float32, with windows, chunks and selections so
short that the rows pass them: {summary}. Written by

    python -m benchmarks.families --no-generate --jobs 2 --page docs/project/families.md

* path: `tree` if prefixes are shared, `plain` if not;
* forward: greedy and sampled steps have the log-probabilities of whole forwards of their own row, without a cache;
* batch: rows alone and in a batch of rows of other lengths give equal tokens;
* tree: a search that forks and comes back gives equal trees with and without shared prefixes;
* FLOPs: what is charged over an operator-by-operator count of the model's own forward, the one farthest from 1 of a
  prompt and of a further token.

| family | path | forward | batch | tree | FLOPs | why not shared, or what differs |
|---|---|---|---|---|---|---|
{rows}

Not judged:

{exceptions}
"""


def page(verdicts: Sequence[Verdict]) -> str:
    """The page of the documentation."""
    rows = []
    for v in verdicts:
        flops = "-" if v.flops is None else f"{v.flops:.4f}"
        note = (v.note or DIFFERENCES.get(v.family, "") or ESTIMATED.get(v.family, "")).replace("|", "/")
        note = re.sub(r"[<>*_`]", "", note) if v.note else note
        cells = (v.family, v.path, SIGNS[v.forward], SIGNS[v.batch], SIGNS[v.tree], flops, note)
        rows.append(f"| {' | '.join(cells)} |")
    exceptions = [f"* {family}: {reason}" for family, reason in EXCEPTIONS.items()]
    parts = {"version": transformers.__version__, "summary": summary(verdicts)}
    return _PAGE.format(rows="\n".join(rows), exceptions="\n".join(exceptions), **parts)


def _start_worker() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", help="some of them; all by default")
    parser.add_argument("--no-generate", action="store_true", help="leave out transformers' generate")
    parser.add_argument("--jobs", type=int, default=1, help="families judged at a time, on a thread each")
    parser.add_argument("--page", type=Path, help="where to write the documentation's page")
    options = parser.parse_args()
    started, verdicts = time.perf_counter(), []
    print(f"{'family':26} {'path':6} {'forward':>8} {'generate':>8} {'batch':>8} {'tree':>8} {'flops':>8}")
    names = [family for family in options.families or FAMILIES if family not in EXCEPTIONS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, _start_worker) as pool:
        for verdict in pool.map(partial(judge, generate=not options.no_generate), names):
            verdicts.append(verdict)
            print(row(verdict), flush=True)
    print(f"{summary(verdicts, len(options.families or FAMILIES))}; {time.perf_counter() - started:.0f} s")
    for family, reason in EXCEPTIONS.items():
        print(f"not judged: {family}, {reason}")
    if options.page is not None:
        options.page.write_text(page(verdicts))


if __name__ == "__main__":
    main()
