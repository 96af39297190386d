"""Pictures of a search: where things go, what is said about them, and that no model text can do harm."""

import html
import random
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.aggregators import MajorityVote
from inferscale.cost import Cost
from inferscale.engine import SearchResult, solve
from inferscale.strategies import REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyProcessReward
from inferscale.tree import Node, Problem, Step, Trajectory
from inferscale.viz import MOST_VOTES, RAMP, Scale, growing, marks_of, render_tree, svg, tidy_rows
from inferscale.viz.html import APART, COUSINS_APART, MOST_LABELLED
from inferscale.viz.text import FOLD_ABOVE, MOST_DRAWN, columns, escaped, one_line, visible

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></svg></div><img src=x onerror=alert(1)>",
    "\"><svg onload='x()'>",
    "]]>&amp;&lt;&#0;",
    "\x00\x1b[31m\x07\r",
    "\ud800 and \udfff",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "e" + "\u0301" * 500,
    "long " * 5000,
    "日本語 🎉 שלום\n\n\n",
]


def searched(strategy, problem="How many?", depth=3):
    return solve(problem, strategy, ToyGenerator(depth=depth), reward_model=ToyProcessReward())


def drawn(result, fold="nothing"):
    return marks_of(result.root, result.leaves, result.trajectories, result.selected_leaf, fold)


def parsed(result):
    """The page as a tree of elements: it is well-formed, so nothing in it can break out."""
    return ElementTree.fromstring(result.to_html())


def by_hand(root, leaves, answers, scores=None):
    """A result without a search."""
    scores = scores or [None] * len(leaves)
    trajectories = tuple(
        Trajectory(root.problem, leaf.steps, None, answer, score)
        for leaf, answer, score in zip(leaves, answers, scores, strict=True)
    )
    selected = MajorityVote().select(trajectories)
    return SearchResult(root.problem, selected, trajectories, tuple(leaves), root, Cost())


def grow(parent, text, reason="step", score=None):
    node = Node(parent.problem, Step(text, finish_reason=reason), parent)
    parent.children.append(node)
    if score is not None:
        node.score = score
    return node


@st.composite
def shapes(draw):
    """Children of each node, parents first."""
    parents = draw(st.lists(st.floats(0, 0.999), max_size=60))
    children = [[] for _ in range(len(parents) + 1)]
    for place, share in enumerate(parents):
        children[int(share * (place + 1))].append(place + 1)
    return children


def depths(children):
    depth = [0] * len(children)
    for node, below in enumerate(children):
        for child in below:
            depth[child] = depth[node] + 1
    return depth


# -- where the nodes go -----------------------------------------------------------------------------------------------


@given(shapes())
def test_a_tidy_drawing_keeps_order_and_distance_and_centres_parents(children):
    rows, depth = tidy_rows(children), depths(children)
    assert min(rows) == pytest.approx(0)
    parent = {child: node for node, below in enumerate(children) for child in below}
    levels = [[0]]
    while levels[-1]:
        levels.append([child for node in levels[-1] for child in children[node]])
    for level in levels:
        for above, below in pairwise(level):
            apart = APART if parent[above] == parent[below] else COUSINS_APART
            assert rows[below] - rows[above] >= apart - 1e-9, "nodes of one depth keep their order, so no edges cross"
    for node, below in enumerate(children):
        if below:
            assert rows[node] == pytest.approx((rows[below[0]] + rows[below[-1]]) / 2)
            assert {depth[child] for child in below} == {depth[node] + 1}


@given(shapes(), st.integers(0, 10**6))
def test_equal_subtrees_look_the_same_wherever_they_are(children, seed):
    copies, lone = 2 + seed % 3, tidy_rows(children)
    starts = [1 + copy * len(children) for copy in range(copies)]
    whole = [starts] + [[start + child for child in below] for start in starts for below in children]
    rows = tidy_rows(whole)
    for start in starts:
        moved = [row - rows[start] for row in rows[start : start + len(children)]]
        assert moved == pytest.approx([row - lone[0] for row in lone])


def test_a_drawing_by_hand():
    #    0 ─┬─ 1 ─┬─ 3
    #       │     └─ 4
    #       └─ 2 ─── 5
    assert tidy_rows([[1, 2], [3, 4], [5], [], [], []]) == [1.5, 0.5, 2.5, 0.0, 1.0, 2.5]


def test_subtrees_are_packed_where_there_is_room():
    small_then_deep = [[1, 2, 3], [4, 5, 6, 7], [], [], [], [], [], []]
    rows = tidy_rows(small_then_deep)
    assert rows[2] - rows[1] == APART, "a leaf goes beside its sibling, not below all of its sibling's children"
    assert max(rows) == rows[3] == 3.5


def test_a_tree_may_be_deeper_than_the_stack():
    root = Node(Problem("How deep?"))
    node = root
    for _ in range(1500):
        node = grow(node, "x\n")
    result = by_hand(root, [node], [None])
    assert render_tree(root).count("\n") == 1500
    assert len(parsed(result).findall(f".//{SVG}title")) == 1501


# -- model text is hostile --------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(), max_size=300) | st.sampled_from(HOSTILE))
def test_visible_text_has_nothing_hidden_and_survives_escaping(text):
    shown = visible(text, 100)
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert len(shown) <= 100 * len(r"\U0010ffff") + 1
    assert escaped(shown).isascii()
    assert not set("<>\"'") & set(escaped(shown))
    assert html.unescape(escaped(shown)) == shown
    line = one_line(text, 20)
    assert columns(line) <= 20
    assert "\n" not in line


@pytest.mark.parametrize("unseen", ["\u3164", "\u115f", "\uffa0", "\u034f", "\u2800", "\u180b", "\ufe01", "\U000e0100"])
def test_fillers_and_variation_selectors_are_shown(unseen):
    assert visible(f"4{unseen}") == "4" + ascii(unseen)[1:-1]
    assert visible("4\ufe0f") == r"4\ufe0f"
    assert visible("\u2764\ufe0f") == "\u2764\ufe0f", "but a red heart is one"


def test_plain_text_is_left_alone():
    assert visible("2 + 2 = 4\nSo \\frac{1}{2} > 0.") == "2 + 2 = 4\nSo \\frac{1}{2} > 0."
    assert visible("a\tb\u202ec\ud800") == r"a\tb\u202ec\ud800"
    assert visible("abc", 2) == "ab…"
    assert one_line(" one\n two ", 30) == "one ⏎ two"
    assert one_line("abcdefgh", 5) == "abcd…"
    assert (columns("日本"), columns("e\u0301a")) == (4, 2)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text_wherever_it_comes_from(text):
    root = Node(Problem(text, answer=text))
    first = grow(root, text, score=0.5)
    leaves = [grow(first, text, "eos", 0.25), grow(first, text[:50], "eos", 0.75), grow(first, text, "error")]
    leaves[0].stats[text] = text
    result = by_hand(root, leaves[:2], [text, text[:7]], [0.25, 0.75])
    page = parsed(result)
    assert result.to_html().isascii()
    tags = {element.tag.removeprefix(SVG) for element in page.iter()}
    assert tags <= {
        *("div", "style", "p", "bdi", "i", "span", "table", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details"),
        *("summary", "pre", "svg", "g", "title", "path", "circle", "rect", "text"),
    }
    names = {name for element in page.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src", "id")]
    assert page.find(".//pre").text == visible(result.text)
    assert page.find(".//dd").text == visible(text, 600)
    assert len(result.to_html()) < 40_000, "endless text is cut"


@settings(max_examples=30)
@given(st.text(alphabet=st.characters(), min_size=1, max_size=40))
def test_any_text_makes_a_well_formed_page(text):
    root = Node(Problem(text, answer=text))
    result = by_hand(root, [grow(root, text, "eos")], [text])
    assert visible(text.strip(), 300) in parsed(result).findall(f".//{SVG}g/{SVG}title")[1].text


def test_nothing_comes_from_outside_and_nothing_runs():
    page = searched(REBASE(60)).to_html().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<iframe|javascript:| on\w+=", page)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_every_node_is_a_mark_with_its_colour_state_and_hover_text():
    result = searched(BeamSearch(2, 3))
    marks = drawn(result)
    nodes = list(result.root.walk())
    assert {mark.nodes[0] for mark in marks} == set(nodes)
    chosen = {mark.nodes[0] for mark in marks if mark.state == "chosen"}
    assert chosen == {result.root, *result.selected_leaf.path}
    kept = {node for leaf in result.leaves for node in leaf.path}
    assert {mark.nodes[0] for mark in marks if mark.state == "pruned"} == set(nodes) - kept - {result.root}

    [picture] = [s for s in parsed(result).iter(f"{SVG}svg") if s.get("role") == "img"]
    groups = [group for group in picture.findall(f"{SVG}g") if group.get("class") != "edges"]
    assert len(groups) == len(nodes)
    assert len(picture.findall(f"{SVG}g[@class='edges']/{SVG}path")) == len(nodes) - 1
    for node in nodes[1:]:
        said = [g for g in groups if g.find(f"{SVG}title").text.endswith(node.step.text.strip())]
        colours = {shape.get("fill") for g in said for shape in g if shape.get("class") == "mark"}
        assert Scale(0, 1).colour(node.score) in colours
        assert any(f"score {node.score:.4g}" in g.find(f"{SVG}title").text for g in said)


def test_the_picture_of_five_nodes_has_room_for_every_text():
    root = Node(Problem("How many?", answer="42"))
    first, second = grow(root, "Let us add the apples and the pears. " * 3, score=0.9), grow(root, "No.", score=0.01)
    leaves = [grow(first, "The answer is 42", "eos", 0.98), grow(first, "日本語の答えは四十二です。" * 3, "eos", 0.5)]
    result = by_hand(root, leaves, ["42", "四十二"])
    [picture] = [s for s in parsed(result).iter(f"{SVG}svg") if s.get("role") == "img"]
    boxes = []
    for text in picture.iter(f"{SVG}text"):
        x, y, size = float(text.get("x")), float(text.get("y")), 10 if text.get("class") in ("score", "end") else 11
        boxes.append((x, y - 0.8 * size, x + 0.602 * size * columns(text.text), y + 0.2 * size))
    for shape in (s for s in picture.iter() if s.get("class") == "mark"):
        if shape.tag == f"{SVG}circle":
            x, y, r = (float(shape.get(name)) for name in ("cx", "cy", "r"))
            boxes.append((x - r, y - r, x + r, y + r))
        else:
            x, y, w = (float(shape.get(name)) for name in ("x", "y", "width"))
            boxes.append((x, y, x + w, y + w))
    width, height = float(picture.get("width")), float(picture.get("height"))
    assert len(boxes) == 5 + 4 + 4 + 2
    for place, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        for other in boxes[:place]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, (
                "texts do not overlap"
            )
    assert second.text in {text.text for text in picture.iter(f"{SVG}text")}


def test_five_hundred_nodes_are_folded_and_can_be_unfolded():
    result = searched(REBASE(110))
    size = len(list(result.root.walk()))
    assert FOLD_ABOVE < size < MOST_DRAWN
    folded, every = [s for s in parsed(result).iter(f"{SVG}svg") if s.get("role") == "img"]
    assert len(list(every.iter(f"{SVG}title"))) == size
    assert len(list(folded.iter(f"{SVG}title"))) == len(drawn(result, "alike")) < 0.7 * size
    assert len(parsed(result).findall("details")) == 3
    assert float(folded.get("height")) < float(every.get("height"))
    assert len(result.to_html()) < 500 * size


def test_equal_answers_of_many_samples_are_one_mark_each():
    result = searched(RepeatedSampling(300))
    marks = drawn(result, "alike")
    answers = [mark.answer for mark in marks[1:] if mark.state == "kept"]
    assert sorted(answers) == sorted({t.answer for t in result.trajectories})
    assert marks[1].nodes == [result.selected_leaf], "the reported path is never folded, and comes first"
    assert sum(len(mark.nodes) for mark in marks) == 301
    assert len(marks) <= MOST_LABELLED


@pytest.mark.parametrize("fold", ["nothing", "alike", "others"])
@settings(max_examples=50)
@given(shapes(), st.integers(0, 10**6))
def test_folding_loses_no_node_and_never_the_reported_path(fold, children, seed):
    rng = random.Random(seed)
    nodes = [Node(Problem("x"))] + [None] * (len(children) - 1)
    for place, below in enumerate(children):
        for child in below:
            nodes[child] = grow(nodes[place], str(child), "step" if children[child] else "eos")
    ends = [node for node in nodes if not node.children]
    leaves = rng.choices(ends, k=rng.randint(1, len(ends)))
    result = by_hand(nodes[0], leaves, [rng.choice([None, "1", "1.0", "2"]) for _ in leaves])
    marks = drawn(result, fold)
    covered = [node for mark in marks for node in mark.nodes]
    assert len(covered) == len(set(covered)) == len(nodes)
    for mark in marks:
        if {*result.selected_leaf.path} & {*mark.nodes}:
            assert len(mark.nodes) == 1
            assert mark.state == "chosen"
        for place in mark.children:
            assert marks[place].depth == mark.depth + 1
            assert all(node.depth >= marks[place].depth for node in marks[place].nodes)
    assert sorted(place for mark in marks for place in mark.children) == list(range(1, len(marks)))


def test_a_huge_tree_is_bounded():
    result = searched(REBASE(1500), depth=2)
    assert len(list(result.root.walk())) > 3000
    assert len(drawn(result, "alike")) > MOST_DRAWN
    pictures = [s for s in parsed(result).iter(f"{SVG}svg") if s.get("role") == "img"]
    assert len(pictures) == 1
    assert len(list(pictures[0].iter(f"{SVG}title"))) == len(drawn(result, "others")) < 12
    assert len(result.to_html()) < 20_000


# -- answer, votes, cost ----------------------------------------------------------------------------------------------


def test_the_votes_are_counted_by_normal_form():
    root = Node(Problem("x", answer="7"))
    answers = ["7", "8", "7.0", None, "7", "8"]
    leaves = [grow(root, f"{answer} {place}", "eos") for place, answer in enumerate(answers)]
    page = parsed(by_hand(root, leaves, answers, [0.5, 0.1, 1.0, 0.2, 0.9, 0.3]))
    rows = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    assert rows == [
        ["7", "", "3", "mean score 0.800"],
        ["8", "", "2", "mean score 0.200"],
        ["no answer", "", "1", "mean score 0.200"],
    ]
    assert [row.get("class") for row in page.iter("tr")] == ["wins", None, None]
    widths = [re.match(r"width:([\d.]+)%", span.get("style"))[1] for span in page.findall(".//td/span")]
    assert widths == ["50.0", "33.3", "16.7"]
    assert "".join(page.find("p[@class='answer']").itertext()) == "7.0 ✓ right", "as the best-scored wrote it"


def test_wrong_and_missing_answers_say_so_and_many_answers_are_summed_up():
    root = Node(Problem("x", answer="7"))
    leaves = [grow(root, str(place), "eos") for place in range(30)]
    page = parsed(by_hand(root, leaves, [str(100 + place) for place in range(30)]))
    assert "".join(page.find("p[@class='answer']").itertext()) == "100 ✗ expected 7"
    rows = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    assert len(rows) == MOST_VOTES + 1
    assert rows[-1] == ["22 more", "", "22", ""]
    silent = parsed(by_hand(Node(Problem("x")), [grow(Node(Problem("x")), "y")], [None]))
    assert "".join(silent.find("p[@class='answer']").itertext()) == "no answer"


def test_a_saved_result_shows_the_same_page(tmp_path):
    result = searched(REBASE(8), Problem("How many?", answer="1"))
    assert SearchResult.load(result.save(tmp_path / "r.json")).to_html() == result.to_html()
    assert result._repr_html_() == result.to_html()


def test_a_search_without_scores_is_grey():
    result = solve("How many?", RepeatedSampling(3), ToyGenerator())
    page = result.to_html()
    assert "mean score" not in page
    assert "linear-gradient" not in page
    assert Scale(0, 1).colour(None) in page


# -- colours ----------------------------------------------------------------------------------------------------------


def test_scores_between_0_and_1_have_a_fixed_scale_and_others_their_own():
    assert Scale.of([0.2, 0.9]) == Scale.of([]) == Scale(0, 1)
    assert Scale.of([-3.0, -1.0]) == Scale(-3, -1)
    assert Scale.of([5.0, 9.0]) == Scale(5, 9)
    assert [Scale(-3, -1).colour(score) for score in (-3, -2, -1)] == [RAMP[0], RAMP[2], RAMP[4]]
    assert Scale(4, 4).colour(4) == RAMP[2]
    assert Scale(-1e308, 1e308).colour(1e308) == RAMP[4]


_BLINDNESS = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, matrix):
    """CIE L*a*b* of ``#rrggbb`` as somebody with one kind of colour vision sees it."""
    linear = [((int(colour[i : i + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for i in (1, 3, 5)]
    r, g, b = (min(1, max(0, sum(m * v for m, v in zip(row, linear, strict=True)))) for row in matrix)
    xyz = (
        0.4124 * r + 0.3576 * g + 0.1805 * b,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        0.0193 * r + 0.1192 * g + 0.9505 * b,
    )
    x, y, z = (value / white for value, white in zip(xyz, (0.9505, 1, 1.089), strict=True))
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("vision", _BLINDNESS)
def test_the_ramp_is_told_apart_with_any_colour_vision(vision):
    seen = [lab(colour, _BLINDNESS[vision]) for colour in RAMP]
    for place, first in enumerate(seen):
        for second in seen[:place]:
            distance = sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
            assert distance > 20, "a just noticeable difference is 2.3"


def test_text_and_lines_take_the_colour_of_the_page():
    style = re.search(r"<style>(.*?)</style>", searched(REBASE(4)).to_html(), re.DOTALL)[1]
    assert not re.search(r"(?<![-\w])(?:color|fill|stroke):(?!inherit|currentColor)", style)
    assert "prefers-color-scheme" not in style, "a notebook's theme need not be the system's"


def test_the_svg_stands_alone():
    result = searched(REBASE(4))
    picture = ElementTree.fromstring(svg(drawn(result), Scale(0, 1), "a <tree>"))
    assert picture.get("aria-label") == "a <tree>"
    assert picture.get("fill") == "currentColor"


def test_a_large_growing_tree_shows_where_it_grows():
    root = solve("How many?", REBASE(24), ToyGenerator(), reward_model=ToyProcessReward()).root
    assert len(list(root.walk())) > FOLD_ABOVE
    page = growing(root)
    deepest = max(node.depth for node in root.walk())
    marks = re.findall(r'class="mark"', page)
    assert deepest < len(marks) <= FOLD_ABOVE * 3, "a path to the deepest leaves, and what is beside it in few marks"
    assert " open" in page
    assert " returned" not in page
    assert " pruned" not in page
