import json
import sys

import numpy as np
import pytest

from inferscale import zoo
from inferscale.answers import chosen_reader, parse_number, read_answer, same_answer
from inferscale.evaluate import (
    STYLES,
    Example,
    PromptStyle,
    load_examples,
    load_problems,
    prompt_style,
    run_evaluation,
)
from inferscale.evaluate.datasets import example_from_fields, gsm8k_example, math_example, read_rows, svamp_example
from inferscale.strategies import RepeatedSampling
from inferscale.testing import ToyGenerator
from inferscale.tree import Problem

SHOT = Example("1+1?", "2", "1 + 1 = 2", "shot")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_of_gsm8k():
    row = {"question": "Sum?", "answer": "It is 1,000+234=$<<1000+234=1234>>1,234.\n#### 1,234"}
    example = gsm8k_example(row, 7)
    assert example == Example("Sum?", "1234", "It is 1,000+234=$1,234.", "gsm8k/7")
    with pytest.raises(ValueError, match="row 3 of GSM8K has no '####'"):
        gsm8k_example({"question": "Sum?", "answer": "12"}, 3)


def test_a_row_of_math():
    row = {"problem": "Half?", "solution": r"So \boxed{\frac{1}{2}}.", "level": "Level 3", "subject": "Algebra"}
    assert math_example(row, 0) == Example(
        "Half?", r"\frac{1}{2}", r"So \boxed{\frac{1}{2}}.", "math/0", "level 3", "Algebra"
    )
    row500 = {**row, "answer": "0.5", "level": 3, "unique_id": "test/algebra/1.json"}
    assert math_example(row500, 0).answer == "0.5"
    assert math_example(row500, 0).group == "level 3"
    assert math_example(row500, 0).id == "test/algebra/1.json"
    with pytest.raises(ValueError, match="neither an answer nor a solution"):
        math_example({"problem": "Half?", "solution": "unclear"}, 0)


@pytest.mark.parametrize(("body", "joined"), [("Dan had $ 3 left", "left. How"), ("He had 3 .", "3 . How")])
def test_a_row_of_svamp(body, joined):
    row = {"ID": "chal-1", "Body": body, "Question": "How much?", "Answer": 51.0, "Equation": "( 76.0 - 25.0 )",
           "Type": "Subtraction"}  # fmt: skip
    example = svamp_example(row, 0)
    assert (example.answer, example.id, example.group) == ("51", "svamp/chal-1", "Subtraction")
    assert example.domain == example.group
    assert joined in example.question


def test_rows_of_your_own(tmp_path):
    file = written(tmp_path / "mine.jsonl", [{"body": "Why?\n", "gold": 4.0}, {"body": "Who?", "gold": "me"}])
    problems = load_problems("jsonl", file, fields={"question": "body", "answer": "gold"}, style="plain")
    assert [(p.prompt, p.answer, p.id) for p in problems] == [("Why?\n", "4", "0"), ("Who?", "me", "1")]
    with pytest.raises(ValueError, match=r"row 0 of .* has no field 'question': it has body, gold; give fields="):
        load_problems("jsonl", file)
    with pytest.raises(ValueError, match="no field 'id2'"):
        load_problems("jsonl", file, fields={"question": "body", "answer": "gold", "id": "id2"})
    with pytest.raises(ValueError, match="no gold answer"):
        example_from_fields({"prompt": "x", "answer": None}, 0, {})
    assert example_from_fields({"prompt": "x", "answer": 1, "id": 9}, 0, {}) == Example("x", "1", "", "9")


@pytest.mark.parametrize(
    ("read", "row", "told"),
    [
        (gsm8k_example, {"question": None, "answer": "#### 3"}, "row 4 has no question"),
        (gsm8k_example, {"question": "q", "answer": "so ####  "}, "row 4 has no gold answer: it is empty"),
        (math_example, {"problem": None, "answer": "1"}, "row 4 has no question"),
        (math_example, {"problem": "p", "answer": ["1", "2"]}, "no gold answer that is a text or a number"),
        (svamp_example, {"Body": "b", "Question": "q", "Answer": None}, "row 4 has no gold answer: it is null"),
        (example_from_fields, {"question": None, "answer": 1}, "row 4 has no question"),
        (example_from_fields, {"question": [{"role": "user"}], "answer": 1}, "row 4 has a question that is no text"),
        (example_from_fields, {"question": "q", "answer": ["1"]}, "no gold answer that is a text or a number"),
        (example_from_fields, {"question": "q", "answer": float("nan")}, "no gold answer that is a text or a number"),
        (example_from_fields, {"question": "q", "answer": " "}, "row 4 has no gold answer: it is empty"),
    ],
)
def test_what_is_missing_is_not_read_as_a_word(read, row, told):
    with pytest.raises(ValueError, match=told):
        read(row, 4, {}) if read is example_from_fields else read(row, 4)


def test_what_may_be_missing_is_empty():
    row = {"problem": "p", "answer": "1", "solution": None, "level": None, "subject": None, "unique_id": None}
    assert math_example(row, 4) == Example("p", "1", "", "math/4")
    assert svamp_example({"Body": "b", "Question": "q", "Answer": 0, "ID": None, "Type": None}, 4).id == "svamp/4"


def test_an_option_without_effect_is_refused(tmp_path):
    file = written(tmp_path / "mine.jsonl", [{"question": "Why?", "answer": "4"}])
    with pytest.raises(ValueError, match="the embedded task is read from no file"):
        load_examples("embedded", file)
    with pytest.raises(ValueError, match="the embedded task is read from no file"):
        load_problems("embedded", fields={"question": "q"})
    with pytest.raises(ValueError, match=r"there is no part 'gold' of a row; the parts are question, answer, solution"):
        load_problems(file, fields={"gold": "answer_text"})
    with pytest.raises(ValueError, match=r"no part 'body' .* \(the part comes first, then your field\)"):
        load_problems(file, fields={"body": "question"})
    with pytest.raises(ValueError, match="split='train': a file has no splits"):
        load_examples("jsonl", file, split="train")


def test_own_fields_may_replace_those_of_a_known_data_set(tmp_path):
    file = written(tmp_path / "mine.jsonl", [{"q": "Why?", "a": "4"}])
    assert load_examples("gsm8k", file, fields={"question": "q", "answer": "a"})[0].answer == "4"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_rows(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2 is not JSON"):
        read_rows(tmp_path / "bad.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"row 0 .* is not an object"):
        read_rows(tmp_path / "list.jsonl")
    (tmp_path / "packed.jsonl").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(ValueError, match=r"packed\.jsonl is not text in UTF-8"):
        read_rows(tmp_path / "packed.jsonl")
    (tmp_path / "marked.jsonl").write_text('{"a": "ü"}\n', encoding="utf-8-sig")
    assert read_rows(tmp_path / "marked.jsonl") == [{"a": "ü"}]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"row 0 .* is not an object"):
        read_rows(tmp_path / "folder")
    with pytest.raises(ValueError, match="unknown data set 'gsm'"):
        load_problems("gsm")
    with pytest.raises(ValueError, match="needs data"):
        load_problems("jsonl")
    with pytest.raises(ValueError, match="take at least one"):
        load_problems("embedded", limit=0)


def test_a_folder_of_json_files_is_math_as_it_was_published(tmp_path):
    for number in (2, 1):
        (tmp_path / "algebra").mkdir(exist_ok=True)
        row = {"problem": f"p{number}", "solution": rf"\boxed{{{number}}}", "level": "Level 5", "type": "Algebra"}
        (tmp_path / "algebra" / f"{number}.json").write_text(json.dumps(row))
    examples = load_examples("math", tmp_path)
    assert [(e.question, e.answer, e.id) for e in examples] == [
        ("p1", "1", "algebra/1.json"), ("p2", "2", "algebra/2.json"),
    ]  # fmt: skip


def test_the_hub_is_asked_through_datasets(monkeypatch):
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*args, **options):
            asked.append((args, options))
            return [{"question": "q", "answer": "#### 3"}] * 5

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert len(load_problems("gsm8k", limit=2)) == 2
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets, or pass the path"):
        load_problems("gsm8k")


def test_the_embedded_task():
    problems = load_problems("embedded")
    assert problems == zoo.problems("test")
    examples = load_examples("embedded", split="dev", limit=10)
    assert {e.group for e in examples} == {f"level {i}" for i in range(1, 6)}
    assert {e.domain for e in load_examples("embedded")} == {"with division", "without division"}
    assert all(zoo.task.is_correct(e.question, e.solution) for e in examples)
    with pytest.raises(ValueError, match="'test' and 'dev'"):
        load_problems("embedded", split="train")


@pytest.mark.parametrize("name", STYLES)
def test_every_style_holds_the_question_as_it_is_and_shows_its_examples(name):
    style = prompt_style(name).with_shots([SHOT])
    question = "What is {x} in {answer} and {solution}?"
    prompt = style.prompt(question)
    assert prompt.count(question) == 1
    assert prompt.index("1+1?") < prompt.index("2", prompt.index("1+1?") + 5) < prompt.index(question)
    assert prompt == style.problem(Example(question, "x")).prompt
    assert style.problem(Example(question, "x")).id is None


def test_an_example_is_a_completion_from_which_the_answer_is_read():
    for name in ("cot", "direct", "steps"):
        style = STYLES[name]
        shown = style.with_shots([SHOT]).prompt("Q").split(style.template.replace("{question}", "1+1?"))[1]
        assert read_answer(shown.split(style.separator)[0]) == "2", name


def test_styles_refuse_what_cannot_work():
    with pytest.raises(ValueError, match="must hold"):
        PromptStyle("Q:")
    with pytest.raises(ValueError, match="unknown prompt style 'none': choose one of cot"):
        prompt_style("none")
    with pytest.raises(ValueError, match="has no solution to show"):
        STYLES["cot"].with_shots([Example("q", "a")])
    assert STYLES["direct"].with_shots([Example("q", "a")]).prompt("r").startswith("Question: q\nAnswer: a\n\n")


def test_gsm8k_and_svamp_as_recorded(shared_data):
    reference = json.loads((shared_data / "REFERENCE.json").read_text())["problems/gsm8k"]
    for split in ("test", "train"):
        path = shared_data / "problems" / f"gsm8k_{split}.jsonl"
        examples = load_examples("gsm8k", path)
        assert len(examples) == reference[split]["rows"]
        golds = [json.loads(line)["answer"].split("####")[1] for line in path.read_text().splitlines()]
        assert sum("," in gold for gold in golds) == reference[split]["gold_with_comma"]
        assert sum(e.answer.startswith("-") for e in examples) == reference[split]["gold_negative"]
        assert all(parse_number(e.answer) is not None and "," not in e.answer for e in examples)
        assert all(same_answer(e.answer, gold) for e, gold in zip(examples, golds, strict=True))
    svamp = load_examples("svamp", shared_data / "problems" / "svamp.json")
    assert len(svamp) == 1000
    assert all(e.answer.lstrip("-").isdigit() for e in svamp)
    kinds = [e.group for e in svamp]
    assert (kinds.count("Subtraction"), kinds.count("Addition")) == (531, 195)
    with pytest.raises(ValueError, match="has no field"):
        load_examples("math", shared_data / "problems" / "svamp.json")


# -- kinds of answers --------------------------------------------------------------------------------------------------


def test_a_data_set_says_what_its_answers_are(tmp_path):
    rows = {
        "gsm8k": ({"question": "q", "answer": "so\n#### 3"}, "number"),
        "math": ({"problem": "p", "answer": "x"}, "expression"),
        "svamp": ({"Body": "b", "Question": "q", "Answer": 3}, "number"),
        "jsonl": ({"question": "q", "answer": "x"}, None),
    }
    for name, (row, kind) in rows.items():
        file = written(tmp_path / f"{name}.jsonl", [row])
        assert [problem.kind for problem in load_problems(name, file)] == [kind]
        assert [problem.kind for problem in load_problems(name, file, kind="text")] == ["text"]
    assert load_problems("embedded", limit=1)[0].kind == "number"
    own = written(tmp_path / "own.jsonl", [{"question": "q", "answer": "yes", "answer_kind": "yesno", "kind": "easy"}])
    assert load_problems("jsonl", own)[0].kind == "yesno"
    assert load_problems("jsonl", own, fields={"answer_kind": "answer_kind"}, kind="any")[0].kind == "any"
    with pytest.raises(ValueError, match="unknown kind of answer 'easy'"):
        load_problems("jsonl", own, fields={"answer_kind": "kind"})
    with pytest.raises(ValueError, match="unknown kind of answer 'numeral'"):
        load_problems("jsonl", own, kind="numeral")


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["red", "blue", "green"], 1),
        (["red", "blue", "green"], "B"),
        (["red", "blue", "green"], "b"),
        (["red", "blue", "green"], "blue"),
        ({"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}, "2"),
        ({"text": ["red", "blue", "green"], "label": ["A", "B", "C"]}, "B"),
        ([0, 1, 2], 1),
        (["red", "blue", "green"], 1.0),  # pandas has no whole number in a column with NaN
        (["red", "blue", "green"], "(b)"),
        (["red", "blue", "green"], "B."),
        (["red", "blue", "green"], "Blue"),
        (["B", "C", "A"], 1),  # a place, though another choice has its letter for a text
        ([1, 2, 3], 2),  # numbers: one of them, no place
        ({"text": ["red", "blue", "green"], "label": [1, 2, 3]}, 2),
    ],
)
def test_choices_get_letters(choices, answer):
    row = {"question": "Which colour?\n", "choices": choices, "answer": answer}
    example = example_from_fields(row, 0, {})
    assert example.question.startswith("Which colour?\nA. ")
    assert (example.answer, example.kind) == ("B", "choice:ABC")
    problem = STYLES["cot"].problem(example)
    read = chosen_reader(STYLES["cot"].reader(), problem.kind)
    assert read("Blue is a colour, so the answer is (B), I think.\nQuestion: And A?") == "B"


@pytest.mark.parametrize(
    ("choices", "answer", "told"),
    [
        (["red", "blue"], "C", "none of its 2 choices: give a letter from A to B"),
        (["red", "blue"], 2, "none of its 2 choices"),
        (["red", "red"], "red", "none of its 2 choices"),
        (["red", "blue"], 0.5, "none of its 2 choices"),
        (["red", "blue"], "(A, B)", "none of its 2 choices"),
        (["red"], 0, "no list of 2 to 26"),
        ("red, blue", 0, "no list of 2 to 26"),
    ],
)
def test_choices_that_are_none_are_refused(choices, answer, told):
    with pytest.raises(ValueError, match=f"row 4 has .*{told}"):
        example_from_fields({"question": "q", "choices": choices, "answer": answer}, 4, {})


# Rows of your own, wherever they are.

ROWS = [
    {"body": "1+1?", "gold": "2", "subject": "sums", "level": 1, "tags": ["a", "b"]},
    {"body": "2+3, in words?", "gold": "five", "subject": "words", "level": 2, "tags": []},
]
NAMED = {"question": "body", "answer": "gold", "group": "subject"}


class Frame:
    """What pandas has, as far as it is used."""

    def __init__(self, rows):
        self.rows, self.columns = rows, list(rows[0])

    def __bool__(self):
        raise ValueError("The truth value of a DataFrame is ambiguous")

    def to_dict(self, orient):
        assert orient == "records"
        return self.rows


class Dicts:
    """What polars has."""

    columns = ("body", "gold")

    def to_dicts(self):
        return ROWS


class Streamed:
    """An iterable of rows, as `datasets` streams them, that counts what was read."""

    column_names = tuple(ROWS[0])
    read = 0

    def __iter__(self):
        for row in [*ROWS, *ROWS]:
            self.read += 1
            yield row


def as_pandas(rows):
    return pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas").DataFrame(rows)


def as_datasets(rows):
    return pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets").Dataset.from_list(
        rows
    )


@pytest.mark.parametrize("make", [list, Frame, lambda rows: Dicts(), as_pandas, as_datasets])
def test_tables_in_memory(make):
    problems = load_problems(make(ROWS), fields=NAMED, style="plain")
    assert [(p.prompt, p.answer, p.id) for p in problems] == [("1+1?", "2", "0"), ("2+3, in words?", "five", "1")]
    assert problems[0].columns == {"subject": "sums", "level": 1, "tags": ["a", "b"], "group": "sums"}
    assert problems == load_problems("jsonl", make(ROWS), fields=NAMED, style="plain")
    with pytest.raises(
        ValueError, match=r"row 0 of the \w+ has no field 'question': it has body, gold, subject, level"
    ):
        load_problems(make(ROWS))
    with pytest.raises(ValueError, match=r"split='test': this .* has no splits"):
        load_problems(make(ROWS), split="test", fields=NAMED)


def test_known_data_sets_may_be_in_memory_too():
    rows = [{"question": "Sum?", "answer": "1 + 2 = 3\n#### 3"}]
    assert load_problems("gsm8k", rows)[0].answer == "3"
    row = {"problem": "Half?", "solution": r"\boxed{0.5}", "level": "Level 3", "subject": "Algebra"}
    assert load_problems("math", [row])[0].columns == {"group": "level 3", "domain": "Algebra"}


def test_rows_that_stream_are_read_no_further_than_asked():
    rows = Streamed()
    assert len(load_problems(rows, fields=NAMED, limit=1)) == 1
    assert rows.read == 1


def test_a_data_set_of_several_splits():
    splits = {"train": Streamed(), "test": Streamed()}
    assert len(load_problems(splits, split="test", fields=NAMED)) == 4
    with pytest.raises(ValueError, match=r"a data set with the splits train, test needs split=\.\.\."):
        load_problems(splits, fields=NAMED)
    with pytest.raises(ValueError, match="has no split 'dev'"):
        load_problems(splits, split="dev", fields=NAMED)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, delimiter):
    def quoted(cell):
        return '"' + str(cell).replace('"', '""') + '"'

    rows = [["question", "answer", "subject"], ['Who said "1, 2; 3"?\nAnd why?', "007", "ü"], ["b", "3.50", ""]]
    text = "".join(delimiter.join(map(quoted, row)) + "\r\n" for row in rows)
    file = tmp_path / "mine.csv"
    file.write_bytes(text.replace('"question"', "question").encode("utf-8-sig"))
    problems = load_problems(file, fields={"group": "subject"}, style="plain")
    assert problems == load_problems(str(file), fields={"group": "subject"}, style="plain")
    assert problems == load_problems("jsonl", file, fields={"group": "subject"}, style="plain")
    [first, second] = problems
    assert (first.prompt, first.answer) == ('Who said "1, 2; 3"?\nAnd why?', "007")
    assert (second.prompt, second.answer) == ("b", "3.50")
    assert problems[0].columns == {"subject": "ü", "group": "ü"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("question,answer\nWhat, then?,4\n", "row 0 of .* has more cells than the 2 columns"),
        ("question,question\na,b\n", "names a column twice: question, question"),
        ('question,answer\n"open,4\n', "is not CSV"),
        ("question,answer\n", "holds no rows"),
        ("question,answer\na,\n", "row 0 has no gold answer: it is empty"),
        ("question,answer\na\n", "row 0 has no gold answer: it is null"),
        ("question,gold\na,1\n", "row 0 of .* has no field 'answer': it has question, gold; give fields="),
    ],
)
def test_csv_that_does_not_fit(tmp_path, text, told):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        load_problems(tmp_path / "mine.csv")


class NAType:
    """What pandas puts where an integer is missing: neither equal nor unequal to anything."""

    def __eq__(self, other):
        return self

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


@pytest.mark.parametrize("missing", [None, float("nan"), NAType(), ""])
def test_a_missing_gold_answer_is_told_with_its_row(missing):
    rows = [{"question": "a", "answer": 1.0}, {"question": "b", "answer": missing}]
    with pytest.raises(ValueError, match=r"row 1 has no gold answer.* \(leave out rows that have none\)"):
        load_problems(Frame(rows))


def test_the_numbers_of_arrays_and_frames():
    import numpy as np

    values = [np.int64(42), np.float32(2.5), 42.0, True, np.str_(" x "), 10**20]
    rows = [{"question": "q", "answer": value, "level": np.int64(3), "seen": float("nan")} for value in values]
    problems = load_problems(rows)
    assert [p.answer for p in problems] == ["42", "2.5", "42", "True", "x", str(10**20)]
    assert problems[0].columns == {"level": 3, "seen": None}
    choices = {"question": "q", "choices": np.array(["x", "y"]), "answer": np.int64(1), "id": float("nan")}
    [problem] = load_problems([choices], style="plain")  # as data frames out of Parquet hold them
    assert (problem.prompt, problem.answer, problem.kind, problem.id) == ("q\nA. x\nB. y", "B", "choice:AB", "0")


def test_worked_examples_of_a_style_show_what_it_asks_for():
    shot = Example("4+4=?", "8", "Four and four.")
    boxed = prompt_style("boxed").with_shots([shot])
    assert boxed.prompt("0+0=?").partition("\n\n")[2] == (
        "Problem: 4+4=?\nSolution: Four and four.\nThe answer is \\boxed{8}.\n\nProblem: 0+0=?\nSolution:"
    )
    own = prompt_style("boxed").with_shots([Example("4+4=?", "8", r"It is \boxed{8}.")])  # as MATH's are
    assert own.prompt("x").count("boxed{8}") == 1
    plain = prompt_style("plain").with_shots([shot])
    assert plain.prompt("0+0=?") == "4+4=?\nFour and four.\n\n0+0=?\n"
    assert prompt_style("plain").prompt("0+0=?") == "0+0=?"
    line = prompt_style("plain").with_shots([Example("4+4=?\n", "8", "8\n")])  # of the embedded task
    assert line.prompt("0+0=?\n") == "4+4=?\n8\n\n\n0+0=?\n"
    arrow = PromptStyle("{question}", shown=" -> {answer}", separator="\n").with_shots([shot])
    assert arrow.prompt("0+0=?") == "4+4=? -> 8\n0+0=?"


def test_columns_are_plain_data():
    from datetime import date

    row = {"question": "q", "answer": 1, "when": date(2024, 5, 1), "image": b"\x89PNG", "solution": "s", "id": "n"}
    [problem] = load_problems([row])
    assert problem.columns == {"when": "2024-05-01", "solution": "s"}
    assert problem.id == "n"


def test_what_is_no_table_is_told():
    with pytest.raises(TypeError, match="int 7 is no table: give a data set of `datasets`, a data frame, or a list"):
        load_problems(7)
    with pytest.raises(TypeError, match="row 0 of the list is no dictionary: 'text'"):
        load_problems(["text"])
    frame = Frame([{"a": 1}])
    frame.columns = ["a", "a"]
    with pytest.raises(ValueError, match="names a column twice: a, a"):
        load_problems(frame)
    with pytest.raises(ValueError, match="the list holds no rows"):
        load_problems([])


def test_records_keep_the_group(tmp_path):
    rows = [{"question": "1+1?", "answer": 2, "group": "sums"}, {"question": "2-1?", "answer": 1, "group": "rest"}]
    run = run_evaluation(load_problems(rows, style="plain"), RepeatedSampling(1), ToyGenerator(), tmp_path / "run")
    assert [record["group"] for record in run.records] == ["sums", "rest"]
    assert [row["group"] for row in run.rows()] == ["sums", "rest"]
    assert [result.problem.columns for result in run.results()] == [{"group": "sums"}, {"group": "rest"}]
    bare = run_evaluation(["1+1?"], RepeatedSampling(1), ToyGenerator(), tmp_path / "bare")
    assert bare.rows()[0]["group"] is None


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize("name", ["question", "prompt", "messages", "asked"])
def test_a_row_may_ask_by_a_conversation(name):
    fields = {"question": name} if name == "asked" else None
    [problem] = load_problems([{name: ASKED, "answer": 4, "level": 2}], fields=fields)
    assert problem == Problem(messages=ASKED, answer="4", id="0", columns={"level": 2})


def test_conversations_may_stand_beside_texts_begin_the_answer_and_have_choices():
    turns = [*ASKED, {"role": "assistant", "content": "It is", "name": None}]
    rows = [{"question": np.array(turns, dtype=object), "answer": 4}, {"question": "1 + 1?", "answer": 2}]
    first, second = load_problems(rows)
    assert (len(first.turns), first.prefill) == (3, "It is")
    assert second.messages is None
    assert second.prompt.startswith("Question: 1 + 1?")
    [lettered] = load_problems([{"prompt": ASKED, "answer": "five", "choices": ["four", "five"]}])
    assert lettered.turns == [ASKED[0], {"role": "user", "content": "2 + 2?\nA. four\nB. five"}]
    assert (lettered.answer, lettered.kind) == ("B", "choice:AB")


def test_worked_examples_of_a_conversation_are_turns():
    shown = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "1 + 1 = 2\nThe answer is 2."},
    ]
    [problem] = load_problems([{"question": ASKED, "answer": "4"}], shots=[SHOT])
    assert problem.turns == [ASKED[0], *shown, ASKED[1]]
    [problem] = load_problems([{"question": "2 + 2?", "answer": "4"}], style="chat", shots=[SHOT])
    assert problem.turns == [*shown, ASKED[1]]
    style = PromptStyle("Q: {question}", shown="{answer}", instruction="Answer.", as_turns=True)
    [problem] = load_problems([{"question": "2 + 2?", "answer": "4"}], style=style, shots=[Example("1+1?", "2")])
    assert [turn["content"] for turn in problem.turns] == ["Answer.", "Q: 1+1?", "2", "Q: 2 + 2?"]
    told = Example("?", "2", "so", messages=ASKED)
    [problem] = load_problems([{"question": "2 + 2?", "answer": "4"}], style="chat", shots=[told])
    assert [turn["role"] for turn in problem.turns] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"question": ASKED}, {"style": "cot"}, "choose style 'chat'"),
        (
            {"question": [{"role": "robot", "content": "a"}]},
            {},
            "row 0 has a question that is no text and no conversation",
        ),
        ({"question": []}, {}, "row 0 has a question that is no text and no conversation"),
        ({"question": [1]}, {}, "row 0 has a question that is no text and no conversation"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "4"}]}, {}, "end with the assistant's turn"),
    ],
)
def test_conversations_that_do_not_fit_are_named(row, options, said):
    with pytest.raises(ValueError, match=said):
        load_problems([{**row, "answer": "4"}], **options)
