"""`HFGenerator`: samples steps from any causal language model of transformers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import torch

from inferscale.base import Generator
from inferscale.flops import report_tokens
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import Branch, Limits, most_sample_tokens, open_branches, side_by_side
from inferscale.runtime.charges import Charges
from inferscale.runtime.decoding import Decoder, GeneratorStats, StatelessDecoder, TreeDecoder, sample_branches
from inferscale.runtime.loading import check_vocabulary, context_length, eos_ids, evaluating, load_model, load_tokenizer
from inferscale.runtime.memory import run_halving
from inferscale.runtime.prefix_cache import KVStore, check_cache_options, default_cache_bytes
from inferscale.runtime.prompts import PromptFormat
from inferscale.runtime.sampling import Confidence, Sampler
from inferscale.runtime.session import checked_session, length_bound
from inferscale.runtime.text import TokenText
from inferscale.tree import Node, Step

_ROWS = 256
_CHECK_EVERY = 8


class HFGenerator(Generator):
    """Samples steps from a causal language model; all requests of all problems decode in shared batches.

    A prompt is read once for all its branches and every node once for all its children, in whatever order a search
    comes back to them: keys and values are kept until the search has ended, or until `max_cache_bytes` is full. The
    way this is done is compared with the model's own forward when the generator is made; models that it does not fit
    (ALiBi, soft-capped scores, recurrent layers), and sequences longer than a sliding window, are run plainly, slower
    and with equal results.

    Every branch draws from its own random stream, so in float32 a branch's tokens depend on the seed, the problem and
    the path alone, not on what else is in the batch. (In half precision a batch of another size can change the last
    bits of the logits, and now and then a token.)

    Sampling follows the options given here: the checkpoint's generation config is read for end-of-sequence ids alone.

    A step ends with the token that completes `step_delimiter` after at least one character that is not blank, or at
    `max_step_tokens`. Ids are the truth: text is decoded from them and never encoded again.

    Attributes:
        model: The model; it is in evaluation mode while `generate` runs.
        tokenizer: The tokenizer.
        sampler: Temperature and filters.
        limits: Lengths.
        stats: What was really run.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        step_delimiter: str = "\n",
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        confidence: Confidence = "logprob",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        eos_token_id: int | list[int] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        check_every: int | None = None,
        cache: Literal["tree", "none"] = "tree",
        max_cache_bytes: int | None = None,
        decoder: Callable[[GeneratorStats], Decoder] | None = None,
        **load_options: Any,
    ) -> None:
        """Loads and checks everything that can be checked before sampling.

        Args:
            model: A transformers causal language model, a local folder (never touches the network) or a hub id.
            tokenizer: Its tokenizer; by default the one beside the model.
            step_delimiter: Text that ends a step.
            max_step_tokens: A step is cut after this many sampled tokens; the path can go on.
            max_new_tokens: Most tokens of a whole path, forced text included; paths end there (``"length"``), or
                where the model's context is full.
            temperature: Sampling temperature; 0 takes the likeliest token.
            top_p: Nucleus sampling: mass of the likeliest tokens that is kept.
            top_k: Number of the likeliest tokens that are kept; 0 keeps all.
            confidence: What `Step.confidence` is the token mean of; see `Sampler`. All kinds are read from the plain
                model distribution, before temperature and filters.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template; by default if it has one.
            system_prompt: System turn of the chat.
            eos_token_id: Ids that end an answer; by default those of the model's generation config and the tokenizer.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            micro_batch: Most rows decoded at a time (default 256); halved when memory runs out.
            check_every: Tokens drawn between two looks at which steps have ended (default: 1 on a CPU, 8 elsewhere,
                where a look waits for the device). Results do not depend on it; tokens beyond an end are wasted.
            cache: ``"tree"`` reads shared prefixes once; ``"none"`` reads whole prefixes in every call.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory); what does not fit is computed again.
            decoder: Makes what runs the batches, in place of what `cache` says; it is given the generator's `stats`.
            load_options: Passed on to ``from_pretrained``, for example ``trust_remote_code`` or ``revision`` (which
                is not that of a tokenizer named apart).

        Raises:
            TypeError: If `model` is none of these, or loading options are given with a model object.
            ValueError: If an option, the vocabulary or the chat template does not fit; the message says what to do.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        self.sampler = Sampler(temperature, top_k, top_p, confidence)
        limits = Limits(max_step_tokens, max_new_tokens, None)
        _check_positive(micro_batch=micro_batch, check_every=check_every)
        check_cache_options(cache, max_cache_bytes)
        self.model = load_model(model, AutoModelForCausalLM, device=device, dtype=dtype, **load_options)
        source = model if isinstance(model, str | os.PathLike) else self.model
        shared = {"trust_remote_code", "token"} | ({"revision"} if tokenizer in (None, model) else set())
        self.tokenizer = load_tokenizer(tokenizer, source, **{k: v for k, v in load_options.items() if k in shared})
        check_vocabulary(self.model, self.tokenizer)
        self.limits = replace(limits, context=context_length(self.model.config))
        self.stats = GeneratorStats()
        self._text = TokenText(self.tokenizer, step_delimiter, eos_ids(self.model, self.tokenizer, eos_token_id))
        self._encode_prompt = lru_cache(maxsize=4096)(
            PromptFormat.choose(self.tokenizer, chat_template, system_prompt).encode
        )
        self._charges = Charges(self.model)
        self._rows = micro_batch or _ROWS
        self._check_every = check_every or (1 if self.model.device.type == "cpu" else _CHECK_EVERY)
        self._lock = threading.Lock()
        self._plain = StatelessDecoder(self.model, self.stats) if decoder is None else decoder(self.stats)
        self._tree = self._tree_decoder(max_cache_bytes) if cache == "tree" and decoder is None else None
        self._bound = length_bound(self.model.config)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order.

        A step's `logprob` is the sum of its tokens' log-probabilities under the distribution that they were drawn
        from (after temperature and filters; the plain model distribution for greedy tokens). Forced text is the head
        of the step's text and ids, counts as prompt tokens, and has no part in `logprob`, `confidence` and
        `generated_tokens`.

        Raises:
            ValueError: If a prompt does not fit into the model's context, or a node has no token ids.
            SearchMemoryError: If not even one row fits into memory.
            FloatingPointError: If the model's logits hold NaN or infinity.
        """
        started = time.perf_counter()
        groups = [open_branches(request, self._encode_prompt, self._text, self.limits) for request in requests]
        waiting = [branch for group in groups for branch in group if branch.finish is None]
        with self._lock, evaluating(self.model), torch.inference_mode():
            for decoder, branches in self._assigned(waiting):
                self._sample(decoder, branches)
        steps = [[branch.step(self._charges.sample) for branch in group] for group in groups]
        report_tokens(self.model, sampled=sum(step.generated_tokens for group in steps for step in group))
        self.stats.seconds += time.perf_counter() - started
        return steps

    def _sample(self, decoder: Decoder, branches: Sequence[Branch]) -> None:
        def run(rows: int) -> None:
            sample_branches(branches, rows, decoder, self.sampler, self.stats, self._check_every)

        def left() -> list[Branch]:
            return [branch for branch in branches if branch.finish is None]

        self._rows = run_halving(run, self._rows, left, self._describe, decoder.make_room)

    def release(self, root: Node) -> None:
        """Lets go of the keys and values kept for a search that has ended."""
        with self._lock:
            for decoder in (self._plain, self._tree):
                if decoder is not None:
                    decoder.release(root.key)

    @property
    def shares_prefixes(self) -> bool:
        """Whether prefixes are read once (``cache="tree"``, and the model has passed the check)."""
        return self._tree is not None

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have."""
        return most_sample_tokens(request, self._encode_prompt, self._text, self.limits)

    def _tree_decoder(self, max_cache_bytes: int | None) -> Decoder | None:
        """The decoder that shares prefixes, if this model can be run so."""
        session = checked_session(self.model)
        if session is None:
            return None
        size = default_cache_bytes(self.model) if max_cache_bytes is None else max_cache_bytes
        return TreeDecoder(session, KVStore(size), self.stats)

    def _assigned(self, branches: Sequence[Branch]) -> list[tuple[Decoder, list[Branch]]]:
        """Which decoder runs which branches."""
        if self._tree is None:
            return [(self._plain, list(branches))]
        ordered, bound = side_by_side(branches), self._bound
        if bound is None:
            return [(self._tree, ordered)]
        short, long = list[Branch](), list[Branch]()
        for branch in ordered:
            (short if len(branch.prefix) + branch.most_tokens <= bound else long).append(branch)
        return [(self._tree, short), (self._plain, long)]

    def _describe(self, branch: Branch) -> str:
        return (
            f"{len(branch.prefix)} tokens read and up to {branch.most_tokens} to sample, {self.model.dtype}; "
            "lower max_new_tokens or max_step_tokens, or load the model in a smaller dtype"
        )


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give a positive number")
