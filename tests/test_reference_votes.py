"""Every figure of the recorded samples on coverage and votes is reproduced, by `functional` and by the aggregators."""

import json

import numpy as np
import pytest

from inferscale import functional
from inferscale.aggregators import MajorityVote, Oracle
from inferscale.answers import parse_number, same_answer
from inferscale.tree import Problem, Step, Trajectory

GAMES = ["game24_gpt4_cot_k100", "game24_gpt4_io_k100"]


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data / "REFERENCE.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def samples(shared_data):
    def read(name):
        lines = (shared_data / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return read


def numbered(rows):
    """Answers as numbers in order of appearance, -1 for null, and correctness: `[rows, N]` each."""
    ids = []
    for row in rows:
        seen = {}
        ids.append([-1 if answer is None else seen.setdefault(answer, len(seen)) for answer in row["answers"]])
    correct = [row.get("correct") or [int(answer == row["gold"]) for answer in row["answers"]] for row in rows]
    return np.array(ids), np.array(correct)


def vote_accuracy(ids, correct):
    """Share of rows whose vote is correct, by the first member of the winner; all abstaining is wrong."""
    winners = functional.majority_vote(ids)
    return np.mean([w >= 0 and c[list(i).index(w)] for w, i, c in zip(winners, ids, correct, strict=True)])


def trajectories(row, answers=None):
    """The recorded answers as trajectories."""
    problem = Problem(row["id"], answer=row.get("gold", "24"))
    return [Trajectory(problem, (Step(str(a), finish_reason="eos"),), answer=a) for a in answers or row["answers"]]


def check_curves(by_k, ids, correct, digits):
    tolerance = 10.0**-digits / 2 + 1e-12
    ks = [int(k) for k in by_k]
    coverage = functional.pass_at_k(correct, ks).mean(0)
    expected = functional.majority_at_k(ids, correct, ks).mean(0)
    for column, (k, figures) in enumerate(by_k.items()):
        assert coverage[column] == pytest.approx(figures["pass_at_k"], abs=tolerance)
        assert expected[column] == pytest.approx(figures["maj_expected"], abs=tolerance)
        first = vote_accuracy(ids[:, : int(k)], correct[:, : int(k)])
        assert first == pytest.approx(figures["maj_first_k"], abs=tolerance)


def test_otis_curves_of_all_models(reference, samples):
    rows = samples("otis_aime_k16")
    figures = reference["samples/otis_aime_k16"]
    assert {row["model"] for row in rows} == set(figures)
    for model, expected in figures.items():
        ids, correct = numbered([row for row in rows if row["model"] == model])
        check_curves(expected["by_k"], ids, correct, digits=6)
        assert vote_accuracy(ids, correct) == pytest.approx(expected["adaptive"]["SC"]["acc"], abs=1e-12)


def test_otis_by_aggregators(reference, samples):
    rows = samples("otis_aime_k16")
    for model, expected in reference["samples/otis_aime_k16"].items():
        mine = [row for row in rows if row["model"] == model]
        chosen = [MajorityVote().select(trajectories(row)).answer for row in mine]
        accuracy = np.mean([answer == row["gold"] for answer, row in zip(chosen, mine, strict=True)])
        assert accuracy == pytest.approx(expected["adaptive"]["SC"]["acc"], abs=1e-12)
        oracle = [
            Oracle(same_answer=lambda a, b: a == b).select(trajectories(row)).answer == row["gold"] for row in mine
        ]
        assert np.mean(oracle) == pytest.approx(expected["by_k"]["16"]["pass_at_k"], abs=5e-7)


def test_date_curves_and_recorded_majorities(reference, samples):
    rows = samples("date_chatgpt_k10")
    figures = reference["samples/date_chatgpt_k10"]
    ids, correct = numbered(rows)
    check_curves(figures["by_k"], ids, correct, digits=14)
    matches = ties = 0
    for row in rows:
        counts = {a: row["answers"].count(a) for a in row["answers"] if a is not None}
        leaders = {a for a, count in counts.items() if count == max(counts.values())}
        ties += len(leaders) > 1
        recorded = row["majority_recorded"]
        winner = MajorityVote().select(trajectories(row)).answer
        matches += set(recorded) == leaders and winner == next(a for a in row["answers"] if a in leaders)
    expected = figures["majority_against_recorded"]
    assert (matches, len(rows), ties) == (expected["matches"], expected["n"], expected["ties"])
    shared = functional.majority_at_k(ids, correct, 10).mean()
    assert shared == pytest.approx(expected["recorded_majority_accuracy"], abs=1e-12)


@pytest.mark.parametrize("game", GAMES)
def test_game_of_24_coverage_and_votes(reference, samples, game):
    rows, figures = samples(game), reference[f"samples/{game}"]
    ids, correct = numbered(rows)
    coverage = functional.pass_at_k(correct, [int(k) for k in figures["pass_at_k"]]).mean(0)
    assert coverage == pytest.approx(list(figures["pass_at_k"].values()), abs=1e-12)
    assert vote_accuracy(ids, correct) == pytest.approx(figures["maj_first_100"], abs=1e-12)
    labels = [dict(zip(row["answers"], row["correct"], strict=True)) for row in rows]
    chosen = [MajorityVote(normalize=str).select(trajectories(row)).answer for row in rows]
    right = np.mean([label[answer] for label, answer in zip(labels, chosen, strict=True)])
    assert right == pytest.approx(figures["maj_first_100"], abs=1e-12)


def test_gsm8k_four_models(reference, samples):
    rows, figures = samples("gsm8k_openai_4models"), reference["samples/gsm8k_openai_4models"]
    agree = pairs = 0
    for row in rows:
        for answer, label in zip(row["answers"], row["correct"], strict=True):
            agree += (answer is not None and same_answer(answer, row["gold"])) == bool(label)
            pairs += 1
    assert (agree, pairs) == (figures["pairs"], figures["pairs"] + figures["grader_mismatches"])
    ids, correct = numbered(rows)
    assert dict(zip(figures["order"], correct.sum(0).tolist(), strict=True)) == figures["correct"]
    assert functional.pass_at_k(correct, 4).mean() == pytest.approx(figures["coverage"], abs=1e-12)
    chosen = [MajorityVote(normalize=str).select(trajectories(row, row["answers"][::-1])).answer for row in rows]
    right = sum(a is not None and same_answer(a, row["gold"]) for a, row in zip(chosen, rows, strict=True))
    assert right == figures["majority_of_4"]["string_answers"]
    strings = vote_accuracy(ids[:, ::-1], correct[:, ::-1]) * len(rows)
    assert strings == pytest.approx(figures["majority_of_4"]["string_answers"])


def test_gsm8k_majority_over_numbers(reference, samples):
    rows, figures = samples("gsm8k_openai_4models"), reference["samples/gsm8k_openai_4models"]
    chosen = [MajorityVote().select(trajectories(row, row["answers"][::-1])).answer for row in rows]
    right = sum(a is not None and same_answer(a, row["gold"]) for a, row in zip(chosen, rows, strict=True))
    assert right == figures["majority_of_4"]["numeric_answers"]
    odd = {a for row in rows for a in row["answers"] if a is not None and parse_number(a) is None}
    assert odd == {"10+John's age"}  # "-1.8 billion", "1/5" and "7/14" are read as numbers


def test_gsm8k_golds_are_read_out_of_the_worked_solutions(shared_data, reference):
    from inferscale.answers import read_answer

    for part in ("test", "train"):
        lines = (shared_data / "problems" / f"gsm8k_{part}.jsonl").read_text(encoding="utf-8").splitlines()
        golds = [json.loads(line)["answer"] for line in lines]
        figures = reference["problems/gsm8k"][part]
        assert len(golds) == figures["rows"]
        wrong = [g for g in golds if not same_answer(read_answer(g) or "", g.split("####")[1].strip())]
        assert wrong == []
        assert sum("," in g.split("####")[1] for g in golds) == figures["gold_with_comma"]
        assert sum((parse_number(g.split("####")[1].strip()) or 0) < 0 for g in golds) == figures["gold_negative"]
