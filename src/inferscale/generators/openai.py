"""`OpenAIGenerator`: samples steps from any server that speaks OpenAI's protocol (no torch)."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from inferscale.base import Generator
from inferscale.flops.families import model_spec
from inferscale.flow import GenerateRequest
from inferscale.tree import Step

from ._remote_asking import Asking, Sampling
from ._remote_opening import open_samples
from ._remote_options import address_of, check_address, check_sampling, client_of
from ._remote_probes import Support
from ._remote_reading import Reading
from ._remote_retry import Patience, RemoteError
from ._remote_samples import RemoteSample
from ._remote_server import Endpoint, RemoteStats, Server
from .branch import Limits

_ENOUGH_ALIKE = 4


class OpenAIGenerator(Generator):
    """Samples steps from a server that speaks OpenAI's protocol, such as vLLM, SGLang or llama.cpp.

    What a server supports beyond plain requests (several samples in one request, seeds, token ids, log-probabilities,
    how it treats stop strings) is tried once, when it is first needed, and only what works is sent.

    Given the model's tokenizer, and a server that takes and returns token ids, prompts are sent as ids and steps are
    those of `HFGenerator`, token by token: no prefix is encoded twice, and a server that caches prefixes finds them.
    Otherwise texts are sent, and steps hold no ids.

    A sample's seed derives from the node and the number of the draw, so on a server that keeps to its seeds results
    depend neither on the batch nor on the schedule.

    A request that fails is made again where that may help. A sample that fails for good becomes a failed leaf
    (``finish_reason="error"``, its text says why) and the search goes on; when nothing comes any more, or the key,
    address or model is wrong, `generate` raises, and a search with a journal can go on later.

    Attributes:
        stats: What was really asked, and the last error.
        temperature: Sampling temperature.
        limits: Lengths.
    """

    concurrent = True

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        endpoint: Endpoint = "completions",
        api_key: str | None = None,
        tokenizer: Any = None,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        step_delimiter: str = "\n",
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        logprobs: bool | None = None,
        seeds: bool = True,
        config: Any = None,
        max_concurrency: int = 32,
        timeout: float = 300.0,
        deadline: float = 900.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the options; the server is first asked when the first samples are.

        Args:
            base_url: Where the server is, mostly with ``/v1`` at the end.
            model: The model's name on the server.
            endpoint: ``"completions"`` goes on with a text; ``"chat"`` answers a user turn by the server's own chat
                template, and goes on with an answer only where the server knows how (vLLM, SGLang).
            api_key: The key; by default that in the environment variable ``OPENAI_API_KEY``, if there is one.
            tokenizer: The model's tokenizer, or a folder or hub id to load it from: makes prompts ids, and counts
                tokens where the server does not.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template (completions endpoint);
                by default if it has one.
            system_prompt: System turn of the chat.
            step_delimiter: Text that ends a step.
            max_step_tokens: A step is cut after this many sampled tokens; the path can go on.
            max_new_tokens: Most tokens of a whole path, forced text included where ids are known.
            temperature: Sampling temperature; 0 takes the likeliest token.
            top_p: Nucleus sampling: mass of the likeliest tokens that is kept.
            logprobs: Whether to ask for log-probabilities; by default where the server returns them.
            seeds: Whether to send seeds. Without them a server that takes ``n`` is asked for all samples of a node at
                once, whatever its rule for seeds, and results cannot be repeated.
            config: The model's transformers configuration, its dictionary or a `ModelSpec`: FLOPs are computed from
                it, and are 0 without it.
            max_concurrency: Most requests at a time.
            timeout: Longest silence of the server during one request, seconds.
            deadline: Longest time for a request and all its repetitions, seconds; at most 30 for the very first one.
            extra_body: Further fields for every request, such as ``{"top_k": 20}``; none that the options set.

        Raises:
            ImportError: If the ``openai`` package is missing.
            TypeError: If `config` is no configuration.
            ValueError: If an option is bad.
            UnknownArchitectureError: If `config` has no closed form.
        """
        check_address(base_url, endpoint)
        check_sampling(step_delimiter, temperature, top_p, extra_body)
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency}: at least one request must be made at a time")
        if tokenizer is None and endpoint == "completions" and (chat_template or system_prompt):
            raise ValueError('chat_template and system_prompt need tokenizer=..., or endpoint="chat"')
        self.temperature = temperature
        self.limits = Limits(max_step_tokens, max_new_tokens, None)
        self._spec = None if config is None else model_spec(config)
        self._name = f"{address_of(base_url)!r}, {model!r}, endpoint={endpoint!r}"
        self._warned = threading.Event()
        self._plain = not extra_body  # further fields may well be filters
        reading = None
        if tokenizer is not None:
            system = system_prompt if endpoint == "completions" else None
            reading = Reading.of(tokenizer, step_delimiter, chat_template, system)
        key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        client = client_of(base_url, key)
        weakref.finalize(self, client.close)  # before its sockets are collected, which would warn
        server = Server(
            client,
            model,
            endpoint,
            system_prompt=system_prompt,
            patience=Patience(timeout, deadline),
            max_concurrency=max_concurrency,
            extra_body=extra_body or {},
            secrets=(key,) if key else (),
            needs_usage=tokenizer is None,
        )
        sampling = Sampling(step_delimiter, temperature, top_p, logprobs, seeds)
        self._asking = Asking(server, Support(server), sampling, reading, max_concurrency)

    @property
    def stats(self) -> RemoteStats:
        """What was really asked of the server."""
        return self._asking.server.stats

    def __repr__(self) -> str:
        """Address, model and endpoint."""
        return f"OpenAIGenerator({self._name})"

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have."""
        room = self.limits.room(0, sum(step.generated_tokens for step in request.node.steps))
        return max(min(room, self.limits.step) if request.until == "step" else room, 1)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order.

        A step's `confidence` is the mean log-probability of its tokens as the server reports them; `logprob`, their
        sum, is known only where tokens are drawn from that distribution (temperature 1 and no filters, or greedily).

        Raises:
            RemoteError: If no sample came and none can be hoped for: the message says why.
            ValueError: If the server cannot do what is asked for.
        """
        if not requests:
            return []
        support = self._asking.support
        support.contact(requests[0].node.problem.prompt)
        if self._asking.sampling.logprobs and not support.logprobs:
            raise ValueError(f"logprobs=True, but {self!r} returns no log-probabilities: leave it out, or ask another")
        before = self.stats.samples
        groups = [open_samples(request, self._asking, self.limits) for request in requests]
        waiting = [[sample for sample in group if sample.finish is None] for group in groups]
        self._asking.draw(waiting)
        self._check_alive([sample for group in waiting for sample in group], before)
        steps = [self._steps(request, group) for request, group in zip(requests, groups, strict=True)]
        self._warn_if_alike(requests, steps)
        return steps

    def _steps(self, request: GenerateRequest, group: Sequence[RemoteSample]) -> list[Step]:
        """The steps; the first that has not failed pays for what its siblings share."""
        payer = next((sample for sample in group if sample.error is None), None)
        plain = self._plain and self._asking.sampling.is_plain(request)
        return [
            sample.step(self._spec, sample is payer and request.first == 0, sample is payer, plain) for sample in group
        ]

    def _check_alive(self, asked: Sequence[RemoteSample], before: int) -> None:
        """Counts failures; raises if all samples have failed and there is no sign that others may come.

        A prefix that is too long says nothing about others. While other calls get samples, the server is alive.
        """
        errors = [sample.error for sample in asked if sample.error is not None]
        self._asking.server.count(failed_samples=len(errors))
        if len(errors) < len(asked):
            return
        samples = self.stats.samples
        lost = {"busy": samples == before, "broken": samples == before, "refused": samples == 0}
        for error in errors:
            if lost.get(error.kind, False):
                raise RemoteError(f"all {len(errors)} samples of {self!r} failed: {error}", error.kind)

    def _warn_if_alike(self, requests: Sequence[GenerateRequest], steps: Sequence[Sequence[Step]]) -> None:
        several = [
            [step.text for step in group]
            for request, group in zip(requests, steps, strict=True)
            if len(group) > 1 and not self._asking.sampling.is_greedy(request)
        ]
        alike = sum(map(len, several)) >= _ENOUGH_ALIKE and all(len(set(texts)) == 1 for texts in several)
        if alike and not self._warned.is_set() and not self._asking.support.samples:
            self._warned.set()
            warnings.warn(
                f"{self!r} gives the same text at any temperature: all samples of a node are alike "
                "(transformers serve needs do_sample in the model's generation config)",
                UserWarning,
                stacklevel=3,
            )
