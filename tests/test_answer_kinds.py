"""The kind of a problem's answer: who reads it, which answers are the same, and where the kind is kept."""

import pickle
from dataclasses import dataclass, replace

import pytest

from inferscale.aggregators import BestOfN, MajorityVote, Oracle, answer_weights
from inferscale.answers import (
    KINDS,
    AnswerReader,
    Before,
    Choice,
    Code,
    Number,
    Text,
    YesNo,
    group_answers,
    kind_of,
    read_answer,
    reader_of,
)
from inferscale.base import Generator, SearchStrategy
from inferscale.engine import SearchResult, Solver, solve, solve_batch
from inferscale.flow import answer, expand
from inferscale.rewards import RewardFunction
from inferscale.strategies import AdaptiveConsistency, RepeatedSampling
from inferscale.tree import Problem, Step, Trajectory


@dataclass
class Says(Generator):
    """Sample `i` is the `i`-th text, and ends for the `i`-th reason."""

    texts: tuple[str, ...]
    reasons: tuple[str, ...] = ("eos",)

    def identity(self):
        return {}

    def generate(self, requests):
        return [[self.step(r.first + i) for i in range(r.n)] for r in requests]

    def step(self, draw):
        return Step(self.texts[draw % len(self.texts)], (draw,), finish_reason=self.reasons[draw % len(self.reasons)])


def answers(problem, *texts, reasons=("eos",), **options):
    result = solve(problem, RepeatedSampling(len(texts)), Says(texts, reasons), **options)
    return [t.answer for t in result.trajectories]


# -- names -------------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_reader_and_every_reader_its_name():
    assert list(KINDS) == ["any", "number", "choice", "yesno", "expression", "code", "text"]
    for kind in KINDS:
        assert kind_of(reader_of(kind)) == kind
        assert reader_of(kind).kind == kind
    assert reader_of("any") == read_answer
    for kind, reader in {"choice:ABCDE": Choice("ABCDE"), "text:Answer:": Text("Answer:")}.items():
        assert reader_of(kind) == reader
        assert kind_of(reader) == kind
    assert kind_of(Before(("\n",), Number())) == "number"
    assert kind_of(str.strip) is kind_of(None) is kind_of(Dates()) is None


def test_unknown_kinds_are_refused_where_they_are_written():
    with pytest.raises(ValueError, match="unknown kind of answer 'letter': choose one of any, number, choice, yesno"):
        Problem("q", kind="letter")
    with pytest.raises(TypeError, match=r'kind=7: name it, such as "number"'):
        Problem("q", kind=7)
    with pytest.raises(ValueError, match="number takes nothing after a colon"):
        Problem("q", kind="number:2")
    for letters in ("", "A,B"):
        with pytest.raises(ValueError, match="give the letters in a row"):
            Problem("q", kind=f"choice:{letters}")


# -- who reads ---------------------------------------------------------------------------------------------------------

LETTER = "The answer is B because 7 < 9."


def test_what_solve_is_given_comes_before_the_kind_and_the_kind_before_the_default():
    assert answers(Problem("q", kind="choice:ABCD"), LETTER, "So (C) 300 K", "no idea") == ["B", "C", None]
    assert answers(Problem("q", kind="number"), LETTER) == ["9"]
    assert answers("q", LETTER) == ["B"]
    assert answers(Problem("q", kind="choice"), LETTER, read_answer=Number()) == ["9"]
    assert answers(Problem("q", kind="choice"), "It is 5.", read_answer=read_answer) == ["5"]
    assert answers(Problem("q", kind="choice"), LETTER, read_answer=lambda text: text[:3]) == ["The"]


def test_problems_of_different_kinds_are_read_side_by_side():
    problems = [Problem("a", kind="yesno"), Problem("b", kind="number"), Problem("c")]
    results = solve_batch(problems, RepeatedSampling(1), Says(("So the answer is no, because 5 > 3.",)))
    assert [result.answer for result in results] == ["no", "3", "no"]


def test_a_text_is_read_before_a_stop_and_is_not_cut_where_it_has_one():
    text = "The answer is 5.\nQuestion: and 6?\nThe answer is 6 becau"
    cut = {"reasons": ("length",)}
    assert answers("q", text, read_answer=Before(("\nQuestion:",))) == ["5"]
    assert answers("q", "so 5\nQuestion: and", read_answer=Before(("\nQuestion:",)), **cut) == ["5"]
    assert answers("q", "so 5", read_answer=Before(("\nQuestion:",)), **cut) == [None]
    assert answers(Problem("q", kind="choice"), LETTER + " END 7", read_answer=Before((" END",))) == ["B"]
    assert answers(Problem("q", kind="choice"), LETTER, read_answer=Before((" END",), Number())) == ["9"]


@dataclass(frozen=True)
class Asking(SearchStrategy):
    """Samples four completions and asks for their answers twice, together and one by one."""

    def search(self, root, rng):
        leaves = yield from expand([root], 4, until="end")
        leaves += yield from expand([root], 1)
        together = yield from answer([root, *leaves])
        alone = []
        for leaf in [root, *leaves]:
            alone += yield from answer([leaf])
        root.stats["answers"] = together
        assert alone == together
        return leaves


def test_the_search_reads_what_the_result_reads():
    texts = ("The answer is 4.", "The answer is 5. And", "so perhaps 6", "The answer is 4.0.", "The answer is 8.")
    reasons = ("eos", "length", "budget", "eos", "step")
    generator = Says(texts, (*reasons[:4], "eos"))
    generator.step = lambda draw: Step(texts[draw], (draw,), finish_reason=reasons[draw])
    result = solve("q", Asking(), generator)
    # What is equal comes as one text; cut before its end, unfinished, and the bare prompt abstain.
    assert result.root.stats["answers"] == [None, "4", "5", None, "4", None]
    assert [t.answer for t in result.trajectories] == ["4", "5", None, "4.0", None]


def test_reading_is_no_part_of_a_journal(tmp_path):
    generator = Says(("The answer is 4.", "The answer is 5."))
    path = tmp_path / "journal.jsonl"
    first = solve("q", Asking(), generator, journal=path, read_answer=Number())
    assert [line.count('"kind"') for line in path.read_text().splitlines()] == [0, 1, 1]
    again = solve("q", Asking(), Says(("never",)), journal=path, read_answer=Number())
    assert again.root.stats == first.root.stats
    assert again.cost == first.cost
    other = solve("q", Asking(), Says(("never",)), journal=path, read_answer=lambda text: None)
    assert set(other.root.stats["answers"]) == {None}


# -- which are the same ------------------------------------------------------------------------------------------------

FENCED = "```python\nreturn {}\n```"


@dataclass(frozen=True)
class Dates(AnswerReader):
    """Dates are the same if their years are."""

    def find(self, text, stated=False):
        return text or None

    def same(self, first, second):
        return first[:4] == second[:4]


def test_votes_join_by_the_equality_of_the_kind():
    texts = [FENCED.format("A"), FENCED.format("a") + " ", FENCED.format("a"), FENCED.format("A")]
    for options in ({"problem": Problem("q", kind="code")}, {"problem": "q", "read_answer": Code()}):
        problem = options.pop("problem")
        result = solve(problem, RepeatedSampling(5), Says((*texts, FENCED.format("A"))), **options)
        assert answer_weights(result.trajectories) == {"return A": 3, "return a": 2}
        assert result.answer == "return A"
    joined = solve("q", RepeatedSampling(3), Says(("2020-01-01", "2021-05-05", "2021-07-07")), read_answer=Dates())
    assert answer_weights(joined.trajectories) == {"2020-01-01": 1, "2021-05-05": 2}
    assert joined.answer == "2021-05-05"


def test_the_equality_of_the_kind_grades_too():
    result = solve(Problem("q", "(b)", kind="choice"), RepeatedSampling(1), Says((LETTER,)))
    assert result.is_correct
    assert Oracle().select(result.trajectories).answer == "B"
    assert solve(Problem("q", "true", kind="yesno"), RepeatedSampling(1), Says(("Yes.",))).is_correct
    assert solve(Problem("q", "3.5"), RepeatedSampling(1), Says(("It is 3,5",)), read_answer=Number()).is_correct
    assert solve(Problem("q", "return A", kind="code"), RepeatedSampling(1), Says(("return a",))).is_correct is False
    assert solve("q", RepeatedSampling(1), Says(("return a",))).is_correct is None


def test_searches_that_count_answers_count_by_the_equality_of_the_kind():
    texts = tuple(FENCED.format(name) for name in "aAaAaAaA")
    problem = Problem("q", kind="code")
    assert solve(problem, AdaptiveConsistency(8), Says(texts)).cost.num_generated == 8
    assert solve(problem, AdaptiveConsistency(8), Says(texts[:1])).cost.num_generated == 4
    dates = ("2021-05-05", "2021-07-07", "2021-08-08", "2021-09-09")
    assert solve("q", AdaptiveConsistency(8), Says(dates), read_answer=Dates()).cost.num_generated == 4


def test_groups_of_a_kind():
    assert group_answers(["(A)", "a", "B"], reader=Choice()) == [[0, 1], [2]]
    assert group_answers(["true", "yes", "no"], reader=YesNo()) == [[0, 1], [2]]
    assert group_answers(["5", "5 cm", "5 km", "5,0"], reader=Number()) == [[0, 1, 3], [2]]
    assert group_answers(["a", "A"], reader=Code()) == [[0], [1]]
    assert group_answers(["a", "A"], lambda first, second: True, reader=Code()) == [[0, 1]]


# -- where it is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "options"),
    [(Problem("q", "return A", kind="code"), {}), (Problem("q", "return A"), {"read_answer": Before(("#",), Code())})],
    ids=["problem", "reader"],
)
def test_a_saved_result_keeps_the_kind(problem, options, tmp_path):
    result = solve(problem, RepeatedSampling(3), Says(("return a", "return A", "return A")), **options)
    loaded = SearchResult.load(result.save(tmp_path / "result.json"))
    assert loaded.problem == result.problem
    assert answer_weights(loaded.trajectories) == {"return a": 1, "return A": 2}
    assert loaded.is_correct
    assert loaded.reaggregate(MajorityVote()).answer == "return A"


def test_a_result_saved_before_there_were_kinds_is_read():
    result = solve("q", RepeatedSampling(1), Says((LETTER,)))
    told = result.to_dict()
    del told["kind"]
    assert SearchResult.from_dict(told).selected == result.selected


def test_trajectories_can_be_pickled_whatever_read_them():
    for reader in (lambda text: text, Code(), Before(("#",)), None):
        (path,) = solve("q", RepeatedSampling(1), Says(("x",)), read_answer=reader).trajectories
        again = pickle.loads(pickle.dumps(path))  # noqa: S301 (our own)
        assert again == path
        assert again.equality == path.equality


def test_a_trajectory_made_by_hand_has_the_equality_of_its_problem():
    path = Trajectory(Problem("q", "a", kind="code"), (), answer="A")
    assert path.is_correct is False
    assert replace(path, problem=Problem("q", "a")).is_correct
    assert path == replace(path, reader=Code())


def test_a_solver_takes_no_reader_that_is_none():
    with pytest.raises(TypeError, match="read_answer must be a function"):
        Solver(RepeatedSampling(1), Says(("x",)), read_answer="number")


# -- where there is no short answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "rewards"),
    [
        (("thx 4 ur letter", "Dear Ann, thank you so much for your letter."), (15.0, 44.0)),
        (("return a - 1", "return a + b"), (0.0, 1.0)),
    ],
    ids=["letters", "programs"],
)
def test_best_of_n_reports_the_text_with_the_greatest_reward(texts, rewards):
    judge = RewardFunction(lambda nodes: [rewards[texts.index(node.text)] for node in nodes])
    result = solve("Write.", RepeatedSampling(4), Says(texts), reward_model=judge, aggregator=BestOfN())
    assert (result.text, result.selected.score) == (texts[1], rewards[1])
    assert result.reaggregate(BestOfN(drop_abstentions=True)).text == texts[0]
    cut = Says((*texts, "Dear"), ("eos", "eos", "length"))
    rewards, texts = (*rewards, 99.0), cut.texts
    assert solve("Write.", RepeatedSampling(3), cut, reward_model=judge, aggregator=BestOfN()).text == texts[1]
