"""A model for lm-evaluation-harness: every request is answered by a search (extra ``lm-eval``).

By command: ``python -m inferscale lm-eval run --model inferscale --model_args
pretrained=DIR,strategy=sampling,width=16,vote=majority,temperature=0.8 --tasks gsm8k``. In Python: ``model_class()`` is
the class, ``model_class()(pretrained=...)`` or ``model_class().of(generator, strategy)`` a model for
``lm_eval.evaluator.simple_evaluate``.

The tasks' ``do_sample`` and ``temperature`` are not used: how to sample is the search's business, and the log says so.
Their ``max_gen_toks`` is: no path gets longer, and none longer than the search's own ``max_new_tokens``.
``answer_kind=choice:ABCD`` says what votes compare. lm-eval's results have no place for what a model costs:
``costs=FILE`` adds a line of JSON for each request, with the names of task and document. Log-likelihood requests are
passed on to lm-eval's own model for transformers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from inferscale._compat import require
from inferscale.aggregators import MajorityVote
from inferscale.answers import Before, Reader, reader_of, text_before
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import Solver, solve_batch
from inferscale.identity import compare, warn_of_unknown
from inferscale.tree import Problem

from .parts import Shortened, parts_from_texts

IDENTITY_KEY = "inferscale-identity"
_LOG = logging.getLogger(__name__)


class SearchModel:
    """Model for lm-eval whose answers are results of searches; `model_class` joins it to lm-eval's base class."""

    cache_hook: Any
    costs: Path | None = None

    def __init__(self, pretrained: str = "", **options: Any) -> None:
        super().__init__()
        for ours_to_choose in ("batch_size", "max_batch_size"):
            options.pop(ours_to_choose, None)
        kind, costs = options.pop("answer_kind", None), options.pop("costs", None)
        if str(options.get("device", "")).startswith("cuda") and not import_module("torch").cuda.is_available():
            # lm-eval's default; its own models fall back in the same way
            _LOG.warning("there is no %s here: the models run on the CPU", options.pop("device"))
        self._adopt(*parts_from_texts(pretrained, options), None if kind is None else reader_of(kind))
        self.costs = None if costs is None else Path(costs)
        _LOG.info("the search samples as its own options say, not as the tasks ask")

    @classmethod
    def of(
        cls,
        generator: Generator,
        strategy: SearchStrategy,
        reward_model: RewardModel | None = None,
        aggregator: Aggregator | None = None,
        seed: int = 0,
        read_answer: Reader | None = None,
    ) -> Any:
        """A model from parts that are there already; `read_answer` as `solve` takes it."""
        made = cls.__new__(cls)
        super(SearchModel, made).__init__()
        made._adopt(generator, strategy, reward_model, aggregator or MajorityVote(), seed, read_answer)
        return made

    def _adopt(
        self, generator: Generator, strategy: SearchStrategy, reward_model: RewardModel | None, aggregator: Aggregator,
        seed: int, read_answer: Reader | None,
    ) -> None:  # fmt: skip
        self.generator, self.strategy, self.reward_model = generator, strategy, reward_model
        self.aggregator, self.seed, self.read_answer = aggregator, seed, read_answer
        self._scorer: Any = None
        self.search_identity = Solver(
            strategy, generator, reward_model, aggregator, read_answer=read_answer, seed=seed
        ).identity()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The winning trajectory of each request without its thoughts, up to the first stop text."""
        groups: dict[tuple[tuple[str, ...], int | None], list[int]] = {}
        for index, request in enumerate(requests):
            asked = request.args[1]
            groups.setdefault((_stops(asked), asked.get("max_gen_toks")), []).append(index)
        texts = [""] * len(requests)
        for (stops, most), members in groups.items():
            problems = [self._problem(requests[index].args[0]) for index in members]
            for index, result in zip(members, self._solved(problems, stops, not disable_tqdm, most), strict=True):
                texts[index] = text_before(result.selected.split()[1], stops)
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                self._write_cost(requests[index], result)
        return texts

    def _write_cost(self, request: Any, result: SearchResult) -> None:
        if self.costs is not None:
            row = {"task": request.task_name, "doc_id": request.doc_id, "cost": result.cost.to_dict()}
            with self.costs.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _problem(self, prompt: str) -> Problem:
        turns = getattr(prompt, "turns", None) if self.generator.takes_messages else None
        return Problem(str(prompt)) if turns is None else Problem(messages=turns)

    def _solved(
        self, problems: Sequence[Problem], stops: Sequence[str], progress: bool, most: int | None = None
    ) -> list[SearchResult]:
        strategy = self.strategy if most is None else Shortened(self.strategy, int(most))
        return solve_batch(
            problems, strategy, self.generator, reward_model=self.reward_model, aggregator=self.aggregator,
            read_answer=Before(tuple(stops), self.read_answer), seed=self.seed, progress=progress,
        )  # fmt: skip

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """From lm-eval's own model: a search has no likelihood."""
        return self._own_model().loglikelihood(requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """From lm-eval's own model: a search has no likelihood."""
        return self._own_model().loglikelihood_rolling(requests)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes a cache only if this very search has filled it.

        lm-eval keys its cache by prompt and generation arguments alone: another strategy would get these answers.

        Raises:
            ValueError: If the cache belongs to another search.
        """
        self.cache_hook = cache_hook
        known = cache_hook.dbdict
        if known is None:
            return
        if IDENTITY_KEY not in known and len(known):
            raise ValueError("the cache was not filled by this model: give another --use_cache path")
        warn_of_unknown(self.search_identity, "the cache of answers")
        if (apart := compare(known.setdefault(IDENTITY_KEY, self.search_identity), self.search_identity)).changed:
            raise ValueError(f"the cache was filled by another search ({apart}): give another --use_cache path")
        known.commit()

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's cache of requests."""
        return str(getattr(self._tokenizer(), "name_or_path", "")).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template, or ``""`` where it is not used."""
        return str(getattr(self._tokenizer(), "chat_template", None) or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns as one prompt, which still knows them: generator and reward model render them each with its own."""
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        text = _Rendered(self._tokenizer().apply_chat_template(chat_history, tokenize=False, **how))
        text.turns = chat_history
        return text

    def _tokenizer(self) -> Any:
        return getattr(self.generator, "tokenizer", None)

    def _own_model(self) -> Any:
        if self._scorer is None:
            model = getattr(self.generator, "model", None)
            if model is None:
                raise ValueError("this task asks for log-likelihoods, which need a transformers model: "
                                 "use HFGenerator, or a task of output_type generate_until")  # fmt: skip
            hflm: Any = require("lm_eval.models.huggingface", "lm-eval").HFLM
            self._scorer = hflm(pretrained=model, tokenizer=self._tokenizer())
        return self._scorer


@lru_cache(maxsize=1)
def model_class() -> Any:
    """The class ``InferscaleLM``, registered with lm-eval under the name ``inferscale``.

    Raises:
        ImportError: If lm-eval is not installed.

    Example:
        Needs the extra ``lm-eval``, and the task's data::

            from lm_eval.evaluator import simple_evaluate
            from inferscale import HFGenerator, RepeatedSampling, zoo
            from inferscale.evaluate.lm_eval import model_class
            policy = HFGenerator(*zoo.load("policy-m"))
            model = model_class().of(policy, RepeatedSampling(16))
            found = simple_evaluate(model=model, tasks=["gsm8k"], limit=50)
    """
    require("lm_eval", "lm-eval")
    base: type = import_module("lm_eval.api.model").LM
    register: Callable[[str], Callable[[type], type]] = import_module("lm_eval.api.registry").register_model
    return register("inferscale")(type("InferscaleLM", (SearchModel, base), {"__module__": __name__}))


def run_command_line() -> None:
    """lm-eval's own command line, with our model known to it."""
    model_class()
    import_module("lm_eval.__main__").cli_evaluate()


class _Rendered(str):
    """A rendered chat, with the turns that it was made of; a generator without a chat template reads the text."""

    turns: list[dict[str, str]]


def _stops(arguments: dict[str, Any]) -> tuple[str, ...]:
    until = arguments.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)
