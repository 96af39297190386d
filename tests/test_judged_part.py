"""What reward models judge of a solution: its final part, its thoughts or both, and no invented question."""

from itertools import accumulate

import pytest

from inferscale import Generator, Node, Problem, RepeatedSampling, RewardModel, Step, Thinking, solve
from inferscale.aggregators import BestOfN
from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.rewards import (
    CachedProcessReward,
    CachedReward,
    EnsembleProcessReward,
    GenerativeVerifier,
    HFOutcomeRewardModel,
    HFProcessRewardModel,
    ImplicitReward,
    LikelihoodReward,
    RewardFunction,
    VLLMOutcomeRewardModel,
    VLLMRewardModel,
    WeightedReward,
)
from inferscale.testing import check_reward_model
from inferscale.thinking import NO_THINKING
from inferscale.tree import branch_key
from tests.tiny_models import byte_tokenizer, tiny_model

LINES = ("<think>\n", "a is 1\n", "b?\n", "no</think>\n", "\n", "b is 2\n", "the 12\n", "\n", "Q: a?\n", "A: the 1")
THOUGHTS, FINAL = "\na is 1\nb?\nno", "b is 2\nthe 12\n"
PARTS = {"thoughts": THOUGHTS, "final": FINAL, "all": "".join(LINES[:7])}


def chain(lines, reason="eos", thinking=None, prompt="Step 1: a", inner=False):
    """A path of one step a line, or one step with inner ends."""
    node = Node(Problem(prompt), key=7, thinking=thinking)
    ids = [tuple(byte_tokenizer()(line)["input_ids"]) for line in lines]
    if inner:
        ends = tuple(zip(accumulate(map(len, lines)), accumulate(map(len, ids)), strict=True))
        return Node(node.problem, Step("".join(lines), sum(ids, ()), finish_reason=reason, inner_ends=ends), node)
    for place, (line, own) in enumerate(zip(lines, ids, strict=True)):
        last = place == len(lines) - 1
        node = Node(
            node.problem, Step(line, own, finish_reason=reason if last else "step"), node, branch_key(node.key, 0)
        )
    return node


def bare(text, **options):
    """The same text as a path without thoughts."""
    return chain([line for line in text.splitlines(keepends=True) if line], thinking=NO_THINKING, **options)


# -- the parts of a path -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("judge", PARTS)
def test_a_path_has_parts(judge, inner):
    node = chain(LINES, inner=inner)
    part = node.part(judge)
    assert part.text.strip() == PARTS[judge].strip()
    assert part.is_finished
    assert part.root.key == node.root.key
    assert part.problem == node.problem
    whole = [text for text, _ in node.inner_steps()]
    for text, ids in part.inner_steps():
        assert any(text in line for line in whole)  # borders of steps stay
        assert ids in ((), tuple(byte_tokenizer()(text)["input_ids"]))
    assert part.part("all") is part
    assert sum(node.steps_in(judge)) == len(part.inner_steps())


def test_a_path_without_thoughts_is_its_own_final_part():
    node = bare("\na is 1\nthe 12")
    assert node.part("final") is node.part("all") is node
    assert node.part("thoughts").text == ""
    assert node.part("thoughts").inner_steps() == []
    assert node.steps_in("thoughts") == [False, False]
    assert node.root.part("final") is node.root


def test_a_path_that_is_still_thinking_has_no_final_part():
    node = chain(LINES[:3], "step")
    assert node.final_text is None
    part = node.part("final")
    assert (part.text, part.inner_steps(), part.is_finished, part.depth) == ("", [], False, 1)
    assert node.part("thoughts").text == "a is 1\nb?\n"
    assert node.part("all") is node


def test_the_setting_of_the_search_says_what_thoughts_are():
    lines = ("a is 1\n", "so</think>\n", "the 12")
    assert chain(lines[:1], "step").part("final").text == "a is 1\n"  # nothing tells yet
    assert chain(lines[:1], "step", Thinking(prefilled=True)).part("final").text == ""
    assert chain(lines).part("final").text == "the 12"
    assert chain(lines, thinking=NO_THINKING).part("final").text == "".join(lines)


@pytest.mark.parametrize(
    "heading", ["Question: why?", "Q: why?", "Problem: find b", "Human: and b?", "User: and b?", "**Question 4:** why?"]
)
def test_what_follows_an_invented_question_is_in_no_part(heading):
    node = chain(("a is 1\n", "The answer is 1.\n", "\n", f"{heading}\n", "The answer is 2."))
    for judge in ("final", "all"):
        assert node.part(judge).text.strip() == "a is 1\nThe answer is 1."
        assert node.final_text.strip() == "a is 1\nThe answer is 1."


@pytest.mark.parametrize(
    ("begun", "text", "final", "thoughts"),
    [
        ("<think>\nLet me see:", " is it 1?</think>The 12", ("", "The 12"), ("\nLet me see:", " is it 1?")),
        ("<think>\n1?</think>The", " 12", ("The", " 12"), ("\n1?", "")),
        ("The", " 12", ("The", " 12"), ("", "")),
    ],
)
def test_what_was_begun_of_an_answer_belongs_to_its_parts(begun, text, final, thoughts):
    asked = {"role": "user", "content": "a?"}
    problem = Problem(messages=[asked, {"role": "assistant", "content": begun}])
    node = Node(Node(problem).problem, Step(text, finish_reason="eos"), Node(problem))
    for judge, expected in (("final", final), ("thoughts", thoughts), ("all", (begun, text))):
        part = node.part(judge)
        assert (part.problem.prefill, part.text) == expected
        assert part.problem.turns[0] == asked


@pytest.mark.parametrize("mark", ["<|im_start|>user\n", "<|user|>\n", "[INST] "])
def test_a_mark_of_the_next_turn_ends_any_text(mark):
    node = chain(("Dear Ann,\n", "thank you.\n", f"{mark}And Bob?\n", "Dear Bob,"))
    assert node.part("all").text == "Dear Ann,\nthank you.\n"
    assert chain((f"{mark}a?\n", "b")).part("all").text.endswith("b")  # nothing stands before it


# -- reward models -----------------------------------------------------------------------------------------------------


def classifier(judge, **options):
    model = tiny_model(head="TokenClassification", num_labels=2)
    return HFProcessRewardModel(model, byte_tokenizer(), judge=judge, **options)


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("judge", PARTS)
@pytest.mark.parametrize("inner", [False, True])
def test_a_process_reward_model_reads_the_part_alone(judge, cache, inner):
    reward, node = classifier(judge, cache=cache), chain(LINES, inner=inner)
    expected = classifier("all").step_scores([bare(PARTS[judge].lstrip(), inner=inner)])
    [cost] = reward.cost([node])
    assert reward.step_scores([node]) == [pytest.approx(expected[0], abs=1e-6)]
    assert len(expected[0]) == len(node.part(judge).inner_steps())
    assert cost.scored_tokens == classifier("all").cost([bare(PARTS[judge].lstrip(), inner=inner)])[0].scored_tokens


@pytest.mark.parametrize("kind", ["likelihood", "certainty", "implicit"])
@pytest.mark.parametrize("judge", PARTS)
def test_likelihoods_are_those_of_the_part_after_all_that_stands_before(judge, kind):
    def make(judge):
        if kind == "implicit":
            options = {"judge": judge, "step_separator": "\n"}
            return ImplicitReward(tiny_model(), tiny_model(seed=1), byte_tokenizer(), **options)
        measure = "likelihood" if kind == "likelihood" else "self-certainty"
        return LikelihoodReward(tiny_model(), byte_tokenizer(), judge=judge, measure=measure)

    node = chain(LINES)
    whole = make("all").step_scores([node])[0]
    kept = [score for score, is_kept in zip(whole, node.steps_in(judge), strict=True) if is_kept]
    assert make(judge).step_scores([node]) == [pytest.approx(kept)]
    assert len(kept) == {"thoughts": 3, "final": 2, "all": 6}[judge]


@pytest.mark.parametrize(
    "make", [classifier, lambda judge: LikelihoodReward(tiny_model(), byte_tokenizer(), judge=judge)]
)
def test_a_path_with_nothing_to_judge_scores_nothing_and_costs_nothing(make):
    reward, thinking, done = make("final"), chain(LINES[:3], "step"), chain(LINES)
    assert reward.cost([thinking, done])[0] == Cost()
    assert [len(scores) for scores in reward.step_scores([thinking, done, thinking])] == [0, 2, 0]
    assert reward.score([thinking])[0] == 0
    assert reward.score([thinking, done])[1] == pytest.approx(reward.score([done])[0])


@pytest.mark.parametrize("judge", PARTS)
def test_an_outcome_model_reads_the_part(judge):
    model = tiny_model(head="SequenceClassification", num_labels=1)
    reward = HFOutcomeRewardModel(model, byte_tokenizer(), judge=judge)
    expected = HFOutcomeRewardModel(model, byte_tokenizer(), judge="all").score([bare(chain(LINES).part(judge).text)])
    assert reward.score([chain(LINES)]) == pytest.approx(expected, abs=1e-5)


def test_an_outcome_model_judges_the_final_part_unless_told_otherwise():
    model = tiny_model(head="SequenceClassification", num_labels=1)
    reward = HFOutcomeRewardModel(model, byte_tokenizer())
    assert reward.judge == "final"
    other = chain(("<think>\n", "something else\n", "</think>\n", *LINES[5:]))
    assert reward.score([chain(LINES)]) == pytest.approx(reward.score([other]), abs=1e-5)
    empty = HFOutcomeRewardModel(model, byte_tokenizer(), judge="all").score([bare("").parent or bare("")])
    assert reward.score([chain(LINES[:3], "step")]) == pytest.approx(empty, abs=1e-5)


@pytest.mark.parametrize("judge", PARTS)
def test_functions_are_shown_the_part(judge):
    shown = []

    def by_nodes(nodes):
        return [float(len(node.text)) for node in nodes]

    def in_trl_style(completions, **kwargs):
        shown.extend(completions)
        return [float(len(text)) for text in completions]

    node = chain(LINES)
    expected = [float(len(node.part(judge).text))]
    assert RewardFunction(by_nodes, judge=judge).score([node]) == expected
    assert RewardFunction(in_trl_style, judge=judge).score([node]) == expected
    assert shown == [node.part(judge).text]


@pytest.mark.parametrize("judge", PARTS)
def test_a_verifier_is_told_the_part(judge):
    reward = GenerativeVerifier(tiny_model(), byte_tokenizer(), judge=judge, yes="a", no="b", max_new_tokens=4)
    prompt = reward.prompt_of(chain(LINES))
    assert ("b?" in prompt) == (judge != "final")
    assert ("the 12" in prompt) == (judge != "thoughts")
    assert "A: the 1" not in prompt
    thinking = chain(LINES[:3], "step")
    if judge == "final":
        assert reward.cost([thinking]) == [Cost()]
        assert reward.score([thinking]) == [0.0]


def test_models_made_of_others_judge_as_these_do():
    node = chain(LINES)
    for reward in (CachedProcessReward(classifier("final")), EnsembleProcessReward([classifier("final")] * 2)):
        assert reward.judge == "final"
        assert len(reward.step_scores([node])[0]) == 2
    with pytest.raises(ValueError, match="one judge"):
        EnsembleProcessReward([classifier("final"), classifier("all")])
    both = WeightedReward(
        [RewardFunction(lambda nodes: [len(n.text) for n in nodes], judge=j) for j in ("final", "thoughts")]
    )
    assert both.score([node]) == [float(len(FINAL) + len(node.thoughts.strip()))]
    cached = CachedReward(RewardFunction(lambda nodes: [len(n.text) for n in nodes], judge="final"))
    lines = ("12</think>", "1")
    assert cached.score([chain(lines), chain(lines, thinking=NO_THINKING)]) == [1.0, 11.0]


@pytest.mark.parametrize(
    "make",
    [
        classifier,
        lambda judge: LikelihoodReward(tiny_model(), byte_tokenizer(), judge=judge),
        lambda judge: ImplicitReward(tiny_model(), tiny_model(), byte_tokenizer(), judge=judge),
        lambda judge: RewardFunction(len, judge=judge),
        lambda judge: GenerativeVerifier(tiny_model(), byte_tokenizer(), judge=judge, yes="a", no="b"),
        lambda judge: HFOutcomeRewardModel(
            tiny_model(head="SequenceClassification", num_labels=1), byte_tokenizer(), judge=judge
        ),
        lambda judge: VLLMRewardModel("http://localhost:1", "m", judge=judge),
        lambda judge: VLLMOutcomeRewardModel("http://localhost:1", "m", judge=judge),
    ],
)
def test_an_unknown_part_is_refused(make):
    with pytest.raises(ValueError, match="choose one of 'final', 'thoughts', 'all'"):
        make("answer")


def test_ids_of_parts_of_steps_are_refused():
    with pytest.raises(ValueError, match="leave use_token_ids out"):
        classifier("final", use_token_ids=True)
    reward = LikelihoodReward(tiny_model(), byte_tokenizer(), judge="final", use_token_ids=True)
    assert len(reward.step_scores([chain(LINES)])[0]) == 2  # all ids are read, and those of whole steps count


@pytest.mark.parametrize("judge", PARTS)
def test_a_reward_model_with_a_part_keeps_its_promises(judge):
    nodes = [chain(LINES[:count], "step", prompt="b") for count in range(1, len(LINES))]
    check_reward_model(classifier(judge), nodes=[*nodes, chain(LINES), bare(FINAL), chain(LINES, inner=True)])


# -- searches ----------------------------------------------------------------------------------------------------------


class Chains(Generator):
    """Chains with thoughts of several qualities."""

    TEXTS = (
        "<think>\ngood good good\n</think>\nThe answer is 1.",
        "<think>\nbad\n</think>\nThe good answer is 2.",
        "<think>\ngood good good good good",
    )

    def generate(self, requests):
        return [[self.step(draw) for draw in range(r.first, r.first + r.n)] for r in requests]

    def step(self, draw):
        return Step(self.TEXTS[draw % 3], (1, 2), finish_reason="eos")


@pytest.mark.parametrize(("judge", "answer"), [("final", "2"), ("thoughts", "1"), ("all", "1")])
def test_the_best_of_n_is_the_best_by_the_part_that_is_judged(judge, answer):
    reward = RewardFunction(lambda nodes: [node.text.count("good") for node in nodes], judge=judge)
    result = solve("?", RepeatedSampling(3), Chains(), reward_model=reward, aggregator=BestOfN())
    assert result.answer == answer if result.answer else judge != "final"
    assert [t.score for t in result.trajectories] == {"final": [0, 1, 0], "thoughts": [3, 0, 5], "all": [3, 1, 5]}[
        judge
    ]


def test_the_engine_takes_step_scores_of_the_part_and_refuses_missing_ones():
    class Judge(ProcessRewardModel):
        """Judges final parts."""

        judge = "final"
        lacking = False

        def step_scores(self, nodes):
            return [[0.5] * len(node.part("final").inner_steps() if not self.lacking else []) for node in nodes]

    result = solve("?", RepeatedSampling(3), Chains(), reward_model=Judge(), aggregator=BestOfN(reduction="min"))
    assert [t.step_scores for t in result.trajectories] == [(0.5,), (0.5,), ()]
    assert [t.score for t in result.trajectories] == [0.5, 0.5, 0.0]
    assert result.answer == "1"
    lacking = Judge()
    lacking.lacking = True
    with pytest.raises(ValueError, match="gave no step score"):
        solve("?", RepeatedSampling(3), Chains(), reward_model=lacking)


def test_an_unknown_part_of_ones_own_is_refused_before_anything_is_sampled():
    class Odd(RewardModel):
        """Judges what nobody knows."""

        judge = "answer"

        def score(self, nodes):
            raise AssertionError

    with pytest.raises(ValueError, match="judge='answer'"):
        solve("?", RepeatedSampling(1), Chains(), reward_model=Odd())
