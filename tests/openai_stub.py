"""A server on loopback that speaks OpenAI's protocol over a toy language, and can misbehave in many ways."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any, Protocol

from inferscale.testing import unit_hash

Misbehaviour = Callable[[dict[str, Any], int], Any]


class Language(Protocol):
    """Tokens and what follows them."""

    eos: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def next(self, ids: list[int], noise: str) -> int: ...


class Letters:
    """One token a character: lines of letters (some empty), and on the fourth line the answer.

    The next letter is a hash of the text and of `noise`.
    """

    eos = 3
    goal = "The answer is "

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i != self.eos)

    def next(self, ids: list[int], noise: str) -> int:
        text = self.decode(ids)
        u = unit_hash(f"{text}|{noise}")
        if self.goal in text:
            return self.eos if text.rpartition(self.goal)[2] else 48 + int(u * 4)
        if text.count("\n") < 3:
            return ord("\n") if u < 0.2 else 97 + int(u * 26)
        return ord(self.goal[len(text.rpartition("\n")[2])])


class LetterTokenizer:
    """`Letters` as a tokenizer."""

    eos_token_id = Letters.eos
    chat_template = None
    all_special_tokens = ("<eos>",)

    def __len__(self) -> int:
        return 128

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": Letters().encode(text)}

    def decode(self, ids: list[int], **options: Any) -> str:
        return Letters().decode(ids)


@dataclass
class Reset:
    """Cuts the connection; `sent` is the share of the answer that goes out before."""

    sent: float = 0.0


@dataclass
class Hang:
    """Says nothing until the client hangs up."""


@dataclass
class Raw:
    """Answers with this status, body and headers."""

    status: int
    body: str = '{"error": {"message": "no", "code": null}}'
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Stub:
    """What the server can do, and what it does wrong.

    Attributes:
        n: ``"rule"`` (choice i has the seed plus i), ``"same"`` (all have the seed), ``"other"`` or ``"ignored"``.
        stops: ``"told"`` (cut off and named), ``"cut"``, ``"kept"`` or ``"ignored"``.
        usage: True counts the tokens of all choices, ``"first"`` those of the first (llama.cpp), ``"few"`` one of them.
        caches: The part of every prompt that it says it had in its cache.
        ids: True takes ids.
        hides_stop_tokens: True leaves tokens of stop strings out of the log-probabilities (llama.cpp).
        models: Names that it lists.
        length_field: The name of the most tokens of a sample; no other is taken.
        fields: Fields beyond the plain protocol that it takes; others are refused if `strict`, else overlooked.
        misbehave: Given a request and how often the same one came before: a `Reset`, `Hang`, `Raw`, a function that
            changes the answer, or ``None`` to behave.
        hung_up: Clients that did not wait for the end of a `Hang`.
    """

    language: Language = field(default_factory=Letters)
    n: str = "rule"
    stops: str = "told"
    length_field: str = "max_tokens"
    fields: frozenset[str] = frozenset({"seed", "logprobs", "return_token_ids", "continue_final_message"})
    strict: bool = True
    usage: bool | str = True
    caches: float | None = None
    ids: bool = True
    hides_stop_tokens: bool = False
    models: tuple[str, ...] = ("toy",)
    samples: bool = True
    context: int = 4096
    key: str | None = None
    delay: float = 0.0
    misbehave: Misbehaviour = lambda body, before: None
    requests: list[dict[str, Any]] = field(default_factory=list)
    hung_up: int = 0
    busy: int = 0
    most_busy: int = 0
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def count(self, change: int) -> None:
        with self._lock:
            self.busy += change
            self.most_busy = max(self.busy, self.most_busy)

    def note(self, body: dict[str, Any]) -> int:
        """Writes the request down; how often the same one came before."""
        with self._lock:
            self.requests.append(body)
            name = json.dumps(body, sort_keys=True)
            self._seen[name] += 1
            return self._seen[name] - 1

    def answer(self, body: dict[str, Any], chat: bool) -> tuple[int, dict[str, Any]]:
        plain = {"model", "prompt", "messages", self.length_field, "temperature", "top_p", "n", "stop"}
        unknown = set(body) - plain - self.fields - {"add_generation_prompt"}
        if unknown and self.strict:
            return 422, {"error": {"message": f"unexpected fields {sorted(unknown)}", "code": None}}
        if self.length_field not in body:
            return 400, {"error": {"message": f"use '{self.length_field}' instead", "code": "unsupported_parameter"}}
        body = {**body, "max_tokens": body[self.length_field]}
        ids = self._prompt(body, chat)
        if ids is None:
            return 400, {"error": {"message": "prompt must be a string", "code": None}}
        if len(ids) + body["max_tokens"] > self.context:
            message = f"This model's maximum context length is {self.context} tokens"
            return 400, {"error": {"message": message, "code": "context_length_exceeded"}}
        count = 1 if self.n == "ignored" else body.get("n", 1)
        choices = [self._choice(body, ids, index, chat) for index in range(count)]
        counts = [choice.pop("sampled") for choice in choices]
        sampled = {"first": counts[0], "few": min(counts[0], 1)}.get(str(self.usage), sum(counts))
        usage = {"prompt_tokens": len(ids), "completion_tokens": sampled, "total_tokens": len(ids) + sampled}
        if self.caches is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": int(self.caches * len(ids))}
        return 200, {"object": "x", "choices": choices[::-1], "usage": usage if self.usage else None}

    def _prompt(self, body: dict[str, Any], chat: bool) -> list[int] | None:
        if chat:
            text = "".join(f"[{turn['role']}]{turn['content']}" for turn in body["messages"])
            goes_on = body.get("continue_final_message") and "continue_final_message" in self.fields
            return self.language.encode(text if goes_on else text + "[end][assistant]")
        if isinstance(body["prompt"], str):
            return self.language.encode(body["prompt"])
        return list(body["prompt"]) if self.ids else None

    def _noise(self, body: dict[str, Any], index: int) -> str:
        penalty = body.get("repetition_penalty", 1) if "repetition_penalty" in self.fields else 1
        tail = "" if penalty == 1 else f"/{penalty}"
        only_likeliest = body.get("min_p") == 1 and "min_p" in self.fields
        if body["temperature"] < 0.1 or not self.samples or only_likeliest:
            return "greedy" + tail
        if "seed" not in body or "seed" not in self.fields:
            return f"{len(self.requests)}/{index}{tail}"
        return (
            tail
            + {
                "rule": f"{body['seed'] + index}",
                "ignored": f"{body['seed']}",
                "same": f"{body['seed']}",
                "other": f"{body['seed']}" + f"/{index}" * bool(index),
            }[self.n]
        )

    def _choice(self, body: dict[str, Any], prompt: list[int], index: int, chat: bool) -> dict[str, Any]:
        noise, ids, stop, reason = self._noise(body, index), [], None, "length"
        while len(ids) < body["max_tokens"]:
            ids.append(self.language.next(prompt + ids, noise))
            text = self.language.decode(ids)
            stop = next((s for s in body.get("stop") or [] if s in text), None) if self.stops != "ignored" else None
            if stop is not None or ids[-1] == self.language.eos:
                reason = "stop"
                break
        text = self.language.decode(ids)
        if stop is not None:
            text = text[: text.index(stop)] + (stop if self.stops == "kept" else "")
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "sampled": len(ids)}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if self.stops == "told":
            choice["stop_reason"] = stop
        if body.get("return_token_ids") and "return_token_ids" in self.fields:
            choice["token_ids"] = ids
        if body.get("logprobs") and "logprobs" in self.fields:
            numbers = [log(unit_hash(f"{i}/{token}")) for i, token in enumerate(ids)]
            numbers = numbers[:-1] if stop is not None and self.hides_stop_tokens else numbers
            whole = {"content": [{"token": "?", "logprob": n} for n in numbers]}
            choice["logprobs"] = whole if chat else {"token_logprobs": numbers, "tokens": ["?"] * len(ids)}
        return choice


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else the body of an answer waits 40 ms for the acknowledgement of its head

    protocol_version = "HTTP/1.1"
    stub: Stub

    def do_GET(self) -> None:
        found = self.path == "/v1/models" and self.stub.models
        listed = {"data": [{"id": name, "object": "model"} for name in self.stub.models]}
        self._send(200 if found else 404, json.dumps(listed if found else {"error": {"message": "no such page"}}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        before = self.stub.note(body)
        self.stub.count(1)
        try:
            time.sleep(self.stub.delay)
            self._respond(body, before)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.stub.count(-1)

    def _respond(self, body: dict[str, Any], before: int) -> None:
        given = self.headers.get("authorization", "")
        if self.stub.key is not None and given != f"Bearer {self.stub.key}":
            return self._send(401, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}}))
        if self.path not in ("/v1/completions", "/v1/chat/completions"):
            return self._send(404, '{"error": {"message": "no such page"}}')
        wrong = self.stub.misbehave(body, before)
        if isinstance(wrong, Raw):
            return self._send(wrong.status, wrong.body, wrong.headers)
        if isinstance(wrong, Hang):
            while not self.stub.closing.wait(0.005):
                if select.select([self.connection], [], [], 0)[0]:  # nothing more comes from it but its end
                    self.stub.hung_up += 1
                    break
            self.close_connection = True
            return None
        status, answer = self.stub.answer(body, chat="chat" in self.path)
        if isinstance(wrong, Reset):
            return self._cut(json.dumps(answer), wrong.sent)
        if wrong is not None and status == 200:
            answer = wrong(answer)
        return self._send(status, answer if isinstance(answer, str) else json.dumps(answer))

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def _cut(self, body: str, share: float) -> None:
        data = body.encode()
        if share:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: int(len(data) * share)])
            self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hung up are part of the game."""

    def shutdown_request(self, request: Any) -> None:
        try:
            super().shutdown_request(request)
        except OSError:
            request.close()


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """The address of a server that runs until the block ends."""
    handler = type("Handler", (_Handler,), {"stub": stub})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            stub.closing.set()
            server.shutdown()
            thread.join()
