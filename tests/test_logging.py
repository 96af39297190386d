"""The examples of docs/howto/logging.md write what they say, offline: read back from the file of each tracker."""

import json
import struct
from pathlib import Path

import pytest

from tests.test_docs_code import BLOCKS, REPOSITORY

PAGE = "docs/howto/logging.md"


def run_example(package):
    """Runs the page's first block and the one that needs `package`; its names."""
    names = {"__name__": "page"}
    blocks = BLOCKS[PAGE]
    (example,) = [block for block in blocks if block.needs == package]
    assert len(example.source.splitlines()) <= 25
    for block in (blocks[0], example):
        exec(compile("\n" * block.line + block.source, str(REPOSITORY / PAGE), "exec"), names)
    return names


def records_of(content):
    """The records of a file in LevelDB's log format, after W&B's header of 7 bytes: pieces in blocks of 32 KiB."""
    place, record = 7, b""
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # no room for the head of a piece (checksum, length, kind): zeros
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def check(curves, results):
    """Compares the last number of each curve with the results."""
    for index, result in enumerate(results):
        assert curves[f"tokens of {index}"][-1] == result.cost.tokens
        assert len(curves[f"tokens of {index}"]) > 1
        assert max(curves[f"best score of {index}"]) >= max(leaf.score for leaf in result.leaves) - 1e-6


def test_tensorboard_gets_the_curves(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    results = run_example("tensorboard")["results"]
    events = EventAccumulator("runs/rebase").Reload()
    curves = {
        f"{kind} of {index}": [event.value for event in events.Scalars(f"{kind}/problem {index}")]
        for kind in ("tokens", "best score")
        for index in range(3)
    }
    check(curves, results)
    assert 0 <= events.Scalars("accuracy")[0].value <= 1


def test_weights_and_biases_gets_the_curves(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.chdir(tmp_path)
    results = run_example("wandb")["results"]
    wandb.teardown()  # ends the process that writes the file
    (path,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    curves, summary = {}, {}
    for data in records_of(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = "/".join(item.nested_key) or item.key
            problem, _, kind = name.partition("/")
            curves.setdefault(f"{kind} of {problem.removeprefix('problem ')}", []).append(json.loads(item.value_json))
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    check(curves, results)
    assert 0 <= summary["accuracy"] <= 1
