"""Problems that are conversations: checked, frozen, kept, and told apart."""

import copy
import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest

import inferscale as isc
from inferscale.evaluate.records import problem_keys
from inferscale.ray import make_batches
from inferscale.rewards import RewardFunction
from inferscale.rewards.combining import content_key
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Node, Problem, Step, root_key
from inferscale.viz import render_tree

ASKED = {"role": "user", "content": "How many?"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    ASKED,
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_a_conversation_reads_as_it_was_given():
    problem = Problem(messages=TURNS, answer="7", columns={"tests": ["a", "b"], "level": np.int64(3)})
    assert problem.messages == TURNS
    assert problem.turns == TURNS
    assert problem.columns == {"tests": ["a", "b"], "level": 3}
    assert problem.prompt == "Be brief.\n\nUser: 1 + 1?\n\nAssistant: 2\n\nUser: How many?\n\nAssistant:"
    assert problem.prefill == ""
    assert Problem(messages=[ASKED]).prompt == "How many?"
    assert Problem("How many?").turns == [ASKED]
    assert Problem("How many?", "7", "q").messages is None
    tools = [*TURNS, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    assert json.dumps(CALL["function"]) in Problem(messages=tools).prompt
    assert Problem(messages=tools).messages == tools  # a call needs no content, and is given none


def test_the_last_turn_of_the_assistant_is_gone_on_with():
    problem = Problem(messages=[*TURNS, {"role": "assistant", "content": "The answer is"}])
    assert problem.prefill == "The answer is"
    assert problem.prompt.endswith("\n\nAssistant: The answer is")


def test_contents_are_texts_or_parts_of_text():
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    problem = Problem(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert problem.messages == [TURNS[0], ASKED]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no user turn"),
        ([TURNS[0]], "no user turn"),
        ([ASKED, TURNS[0]], "the last of messages is the system's"),
        ([ASKED, {"role": "assistant", "content": ""}], "is empty: leave it out"),
        ([ASKED, {"role": "assistant", "tool_calls": [CALL]}], "calls tools: add the tools' turns"),
        ([{"role": "bot", "content": "x"}], r"messages\[0\] has the role 'bot': choose one of system, user"),
        ([{"content": "x"}], "has the role None"),
        ([{"role": "user"}], r"messages\[0\], of role 'user', has the content None"),
        ([{"role": "user", "content": ""}], "is empty"),
        ([{"role": "user", "content": 5}], "has the content 5"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "type 'image_url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has the content"),
        ([{"role": "user", "content": ["x", {"type": "input_audio"}]}], "type 'input_audio'"),
    ],
)
def test_turns_that_do_not_fit_are_named(messages, said):
    with pytest.raises(ValueError, match=said):
        Problem(messages=messages)


@pytest.mark.parametrize("messages", ["How many?", ASKED, [["user", "x"]], [{**ASKED, "extra": object()}], 5])
def test_what_is_no_list_of_plain_dictionaries_is_refused(messages):
    with pytest.raises(TypeError, match="messages"):
        Problem(messages=messages)


def test_a_prompt_or_messages_and_not_both():
    with pytest.raises(ValueError, match="not both"):
        Problem("x", messages=TURNS)
    with pytest.raises(ValueError, match=r"or messages=\[\.\.\.\]; got ''"):
        Problem()
    with pytest.raises(TypeError, match=r"columns\['image'\] is object"):
        Problem("x", columns={"image": object()})
    with pytest.raises(TypeError, match="columns is a dictionary"):
        Problem("x", columns=["a"])
    assert Problem("x", columns={"a": float("nan"), "b": np.arange(2)}).columns == {"a": None, "b": [0, 1]}


def test_problems_are_frozen_and_have_a_hash():
    given = copy.deepcopy(TURNS)
    problem = Problem(messages=given, columns={"tests": ["a"]})
    given[0]["content"] = "Be long."
    assert problem.messages == TURNS
    changes = [
        lambda: problem.messages[0].update(content="x"),
        lambda: problem.messages.append(ASKED),
        lambda: problem.messages[0].__setitem__("content", "x"),
        lambda: problem.columns["tests"].pop(),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="a problem is frozen"):
            change()
    problem.turns[0]["content"] = "x"  # a copy
    assert problem.messages == TURNS
    same = Problem(messages=TURNS, columns={"tests": ["a"]})
    assert problem == same
    assert hash(problem) == hash(same)
    assert len({problem, same, Problem(messages=TURNS), Problem(messages=TURNS[3:]), Problem("How many?")}) == 4
    for again in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem), copy.copy(problem), replace(problem)):  # noqa: S301
        assert again == problem
        assert hash(again) == hash(problem)
    assert Problem(**json.loads(json.dumps(problem.to_dict()))) == problem
    assert Problem(**asdict(problem)) == problem
    assert replace(problem, answer="7").messages == TURNS
    assert Problem("x", "7", "q").to_dict() == {"prompt": "x", "answer": "7", "id": "q"}


def test_streams_are_named_by_what_a_problem_is():
    whole, last, plain = Problem(messages=TURNS), Problem(messages=TURNS[3:]), Problem("How many?")
    results = isc.solve_batch([whole, last, plain, whole], isc.RepeatedSampling(2), ToyGenerator())
    assert len({result.root.key for result in results}) == 4
    assert results[2].root.key == root_key("0/How many?")
    assert results[0].root.key == root_key(f"0/{whole.stream}")
    assert results[3].root.key == root_key(f"0#1/{whole.stream}")
    [alone] = isc.solve_batch([last], isc.RepeatedSampling(2), ToyGenerator())
    assert alone.trajectories == results[1].trajectories
    given = Problem(messages=TURNS, columns={"level": 1}), Problem(messages=TURNS, columns={"level": 2})
    assert given[0].stream == whole.stream
    assert len({*problem_keys(given, "c"), *problem_keys([whole, plain, last], "c")}) == 5
    assert len({content_key(Node(problem)) for problem in (whole, last, plain, *given)}) == 5
    assert make_batches([whole, plain, whole], 2) == [[0, 2], [1]]


def test_conversations_are_kept_in_results_and_journals(tmp_path):
    problem = Problem(messages=[*TURNS, {"role": "assistant", "content": "So"}], answer="7", columns={"tests": ["a"]})
    options = {"reward_model": ToyReward(), "seed": 3}
    result = isc.solve(problem, isc.REBASE(4), ToyGenerator(), **options, journal=tmp_path / "j")
    loaded = isc.SearchResult.load(result.save(tmp_path / "r.json"))
    assert loaded.problem == problem
    assert loaded.trajectories == result.trajectories
    assert pickle.loads(pickle.dumps(result)).problem == problem  # noqa: S301

    class Nothing(ToyGenerator):
        def identity(self):
            return ToyGenerator().identity()

        def generate(self, requests):
            raise AssertionError

    again = isc.solve(problem, isc.REBASE(4), Nothing(), **options, journal=tmp_path / "j")
    assert again.trajectories == result.trajectories
    assert "Be brief." in render_tree(result.root)
    assert "Be brief." in result.to_html()


def test_answers_are_read_after_what_the_assistant_had_begun():
    class Last(ToyGenerator):
        def generate(self, requests):
            return [[Step("42}.", finish_reason="eos")] * request.n for request in requests]

    begun = [ASKED, {"role": "assistant", "content": "The answer is \\boxed{"}]
    result = isc.solve(Problem(messages=begun), isc.RepeatedSampling(1), Last())
    assert (result.answer, result.text) == ("42", "42}.")


def test_half_a_character_is_refused_anywhere():
    with pytest.raises(ValueError, match="half a character"):
        isc.solve(Problem(messages=[{**ASKED, "name": "\ud800"}]), isc.RepeatedSampling(1), ToyGenerator())
    with pytest.raises(TypeError, match=r"Problem\(messages"):
        isc.solve([ASKED], isc.RepeatedSampling(1), ToyGenerator())


def test_reward_functions_are_given_columns_and_turns_as_trl_gives_them():
    seen = {}

    def judge(prompts, completions, tests, level=None, **columns):
        seen.update(prompts=prompts, completions=completions, tests=tests, level=level, columns=columns)
        return [float(len(each)) for each in tests]

    def node_of(problem):
        root = Node(problem)
        return Node(problem, Step(" 7", (1, 2)), root)

    begun = [*TURNS, {"role": "assistant", "content": "It is"}]
    chat = Problem(messages=begun, columns={"tests": ["a", "b"], "answer": "gold"})
    plain = Problem("How many?", columns={"tests": ["c"], "level": 3})
    assert RewardFunction(judge).score([node_of(chat), node_of(plain)]) == [2.0, 1.0]
    assert seen["prompts"] == [TURNS, "How many?"]
    assert seen["completions"] == [[{"role": "assistant", "content": "It is 7"}], " 7"]
    assert (seen["tests"], seen["level"]) == ([["a", "b"], ["c"]], [None, 3])
    assert seen["columns"]["answer"] == ["gold", None]
    assert type(seen["tests"][0]) is list
    RewardFunction(judge, columns={"tests": lambda node: "x"}).score([node_of(chat)])
    assert seen["tests"] == ["x"]
    with pytest.raises(ValueError, match="judge needs tests"):
        RewardFunction(judge).score([node_of(Problem("x"))])
    with pytest.raises(ValueError, match="judge needs tests"):  # before anything is sampled
        isc.solve("x", isc.RepeatedSampling(2), ToyGenerator(), reward_model=RewardFunction(judge))
    with pytest.raises(ValueError, match="the name 'prompts'"):
        RewardFunction(judge).score([node_of(Problem("x", columns={"prompts": 1, "tests": []}))])
