"""The page at ``/``: asks for an answer, and shows the search while it grows. Nothing in it comes from outside."""

from __future__ import annotations

import base64
import hashlib
import html

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
form { display: grid; gap: .6rem; }
textarea, input, select, button { font: inherit; padding: .4rem .6rem; box-sizing: border-box; }
textarea { width: 100%; min-height: 6rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }
.row input { width: 14rem; }
#state, #bill { font-variant-numeric: tabular-nums; }
#answer { white-space: pre-wrap; overflow-wrap: anywhere; }
#tree { overflow-x: auto; }
#tree .answer, #tree dl { display: none; } /* they stand above */
.error { color: #b3261e; }
"""

_SCRIPT = """
"use strict";
const at = id => document.getElementById(id);
const say = (id, text) => { at(id).textContent = text; };
let running = null;

function show(event) {
  if (event.error) { at("state").className = "error"; say("state", event.error.message); return; }
  for (const choice of event.choices || []) {
    const text = choice.text ?? choice.delta?.content ?? "";
    if (text) at("answer").append(text);
    const own = choice.inferscale || {};
    if (own.progress) {
      const p = own.progress;
      say("state", `${p.state}: ${p.tokens} tokens, ${p.samples} samples, ${p.scored} scored`);
      if (p.tree) at("tree").innerHTML = p.tree;
    }
    if (own.cost) {
      const c = own.cost;
      say("state", `answer: ${own.answer ?? "none"}` + (own.stopped_by ? `, stopped by ${own.stopped_by}` : ""));
      say("bill", `${own.num_trajectories} trajectories, ${c.prompt_tokens} prompt tokens, ` +
        `${c.generated_tokens + c.thought_tokens} sampled, ${c.scored_tokens} scored, ` +
        `${c.flops.toExponential(2)} FLOPs, ${c.seconds.toFixed(1)} s`);
      if (own.tree) at("tree").innerHTML = own.tree;
    }
  }
}

async function ask(event) {
  event.preventDefault();
  running?.abort();
  running = new AbortController();
  for (const id of ["state", "answer", "bill", "tree"]) say(id, "");
  at("state").className = "";
  const prompt = at("prompt").value, own = {tree: true};
  if (at("strategy").value.trim()) own.strategy = at("strategy").value.trim();
  const chat = document.body.dataset.chat === "yes";
  const body = {stream: true, inferscale: own, ...(chat ? {messages: [{role: "user", content: prompt}]} : {prompt})};
  const headers = {"Content-Type": "application/json"};
  if (at("key")) headers.Authorization = "Bearer " + at("key").value;
  try {
    const path = chat ? "v1/chat/completions" : "v1/completions";
    const reply = await fetch(path, {method: "POST", headers, body: JSON.stringify(body), signal: running.signal});
    if (!reply.ok) { show(await reply.json()); return; }
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const {value, done} = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\\n\\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data !== "[DONE]") show(JSON.parse(data));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") { at("state").className = "error"; say("state", String(error)); }
  }
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", () => { running?.abort(); say("state", "stopped"); });
"""


def make_page(name: str, strategy: str, chat: bool, needs_key: bool) -> str:
    """Return the page.

    Args:
        name: The model's name.
        strategy: That of requests that name none.
        chat: Whether prompts are turns of a chat.
        needs_key: Whether requests must hold a key, for which there is a field then.
    """
    title, usual = html.escape(name), html.escape(strategy, quote=True)
    key = '<input id="key" type="password" placeholder="API key" autocomplete="off">' if needs_key else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body data-chat="{"yes" if chat else "no"}"><h1>{title}</h1><form id="ask">'
        '<label for="prompt">Problem</label><textarea id="prompt" required></textarea><div class="row">'
        f'<label for="strategy">Strategy</label><input id="strategy" placeholder="{usual}">{key}'
        '<button>Search</button><button id="stop" type="button">Stop</button></div></form>'
        '<p id="state" role="status"></p><p id="answer"></p><p id="bill"></p><div id="tree"></div>'
        f"<script>{_SCRIPT}</script></body></html>"
    )


_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Headers of the page: its own script runs and no other, and it talks to this server alone."""
