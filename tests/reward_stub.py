"""A server on loopback that answers like vLLM's and SGLang's reward endpoints, after their documentation."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class RewardStub(ThreadingHTTPServer):
    """Serves a transformers classifier.

    Attributes:
        faults: What to do wrong with the next requests, one each; then all goes well.
        bodies: What was asked, with its path and key.
    """

    daemon_threads = True

    def __init__(self, model: Any, step_tag_id: int | None = None, num_labels: int = 2) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.step_tag_id, self.num_labels = model, step_tag_id, num_labels
        self.faults: list[str] = []
        self.bodies: list[tuple[str, Any, str | None]] = []
        self.api_key: str | None = None
        self.max_model_len: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Clients that have gone away are part of the game."""

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/pooling":
            assert body["task"] == "token_classify"
            rows = [self.pooled(ids) for ids in body["input"]]
            return self.wrapped(body, [{"object": "pooling", "data": row} for row in rows])
        if path == "/classify" and "input" in body:
            rows = [self.last(ids) for ids in body["input"]]
            probs = [torch.sigmoid(row) if len(row) == 1 else row.softmax(-1) for row in rows]
            return self.wrapped(body, [{"label": "x", "probs": p.tolist(), "num_classes": len(p)} for p in probs])
        if path == "/classify":
            info = {"id": "a", "finish_reason": None, "e2e_latency": 0.1}
            return [{"embedding": self.last(ids).tolist(), "meta_info": info} for ids in body["input_ids"]]
        raise AssertionError(path)

    def wrapped(self, body: dict[str, Any], data: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [{"index": index, **item} for index, item in enumerate(data)]
        total = sum(map(len, body["input"]))
        usage = {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0, "prompt_tokens_details": None}
        return {"id": "pool-1", "object": "list", "created": 1, "model": body["model"], "data": rows, "usage": usage}

    @torch.no_grad()
    def outputs(self, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids])).logits[0].float()

    def pooled(self, ids: list[int]) -> list[list[float]]:
        rows = self.outputs(ids).softmax(-1)
        if self.step_tag_id is not None:
            rows = rows[torch.tensor(ids) == self.step_tag_id]
        return rows.tolist()

    def last(self, ids: list[int]) -> torch.Tensor:
        return self.outputs(ids).flatten()


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else the body of an answer waits 40 ms for the acknowledgement of its head

    server: RewardStub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        card = {"id": "judge", "object": "model", "max_model_len": self.server.max_model_len}
        if self.path == "/v1/models" and self.server.max_model_len:
            return self.send(200, json.dumps({"object": "list", "data": [{"id": "another"}, card]}))
        return self.send(404, "{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, body, self.headers.get("Authorization")))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if self.server.api_key and self.headers.get("Authorization") != f"Bearer {self.server.api_key}":
            return self.send(401, '{"error": "Unauthorized"}')
        if fault.isdigit():
            return self.send(int(fault), '{"error": {"message": "busy"}}')
        if fault == "too long":
            return self.send(400, '{"error": {"message": "This model\'s maximum context length is 8 tokens"}}')
        if fault == "reset":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "hang":
            time.sleep(5)
        text = json.dumps(self.server.answer(self.path, body))
        changed = json.loads(text)
        rows = changed["data"] if isinstance(changed, dict) else changed
        if fault == "half":
            text = text[: len(text) // 2]
        elif fault == "reversed":
            rows.reverse()
        elif fault == "few":
            rows.pop()
        elif fault == "null":
            rows[0]["data"][0] = None
        elif fault == "fewer steps":
            rows[0]["data"].pop()
        elif fault == "logits":
            rows[0]["data"][0] = [-3.0, 4.0]
        elif fault == "one label":
            rows[0]["data"] = [[0.5] for _ in rows[0]["data"]]
        elif fault == "huge":
            rows[0]["data"][0][0] = 10**400
        elif fault == "twice":
            rows[1]["index"] = 0
        elif fault == "bytes":
            return self.send(200, b"\xff\xfe" + text.encode())
        return self.send(200, text if fault == "half" else json.dumps(changed))

    def send(self, status: int, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(model: Any, **options: Any) -> Any:
    """A running `RewardStub`."""
    stub = RewardStub(model, **options)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()
