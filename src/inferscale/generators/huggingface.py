"""`HFGenerator`: samples steps from any causal language model of transformers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from inferscale.base import Generator
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Step, branch_key

from .branch import Branch, Limits
from .charges import Charges
from .loading import check_vocabulary, context_length, eos_ids, load_model, load_tokenizer
from .memory import run_in_pieces
from .prompts import PromptFormat
from .sampling import Confidence, Sampler, uniforms
from .stateless import StatelessDecoder
from .text import TokenText

_ROWS = 64


@dataclass
class GeneratorStats:
    """What a generator has really done, padding and repeats included.

    Attributes:
        prefill_tokens: Prefix tokens read by the model.
        decoded_tokens: Tokens sampled and kept.
        wasted_tokens: Tokens sampled again after memory ran out.
        seconds: Time in `HFGenerator.generate`.
    """

    prefill_tokens: int = 0
    decoded_tokens: int = 0
    wasted_tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second."""
        return self.decoded_tokens / self.seconds if self.seconds else 0.0


class HFGenerator(Generator):
    """Samples steps from a causal language model; all requests of all problems decode in shared batches.

    Every branch draws from its own random stream, so in float32 a branch's tokens depend on the seed, the problem and
    the path alone, not on what else is in the batch. (In half precision a batch of another size can change the last
    bits of the logits, and now and then a token.)

    A step ends with the token that completes `step_delimiter` after at least one character that is not blank, or at
    `max_step_tokens`. Ids are the truth: text is decoded from them and never encoded again.

    Attributes:
        model: The model, in use only while `generate` runs.
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
            micro_batch: Most rows decoded at a time (default 64); halved when memory runs out.
            load_options: Passed on to ``from_pretrained``, for example ``trust_remote_code`` or ``revision``.

        Raises:
            ValueError: If an option, the vocabulary or the chat template does not fit; the message says what to do.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        self.sampler = Sampler(temperature, top_k, top_p, confidence)
        _check_positive(max_step_tokens=max_step_tokens, max_new_tokens=max_new_tokens, micro_batch=micro_batch)
        self.model = load_model(model, AutoModelForCausalLM, device=device, dtype=dtype, **load_options)
        source = model if isinstance(model, str | os.PathLike) else self.model
        remote = {k: v for k, v in load_options.items() if k in ("trust_remote_code", "revision", "token")}
        self.tokenizer = load_tokenizer(tokenizer, source, **remote)
        check_vocabulary(self.model, self.tokenizer)
        self.limits = Limits(max_step_tokens, max_new_tokens, context_length(self.model.config))
        self.stats = GeneratorStats()
        self._text = TokenText(self.tokenizer, step_delimiter, eos_ids(self.model, self.tokenizer, eos_token_id))
        self._encode_prompt = lru_cache(maxsize=4096)(
            PromptFormat.choose(self.tokenizer, chat_template, system_prompt).encode
        )
        self._charges = Charges(self.model)
        self._rows = micro_batch or _ROWS

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order.

        A step's `logprob` is the sum of its tokens' log-probabilities under the distribution that they were drawn
        from (after temperature and filters; the plain model distribution for greedy tokens). Forced text is the head
        of the step's text and ids, counts as prompt tokens, and has no part in `logprob`, `confidence` and
        `generated_tokens`.

        Raises:
            ValueError: If a prompt does not fit into the model's context, or a node has no token ids.
            SearchMemoryError: If not even one row fits into memory.
        """
        started = time.perf_counter()
        groups = [self._branches(request) for request in requests]
        waiting = [branch for group in groups for branch in group if branch.finish is None]
        with _evaluating(self.model), torch.inference_mode():
            self._rows = run_in_pieces(waiting, self._rows, self._decode, self._describe)
        steps = [[branch.step(self._charges.sample) for branch in group] for group in groups]
        self.stats.seconds += time.perf_counter() - started
        return steps

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have."""
        forced = len(self._text.encode_plain(request.forced)) if request.forced else 0
        room = self.limits.room(len(self._prompt(request.node)), len(request.node.token_ids) + forced)
        return max(min(room, self.limits.step) if request.until == "step" else room, 1)

    def _prompt(self, node: Node) -> tuple[int, ...]:
        prompt = node.problem.prompt
        ids = self._encode_prompt(prompt)
        if self.limits.context is not None and len(ids) >= self.limits.context:
            raise ValueError(
                f"the prompt {prompt[:80]!r} has {len(ids)} tokens and the model reads {self.limits.context}: "
                "there is no room for an answer; shorten it"
            )
        return ids

    def _branches(self, request: GenerateRequest) -> list[Branch]:
        prompt, path = self._prompt(request.node), _path_ids(request.node)
        forced = tuple(self._text.encode_plain(request.forced)) if request.forced else ()
        keys = [branch_key(request.node.key, request.first + index) for index in range(request.n)]
        return [
            Branch(request, index, key, prompt, path, forced, self._text, self.limits) for index, key in enumerate(keys)
        ]

    def _decode(self, branches: Sequence[Branch]) -> None:
        """Samples all of `branches` to their ends, in one batch."""
        for branch in branches:
            self.stats.wasted_tokens += len(branch.tokens)
            branch.restart()
        decoder, live = StatelessDecoder(self.model), list(branches)
        logits = decoder.start([branch.prefix for branch in live])
        self.stats.prefill_tokens += sum(len(branch.prefix) for branch in live)
        while True:
            tokens = self._draw(live, logits)
            rows = [row for row, branch in enumerate(live) if branch.finish is None]
            if len(rows) < len(live):
                live = [live[row] for row in rows]
                if not live:
                    break
                decoder.keep(rows)
                tokens = tokens[torch.tensor(rows, device=tokens.device)]
            logits = decoder.step(tokens)
        self.stats.decoded_tokens += sum(len(branch.tokens) for branch in branches)

    def _draw(self, live: Sequence[Branch], logits: torch.Tensor) -> torch.Tensor:
        """Draws one token for each branch and hands it over; the ids, `[rows]`."""
        keys = np.array([branch.key for branch in live], dtype=np.uint64)
        counters = np.array([len(branch.tokens) for branch in live], dtype=np.uint64)
        numbers = torch.from_numpy(uniforms(keys, counters)).to(logits.device)
        wanted = [branch.request.greedy for branch in live]
        greedy = torch.tensor(wanted, device=logits.device) if any(wanted) else None
        draws = self.sampler.draw(logits, numbers, greedy)
        columns = zip(draws.tokens.tolist(), draws.logprobs.tolist(), draws.confidences.tolist(), strict=True)
        for branch, (token, logprob, confidence) in zip(live, columns, strict=True):
            branch.push(token, logprob, confidence)
        return draws.tokens

    def _describe(self, branch: Branch) -> str:
        room = min(branch.room, self.limits.step) if branch.request.until == "step" else branch.room
        return (
            f"{len(branch.prefix)} tokens read and up to {room} to sample, {self.model.dtype}; lower max_new_tokens "
            "or max_step_tokens, or load the model in a smaller dtype"
        )


def _path_ids(node: Node) -> tuple[int, ...]:
    for step in node.steps:
        if step.text and not step.token_ids:
            raise ValueError(
                f"{node!r} holds text without token ids (another generator's?): HFGenerator cannot continue it"
            )
    return node.token_ids


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give a positive number")


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Turns dropout off while sampling, and back on for a model that is being trained."""
    training = [module for module in model.modules() if module.training] if model.training else []
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
