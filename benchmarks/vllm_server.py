"""A vLLM server on loopback, started from the environment whose python ``INFERSCALE_VLLM_PYTHON`` names."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "INFERSCALE_VLLM_PYTHON"
PATIENCE = 600.0
"""Most seconds that a server may take to start."""

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def environment(**more: str) -> dict[str, str]:
    """The environment variables that vLLM is run with."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **SETTINGS, **more}


@contextmanager
def vllm_server(folder: Path, *options: str, block_size: int = 32, length: int = 512) -> Iterator[str]:
    """The address of a running server.

    Args:
        folder: The checkpoint, which is served under the name ``tiny``.
        options: Further options of its command line.
        block_size: Tokens of a block of the prefix cache.
        length: Most tokens of a sequence.

    Raises:
        RuntimeError: If it does not start; the message ends with what it said last.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(os.environ[VARIABLE], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1"),
        *("--port", str(port), "--max-model-len", str(length), "--block-size", str(block_size), *options),
    ]
    log = folder.with_name(f"{folder.name}-{port}.log")
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment(), stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start: {log.read_text(errors='replace')[-2000:]}")


def prefix_counts(url: str) -> tuple[float, float]:
    """Tokens that the server has looked up in its prefix cache so far, and those that were there."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return _counter(text, "queries"), _counter(text, "hits")


def _counter(text: str, name: str) -> float:
    values = re.findall(rf"^vllm:prefix_cache_{name}_total\S* (\S+)$", text, re.MULTILINE)
    if not values:
        raise RuntimeError(f"the server's metrics have no vllm:prefix_cache_{name}_total")
    return sum(map(float, values))
