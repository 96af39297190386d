"""The study of thoughts and search: its published rules by hand, and that the fall comes from them."""

import json
from dataclasses import astuple, replace

import pytest
import torch

from inferscale import Cost, RepeatedSampling, RewardFunction, Step, solve, zoo
from inferscale.flops import estimate_flops
from inferscale.generators import HFGenerator
from inferscale.quiet_star import QuietSTaRGenerator
from inferscale.testing import ToyGenerator
from inferscale.tree import Problem
from studies.thoughts import ABLATIONS, PRESETS, StudyRow, ThoughtStudy
from studies.thoughts.__main__ import main
from studies.thoughts.released import CUE, REPAIRS, CuedVotes, FlooredREBASE, ReleasedPaths, is_leaf, released_answer
from studies.thoughts.study import study_problems
from tests.quiet_star_tools import wrapped
from tests.strategy_fakes import drive, root
from tests.tiny_models import byte_tokenizer

PUBLISHED, CORRECTED = PRESETS["published"], PRESETS["corrected"]


# -- the rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "leaf"),
    [
        ("He buys two", False),
        ("He buys 2", True),
        ("He has 3 pens. Then he buys more. They are", False),
        ("He has 3 pens. They are", True),
        ("so the answer is four. And then. And then", True),
        ("", False),
    ],
)
def test_a_digit_in_the_last_two_sentences_is_a_leaf(text, leaf):
    assert is_leaf(text) == leaf


@pytest.mark.parametrize(
    ("text", "answer"), [("1248", "8"), ("20000", "00"), ("1,248 pens", "1248"), ("7 or 12", "12"), ("none", None)]
)
def test_the_released_pattern_mangles_long_numbers(text, answer):
    assert released_answer(text) == answer


def test_the_repairs_lead_from_one_preset_to_the_other():
    rules = PUBLISHED
    for number, (_, repair) in enumerate(REPAIRS):
        rules = replace(rules, **repair)
        assert sum(not holds for holds in astuple(rules)) == number
    assert replace(rules, cue=False) == CORRECTED  # which is about votes without a search


def test_a_node_at_the_floor_is_neither_expanded_nor_returned():
    top, asked = root(), []

    def sample(request, draw):
        asked.append(request.node.text)
        return Step("abc"[draw % 3], finish_reason="step" if request.node is top else "eos")

    value = {"a": 0.1, "b": 0.5, "c": 0.9}
    leaves = drive(
        FlooredREBASE(3, softmax_temperature=5.0).search(top, None), sample, lambda node: value[node.text[-1]]
    )
    assert set(asked) == {"", "b", "c"}
    assert leaves
    assert all(leaf.text[-1] != "a" for leaf in leaves)
    alone = drive(FlooredREBASE(width=2, floor=1.0).search(root(), None), sample, lambda node: value[node.text[-1]])
    assert {leaf.text for leaf in alone} == {"a", "b"}  # nothing was kept: what there is


def test_samples_that_reached_the_limit_are_asked_for_their_answer():
    def sample(request, draw):
        if request.forced:
            return Step(request.forced + " 7", finish_reason="budget")
        return Step(f"text {draw}", finish_reason="eos" if draw == 0 else "step")

    leaves = drive(CuedVotes(3).search(root(), None), sample)
    assert [leaf.text for leaf in leaves] == ["text 0", f"text 1{CUE} 7", f"text 2{CUE} 7"]
    assert len(drive(CuedVotes(2).search(root(), None), lambda r, d: Step("x", finish_reason="eos"))) == 2


def test_paths_end_at_digits_and_the_strategies_see_it():
    toy = ToyGenerator(depth=3)
    plain = solve("How many?", RepeatedSampling(4), ReleasedPaths(toy, digit_leaves=False))
    assert [t.text for t in plain.trajectories] == [
        t.text for t in solve("How many?", RepeatedSampling(4), toy).trajectories
    ]
    step = Step("1 a\n", finish_reason="step")
    paths = ReleasedPaths(toy, digit_leaves=True)
    assert paths._ended(_request(), step).finish_reason == "eos"
    assert paths._ended(_request(), Step("a\n", finish_reason="step")).finish_reason == "step"
    assert ReleasedPaths(toy, digit_leaves=False)._ended(_request(), step).finish_reason == "step"
    assert paths.max_sample_tokens(_request()) == 5
    assert ReleasedPaths(toy, True, 3).max_sample_tokens(_request(forced="x")) == 3


def _request(**options):
    from inferscale.flow import GenerateRequest

    return GenerateRequest(root(), **options)


# -- the rows ----------------------------------------------------------------------------------------------------------


def study(rules, **options):
    quiet = wrapped("llama", 2)
    reward = RewardFunction(lambda prompts, completions: [0.2 + len(text) % 7 / 10 for text in completions])
    problems = [Problem("a b", "12"), Problem("Step 12: the", "3")]
    sizes = {"votes": 2, "widths": (3,), "step_tokens": 4, "max_new_tokens": 10}
    return ThoughtStudy(quiet.model, byte_tokenizer(), quiet, reward, problems, rules, **{**sizes, **options})


@pytest.mark.parametrize("rules", [PUBLISHED, CORRECTED], ids=["published", "corrected"])
def test_the_table_has_the_papers_rows_and_both_prices(rules):
    rows = list(study(rules).table())
    both = "REBASE-6 + Quiet-STaR" if rules == PUBLISHED else "REBASE-3 + Quiet-STaR"
    assert [row.name for row in rows] == ["baseline, majority of 2", "Quiet-STaR, majority of 2", "REBASE-3", both]
    constant = estimate_flops(wrapped("llama").model.config, prompt=1, new=1, convention="abdelhameed2024")
    for row in rows:
        assert row.charged_flops % constant == 0
        assert (row.cost.thought_tokens == 4 * row.cost.generated_tokens) == ("Quiet" in row.name)
        assert row.cost.generator_flops > 0
        if row.name != "REBASE-3" or rules == CORRECTED:
            assert row.charged_flops == constant * row.cost.generated_tokens
    if rules == PUBLISHED:  # the cap of a step for every node, summed again along its path
        assert rows[2].charged_flops // constant % 4 == 0
        assert rows[2].charged_flops > constant * rows[2].cost.generated_tokens


@pytest.mark.parametrize("thinks", [False, True])
def test_an_answer_that_was_asked_for_has_twelve_visible_tokens(thinks):
    found = study(PUBLISHED, max_new_tokens=14)
    cue = len(byte_tokenizer()(CUE, add_special_tokens=False)["input_ids"])
    generator = found._generator(False, thinks, None, {})
    assert isinstance(generator.generator, QuietSTaRGenerator if thinks else HFGenerator)
    result = solve(found.problems[0], CuedVotes(4), generator)
    answers = [node for node in result.root.walk() if node.depth == 2]
    assert answers
    lengths = [len(node.step.token_ids) - cue for node in answers if node.step.finish_reason != "eos"]
    assert lengths
    assert set(lengths) == {12}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "rules" else pytest.mark.slow) for name in ABLATIONS]
)
def test_every_ablation_gives_its_rows(name):
    expected = {"rules": 14, "pruning": 6, "length": 5, "when": 4, "reward": 3}
    rows = list(ABLATIONS[name](study(CORRECTED)))
    assert len(rows) == expected[name]
    assert len({row.name for row in rows}) == len(rows)
    if name == "length":
        visible = [row.cost.generated_tokens for row in rows]
        assert [row.cost.thought_tokens for row in rows] == [
            n * (t + 2) for n, t in zip(visible, (0, 1, 3, 5, 9), strict=True)
        ]
    if name == "when":
        assert rows[0].cost.thought_tokens > rows[1].cost.thought_tokens > rows[3].cost.thought_tokens == 0


def test_the_command_prints_the_rows(monkeypatch, capsys):
    sizes = ["--problems", "1", "--votes", "1", "--widths", "1", "--train-steps", "1", "--max-new-tokens", "8"]
    monkeypatch.setattr("sys.argv", ["studies.thoughts", "--model", "policy-xs", *sizes])
    main()
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "corrected settings, 1 problems"
    assert [row.split("  ")[0] for row in rows] == [
        *("baseline, majority of 1", "Quiet-STaR, majority of 1", "REBASE-1", "REBASE-1 + Quiet-STaR")
    ]


def test_a_row_with_wilsons_interval():
    """The paper's 41 of 128, Wilson's interval from 24.6 to 40.5 %."""
    row = StudyRow("Quiet-STaR", 41, 128, Cost(generated_tokens=128), 0, 3, 9)
    assert row.interval == pytest.approx((0.246, 0.405), abs=5e-4)
    assert "41/128 [24.6%,  40.5%]" in str(row)
    assert str(row).endswith("depth 1: 3/9")
    for n in range(1, 40):
        assert "[ 0.0%," in str(StudyRow("none", 0, n, Cost(), 0, 0, 0)), "not -0.0%"
        assert StudyRow("all", n, n, Cost(), 0, 0, 0).interval[1] <= 1


def test_a_study_of_a_gsm8k_file(tmp_path):
    rows = [{"question": f"{n} pens?", "answer": f"They are {n}.\n#### {n}"} for n in range(20)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = study_problems(tmp_path / "test.jsonl", 5)
    assert [p.answer for p in problems] != ["0", "1", "2", "3", "4"]  # shuffled
    assert problems[0].prompt == f"Q: {problems[0].answer} pens?\nA: Let's think step by step."
    with pytest.raises(ValueError, match="only judges the embedded task"):
        ThoughtStudy.load("policy-xs", data=tmp_path / "test.jsonl", train_steps=0)
    byte_tokenizer().save_pretrained(tmp_path / "base")
    quiet = wrapped("llama", 2)
    quiet.model.save_pretrained(tmp_path / "base")
    quiet.save_pretrained(tmp_path / "quiet", merge=True)
    with pytest.raises(ValueError, match="an untrained wrapper is the model itself"):
        ThoughtStudy.load(str(tmp_path / "base"), reward="prm-s", data=tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match="problems=0: take at least 1"):
        study_problems(tmp_path / "test.jsonl", 0)
    with pytest.raises(ValueError, match="preset='none': choose one of published, corrected"):
        ThoughtStudy.load(preset="none")
    given = {"quiet": tmp_path / "quiet", "reward": "prm-s", "data": tmp_path / "test.jsonl", "problems": 2}
    found = ThoughtStudy.load(str(tmp_path / "base"), preset="published", votes=2, max_new_tokens=8, **given)
    assert (found.rules, found.quiet.thought_length, len(found.problems)) == (PUBLISHED, 2, 2)
    dash = byte_tokenizer()("---", add_special_tokens=False)["input_ids"][0]
    marks = found.quiet.backbone.embed(torch.tensor(dash))
    assert torch.equal(found.quiet.start, marks)
    assert torch.equal(found.quiet.end, marks)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_fall_comes_from_the_published_rules():
    """Without a thought in sight: the published rules ruin REBASE, and mending them one by one brings it back."""
    loaded = ThoughtStudy.load("policy-s", problems=40, train_steps=0, step_tokens=24)
    right = []
    mended = replace(loaded, rules=PUBLISHED)
    for _, repair in REPAIRS:
        mended = replace(mended, rules=replace(mended.rules, **repair))
        row = mended.measure("REBASE-6", mended.rebase(6), thinks=False)
        if row.name == "as published":
            assert row.depth_one == row.trajectories
        right.append(row.right)
    votes = loaded.measure("votes", RepeatedSampling(6), thinks=False)
    assert right[0] < votes.right / 2
    assert right[-1] > 2 * right[0]
    assert right[-1] >= votes.right - 4
    assert zoo.problems("dev")[:40] == loaded.problems
