import pytest

from inferscale.cost import Budget, Cost
from inferscale.tree import Node, Problem, Step, UnscoredNodeError, branch_key, root_key
from inferscale.viz import render_tree


def grow(parent: Node, text: str, reason: str = "step", ids: tuple[int, ...] = ()) -> Node:
    node = Node(parent.problem, Step(text, ids, finish_reason=reason), parent)
    parent.children.append(node)
    return node


@pytest.fixture
def tree() -> Node:
    root = Node(Problem("How many?"))
    a = grow(root, "a\n", ids=(1, 2))
    grow(a, "b", "eos", ids=(3,))
    grow(a, "c\n", ids=(4,))
    grow(root, "d", "length", ids=(5,))
    return root


def test_an_answer_is_a_text():
    with pytest.raises(TypeError, match=r"not nan: write None where there is none"):
        Problem("q", answer=float("nan"))
    with pytest.raises(TypeError, match=r"answer is a text or None, not 5: write str\(answer\)"):
        Problem("How many?", answer=5)


def test_paths_texts_and_ids(tree):
    b = tree.children[0].children[0]
    assert [node.step.text for node in b.path] == ["a\n", "b"]
    assert (b.text, b.token_ids, b.depth, b.root) == ("a\nb", (1, 2, 3), 2, tree)
    assert [node.text for node in tree.walk()] == ["", "a\n", "a\nb", "a\nc\n", "d"]


def test_leaves_are_the_finished_ones_or_all(tree):
    assert [leaf.text for leaf in tree.leaves()] == ["a\nb", "d"]
    open_tree = Node(Problem("x"))
    first, second = grow(open_tree, "a"), grow(open_tree, "b")
    assert open_tree.leaves() == [first, second]
    grow(open_tree, " ", "empty")
    assert open_tree.leaves() == [first, second]
    failed = Node(Problem("x"))
    assert [leaf.step.finish_reason for leaf in [grow(failed, "", "error")]] == ["error"]
    assert failed.leaves() == failed.children
    end = grow(open_tree, "c")
    grow(end, "", "error")
    assert open_tree.leaves() == [first, second, end]
    assert Node(Problem("x")).leaves()[0].step is None


def test_reading_an_unscored_node_says_what_to_write(tree):
    with pytest.raises(UnscoredNodeError, match="yield from score"):
        _ = tree.children[0].score
    tree.children[0].score = 0.0
    assert tree.children[0].score == 0.0


def test_inner_steps_join_white_space_to_the_next_step():
    text = "one\n\ntwo\nthree"
    step = Step(text, tuple(range(5)), inner_ends=((4, 1), (5, 2), (9, 4), (14, 5)))
    assert step.inner_steps() == [("one\n", (0,)), ("\ntwo\n", (1, 2, 3)), ("three", (4,))]
    assert "".join(piece for piece, _ in step.inner_steps()) == text


def test_a_step_without_inner_ends_is_one_step():
    assert Step("one\n", (1, 2)).inner_steps() == [("one\n", (1, 2))]
    assert Step("  ", (1,)).inner_steps() == []


def test_a_problem_needs_a_prompt():
    with pytest.raises(ValueError, match="needs a prompt"):
        Problem("")
    with pytest.raises(ValueError, match="needs a prompt"):
        Problem(None)


def test_keys_depend_on_the_path_alone():
    assert root_key("0/a") != root_key("1/a")
    keys = {branch_key(root_key("0/a"), draw) for draw in range(1000)}
    assert len(keys) == 1000
    assert branch_key(root_key("0/a"), 3) == branch_key(root_key("0/a"), 3)


def test_costs_add_up_field_by_field():
    total = sum([Cost(1, 2, 3, 4, 5, 6, 0.5, 7, 8), Cost(generated_tokens=10, seconds=1.0)])
    assert total == Cost(1, 12, 3, 4, 5, 6, 1.5, 7, 8)
    assert (total.flops, total.tokens) == (11, 15)
    with pytest.raises(TypeError):
        Cost() + 1


@pytest.mark.parametrize("caps", [{"tokens": 0}, {"flops": -1}, {"seconds": 0.0}, {"calls": float("nan")}])
def test_a_budget_refuses_caps_that_are_not_positive(caps):
    with pytest.raises(ValueError, match="must be greater than 0"):
        Budget(**caps)


def test_a_budget_names_the_cap_that_is_met():
    budget = Budget(tokens=10, calls=3)
    assert budget.exhausted(Cost(generated_tokens=9, num_generated=2), elapsed=99.0) is None
    assert budget.exhausted(Cost(generated_tokens=6, thought_tokens=4), elapsed=0.0) == "tokens"
    assert budget.exhausted(Cost(num_generated=3), elapsed=0.0) == "calls"
    assert Budget(seconds=1.0).exhausted(Cost(), elapsed=1.0) == "seconds"
    assert Budget(flops=10).exhausted(Cost(generator_flops=4, reward_flops=6), elapsed=0.0) == "flops"


def test_the_tree_as_text(tree):
    tree.children[0].score = 0.5
    assert render_tree(tree, selected=tree.children[1]) == (
        "How many?\n├─ a\\n 0.500\n│  ├─ b [eos]\n│  └─ c\\n\n└─ *d [length]"
    )
