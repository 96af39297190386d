"""What a server supports, found out by small requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from ._remote_replies import Reply
from ._remote_retry import Patience, RemoteError
from ._remote_server import Prefix, Server

T = TypeVar("T")

Stops: TypeAlias = Literal["kept", "ignored", "hidden"]
"""Whether the text of a sample holds the stop string that ended it, goes on after it, or ends before it."""

FIRST_CONTACT = 30.0  # seconds: a wrong address should not look like a busy server for a quarter of an hour
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
_CHARACTERS = 64
_IDS = 16


class Support:
    """What a server supports beyond plain requests.

    Each thing is tried once, when it is first needed, with the first problem's prompt; what is refused or has no
    effect is not sent again.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.RLock()
        self._known: dict[str, Any] = {}
        self._prefix = Prefix("")

    def contact(self, prompt: str) -> Reply:
        """The answer to a first, plain request, made once.

        Raises:
            RemoteError: If the server cannot be reached within `FIRST_CONTACT` seconds, or refuses the request.
        """
        return self._once("contact", partial(self._first_reply, prompt))

    def _first_reply(self, prompt: str) -> Reply:
        self._prefix = Prefix(prompt[:_CHARACTERS])
        patience = replace(self._server.patience, deadline=min(self._server.patience.deadline, FIRST_CONTACT))
        try:
            return self._ask(8, patience=patience)
        except RemoteError as error:
            if not self._server.chat or error.kind != "refused":
                raise
            self._server.length_field = "max_completion_tokens"  # what newer models of OpenAI ask for
            return self._ask(8, patience=patience)

    @property
    def seeds(self) -> bool:
        """Whether a request may hold a seed."""
        return self._once("seeds", lambda: self._served(1, seed=1) is not None)

    @property
    def samples(self) -> bool:
        """Whether a high temperature makes two texts differ."""
        return self._once("samples", self._find_samples)

    def _find_samples(self) -> bool:
        replies = [self._served(16, temperature=2.0) for _ in range(2)]
        return len({reply.choices[0].text for reply in replies if reply is not None}) != 1

    def many(self, seeded: bool) -> bool:
        """Whether one request with ``n`` gives what one request for each sample gives.

        The i-th choice of a seeded request must be that of a request with the seed plus i (vLLM's rule); where equal
        seeds do not give equal texts, or none are sent, any ``n`` choices will do.
        """
        return self._once("many", lambda: self._find_many(seeded and self.seeds))

    def _find_many(self, seeded: bool) -> bool:
        def texts(n: int | None, seed: int) -> list[str]:
            reply = self._served(8, temperature=1.5, n=n, seed=seed if seeded else None)
            return [] if reply is None else [choice.text for choice in reply.choices]

        together = texts(2, 1)
        if len(together) != 2 or not seeded:
            return len(together) == 2
        alone = texts(None, 1)
        return together == alone + texts(None, 2) or alone != texts(None, 1)

    @property
    def stops(self) -> Stops:
        """What a server that does not name the stop string does with it."""
        return self._once("stops", self._find_stops)

    def _find_stops(self) -> Stops:
        first = self._known["contact"].choices[0]
        stop = next((c for i, c in enumerate(first.text[:-1]) if i == first.text.find(c) > 0 and c.strip()), None)
        if first.tells_stop or stop is None:
            return "hidden"
        reply = self._served(8, stop=[stop])
        if reply is None or stop not in reply.choices[0].text:
            return "hidden"
        return "ignored" if reply.choices[0].text == first.text else "kept"

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities of the sampled tokens are returned."""
        return self._once("logprobs", self._find_logprobs)

    def _find_logprobs(self) -> bool:
        reply = self._served(1, logprobs=self._server.logprobs_field)
        return reply is not None and reply.choices[0].logprobs is not None

    def ids(self, prompt: tuple[int, ...], decode: Callable[[Sequence[int], bool], str]) -> bool:
        """Whether prompts may be ids, such as `prompt`, and the ids of the sampled tokens are returned.

        Raises:
            ValueError: If `decode` makes another text of these ids than the server does.
        """
        return self._once("ids", partial(self._find_ids, prompt[:_IDS], decode))

    def _find_ids(self, prompt: tuple[int, ...], decode: Callable[[Sequence[int], bool], str]) -> bool:
        reply = self._served(8, Prefix("", ids=prompt), return_token_ids=True)
        if reply is None or reply.prompt_tokens not in (None, len(prompt)):  # read as so many prompts
            return False
        choice = reply.choices[0]
        theirs, ours = (_visible(text) for text in (choice.text, decode(choice.token_ids or (), True)))
        if not theirs.startswith(ours) and not ours.startswith(theirs):
            raise ValueError(f"the tokenizer reads {ours!r} where the server wrote {theirs!r}: pass the model's own")
        return True

    @property
    def continuing(self) -> bool:
        """Whether a begun answer is gone on with: always, but for chats that open another turn."""
        return not self._server.chat or self._once("continuing", self._find_continuing)

    def _find_continuing(self) -> bool:
        begun = replace(self._prefix, answer="So")
        further, anew = self._served(1, begun, **CONTINUE), self._served(1, begun)
        if further is None or anew is None:
            return further is not None
        # A server that overlooks the fields reads the same prompt in both: the end of the turn, and a new one.
        return (further.prompt_tokens or 0) < (anew.prompt_tokens or 0)

    def _once(self, name: str, find: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._known:
                self._known[name] = find()
            known: T = self._known[name]
            return known

    def _ask(
        self,
        max_tokens: int,
        prefix: Prefix | None = None,
        temperature: float = 0.0,
        patience: Patience | None = None,
        **fields: Any,
    ) -> Reply:
        body = self._server.fields(prefix or self._prefix, max_tokens, temperature, **fields)
        reply = self._server.ask(body, patience=patience)
        self._server.count(probe_tokens=reply.generated_tokens or 0)
        return reply

    def _served(self, max_tokens: int, prefix: Prefix | None = None, **options: Any) -> Reply | None:
        """The answer to a probe; ``None`` if it is not served."""
        try:
            return self._ask(max_tokens, prefix, **options)
        except RemoteError as error:
            if error.kind in ("busy", "denied"):
                raise
            return None


def _visible(text: str) -> str:
    """`text` without what decoders treat differently: white space, and characters that are not complete."""
    return "".join(text.replace("\ufffd", "").split())
