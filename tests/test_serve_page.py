"""The page of a server: its script runs in Node against a real server, with elements that keep what they are told."""

import json
import re
import shutil
import subprocess

import pytest

from inferscale import REBASE, solve
from inferscale.serve import Limits, Service
from inferscale.testing import ToyGenerator, ToyReward
from tests.serve_tools import call, serving

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")

BROWSER = """
const [base, script, values, chat] = JSON.parse(process.argv[1]);
const shown = [], elements = {};
const element = id => elements[id] ??= {
  id, className: "", value: values[id] ?? "", handlers: {}, pictures: [], text: "",
  set textContent(text) { this.text = text; shown.push([id, text]); },
  get textContent() { return this.text; },
  append(text) { this.text += text; },
  set innerHTML(html) { this.pictures.push(html); },
  addEventListener(name, handler) { this.handlers[name] = handler; },
};
const fields = ["prompt", "strategy", "ask", "stop", "state", "answer", "bill", "tree", ...Object.keys(values)];
globalThis.document = {
  getElementById: id => fields.includes(id) ? element(id) : null,
  body: {dataset: {chat}},
};
const real = globalThis.fetch;
globalThis.fetch = (path, options) => real(base + path, options);
new Function(script)();
elements.ask.handlers.submit({preventDefault() {}}).then(() => {
  const told = {pictures: elements.tree.pictures, error: elements.state.className};
  for (const id of ["state", "answer", "bill"]) told[id] = elements[id].text;
  console.log(JSON.stringify({...told, shown}));
});
"""


def visit(server, values, chat="no"):
    page = call(server, "/")[2].decode()
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    arguments = json.dumps([f"http://127.0.0.1:{server.port}/", script, values, chat])
    done = subprocess.run(["node", "-e", BROWSER, arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_shows_answer_cost_and_a_tree_that_grows():
    service = Service(ToyGenerator(), ToyReward(), strategy="sampling:2", limits=Limits(progress_seconds=0.01))
    result = solve("How many?", REBASE(4), ToyGenerator(), reward_model=ToyReward(), seed=0)
    with serving(service) as server:
        told = visit(server, {"prompt": "How many?", "strategy": "rebase:4"})
    assert told["answer"] == result.text
    assert told["state"] == f"answer: {result.answer}"
    assert f"{len(result.trajectories)} trajectories" in told["bill"]
    assert f"{result.cost.scored_tokens} scored" in told["bill"]
    assert "<svg" in told["pictures"][-1]
    assert any("tokens" in text for name, text in told["shown"] if name == "state")
    assert told["error"] == ""


def test_the_page_shows_what_is_refused_and_takes_a_key():
    service = Service(ToyGenerator(), strategy="sampling:2", api_key="secret")
    with serving(service) as server:
        assert "no valid API key" in visit(server, {"prompt": "x", "key": "wrong"})["state"]
        refused = visit(server, {"prompt": "x", "key": "secret", "strategy": "nope"})
        chat = visit(server, {"prompt": "How many?", "key": "secret"}, chat="yes")
    assert "unknown strategy 'nope'" in refused["state"]
    assert refused["error"] == "error"
    assert chat["answer"] == solve("How many?", service.make_strategy(), ToyGenerator()).text
