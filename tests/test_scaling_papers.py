"""The study's records as the papers' tables, and the theory of votes beside the measurement."""

import json
from pathlib import Path

import numpy as np
import pytest

from inferscale import zoo
from inferscale.scaling import majority_accuracy
from studies.scaling.judges import COLUMNS, judges_table
from studies.scaling.measure import pack, read
from studies.scaling.page import fill
from studies.scaling.paper import curve_points, in_the_papers_convention, paper
from studies.scaling.report import costs, pooled
from studies.scaling.voting import compare, limit, predicted, voting
from tests.drawn import caught, check_figure

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "studies" / "scaling" / "records.jsonl.gz"
REDUCTIONS = ("last", "min", "prod", "mean")
VOTES = ["majority", *(f"{vote} {r}" for vote in ("weighted", "best-of-n") for r in REDUCTIONS)]
CHANCES = np.array([0.5, 0.3, 0.1])  # of three answers; the rest abstains


def record(policy, strategy, n, seed=0, problems=6, **more):
    rng = np.random.default_rng(seed)
    return {
        "key": f"{policy} | prm-s | {strategy} {n} | seed {seed}", "policy": policy, "reward": "prm-s",
        "strategy": strategy, "n": n, "seed": seed, "problems": problems, "seconds": 1.0,
        "softmax_temperature": 0.1 if strategy == "REBASE" else None,
        "tokens": [10 * n] * problems, "policy_flops": [5e6 + 3e6 * n] * problems, "policy_prompt_flops": 5e6,
        "reward_flops": [7e6 + 2e6 * n] * problems, "reward_prompt_flops": 7e6,
        "votes": {name: rng.integers(2, size=problems).tolist() for name in VOTES}, **more,
    }  # fmt: skip


def sampled(policy, seed, problems=6):
    rng = np.random.default_rng(seed)
    draws = rng.choice(4, p=[*CHANCES, 1 - CHANCES.sum()], size=(problems, 64))
    samples = [
        {
            "answers": [None if a == 3 else str(a) for a in row],
            "right": [int(a == 0) for a in row],
            "scores": {r: [0.9 if a == 0 else 0.4 for a in row] for r in REDUCTIONS},
        }
        for row in draws.tolist()
    ]
    return record(policy, "RepeatedSampling", 64, seed, problems, samples=samples)


def made(problems=6):
    searches = [record(policy, "REBASE", n) for policy in ("policy-s", "policy-m") for n in (4, 16)]
    return [sampled("policy-s", 0, problems), sampled("policy-m", 1, problems), *searches]


def test_points_of_the_records_are_charged_as_they_were():
    points = {(p.model, p.strategy, p.vote, p.n): p for p in curve_points(made(), "prm-s", "min")}
    majority = points["policy-s", "RepeatedSampling", "majority", 16]
    weighted = points["policy-s", "RepeatedSampling", "weighted", 16]
    assert majority.generator_flops == weighted.generator_flops == pytest.approx(5e6 + 16 * 3e6)
    assert (majority.reward_flops, weighted.reward_flops) == (0.0, pytest.approx(7e6 + 16 * 2e6))
    assert majority.tokens == 160
    search = points["policy-m", "REBASE", "majority", 16]
    assert search.reward_flops == pytest.approx(7e6 + 16 * 2e6), "a search that scores is charged with any vote"
    assert costs([made()[0]], 1)[1] == pytest.approx(8.0)


def test_the_papers_convention_counts_sampled_tokens_and_nothing_else():
    points = curve_points(made(), "prm-s", "min")
    for point, theirs in zip(points, in_the_papers_convention(points), strict=True):
        assert theirs.flops == 2 * zoo.card(point.model).parameters * point.tokens
        assert theirs.accuracy == point.accuracy
    assert points[0].model == "policy-s", "small models first"


def test_a_sample_that_failed_abstains(tmp_path):
    whole, short = sampled("policy-s", 0), sampled("policy-s", 0)
    first = short["samples"][0]
    for values in (first["answers"], first["right"], *first["scores"].values()):
        values.pop()
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (whole, short)))
    left, right = read(tmp_path / "records.jsonl")
    assert left == whole
    assert right["samples"][0]["answers"] == [*whole["samples"][0]["answers"][:-1], None]
    assert {len(right["samples"][0]["right"]), *map(len, right["samples"][0]["scores"].values())} == {64}
    assert right["samples"][1:] == whole["samples"][1:]


def test_the_tables_are_markdown_and_the_picture_is_of_the_house(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = caught(monkeypatch)
    text = "\n".join(paper(made(), "prm-s", "min", tmp_path))
    for block in text.strip().split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block
    assert (tmp_path / "papers.png").exists()
    check_figure(*figures, panels=4)


def test_a_page_is_filled_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- list: begin -->\nold\n<!-- list: end -->\n\nProse.\n")
    for lines in (["* one", "", "", "* two"], ["* three"]):
        fill(page, {"list": lines})
    assert page.read_text() == "# Title\n\n<!-- list: begin -->\n\n* three\n\n<!-- list: end -->\n\nProse.\n"
    with pytest.raises(ValueError, match="has no <!-- table: begin -->"):
        fill(page, {"table": []})


def test_judges_are_compared_on_the_samples_that_both_have_seen():
    baseline = {**sampled("policy-s", 0), "reward": "likelihood", "key": "likelihood"}
    searches = [record("policy-s", "REBASE", 16, reward=judge) for judge in ("prm-s", "likelihood")]
    rows = list(judges_table([sampled("policy-s", 0), sampled("policy-s", 1), baseline, *searches], "min"))[3:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[1:3] for row in cells] == [["prm-s", "2"], ["likelihood", "1"]]
    assert [row[5] for row in cells] == ["+0.0 ± 0.0", ""], "seed 0 was scored alike"
    assert all(row.count("|") == COLUMNS.count("|") for row in rows)


def test_packed_records_hold_each_key_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "a", "problems": 2}\n{"key": "b", "problems": 1}\n{"key": "c"')
    (tmp_path / "b.jsonl").write_text('{"key": "a", "problems": 2, "late": 1}\n{"key": "d", "problems": 2}\n')
    packed = tmp_path / "packed.jsonl.gz"
    assert pack([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], 2, packed) == 2
    assert read(packed) == [{"key": "a", "problems": 2}, {"key": "d", "problems": 2}]


def test_a_predicted_vote_is_that_of_the_distribution():
    samples = pooled([sampled("policy-s", seed, 40) for seed in range(3)], "min")
    found = predicted(samples, 9, "majority", np.random.default_rng(0), 2000)
    shares = [np.bincount([i for i in ids if i >= 0]) / len(ids) for ids in samples.ids]
    exact = [majority_accuracy(p, gold, 9) for p, gold in zip(shares, samples.golds, strict=True)]
    assert found == pytest.approx(exact, abs=5 * 0.5 / 2000**0.5)
    assert predicted(samples, 9, "weighted", np.random.default_rng(0), 2000).mean() > found.mean() + 0.05


def test_a_prediction_needs_other_samples_than_the_measurement(tmp_path):
    with pytest.raises(ValueError, match="has 1 seeds of 64 samples: a prediction needs two"):
        list(voting(made(), "policy-s", "prm-s", "min", tmp_path / "voting.png"))


@pytest.mark.slow
@pytest.mark.parametrize("vote", ["majority", "weighted"])
def test_measured_votes_of_the_embedded_policy_follow_the_theory_within_error(vote):
    runs = read(RECORDS, "policy-s | prm-s | RepeatedSampling(n=64)")
    assert len(runs) == 3
    points = compare(runs, vote, "min", (1, 4, 16, 64), trials=200)
    for p in points:
        assert abs(p.difference) <= p.measured_error, p
    estimate, low, high = limit(runs, vote, "min")
    assert low <= estimate <= high
    last = points[-1]
    assert low - 2 * last.measured_error <= last.measured <= high
    assert [p.measured for p in points] == sorted(p.measured for p in points)


@pytest.mark.slow
def test_the_page_holds_what_the_commands_print(tmp_path):
    pytest.importorskip("matplotlib")
    page = (ROOT / "docs" / "project" / "papers.md").read_text(encoding="utf-8")
    records = read(RECORDS)
    printed = [line for block in paper(records, "prm-s", "min", tmp_path) for line in block.splitlines()]
    missing = [line for line in printed if line.startswith(("|", "*")) and line not in page]
    assert missing == []


def test_records_are_picked_by_their_key(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"key": key}) + "\n" for key in ("a | 1", "b | 1", "a | 2")) + '{"key": "a')
    assert [r["key"] for r in read(path, "a | ")] == ["a | 1", "a | 2"]
    assert len(read(path)) == 3
