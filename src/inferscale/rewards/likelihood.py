"""Likelihoods of steps as scores: of one language model, or of one against another."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, Self

import torch

from inferscale.base import check_judge
from inferscale.functional import Reduction
from inferscale.runtime.loading import check_pair, load_pair
from inferscale.runtime.prompts import ControlTokens
from inferscale.tree import Judge, Node

from .scorer import CacheKind, LocalProcessReward, TextStepEncoder, log_likelihood, self_certainty, token_predictions


class LikelihoodReward(LocalProcessReward):
    r"""Scores every step by its token probabilities under a causal language model.

    A step's score is ``exp`` of the mean or the least log-probability of its tokens. Cheap to have (any stronger
    policy will do), and the baseline that a trained process reward model has to beat. With
    ``measure="self-certainty"`` it is the mean or least distance of the predictions from uniform instead, in nats
    (Kang et al. 2025, arXiv:2502.18581), which asks how sure the model is, not how likely what was written is.

    Attributes:
        model: The model.
        tokenizer: The tokenizer.
        token_reduction: How the numbers of a step's tokens become its score.
        measure: The number at every token.
        reduction: How step scores become one score.
        judge: The part of a solution whose steps are scored.

    Example:
        >>> import inferscale as isc
        >>> from inferscale import zoo
        >>> reward = isc.LikelihoodReward(*zoo.load("policy-xs"))
        >>> problem = zoo.problems("dev")[0]
        >>> def solution(text):
        ...     return isc.Node(problem, isc.Step(text, finish_reason="eos"), isc.Node(problem))
        >>> likely, unlikely = reward.score([solution(zoo.task.solution(problem.prompt)), solution("I like cheese.")])
        >>> likely > unlikely
        True
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        token_reduction: Literal["min", "mean"] = "mean",
        measure: Literal["likelihood", "self-certainty"] = "likelihood",
        reduction: Reduction = "last",
        judge: Judge = "all",
        step_separator: str | None = "\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
    ) -> None:
        """Checks that tokenizer and options fit.

        Args:
            model: A causal language model; it stays where it is.
            tokenizer: Its tokenizer.
            token_reduction: Which value of a step counts: the ``"mean"`` or the ``"min"`` of its tokens.
            measure: The number at every token: its ``"likelihood"``, or the ``"self-certainty"`` of the prediction.
            reduction: How step scores become one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
            judge: The part of a solution whose steps are scored, where the policy thinks: ``"all"``, the ``"final"``
                part, or the ``"thoughts"``. The model reads what stands before in any case.
            step_separator: Text that ends every encoded step. ``None``: steps are encoded as they are.
            use_token_ids: Use the ids that the generator sampled; only where both have the same tokenizer.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template, which the steps follow;
                by default if it has one.
            system_prompt: System turn of the chat.
            chat_template_kwargs: Variables of the chat template, as in the generator.
            tools: What the chat template is told that the model may call, as in the generator.
            control_tokens: What becomes of control tokens that a problem spells, as in the generator.
            micro_batch: Most rows run at a time (default 64, with ``cache="none"`` 32); halved when memory runs out.
            cache: ``"tree"`` runs every node once; ``"none"`` runs whole texts each time.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory); what does not fit is computed again. Those of the rows that run come on top: `micro_batch`.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            ValueError: If `token_reduction` or `measure` is unknown, or the tokenizer is another model's.
        """
        _check_measure(token_reduction, measure)
        inside = check_pair(model, tokenizer, type(self).__name__)
        self.model = model
        self.token_reduction, self.measure = token_reduction, measure
        super().__init__(
            [inside],
            tokenizer,
            TextStepEncoder(
                tokenizer,
                step_separator,
                use_token_ids,
                chat_template,
                system_prompt,
                chat_template_kwargs=chat_template_kwargs,
                tools=tools,
                control_tokens=control_tokens,
            ),
            token_predictions,
            log_likelihood if measure == "likelihood" else self_certainty,
            reduction=reduction,
            judge=judge,
            micro_batch=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
            reads_all=True,
        )

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        token_reduction: Literal["min", "mean"] = "mean",
        measure: Literal["likelihood", "self-certainty"] = "likelihood",
        reduction: Reduction = "last",
        judge: Judge = "all",
        step_separator: str | None = "\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
        **load_options: Any,
    ) -> Self:
        """A likelihood under a model that is loaded; the options that are not named here are those of the class.

        Args:
            path_or_id: A local folder (never touches the network) or a hub id.
            tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
            device: Where to run; by default a GPU if there is one.
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            load_options: Passed on to transformers' ``from_pretrained``.

        Raises:
            TypeError: If an object is given in place of a folder or hub id.
            ValueError: If an option or the tokenizer does not fit.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        _check_measure(token_reduction, measure)  # told before the model is loaded
        check_judge(judge)
        model, tokenizer = load_pair(
            path_or_id,
            AutoModelForCausalLM,
            tokenizer,
            loader=cls.from_pretrained,
            check=lambda tokenizer: TextStepEncoder(
                tokenizer,
                step_separator,
                use_token_ids,
                chat_template,
                system_prompt,
                chat_template_kwargs=chat_template_kwargs,
                tools=tools,
                control_tokens=control_tokens,
            ),
            device=device,
            dtype=dtype,
            **load_options,
        )
        return cls(
            model,
            tokenizer,
            token_reduction=token_reduction,
            measure=measure,
            reduction=reduction,
            judge=judge,
            step_separator=step_separator,
            use_token_ids=use_token_ids,
            chat_template=chat_template,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            control_tokens=control_tokens,
            micro_batch=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )

    @classmethod
    def from_generator(cls, generator: Any, **options: Any) -> Self:
        """The likelihood under a generator's own model, of the prompts as that generator renders them.

        Model and tokenizer are shared, not loaded again.

        Args:
            generator: An `HFGenerator`.
            options: Those of the class; they go before what the generator says, as ``chat_template`` may.

        Raises:
            TypeError: If the generator has no model of its own in this process.
        """
        prompts = getattr(generator, "prompt_options", None)
        if prompts is None:
            raise TypeError(f"{type(generator).__name__} has no model in this process: give an HFGenerator, or load "
                            "one with LikelihoodReward.from_pretrained")  # fmt: skip
        return cls(generator.model, generator.tokenizer, **{**prompts, **options})

    def _step_score(self, *tokens: Sequence[float]) -> float:
        """The reduced probability of a step's tokens, in (0, 1], or their self-certainty, in nats."""
        [values] = tokens
        # the mean is of logarithms: exp of it is the geometric mean, and does not fall with the number of tokens
        reduced = min(values) if self.token_reduction == "min" else math.fsum(values) / len(values)
        return math.exp(reduced) if self.measure == "likelihood" else reduced


def _check_measure(token_reduction: str, measure: str) -> None:
    if token_reduction not in ("min", "mean"):
        raise ValueError(f'token_reduction={token_reduction!r}: choose "min" or "mean"')
    if measure not in ("likelihood", "self-certainty"):
        raise ValueError(f'measure={measure!r}: choose "likelihood" or "self-certainty"')


class ImplicitReward(LocalProcessReward):
    """Implicit process rewards: ``beta * sum(log p_model(token) - log p_reference(token))`` over a step's tokens.

    Free process rewards (Yuan et al. 2024, arXiv:2412.01981), for models trained on outcomes by DPO or
    cross-entropy, such as EurusPRM. Scores are in nats times `beta` and often negative: reduce them with ``"last"`` or
    ``"mean"``.

    Differs from the paper: the end of the assistant's turn belongs to no step.

    Attributes:
        model: The trained model.
        reference: What it was trained from.
        tokenizer: The tokenizer of both.
        beta: Scale of the scores.
        cumulative: True if a step's score is that of the whole solution up to it.
        reduction: How step scores become one score.
        judge: The part of a solution whose steps are scored.

    Example:
        >>> import inferscale as isc
        >>> from inferscale import zoo
        >>> (model, tokenizer), (reference, _) = zoo.load("policy-s"), zoo.load("policy-xs")
        >>> reward = isc.rewards.ImplicitReward(model, reference, tokenizer, beta=0.1, step_separator=None)
        >>> problem = zoo.problems("dev")[0]
        >>> root = isc.Node(problem)
        >>> leaf = isc.Node(problem, isc.Step(zoo.task.solution(problem.prompt), finish_reason="eos"), root)
        >>> [[score]] = reward.step_scores([leaf])
        >>> score > 0  # the greater model finds the right solution likelier
        True
    """

    def __init__(
        self,
        model: Any,
        reference: Any,
        tokenizer: Any,
        *,
        beta: float = 0.001,
        cumulative: bool = False,
        reduction: Reduction = "mean",
        judge: Judge = "all",
        step_separator: str | None = "\n\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
    ) -> None:
        """Checks that both models, tokenizer and options fit.

        Args:
            model: A causal language model; it stays where it is.
            reference: The other one, with the same tokenizer.
            tokenizer: Their tokenizer.
            beta: Scale; 0.001 is EurusPRM's.
            cumulative: Whether a step's score is the sum up to it (Q) instead of its own part.
            reduction: How step scores become one score.
            judge: The part of a solution whose steps are scored, where the policy thinks: ``"all"``, the ``"final"``
                part, or the ``"thoughts"``. The model reads what stands before in any case.
            step_separator: Text that ends every encoded step. ``None``: steps are encoded as they are.
            use_token_ids: Use the ids that the generator sampled; only where all have the same tokenizer.
            chat_template: Whether the prompt is a user's turn; by default if the tokenizer has a template.
            system_prompt: System turn of the chat.
            micro_batch: Most rows run at a time (default 64, with ``cache="none"`` 32); halved when memory runs out.
            cache: ``"tree"`` runs every node once; ``"none"`` runs whole texts each time.
            max_cache_bytes: Most keys and values kept between calls, for each of the two models.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            ValueError: If `beta` is not positive, or the vocabularies differ.
        """
        _check_beta(beta)
        both = [check_pair(one, tokenizer, type(self).__name__) for one in (model, reference)]
        self.model, self.reference = model, reference
        self.beta, self.cumulative = beta, cumulative
        super().__init__(
            both,
            tokenizer,
            TextStepEncoder(tokenizer, step_separator, use_token_ids, chat_template, system_prompt),
            token_predictions,
            log_likelihood,
            reduction=reduction,
            judge=judge,
            micro_batch=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
            reads_all=True,
        )

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        reference: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        beta: float = 0.001,
        cumulative: bool = False,
        reduction: Reduction = "mean",
        judge: Judge = "all",
        step_separator: str | None = "\n\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
        **load_options: Any,
    ) -> Self:
        """A ratio of two models that are loaded; the options that are not named here are those of the class.

        Args:
            path_or_id: A local folder (never touches the network) or a hub id.
            reference: Another one, of what the model was trained from.
            tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
            device: Where both run; by default a GPU if there is one.
            dtype: Of both; by default float32 on a CPU and the checkpoints' own elsewhere.
            load_options: Passed on to transformers' ``from_pretrained``, for both.

        Raises:
            TypeError: If an object is given in place of a folder or hub id.
            ValueError: If an option does not fit, or the vocabularies differ.
            CheckpointError: If a checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        _check_beta(beta)  # told before the models are loaded
        check_judge(judge)
        model, tokenizer = load_pair(
            path_or_id,
            AutoModelForCausalLM,
            tokenizer,
            loader=cls.from_pretrained,
            check=lambda tokenizer: TextStepEncoder(
                tokenizer, step_separator, use_token_ids, chat_template, system_prompt
            ),
            device=device,
            dtype=dtype,
            **load_options,
        )
        loaded, _ = load_pair(
            reference,
            AutoModelForCausalLM,
            tokenizer,
            loader=cls.from_pretrained,
            device=device,
            dtype=dtype,
            **load_options,
        )
        return cls(
            model,
            loaded,
            tokenizer,
            beta=beta,
            cumulative=cumulative,
            reduction=reduction,
            judge=judge,
            step_separator=step_separator,
            use_token_ids=use_token_ids,
            chat_template=chat_template,
            system_prompt=system_prompt,
            micro_batch=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, the scaled log-ratio of each of its steps, or their running sums."""
        ratios = super().step_scores(nodes)
        return [list(accumulate(steps)) for steps in ratios] if self.cumulative else ratios

    def _step_score(self, *tokens: Sequence[float]) -> float:
        ours, theirs = tokens
        # one sum of all terms: near-equal models cancel without rounding
        return self.beta * math.fsum([*ours, *(-value for value in theirs)])


def _check_beta(beta: float) -> None:
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta={beta}: give a positive number")
