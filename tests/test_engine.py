import gc
import weakref

import pytest

from inferscale.aggregators import BestOfN
from inferscale.base import Generator, ProcessRewardModel, RewardModel, SearchStrategy
from inferscale.cost import Budget, Cost
from inferscale.engine import solve, solve_batch, stream
from inferscale.flow import Generate, GenerateRequest, expand
from inferscale.strategies import DVTS, REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Node, Problem
from tests.strategy_fakes import Written, run

PROMPTS = [f"How many {thing}?" for thing in ("apples", "pears", "plums", "figs", "nuts", "dates", "limes", "kiwis")]


def test_eight_problems_take_the_model_calls_of_one():
    generator, reward = ToyGenerator(), ToyReward()
    solve(PROMPTS[0], REBASE(8), generator, reward_model=reward)
    alone = (generator.calls, reward.calls)
    generator, reward = ToyGenerator(), ToyReward()
    solve_batch(PROMPTS, REBASE(8), generator, reward_model=reward)
    assert (generator.calls, reward.calls) == alone == (4, 4)


def test_no_two_problems_of_a_call_share_a_stream():
    prompts = ["a", "a", "a", "a/1", "#1/a", "a#1", "1/a"]
    results = solve_batch(prompts, RepeatedSampling(2), ToyGenerator())
    assert len({result.root.key for result in results}) == len(prompts)
    assert results[0].root.key == solve("a", RepeatedSampling(2), ToyGenerator()).root.key


def test_every_node_names_a_random_stream_of_its_own():
    keys = [node.key for node in solve(PROMPTS[0], REBASE(8), ToyGenerator(), reward_model=ToyReward()).root.walk()]
    assert len(set(keys)) == len(keys) > 20


def test_repeated_sampling_is_one_call_for_all_problems():
    generator = ToyGenerator()
    results = solve_batch(PROMPTS, RepeatedSampling(5), generator)
    assert generator.calls == 1
    assert [len(result.root.children) for result in results] == [5] * 8
    assert {leaf.depth for result in results for leaf in result.leaves} == {1}


def test_costs_are_the_sums_over_the_tree():
    results = solve_batch(PROMPTS, REBASE(8), ToyGenerator(), reward_model=ToyReward())
    for result in results:
        steps = [node.step for node in result.root.walk() if node.step is not None]
        assert result.cost.generated_tokens == sum(len(step.token_ids) for step in steps)
        assert result.cost.generator_flops == sum(step.flops for step in steps)
        assert result.cost.prompt_tokens == 3
        assert result.cost.num_generated == len(steps)
        assert result.cost.num_scored == len(steps)
        assert result.cost.seconds > 0


def test_the_reward_models_price_is_added_to_each_problem():
    class Priced(ToyReward):
        def cost(self, nodes):
            return [Cost(scored_tokens=len(node.text), reward_flops=7) for node in nodes]

    for result in solve_batch(PROMPTS[:3], RepeatedSampling(4), ToyGenerator(), reward_model=Priced()):
        assert result.cost.reward_flops == 4 * 7
        assert result.cost.scored_tokens == sum(len(leaf.text) for leaf in result.leaves)


def test_leaves_that_the_search_left_unscored_are_scored():
    result = solve(PROMPTS[0], RepeatedSampling(4), ToyGenerator(), reward_model=ToyReward(), aggregator=BestOfN())
    assert all(leaf.is_scored for leaf in result.leaves)
    assert result.selected.score == max(t.score for t in result.trajectories)


def test_inner_steps_of_a_completion_are_judged_like_sampled_steps():
    result = solve(PROMPTS[0], RepeatedSampling(3), ToyGenerator(), reward_model=ToyProcessReward(reduction="min"))
    for leaf in result.leaves:
        assert len(leaf.step_scores) == len(leaf.inner_steps()) == 4
        assert leaf.score == min(leaf.step_scores)


def test_outcome_scores_along_the_path_are_the_step_scores():
    result = solve(PROMPTS[0], BeamSearch(2, 2), ToyGenerator(), reward_model=ToyReward())
    trajectory = result.trajectories[0]
    assert trajectory.step_scores == tuple(node.score for node in result.leaves[0].path)


def test_equal_prompts_are_different_problems():
    first, second = solve_batch([PROMPTS[0]] * 2, RepeatedSampling(4), ToyGenerator())
    assert [leaf.text for leaf in first.leaves] != [leaf.text for leaf in second.leaves]
    assert first.leaves[0].text == solve(PROMPTS[0], RepeatedSampling(4), ToyGenerator()).leaves[0].text


def test_the_seed_changes_the_samples():
    texts = {solve(PROMPTS[0], RepeatedSampling(1), ToyGenerator(), seed=seed).text for seed in range(5)}
    assert len(texts) == 5


def test_stream_takes_problems_as_there_is_room_and_yields_all():
    taken = []

    def endless():
        for index in range(10**9):
            taken.append(index)
            yield Problem(f"problem {index}", id=str(index))

    results = stream(endless(), RepeatedSampling(2), ToyGenerator(), batch_size=4)
    ids = [next(results).problem.id for _ in range(6)]
    assert ids == ["0", "1", "2", "3", "4", "5"]
    assert len(taken) <= 10
    results.close()


def test_unfinished_paths_abstain():
    result = solve(PROMPTS[0], REBASE(4, max_depth=2), ToyGenerator(), reward_model=ToyReward())
    assert [leaf.is_finished for leaf in result.leaves] == [False] * 4
    assert result.answer is None


# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RepeatedSampling(16), REBASE(16), BeamSearch(4, 4), DVTS(4, 4)])
@pytest.mark.parametrize("tokens", [1, 10, 33, 100])
def test_a_token_budget_is_met_and_never_passed(strategy, tokens):
    result = solve(PROMPTS[0], strategy, ToyGenerator(), reward_model=ToyReward(), budget=Budget(tokens=tokens))
    assert result.cost.tokens == tokens
    assert result.stopped_by == "tokens"


def test_an_ample_budget_changes_nothing():
    plain = solve(PROMPTS[0], REBASE(8), ToyGenerator(), reward_model=ToyReward())
    generator = ToyGenerator()
    capped = solve(PROMPTS[0], REBASE(8), generator, reward_model=ToyReward(), budget=Budget(tokens=10**6, calls=10**6))
    assert (capped.answer, capped.stopped_by, generator.calls) == (plain.answer, None, 4)


def test_a_budget_keeps_the_samples_that_were_finished():
    whole = solve(PROMPTS[0], RepeatedSampling(8), ToyGenerator())
    tokens = sum(len(leaf.token_ids) for leaf in whole.leaves[:3]) + 2
    cut = solve(PROMPTS[0], RepeatedSampling(8), ToyGenerator(), budget=Budget(tokens=tokens))
    assert [leaf.text for leaf in cut.leaves[:3]] == [leaf.text for leaf in whole.leaves[:3]]
    assert [leaf.step.finish_reason for leaf in cut.leaves[3:]] == ["budget"]
    assert len(cut.leaves[3].token_ids) == 2


def test_a_requests_own_token_cap_is_kept():
    def body(root):
        request = GenerateRequest(root, 3, until="end", max_tokens=4)
        groups = yield Generate((request,))
        return groups[0]

    for budget in (None, Budget(tokens=100), Budget(tokens=10)):
        result = run(body, budget=budget)
        lengths = [len(leaf.token_ids) for leaf in result.leaves]
        assert lengths == ([4, 4, 2] if budget == Budget(tokens=10) else [4, 4, 4])


def test_a_bound_of_nothing_is_no_bound():
    class Full(ToyGenerator):
        def max_sample_tokens(self, request):
            return 0

    result = solve(PROMPTS[0], RepeatedSampling(8), Full(), budget=Budget(tokens=20))
    assert (result.stopped_by, result.cost.tokens) == ("tokens", 20)

    def body(root):
        (child,) = yield Generate((GenerateRequest(root, until="end", max_tokens=3),))
        return child

    result = solve(PROMPTS[0], Written(body), Full(), budget=Budget(tokens=20))
    assert result.cost.tokens == 3


def test_a_call_budget_counts_samples():
    result = solve(PROMPTS[0], REBASE(16), ToyGenerator(), reward_model=ToyReward(), budget=Budget(calls=20))
    assert (result.cost.num_generated, result.stopped_by) == (20, "calls")


def test_a_flop_budget_counts_the_reward_model():
    class Dear(ToyReward):
        def cost(self, nodes):
            return [Cost(reward_flops=10**6)] * len(nodes)

    cheap = solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward(), budget=Budget(flops=3e6))
    dear = solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=Dear(), budget=Budget(flops=3e6))
    assert (cheap.stopped_by, dear.stopped_by) == (None, "flops")
    assert dear.cost.num_generated == 4


def test_a_time_budget_ends_the_search():
    result = solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward(), budget=Budget(seconds=1e-9))
    assert (result.stopped_by, result.answer, result.cost.num_generated) == ("seconds", None, 0)


def test_one_problems_budget_does_not_stop_the_others():
    alone = [
        solve(p, REBASE(8), ToyGenerator(), reward_model=ToyReward(), budget=Budget(tokens=60)).text for p in PROMPTS
    ]
    together = solve_batch(PROMPTS, REBASE(8), ToyGenerator(), reward_model=ToyReward(), budget=Budget(tokens=60))
    assert [result.text for result in together] == alone


# -- nothing paid for is lost -----------------------------------------------------------------------------------------


def test_an_interrupt_carries_what_was_found():
    with pytest.raises(KeyboardInterrupt) as error:
        solve_batch(PROMPTS[:4], BeamSearch(2, 2), BrokenGenerator(die_after=2), reward_model=ToyReward(), batch_size=2)
    partial = error.value.partial
    assert [result.stopped_by for result in partial] == ["error", "error"]
    assert all(result.cost.num_generated == 8 for result in partial)


def test_finished_problems_survive_the_failure_of_a_later_one():
    with pytest.raises(KeyboardInterrupt) as error:
        solve_batch(PROMPTS[:3], RepeatedSampling(2), BrokenGenerator(die_after=2), batch_size=1)
    assert [result.stopped_by for result in error.value.partial] == [None, None, "error"]


def test_a_failing_answer_reader_costs_no_tree():
    def reader(text):
        if len(read) == 4:
            raise ZeroDivisionError
        read.append(text)
        return text

    read = []
    with pytest.raises(ZeroDivisionError) as error:
        solve_batch(PROMPTS[:3], RepeatedSampling(3), ToyGenerator(), read_answer=reader)
    first, *others = error.value.partial
    assert first.answer is not None
    assert [result.problem.prompt for result in others] == PROMPTS[1:3]
    assert all(len(result.trajectories) == 3 and result.answer is None for result in others)


def test_a_stream_keeps_no_result_that_was_handed_out():
    class Watched(Problem):
        """One that can be referred to weakly."""

    def problems():
        for number in range(4):
            gc.collect()
            assert all(one() is None for one in given[:-1])
            problem = Watched(f"{number}?")
            given.append(weakref.ref(problem))
            yield problem
            del problem
        raise ZeroDivisionError

    given = []
    with pytest.raises(ZeroDivisionError) as error:
        list(map(len, (r.trajectories for r in stream(problems(), RepeatedSampling(2), ToyGenerator(), batch_size=1))))
    assert len(given) == 4
    assert error.value.partial == []


def test_notebook_html_escapes_model_text():
    result = solve("<script>alert(1)</script>", Greedy(), ToyGenerator())
    assert "<script>" not in result._repr_html_()
    assert "&lt;script&gt;" in result._repr_html_()


def test_progress_is_shown_when_asked_for(capsys):
    problems = [Problem(prompt, answer="1") for prompt in PROMPTS]
    solve_batch(problems, RepeatedSampling(2), ToyGenerator(), progress=False)
    assert capsys.readouterr().err == ""
    solve_batch(problems, RepeatedSampling(2), ToyGenerator(), progress=True)
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "accuracy=" in shown


def test_generators_and_rewards_hear_when_a_search_has_ended():
    class Listening(ToyGenerator):
        released: tuple = ()

        def release(self, root):
            self.released += (root.problem.prompt,)

    generator = Listening()
    solve_batch(PROMPTS, RepeatedSampling(1), generator)
    assert sorted(generator.released) == sorted(PROMPTS)


def test_an_empty_generate_request_is_answered_at_once():
    def body(root):
        assert (yield Generate(())) == []
        return (yield from expand([root], until="end"))

    assert run(body).trajectories


def test_the_base_classes_cannot_be_made():
    for kind in (Generator, RewardModel, ProcessRewardModel, SearchStrategy):
        with pytest.raises(TypeError, match="abstract"):
            kind()


def test_lookahead_is_not_part_of_the_tree():
    def body(root):
        kids = yield from expand([root], 2)
        ends = yield from expand(kids, greedy=True, attach=False)
        assert all(isinstance(end, Node) and end.parent in kids for end in ends)
        return kids

    result = run(body)
    assert sum(1 for _ in result.root.walk()) == 3
    assert result.cost.num_generated == 4


@pytest.mark.parametrize("strategy", [RepeatedSampling(4), BeamSearch(2, 2), REBASE(4)], ids=repr)
def test_a_budget_that_cuts_the_last_sample_is_named_and_one_that_is_just_met_is_not(strategy, tmp_path):
    def searched(tokens, **options):
        budget = None if tokens is None else Budget(tokens=tokens)
        return solve("a b", strategy, ToyGenerator(depth=2), reward_model=ToyReward(), budget=budget, **options)

    whole = searched(None)
    met = searched(whole.cost.tokens)
    assert (met.stopped_by, met.text, met.cost.tokens) == (None, whole.text, whole.cost.tokens)
    cut = searched(whole.cost.tokens - 1, journal=tmp_path / "journal")
    assert cut.cost.tokens == whole.cost.tokens - 1
    assert any(node.step and node.step.finish_reason == "budget" for node in cut.root.walk())
    assert cut.stopped_by == searched(cut.cost.tokens, journal=tmp_path / "journal").stopped_by == "tokens"
