"""A model provider for inspect_ai: every answer is the result of a search (extra ``inspect``).

After installation ``inspect eval task.py --model inferscale/PATH -M strategy=sampling -M width=16 -M vote=majority``
works by the entry point ``inferscale`` of the group ``inspect_ai``. In Python, `provider` registers the class.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

from inferscale.aggregators import MajorityVote
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.engine import solve
from inferscale.result import SearchResult
from inferscale.tree import Problem

from ._optional import require
from .parts import parts_from_texts


@lru_cache(maxsize=1)
def provider() -> Any:
    """The class of the provider, registered with inspect_ai under the name ``inferscale``.

    Raises:
        ImportError: If inspect_ai is not installed.
    """
    model: Any = require("inspect_ai.model", "inspect")
    config_class: Any = model.GenerateConfig

    class InferscaleAPI(model.ModelAPI):  # type: ignore[misc]
        """Answers each prompt by one search; the log holds tokens, FLOPs and the vote."""

        def __init__(
            self,
            model_name: str,
            base_url: str | None = None,
            api_key: str | None = None,
            config: Any = config_class(),  # noqa: B008  (inspect_ai's own default)
            **options: Any,
        ) -> None:
            super().__init__(model_name, base_url, api_key, [], config)
            given = options.pop("parts", None)
            self._parts: _Parts = given or parts_from_texts(model_name, options)

        async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> Any:  # noqa: A002
            """The winning trajectory's text; other messages than the last user's become part of the prompt."""
            import anyio.to_thread

            if tools:
                raise ValueError("inferscale answers without tools: leave them out of the task")
            search = partial(self._search, self._prompt(input))
            result = await anyio.to_thread.run_sync(search)
            return self._output(result)

        def max_connections(self) -> int:
            """One: the model runs in this process."""
            return 1

        def _search(self, prompt: str) -> SearchResult:
            generator, strategy, reward_model, aggregator, seed = self._parts
            return solve(
                Problem(prompt), strategy, generator, reward_model=reward_model, aggregator=aggregator, seed=seed
            )

        def _prompt(self, messages: list[Any]) -> str:
            if len(messages) == 1:
                return str(messages[0].text)
            return (
                "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in messages) + "\n\nAssistant:"
            )

        def _output(self, result: SearchResult) -> Any:
            cost = result.cost
            output = model.ModelOutput.from_content(self.model_name, result.text)
            output.usage = model.ModelUsage(
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
                "generator_flops": cost.generator_flops,
                "reward_flops": cost.reward_flops,
                "stopped_by": result.stopped_by,
            }
            return output

    register: Any = model.modelapi(name="inferscale")
    register(lambda: InferscaleAPI)
    return InferscaleAPI


_Parts = tuple[Generator, SearchStrategy, RewardModel | None, Aggregator, int]


def model_of(
    generator: Generator,
    strategy: SearchStrategy,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    seed: int = 0,
    name: str = "search",
) -> Any:
    """A model for ``inspect_ai.eval(task, model=...)`` from parts that are there already."""
    provider()
    get_model: Any = require("inspect_ai.model", "inspect").get_model
    parts = (generator, strategy, reward_model, aggregator or MajorityVote(), seed)
    return get_model(f"inferscale/{name}", parts=parts, memoize=False)
