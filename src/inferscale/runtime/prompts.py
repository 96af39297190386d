"""From problems to token ids: plain texts and chats, in which control tokens that somebody spelled stay text.

A prompt, a turn or a solution is data: whoever writes ``<|im_end|>`` or a step tag into it gets letters, and the turn
goes on. Every generator and reward model encodes with the classes of this file, so there is one such guard.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias, get_args

from inferscale.thinking import FORMS, Thinking, form_of
from inferscale.tree import Problem

Ids: TypeAlias = tuple[int, ...]
ControlTokens: TypeAlias = Literal["text", "refuse", "keep"]
"""The fate of control tokens that a prompt spells: letters, an error, or the tokens themselves."""

_CONTROL = re.compile(r"<[|｜].+[|｜]>|\[/?[A-Z][A-Z_]*\]|</?s>")
"""Added tokens that look like the marks of turns, whether or not the tokenizer calls them special."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # noncharacters of Unicode: around a control token on its way through a template
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]+){_CLOSE}|[{_OPEN}{_CLOSE}]")

_NEUTRAL = (("\n", "a", "."), ("a", "."))
"""Texts that tokenizers do not merge with what follows them, for what starts without and with white space."""

_PROBE = "What is 2 + 2?"


class TagError(ValueError):
    """A tokenizer does not have a tag as the format says."""


class TextEncoder:
    """Encodes pieces of text so that control tokens and step tags written in them stay text.

    Attributes:
        tokenizer: The tokenizer.
        specials: Ids of control tokens.
    """

    def __init__(self, tokenizer: Any, tags: Sequence[str] = ()) -> None:
        """Learn the control tokens of a tokenizer.

        Args:
            tokenizer: The tokenizer.
            tags: Further texts of one token each that nobody may write.

        Raises:
            TagError: If a tag is not one token.
        """
        self.tokenizer = tokenizer
        self.specials = frozenset(getattr(tokenizer, "all_special_ids", ()))
        added = {word: place for word, place in _added(tokenizer).items() if not word.isspace()}
        marks = {word for word in added if _CONTROL.fullmatch(word)} | {tag.strip() for tag in tags if tag.strip()}
        marks |= set(tokenizer.all_special_tokens)
        self._guarded = self.specials | {added[word] for word in marks & set(added)}
        self._guarded |= {self.one_id(tag) for tag in tags if tag.strip()}
        self._guarded -= {getattr(tokenizer, "unk_token_id", None)}  # of letters that it does not know
        template = str(getattr(tokenizer, "chat_template", None) or "")
        self._marks = _pattern(marks)
        # Turns of others do not open a tool call or end a thought either; an assistant's turn holds both by right.
        self._all_marks = _pattern(marks | {word for word in added if word in template})
        self.plain = lru_cache(maxsize=65536)(self._plain)
        self.continued = lru_cache(maxsize=65536)(self._continued)
        self.forced = lru_cache(maxsize=4096)(self._forced)
        self.template = lru_cache(maxsize=64)(self._template)

    def spelled(self, data: Any, role: str = "user") -> list[str]:
        """Control tokens that a text or a turn spells; in an assistant's turn those alone that could end it."""
        pattern, found = self._marks if role == "assistant" else self._all_marks, list[str]()

        def look(text: str) -> str:
            found.extend([] if pattern is None else pattern.findall(text))
            return text

        _mapped(data, look)
        return found

    def spaced(self, data: Any, role: str = "user") -> Any:
        """A text, or the texts of a turn, with a space in every control token, for servers that read text."""
        pattern = self._marks if role == "assistant" else self._all_marks
        return _mapped(data, lambda text: " ".join(_cut(pattern, text)))

    def raw(self, text: str) -> Ids:
        """Ids of a text on its own, control tokens as tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def added(self, text: str = "a") -> tuple[Ids, Ids]:
        """Ids that the tokenizer puts before and after a text: beginning and end of sequence, if any."""
        word, whole = self.raw(text), tuple(self.tokenizer(text)["input_ids"])
        start = next((i for i in range(len(whole)) if whole[i : i + len(word)] == word), 0)
        return whole[:start], whole[start + len(word) :]

    def _template(self, system_prompt: str | None) -> ChatTemplate:
        """The tokenizer's chat template with a system turn for conversations that have none."""
        return ChatTemplate(self, system_prompt)

    def _plain(self, text: str) -> Ids:
        """Ids of a text that is tokenised alone."""
        ids = self.raw(text)
        return ids if self._guarded.isdisjoint(ids) else self._as_letters(text, alone=True)

    def _continued(self, text: str, after: str | None = None) -> Ids:
        """Ids that `text` has where it follows `after` in a text that is tokenised as a whole.

        Args:
            text: The text.
            after: What stands before it; by default something that merges with no text of its kind.

        Raises:
            ValueError: If the tokenizer merges the two.
        """
        if not text:
            return ()
        ids = self._after(text, [after] if after is not None else _NEUTRAL[text[0].isspace()])
        if ids is None and after is not None:
            raise ValueError(f"this tokenizer merges {after!r} with the start of {text[:40]!r}: strip the text")
        ids = self.raw(text) if ids is None else ids
        return ids if self._guarded.isdisjoint(ids) else self._as_letters(text)

    def _forced(self, text: str) -> Ids:
        """Ids that say `text`, and no space more, wherever they are put; control tokens are tokens.

        The first that decodes to the text after a letter: that of the text alone, or after another one. (Alone, a
        tokenizer in the manner of sentencepiece puts a space before it.)
        """
        alone, letter = self.raw(text), self.raw("a")
        wanted = self._decoded(letter) + text
        for head in (None, *_NEUTRAL[text[:1].isspace()]):
            ids = alone if head is None else self._after(text, [head])
            if ids and self._decoded(letter + ids) == wanted:
                return ids
        return alone

    def _decoded(self, ids: Ids) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _after(self, text: str, before: Sequence[str]) -> Ids | None:
        """Ids of `text` after the first of `before` that does not merge with it."""
        for head in before:
            start, whole = self.raw(head), self.raw(head + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return None

    def one_id(self, text: str) -> int:
        """The id of `text`, written as it stands in running text (``" +"`` where a space is before it).

        Raises:
            TagError: If the tokenizer splits it.
        """
        ids = self._after(text, _NEUTRAL[text[0].isspace()]) or self.raw(text)
        if len(ids) != 1:
            raise TagError(f"the tag {text!r} is {len(ids)} tokens in this tokenizer, {list(ids)}, and must be one")
        return ids[0]

    def marked(self, data: Any, role: str) -> Any:
        """Texts of a turn with noncharacters around every control token that they spell; see `rendered`."""
        pattern = self._marks if role == "assistant" else self._all_marks

        def mark(text: str) -> str:
            clean = text.replace(_OPEN, "").replace(_CLOSE, "")
            return clean if pattern is None else pattern.sub(rf"{_OPEN}\g<0>{_CLOSE}", clean)

        return _mapped(data, mark)

    def rendered(self, text: str) -> Ids:
        """Ids of what a template made of marked turns: its own control tokens are tokens, marked ones are letters."""
        first, *others = _MARKED.split(text)  # text, marked word or None, text, ...
        ids = self.raw(first)
        for place, piece in enumerate(others):
            if not piece:
                continue
            ids += self._as_letters(piece) if place % 2 == 0 else self._inside(piece)
        return ids

    def _inside(self, piece: str) -> Ids:
        """Ids that a piece has in the middle of a text, control tokens as tokens."""
        return self._after(piece, _NEUTRAL[piece[0].isspace()]) or self.raw(piece)

    def _as_letters(self, text: str, alone: bool = False) -> Ids:
        """Ids of `text` with every control token cut after its first letter.

        Args:
            text: A text that spells control tokens.
            alone: True if nothing stands before it.

        Raises:
            ValueError: If the tokenizer makes the token of its letters too.
        """
        first, *others = _cut(self._all_marks, text)
        ids = self.raw(first) if alone else self._inside(first)
        ids += tuple(i for piece in others for i in self._inside(piece))
        if not self._guarded.isdisjoint(ids):
            raise ValueError(
                f"{text[:80]!r} spells a control token that this tokenizer cannot write as text: remove it"
            )
        return ids


def _added(tokenizer: Any) -> dict[str, int]:
    """Added tokens and their ids; a tokenizer of one's own need not have any."""
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    return added


def _mapped(data: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it changed."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {key: _mapped(value, change) for key, value in data.items()}
    return [_mapped(value, change) for value in data] if isinstance(data, list) else data


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(set(words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _cut(pattern: re.Pattern[str] | None, text: str) -> list[str]:
    """Pieces of `text`, cut after the first letter of every match."""
    places = [] if pattern is None else [match.start() + 1 for match in pattern.finditer(text)]
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


class ChatTemplate:
    """Renders conversations with a tokenizer's chat template.

    A conversation without a system turn gets `system_prompt` as its own, if there is one; one that has a system turn
    keeps it. Where the template has no place for a system turn (it refuses or drops it), its text stands at the head of
    the first user turn, a blank line before what the user says.

    Attributes:
        text: Encodes.
        system_prompt: The system turn of conversations that have none.
        control_tokens: What becomes of control tokens that a turn spells.
    """

    def __init__(
        self,
        text: TextEncoder,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        control_tokens: ControlTokens = "text",
    ) -> None:
        """Check the options against the template; see `PromptFormat.choose`.

        Raises:
            ValueError: If there is no template, or it never mentions an option.
        """
        tokenizer = text.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this is a chat, but the tokenizer has no chat template: it is another model's, or "
                             "tokenizer.chat_template is to be set")  # fmt: skip
        self.text = text
        self.system_prompt = system_prompt
        self.control_tokens = control_tokens
        self._tools = list(tools) if tools else None
        self._kwargs = dict(chat_template_kwargs or {})
        _check_template_names(tokenizer, self._kwargs, self._tools)

    def ids(self, turns: Sequence[Mapping[str, Any]], end: Literal["open", "continue", "closed"] = "open") -> Ids:
        """Ids of a conversation.

        Args:
            turns: Dictionaries with ``"role"`` and ``"content"``.
            end: ``"open"`` ends where the assistant's turn begins, ``"continue"`` within the last turn, ``"closed"``
                after it.

        Raises:
            ValueError: If the template refuses the conversation, or a control token in it is to be refused.
        """
        guarded = self._guarded(self._placed(turns))
        begun = guarded[-1]["content"] if end == "continue" else ""
        form = form_of(begun)
        if form is None or not form.start or not begun.lstrip().startswith(form.start):
            return self.text.rendered(self._render(guarded, end))
        # Templates put closed, empty thoughts before an answer in which they see none that have ended (Qwen3), or take
        # thoughts off. An answer that begins with its own follows where the assistant's turn begins.
        head = self._render(guarded[:-1], "open")
        bare = head.rstrip()
        return self.text.rendered((bare.removesuffix(form.start) if bare.endswith(form.start) else head) + begun)

    def _placed(self, turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The turns with the system's where the template can read it."""
        placed = list(turns)
        if self.system_prompt is not None and all(turn["role"] != "system" for turn in turns):
            placed.insert(0, {"role": "system", "content": self.system_prompt})
        system = [turn["content"] for turn in placed if turn["role"] == "system"]
        if not system or self.reads_system:
            return placed
        placed = [turn for turn in placed if turn["role"] != "system"]
        first = next(place for place, turn in enumerate(placed) if turn["role"] == "user")
        placed[first] = {**placed[first], "content": "\n\n".join([*system, placed[first]["content"]])}
        return placed

    @cached_property
    def reads_system(self) -> bool:
        """True if the template has a place for a system turn."""
        asked = {"role": "user", "content": "question"}
        try:
            return "instruction" in self._render([{"role": "system", "content": "instruction"}, asked], "open")
        except ValueError:
            return False

    def _guarded(self, turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The turns with their control tokens marked, or refused."""
        if self.control_tokens == "keep":
            return list(turns)
        if self.control_tokens == "refuse":
            for turn in turns:
                refuse_control_tokens(self.text.spelled(turn, turn["role"]), f"the {turn['role']} turn")
        return [{**self.text.marked(turn, turn["role"]), "role": turn["role"]} for turn in turns]

    def _render(self, turns: Sequence[Mapping[str, Any]], end: str) -> str:
        import jinja2

        try:
            rendered: str = self.text.tokenizer.apply_chat_template(
                list(turns),
                tools=self._tools,
                add_generation_prompt=end == "open",
                continue_final_message=end == "continue",
                tokenize=False,
                **self._kwargs,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise ValueError(f"the chat template refuses this conversation ({roles}): {error}") from error
        return rendered


def refuse_control_tokens(spelled: Sequence[str], where: str) -> None:
    """Raise a ValueError that names the first control token that `where` spells, if it spells any."""
    if spelled:
        raise ValueError(
            f'{where} spells the control token {spelled[0]!r}, and control_tokens="refuse": remove it, or choose '
            '"text" to read it as letters'
        )


def tool_schemas(tools: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Return tools as JSON schemas; a function's is made of its type hints and docstring, by transformers.

    Raises:
        ValueError: If one is neither a schema nor a documented function.
    """
    schemas: list[Mapping[str, Any]] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(dict(tool))
            continue
        from transformers.utils.chat_template_utils import get_json_schema

        try:
            schemas.append(get_json_schema(tool))
        except Exception as error:
            raise ValueError(f"tools holds {tool!r:.80}, which is no JSON schema and no function with type hints and a "
                             f"docstring: {error}") from error  # fmt: skip
    return schemas


def _check_template_names(tokenizer: Any, kwargs: Mapping[str, Any], tools: Sequence[Any] | None) -> None:
    """Raise a ValueError for options that the template never mentions: it would go on as if they were not there."""
    reserved = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"documents", "kwargs"}
    if taken := sorted(reserved & set(kwargs)):
        raise ValueError(f"chat_template_kwargs holds {taken[0]!r}, which is no variable of a template: leave it out")
    if not kwargs and not tools:
        return
    words = set(re.findall(r"\w+", str(tokenizer.get_chat_template(None, tools))))
    for name in [*kwargs, *(["tools"] if tools else [])]:
        if name not in words:
            near = difflib.get_close_matches(name, words, 1)
            what = "tools=[...]" if name == "tools" else f"chat_template_kwargs={{{name!r}: ...}}"
            raise ValueError(
                f"{what}: this tokenizer's chat template never mentions {name}, so nothing would change"
                + (f" (it has {near[0]})" if near else "")
                + ": leave it out"
            )


@dataclass(frozen=True)
class PromptFormat:
    """Problems as ids: plain text, or the turns of a chat.

    Attributes:
        text: Encodes texts.
        template: Renders conversations; ``None`` takes prompts as they are.
        chat: True if the chat template is used.
        system_prompt: The system turn of conversations that have none.
        control_tokens: What becomes of control tokens that a prompt spells.
        options: The template's variables and tools, as JSON.
    """

    text: TextEncoder
    template: ChatTemplate | None
    chat: bool
    system_prompt: str | None
    control_tokens: ControlTokens
    options: str

    @classmethod
    def choose(
        cls,
        tokenizer: Any,
        chat_template: bool | None,
        system_prompt: str | None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        control_tokens: ControlTokens | None = None,
    ) -> PromptFormat:
        """The chat template where the tokenizer has one, unless told otherwise.

        Args:
            tokenizer: The tokenizer.
            chat_template: True for the chat template, False for plain text; by default whether there is one.
            system_prompt: The system turn of conversations that have none.
            chat_template_kwargs: Variables of the template, such as ``{"enable_thinking": False}``.
            tools: What the model may call, as JSON schemas or documented functions, for the template.
            control_tokens: What becomes of control tokens that a prompt spells: ``"text"`` reads them as letters,
                ``"refuse"`` raises, ``"keep"`` lets them be tokens. By default ``"text"`` in chats, and ``"keep"`` in
                plain prompts, which may be chats that are rendered already.

        Raises:
            ValueError: If a chat template is asked for (or needed by an option) and there is none, or it never mentions
                an option.
        """
        has_template = bool(getattr(tokenizer, "chat_template", None))
        chat = has_template if chat_template is None else chat_template
        if chat and not has_template:
            raise ValueError("chat_template=True, but this tokenizer has no chat template: set tokenizer.chat_template")
        given = {"system_prompt": system_prompt, "chat_template_kwargs": chat_template_kwargs, "tools": tools}
        if not chat and (needy := [name for name, value in given.items() if value is not None]):
            raise ValueError(f"{needy[0]} needs a chat template: put the text into the problem's prompt instead")
        if control_tokens is not None and control_tokens not in get_args(ControlTokens):
            raise ValueError(f'control_tokens={control_tokens!r}: choose "text", "refuse" or "keep"')
        text = TextEncoder(tokenizer)
        policy = control_tokens or ("text" if chat else "keep")
        schemas = None if tools is None else tool_schemas(tools)
        template = ChatTemplate(text, system_prompt, chat_template_kwargs, schemas, policy) if chat else None
        options = json.dumps([chat_template_kwargs or {}, schemas or []], sort_keys=True, default=str)
        return cls(text, template, chat, system_prompt, policy, options)

    def thinking(self) -> Thinking | None:
        """The markers of thoughts that chat template or vocabulary show; ``None`` if neither does."""
        tokenizer = self.text.tokenizer
        template = getattr(tokenizer, "chat_template", None) or ""
        template = template.get("default", "") if isinstance(template, dict) else template
        form = form_of(template)
        if form is None or not self.chat:
            added = _added(tokenizer)
            return form or next((form for form in FORMS if form.start in added and form.end in added), None)
        rendered = tokenizer.decode(list(self.encode(_PROBE)), skip_special_tokens=False)
        return form.after(rendered[max(rendered.rfind(_PROBE), 0) :])

    def encode(self, problem: Problem | str, answer: str | None = None) -> Ids:
        """Ids of a problem (and of a whole `answer`), with the special tokens that tokenizer or template add.

        Without `answer` they end where the answer begins, or goes on. Without a template a conversation is its text.

        Raises:
            ValueError: If that gives no ids, or the template or the guard refuses the problem.
        """
        problem = Problem(problem) if isinstance(problem, str) else problem
        if self.template is None:
            ids = self._plain(problem.prompt) if answer is None else self._answered(problem.prompt, answer)
        elif answer is None:
            ids = self.template.ids(problem.turns, "continue" if problem.prefill else "open")
        else:
            whole = {"role": "assistant", "content": problem.prefill + answer}
            ids = self.template.ids([*problem.question.turns, whole], "closed")
        if not ids:
            raise ValueError(f"the prompt {problem.prompt[:80]!r} has no tokens: nothing to continue")
        return ids

    def forced(self, text: str, marks: Sequence[str]) -> Ids:
        """Ids of what a search puts into an answer: `marks` are tokens, so that it can end thoughts.

        Another control token stays text: a search may repeat what an answer, and so a user, has spelled.
        """
        if self.control_tokens == "keep" or not self.text.spelled(text, "assistant"):
            return self.text.forced(text)
        pieces = re.split("|".join(f"({re.escape(mark)})" for mark in marks if mark) or "(?!)", text)
        return tuple(
            i
            for piece in pieces
            if piece
            for i in (self.text.forced(piece) if piece in marks else self.text.continued(piece))
        )

    def _plain(self, prompt: str) -> Ids:
        spelled = self.text.spelled(prompt) if self.control_tokens != "keep" else []
        if self.control_tokens == "refuse":
            refuse_control_tokens(spelled, "the prompt")
        ids = tuple(self.text.tokenizer(prompt)["input_ids"])
        if spelled:
            before, after = self.text.added(prompt)
            return before + self.text.rendered(self.text.marked(prompt, "user")) + after
        # A prompt that is rendered already begins with what the tokenizer adds once more, one token or two.
        bos = getattr(self.text.tokenizer, "bos_token_id", None)
        head = self.text.added(prompt)[0] or (() if bos is None else (bos,))
        return ids[len(head) :] if head and ids[: 2 * len(head)] == head + head else ids

    def _answered(self, prompt: str, answer: str) -> Ids:
        """Ids of a prompt and the solution after it, in which control tokens are letters whatever the prompt may."""
        if self.control_tokens == "keep" and not self.text.spelled(answer, "assistant"):
            return self._plain(prompt + answer)
        after = self.text.added(prompt)[1]
        head = self._plain(prompt)
        return head[: len(head) - len(after)] + self.text.continued(answer) + after
