"""The embedded task: word problems about one running quantity, with an exact checker of every step.

A story gives a start and a few events; a solution writes one operation per line and then the answer::

    Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?
    7 * 6 = 42
    42 - 20 = 22
    The answer is: 22

The prompt ends with the end of line after the question. Steps end with the end of line; the answer line ends the
solution. Everything is computed from the prompt's text alone, so the checker needs no gold answer::

    step_labels(prompt, completion)   # [True, True, False]: right so far, for every line
    first_error(prompt, completion)   # 2, or None when nothing is wrong so far
    is_correct(prompt, completion)    # whether the stated answer is right

Standard library only.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from typing import Literal, TypeAlias

from inferscale.tree import Problem

Kind: TypeAlias = Literal[
    "start", "start_groups", "start_times", "add", "sub", "add_groups", "sub_groups", "times", "split", "fraction"
]

NAMES = (
    "Mia", "Tom", "Ana", "Ben", "Zoe", "Leo", "Eva", "Max", "Ida", "Sam", "Lea", "Jan", "Amy", "Kai", "Nora", "Paul",
)  # fmt: skip
OBJECTS = ("pens", "coins", "books", "cards", "shells", "stamps", "beads", "nuts", "eggs", "apples", "plums", "stones")
CONTAINERS = ("boxes", "bags", "trays", "jars", "baskets", "packs")

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "start": ("{n} has {0} {o}.", "{n} starts with {0} {o}."),
    "start_groups": ("{n} has {0} {c} with {1} {o} in each.", "{n} starts with {0} {c} of {1} {o}."),
    "start_times": (
        "{m} has {0} {o}. {n} has {1} times as many.",
        "{m} owns {0} {o}. {n} starts with {1} times as many.",
    ),
    "add": ("{n} buys {0} more.", "{n} finds {0} {o}.", "{n} gets {0} from {m}."),
    "sub": ("{n} sells {0} of them.", "{n} loses {0}.", "{n} gives {0} to {m}."),
    "add_groups": ("{n} buys {0} {c} of {1}.", "{n} finds {0} {c} with {1} in each."),
    "sub_groups": ("{n} sells {0} {c} of {1}.", "{n} loses {0} {c} with {1} in each."),
    "times": ("{n} collects more until there are {0} times as many.", "Then {n} has {0} times as many."),
    "split": (
        "{n} makes {0} equal parts and keeps one.",
        "{n} shares them equally among {0} people and keeps one part.",
    ),
    "fraction": ("{n} sells one of every {0}.", "{n} gives one of every {0} to {m}."),
}
QUESTIONS = ("How many {o} does {n} have now?\n", "How many {o} are left?\n")


@dataclass(frozen=True, slots=True)
class Event:
    """One sentence's meaning: what happens to the running quantity, and by which numbers."""

    kind: Kind
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the reference derivation, ``left op right = result``.

    Attributes:
        left: First operand.
        op: One of ``+ - * /``.
        right: Second operand.
        result: The exact result.
        left_from: Index of the line whose result `left` is, or ``None`` if the story states it.
        right_from: The same for `right`.
    """

    left: int
    op: str
    right: int
    result: int
    left_from: int | None = None
    right_from: int | None = None

    def text(self, swap: bool = False) -> str:
        """The line as the policies write it, end of line included; `swap` exchanges the operands."""
        left, right = (self.right, self.left) if swap else (self.left, self.right)
        return f"{left} {self.op} {right} = {self.result}\n"


def apply(left: int, op: str, right: int) -> int:
    """The result of one operation; division rounds down.

    Raises:
        ValueError: If `op` is not one of ``+ - * /``.
    """
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    if op == "*":
        return left * right
    if op == "/":
        return left // right
    raise ValueError(f"an operator is one of + - * /, got {op!r}")


def derive(events: list[Event]) -> list[Line]:
    """The reference derivation of a story, one `Line` per operation."""
    lines: list[Line] = []
    total, source = 0, None  # the running quantity and the line it came from

    def write(left: int, op: str, right: int, left_from: int | None, right_from: int | None = None) -> int:
        lines.append(Line(left, op, right, apply(left, op, right), left_from, right_from))
        return lines[-1].result

    for event in events:
        first, second = (*event.values, 0)[:2]
        if event.kind == "start":
            total = first
            continue
        if event.kind in ("start_groups", "start_times"):
            total = write(first, "*", second, None)
        elif event.kind in ("add_groups", "sub_groups"):
            group = write(first, "*", second, None)
            total = write(total, "+" if event.kind == "add_groups" else "-", group, source, len(lines) - 1)
        elif event.kind == "fraction":
            part = write(total, "/", first, source)
            total = write(total, "-", part, source, len(lines) - 1)
        else:
            op = {"add": "+", "sub": "-", "times": "*", "split": "/"}[event.kind]
            total = write(total, op, first, source)
        source = len(lines) - 1
    return lines


def final_value(events: list[Event]) -> int:
    """The running quantity after all events."""
    lines = derive(events)
    return lines[-1].result if lines else events[0].values[0]


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[Kind, re.Pattern[str]]]:
    """A compiled pattern per wording, longest first so that no wording hides behind a shorter one."""
    words = {"n": "|".join(NAMES), "m": "|".join(NAMES), "o": "|".join(OBJECTS), "c": "|".join(CONTAINERS)}
    patterns = []
    for kind, texts in TEMPLATES.items():
        for text in texts:
            pattern = re.escape(text)
            for key, choices in words.items():
                pattern = pattern.replace(re.escape(f"{{{key}}}"), f"(?:{choices})")
            for index in range(2):
                pattern = pattern.replace(re.escape(f"{{{index}}}"), "([0-9]+)")
            patterns.append((kind, re.compile(pattern + " ")))
    return sorted(patterns, key=lambda item: -len(item[1].pattern))


def read_events(prompt: str) -> list[Event]:
    """The events that a story tells, in order.

    Raises:
        ValueError: If the text is not a story of the embedded task.
    """
    events: list[Event] = []
    position = 0
    while not prompt.startswith("How many ", position):
        found = ((kind, pattern.match(prompt, position)) for kind, pattern in _patterns())
        kind, match = next(((kind, match) for kind, match in found if match), (None, None))
        starts = kind is not None and kind.startswith("start")
        if kind is None or match is None or starts == bool(events):
            raise ValueError(
                f"not a problem of the embedded task, cannot read {prompt[position : position + 60]!r}: "
                "use a prompt made by inferscale.zoo.task.generate"
            )
        events.append(Event(kind, tuple(int(value) for value in match.groups())))
        position = match.end()
    if not events:
        raise ValueError(f"not a problem of the embedded task: {prompt[:60]!r} tells no story")
    return events


@dataclass(frozen=True, slots=True)
class Level:
    """Difficulty of a problem.

    Attributes:
        min_steps: Fewest operations.
        max_steps: Most operations.
        limit: Greatest value of any result.
        table: Greatest first factor of a product of two stated numbers; the second is at most 9.
    """

    min_steps: int
    max_steps: int
    limit: int
    table: int

    @property
    def reach(self) -> int:
        """Greatest number that a sentence adds or takes away at once."""
        return max(20, self.limit // 4)


LEVELS: dict[int, Level] = {
    1: Level(3, 4, 100, 9),
    2: Level(4, 5, 300, 12),
    3: Level(6, 7, 800, 15),
    4: Level(7, 8, 1500, 20),
    5: Level(8, 10, 3000, 30),
}
"""The five levels of difficulty by number, each with the fewest and most operations of a problem (`min_steps`,
`max_steps`), the greatest value of a result (`limit`), and the greatest first factor of a product (`table`).

Example:
    >>> from inferscale.zoo.task import LEVELS
    >>> [(number, level.min_steps, level.max_steps, level.limit) for number, level in LEVELS.items()]
    [(1, 3, 4, 100), (2, 4, 5, 300), (3, 6, 7, 800), (4, 7, 8, 1500), (5, 8, 10, 3000)]
"""

_WEIGHTS: dict[Kind, int] = {
    "add": 8, "sub": 8, "add_groups": 6, "sub_groups": 5, "times": 4, "split": 3, "fraction": 4,
}  # fmt: skip
_LINES: dict[Kind, int] = {"add_groups": 2, "sub_groups": 2, "fraction": 2}


def draw_events(rng: random.Random, level: Level) -> list[Event]:
    """A random story of the level, every result in ``1..limit``."""
    steps_left = rng.randint(level.min_steps, level.max_steps)
    events = [_draw_start(rng, level)]
    total = final_value(events)
    steps_left -= len(derive(events))
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while steps_left:
        kind = rng.choices(kinds, weights)[0]
        drawn = _draw_event(rng, kind, total, level) if _LINES.get(kind, 1) <= steps_left else None
        if drawn is not None:
            event, total = drawn
            events.append(event)
            steps_left -= _LINES.get(kind, 1)
    return events


def _draw_start(rng: random.Random, level: Level) -> Event:
    kind: Kind = rng.choice(("start", "start_groups", "start_times"))
    if kind == "start":
        return Event(kind, (rng.randint(5, level.reach),))
    if kind == "start_groups":
        first = rng.randint(2, level.table)
        return Event(kind, (first, rng.randint(2, min(9, level.limit // first))))
    times = rng.randint(2, 5)
    return Event(kind, (rng.randint(3, min(5 * level.table, level.limit // times)), times))


def _draw_event(rng: random.Random, kind: Kind, total: int, level: Level) -> tuple[Event, int] | None:
    """An event and the quantity after it, or ``None`` if the drawn numbers leave the range."""
    if kind in ("add", "sub"):
        values: tuple[int, ...] = (rng.randint(2, level.reach),)
        after = total + values[0] if kind == "add" else total - values[0]
    elif kind in ("add_groups", "sub_groups"):
        values = (rng.randint(2, level.table), rng.randint(2, 9))
        after = total + values[0] * values[1] * (1 if kind == "add_groups" else -1)
    else:
        values = (rng.randint(2, 5),)
        if kind != "times" and total % values[0]:
            return None
        part = total // values[0]
        after = total * values[0] if kind == "times" else part if kind == "split" else total - part
    return (Event(kind, values), after) if 1 <= after <= level.limit else None


def write_prompt(rng: random.Random, events: list[Event]) -> str:
    """The story of the events in random words, the question and its end of line included."""
    name, other = rng.sample(NAMES, 2)
    words = {"n": name, "m": other, "o": rng.choice(OBJECTS)}
    parts = [
        rng.choice(TEMPLATES[event.kind]).format(*event.values, c=rng.choice(CONTAINERS), **words) for event in events
    ]
    return " ".join([*parts, rng.choice(QUESTIONS).format(**words)])


__all__ = [
    "ANSWER_PREFIX",
    "LEVELS",
    "Split",
    "check_steps",
    "first_error",
    "generate",
    "is_correct",
    "level_of",
    "problem_stream",
    "reference",
    "solution",
    "split_of",
    "stated_answer",
    "step_labels",
]

Split: TypeAlias = Literal["train", "dev", "test"]
"""Parts of the problems; which one a problem belongs to depends on its text alone.

Example:
    >>> from typing import get_args
    >>> from inferscale.zoo.task import Split, generate
    >>> for split in get_args(Split):
    ...     print(f"{split:5}", generate(1, seed=0, level=1, split=split)[0].prompt[:40])
    train Amy has 19 nuts. Paul has 5 times as man
    dev   Eva has 22 coins. Eva sells 18 of them.
    test  Ben starts with 5 apples. Ben gets 16 fr
"""

ANSWER_PREFIX = "The answer is: "
r"""The beginning of a solution's last line.

Example:
    >>> from inferscale.zoo.task import ANSWER_PREFIX
    >>> "7 * 6 = 42\n42 - 20 = 22\nThe answer is: 22".partition(ANSWER_PREFIX)
    ('7 * 6 = 42\n42 - 20 = 22\n', 'The answer is: ', '22')
"""
_STEP = re.compile(r"\s*([0-9]+) ([-+*/]) ([0-9]+) = ([0-9]+)\s*")
_ANSWER = re.compile(r"\s*The answer is: ([0-9]+)\s*")
_BUCKETS = 16  # one in 16 problems belongs to "test", one to "dev", the others to "train"


def generate(n: int, seed: int, level: int | None = None, split: Split = "test") -> list[Problem]:
    """`n` problems; the same arguments always give the same problems, in any process.

    Args:
        n: How many.
        seed: Names the stream of problems.
        level: 1 (easiest) to 5; ``None`` mixes all five in equal parts.
        split: Which part of all problems to draw from. A problem's part depends on its text alone, so the three
            parts never share a problem whatever the seeds; the models were trained on ``"train"`` only.

    Raises:
        ValueError: If `level` or `split` is not known, or `n` is negative.

    Example:
        >>> from inferscale.zoo import task
        >>> problems = task.generate(5, seed=1)
        >>> [task.level_of(problem) for problem in problems], problems[0].answer
        ([1, 2, 3, 4, 5], '98')
        >>> problems == task.generate(5, seed=1), problems[0] in task.generate(200, seed=1, split="dev")
        (True, False)
    """
    if n < 0:
        raise ValueError(f"generate(n={n}): n is a number of problems, 0 or more")
    stream = problem_stream(seed, level, split)
    return [next(stream) for _ in range(n)]


def problem_stream(seed: int, level: int | None = None, split: Split = "test") -> Iterator[Problem]:
    r"""Problems without end, those of `generate` in the same order.

    Args:
        seed: As in `generate`.
        level: As in `generate`.
        split: As in `generate`.

    Raises:
        ValueError: If `level` or `split` is not known.

    Example:
        >>> from itertools import islice
        >>> from inferscale.zoo.task import problem_stream, solution
        >>> short = (problem for problem in problem_stream(seed=3, split="train") if len(problem.prompt) < 100)
        >>> [solution(problem.prompt).count("\n") for problem in islice(short, 3)]  # lines before the answer
        [3, 3, 3]
    """
    if level is not None and level not in LEVELS:
        raise ValueError(f"level={level!r}: choose one of {sorted(LEVELS)}, or None for a mix of all")
    if split not in ("train", "dev", "test"):
        raise ValueError(f"split={split!r}: choose 'train', 'dev' or 'test'")
    rng = random.Random(f"inferscale.zoo.task/{split}/{level}/{seed}")
    return _draw_stream(rng, level, split, f"{split}-{seed}")


def _draw_stream(rng: random.Random, level: int | None, split: Split, name: str) -> Iterator[Problem]:
    index = 0
    while True:
        this_level = level or 1 + index % len(LEVELS)
        events = draw_events(rng, LEVELS[this_level])
        prompt = write_prompt(rng, events)
        if split_of(prompt) == split:
            yield Problem(prompt, str(final_value(events)), f"{name}-L{this_level}-{index}", kind="number")
            index += 1


def split_of(prompt: str) -> Split:
    r"""The part of all problems that a prompt belongs to, from a hash of its text: one in 16 is "test", one "dev".

    Example:
        >>> from inferscale.zoo.task import split_of
        >>> split_of("Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n")
        'train'
    """
    bucket = blake2b(prompt.encode(), digest_size=1).digest()[0] % _BUCKETS
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def level_of(problem: Problem) -> int:
    """The level of a generated problem, read from its id.

    Raises:
        ValueError: If the id was not made by `generate`.

    Example:
        >>> from inferscale.zoo import problems, task
        >>> problem = problems()[3]
        >>> problem.id, task.level_of(problem)
        ('test-0-L4-3', 4)
    """
    match = re.search(r"-L([1-5])-", problem.id or "")
    if match is None:
        raise ValueError(f"no level in the id {problem.id!r}: pass a problem made by inferscale.zoo.task.generate")
    return int(match.group(1))


@lru_cache(maxsize=4096)
def reference(prompt: str) -> tuple[tuple[Line, ...], int]:
    r"""The reference derivation of a prompt and its answer.

    Raises:
        ValueError: If the prompt is not a problem of this task.

    Example:
        >>> from inferscale.zoo.task import reference
        >>> prompt = "Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n"
        >>> lines, answer = reference(prompt)
        >>> lines[1], answer
        (Line(left=42, op='-', right=20, result=22, left_from=0, right_from=None), 22)
    """
    events = read_events(prompt)
    return tuple(derive(events)), final_value(events)


def solution(prompt: str) -> str:
    r"""The reference solution as text, answer line included.

    Raises:
        ValueError: If the prompt is not a problem of this task.

    Example:
        >>> from inferscale.zoo.task import solution
        >>> prompt = "Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n"
        >>> print(solution(prompt))
        7 * 6 = 42
        42 - 20 = 22
        The answer is: 22
    """
    lines, answer = reference(prompt)
    return "".join(line.text() for line in lines) + f"{ANSWER_PREFIX}{answer}"


def check_steps(prompt: str, completion: str) -> list[bool]:
    r"""For every line of the completion on its own, whether it is the reference's line at that place.

    A line is right when operator, operands (either order for ``+`` and ``*``) and result are those of the
    reference; the answer line is right after the last operation and with the right number. Lines of white space
    are passed over. Another derivation that reaches the answer counts as wrong: the stories leave little room
    for one.

    Raises:
        ValueError: If the prompt is not a problem of this task.

    Example:
        >>> from inferscale.zoo.task import check_steps
        >>> prompt = "Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n"
        >>> check_steps(prompt, "7 * 6 = 41\n42 - 20 = 22\nThe answer is: 22")  # each line on its own
        [False, True, True]
    """
    lines, answer = reference(prompt)
    written = [line for line in completion.split("\n") if line.strip()]
    return [_is_right(text, index, lines, answer) for index, text in enumerate(written)]


def _is_right(text: str, index: int, lines: tuple[Line, ...], answer: int) -> bool:
    if index >= len(lines):
        match = _ANSWER.fullmatch(text)
        return index == len(lines) and match is not None and int(match.group(1)) == answer
    match = _STEP.fullmatch(text)
    if match is None:
        return False
    left, op, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
    line = lines[index]
    same = (left, right) == (line.left, line.right) or (op in "+*" and (right, left) == (line.left, line.right))
    return op == line.op and same and result == line.result


def step_labels(prompt: str, completion: str) -> list[bool]:
    r"""For every line, whether the solution is right up to and including it (the labels of a process reward model).

    Raises:
        ValueError: If the prompt is not a problem of this task.

    Example:
        >>> from inferscale.zoo.task import step_labels
        >>> prompt = "Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n"
        >>> step_labels(prompt, "7 * 6 = 42\n42 - 20 = 24\nThe answer is: 22")
        [True, False, False]
    """
    checks = check_steps(prompt, completion)
    return [all(checks[: index + 1]) for index in range(len(checks))]


def first_error(prompt: str, completion: str) -> int | None:
    r"""The index of the first wrong line, or ``None`` when nothing is wrong so far.

    Raises:
        ValueError: If the prompt is not a problem of this task.

    Example:
        >>> from inferscale.zoo.task import first_error
        >>> prompt = "Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n"
        >>> first_error(prompt, "7 * 6 = 42\n42 - 20 = 24\n"), first_error(prompt, "7 * 6 = 42\n")
        (1, None)
    """
    checks = check_steps(prompt, completion)
    return checks.index(False) if False in checks else None


def stated_answer(completion: str) -> str | None:
    r"""The number on the last line that states an answer, or ``None``.

    Example:
        >>> from inferscale.zoo.task import stated_answer
        >>> stated_answer("7 * 6 = 42\nThe answer is: 42"), stated_answer("7 * 6 = 42\n")
        ('42', None)
    """
    matches = [match for line in completion.split("\n") if (match := _ANSWER.fullmatch(line))]
    return str(int(matches[-1].group(1))) if matches else None


def is_correct(prompt: str, completion: str) -> bool:
    r"""True if the completion states the right answer, however it got there.

    Raises:
        ValueError: If the prompt is not a problem of this task.

    Example:
        >>> from inferscale.zoo.task import is_correct
        >>> prompt = "Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?\n"
        >>> is_correct(prompt, "The answer is: 22"), is_correct(prompt, "7 * 6 = 42\n42 - 20 = 22\n")
        (True, False)
    """
    return stated_answer(completion) == str(reference(prompt)[1])


TEST_FILE = "problems-test.jsonl"
SIZE = 500


def problems(split: Literal["test", "dev"] = "test") -> list[Problem]:
    """The 500 fixed problems of a split, 100 of each level in turn.

    ``"test"`` is a file in the package, for final figures; ``"dev"`` is for every choice before. For other or more
    problems see `inferscale.zoo.task.generate`.

    Raises:
        ValueError: If `split` is neither.

    Example:
        >>> from inferscale import zoo
        >>> problems = zoo.problems("dev")
        >>> len(problems), problems[0].id, problems[0].answer
        (500, 'dev-0-L1-0', '28')
    """
    if split == "dev":
        return generate(SIZE, seed=0, split="dev")
    if split != "test":
        raise ValueError(f"problems({split!r}): choose 'test' or 'dev'; for training use task.generate(split='train')")
    text = files("inferscale.zoo").joinpath(TEST_FILE).read_text(encoding="utf-8")
    return [Problem(**json.loads(line), kind="number") for line in text.splitlines()]


def write_test_file() -> str:
    """The content of the test file, made anew from its seed."""
    fixed = generate(SIZE, seed=0, split="test")
    return "".join(json.dumps({"prompt": item.prompt, "answer": item.answer, "id": item.id}) + "\n" for item in fixed)
