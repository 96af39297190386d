"""A model provider for inspect_ai: every answer is the result of a search (extra ``inspect``).

After installation ``inspect eval task.py --model inferscale/PATH -M strategy=sampling -M width=16 -M vote=majority``
works by the entry point ``inferscale`` of the group ``inspect_ai``; ``-M answer_kind=choice:ABCD`` says what votes
compare. In Python, `provider` registers the class.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, TypeAlias

from inferscale._compat import require
from inferscale.aggregators import MajorityVote
from inferscale.answers import Before, Reader, reader_of, text_before
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import solve
from inferscale.tree import Problem

from .parts import Shortened, parts_from_texts

_Parts: TypeAlias = tuple[Generator, SearchStrategy, RewardModel | None, Aggregator, int]


_NEUTRAL: dict[str, Any] = {
    "num_choices": 1, "best_of": 1, "logprobs": False, "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0,
    "response_schema": None,
}  # fmt: skip
"""Options of a task that would change what an answer is, with what means the same as leaving them out."""


class SearchProvider:
    """Provider for inspect_ai whose answers are results of searches; `provider` joins it to inspect_ai's base class."""

    model_name: str

    def __init__(
        self, model_name: str, base_url: str | None = None, api_key: str | None = None, config: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        api: Any = require("inspect_ai.model", "inspect")
        super().__init__(model_name, base_url, api_key, [], config or api.GenerateConfig())  # type: ignore[call-arg]
        given: _Parts | None = options.pop("parts", None)
        kind = options.pop("answer_kind", None)
        self._read_answer: Reader | None = options.pop("read_answer", None) if kind is None else reader_of(kind)
        self._parts = given or parts_from_texts(model_name, options)

    async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> Any:  # noqa: A002
        """The winning trajectory, thoughts apart; a conversation keeps its turns where the generator renders them.

        Answers end at the task's ``stop_seqs``, and are read before them; none gets longer than ``max_tokens``. How to
        sample is the generator's business.

        Raises:
            ValueError: If the task has tools, or asks for what a search does not give.
        """
        import anyio.to_thread

        if tools:
            raise ValueError("inferscale answers without tools: leave them out of the task")
        for name, neutral in _NEUTRAL.items():
            if (value := getattr(config, name, None)) not in (None, neutral):
                raise ValueError(f"{name}={value!r}: a search has no such option: leave it out of the task")
        stops, most = tuple(getattr(config, "stop_seqs", None) or ()), getattr(config, "max_tokens", None)
        result = await anyio.to_thread.run_sync(partial(self._search, problem_of(input, self._parts[0]), stops, most))
        return self._output(result, stops)

    def max_connections(self) -> int:
        """One: the model runs in this process."""
        return 1

    def _search(self, problem: Problem, stops: tuple[str, ...] = (), most: int | None = None) -> SearchResult:
        generator, strategy, reward_model, aggregator, seed = self._parts
        strategy = strategy if most is None else Shortened(strategy, most)
        return solve(
            problem, strategy, generator, reward_model=reward_model, aggregator=aggregator,
            read_answer=Before(stops, self._read_answer) if stops else self._read_answer, seed=seed,
        )  # fmt: skip

    def _output(self, result: SearchResult, stops: tuple[str, ...] = ()) -> Any:
        cost, api = result.cost, require("inspect_ai.model", "inspect")
        thoughts, final = result.selected.split()
        final = text_before(final, stops)
        told = [api.ContentReasoning(reasoning=thoughts), api.ContentText(text=final)] if thoughts else final
        output = api.ModelOutput.from_content(self.model_name, told)
        output.usage = api.ModelUsage(
            input_tokens=cost.prompt_tokens,
            output_tokens=cost.tokens,
            total_tokens=cost.prompt_tokens + cost.tokens,
        )
        output.time = cost.seconds
        output.metadata = {
            "strategy": repr(self._parts[1]),
            "aggregator": repr(self._parts[3]),
            "answer": result.answer,
            "trajectories": len(result.trajectories),
            "cost": cost.to_dict(),
            "stopped_by": result.stopped_by,
        }
        return output


@lru_cache(maxsize=1)
def provider() -> Any:
    """The class of the provider, registered with inspect_ai under the name ``inferscale``.

    Raises:
        ImportError: If inspect_ai is not installed.
    """
    api: Any = require("inspect_ai.model", "inspect")
    made = type("InferscaleAPI", (SearchProvider, api.ModelAPI), {"__module__": __name__})
    api.modelapi(name="inferscale")(lambda: made)
    return made


def model_of(
    generator: Generator,
    strategy: SearchStrategy,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    seed: int = 0,
    name: str = "search",
    read_answer: Reader | None = None,
) -> Any:
    """A model for ``inspect_ai.eval(task, model=...)`` from parts that are there already.

    Args:
        generator: As in `solve`.
        strategy: As in `solve`.
        reward_model: As in `solve`.
        aggregator: As in `solve`; a `MajorityVote` by default.
        seed: As in `solve`.
        name: What logs call the model, after ``inferscale/``.
        read_answer: As in `solve`.

    Raises:
        ImportError: If inspect_ai is not installed.

    Example:
        Needs the extra ``inspect``, and a task of yours::

            import inspect_ai
            from inferscale import HFGenerator, MajorityVote, RepeatedSampling, zoo
            from inferscale.evaluate.inspect_ai import model_of
            policy = HFGenerator(*zoo.load("policy-m"))
            model = model_of(policy, RepeatedSampling(16), aggregator=MajorityVote())
            logs = inspect_ai.eval(task, model=model)
    """
    provider()
    get_model: Any = require("inspect_ai.model", "inspect").get_model
    parts = (generator, strategy, reward_model, aggregator or MajorityVote(), seed)
    return get_model(f"inferscale/{name}", parts=parts, read_answer=read_answer, memoize=False)


def problem_of(messages: list[Any], generator: Generator) -> Problem:
    """One user's turn is a prompt; of several, a generator without a chat template reads the text."""
    turns = [{"role": message.role, "content": message.text} for message in messages]
    if [turn["role"] for turn in turns] == ["user"]:
        return Problem(turns[0]["content"])
    problem = Problem(messages=turns)
    return problem if generator.takes_messages else Problem(problem.prompt)
