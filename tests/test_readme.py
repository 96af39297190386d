"""Every Python block of the README runs, in order, as in one notebook."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_there_are_six_snippets():
    assert len(BLOCKS) == 6


def test_the_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        code = compile(block, f"README.md block {number}", "exec")
        exec(code, names)
    shown = capsys.readouterr().out
    assert "expected:" in shown
    assert "of 8" in shown
    assert pytest.approx(0) != names["result"].cost.generator_flops
