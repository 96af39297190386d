"""Reading answers and comparing them: tables, an equivalence relation, hostile texts."""

import ast
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale import answers
from inferscale.answers import MAX_ANSWER_CHARS, normalize_answer, parse_number, read_answer, same_answer

READ = [
    # boxed wins, the last one, with balanced braces
    (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
    (r"\boxed{4} and then \boxed{5}. The answer is 6. #### 7", "5"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{\text{June } 20}", r"\text{June } 20"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{5} but \boxed{7 is cut off", None),
    (r"\boxed{} then the answer is 3.", "3"),
    (r"$\boxed 5$", "5"),
    (r"\fbox{12}", "12"),
    # then the phrase, the last one
    ("The answer is 42.", "42"),
    ("The answer is 41. No, the answer is 42.", "42"),
    ("#### 3\nThe answer is 4", "4"),
    ("The answer is: $1,250.50. Good.", "$1,250.50"),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42"),
    ("**Answer:** 5 apples", "5"),
    ("ANSWER: b", "b"),
    ("The answer is\n\n 42\nand more", "42"),
    ("The final answer is **-3/4**.", "-3/4"),
    (r"the answer is $\dfrac{3}{4}$.", r"\dfrac{3}{4}"),
    (r"the answer is \(x+1\).", "x+1"),
    ("the answer is $n=32$.", "32"),
    ("the answer is $6 x 8 = 48$", "48"),
    ("the answer is x = 1, y = 2.", "x = 1, y = 2"),
    ("The answer is x^2 + 1.", "x^2 + 1"),
    ("the answer is (B) Paris.", "B"),
    ("the answer is (B).", "(B)"),
    ("the answer is Paris.", "Paris"),
    ("The answer is 11/22/2002.", "11/22/2002"),
    ("The answer is 3:30 pm.", "3:30"),
    ("The answer is 10%.", "10%"),
    ("the answer is -5 degrees", "-5"),
    ("the answer is 1.8 billion dollars", "1.8 billion"),
    ("So the answer to this question is John makes $1260 if he works a full 7 day week.", "1260"),
    ("the answer to the question is the number of people at the stop is 110.", "110"),
    ("the answer is the magnitude of $5-12i$ is 13.", "13"),
    ("The answer is not 5, the answer is 7.", "7"),
    ("The answer is", None),
    ("16 eggs. The answer is", "16"),
    ("She sells at 2 points/answer: 5 each. #### 10", "10"),
    # then ####
    ("x = <<3*4=12>>12\n#### 12", "12"),
    ("#### 1\n#### 2", "2"),
    ("#### 1,000 dollars", "1,000"),
    # then the last number
    ("16-3=13 eggs", "13"),
    ("It costs $7.00.", "7.00"),
    ("so we get -5", "-5"),
    ("so we get \u22125", "\u22125"),
    ("it was -$5", "-$5"),
    ("a value of .5", ".5"),
    (r"we get \frac{3}{4}", r"\frac{3}{4}"),
    ("in 1,234,567 steps", "1,234,567"),
    ("it came 17th", None),
    ("H2O", None),
    ("no number here", None),
    ("", None),
    (" \n ", None),
]


@pytest.mark.parametrize(("text", "expected"), READ, ids=lambda value: repr(value)[:40])
def test_an_answer_is_read_where_it_is_given(text, expected):
    assert read_answer(text) == expected


SAME = [
    (
        "20.50",
        "20.5",
        "+20.5",
        "020.500",
        "$20.50",
        "20.5 dollars",
        "41/2",
        r"\frac{41}{2}",
        r"20\frac12",
        "20 1/2",
        "$20.5$",
    ),
    (
        "1000",
        "1,000",
        "1e3",
        "10^3",
        r"10^{3}",
        r"1{,}000",
        r"1\,000",
        r"1\times 10^{3}",
        "1,000.00",
        "１０００",
        "1 thousand",
    ),
    ("-5", "\u22125", "-5.0", "$-5$", "-$5", "$-5", "\u20135", r"\text{-5}", "- 5"),
    (
        "5",
        "5.",
        "5 apples",
        "5 dollars",
        "x = 5",
        "$x=5$",
        r"\boxed{5}",
        "5%",
        r"5\%",
        "5 percent",
        "(5)",
        "**5**",
        "٥",
    ),
    ("5 km", "5km", "5 kilometers", r"5\text{ km}", r"x = 5\,\mathrm{km}"),
    ("5 square feet", "5 ft^2", "5 sq. ft"),
    (r"5\text{ cm}^2", "5 cm²", "5 square centimetres"),
    ("0", "-0", "0.000", "0/7", "0 dollars"),
    ("1/3", "2/6", r"\frac{1}{3}", r"\dfrac13", r"\tfrac{2}{6}", "-1/-3", "1 / 3"),
    ("-0.5", r"-\frac{1}{2}", r"\frac{-1}{2}", r"\frac{1}{-2}", "-1/2", "-.5"),
    ("90", "90°", r"90^\circ", r"90^{\circ}", "90 degrees"),
    ("1800000", "1.8 million", "1.8 million dollars", "1.8e6"),
    ("B", "(B)", "b", "B.", r"\text{B}", r"\textbf{(B)}"),
    ("Yes", "yes", "YES.", r"\text{Yes}", '"yes"'),
    ("(1,2)", "(1, 2)", r"\left(1, 2\right)"),
    ("no solution", "No  solution."),
    (r"\sqrt{3}", r"\sqrt3", r"$\sqrt 3$"),
    ("∞", r"\infty"),
]
GROUPS = [(group, i) for i, group in enumerate(SAME)]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_answers_of_one_group_are_the_same(group):
    assert len({normalize_answer(answer) for answer in group}) == 1, [normalize_answer(a) for a in group]
    assert all(same_answer(first, second) for first in group for second in group)


def test_answers_of_two_groups_are_not():
    forms = [normalize_answer(group[0]) for group in SAME]
    assert len(set(forms)) == len(forms)


DIFFERENT = [
    ("10%", "0.1"),
    ("0.33", "1/3"),
    ("0.0838", "1/12"),  # 0.08333: right to three places of the four
    ("5", "5!"),
    ("2", "2x"),
    ("2", "2 pi"),
    ("5", "5 m"),  # metres, or 5 times m: in a box of text it is a unit
    ("5", "5 or 6"),
    ("24", "24 is not possible"),
    ("6", "6 pm"),
    ("3", "3:30"),
    ("12", "1,2"),
    ("102", "10²"),
    ("1971", "07/08/1971"),
    ("0.875", "07/08/1971"),
    ("10", "10+John's age"),
    ("1", "1e999999999"),
    ("1e999999998", "1e999999999"),
    ("1", "1/0"),
    ("8/3", "1 5/3"),
    ("207/7", "1 200/7"),
    ("25", "5^2"),
    ("x^2", "x2"),
    ("", "0"),
    ("nan", "inf"),
    (r"\Delta", r"\delta"),
    ("0.1", "0.1000000000000000000000000001"),
    ("12345678901234567890", "12345678901234567891"),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_answers_that_are_not_the_same(first, second):
    assert not same_answer(first, second)
    assert not same_answer(second, first)
    assert same_answer(first, first)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("2/6", "1/3"),
        ("0.5", "0.5"),
        (r"\frac{3}{8}", "0.375"),
        ("1e-3", "0.001"),
        ("-7/2", "-3.5"),
        ("1,250.50", "1250.5"),
    ],
)
def test_normal_forms_of_numbers_are_decimals_where_they_end(answer, expected):
    assert normalize_answer(answer) == expected


@given(st.fractions(max_denominator=10**6))
@settings(max_examples=150)
def test_every_fraction_keeps_its_value(number):
    for text in (str(number), rf"\frac{{{number.numerator}}}{{{number.denominator}}}"):
        assert parse_number(text) == number
        assert parse_number(normalize_answer(text)) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
@settings(max_examples=150)
def test_every_decimal_keeps_its_value_with_commas_and_currency(number):
    expected = Fraction(number)
    for text in (f"{number}", f"{number:,}", f"${number:,}", f"{number:.8e}" if abs(number) < 10**4 else f"{number}"):
        assert parse_number(text) == expected


fragments = st.lists(
    st.sampled_from(["1", "2", "0", ".", ",", "-", "/", " ", "$", "%", "x", "=", "{", "}", "(", ")", "\\frac", "\\text",
                     "\\boxed", "the answer is ", "####", "^", "e", "½", "５", "\\", "\n", "km", " and "]),
    max_size=14,
).map("".join)  # fmt: skip


@given(fragments | st.text(max_size=40), fragments | st.text(max_size=40))
@settings(max_examples=400, deadline=None)
def test_nothing_raises_and_equal_normal_forms_are_the_same(first, second):
    assert same_answer(first, first)
    assert same_answer(first, second) == same_answer(second, first)
    assert same_answer(first, second) or normalize_answer(first) != normalize_answer(second)
    answer = read_answer(first)
    assert answer is None or (answer == answer.strip() and 0 < len(answer) <= MAX_ANSWER_CHARS)


HOSTILE = [
    r"\boxed{" * 25_000,
    "{" * 75_000 + r"\boxed",
    "1" * 250_000 + "st",
    "1/" * 125_000,
    "1," * 125_000,
    "1e" * 75_000,
    "-" * 250_000,
    "$" * 250_000,
    "answer" + " " * 250_000,
    "answer:" + "*" * 250_000,
    "answer is " * 25_000,
    "answer to " * 25_000,
    "answer is " + "(" * 250_000,
    "the answer is " + "9^" * 200 + "9",
    "####" * 50_000,
    "<<" * 125_000,
    "½" * 125_000,
    "1e999999999",
    "9" * 511,
    "1e9999",
    "1e-9999",
    "1e308/1e-308",
    "0." + "0" * 400 + "1",
    "1/" + "3" * 500,
    r"\frac{" + "9" * 200 + "}{" + "7" * 200 + "}",
    "(" * 512,
    "\\text{" * 80,
    "٣" * 500,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_texts_neither_hang_nor_raise(text):
    start = time.process_time()
    read_answer(text)
    normalize_answer(text)
    same_answer(text[:MAX_ANSWER_CHARS], text[1:MAX_ANSWER_CHARS])
    assert len(normalize_answer(text[:MAX_ANSWER_CHARS])) <= 4 * MAX_ANSWER_CHARS
    assert time.process_time() - start < 10  # a quadratic reading takes minutes


def test_code_in_an_answer_is_only_text(tmp_path):
    target = tmp_path / "made"
    payload = f"__import__('os').system('touch {target}')"
    for text in (payload, rf"\boxed{{{payload}}}", f"The answer is {payload}", f"#### {payload}"):
        answer = read_answer(text)
        same_answer(answer or "", "4")
        same_answer(payload, "4")
    assert not target.exists()


def test_exponents_are_numbers_up_to_308():
    assert parse_number("1e308") == 10**308
    assert parse_number("1e-308") == Fraction(1, 10**308)
    assert parse_number("1e309") is None
    assert normalize_answer("1E309") == "1e309"


def test_long_answers_are_compared_as_they_are():
    long = "1" + "0" * MAX_ANSWER_CHARS
    assert normalize_answer(long) == long
    assert parse_number(long) is None
    assert not same_answer(long, long + ".0")
    assert same_answer(long, str(long))
    assert read_answer(rf"\boxed{{{long}}} the answer is 5") == "5"


def test_the_module_imports_the_standard_library_only_and_executes_nothing():
    for path in [Path(answers.__file__)]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile", "__import__", "float"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name in sys.stdlib_module_names for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("**42**.", "42"),
        ("**Paris**.", "paris"),
        (r"\(5\).", "5"),
        ("x = **5**", "5"),
        (r"x = \(5\)", "5"),
        (r"$\boxed{\text{(A)}}$", "a"),
        ("**(A)**.", "a"),
    ],
)
def test_markup_comes_off_in_any_order(answer, form):
    assert normalize_answer(answer) == form


@pytest.mark.parametrize("answer", [r"\frac{1}{2}3", r"\frac{1}{2}.5", r"\frac12 3.5"])
def test_a_digit_after_a_fraction_is_not_part_of_its_denominator(answer):
    assert parse_number(answer) is None
    assert normalize_answer(answer) != normalize_answer("1/23")
    assert parse_number(r"\frac{1}{2}.") == parse_number("0.5")
