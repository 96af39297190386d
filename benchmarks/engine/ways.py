"""Ways of growing the rows of a search: transformers' own, and `HFGenerator`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from inferscale._compat import cache_argument
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.runtime.sampling import Sampler
from inferscale.tree import Node, Problem, branch_key, root_key

from .work import Work, make_tokenizer


def _generate(model: Any, ids: torch.Tensor, count: int, cache: Any = None) -> Any:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **({} if cache is None else {cache_argument(model): cache}),
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=count,
        min_new_tokens=count,
        return_dict_in_generate=True,
    )


def naive(model: Any, work: Work) -> None:
    """``generate`` from scratch for every step of every row."""
    ids = torch.tensor([work.prompt_ids()] * work.rows, device=model.device)
    for turn in range(work.steps):
        ids = _generate(model, ids, work.step).sequences[work.parents(turn)]


def kept_cache(model: Any, work: Work) -> None:
    """``generate`` continued on a `DynamicCache`, prompt read once and repeated, rows gathered between the steps."""
    ids = torch.tensor([work.prompt_ids()], device=model.device)
    cache = DynamicCache()
    model(input_ids=ids[:, :-1], **{cache_argument(model): cache}, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(work.rows)
    ids = ids.repeat(work.rows, 1)
    for turn in range(work.steps):
        output = _generate(model, ids, work.step, cache)
        parents = torch.tensor(work.parents(turn), device=model.device)
        ids, cache = output.sequences[parents], getattr(output, cache_argument(model))
        cache.batch_select_indices(parents)


def gathered(model: Any, work: Work) -> None:
    """An own token loop on a `DynamicCache`, prompt read once and repeated, rows gathered between the steps."""
    ids = torch.tensor([work.prompt_ids()], device=model.device)
    cache = DynamicCache()
    logits = model(input_ids=ids, **{cache_argument(model): cache}, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(work.rows)
    logits = logits.repeat(work.rows, 1)
    numbers, sampler = torch.rand(work.rows, dtype=torch.float64, device=model.device), Sampler()
    for turn in range(work.steps):
        for _ in range(work.step):
            tokens = sampler.draw(logits, numbers).tokens
            logits = model(input_ids=tokens[:, None], **{cache_argument(model): cache}, use_cache=True).logits[:, -1]
        parents = torch.tensor(work.parents(turn), device=model.device)
        logits = logits[parents]
        cache.batch_select_indices(parents)


def continuous(model: Any, work: Work) -> None:
    """Continuous batching of transformers with blocks of 32 tokens shared by prefix, one call for each step."""
    blocks = 2 * work.rows * (work.prompt + work.tokens) // 32
    config = ContinuousBatchingConfig(page_size=32, num_blocks=blocks, max_batch_tokens=512, use_cuda_graph=False)
    sampling = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=work.step, eos_token_id=-1, pad_token_id=model.config.pad_token_id
    )
    rows = [work.prompt_ids()] * work.rows
    for turn in range(work.steps):
        outputs = model.generate_batch(
            rows, sampling, config, progress_bar=False, warmup=False, persistent_manager=True
        ).values()
        grown = [[*output.prompt_ids, *output.generated_tokens] for output in outputs]
        rows = [grown[parent] for parent in work.parents(turn)]
    model.destroy_cached_continuous_batching_manager()


def products(model: Any, work: Work) -> None:
    """The matrix products of the linear layers alone, of the prompt and of every sampled token but the last."""
    inside = [layer for layer in model.base_model.modules() if isinstance(layer, torch.nn.Linear)]
    head = model.get_output_embeddings()
    for rows, layers in ((work.prompt, inside), (1, [head]), *[(work.rows, [*inside, head])] * (work.tokens - 1)):
        inputs = {
            n: torch.ones(rows, n, dtype=model.dtype, device=model.device) for n in {x.in_features for x in layers}
        }
        for layer in layers:
            torch.nn.functional.linear(inputs[layer.in_features], layer.weight)


class Ours:
    """`HFGenerator`, asked as a search asks: children of the parents drawn, one request for each."""

    def __init__(self, model: Any, work: Work, **options: Any) -> None:
        self.work = work
        tokenizer = make_tokenizer(model.config.vocab_size)
        options = {"max_step_tokens": work.step, "max_new_tokens": work.tokens + 1, "eos_token_id": 3, **options}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the tokenizer cannot write step_delimiter")  # steps end by length here
            self.generator = HFGenerator(model, tokenizer, **options)
        prompts = [" ".join(f"w{i}" for i in work.prompt_ids(p)) for p in range(work.problems)]
        ids = {Problem(text): tuple(work.prompt_ids(p)) for p, text in enumerate(prompts)}
        self.generator._runner.branches.encode = ids.__getitem__  # type: ignore[assignment]  # the tokenizer has no way to split words
        self.prompts = prompts

    def __call__(self, together: bool = True, check: bool = True) -> None:
        """Does the work once, with all problems in one call or one after the other."""
        stats = self.generator.stats
        before = stats.decoded_tokens
        roots = [Node(Problem(text), key=root_key(text)) for text in self.prompts]
        for batch in [roots] if together else [[root] for root in roots]:
            self._grow(batch)
        expected = self.work.problems * self.work.rows * self.work.tokens
        if check and stats.decoded_tokens - before != expected:
            raise RuntimeError(f"{stats.decoded_tokens - before} tokens instead of {expected}: an end was sampled")
        for root in roots:
            self.generator.release(root)

    def _grow(self, roots: Sequence[Node]) -> None:
        levels = {id(root): [root] * self.work.rows for root in roots}
        for turn in range(self.work.steps):
            asked = [(root, node) for root in roots for node in dict.fromkeys(levels[id(root)])]
            requests = [GenerateRequest(node, levels[id(root)].count(node)) for root, node in asked]
            children: dict[int, list[Node]] = {id(root): [] for root in roots}
            for (root, node), steps in zip(asked, self.generator.generate(requests), strict=True):
                for draw, step in enumerate(steps):
                    children[id(root)].append(Node(root.problem, step, node, branch_key(node.key, draw)))
            parents = self.work.parents(turn)
            for root in roots:  # where an end was sampled, others are grown in its place
                alive = [child for child in children[id(root)] if not child.is_finished]
                levels[id(root)] = [alive[i % len(alive)] for i in parents]
