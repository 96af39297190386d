"""`VLLMGenerator`: samples steps with vLLM in this process."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from inferscale._compat import require
from inferscale.base import Generator, Traffic
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import Branch, BranchFactory, Limits
from inferscale.runtime.charges import Charges, row_groups
from inferscale.runtime.loading import eos_of, refuse_unknown
from inferscale.runtime.processing import LogitsProcessing
from inferscale.runtime.prompts import ControlTokens
from inferscale.runtime.sampling import Sampler
from inferscale.runtime.text import StepDelimiter, checked_delimiter, checked_stops
from inferscale.tree import Step, branch_key

_ENGINE_SETTINGS = ("model", "revision", "dtype", "quantization", "max_model_len", "logprobs_mode")
"""Of a vLLM engine, whose weights are not at hand: what its texts depend on."""


class VLLMGenerator(Generator):
    """Samples steps with a vLLM engine in this process; all requests of all problems are in its hands together.

    Prompts are sent as ids, one request for each distinct parent with as many samples as it has children, and
    automatic prefix caching is on: what a tree shares is computed once, as long as the engine keeps it. (It keeps
    whole blocks: choose `block_size` below the length of a step.)

    Every sample has a seed of its own, named by seed, problem and path. In float32 a branch's tokens depend on nothing
    else; in half precision a batch of another size can change the last bits of the logits, and now and then a token
    (see vLLM's batch invariance). Ids are the truth: steps end, and are read, as with `HFGenerator`.

    One call runs at a time, which is why `concurrent` is False: all searches share it, which gives the engine most to
    do. What it has been given is waited for, whatever the time; a search whose time is over asks for nothing more.

    Attributes:
        llm: The engine.
        tokenizer: The tokenizer.
        sampler: Temperature and filters.
        processing: The repetition penalty.
        seeds: True if samples have seeds.
        step_delimiter: What ends a step.
        stop: Texts that end the answer.
        limits: Lengths.
        thinking: The markers of thoughts that chat template or vocabulary show; control tokens among them stay text.

    Example:
        Needs vLLM::

            generator = isc.VLLMGenerator.from_pretrained(
                "Qwen/Qwen2.5-1.5B-Instruct", temperature=0.7, max_model_len=8192, block_size=16
            )
            results = isc.solve_batch(problems, isc.REBASE(16), generator, reward_model=judge)
    """

    held_in: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), "sampler"),
        "llm": "_engine",
        "chat_template": "takes_messages",
    }

    def __init__(
        self,
        llm: Any,
        tokenizer: Any = None,
        *,
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        seeds: bool = True,
        eos_token_id: int | list[int] | None = None,
    ) -> None:
        """Takes an engine that runs.

        Args:
            llm: A ``vllm.LLM``. With its ``logprobs_mode="processed_logprobs"`` steps have a `logprob` after
                temperature and filters, with ``"raw_logprobs"`` a `confidence` (the tokens' mean log-probability)
                instead. Where nothing is between the two they have both.
            tokenizer: The tokenizer; by default the engine's.
            step_delimiter: Text that ends a step, or, as for `HFGenerator`, a regular expression or a function of text.
                vLLM cannot stop at those: steps are sampled to `max_step_tokens` and cut.
            stop: Texts that end the answer, and are left out of it; see `HFGenerator`.
            max_step_tokens: A step is cut after this many sampled tokens; the path can go on.
            max_new_tokens: Most tokens of a whole path, forced text included; paths end there (``"length"``), or
                where the engine's ``max_model_len`` is reached.
            temperature: Sampling temperature; 0 takes the likeliest token.
            top_p: Nucleus sampling: mass of the likeliest tokens that is kept.
            top_k: Number of the likeliest tokens that are kept; 0 keeps all.
            min_p: Tokens at least so many times as likely as the likeliest one are kept; 0 keeps all.
            repetition_penalty: Lowers the logits of tokens that are in prompt or answer already.
            chat_template: True renders problems with the tokenizer's chat template, a prompt as the user's turn; by
                default if it has one.
            system_prompt: System turn of conversations that have none of their own.
            chat_template_kwargs: Variables of the chat template, such as ``{"enable_thinking": False}``; one that it
                never mentions is refused.
            tools: What the model may call, as JSON schemas or documented functions, for the chat template.
            control_tokens: What becomes of control tokens that a problem spells: ``"text"`` reads them as letters,
                ``"refuse"`` raises, ``"keep"`` lets them be tokens. By default ``"text"`` in chats, and ``"keep"`` in
                plain prompts, which may be chats that are rendered already.
            seeds: True gives every sample a seed of its own. Without them results cannot be repeated, and depend on the
                batch; for builds of vLLM that fail with them.
            eos_token_id: Ids that end an answer; by default those of the model's generation config and the tokenizer.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` starts an engine.
            ValueError: If an option or the chat template does not fit.
        """
        if isinstance(llm, str | os.PathLike):
            path = os.fspath(llm)
            raise TypeError(f"VLLMGenerator(llm) takes a vllm.LLM: VLLMGenerator.from_pretrained({path!r}) starts one")
        self.sampler = Sampler(temperature, top_k, top_p, min_p=min_p)
        self.processing = LogitsProcessing(repetition_penalty)
        self.seeds = seeds
        self.step_delimiter = step_delimiter
        self.stop = checked_stops(stop)
        self.llm = llm
        config = llm.model_config
        self._logprobs_mode = str(config.logprobs_mode)
        if self._logprobs_mode not in ("raw_logprobs", "processed_logprobs"):
            raise ValueError(f'logprobs_mode="{self._logprobs_mode}" of the engine: it must report log-probabilities')
        self._engine = {name: str(getattr(config, name, None)) for name in _ENGINE_SETTINGS}
        self.tokenizer = llm.get_tokenizer() if tokenizer is None else tokenizer
        self.limits = Limits(max_step_tokens, max_new_tokens, int(config.max_model_len))
        named = [config.try_get_generation_config().get("eos_token_id"), self.tokenizer.eos_token_id]
        self._branches = BranchFactory(
            self.tokenizer,
            eos_of([eos_token_id] if eos_token_id is not None else named),
            self.limits,
            step_delimiter=step_delimiter,
            stop=stop,
            chat_template=chat_template,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            control_tokens=control_tokens,
        )
        self._branches.text.check_delimiter()
        self.thinking = self._branches.thinking
        self.takes_messages = self._branches.prompts.chat
        self._charges = Charges(config.hf_config)
        self._charges.widths = _widths(llm)
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        seeds: bool = True,
        eos_token_id: int | list[int] | None = None,
        **engine_options: Any,
    ) -> VLLMGenerator:
        """A generator with an engine that is started; the options that are not named here are those of the class.

        Args:
            path_or_id: A local folder or a hub id.
            tokenizer: The tokenizer; by default the engine's.
            engine_options: Passed on to ``vllm.LLM``; by default ``enable_prefix_caching=True`` and
                ``logprobs_mode="processed_logprobs"``.

        Raises:
            ImportError: If vLLM is not installed.
            TypeError: If vLLM does not know an option.
            ValueError: If an option or the chat template does not fit.
        """
        vllm: Any = require("vllm", "vllm")
        # Bad options are told before the engine is started.
        Sampler(temperature, top_k, top_p, min_p=min_p), LogitsProcessing(repetition_penalty)
        Limits(max_step_tokens, max_new_tokens, None), checked_delimiter(step_delimiter), checked_stops(stop)
        if names := getattr(getattr(vllm, "EngineArgs", None), "__dataclass_fields__", ()):
            known = {*inspect.signature(vllm.LLM).parameters, *names}
            refuse_unknown([name for name in engine_options if name not in known], known, cls.from_pretrained)
        defaults = {"enable_prefix_caching": True, "logprobs_mode": "processed_logprobs"}
        return cls(
            vllm.LLM(os.fspath(path_or_id), **{**defaults, **engine_options}),
            tokenizer,
            step_delimiter=step_delimiter,
            stop=stop,
            max_step_tokens=max_step_tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            chat_template=chat_template,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            control_tokens=control_tokens,
            seeds=seeds,
            eos_token_id=eos_token_id,
        )

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """``request.n`` steps for each request, in order; as `HFGenerator.generate`, where vLLM can tell.

        Raises:
            RuntimeError: If the engine fails while samples have seeds; without them it may not.
        """
        groups = [self._branches.open(request) for request in requests]
        waiting: list[list[Branch]] = groups
        with self._lock:
            while calls := [left for call in waiting if (left := _open(call))]:
                self._run(calls)
                # A sample that the engine ended too early for us goes on alone.
                waiting = [[branch] for call in calls for branch in call]
        return [[self._known(branch, branch.step(self._charges.sample)) for branch in group] for group in groups]

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have."""
        return self._branches.max_sample_tokens(request)

    def traffic(self, requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]]) -> Traffic | None:
        """Return the bytes that sampling these steps moves, in one batch; ``None`` if they are not known.

        As those of `HFGenerator`, but that each row reads the prompt's keys and values, which are held once. The engine
        may cut a prompt into chunks and rows into waves, and then reads the weights more often. Not known are those of
        quantised weights or caches, and of models with recurrent states.
        """
        spec = self._charges.spec
        if spec is None or any(spec.states or ()):
            return None
        return self._charges.traffic(row_groups(self._branches, requests, answers, shares_prompts=False))

    def _run(self, calls: Sequence[Sequence[Branch]]) -> None:
        """Samples branches that have the same ids before them in one request of the engine."""
        prompts = [{"prompt_token_ids": [*call[0].prefix, *call[0].tokens]} for call in calls]
        options = [self._options(call) for call in calls]
        try:
            outputs = self.llm.generate(prompts, options, use_tqdm=False)
        except Exception as error:
            if all(each.seed is None for each in options):
                raise
            raise RuntimeError(
                f"vLLM failed while its samples had seeds ({type(error).__name__}: {error}), which some builds do: "
                "start the engine again with seeds=False, and results cannot be repeated; a journal keeps what has come"
            ) from error
        for call, output in zip(calls, outputs, strict=True):
            samples = output.outputs * len(call) if len(output.outputs) < len(call) else output.outputs
            for branch, sample in zip(call, samples, strict=True):
                _push(branch, sample)

    def _options(self, call: Sequence[Branch]) -> Any:
        import vllm

        first, text, sampler = call[0], call[0].text, self._sampler(call[0])
        stops = [*text.stops]
        if first.request.until == "step" and isinstance(text.delimiter, str):
            stops.append(text.delimiter)
        options: dict[str, Any] = {"temperature": 0.0}  # one sample is all samples
        if not self._is_greedy(first):
            options = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
            options |= {"n": len(call), "seed": _seed(first) if self.seeds else None}
            options |= {"min_p": sampler.min_p} if sampler.min_p else {}
        if self.processing.repetition_penalty != 1:
            options["repetition_penalty"] = self.processing.repetition_penalty
        return vllm.SamplingParams(
            max_tokens=first.most_tokens,
            stop=stops or None,
            include_stop_str_in_output=True,
            detokenize=bool(stops),
            stop_token_ids=sorted(text.eos_ids),
            ignore_eos=True,  # they are in stop_token_ids
            logprobs=0,  # the sampled token's own
            **options,
        )

    def _is_greedy(self, branch: Branch) -> bool:
        return branch.request.greedy or self._sampler(branch).temperature == 0

    def _sampler(self, branch: Branch) -> Sampler:
        """Temperature and filters of a branch."""
        given = branch.request.temperature
        return self.sampler if given is None else self.sampler.at(given)

    def _known(self, branch: Branch, step: Step) -> Step:
        """The step with the numbers that the engine's log-probabilities are."""
        plain = self._sampler(branch) == Sampler() or self._is_greedy(branch)
        if plain and self.processing == LogitsProcessing():
            return step
        if self._logprobs_mode == "raw_logprobs":
            return replace(step, logprob=None)
        return replace(step, confidence=None, model_logprob=None)


def _widths(llm: Any) -> tuple[int, int] | None:
    """Bytes of a weight and of a cached number of an engine; ``None`` if it is quantised, or does not tell."""
    config = llm.model_config
    cache = getattr(getattr(getattr(llm, "llm_engine", None), "vllm_config", None), "cache_config", None)
    width = getattr(getattr(config, "dtype", None), "itemsize", None)
    is_plain = getattr(config, "quantization", None) is None and getattr(cache, "cache_dtype", None) == "auto"
    return (width, width) if width and is_plain else None


def _open(call: Sequence[Branch]) -> list[Branch]:
    """The branches that go on; those whose request is over do not."""
    for branch in call:
        if branch.finish is None and branch.request.is_over:
            branch.finish = "budget"
    return [branch for branch in call if branch.finish is None]


def _seed(branch: Branch) -> int:
    """The seed of a request whose first sample is `branch`; the engine adds 1 for each further sample."""
    if branch.tokens:  # another stream than the one that gave these tokens
        return branch_key(branch.key, len(branch.tokens)) >> 2
    return (branch.request.node.key >> 2) + branch.request.first + branch.index


def _push(branch: Branch, sample: Any) -> None:
    """Gives a branch the tokens of the engine's `sample`, until it ends."""
    if not sample.token_ids:
        raise RuntimeError(f"vLLM ended a sample without a token ({sample.finish_reason})")
    for token, table in zip(sample.token_ids, sample.logprobs, strict=True):
        logprob = float(table[token].logprob)
        if not branch.push(int(token), logprob, logprob, logprob):
            return
