"""The files of a run: lines that are whole, torn or damaged."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest

from inferscale.evaluate import records
from inferscale.evaluate.records import append, cut_torn_line, prune_journal, read_records


@pytest.mark.parametrize("line", [b"null", b"[1]", b"3", b"{}", b'{"v": "1", "key": "a"}', b'{"v": 1}', b"\0\0\0"])
def test_a_line_that_is_no_record_is_told(tmp_path, line):
    (tmp_path / "r").write_bytes(b'{"v": 1, "key": "a"}\n' + line + b"\n")
    with pytest.raises(ValueError, match="line 2 is damaged: restore the file"):
        read_records(tmp_path / "r")
    with pytest.raises(ValueError, match="line 2 is damaged") if line[:1] != b"{" or line == b"{}" else nullcontext():
        prune_journal(tmp_path / "r", [])


def test_a_record_is_written_whole_by_a_file_that_takes_a_part_at_a_time(tmp_path):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:7])

    with (tmp_path / "r").open("ab", buffering=0) as file:
        for key in "ab":
            append(Slow(file), {"key": key, "text": "x" * 50})
    assert [record["key"] for record in read_records(tmp_path / "r")] == ["a", "b"]


def test_numbers_that_are_not_finite_are_null_on_disk(tmp_path):
    with (tmp_path / "r").open("ab", buffering=0) as file:
        append(file, {"key": "a", "x": [math.nan, {"y": math.inf}], "t": (1.0,)}, fsync=True)
    assert read_records(tmp_path / "r") == [{"v": 1, "key": "a", "x": [None, {"y": None}], "t": [1.0]}]
    assert read_records(tmp_path / "nothing") == []
    cut_torn_line(tmp_path / "nothing")


def test_where_git_cannot_tell_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(records, "_git", lambda folder, command, *rest: "abc" if command == "rev-parse" else None)
    assert records.git_state(Path("/")) == {"commit": "abc", "changed": None}


def test_outside_of_a_checkout_there_is_no_state():
    assert records.git_state(Path("/")) is None
