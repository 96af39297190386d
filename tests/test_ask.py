"""Side prompts (`ask`), temperatures and generators of requests: streams, bills, journals, pictures."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import inferscale as isc
from inferscale.base import Generator, SearchStrategy
from inferscale.cost import Cost
from inferscale.flow import Flow, GenerateRequest, ask, expand, gather, limit, replies
from inferscale.testing import (
    BrokenGenerator,
    ToyGenerator,
    ToyReward,
    check_generator,
    check_strategy,
)  # fmt: skip
from inferscale.tree import Node, Problem, Step
from inferscale.viz import render_tree

PROMPTS = ["How many?", "How many more?"]


@dataclass(frozen=True)
class Judged(SearchStrategy):
    """Two completions, of which a side prompt picks one, and a rewritten third."""

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        leaves = yield from expand([root], 2, until="end")
        texts = yield from ask([f"Which is better?\n{leaf.text}" for leaf in leaves] or ["None?"], n=2)
        merged = yield from replies([f"{root.problem.prompt} Merge {texts}"], attach=True)
        return leaves + merged[0] if merged else leaves or root.leaves()


@dataclass(frozen=True)
class Unkeyed(SearchStrategy):
    """Asks beside the tree by hand, so that the seed does not matter."""

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        leaves = yield from expand([root], 2, until="end")
        yield from expand([Node(Problem("Which is better?"))], until="end", attach=False)
        return leaves or root.leaves()


def solved(strategy: SearchStrategy = Judged(), prompt: str = PROMPTS[0], **options: Any) -> isc.SearchResult:
    generator = options.pop("generator", None) or ToyGenerator()
    return isc.solve(prompt, strategy, generator, reward_model=ToyReward(), **options)


def test_conformance() -> None:
    check_strategy(Judged())


def test_draws_that_the_seed_does_not_touch_are_refused() -> None:
    with pytest.raises(AssertionError, match="ask side prompts"):
        check_strategy(Unkeyed())


def test_replies_depend_on_seed_problem_and_order() -> None:
    @dataclass(frozen=True)
    class Twice(SearchStrategy):
        def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
            first = yield from ask(["Same?"], n=2)
            second = yield from ask(["Same?"], n=2)
            root.stats["texts"] = [*first, *second]
            return (yield from expand([root], until="end"))

    def texts(**options: Any) -> list[list[str]]:
        return solved(Twice(), **options).root.stats["texts"]

    assert texts() == texts()
    assert len({text for told in (texts(), texts(seed=1), texts(prompt=PROMPTS[1])) for g in told for text in g}) == 12


def test_gathered_searches_ask_in_their_order() -> None:
    @dataclass(frozen=True)
    class Both(SearchStrategy):
        def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
            told = yield from gather([ask(["One?"]), ask(["Two?"])])
            root.stats["told"] = told
            return (yield from expand([root], until="end"))

    result = solved(Both())
    assert [note.problem.prompt for note in result.root.side_notes] == ["One?", "Two?"]
    assert [note.children[0].text for note in result.root.side_notes] == [
        group[0][0] for group in result.root.stats["told"]
    ]


def test_side_prompts_have_a_line_on_the_bill() -> None:
    result = solved()
    notes = result.root.side_notes
    asked = [reply.step for note in notes for reply in note.children if reply.step]
    share = result.cost.shares["ask"]
    assert len(asked) == 5
    assert share.generated_tokens == sum(step.generated_tokens for step in asked)
    assert share.prompt_tokens == sum(len(note.problem.prompt.split()) for note in notes)
    assert share.num_generated == 5
    assert result.cost.num_generated == 7
    own = [node.step for node in result.root.children[:2] if node.step]
    assert result.cost.generated_tokens == share.generated_tokens + sum(step.generated_tokens for step in own)
    assert result.cost.generator_flops == share.generator_flops + sum(step.flops for step in own)
    assert share.seconds < result.cost.seconds


def test_costs_of_shares_add_up_and_survive_plain_data() -> None:
    from dataclasses import asdict

    one = Cost(generated_tokens=3, shares={"ask": Cost(generated_tokens=1)})
    two = Cost(generated_tokens=4, shares={"ask": Cost(generated_tokens=2), "small": Cost(num_generated=1)})
    both = one + two
    assert both.generated_tokens == 7
    assert both.shares == {"ask": Cost(generated_tokens=3), "small": Cost(num_generated=1)}
    assert Cost(**asdict(both)) == both
    assert hash(one) == hash(replace(one, shares={}))
    assert sum([one, two]) == both


def test_attached_replies_are_leaves() -> None:
    result = solved()
    merged = result.root.children[-1]
    assert merged in result.leaves
    assert merged.parent is result.root
    assert merged.problem is result.root.problem
    assert merged is result.root.side_notes[-1].children[0]
    assert merged.is_scored
    assert result.root.num_draws == 2


def test_pictures_show_side_notes() -> None:
    result = solved()
    drawn = render_tree(result.root)
    assert "side note 1: Which is better?" in drawn
    assert "side note 3:" in drawn
    assert "side note" not in render_tree(result.root.children[0])
    page = result.to_html()
    assert "Side notes: 3 prompts" in page
    assert "Which is better?" in page
    assert "side note" not in render_tree(solved(isc.RepeatedSampling(2)).root)


def test_hostile_replies_are_escaped() -> None:
    broken = BrokenGenerator(lambda step, node: replace(step, text="<script>alert(1)</script>"))
    page = solved(generator=broken).to_html()
    assert "<script>" not in page


def test_saved_results_keep_side_notes(tmp_path: Path) -> None:
    result = solved()
    loaded = isc.SearchResult.load(result.save(tmp_path / "result.json"))
    assert render_tree(loaded.root, max_text=999) == render_tree(result.root, max_text=999)
    assert loaded.to_dict() == result.to_dict()
    assert loaded.cost == result.cost
    assert loaded.root.side_notes[-1].children[0] is loaded.root.children[-1]
    assert [note.key for note in loaded.root.side_notes] == [note.key for note in result.root.side_notes]


def test_journals_replay_side_prompts(tmp_path: Path) -> None:
    path, generator = tmp_path / "journal.jsonl", ToyGenerator()
    first = solved(generator=generator, journal=path)
    calls = generator.calls
    again = solved(generator=generator, journal=path)
    assert generator.calls == calls
    assert again.to_dict() == first.to_dict()


def test_budgets_count_side_prompts() -> None:
    result = solved(budget=isc.Budget(calls=3))
    assert result.stopped_by == "calls"
    assert result.cost.num_generated == 3
    assert result.cost.shares["ask"].num_generated == 1
    flow = limit(ask(["a", "b"], n=2), Node(Problem("p"), key=1), 3)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        next(flow)


def test_failed_replies_are_left_out() -> None:
    def dead(step: Step, node: Node) -> Step:
        return (
            replace(step, text="gone", finish_reason="error", inner_ends=())
            if "better" in node.problem.prompt
            else step
        )

    result = solved(generator=BrokenGenerator(dead))
    assert len(result.leaves) == 3
    assert "[[], []]" in result.root.side_notes[-1].problem.prompt


def test_the_models_forget_side_prompts() -> None:
    released = set[int]()

    class Forgetting(ToyGenerator):
        def release(self, root: Node) -> None:
            released.add(root.key)

    result = solved(generator=Forgetting())
    assert released == {result.root.key, *(note.key for note in result.root.side_notes)}


@pytest.mark.parametrize("prompts", ["Which?", {"role": "user"}, [{"role": "user", "content": "Which?"}], Problem("a")])
def test_prompts_come_in_a_list(prompts: Any) -> None:
    with pytest.raises(TypeError, match=r"ask\(\[prompt\]\)"):
        next(ask(prompts))


def test_bad_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a prompt"):
        next(ask([""]))
    with pytest.raises(ValueError, match="at least one sample"):
        next(ask(["Which?"], n=0))
    with pytest.raises(ValueError, match="temperature"):
        next(ask(["Which?"], temperature=-1.0))
    with pytest.raises(StopIteration):
        next(ask([]))


def test_messages_are_asked() -> None:
    request = next(ask([[{"role": "user", "content": "Which?"}]])).requests[0]  # type: ignore[union-attr]
    assert request.node.problem.messages is not None
    assert request.until == "end"
    assert request.aside


# -- temperatures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warm(SearchStrategy):
    """Completions at two temperatures."""

    names: tuple[str | None, ...] = (None, None)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        first, second = self.names
        cold = yield from expand([root], 2, until="end", temperature=0.3, generator=first)
        hot = yield from expand([root], 2, until="end", temperature=1.5, generator=second)
        return cold + hot or root.leaves()


def test_temperatures_of_requests() -> None:
    check_strategy(Warm())
    assert GenerateRequest(Node(Problem("p")), temperature=0).greedy
    with pytest.raises(ValueError, match="finite number"):
        GenerateRequest(Node(Problem("p")), temperature=float("inf"))


class Plain(ToyGenerator):
    """Looks at no temperature."""

    takes_temperature = False


def test_a_generator_without_temperatures_is_not_asked_for_any() -> None:
    with pytest.raises(ValueError, match="takes no temperature"):
        solved(Warm(), generator=Plain())
    assert solved(isc.RepeatedSampling(2), generator=Plain()).trajectories
    check_generator(Plain())


def test_check_generator_finds_a_temperature_without_effect() -> None:
    class Deaf(ToyGenerator):
        def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
            return super().generate([replace(request, temperature=None) for request in requests])

    check_generator(ToyGenerator())
    with pytest.raises(AssertionError, match="takes_temperature"):
        check_generator(Deaf())


# -- several generators ------------------------------------------------------------------------------------------------


def pair() -> dict[str, Generator]:
    return {"small": ToyGenerator(num_answers=2), "large": ToyGenerator(depth=1, num_answers=9)}


def test_several_generators_share_a_search() -> None:
    result = solved(Warm(("small", "large")), generator=pair())
    assert [leaf.step.generator for leaf in result.leaves if leaf.step] == ["small"] * 2 + ["large"] * 2
    small, large = result.cost.shares["small"], result.cost.shares["large"]
    assert small.generated_tokens + large.generated_tokens == result.cost.generated_tokens
    assert small.generator_flops + large.generator_flops == result.cost.generator_flops
    assert small.prompt_tokens == large.prompt_tokens == 2  # each reads the prompt once
    assert len({leaf.key for leaf in result.leaves}) == 4


@pytest.mark.parametrize("concurrent", [(), ("small",), ("small", "large")], ids=str)
def test_batches_do_not_matter_with_several(concurrent: tuple[str, ...]) -> None:
    def results(prompts: list[str], models: dict[str, Generator]) -> list[str]:
        found = isc.solve_batch(prompts, Warm(("small", "large")), models)
        return [render_tree(result.root, max_text=999) for result in found]

    models = pair()
    for name in concurrent:
        models[name].concurrent = True
    together = results(PROMPTS, models)
    assert together == [results([prompt], models)[0] for prompt in PROMPTS] == results(PROMPTS, pair())


@dataclass(frozen=True)
class Both(SearchStrategy):
    """Completions of both models, asked for at once."""

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        flows = [expand([root], 2, until="end", generator=name) for name in ("small", "large")]
        return [leaf for leaves in (yield from gather(flows)) for leaf in leaves]


def test_a_model_in_this_process_does_not_wait_for_one_on_a_server() -> None:
    sampled, waiting = threading.Event(), threading.Event()

    class Server(ToyGenerator):
        concurrent = True

        def generate(self, requests: Any) -> Any:
            waiting.set()
            assert sampled.wait(120), "the other model waited for this one"
            return super().generate(requests)

    class Local(ToyGenerator):
        def generate(self, requests: Any) -> Any:
            assert waiting.wait(120)
            sampled.set()
            return super().generate(requests)

    result = solved(Both(), generator={"small": Server(), "large": Local()})
    assert len(result.leaves) == 4


def test_what_one_model_gave_is_there_when_another_one_fails() -> None:
    class Broken(ToyGenerator):
        def generate(self, requests: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        solved(Both(), generator={"small": ToyGenerator(), "large": Broken()})
    assert error.value.partial[0].cost.num_generated == 2  # type: ignore[attr-defined]


def test_nodes_are_continued_by_who_sampled_them() -> None:
    @dataclass(frozen=True)
    class Mixed(SearchStrategy):
        second: str | None = None

        def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
            first = yield from expand([root], generator="large")
            return (yield from expand(first, until="end", generator=self.second))

    result = solved(Mixed(), generator=pair())
    assert [step.generator for step in result.leaves[0].steps] == ["large", "large"]
    with pytest.raises(ValueError, match=r"forced=node\.text"):
        solved(Mixed("small"), generator=pair())
    with pytest.raises(ValueError, match="choose one of small, large"):
        solved(Mixed("huge"), generator=pair())
    with pytest.raises(ValueError, match="without a name was given"):
        solved(Mixed())


def test_side_prompts_may_name_a_generator() -> None:
    @dataclass(frozen=True)
    class Asking(SearchStrategy):
        def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
            yield from ask(["Which?"], generator="large")
            return (yield from expand([root], until="end"))

    result = solved(Asking(), generator=pair())
    assert result.cost.shares["ask"] == result.cost.shares["large"]
    assert result.root.side_notes[0].children[0].steps[0].generator == "large"
    assert result.leaves[0].steps[0].generator == "small"


def test_journals_and_identities_of_several(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = solved(Warm(("small", "large")), generator=pair(), journal=path)
    assert solved(Warm(("small", "large")), generator=pair(), journal=path).to_dict() == first.to_dict()
    with pytest.raises(ValueError, match="another call"):
        solved(Warm(("small", "large")), generator=pair() | {"large": ToyGenerator(depth=2)}, journal=path)


@pytest.mark.parametrize("given", [{}, {"ask": ToyGenerator()}, {"a": "b"}, {3: ToyGenerator()}])
def test_bad_groups_are_refused(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="generator="):
        isc.solve("How many?", isc.Greedy(), given)


def test_a_killed_search_of_several_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    straight = solved(Warm(("small", "large")), generator={"small": ToyGenerator(), "large": ToyGenerator()})
    with pytest.raises(KeyboardInterrupt):
        solved(
            Warm(("small", "large")), generator={"small": ToyGenerator(), "large": BrokenGenerator(die_after=0)},
            journal=path,
        )  # fmt: skip
    again = solved(
        Warm(("small", "large")), generator={"small": ToyGenerator(), "large": BrokenGenerator()}, journal=path
    )
    assert render_tree(again.root) == render_tree(straight.root)
