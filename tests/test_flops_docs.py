"""Every Python block of the FLOPs page runs, in order, and prints what its comments and text blocks say."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "flops.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names():
    return {"__name__": "flops_page"}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number, names, capsys):
    source, text = BLOCKS[number]
    exec(compile(source, f"docs/flops.md block {number}", "exec"), names)
    printed = capsys.readouterr().out
    expected = [
        line.split("  # ", 1)[1] for line in source.splitlines() if line.startswith("print(") and "  # " in line
    ]
    assert printed.splitlines()[: len(expected)] == expected
    if text:
        assert printed.endswith(text)
    else:
        assert len(printed.splitlines()) == len(expected)
