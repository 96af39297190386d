r"""Answers in the manner of real models: ten kinds of text, each with what a person reads in it."""

import time

import pytest

from inferscale import Generator, RepeatedSampling, Step, solve
from inferscale.aggregators import group_answers
from inferscale.answers import (
    Choice,
    Code,
    Expression,
    Number,
    Text,
    YesNo,
    answer_of,
    complete_part,
    read_answer,
    same_answer,
)

BOXED = [
    (r"Adding both sides gives $x = 7$. Therefore the answer is $\boxed{7}$.", "7"),
    (r"So we have found that $$\boxed{\frac{3}{8}}$$ as required.", r"\frac{3}{8}"),
    (r"The area is $\boxed{24\text{ cm}^2}$.", "24 cm^2"),
    (r"First I get \boxed{12} for the side. But the question asks for the area, so it is \boxed{144}.", "144"),
    (r"The roots are \(\boxed{2}\) and \(\boxed{-5}\).", "2, -5"),
    (r"\[ \boxed{x = 4} \]", "4"),
    (r"Thus \boxed{\text{Tuesday}} is the day.", "Tuesday"),
    (r"We conclude $\boxed{(3, -2)}$.", "(3, -2)"),
    (r"Hence $\boxed{2\sqrt{5}}$ metres are left.", r"2\sqrt{5}"),
    (r"**Answer:** $\boxed{1,250}$ dollars", "1250"),
    (r"$\boxed{\dfrac{7}{2}}$ hours, that is three and a half.", "7/2"),
    (r"The solution set is $\boxed{[-1, 4)}$.", "[-1, 4)"),
    (r"\boxed{\mathbf{B}}", "B"),
    (r"So the probability equals $\boxed{0.375}$, i.e. three in eight.", "3/8"),
    (r"\(\boxed{-\frac{1}{3}}\)", "-1/3"),
    (r"It follows that $n=\boxed{17}$ and we are done.", "17"),
    (r"$\boxed{\{1, 4, 9\}}$ are the squares.", "{9, 4, 1}"),
    (r"The result: \fbox{88}", "88"),
]

DISPLAY = [
    ("So the answer is:\n\\[\n\\frac{2}{3}\n\\]", r"\frac{2}{3}"),
    ("So the answer is:\n$$\n\\frac{2}{3}\n$$\nwhich is about 0.67.", r"\frac{2}{3}"),
    ("The final answer is:\n\n\\[ x = 12 \\]", "12"),
    ("Therefore, the value is\n$$\n5\\sqrt{2}\n$$", r"5\sqrt{2}"),
    ("Simplifying:\n\\[\n2 + 2 = 4\n\\]\nThe answer is:\n\\[\n4\n\\]", "4"),
    ("The answer is\n\\begin{equation}\n\\frac{9}{4}\n\\end{equation}", "9/4"),
    ("Therefore, $x = \\frac{1+\\sqrt{5}}{2}$.", r"\frac{1+\sqrt{5}}{2}"),
    ("Hence the length is $\\sqrt{3}$.", r"\sqrt{3}"),
    ("Solving, we find $x=3$ or $x=-2$.", "-2, 3"),
    ("So the solutions are $x=1$, $x=2$, and $x=3$.", "1, 2, 3"),
    ("We have $x^2 = 16$, so $x = 4$.", "4"),
    ("Hence $|z| = \\sqrt{13}$.", r"\sqrt{13}"),
    ("The answer is:\n\\begin{align*}\n2x &= 10 \\\\\nx &= 5\n\\end{align*}", "5"),
    ("Thus $x \\leq 2$ is our answer.", r"x \le 2"),
    ("The answer is [1, 5].", "[1, 5]"),
    ("The answer is sqrt(2).", "sqrt(2)"),
    ("$x=3$ or $x=-2$", "x = -2, x = 3"),
    ("$\\sqrt{3}$", r"\sqrt{3}"),
    ("The final answer is $5x - 3y + 9 = 0$.", "5x - 3y + 9 = 0"),
    ("The answer is $y = 2x + 1$.", "2x + 1"),
    ("So the answer is:\n\\[\n\\text{Friday}\n\\]", "Friday"),
    ("Thus the answer is \\(\\frac{5}{6}\\).", "5/6"),
    ("The answer is $(2, 5)$.", "(2, 5)"),
]

MARKDOWN = [
    ("**Final Answer:** 42", "42"),
    ("### Answer\n\nThe answer is **18**.", "18"),
    ("**Answer: 7**", "7"),
    ("Answer:\n- 42", "42"),
    ("Answer:\n* 42", "42"),
    ("The answer is `15`.", "15"),
    ("1. Each box holds 6.\n2. There are 4 boxes.\n\n**The answer is 24.**", "24"),
    ("*Answer*: 3/4", "3/4"),
    ("__Answer:__ 9", "9"),
    ("- Step 1: 3 + 4 = 7\n- Step 2: 7 * 2 = 14\n\n#### 14", "14"),
    ("**The final answer is: $25**", "25"),
    ("> The answer is 11.", "11"),
    ("## Solution\n\nTotal: 5 + 6 = 11 marbles\n\n**Answer:** 11 marbles", "11"),
    ("| item | price |\n|---|---|\n| pen | 3 |\n\nThe total cost is $9.", "9"),
    ("The answer is: **$1,080**", "1080"),
    ("**Answer**\n\n42\n\nTo check: 40 + 2 = 42, and 3 > 2.", "42"),
    ("Answer:\n1. 42", "42"),
    ("Answer:\n– 42", "42"),
    ("So there are **42** apples in 3 baskets.", "42"),
    ("12\n\nExplanation: there are 3 rows of 4.", "12"),
    ("**12**\n\nThere are 3 rows of 4.", "12"),
    ("So $a = 3$, $b = 4$.", "4"),
    ("The roots are $x = 3$, $x = -2$.", "-2, 3"),
    ("The inverse is $f^{-1}(x) = \\frac{x-1}{2}$.", r"\frac{x-1}{2}"),
    ("Hence $\\int_0^1 x^2\\,dx = \\frac{1}{3}$.", "1/3"),
    ("The answer is 16<|im_end|>", "16"),
    ("Final answer - 42", "42"),
    ("<answer>42</answer>", "42"),
    ("I add 2.\n<answer>The answer is 7.</answer> (out of 9)", "7"),
    ('```json\n{"answer": "42", "confidence": 0.9}\n```', "42"),
    ('{"reasoning": "2 + 2", "answer": "B"}', "B"),
    (r"\boxed{12}. Actually, that is wrong. The correct answer is 7.", "7"),
    ("The answer is 12. Wait, no, the answer is 7.", "7"),
    ("The answer is 42 because there are 2 sets of 21.", "42"),
    ("The answer is undefined because we divide by 0.", "undefined"),
    ("So 42 is the answer, as 3 > 2.", "42"),
    ("The answer would be 8, with 2 left over.", "8"),
    ("The answer is January 5, 2020.", "January 5, 2020"),
    ("Die Antwort ist 42, denn 3 > 2.", "42"),
    ("La respuesta es 7. (2 + 5)", "7"),
    ("La réponse est 9, car 3 > 2.", "9"),
    ("答案是 42。其中 3 个是红色的。", "42"),
    ("Ответ: 15 (из 20)", "15"),
]

LETTERS = [
    ("The answer is B because a car moves.", "B"),
    ("The answer is A since 7 < 9.", "A"),
    ("option C", "C"),
    ("**Answer:** (B) 300 K", "B"),
    (r"\boxed{\text{(A) } 12}", "A"),
    ("b. 4", "b"),
    ("[answer: F]", "F"),
    ("(D)", "D"),
    ("I think the correct option is D.", "D"),
    ("Let us rule out A and B. The correct answer is C.", "C"),
    ("Answer: A) Paris", "A"),
    (r"The energy changes, so \boxed{\Delta E}." + "\nAnswer: D", "D"),
    ("A. The mitochondria make energy.", "A"),
    ("The best choice is (C), because it rains.", "C"),
    ("Both look right at first.\n\n**B**", "B"),
    ("The answer is (E).", "E"),
    ("Answer: **C**", "C"),
    ("After comparing a few options, the answer is d.", "d"),
    ("C", "C"),
    (r"$\boxed{C}$", "C"),
    (r"\boxed{\textbf{(B)}\ 15}", "B"),
    ("I think that the answer is a little unclear.\n\nB", "B"),
    ("I know that the answer is a hard one to give.", None),
    ("B is correct because A is false.", "B"),
    ("A is wrong, B is wrong, C is wrong; so it must be D.", "D"),
    ("Option A is incorrect. Option B is correct. Option C is incorrect.", "B"),
    ("The answer is B. Option A is wrong because water is wet.", "B"),
    ("I'd go with B.", "B"),
    ("It's B.", "B"),
    ("Hence C", "C"),
    ("After elimination, only D remains.", "D"),
    ("I choose option B over option A.", "B"),
    ("The answer is definitely not D, so it's A.", "A"),
    (r"$\text{B}$", "B"),
    ("B<|im_end|>", "B"),
    ("Ans: B", "B"),
    (r"\boxed{\mathrm{B}}", "B"),
    (r"\boxed{\text{Option B}}", "B"),
    (r"The answer is \(B\).", "B"),
    ("The correct answer is probably the letter 'C'.", "C"),
    ("Answer - B", "B"),
    ("`B`", "B"),
    ("<answer>(B)</answer>", "B"),
    ('{"answer": "B"}', "B"),
    ("正确答案是 C。", "C"),
    ("A. 12\nB. 13\nC. 14\n\nThe total is 14, which is C.", "C"),
    ("The answer is not A. It is B.", "B"),
    ("The answer is a car.", None),
    ("The answer is A and C.", None),
    ("The answer is B/C.", None),
    ("None of the above.", None),
]

VERDICTS = [
    ("So the answer is no, because 5 > 3.", "no"),
    ("Yes, a square is a rectangle.", "yes"),
    ("The answer is yes.", "yes"),
    ("No. Whales are mammals.", "no"),
    ("**Answer: No**", "no"),
    (r"\boxed{\text{Yes}}", "yes"),
    ("Let me think. Iron sinks in water. So the answer is: no", "no"),
    ("The statement is false.", "no"),
    ("True. Every even number is divisible by 2.", "yes"),
    ("Therefore, the answer is yes, since 12 is even.", "yes"),
    ("Ships float on water.\n\nFinal answer: yes", "yes"),
    ("no", "no"),
    ("The answer is No since nobody lived there in 1200.", "no"),
    ("The statement is not true.", "no"),
    ("This is not false.", "yes"),
    ("The claim isn't true.", "no"),
    ("There is no reason to doubt it; yes.", "yes"),
    ("The answer is that there is no such animal, so yes.", "yes"),
    ("I have no idea.", None),
    ("No\n\nExplanation: yes would need a proof.", "no"),
    ("The answer is neither yes nor no.", None),
    ("The answer is not yes.", None),
    ("Is it yes or no? The answer is no.", "no"),
    ("No, that is not true.", "no"),
    ('{"answer": true}', "yes"),
]

UNITS = [
    ("The answer is 5 cm.", "5 cm"),
    ("The train travels 120 km.", "120 km"),
    ("Answer: 3.5 kg", "3.5 kg"),
    ("The answer is 15 square meters.", "15 m^2"),
    ("So each child gets 4 apples.", "4"),
    ("The total is 45 dollars.", "45"),
    ("It takes 30 minutes.", "30 min"),
    ("The answer is 3 hours and 20 minutes.", "3 hours and 20 minutes"),
    ("3 hours and 20 minutes", "3 hours and 20 minutes"),
    ("The angle is 45°.", "45"),
    ("She saved 20%.", "20"),
    (r"The answer is $12\text{ m}$.", "12 meters"),
    ("He drove at 60 mph.", "60 mph"),
    (r"$\$ 3040$", "3040"),
    ("1 000", "1000"),
    ("The price is 2,75 €.", "2.75"),
    ("The answer is 1 250 000.", "1250000"),
    ("There are 1.5 million people.", "1500000"),
    ("The answer is $0.05.", "0.05"),
    ("It took 2 hours and 15 minutes.", "2 hours and 15 minutes"),
    ("The price is €1.250,50.", "1250.5"),
    ("The answer is 1.234.567.", "1234567"),
    ("The answer is 1½ cups.", "1.5"),
    ("The answer is 3.0 × 10⁸.", "300000000"),
    ("That makes 2.5 × 10^-3 mol.", "0.0025"),
]

SEVERAL = [
    ("The answer is 3 and 5.", "5, 3"),
    ("The answer is x = 1 or x = -4.", "-4, 1"),
    (r"The answer is $\{2, 3, 5\}$.", "2, 3, 5"),
    (r"\boxed{2, -2}", r"\pm 2"),
    (r"\boxed{x = 2 \text{ or } x = 9}", "9, 2"),
    (r"The answer is $x = \pm 4$.", "4, -4"),
    ("The answer is (1, 2) and (3, 4).", "(3, 4), (1, 2)"),
    (r"\boxed{(1, 2), (3, 4)}", "(1, 2), (3, 4)"),
    ("$-3 < x < 5$", "(-3, 5)"),
    (r"The answer is $x \ge 4$.", r"[4, \infty)"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ("The answer is $a = 2, b = 3$.", "a=2, b=3"),
    (r"The answer is $0 \le t < 9$.", "[0, 9)"),
    ("The roots are 3 and -2.", "-2, 3"),
    (r"$x=1$, $x=2$ and $x=3$", "1, 2, 3"),
]

PLAIN = [
    ("Tom has 5 apples and buys 3 more, so he has 5 + 3 = 8 apples.", "8"),
    ("48 / 2 = 24\n48 + 24 = 72\nThe answer is: 72", "72"),
    ("Natalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72", "72"),
    ("He pays $5 and she pays $6.", "6"),
    ("After the sale, 1,024 tickets are left.", "1024"),
    ("The temperature fell to -7 degrees.", "-7"),
    ("So 17 000 people came by tram.", "17000"),
    ("He has 3 100-dollar bills.", "100"),
    ("The answer is 2 1/2 cups.", "5/2"),
    ("So it needs 2\\frac{1}{2} cups.", "5/2"),
    ("There are 2^10 of them.", "2^10"),
    ("The square has 16 cm^2.", "16 cm^2"),
    ("Final answer: 3/5 of the cake", "3/5"),
    ("She needs 2.5 hours.", "2.5 hours"),
    ("The capital is Paris. The answer is Paris.", "Paris"),
    ("The answer is Marie Curie.", "Marie Curie"),
    ("There is nothing to count here.", None),
    ("I do not know.", None),
    ("The answer is 07/08/1971.", "07/08/1971"),
    ("That makes 17 in all. #### 17", "17"),
    ("Half of 90 is 45. So the answer is 45 points.", "45"),
    ("The answer is not 12. The answer is 13.", "13"),
    ("The next answer was twice the answer of the first problem, or 600*2 = 1200\n#### 3200", "3200"),
    ("He was born in 1990 and is 30 years old.", "30 years"),
]

CUT = [
    (r"First, 3 * 5 = 15, so the total is \boxed{1", None),
    (r"I found \boxed{12}. Wait, let me check: \boxed{1", None),
    ("There are 5 boxes with 4 pens each, that is 5 * 4 = 2", None),
    ("5 * 4 = 20\n20 + 3 = 23\nNow we", None),
    ("The answer is 12", None),
    ("The answer is 12.\n\nTo check, 3 * 4", "12"),
    (r"So it is \boxed{9}. Let me double-che", "9"),
    ("#### 14\nQuestion: Tom has", "14"),
    ("The answer is B, bec", None),
    ("", None),
    ("The final answer is 3.", None),
    ("The answer is 8. We can verify th", "8"),
    ("<answer>12</answer>", "12"),
    ("<answer>12", None),
    ('{"answer": 12}', "12"),
    ("The answer is 12.\nWait, no. The answer is 1", None),
    ("The answer is 12.\nTo sum up, the answer is 1", "12"),
]

RUN_ON = [
    ("The answer is 6.\n\nQuestion: A farmer has 9 cows.\nAnswer: The answer is 9.", "6"),
    ("2 + 2 = 4\n#### 4\n\nQ: What is 3 + 3?\nA: 6\n#### 6", "4"),
    ("The answer is 30.\n\nProblem: Next, find the area.\nSolution: The answer is 12.", "30"),
    ("So he has 5.\nThe answer is 5.\n\nHuman: And with 7?\nAssistant: The answer is 7.", "5"),
    (r"\boxed{8}" + "\n\nQuestion: How many?\n" + r"\boxed{3}", "8"),
]

RUN_ON += [
    ("He has 8 apples.\n\nQ: Tom has 3 cars. How many wheels?\nA: 12 wheels.", "8"),
    ("72\n\nQuestion: How many books?\nAnswer: 9 books", "72"),
    ("The answer is 5.\n<|im_start|>user\nAnd 6?<|im_end|>\n<|im_start|>assistant\nThe answer is 6.", "5"),
    ("The answer is 7.\n\nUser: Thanks. What is 9 + 9?\nAssistant: The answer is 18.", "7"),
    ("Question 1: How many? Answer: 5.\nQuestion 2: And then? Answer: 8.", "8"),
    ("Let me restate.\nProblem: find the sum.\nSo 3 + 4 = 7.", "7"),
    ("<think>Q: what is asked?\n\nThe answer is 3.\n\nQuestion: really?</think>\nThe answer is 6.", "6"),
    ("The answer is 6.<|endoftext|>Question: next\nAnswer: The answer is 7.", "6"),
    ("The answer is 6.</s><s>[INST] And 3? [/INST] The answer is 3.", "6"),
    ("The answer is 6.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd 3? The answer is 3.", "6"),
    ("The answer is 6.<end_of_turn>\n<start_of_turn>user\nAnd 3?\n\nThe answer is 3.", "6"),
    ("The answer is 6.\n\n[Question]\nAnd 7?\n[Answer]\nThe answer is 7.", "6"),
    ("6\n\nExample 2:\nQuestion: next\nAnswer: 7", "6"),
    ("The answer is 6.\n\nInput: 3\nOutput: The answer is 7", "6"),
    ("<think>a</think>The answer is 6.\n\nQuestion: next\n<think>7?</think>The answer is 9.", "6"),
]

THINKING = [
    (r"<think>Is it \boxed{12}? No: 3*5.</think>The answer is 15.", "15"),
    ("<think>\nFirst 4 * 5 = 20.\nThe answer is 20? It says half.\n</think>\n\nSo it is half of 20.\n\n**10**", "10"),
    ("Is it 12? The answer is 12. No.</think>The answer is 15.", "15"),
    ("<think>\n\n</think>\n\nThe answer is 4.", "4"),
    ("<think>7 or 8?", None),
    (r"<think>It is \boxed{7}. Wait, let me check again:", None),
    ("<think>The answer is 7.</think>", None),
    ("<think>7?</think>Is it?<think>The answer is 8.</think>The answer is 9.", "9"),
    ("<think>7?</think>The answer is 7.<think>Or \\boxed{8}", "7"),
    ("Sure. <think>The answer is 3.</think>The answer is 4.", "4"),
    ("[THINK]Let me see, \\boxed{1}?[/THINK]The answer is 2.", "2"),
    ("<|START_THINKING|>1 + 1 = 3<|END_THINKING|><|START_RESPONSE|>The answer is 2.<|END_RESPONSE|>", "2"),
    ("<seed:think>The answer is 5.</seed:think>The answer is 6.", "6"),
    ("<thought>The answer is 5.</thought>\nThe answer is 6.", "6"),
    ("<reasoning>\n2 * 3 = 6\n</reasoning>\n<answer>\n6\n</answer>", "6"),
    ("◁think▷The answer is 5.◁/think▷The answer is 6.", "6"),
    ("<|channel>thought\nThe answer is 5.<channel|>The answer is 6.", "6"),
    ("<|begin_of_thought|>The answer is 5.<|end_of_thought|>\n\nThe answer is 6.", "6"),
    (
        "<|channel|>analysis<|message|>Is it \\boxed{12}?<|end|><|start|>assistant<|channel|>final<|message|>"
        "The answer is 15.",
        "15",
    ),
    ("<|channel|>analysis<|message|>Is it \\boxed{12}?assistant<|channel|>final<|message|>The answer is 15.", "15"),
    ("<|channel|>analysis<|message|>The answer is 12.<|end|><|start|>assistant<|channel|>commentary<|message|>", None),
    ("<|channel|>final<|message|>The answer is 15.", "15"),
]

DEFAULT = [
    pytest.param(text, expected, id=f"{kind}-{i}")
    for kind, cases in {
        "boxed": BOXED, "display": DISPLAY, "markdown": MARKDOWN, "units": UNITS, "several": SEVERAL, "plain": PLAIN,
        "thinking": THINKING,
    }.items()
    for i, (text, expected) in enumerate(cases)
]  # fmt: skip


def agrees(found, expected):
    return found is None if expected is None else same_answer(found, expected)


def test_there_are_texts_of_many_kinds():
    kinds = (BOXED, DISPLAY, MARKDOWN, LETTERS, VERDICTS, UNITS, SEVERAL, PLAIN, CUT, RUN_ON, THINKING)
    assert len(kinds) >= 10
    assert sum(map(len, kinds)) >= 150


@pytest.mark.parametrize(("text", "expected"), DEFAULT)
def test_the_default_reader_takes_the_best_evidence(text, expected):
    assert agrees(read_answer(text), expected), read_answer(text)


@pytest.mark.parametrize(("text", "expected"), LETTERS)
def test_a_choice_is_a_letter(text, expected):
    assert Choice("ABCDEF")(text) == expected


@pytest.mark.parametrize(("text", "expected"), LETTERS[:5] + LETTERS[6:7])
def test_the_default_reader_knows_a_stated_letter(text, expected):
    assert Choice().same(read_answer(text) or "", expected) or text.startswith("\\boxed")


@pytest.mark.parametrize(("text", "expected"), VERDICTS)
def test_a_verdict_is_yes_or_no(text, expected):
    assert YesNo()(text) == expected


@pytest.mark.parametrize(("text", "expected"), CUT)
def test_a_cut_text_abstains_unless_its_answer_was_complete(text, expected):
    assert agrees(answer_of(read_answer, text, cut=True), expected)


def test_a_function_must_read_the_same_in_the_complete_part():
    last = lambda text: (text.split() or [None])[-1]  # noqa: E731
    assert answer_of(last, "it is 5.\n", cut=True) == "5."
    assert answer_of(last, "it is 5.\nBut th", cut=True) is None
    assert answer_of(last, "it is 5.\nBut th") == "th"
    assert complete_part("a. b") == "a."


@pytest.mark.parametrize(("text", "expected"), RUN_ON)
def test_what_comes_after_the_next_question_is_not_read(text, expected):
    assert same_answer(read_answer(text), expected)


def test_numbers_of_texts_with_words():
    assert Number()("The answer is B because 5 > 3.") == "3"
    assert Number()("It is 3,5 litres.") in ("3,5", "3.5", "3,5 litres")
    assert Number().same("3,5", "3.5")
    assert not Number().same("3,5", "35")
    for text, number in {
        "So we need $2\\frac{1}{2}$ cups.": "2.5", "It takes 2 1/2 hours.": "2.5", "About 1 500 000.": "1500000",
        "The area is $12 \\text{ cm}^2$.": "12", "It is 5 cm^2.": "5", "\\boxed{12\\text{ cm}^2}": "12",
    }.items():  # fmt: skip
        assert Number().same(Number()(text) or "", number), text
    for text in ("The answer is $2^{10}$.", "\\boxed{2^{10}}", "So it is 2^{10}."):
        assert Number()(text) == "2^{10}"
    assert Number()("The answer is 2^3 = 8.") == "8"
    assert Number()(r"\boxed{5\pi}") == r"5\pi"
    assert Number()("It took 2 hours and 30 minutes.") is None
    assert Number()('{"answer": 7, "confidence": 0.9}') == "7"
    assert Number()("It is 1.234,5.") == "1234.5"


def test_code_and_text_are_read_whole():
    reply = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."
    assert Code()(reply) == "def add(a, b):\n    return a + b"
    assert Code()("x = 1") == "x = 1"
    assert Code().read_cut("```python\ndef f(") is None
    assert Text()("Dear Ann,\n\nthank you.\n") == "Dear Ann,\n\nthank you."
    assert Text("Summary:")("Notes.\nSummary: short") == "short"
    assert Text("Summary:")("Notes.") is None
    assert Text().read_cut("Dear A") is None
    assert Text().same("Thank  you", "thank you")


def test_an_expression_is_read_whole():
    assert Expression()("Thus $f(x) = x^2 + 3x$ is the answer.") is not None
    assert same_answer(Expression()(r"So it is $\frac{a+b}{2}$."), r"\frac{a+b}{2}")
    assert Expression()("The answer is $5x - 3y + 9 = 0$.") == "5x - 3y + 9 = 0"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("5 cm", "5 meters"), ("5 cm", "5 km"), ("5 cm", "5 cm^2"), ("(3,1)", r"\{1,3\}"), ("11a+c", "7=11a+c"),
        ("0", "x + y - 4z + 2 = 0"), ("101_2", "101_3"), ("[0,1)", "(0,1)"), ("3 hours", "3 days"), ("0.33", "0.34"),
        ("5 kJ", "5 MJ"), ("5 mW", "5 MW"), ("5 kPa", "5 Pa"), ("5 °C", "5 °F"), ("3 mol/L", "3 mol"), ("5 J", "5 N"),
        ("5 acres", "5 hectares"), ("20 degrees Celsius", "20 degrees Fahrenheit"), ("5 m", "5 km"), ("sqrt(2)", "2"),
    ],
)  # fmt: skip
def test_what_is_never_the_same(first, second):
    assert not same_answer(first, second)
    assert not same_answer(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0.0833", "1/12"), ("0.0833333333333333", r"\frac{1}{12}"), ("5 cm", "5"), ("5 centimeters", "5 cm"),
        ("1 000", "1000"), ("1000,99", "1000.99"), ("3 or -2", "-2, 3"), (r"\frac94", r"\frac{9}{4}"),
        ("x > 5", r"(5, \infty)"), (r"5 \le x", r"x \geq 5"), ("(a)", "A"), ("Yes.", "yes"), ("7:32", "A:B = 7:32"),
        ("5 m/s", "5"), ("300 K", "300"), ("20°C", "20"), ("20°C", "20 degrees Celsius"),
        (r"20^\circ C", "20 °C"), ("5 J", r"5\text{ J}"), ("3 hours and 20 minutes", "3 hours, 20 minutes"),
        ("2√3", r"2\sqrt{3}"), ("sqrt(2)", r"\sqrt 2"), ("2π", r"2\pi"), ("x² + 1", "x^2+1"),
        ("1½", "3/2"), ("∅", r"\emptyset"),
    ],
)  # fmt: skip
def test_what_is_the_same(first, second):
    assert same_answer(first, second)
    assert same_answer(second, first)


def test_a_group_holds_no_two_units():
    assert group_answers(["5 km", "5", "5 cm", "5.0", "5 cm"]) == [[0, 1, 3], [2, 4]]
    assert group_answers(["1/3", "0.3333", "0.33333", "2/6"]) == [[0, 1, 3], [2]]


class Trace(Generator):
    """Samples one text, cut off or ended."""

    def __init__(self, text, finish_reason):
        self.step = Step(text, (1,), finish_reason=finish_reason)

    def generate(self, requests):
        return [[self.step] * request.n for request in requests]


@pytest.mark.parametrize("reason", ["length", "budget"])
@pytest.mark.parametrize(("text", "answer"), [("so 5 * 4 = 20, and", None), ("The answer is 20. Let me", "20")])
def test_a_trajectory_that_was_cut_votes_only_with_a_complete_answer(text, answer, reason):
    result = solve("?", RepeatedSampling(3), Trace(text, reason))
    assert [t.answer for t in result.trajectories] == [answer] * 3
    assert solve("?", RepeatedSampling(1), Trace(text, "eos")).answer == "20"


@pytest.mark.parametrize(
    "text",
    [
        "\n```a" * 12_500, "\nQ: " * 12_500, "\\[" * 25_000, "$" * 25_000, "option A " * 12_500, "yes " * 25_000,
        "(A) " * 25_000, "<think>" * 12_500, "</think>" * 12_500, "<think></think>\nQ: " * 2_500,
        "<answer>" * 7_500, '"answer": "' * 7_500, "answer\n" * 7_500, " " * 50_000, "\n" * 50_000, "1" * 25_000,
        "answer: (" * 12_500, "\\boxed{1} and " * 5_000, "1 000 " * 12_500, "3 hours and " * 12_500,
    ],
    ids=lambda text: repr(text[:10]),
)  # fmt: skip
def test_hostile_texts_are_read_in_little_time(text):
    start = time.process_time()
    for reader in (read_answer, Number(), Choice(), YesNo(), Expression(), Code(), Text()):
        reader(text)
        reader.read_cut(text)
    assert time.process_time() - start < 10  # quadratic patterns take minutes
