"""The embedded task: problems, reference derivations, and the checker."""

import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from inferscale import zoo
from inferscale.zoo import task
from inferscale.zoo import task as drawing
from inferscale.zoo import task as story

PROMPT = (
    "Mia has 7 trays with 6 pens in each. Mia buys 3 boxes of 8. Mia sells 40 of them. "
    "Mia gives one of every 2 to Tom. How many pens are left?\n"
)
SOLUTION = "7 * 6 = 42\n3 * 8 = 24\n42 + 24 = 66\n66 - 40 = 26\n26 / 2 = 13\n26 - 13 = 13\nThe answer is: 13"


def test_derivation_by_hand():
    assert task.solution(PROMPT) == SOLUTION
    lines, answer = task.reference(PROMPT)
    assert answer == 13
    assert [(line.left_from, line.right_from) for line in lines] == [
        (None, None), (None, None), (0, 1), (2, None), (3, None), (3, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tom has 12 eggs. Tom buys 5 more. How many eggs are left?\n", 17),
        ("Mia owns 3 eggs. Tom starts with 4 times as many. Tom loses 5. How many eggs does Tom have now?\n", 7),
        ("Tom starts with 4 bags of 5 eggs. Then Tom has 3 times as many. How many eggs are left?\n", 60),
        ("Tom has 12 eggs. Tom makes 4 equal parts and keeps one. How many eggs are left?\n", 3),
        ("Tom has 12 eggs. Tom shares them equally among 3 people and keeps one part. How many eggs are left?\n", 4),
        ("Tom has 12 eggs. Tom sells one of every 4. How many eggs are left?\n", 9),
        ("Tom has 30 eggs. Tom loses 2 jars with 9 in each. How many eggs are left?\n", 12),
        ("Tom has 30 eggs. How many eggs are left?\n", 30),
    ],
)
def test_sentences_by_hand(text, answer):
    assert task.reference(text)[1] == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is 2 + 2?\n",
        "How many eggs are left?\n",
        "Tom buys 5 more. How many eggs are left?\n",
        "Tom has 3 eggs. Mia has 3 eggs. How many eggs are left?\n",
        "Tom has 3 eggs. Tom juggles 2 of them. How many eggs are left?\n",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not a problem of the embedded task"):
        task.reference(text)


@pytest.mark.parametrize(
    ("completion", "labels"),
    [
        (SOLUTION, [True] * 7),
        (SOLUTION + "\n", [True] * 7),
        ("6 * 7 = 42\n8 * 3 = 24\n24 + 42 = 66\n", [True, True, True]),
        ("7 * 6 = 42\n\n 3 * 8 = 24", [True, True]),
        ("", []),
        ("7 * 6 = 43\n3 * 8 = 24\n42 + 24 = 66\n", [False, True, True]),
        ("7 + 6 = 13\n", [False]),
        ("7 * 6 = 42\n3 * 8 = 24\n42 + 24 = 66\n40 - 66 = 26\n", [True, True, True, False]),
        ("3 * 8 = 24\n", [False]),
        ("7 * 6 = 42\nThe answer is: 42", [True, False]),
        (SOLUTION.replace("is: 13", "is: 3"), [True] * 6 + [False]),
        (SOLUTION + "\nThe answer is: 13", [True] * 7 + [False]),
        ("7 * 6 = 42 \nnonsense", [True, False]),
    ],
)
def test_checker_by_hand(completion, labels):
    assert task.check_steps(PROMPT, completion) == labels
    first = labels.index(False) if False in labels else None
    assert task.first_error(PROMPT, completion) == first
    expected = [first is None or index < first for index in range(len(labels))]
    assert task.step_labels(PROMPT, completion) == expected


@pytest.mark.parametrize(
    ("completion", "is_right"),
    [
        (SOLUTION, True),
        ("The answer is: 13", True),
        ("The answer is: 013\n", True),
        ("The answer is: 12\nThe answer is: 13", True),
        ("13", False),
        ("The answer is: 130", False),
        ("The answer is: 13 or 14", False),
    ],
)
def test_final_answer(completion, is_right):
    assert task.is_correct(PROMPT, completion) is is_right


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.sampled_from(sorted(task.LEVELS)))
def test_levels_hold_their_promises(seed, level):
    (problem,) = task.generate(1, seed, level, split="train")
    lines, answer = task.reference(problem.prompt)
    about = task.LEVELS[level]
    assert about.min_steps <= len(lines) <= about.max_steps
    assert all(1 <= line.result <= about.limit for line in lines)
    assert problem.answer == str(answer)
    assert task.level_of(problem) == level
    for line in lines:  # an independent oracle of the arithmetic
        assert {"+": line.left + line.right, "-": line.left - line.right, "*": line.left * line.right}.get(
            line.op, line.result
        ) == line.result
        assert line.op != "/" or line.right * line.result == line.left
    assert all(task.check_steps(problem.prompt, task.solution(problem.prompt)))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_events_survive_being_told(seed):
    rng = random.Random(seed)
    events = drawing.draw_events(rng, task.LEVELS[rng.randint(1, 5)])
    assert story.read_events(drawing.write_prompt(rng, events)) == events


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_changed_result_is_caught(seed, data):
    (problem,) = task.generate(1, seed, split="train")
    solution = task.solution(problem.prompt).split("\n")
    index = data.draw(st.integers(0, len(solution) - 1))
    right = re.findall("[0-9]+", solution[index])[-1]
    wrong = data.draw(st.integers(0, 999).filter(lambda value: value != int(right)))
    changed = solution[index][: -len(right)] + str(wrong)
    completion = "\n".join([*solution[:index], changed, *solution[index + 1 :]])
    assert task.first_error(problem.prompt, completion) == index


def test_same_arguments_same_problems_in_any_process():
    code = "from inferscale.zoo import task; print([p.prompt for p in task.generate(5, seed=3, split='train')])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str([p.prompt for p in task.generate(5, seed=3, split="train")])
    assert task.generate(5, seed=3) != task.generate(5, seed=4)


def test_task_needs_no_torch():
    code = "import sys; from inferscale.zoo import task; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_splits_are_disjoint_and_levels_balanced():
    sets = {split: {p.prompt for p in task.generate(300, 0, split=split)} for split in ("train", "dev", "test")}
    assert not sets["train"] & sets["dev"]
    assert not sets["train"] & sets["test"]
    assert not sets["dev"] & sets["test"]
    for split, prompts in sets.items():
        assert {task.split_of(prompt) for prompt in prompts} == {split}
    levels = [task.level_of(p) for p in task.generate(50, 0)]
    assert [levels.count(level) for level in task.LEVELS] == [10] * 5


def test_bad_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="choose one of"):
        task.generate(1, 0, level=6)
    with pytest.raises(ValueError, match="choose 'train', 'dev' or 'test'"):
        task.generate(1, 0, split="valid")
    with pytest.raises(ValueError, match="0 or more"):
        task.generate(-1, 0)
    with pytest.raises(ValueError, match="choose 'test' or 'dev'"):
        zoo.problems("train")


@pytest.mark.parametrize("auc", [0.63, 0.8, 0.97])
def test_simulated_score_has_the_promised_quality(auc):
    right = [zoo.simulated_score(f"right {index}", True, auc) for index in range(2000)]
    wrong = [zoo.simulated_score(f"wrong {index}", False, auc) for index in range(2000)]
    wins = mannwhitneyu(right, wrong).statistic / 2000**2
    assert wins == pytest.approx(auc, abs=0.025)  # three standard errors
    assert zoo.simulated_score("right 1", True, auc) == right[1]
    near = [1.0 for score in right if 0.6 < score < 0.8], [0.0 for score in wrong if 0.6 < score < 0.8]
    share = len(near[0]) / (len(near[0]) + len(near[1]))
    assert share == pytest.approx(0.7, abs=0.07)  # calibrated


@pytest.mark.parametrize("auc", [0.5, 1.0, 0.2])
def test_simulated_score_refuses_other_qualities(auc):
    with pytest.raises(ValueError, match="choose a value between"):
        zoo.simulated_score("prefix", True, auc)
