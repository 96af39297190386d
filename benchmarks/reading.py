"""How often reading and comparing agree with a public grader's own test cases.

``python -m benchmarks.reading MATH_VERIFY_CHECKOUT/tests/test_*.py`` reads the literal cases ``(gold, pred, expected)``
of pytest files, as those of https://github.com/huggingface/Math-Verify (Apache-2.0), and executes none of them. Each
text is read as an answer would be; ``--show WAY`` prints the cases in which a way disagrees.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from inferscale.answers import read_answer, same_answer
from inferscale.evaluate import MathGrader

Case = tuple[str, str, bool]


def cases(path: Path) -> Iterator[Case]:
    """The literal cases of every ``parametrize`` that begins with gold and prediction."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 2):
            continue
        names, rows = node.args
        if node.func.attr != "parametrize" or not isinstance(names, ast.Constant) or not isinstance(rows, ast.List):
            continue
        columns = [name.strip() for name in str(names.value).split(",")]
        if columns[:2] != ["gold", "pred"] or columns[2:] not in (["expected"], ["expected", "precision"], ["result"]):
            continue
        for row in rows.elts:
            if not isinstance(row, ast.Tuple) or not all(isinstance(item, ast.Constant) for item in row.elts[:3]):
                continue
            gold, pred, expected = (ast.literal_eval(item) for item in row.elts[:3])
            if isinstance(gold, str) and isinstance(pred, str):
                yield gold, pred, bool(expected)


def main() -> None:
    """Prints a row for each way of comparing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--show", help="print the cases in which this way disagrees")
    given = parser.parse_args()
    found = list(dict.fromkeys(case for path in given.files for case in cases(path)))
    grader = MathGrader()
    ways: Mapping[str, Callable[[str, str], bool]] = {"same_answer": same_answer, "MathGrader": grader}
    print(f"{len(found)} cases of {len(given.files)} files\n")
    print("| comparing | agree | false accepts | false rejects |\n|---|---|---|---|")
    for name, same in ways.items():
        wrong = []
        for gold, pred, expected in found:
            read = read_answer(gold), read_answer(pred)
            verdict = read[0] is not None and read[1] is not None and same(read[1], read[0])
            if verdict != expected:
                wrong.append((gold, pred, expected, *read))
        accepts = sum(not expected for _, _, expected, *_ in wrong)
        share = 100 * (len(found) - len(wrong)) / len(found)
        print(f"| {name} | {len(found) - len(wrong)} ({share:.1f} %) | {accepts} | {len(wrong) - accepts} |")
        if given.show == name:
            for gold, pred, expected, one, two in wrong:
                print(f"  expected {expected}: {gold!r} ({one!r}) against {pred!r} ({two!r})")


if __name__ == "__main__":
    main()
