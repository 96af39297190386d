import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from inferscale.scaling import CoverageFit, CurvePoint, SizeFit
from inferscale.viz import (
    label_lines,
    plot_coverage,
    plot_frontier,
    plot_optimal_size,
    plot_scaling,
    plot_votes,
    to_frame,
)

pytest.importorskip("matplotlib")


def at(n, accuracy, *, vote="majority", model="m", error=0.02, parameters=1000):
    return CurvePoint("S", vote, n, accuracy, error, 9, 10 * n, 1e6 * n, 1e5 * n, 0.1 * n, None, model, parameters)


POINTS = [
    at(4, 0.5), at(1, 0.25), at(2, 0.4), at(1, 0.3, model="big", parameters=9000), at(4, 0.7, vote="coverage"),
    at(1, 0.2, vote="coverage", error=float("nan")),
]  # fmt: skip


def test_a_line_for_each_model_and_vote_in_order_of_cost():
    ax = plot_scaling(POINTS, x="tokens")
    lines = {container.get_label(): container.lines[0] for container in ax.containers}
    assert sorted(lines) == ["big, S, majority", "m, S, coverage", "m, S, majority"]
    assert lines["m, S, majority"].get_xdata().tolist() == [10, 20, 40]
    assert lines["m, S, majority"].get_ydata().tolist() == [0.25, 0.4, 0.5]
    assert lines["m, S, coverage"].get_linestyle() == "--"
    assert ax.get_xscale() == "log"
    assert ax.get_yscale() == "linear"
    assert ax.get_xlabel() == "sampled tokens per problem"


def test_error_rates_have_two_logarithmic_axes():
    ax = plot_scaling(POINTS, y="error", label="model")
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["m", "big", "m"]
    line = ax.containers[0].lines[0]
    assert line.get_ydata().tolist() == pytest.approx([0.75, 0.6, 0.5])
    assert line.get_xdata().tolist() == [1.1e6, 2.2e6, 4.4e6]
    perfect = plot_scaling([at(1, 1.0)], y="error")
    assert perfect.get_yscale() == "linear", "an error of 0 has no logarithm"


def test_the_frontier_and_the_optimal_size():
    ax = plot_scaling(POINTS)
    assert plot_frontier(POINTS, ax=ax) is ax
    steps = ax.lines[-1]
    assert steps.get_ydata().tolist() == [0.3, 0.4, 0.5]
    sizes = plot_optimal_size(POINTS, SizeFit(1.19, 2.03, 3, 2))
    assert sizes.collections[0].get_offsets()[:, 1].tolist() == [9000, 1000, 1000]
    assert "1.19" in sizes.get_legend().get_texts()[1].get_text()


def test_coverage_with_its_law():
    ax = plot_coverage(POINTS, CoverageFit(-1.3, -0.4, 0, 0, 0))
    assert len(ax.lines) == 4
    assert ax.lines[-1].get_xdata().tolist() == [1, 2, 4]


def test_one_panel_for_each_vote(tmp_path):
    figure = plot_votes(POINTS)
    assert [ax.get_title() for ax in figure.axes] == ["majority", "coverage"]
    figure.savefig(tmp_path / "votes.svg")
    assert (tmp_path / "votes.svg").stat().st_size > 1000
    assert len(plot_votes(POINTS, columns=1).axes) == 2


def test_costs_of_nothing_have_no_logarithm():
    free = [replace(point, generator_flops=0.0, reward_flops=0.0) for point in POINTS]  # on a server
    for ax in (plot_scaling(free), plot_frontier(free)):
        assert ax.get_xscale() == "linear"
        ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="no points to plot"):
        plot_votes([])


def test_any_name_stands_in_the_legend_as_it_is():
    points = [at(1, 0.5, model="_a"), at(1, 0.4, model="$_{b$"), at(1, 0.3, model="c$")]
    for ax in (plot_scaling(points), plot_coverage(points)):
        ax.figure.canvas.draw()
        texts = [text.get_text().strip().replace(r"\$", "$") for text in ax.get_legend().get_texts()]
        assert texts == ["_a, S, majority", "$_{b$, S, majority", "c$, S, majority"]


def test_a_frame_has_a_row_for_each_point():
    pytest.importorskip("pandas")
    frame = to_frame(POINTS)
    assert frame["flops"].tolist() == [p.flops for p in POINTS]
    assert "per_problem" not in frame


def test_no_global_state_and_no_import_before_it_is_needed():
    code = (
        "import sys, inferscale.viz.plots as p\nassert not {'matplotlib', 'pandas', 'torch'} & set(sys.modules)\n"
        "from inferscale.scaling import CurvePoint\n"
        "p.plot_scaling([CurvePoint('S', 'majority', 1, .5, .1, 9, 1, 1, 1, 1)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"inferscale\[plot\]"):
        to_frame(POINTS)


def test_lines_are_named_at_their_ends_apart_from_one_another():
    points = [
        at(n, height + 0.1 * n / 4, model=model)
        for n in (1, 4)
        for model, height in (("a", 0.3), ("b", 0.3), ("c", 0.6))
    ]
    ax = plot_scaling(points, label="model")
    ax.figure.draw_without_rendering()
    label_lines(ax)
    assert ax.get_legend() is None
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    assert [text.get_color() for text in ax.texts] == [bars.lines[0].get_color() for bars in ax.containers]
    assert len({text.get_color() for text in ax.texts}) == 3
    boxes = [text.get_window_extent() for text in ax.texts]
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    assert all(box.x0 > ax.get_window_extent().x1 for box in boxes)
