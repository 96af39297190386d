"""Every command line of the README and of the documentation: read by its own parser, and run where that can be.

Those of ``sh`` blocks that run here do so as they are written, in a folder that has what their paths name. The embedded
task has a few problems for them. `ELSEWHERE` says of the others why, or what runs them.
"""

import argparse
import importlib.util
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from unittest import mock

import pytest
import typer

from inferscale import zoo
from inferscale.cli import app, main
from tests.tiny_models import byte_tokenizer, tiny_model

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
ELSEWHERE = {
    "make": ".ci/run makes what these make",
    "pip": "installs; `make test` and tests/release do",
    "INFERSCALE_VLLM_PYTHON=/path/to/python": "make test-vllm",
    "inferscale demo": "make demo",
    "inferscale eval --dataset math": "takes its data from the hub",
    "inferscale plan": "tests/test_planning.py, with smaller budgets",
    "python -m inferscale lm-eval": "make test-harness",
    "python -m inferscale.rewards.training": "tests/test_reward_training.py",
    "python -m studies": "hours of work; their tests run them small",
}
"""Beginnings of command lines that do not run here, and why."""


def blocks():
    """Command lines of ``sh`` blocks, with the page of each; continued lines are one."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ")
            commands = re.findall(r"(?:'[^']*'|[^'\n])+", lines)  # a text in quotes may have several lines
            found += [(page.name, " ".join(shlex.join(shlex.split(line, comments=True)).split())) for line in commands]
    return [(page, command) for page, command in found if command]


def inline():
    """Command lines within sentences."""
    form = re.compile(r"`((?:python -m|inferscale|make) [^`\n]+)`")
    found = [(page.name, text) for page in PAGES for text in form.findall(page.read_text("utf-8"))]
    return [(page, text) for page, text in found if not re.search(r"\b(COMMAND|sglang)\b|\.\.\.|…", text)]


def is_elsewhere(command):
    return any(command.startswith(beginning) for beginning in ELSEWHERE)


class ReadError(Exception):
    """Arguments are right."""


def read(command):
    """Has the command's own parser read its arguments, and nothing more."""
    words = [word for word in shlex.split(command) if word != "--help"]  # every parser has it, and reads no further
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[0] == "inferscale" or words[:3] == ["python", "-m", "inferscale"]:
        _read_typer(app, words[1:] if words[0] == "inferscale" else words[3:])
    elif words[:2] == ["python", "-m"]:
        source = _source(words[2])
        if "parse_args" not in source and "typer" not in source:
            assert len(words) == 3, "it takes no arguments"
            return
        parse = argparse.ArgumentParser.parse_args

        def parse_args(self, args=None, namespace=None):
            parse(self, args, namespace)
            raise ReadError

        def call(self, *args, **options):
            _read_typer(self, sys.argv[1:])
            raise ReadError

        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
            mock.patch.object(typer.Typer, "__call__", call),
            mock.patch.object(sys, "argv", words[2:]),
            mock.patch.dict(os.environ),
            pytest.raises(ReadError),
        ):
            runpy.run_module(words[2], run_name="__main__")
    else:
        assert words[0].startswith(("INFERSCALE_", "pip", "curl")), "which parser reads it?"


def _source(module):
    """The text of what ``python -m module`` runs."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    if found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    return Path(found.origin).read_text("utf-8")


def _read_typer(application, words):
    if not words:  # the name of a command, which may need arguments
        return
    command = typer.main.get_command(application)
    context = command.make_context("command", list(words))
    if hasattr(command, "resolve_command") and words:
        name, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        if rest:
            chosen.make_context(name, rest, parent=context)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of modules that run twice in one process
@pytest.mark.parametrize("command", sorted({command for _, command in blocks() + inline()}))
def test_its_parser_takes_it(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    read(command)


def test_no_command_is_overlooked():
    commands = [command for _, command in blocks()]
    assert len(commands) > 40
    assert {command.split()[0] for command in commands} <= {
        *("inferscale", "python", "make", "pip", "curl", "INFERSCALE_VLLM_PYTHON=/path/to/python")
    }
    for beginning in ELSEWHERE:
        assert any(command.startswith(beginning) for command in commands), f"{beginning} is in no block"


def here(page):
    """The commands of a page that run here, in order."""
    return [command for name, command in blocks() if name == page and not is_elsewhere(command)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the documentation's paths name, and a short task."""
    for name, kind, options in (("model", "CausalLM", {}), ("prm", "TokenClassification", {"num_labels": 2})):
        folder = tmp_path / "path" / "to" / name
        tiny_model("llama", kind, max_position_embeddings=2048, **options).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    row = {"question": "Ida has 2 pens and buys 3. How many has she?", "answer": "2 + 3 = 5\n#### 5"}
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps(row) + "\n")
    whole = zoo.problems
    monkeypatch.setattr(zoo, "problems", lambda split="test": whole(split)[:2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAGES_HERE = sorted({page for page, command in blocks() if not is_elsewhere(command)} - {"serve.md"})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # the tiny models are no good ones
@pytest.mark.parametrize("page", PAGES_HERE)
def test_it_runs_as_it_is_written(page, place, monkeypatch, capsys):
    for command in here(page):
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{command}: {said.err}"
        assert said.out.strip(), command


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_server_and_the_request_of_its_page():
    serve, request = here("serve.md")
    words = [sys.executable, "-m", *shlex.split(serve), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=REPOSITORY) as process:
        line = next(line for line in process.stderr if b"running on" in line).decode()
        base = next(word for word in line.split() if word.startswith("http://"))
        (_, url, *options) = shlex.split(request)
        given = dict(zip(options[::2], options[1::2], strict=True))
        kind, value = given["-H"].split(": ")
        url = url.replace("http://127.0.0.1:8000", base)
        asked = urllib.request.Request(url, given["-d"].encode(), {kind: value})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            told = json.load(answer)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert told["choices"][0]["message"]["content"].strip()
    assert told["inferscale"]["cost"]["reward_flops"] > 0
