"""Pictures of one search, read back from matplotlib's artists."""

from itertools import pairwise

import pytest

from inferscale.engine import solve
from inferscale.scaling import CurvePoint
from inferscale.strategies import REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyProcessReward
from inferscale.viz import MOST_VOTES, Scale, marks_of, plot_answers, plot_scaling, plot_tree
from inferscale.viz.plots import COLOURS

matplotlib = pytest.importorskip("matplotlib")


def searched(strategy, prompt="How many?", reward=True, **toy):
    return solve(prompt, strategy, ToyGenerator(**toy), reward_model=ToyProcessReward() if reward else None)


def lines(ax):
    return {lines.get_label(): lines for lines in ax.collections if not lines.get_label().startswith("_")}


def test_a_tree_has_a_mark_for_each_node_and_an_edge_for_each_step():
    result = searched(BeamSearch(2, 3))
    ax = plot_tree(result)
    marks = marks_of(result.root, result.leaves, result.trajectories, result.selected_leaf)
    dots = [dots for dots in ax.collections if hasattr(dots, "get_sizes") and dots.get_offsets().shape[0] > 0]
    places = [tuple(place) for group in dots if len(group.get_sizes()) for place in group.get_offsets().tolist()]
    assert sorted(x for x, _ in places) == sorted(mark.depth for mark in marks)
    assert len(set(places)) == len(marks), "no two marks on one place"
    states = {"chosen": "reported", "kept": "returned", "pruned": "pruned"}
    for state, label in states.items():
        drawn = lines(ax)[label].get_segments()
        assert len(drawn) == sum(mark.state == state for mark in marks[1:])
        for curve in drawn:
            start, end = tuple(curve[0]), tuple(curve[-1])
            assert start in places
            assert end in places
            assert end[0] == start[0] + 1
    widths = {label: float(collection.get_linewidths()[0]) for label, collection in lines(ax).items()}
    assert widths["reported"] > widths["returned"] > widths["pruned"]
    assert lines(ax)["pruned"].get_linestyles()[0][1] is not None, "dashed"
    assert ax.yaxis_inverted()


def test_the_reported_path_leads_from_the_root_to_the_answer():
    result = searched(REBASE(6))
    ax = plot_tree(result)
    path = lines(ax)["reported"].get_segments()
    assert [float(curve[0][0]) for curve in path] == list(range(len(result.selected.steps)))
    for before, after in pairwise(path):
        assert before[-1].tolist() == after[0].tolist()
    labels = {tuple(map(float, text.xy)): text.get_text() for text in ax.texts}
    assert labels[tuple(map(float, path[-1][-1]))] == result.answer


def test_scores_are_colours_with_a_bar_that_says_which():
    result = searched(BeamSearch(2, 3))
    ax = plot_tree(result)
    colours = {matplotlib.colors.to_hex(c) for dots in ax.collections[3:] for c in dots.get_facecolors()}
    assert colours == {Scale(0, 1).colour(node.score if node.is_scored else None) for node in result.root.walk()}
    [_, bar] = ax.figure.axes
    assert bar.get_ylabel() == "score"
    assert bar.get_ylim() == (0, 1)
    assert len(plot_tree(searched(RepeatedSampling(3), reward=False)).figure.axes) == 1, "no scores, no bar"


def test_a_great_tree_is_folded_and_into_given_axes():
    result = searched(REBASE(120))
    assert len(list(result.root.walk())) > 400
    given = matplotlib.figure.Figure().subplots()
    assert plot_tree(result, ax=given) is given
    drawn = sum(len(dots.get_offsets()) for dots in given.collections[3:])
    folded = marks_of(result.root, result.leaves, result.trajectories, result.selected_leaf, "alike")
    assert drawn == len(folded) < 300
    triangles = given.collections[-1]
    assert len(triangles.get_offsets()) == sum(mark.is_folded for mark in folded) > 0


def test_answers_are_bars_and_the_reported_one_is_framed():
    result = searched(RepeatedSampling(20))
    ax = plot_answers(result)
    names = [label.get_text() for label in ax.get_yticklabels()]
    numbers = [bar.get_width() for bar in ax.patches]
    counted = {name: sum(t.answer == name for t in result.trajectories) for name in names}
    assert dict(zip(names, numbers, strict=True)) == counted
    assert numbers == sorted(numbers, reverse=True)
    frames = [bar.get_linewidth() for bar in ax.patches]
    assert names[frames.index(max(frames))] == result.answer
    assert sorted(frames)[-2] < max(frames)
    for name, bar, text in zip(names, ax.patches, ax.texts, strict=True):
        scores = [t.score for t in result.trajectories if t.answer == name]
        mean = sum(scores) / len(scores)
        assert matplotlib.colors.to_hex(bar.get_facecolor()) == Scale(0, 1).colour(mean)
        assert text.get_text() == f"{counted[name]} (mean score {mean:.3f})"


def test_many_answers_are_summed_up_and_texts_are_no_formulas():
    result = searched(RepeatedSampling(200), num_answers=60)
    ax = plot_answers(result)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(names) == MOST_VOTES + 1
    assert names[-1].endswith(" more")
    assert sum(bar.get_width() for bar in ax.patches) == 200

    odd = solve("x", RepeatedSampling(2), ToyGenerator(depth=0), read_answer=lambda text: r"$\frac{1$ $")
    for figure in (plot_answers(odd).figure, plot_tree(odd).figure):
        figure.canvas.draw()  # a formula would not parse


def test_lines_of_one_plot_have_different_colours_and_markers_also_when_drawn_in_two_calls():
    def at(model, n):
        return CurvePoint("S", "majority", n, 0.5, 0.02, 9, 10 * n, 1e6 * n, 1e5 * n, 0.1 * n, None, model, 100)

    ax = plot_scaling([at("a", 1), at("a", 2), at("b", 1), at("b", 2)])
    plot_scaling([at("c", 1), at("c", 2)], ax=ax)
    drawn = [container.lines[0] for container in ax.containers]
    assert [line.get_color() for line in drawn] == list(COLOURS[:3])
    assert len({line.get_marker() for line in drawn}) == 3
