"""Reading an answer out of a completion, and telling when two answers are the same (standard library only).

Nothing that a model wrote is executed or handed to a parser of expressions, numbers are exact fractions of bounded
size, and texts beyond `MAX_ANSWER_CHARS` are compared as they are: no answer can hang, overflow or run code.
"""

from ._comparing import MAX_ANSWER_CHARS, normalize_answer, parse_number, same_answer
from ._reading import extract_answer

__all__ = ["MAX_ANSWER_CHARS", "extract_answer", "normalize_answer", "parse_number", "same_answer"]
