"""The study of frontiers: what is on one, and that prices are those of the papers where they count as the papers do."""

import pytest

from studies.frontiers import Priced, frontier, halim, table


def point(name, accuracy, error=1.0, **costs):
    return Priced(name, name, accuracy, error, costs)


def test_a_dearer_one_is_on_the_frontier_only_if_it_is_better_by_its_error():
    points = [point("dear", 51.5, 2.0, flops=3, seconds=1), point("cheap", 50.0, flops=1, seconds=2),
              point("worse", 40.0, flops=2, seconds=3), point("best", 60.0, flops=9, seconds=9)]  # fmt: skip
    assert [p.name for p in frontier(points, "flops")] == ["cheap", "best"]
    assert [p.name for p in frontier(points, "seconds")] == ["dear", "best"]


def test_a_table_has_what_is_on_a_frontier_by_any_count_and_marks_where():
    points = [
        point("a", 50.0, FLOPs=1, seconds=2),
        point("b", 52.0, FLOPs=3, seconds=1),
        point("c", 9.0, FLOPs=5, seconds=5),
    ]
    rows = list(table("which", points))[2:]
    assert rows == ["| a | 50.0 ± 1.0 | **1** | 2 |", "| b | 52.0 ± 1.0 | **3** | **1** |"]


def test_published_costs_come_out_of_published_lengths():
    found = {p.name: p for p in halim()}
    # Their charges: 11.22e12 and 12.73e12 FLOPs, thoughts and reward model left out.
    assert found["Mistral-7B, majority 6"].costs["policy's tokens"] == pytest.approx(11.22e12, rel=0.01)
    assert found["Quiet-STaR, majority 6"].costs["policy's tokens"] == pytest.approx(12.73e12, rel=0.01)
    # Eleven forwards for each visible token instead of one.
    ratio = found["Quiet-STaR, majority 6"].costs["FLOPs"] / found["Mistral-7B, majority 6"].costs["FLOPs"]
    assert ratio == pytest.approx(11 * 277 / 244, rel=0.05)
    for priced in found.values():  # an A100 draws 400 W
        assert priced.costs["joules together, A100"] == pytest.approx(400 * priced.costs["seconds together, A100"])
