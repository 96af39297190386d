"""`HFGenerator`: samples steps from any causal language model of transformers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from inferscale.base import Generator, Sampling, Traffic
from inferscale.cost import Cost
from inferscale.flops.traffic import RowGroup
from inferscale.flow import GenerateRequest
from inferscale.runtime.branch import BranchFactory, Limits
from inferscale.runtime.decoding import ModelRunner, check_counts
from inferscale.runtime.loading import (
    TransformersModel,
    TransformersTokenizer,
    check_pair,
    context_length,
    eos_ids,
    load_pair,
)
from inferscale.runtime.prefix_cache import check_cache_options
from inferscale.runtime.processing import LogitsProcessing
from inferscale.runtime.prompts import ControlTokens
from inferscale.runtime.sampling import Confidence, TokenSampler, choose_sampler
from inferscale.runtime.text import StepDelimiter, checked_delimiter, checked_stops
from inferscale.tree import Node, Step


class HFGenerator(Generator):
    """Samples steps from a causal language model; all requests of all problems decode in shared batches.

    A prompt is read once for all its branches and every node once for all its children, in whatever order a search
    comes back to them: keys and values are kept until the search has ended, or until `max_cache_bytes` is full. The
    way this is done is compared with the model's own forward when the generator is made, and again when sequences first
    pass a window; models that it does not fit, and sequences whose length changes what was read before (dynamic
    rotary embeddings), are run plainly, slower and with equal results. Recurrent and convolution states are parked and
    copied like keys and values.

    Every branch draws from its own random stream, so in float32 a branch's tokens depend on the seed, the problem and
    the path alone, not on what else is in the batch. (In half precision a batch of another size can change the last
    bits of the logits, and now and then a token.)

    Sampling follows the options given here: the checkpoint's generation config is read for end-of-sequence ids alone.

    A step ends with the token that completes `step_delimiter` after at least one character that is not blank, or at
    `max_step_tokens`. Ids are the truth: text is decoded from them and never encoded again.

    An answer ends at the end of sequence, or with the token that completes a text of `stop` (``"eos"``), wherever its
    characters lie among tokens and steps; only what was forced whole does not count. The step's text ends before it,
    and its ids hold all that was sampled, which is what was paid: `Step.inner_ends` says how many of them are the text,
    and reward models judge those. What stood before the first sampled token stays. Nothing goes on from such a step, so
    that the ids of every node that can grow are those of its text.

    Attributes:
        model: The model; it is in evaluation mode while `generate` runs.
        tokenizer: The tokenizer.
        sampler: Draws tokens.
        processing: What changes the logits before: repetition penalty and processors.
        limits: Lengths.
        step_delimiter: What ends a step.
        stop: Texts that end the answer.
        prompt_options: How problems become prompts, for a reward that reads them in the same way.
        stats: Work that was really done.
        thinking: The markers of thoughts that chat template or vocabulary show; control tokens among them stay text.

    Example:
        >>> import inferscale as isc
        >>> model, tokenizer = isc.zoo.load("policy-xs")  # or any causal model and tokenizer of transformers
        >>> generator = isc.HFGenerator(model, tokenizer, temperature=0.8, max_new_tokens=8)
        >>> result = isc.solve(isc.zoo.problems("dev")[0], isc.RepeatedSampling(4), generator)
        >>> len(result.trajectories), result.cost.generated_tokens <= 4 * 8
        (4, True)
    """

    no_effect = frozenset({"micro_batch", "check_every", "cache", "max_cache_bytes"})
    held_in: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "confidence"), "sampler"),
        "chat_template": "takes_messages",
    }

    def __init__(
        self,
        model: TransformersModel,
        tokenizer: TransformersTokenizer,
        *,
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        sampler: TokenSampler | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logits_processor: Sequence[Any] = (),
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
        confidence: Confidence = "logprob",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        eos_token_id: int | list[int] | None = None,
        micro_batch: int | None = None,
        check_every: int | None = None,
        cache: Literal["tree", "none"] = "tree",
        max_cache_bytes: int | None = None,
    ) -> None:
        """Checks everything that can be checked before sampling.

        Args:
            model: A transformers causal language model; it stays where it is.
            tokenizer: Its tokenizer.
            step_delimiter: What ends a step: a text, a compiled regular expression, or a function from a text to the
                end of its first step (``None`` or -1 while there is none). A function is given the step's sampled text
                from its first character that is not blank. For a text, only tokens that may complete it are decoded;
                for the other two the path is decoded, and the step searched, at every token. A text that the tokenizer
                cannot write is warned of.
            stop: Texts that end the answer; they are left out of its text, and their tokens are counted.
            max_step_tokens: A step is cut after this many sampled tokens; the path can go on.
            max_new_tokens: Most tokens of a whole path, forced text included; paths end there (``"length"``), or
                where the model's context is full.
            sampler: Draws tokens: a `Sampler`, or a `TokenSampler` of your own, in place of the shortcuts
                `temperature`, `top_p`, `top_k`, `min_p` and `confidence`.
            temperature: Sampling temperature; 0 takes the likeliest token.
            top_p: Nucleus sampling: mass of the likeliest tokens that is kept.
            top_k: Number of the likeliest tokens that are kept; 0 keeps all.
            min_p: Tokens at least so many times as likely as the likeliest one are kept; 0 keeps all.
            repetition_penalty: Lowers the logits of tokens that are in prompt or answer already, as in transformers.
            logits_processor: Transformers' `LogitsProcessor` objects, or functions of ``input_ids`` and ``scores``,
                called for each row alone, with its own ids ``[1, n]``, prompt included. Functions and transformers' own
                objects serve all rows. Of any other object each path has a copy, which may keep state: it is called for
                every token of its path, those of earlier steps included. What cannot be copied is given as a function
                without arguments that makes one.
            prefix_allowed_tokens_fn: Function of ``batch_id`` (always 0: a row is alone) and ``input_ids`` ``[n]`` to
                the ids that may come next, as in transformers.
            confidence: Kind of token confidence, of which `Step.confidence` is the mean; see `Sampler`.
            chat_template: True renders problems with the tokenizer's chat template, a prompt as the user's turn; by
                default if it has one.
            system_prompt: System turn of conversations that have none of their own.
            chat_template_kwargs: Variables of the chat template, such as ``{"enable_thinking": False}``; one that it
                never mentions is refused.
            tools: What the model may call, as JSON schemas or documented functions, for the chat template.
            control_tokens: What becomes of control tokens that a problem spells: ``"text"`` reads them as letters,
                ``"refuse"`` raises, ``"keep"`` lets them be tokens. By default ``"text"`` in chats, and ``"keep"`` in
                plain prompts, which may be chats that are rendered already.
            eos_token_id: Ids that end an answer; by default those of the model's generation config and the tokenizer.
            micro_batch: Most rows decoded at a time (default 256, or 512 of a model of less than 10 million weights);
                halved when memory runs out.
            check_every: Tokens drawn between two looks at which steps have ended (default: 1 on a CPU, 8 elsewhere,
                where a look waits for the device), and whether time is over. Results do not depend on it; tokens beyond
                an end are wasted.
            cache: ``"tree"`` reads shared prefixes once; ``"none"`` reads whole prefixes in every call.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory); what does not fit is computed again. Those of the rows that run come on top: `micro_batch`.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            ValueError: If an option, the vocabulary or the chat template does not fit; the message says what to do.
        """
        self.sampler = choose_sampler(sampler, temperature, top_p, top_k, confidence, min_p)
        self.processing = LogitsProcessing(repetition_penalty, logits_processor, prefix_allowed_tokens_fn)
        inside = check_pair(model, tokenizer, "HFGenerator")
        self.model = model
        self.tokenizer = tokenizer
        self.limits = Limits(max_step_tokens, max_new_tokens, context_length(inside.config))
        self.step_delimiter = step_delimiter
        self.stop = checked_stops(stop)
        self.prompt_options: dict[str, Any] = {
            "chat_template": chat_template,
            "system_prompt": system_prompt,
            "chat_template_kwargs": chat_template_kwargs,
            "tools": tools,
            "control_tokens": control_tokens,
        }
        branches = BranchFactory(
            tokenizer,
            eos_ids(inside, tokenizer, eos_token_id),
            self.limits,
            step_delimiter=step_delimiter,
            stop=stop,
            **self.prompt_options,
        )
        branches.text.check_delimiter()
        self.thinking = branches.thinking
        self._runner = ModelRunner(
            inside,
            branches,
            self.sampler,
            micro_batch=micro_batch,
            check_every=check_every,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
            processing=self.processing,
        )
        self.stats = self._runner.stats
        self.takes_messages = branches.prompts.chat
        self.takes_temperature = self.sampler.has_temperature

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: TransformersTokenizer | str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        step_delimiter: StepDelimiter = "\n",
        stop: str | Sequence[str] = (),
        max_step_tokens: int = 256,
        max_new_tokens: int = 1024,
        sampler: TokenSampler | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logits_processor: Sequence[Any] = (),
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
        confidence: Confidence = "logprob",
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        eos_token_id: int | list[int] | None = None,
        micro_batch: int | None = None,
        check_every: int | None = None,
        cache: Literal["tree", "none"] = "tree",
        max_cache_bytes: int | None = None,
        **load_options: Any,
    ) -> HFGenerator:
        """A generator around a model that is loaded; the options that are not named here are those of the class.

        Args:
            path_or_id: A local folder or GGUF file (never touches the network), or a hub id.
            tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
            device: Where to run; by default a GPU if there is one.
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            load_options: Passed on to transformers, for example ``trust_remote_code``, ``attn_implementation``,
                ``gguf_file`` (one of several) or ``revision`` (which is not that of a tokenizer named apart).

        Raises:
            TypeError: If an object is given in place of a folder or hub id.
            ValueError: If an option, a path, the vocabulary or the chat template does not fit.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        # Bad options are told before the model is loaded.
        sampler = choose_sampler(sampler, temperature, top_p, top_k, confidence, min_p)
        LogitsProcessing(repetition_penalty, logits_processor, prefix_allowed_tokens_fn)
        limits = Limits(max_step_tokens, max_new_tokens, None)
        check_cache_options(cache, max_cache_bytes)
        check_counts(micro_batch=micro_batch, check_every=check_every)
        checked_delimiter(step_delimiter), checked_stops(stop)
        of_text: dict[str, Any] = {
            "step_delimiter": step_delimiter,
            "stop": stop,
            "chat_template": chat_template,
            "system_prompt": system_prompt,
            "chat_template_kwargs": chat_template_kwargs,
            "tools": tools,
            "control_tokens": control_tokens,
        }
        model, loaded = load_pair(
            path_or_id,
            AutoModelForCausalLM,
            tokenizer,
            loader=cls.from_pretrained,
            check=lambda tokenizer: BranchFactory(tokenizer, (), limits, **of_text),
            device=device,
            dtype=dtype,
            **load_options,
        )
        return cls(
            model,
            loaded,
            max_step_tokens=max_step_tokens,
            max_new_tokens=max_new_tokens,
            sampler=sampler,
            repetition_penalty=repetition_penalty,
            logits_processor=logits_processor,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            eos_token_id=eos_token_id,
            micro_batch=micro_batch,
            check_every=check_every,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
            **of_text,
        )

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
        return self._runner.generate(requests)

    def open(self) -> Sampling:
        """A session that hands branches over as they end, and gives their rows to requests that came meanwhile.

        One whose `generate` was replaced, by a subclass for instance, is served by that, in rounds.
        """
        own = getattr(self.generate, "__func__", None) is HFGenerator.generate
        return self._runner.open() if own else super().open()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[n, d]`: the mean of the model's last hidden states over each text's tokens; zeros for a text without any.

        Texts are read one by one, so that a vector does not depend on the others. What it costs is `embedding_cost`.
        """
        model, rows = self._runner.model, dict[str, NDArray[np.float32]]()
        for text in dict.fromkeys(texts):
            ids = self._ids(text)
            with torch.inference_mode():
                read = torch.tensor([ids or [0]], device=model.device)
                output = model.base_model(input_ids=read, attention_mask=torch.ones_like(read), use_cache=False)
            states = output.last_hidden_state[0].float()  # [tokens, d]
            rows[text] = states.mean(dim=0).cpu().numpy() * np.float32(bool(ids))
        return np.stack([rows[text] for text in texts])

    def embedding_cost(self, texts: Sequence[str]) -> Cost:
        """The tokens and FLOPs of ``embed(texts)``, which reads equal texts once."""
        lengths = [length for text in dict.fromkeys(texts) if (length := len(self._ids(text)))]
        charges = self._runner.charges
        moved = [charges.traffic([RowGroup(length, length)]) for length in lengths]
        total = sum(sum(each) for each in moved if each)
        return Cost(
            prompt_tokens=sum(lengths),
            generator_flops=sum(charges.forward(length, 0, logits=0) for length in lengths),
            generator_bytes=total,
            cache_bytes=sum(each.cache for each in moved if each),
            rounds=len(lengths),
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def traffic(self, requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]]) -> Traffic | None:
        """Bytes that sampling these steps moves; ``None`` of a model without a closed form."""
        return self._runner.traffic(requests, answers)

    def release(self, root: Node) -> None:
        """Lets go of the keys and values kept for a search that has ended."""
        self._runner.release(root)

    @property
    def shares_prefixes(self) -> bool:
        """True if prefixes are read once (``cache="tree"``, and the model has passed the check)."""
        return self._runner.shares_prefixes

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """The most tokens that one sample of `request` can have."""
        return self._runner.branches.max_sample_tokens(request)
