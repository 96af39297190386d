"""Hostile answers, judged wherever this is called from."""

import os
import tempfile

from inferscale.answers import same_answer
from inferscale.evaluate import MathGrader

BOMBS = ["9^{9^{9^9}}", "(10^9)!", "2^{10^8}"]
PAYLOADS = ["__import__('os').system('touch {0}')", r"\boxed{{__import__('os').system('touch {0}')}}"]
PAIRS = [("x>5", r"(5,\infty)"), (r"(5,\infty)", "x>5"), (r"2\pi", r"\pi+\pi")]


def report(timeout=0.5):
    """Verdicts on bombs and payloads against a plain answer, on pairs both ways, and the files that payloads made."""
    with tempfile.TemporaryDirectory() as folder, MathGrader(timeout=timeout) as grader:
        payloads = [text.format(os.path.join(folder, "pwned")) for text in PAYLOADS]
        verdicts = {text: grader.judge(text, "5") for text in BOMBS + payloads}
        plain = [same_answer(text, "5") for text in BOMBS + payloads]
        pairs = [grader(*pair) for pair in PAIRS]  # by a worker that took the place of a killed one
        return {
            "bombs": [verdicts[text] for text in BOMBS],
            "payloads": [verdicts[text] for text in payloads],
            "plain": any(plain),
            "pairs": pairs,
            "made": os.listdir(folder),
        }
