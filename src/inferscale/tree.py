"""Problems, sampled steps, the search tree that they form, and records of its leaves (standard library only)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from hashlib import blake2b
from itertools import chain
from typing import Any, Literal, Never, TypeAlias

from .answers import AnswerReader, equality_of, final_part, final_span, reader_of
from .thinking import NO_THINKING, Thinking, thinking_in

FinishReason: TypeAlias = Literal["step", "eos", "length", "empty", "budget", "error"]
"""The reason why a step ended.

``"step"``: at the step delimiter or at ``max_step_tokens``; the path can go on. ``"eos"``: the model, or a stop
string, ended the answer. ``"length"``: the path reached ``max_new_tokens``. ``"budget"``: the caller's budget ended it.
``"empty"``: the path ended with nothing but white space. ``"error"``: the sample failed (a remote server); the text
says why.

Example:
    >>> import inferscale as isc
    >>> generator = isc.testing.ToyGenerator()
    >>> result = isc.solve("How many?", isc.RepeatedSampling(8), generator, budget=isc.Budget(tokens=40))
    >>> [trajectory.steps[-1].finish_reason for trajectory in result.trajectories]
    ['eos', 'eos', 'budget']
"""


ROLES = ("system", "user", "assistant", "tool")
"""Whose a turn of a conversation can be."""

Judge: TypeAlias = Literal["final", "thoughts", "all"]
"""The part of a solution that a reward model judges: what follows the end of thinking, the thoughts, or both.

What comes after a next question that the model invented is never judged.

Example:
    >>> import inferscale as isc
    >>> root = isc.Node(isc.Problem("How many?"), thinking=isc.Thinking())
    >>> leaf = isc.Node(root.problem, isc.Step("<think>3 and 4.</think>The answer is 7.", finish_reason="eos"), root)
    >>> leaf.part("final").text, leaf.part("thoughts").text
    ('The answer is 7.', '3 and 4.')
    >>> def brief(completions, **columns):
    ...     return [-len(text) for text in completions]
    >>> isc.RewardFunction(brief, judge="thoughts").score([leaf])
    [-8]
"""


@dataclass(frozen=True, slots=True)
class Problem:
    r"""A prompt to answer, or a conversation to go on with: ``Problem("How many?")``, ``Problem(messages=[...])``.

    Generators and reward models with a chat template render `messages` each with its own; `prompt` is then the
    conversation as one text, for whatever has none.

    Attributes:
        prompt: The text that the model is given, without special tokens or chat template.
        answer: The gold answer; evaluation and oracle rewards read it, strategies never do.
        id: A name for tables and files.
        messages: In place of `prompt`, the turns of a conversation as OpenAI and transformers write them:
            dictionaries with ``"role"`` (system, user, assistant or tool) and ``"content"``, a text or a list of text
            parts. A last turn of the assistant's is gone on with (prefill). Whatever else a turn holds
            (``"tool_calls"``, ``"name"``, ``"reasoning_content"``) is kept for the chat template.
        columns: Further data of the problem for reward functions (TRL's data-set columns): plain data, by name.
        kind: What the answer is, by its name in `inferscale.answers.KINDS` (``"number"``, ``"choice:ABCD"``, ...):
            says how it is read out of a completion, and when two are the same.

    Raises:
        TypeError: If the answer is no text, or messages or columns are no plain data.
        ValueError: If there is no prompt, or two, a turn does not fit, or there is no such kind.

    Example:
        >>> import inferscale as isc
        >>> problem = isc.Problem("How many?", answer="1", kind="number")
        >>> result = isc.solve(problem, isc.RepeatedSampling(8), isc.testing.ToyGenerator())
        >>> result.answer, result.is_correct
        ('1', True)
        >>> turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
        >>> isc.Problem(messages=turns).prompt
        'Be brief.\n\nHow many?'
    """

    prompt: str = ""
    answer: str | None = None
    id: str | None = None
    _: KW_ONLY
    messages: Sequence[Mapping[str, Any]] | None = None
    columns: Mapping[str, Any] | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be answered; freeze messages and columns."""
        if self.messages is not None:
            turns = _checked_messages(self.messages)
            text = _conversation_text(turns)
            if self.prompt and self.prompt != text:
                raise ValueError(
                    f"a problem has a prompt or messages, not both: got prompt={self.prompt!r:.60} and {len(turns)} "
                    "messages (leave the prompt empty)"
                )
            object.__setattr__(self, "messages", turns)
            object.__setattr__(self, "prompt", text)
        if not isinstance(self.prompt, str) or not self.prompt:
            raise ValueError(
                f"a problem needs a prompt, a string that is not empty, or messages=[...]; got {self.prompt!r:.80}"
            )
        if self.answer is not None and not isinstance(self.answer, str):
            raise TypeError(
                f"a problem's answer is a text or None, not {self.answer!r:.80}: write "
                + ("str(answer)" if self.answer == self.answer else "None where there is none")  # NaN is not itself
            )
        if self.columns is not None:
            if not isinstance(self.columns, Mapping):
                raise TypeError(f"columns is a dictionary of plain data by name, not {self.columns!r:.80}")
            object.__setattr__(self, "columns", _frozen(self.columns, "columns") or None)
        if self.kind is not None:
            reader_of(self.kind)  # refuses an unknown one

    @property
    def turns(self) -> list[dict[str, Any]]:
        """A copy of the conversation in plain dictionaries: `messages`, or one user turn that holds the prompt."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt}]
        turns: list[dict[str, Any]] = _thawed(self.messages)
        return turns

    @property
    def prefill(self) -> str:
        """Text of the assistant's turn that is gone on with, the beginning of every answer; ``""`` if there is none."""
        last = self.messages[-1] if self.messages else {"role": "user"}
        return str(last["content"]) if last["role"] == "assistant" else ""

    @property
    def question(self) -> Problem:
        """The problem without an assistant's turn that is gone on with."""
        if not self.prefill or self.messages is None:
            return self
        return replace(self, prompt="", messages=self.messages[:-1])

    def continued(self, prefill: str) -> Problem:
        """Return the problem with another beginning of the answer; ``""`` is none."""
        begun = [{"role": "assistant", "content": prefill}] if prefill.strip() else []
        return replace(self, prompt="", messages=[*(self.question.messages or self.turns), *begun])

    @property
    def stream(self) -> str:
        """The text that names the problem's random streams: the prompt, or the conversation turn by turn."""
        if self.messages is None:
            return self.prompt
        return json.dumps(self.messages, sort_keys=True, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what the problem was made with, as plain data for JSON; ``Problem(**data)`` makes it again."""
        given = {field.name: _thawed(getattr(self, field.name)) for field in fields(self)}
        if self.messages is not None:
            del given["prompt"]
        return {name: value for name, value in given.items() if value is not None}


class _FrozenDict(dict[str, Any]):
    """A dictionary that nobody changes, so that it has a hash; equal to a plain one."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def _refuse(self, *args: Any, **kwargs: Any) -> Never:
        raise TypeError("a problem is frozen: make another one with dataclasses.replace(problem, ...)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


class _FrozenList(list[Any]):
    """A list that nobody changes, so that it has a hash; equal to a plain one."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)

    _refuse = _FrozenDict._refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = _refuse
    insert = pop = remove = clear = reverse = sort = _refuse


def _frozen(value: Any, name: str) -> Any:
    """Return plain data as JSON would keep it, in containers that have a hash.

    Arrays and numbers of NumPy and torch become Python's, tuples lists; NaN and infinity, which JSON does not have,
    become ``None``.

    Args:
        value: The data.
        name: What to call it in errors.

    Raises:
        TypeError: If something in it is no plain data.
    """
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{name} has the key {odd[0]!r:.40}: keys are texts")
        return _FrozenDict({str(key): _frozen(item, f"{name}[{key!r}]") for key, item in value.items()})
    if isinstance(value, list | tuple):
        return _FrozenList([_frozen(item, f"{name}[{place}]") for place, item in enumerate(value)])
    if callable(getattr(value, "tolist", None)):
        return _frozen(value.tolist(), name)
    raise TypeError(
        f"{name} is {type(value).__name__} {value!r:.60}, which JSON has no place for: give texts, numbers, true or "
        "false, None, lists and dictionaries of these"
    )


def _thawed(value: Any) -> Any:
    """Return a copy of frozen data in plain lists and dictionaries."""
    if isinstance(value, dict):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list) else value


_RENAMED = {"developer": "system"}  # OpenAI's newer name for the same turn


def _checked_messages(messages: object) -> _FrozenList:
    """Return a conversation with every content as one text, frozen.

    Args:
        messages: Turns as OpenAI and transformers write them: dictionaries with ``"role"`` and ``"content"``, a text or
            a list of text parts. Assistant turns may hold ``"tool_calls"`` and then need no content; whatever else a
            turn holds (``"name"``, ``"tool_call_id"``, ``"reasoning_content"``) is kept for the chat template.

    Raises:
        TypeError: If it is no list of dictionaries of plain data.
        ValueError: If a role is unknown, a content is missing or no text, or there is nothing to answer.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(
            f"messages is a list of dictionaries with 'role' and 'content', not {type(messages).__name__} "
            f"{messages!r:.60}" + (": for a plain text write Problem(prompt)" if isinstance(messages, str) else "")
        )
    turns = [_checked_turn(turn, f"messages[{place}]") for place, turn in enumerate(messages)]
    roles = [turn["role"] for turn in turns]
    if "user" not in roles:
        raise ValueError(
            f"messages holds no user turn ({', '.join(roles) or 'it is empty'}): there is nothing to answer"
        )
    last = turns[-1]
    if last["role"] == "system":
        raise ValueError("the last of messages is the system's: end with the user's turn, or one of the assistant's "
                         "to go on with")  # fmt: skip
    if last["role"] == "assistant" and (last.get("tool_calls") or not last["content"]):
        what = "calls tools" if last.get("tool_calls") else "is empty"
        raise ValueError(f"the last of messages, the assistant's turn to go on with, {what}: "
                         + ("add the tools' turns" if last.get("tool_calls") else "leave it out"))  # fmt: skip
    return _FrozenList(turns)


def _checked_turn(turn: object, name: str) -> _FrozenDict:
    if not isinstance(turn, Mapping):
        raise TypeError(f"{name} is a dictionary with 'role' and 'content', not {type(turn).__name__} {turn!r:.60}")
    given = turn.get("role")
    role = _RENAMED.get(given, given) if isinstance(given, str) else given
    if role not in ROLES:
        raise ValueError(f"{name} has the role {given!r:.40}: choose one of {', '.join(ROLES)}")
    given_fields = {**{key: value for key, value in turn.items() if value is not None}, "role": role}
    if "content" in given_fields or role != "assistant" or not turn.get("tool_calls"):
        given_fields["content"] = _text(turn.get("content"), role, name)
    frozen: _FrozenDict = _frozen(given_fields, name)
    return frozen


def _text(content: object, role: str, name: str) -> str:
    """The text of a content, whose parts are put together as they stand."""
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    texts: list[str] = []
    for part in parts:
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) and kind == "text" else part
        if not isinstance(text, str):
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"{name} holds a part of type {kind!r}: only text is read, no images, sound or files")
            raise ValueError(f"{name}, of role {role!r}, has the content {content!r:.60}: give a text, or a list of "
                             'parts {"type": "text", "text": ...}')  # fmt: skip
        texts.append(text)
    whole = "".join(texts)
    if not whole and role in ("user", "system"):
        raise ValueError(f"{name}, of role {role!r}, is empty: leave it out")
    return whole


def _conversation_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as one text, for readers without a chat template.

    One user turn is its text, after what the system said; several turns say whose they are, and the text ends where
    the assistant's answer begins, or with the assistant's turn that is continued.
    """
    head = [turn["content"] for turn in messages if turn["role"] == "system"]
    said = [turn for turn in messages if turn["role"] != "system"]
    if len(said) == 1:
        return "\n\n".join([*head, said[0]["content"]])
    calls = [[call.get("function", call) for call in turn.get("tool_calls", ())] for turn in said]
    lines = [
        f"{turn['role'].capitalize()}: " + "\n".join(filter(None, [turn.get("content"), *map(json.dumps, made)]))
        for turn, made in zip(said, calls, strict=True)
    ]
    return "\n\n".join([*head, *lines, *([] if said[-1]["role"] == "assistant" else ["Assistant:"])])


@dataclass(frozen=True, slots=True)
class Step:
    r"""One sampled continuation: an edge of the search tree, as a `Generator` returns it.

    Attributes:
        text: The sampled text, its delimiter included, after the forced text if there is any; end-of-sequence tokens
            and stop strings are left out.
        token_ids: The ids of forced text and the sampled ones, end of sequence and stop string included; ``()`` when
            the generator cannot tell.
        logprob: Sum of the log-probabilities (nats) of the sampled tokens under the distribution they were drawn
            from; ``None`` when the generator cannot tell.
        confidence: Token-level confidence of the step, higher is surer; ``None`` when the generator cannot tell.
        finish_reason: Why sampling stopped, see `FinishReason`.
        inner_ends: Where the inner steps of a completion end, as ``(end in text, end in token_ids)`` pairs in
            order, the last one at the end of the text (ids after it are those of a stop string); ``()`` means that the
            whole step is one.
        flops: FLOPs of sampling this step (a multiply-add is 2), prompt included where it was charged to this step.
        prompt_tokens: Prompt and forced tokens charged to this step; a shared prompt is charged once.
        thought_tokens: Hidden thought tokens sampled for this step; they are not in `token_ids`.
        num_tokens: Sampled tokens where `token_ids` is not known or holds forced ids; ``None`` means
            ``len(token_ids)``.
        generator: Name of the generator that sampled it, where `solve` was given several; ``None`` for the only one.
        model_logprob: As `logprob`, under the model's own distribution: at temperature 1, without filters.
        sent_tokens: Tokens of the prompts that a server was sent for this step, the path and what was sent before
            included; ``None`` where the model is no server's. Not compared, as they depend on how it was asked.
        cached_tokens: Of `sent_tokens`, those that the server says it had in its cache. Not compared.

    Example:
        >>> import inferscale as isc
        >>> text, ids = "2 + 3 = 5\nThe answer is 5", (11, 12, 13, 14, 15, 16)
        >>> step = isc.Step(text, ids, finish_reason="eos", inner_ends=((10, 3), (25, 6)))
        >>> step.generated_tokens, [inner for inner, _ in step.inner_steps()]
        (6, ['2 + 3 = 5\n', 'The answer is 5'])
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    confidence: float | None = None
    finish_reason: FinishReason = "step"
    inner_ends: tuple[tuple[int, int], ...] = ()
    flops: int = 0
    prompt_tokens: int = 0
    thought_tokens: int = 0
    num_tokens: int | None = None
    generator: str | None = None
    model_logprob: float | None = None
    sent_tokens: int | None = field(default=None, compare=False)
    cached_tokens: int = field(default=0, compare=False)

    @property
    def generated_tokens(self) -> int:
        """Number of sampled tokens, end of sequence included."""
        return len(self.token_ids) if self.num_tokens is None else self.num_tokens

    def inner_steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return text and ids of each inner step, in order; steps of white space alone are joined to the next one."""
        if not self.inner_ends:
            return [(self.text, self.token_ids)] if self.text.strip() else []
        return [(self.text[a:b], self.token_ids[i:j]) for (a, b), (i, j) in self.inner_spans()]

    def inner_spans(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Return where each of `inner_steps` begins and ends, in the text and among the ids."""
        spans, text_start, id_start = [], 0, 0
        for text_end, id_end in self.inner_ends or ((len(self.text), len(self.token_ids)),):
            if self.text[text_start:text_end].strip():
                spans.append(((text_start, text_end), (id_start, id_end)))
                text_start, id_start = text_end, id_end
        return spans


def _within(step: Step, spans: Sequence[tuple[int, int]]) -> Step:
    """`step` without the characters outside of `spans`; its inner steps keep their borders."""
    text, ids, ends = "", (), []  # type: str, tuple[int, ...], list[tuple[int, int]]
    text_start = id_start = 0
    for text_end, id_end in step.inner_ends or ((len(step.text), len(step.token_ids)),):
        piece = "".join(step.text[max(start, text_start) : max(min(end, text_end), 0)] for start, end in spans)
        whole = len(piece) == text_end - text_start
        if piece.strip() or (piece and whole):  # of a step that is cut, no blank rest is left
            text += piece
            ids += step.token_ids[id_start:id_end] if whole else ()
            ends.append((len(text), len(ids)))
        text_start, id_start = text_end, id_end
    return replace(step, text=text, token_ids=ids, inner_ends=tuple(ends) if len(ends) > 1 else ())


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One leaf's path as a frozen record.

    Attributes:
        problem: The problem.
        steps: Steps of the path, first to last.
        step_scores: A process reward model's score of each step (one each for inner steps), or ``None``.
        answer: The answer read out of the text; ``None`` abstains. An unfinished path always abstains.
        score: The reward model's score of the whole, or ``None``.
        reader: What read the answer, if it has an equality of its own, which says which answers are the same; ``None``
            for a plain function.
        thinking: The markers of thoughts; ``None`` where they are not known, and the text tells.

    Example:
        >>> import inferscale as isc
        >>> result = isc.solve(isc.Problem("How many?", "2"), isc.RepeatedSampling(4), isc.testing.ToyGenerator())
        >>> trajectory = result.trajectories[1]
        >>> trajectory.answer, trajectory.is_correct, trajectory.text.splitlines()[-1]
        ('2', True, 'The answer is 2')
    """

    problem: Problem
    steps: tuple[Step, ...]
    step_scores: tuple[float, ...] | None = None
    answer: str | None = None
    score: float | None = None
    reader: AnswerReader | None = field(default=None, repr=False, compare=False)
    thinking: Thinking | None = None

    @property
    def text(self) -> str:
        """The solution, without the prompt."""
        return "".join(step.text for step in self.steps)

    @property
    def thoughts(self) -> str:
        """The thoughts in the solution; ``""`` if there are none."""
        return self.split()[0]

    def split(self) -> tuple[str, str]:
        """Return the thoughts, and all that follows the end of thinking: ``""`` if it never ended."""
        thoughts, rest = thinking_in(self.text, self.thinking).split(self.text)
        return thoughts, rest or ""

    @property
    def final_text(self) -> str | None:
        """The part that answers: what follows the end of thinking, up to where the model invents a next question.

        ``None`` for a solution that never leaves its thoughts.
        """
        return final_part(self.text, self.thinking)

    @property
    def is_finished(self) -> bool:
        """True if the path had ended."""
        return bool(self.steps) and self.steps[-1].finish_reason != "step"

    @property
    def is_failed(self) -> bool:
        """True if there is no usable text: nothing was sampled, nothing but white space, or an error."""
        return not self.steps or self.steps[-1].finish_reason in ("empty", "error")

    @property
    def is_cut(self) -> bool:
        """True if the text did not end by itself: cut by its length or a budget, or left unfinished by the search."""
        return bool(self.steps) and self.steps[-1].finish_reason in ("length", "budget", "step")

    @property
    def equality(self) -> AnswerReader:
        """The reader whose `same` tells when two answers to this problem are the same."""
        return equality_of(self.reader, self.problem.kind)

    @property
    def is_correct(self) -> bool | None:
        """True if the answer is the gold one, by the equality of its kind; ``None`` if the problem has no gold one."""
        if self.problem.answer is None:
            return None
        return self.answer is not None and self.equality.same(self.answer, self.problem.answer)

    @property
    def logprob(self) -> float | None:
        """Sum of the steps' log-probabilities, or ``None`` if one is not known."""
        values = [step.logprob for step in self.steps]
        return None if any(value is None for value in values) else float(sum(v for v in values if v is not None))


class UnscoredNodeError(AttributeError):
    r"""A score was read before a reward model gave one.

    Example:
        >>> import inferscale as isc
        >>> class Hasty(isc.SearchStrategy):
        ...     def search(self, root, rng):
        ...         children = yield from isc.expand([root], 2)
        ...         return [max(children, key=lambda child: child.score)]  # after `yield from isc.score(children)`
        >>> try:
        ...     isc.solve("How many?", Hasty(), isc.testing.ToyGenerator())
        ... except isc.UnscoredNodeError as error:
        ...     print(str(error).partition("> ")[2])
        has no score yet: write `yield from score(nodes)` before reading `node.score`
    """


class Node:
    """A prefix of a solution: the root, or a parent's prefix and one more `Step`.

    Nodes are made by the engine; strategies only read them. Two nodes are equal only if they are the same object:
    siblings with equal text are different samples.

    Attributes:
        problem: The problem that the tree belongs to.
        step: The step that leads here; ``None`` at the root.
        parent: The node before; ``None`` at the root.
        children: Nodes sampled from here, in the order of sampling; look-ahead is not among them.
        depth: Number of steps from the root.
        step_scores: A process reward model's score of each step of the path, or ``None``.
        stats: Numbers for people (visits, values); the library never reads them back.
        key: A 64-bit name of the path; random streams of samples from here derive from it.
        num_draws: Samples drawn from here so far, look-ahead included.
        thinking: The markers of thoughts; ``None`` where they are not known, and the text tells.
        side_notes: Prompts that the search asked beside its problem (`inferscale.flow.ask`), in order: each a root of
            its own, whose children are the replies. One list for the whole tree.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", isc.BeamSearch(2, 2), ToyGenerator(), reward_model=ToyProcessReward())
        >>> leaf = result.selected_leaf
        >>> leaf.depth, round(leaf.score, 2), [round(node.score, 2) for node in leaf.path]
        (4, 0.46, [0.68, 0.64, 0.21, 0.46])
        >>> sum(1 for node in leaf.root.walk()), len(leaf.root.leaves())
        (17, 4)
    """

    __slots__ = (
        *("_score", "children", "depth", "key", "num_draws", "parent", "problem", "side_notes", "stats", "step"),
        *("step_scores", "thinking"),
    )

    def __init__(
        self,
        problem: Problem,
        step: Step | None = None,
        parent: Node | None = None,
        key: int = 0,
        thinking: Thinking | None = None,
    ) -> None:
        self.problem = problem
        self.step = step
        self.parent = parent
        self.children: list[Node] = []
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.step_scores: tuple[float, ...] | None = None
        self.stats: dict[str, Any] = {}
        self.key = key
        self.num_draws = 0
        self.thinking: Thinking | None = thinking if parent is None else parent.thinking
        self.side_notes: list[Node] = [] if parent is None else parent.side_notes
        self._score: float | None = None

    @property
    def score(self) -> float:
        """The reward model's score; higher is better.

        Raises:
            UnscoredNodeError: If the node has no score yet.
        """
        if self._score is None:
            raise UnscoredNodeError(
                f"{self!r} has no score yet: write `yield from score(nodes)` before reading `node.score`"
            )
        return self._score

    @score.setter
    def score(self, value: float) -> None:
        self._score = value

    @property
    def is_scored(self) -> bool:
        """True if a reward model has scored this node."""
        return self._score is not None

    @property
    def is_finished(self) -> bool:
        """True if the path has ended: it cannot be expanded."""
        return self.step is not None and self.step.finish_reason != "step"

    @property
    def is_failed(self) -> bool:
        """True if the path ended without a usable sample (nothing but white space, or an error)."""
        return self.step is not None and self.step.finish_reason in ("empty", "error")

    @property
    def root(self) -> Node:
        """The node of the bare prompt."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    @property
    def path(self) -> list[Node]:
        """Nodes from the root's child to this one; ``[]`` for the root."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Steps of the path, first to last."""
        steps, node = [], self
        while node.parent is not None:  # every verb asks for them, so they are no list of nodes first
            if node.step is not None:
                steps.append(node.step)
            node = node.parent
        return tuple(reversed(steps))

    @property
    def text(self) -> str:
        """The solution so far, without the prompt."""
        texts, node = [], self
        while node.parent is not None:
            if node.step is not None:
                texts.append(node.step.text)
            node = node.parent
        texts.reverse()
        return "".join(texts)

    @property
    def thoughts(self) -> str:
        """The thoughts so far; ``""`` if there are none."""
        return thinking_in(self.text, self.thinking).thoughts(self.text)

    @property
    def final_text(self) -> str | None:
        """The part that answers: what follows the end of thinking, up to where the model invents a next question.

        ``None`` while thinking has not ended.
        """
        return final_part(self.text, self.thinking)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids along the path, sampled and forced, without the prompt."""
        return tuple(chain.from_iterable(step.token_ids for step in self.steps))

    def inner_steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return text and ids of every step of the solution, completions split where their inner steps end.

        Steps of white space alone are joined to the next one; a step has no ids if a part of it has none.
        """
        pieces: list[tuple[str, tuple[int, ...]]] = []
        blank: list[Step] = []  # steps of white space before the next one
        for step in self.steps:
            own = step.inner_steps()
            if not own:
                blank.append(step)
                continue
            if blank:
                text, ids = own[0]
                known = ids and all(before.token_ids for before in blank)
                ids = (*(token for before in blank for token in before.token_ids), *ids) if known else ()
                own[0], blank = ("".join(before.text for before in blank) + text, ids), []
            pieces += own
        return pieces

    def part(self, judge: Judge) -> Node:
        """Return the path as it would be if it held nothing but the part that is judged; itself, if that is the whole.

        ``"final"`` is `final_text`, ``"thoughts"`` is `thoughts`, and ``"all"`` is both with their markers. What comes
        after an invented next question is in none. Nodes are new, steps keep their borders, and a step without a
        character of the part is left out; a step that is cut inside has no ids. The path ends as this one does; where
        nothing is left, it has one step without text.
        """
        begun = self.problem.prefill
        if self.step is None or (spans := self._spans(judge)) == [(0, len(begun + self.text))]:
            return self
        kept_prefill = "".join(begun[start:end] for start, end in spans if start < len(begun))
        problem = self.problem if kept_prefill == begun else self.problem.continued(kept_prefill)
        thinking = thinking_in(begun + self.text, self.thinking) if judge == "all" else NO_THINKING
        root = node = Node(problem, key=self.root.key, thinking=thinking)
        place = len(begun)
        for step in self.steps:
            kept = _within(step, [(start - place, end - place) for start, end in spans])
            node = Node(problem, kept, node) if kept.text else node
            place += len(step.text)
        last = replace(node.step or Step(""), finish_reason=self.step.finish_reason)
        return Node(problem, last, node.parent or root)

    def steps_in(self, judge: Judge) -> list[bool]:
        """Return for each of ``part("all").inner_steps()`` whether it holds something of the part that is judged."""
        text, place = self.problem.prefill + self.text, len(self.problem.prefill)
        spans, found = self._spans(judge), []
        for step in self.part("all").steps:
            for (start, end), _ in step.inner_spans():
                here = (text[max(a, place + start) : max(min(b, place + end), 0)] for a, b in spans)
                found.append(any(piece.strip() for piece in here))
            place += len(step.text)
        return found

    def _spans(self, judge: Judge) -> list[tuple[int, int]]:
        """Start and end of each piece of the answer, what was begun of it included, that belongs to the part."""
        text = self.problem.prefill + self.text
        thinking = thinking_in(text, self.thinking)
        span = final_span(text, thinking)
        if judge == "final":
            return [] if span is None else [span]
        if judge == "thoughts":
            return [(start, end) for is_thought, start, end in thinking.pieces(text) if is_thought]
        goes_on = span is not None and span not in thinking.final_pieces(text)
        return [(0, span[1] if span is not None and goes_on else len(text))]

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below, parents first, children in the order of sampling."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def leaves(self) -> list[Node]:
        """Return the finished leaves below, or all leaves if none has finished: the one meaning of "best effort".

        A path whose further samples all failed ends before them; failed samples count only where nothing else is.
        """
        nodes = list(self.walk())
        ends = [n for n in nodes if n.step and not n.is_failed and all(child.is_failed for child in n.children)]
        return [n for n in ends if n.is_finished] or ends or [n for n in nodes if not n.children]

    def __repr__(self) -> str:
        """Depth, score and the last step's text."""
        score = "unscored" if self._score is None else f"score={self._score:.4g}"
        reason = "root" if self.step is None else self.step.finish_reason
        text = self.problem.prompt if self.step is None else self.step.text
        return f"<Node depth={self.depth} {score} {reason} {text[:40]!r}>"


# Keys name random streams. That of a sample is a hash of its parent's key and of its number among all draws from that
# parent, so it depends on the seed, the problem and the path alone: not on the batch, on the order in which nodes are
# expanded, or on what other nodes were sampled. Blake2b rather than `hash`, which Python salts anew in each process.


def branch_key(parent_key: int, draw: int) -> int:
    """Return the 64-bit key of the `draw`-th sample from the node with `parent_key`.

    Example:
        >>> from inferscale.tree import branch_key, root_key
        >>> root = root_key("0/How many?")
        >>> first, second = branch_key(root, 0), branch_key(root, 1)  # the streams of the first two samples
        >>> first != second, first == branch_key(root_key("0/How many?"), 0)
        (True, True)
    """
    return int.from_bytes(blake2b(b"%d/%d" % (parent_key, draw), digest_size=8).digest(), "little")


def root_key(stream: str) -> int:
    """Return the 64-bit key of a problem's root, from ``f"{seed}/{problem.stream}"``.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.tree import branch_key, root_key
        >>> result = isc.solve("How many?", isc.Greedy(), isc.testing.ToyGenerator(), seed=3)
        >>> result.root.key == root_key("3/How many?")
        True
        >>> result.root.children[0].key == branch_key(result.root.key, 0)
        True
    """
    return int.from_bytes(blake2b(stream.encode(), digest_size=8).digest(), "little")


__all__ = [
    "FinishReason",
    "Judge",
    "Node",
    "Problem",
    "Step",
    "Trajectory",
    "UnscoredNodeError",
    "branch_key",
    "root_key",
]
