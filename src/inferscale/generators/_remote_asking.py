"""Draws samples from a server: several requests at a time, each sample until it has ended or failed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from inferscale.flow import GenerateRequest

from ._remote_probes import CONTINUE, Support
from ._remote_reading import Reading
from ._remote_replies import Choice, Reply
from ._remote_retry import RemoteError
from ._remote_samples import RemoteSample, tokens_of
from ._remote_server import Server


@dataclass(frozen=True)
class Sampling:
    """What is asked of the server.

    Attributes:
        delimiter: Text that ends a step.
        temperature: Sampling temperature.
        top_p: Nucleus sampling.
        logprobs: Whether to ask for log-probabilities; ``None`` where the server returns them.
        seeds: Whether to send seeds.
    """

    delimiter: str
    temperature: float
    top_p: float
    logprobs: bool | None
    seeds: bool

    def is_greedy(self, request: GenerateRequest) -> bool:
        """Whether the likeliest tokens are taken."""
        return request.greedy or self.temperature == 0

    def is_plain(self, request: GenerateRequest) -> bool:
        """Whether tokens are drawn from the model's own distribution, which log-probabilities are read from."""
        return self.is_greedy(request) or (self.temperature == 1 and self.top_p == 1)


@dataclass(frozen=True)
class Asking:
    """Draws samples.

    Attributes:
        server: Takes the requests.
        support: What it supports.
        sampling: What is asked of it.
        reading: The tokenizer, if there is one.
        workers: Most requests at a time.
    """

    server: Server
    support: Support
    sampling: Sampling
    reading: Reading | None
    workers: int

    def draw(self, groups: Sequence[Sequence[RemoteSample]]) -> None:
        """Asks for the samples of each group, which continue one node.

        Raises:
            RemoteError: If the server takes no requests of this kind, whatever they hold.
        """
        jobs = [job for group in groups for job in self._jobs(group)]
        if not jobs:
            return
        stopped = threading.Event()
        pool = ThreadPoolExecutor(min(self.workers, len(jobs)), thread_name_prefix="inferscale-remote")
        try:
            for done in as_completed([pool.submit(self._complete, job, stopped) for job in jobs]):
                done.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _jobs(self, group: Sequence[RemoteSample]) -> list[list[RemoteSample]]:
        """Samples of one node, together where the server draws them as it would one by one."""
        if len(group) > 1 and not self.sampling.is_greedy(group[0].request) and self.support.many(self.sampling.seeds):
            return [list(group)]
        return [[sample] for sample in group]

    def _complete(self, samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
        """Asks until every sample has ended; those that do not end with the first answer go on alone."""
        if len(samples) > 1:
            self._ask(samples, stopped)
        for sample in samples:
            while sample.finish is None:
                self._ask([sample], stopped)

    def _ask(self, samples: Sequence[RemoteSample], stopped: threading.Event) -> None:
        asked = samples[0].left
        try:
            reply = self.server.ask(self._fields(samples), stopped)
        except RemoteError as error:
            if error.kind == "denied" or stopped.is_set():
                raise
            for sample in samples:
                sample.fail(error)
            return
        choices = reply.choices[: len(samples)]
        read, counts = self._counts(samples[0], reply, choices, asked)
        for sample, choice, tokens in zip(samples, choices, counts, strict=False):
            sample.take(choice, tokens, read)
        self.server.count(samples=sum(sample.error is None for sample in samples[: len(choices)]))

    def _fields(self, samples: Sequence[RemoteSample]) -> dict[str, Any]:
        first, sampling, prefix = samples[0], self.sampling, samples[0].prefix()
        more: dict[str, Any] = {}
        if len(samples) > 1:
            more["n"] = len(samples)
        if first.request.until == "step":
            more["stop"] = [sampling.delimiter]
        if self.support.logprobs if sampling.logprobs is None else sampling.logprobs:
            more["logprobs"] = self.server.logprobs_field
        if prefix.ids is not None:
            more["return_token_ids"] = True
        if self.server.chat and prefix.answer:
            more.update(CONTINUE)
        if sampling.is_greedy(first.request):
            return self.server.fields(prefix, first.left, 0.0, **more)
        if sampling.seeds and self.support.seeds:
            more["seed"] = first.seed
        return self.server.fields(prefix, first.left, sampling.temperature, top_p=sampling.top_p, **more)

    def _counts(
        self, sample: RemoteSample, reply: Reply, choices: Sequence[Choice], asked: int
    ) -> tuple[int, list[int]]:
        """Tokens of the prefix and of each choice, by the server's word or the tokenizer's count."""
        read, total = reply.prompt_tokens, reply.generated_tokens
        if self.reading is not None:
            if not read:  # a prefix is never empty
                read = self.reading.count(sample.prefix())
            if total is None:
                total = sum(self.reading.count_sampled(choice) for choice in reply.choices)
        return read or 0, tokens_of(choices, total or 0, asked)
