"""Grammars as logits processors: the how-to page on a tiny model, and two libraries against each other."""

import json
import re

import pytest
import torch

import inferscale as isc
from inferscale import HFGenerator
from tests.test_docs_code import BLOCKS
from tests.tiny_models import byte_tokenizer, grow, grow_all, root, tiny_model

llguidance = pytest.importorskip("llguidance", reason="grammars need the extra: grammar")

SCHEMA = {
    "type": "object",
    "properties": {
        "steps": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "sure": {"type": "boolean"},
    },
    "required": ["steps", "sure"],
    "additionalProperties": False,
}
WHOLE = re.compile(r'\{"steps":\[(-?\d+(,-?\d+){0,2})?\],"sure":(true|false)\}')


def llguidance_processor():
    """A class like that of the page, for the tiny tokenizer."""
    import llguidance.hf

    vocabulary = llguidance.hf.from_tokenizer(byte_tokenizer(), n_vocab=320)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(SCHEMA, {"whitespace_flexible": False})

    class InGrammar:
        def __init__(self):
            self.matcher, self.begun = llguidance.LLMatcher(vocabulary, grammar), False

        def __call__(self, input_ids, scores):
            if self.begun:
                self.matcher.consume_token(int(input_ids[0, -1]))
            self.begun = True
            assert not self.matcher.is_error(), self.matcher.get_error()
            allowed = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8)
            return scores.masked_fill(allowed == 0, float("-inf"))

    return InGrammar


def xgrammar_processor():
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.contrib.hf import LogitsProcessor

    vocabulary = xgrammar.TokenizerInfo.from_huggingface(byte_tokenizer(), vocab_size=320)
    compiler = xgrammar.GrammarCompiler(vocabulary)
    grammar = compiler.compile_json_schema(json.dumps(SCHEMA), any_whitespace=False, separators=(",", ":"))
    with pytest.raises(TypeError, match=r"cannot be copied .*logits_processor=\[lambda: LogitsProcessor\(\.\.\.\)\]"):
        generator(LogitsProcessor(grammar))
    return lambda: LogitsProcessor(grammar)


def generator(make, **options):
    options = {"max_new_tokens": 60, "max_step_tokens": 60, **options}
    return HFGenerator(tiny_model(), byte_tokenizer(), logits_processor=[make], **options)


@pytest.mark.parametrize("make", [llguidance_processor, xgrammar_processor])
def test_every_path_stays_in_its_grammar_step_by_step_and_in_any_batch(make):
    make = make()
    gen = generator(make, step_delimiter=re.compile(r"[,\]]"), check_every=8)
    whole = 0
    nodes = [root(prompt) for prompt in ("a", "b", "Step 1")]
    for _ in range(12):
        grown = grow_all(gen, [node for node in nodes if not node.is_finished], 2)
        alone = generator(make, step_delimiter=re.compile(r"[,\]]"), cache="none")
        for group in grown[:1]:
            again = grow(alone, _copy(group[0].parent), 2)
            assert [n.step.token_ids for n in again] == [n.step.token_ids for n in group]
        nodes = [node for node in nodes if node.is_finished] + [node for group in grown for node in group[-1:]]
        if all(node.is_finished for node in nodes):
            break
    for node in nodes:
        whole += node.step.finish_reason == "eos"
        assert WHOLE.fullmatch(node.text) or node.step.finish_reason == "length"
    assert whole > 0


def _copy(node):
    """The same path without children."""
    if node.parent is None:
        return isc.Node(node.problem, key=node.key)
    return isc.Node(node.problem, node.step, _copy(node.parent), node.key)


def test_forced_text_is_a_part_of_the_grammar():
    gen = generator(llguidance_processor())
    forced = '{"steps":[12,'
    for node in grow(gen, root("a"), 4, until="end", forced=forced):
        assert node.text.startswith(forced)
        assert WHOLE.fullmatch(node.text) or node.step.finish_reason == "length"


def test_two_libraries_give_the_same_paths():
    pytest.importorskip("xgrammar")
    one, other = (generator(make()) for make in (llguidance_processor, xgrammar_processor))
    for prompt in ("a", "b", "12 ="):
        found = [grow(gen, root(prompt), 3, until="end") for gen in (one, other)]
        for left, right in zip(*found, strict=True):
            assert left.step.token_ids == right.step.token_ids
            assert left.step.logprob == pytest.approx(right.step.logprob, abs=1e-4)


def test_the_page_runs_on_a_tiny_model(monkeypatch):
    monkeypatch.setattr(isc.zoo, "load", lambda name: (tiny_model(), byte_tokenizer()))
    [block] = BLOCKS["docs/howto/json_steps.md"]
    assert sum(bool(line.strip()) for line in block.source.splitlines()) <= 25
    names: dict[str, object] = {}
    exec(block.source, names)
    for trajectory in names["result"].trajectories:
        if trajectory.steps[-1].finish_reason == "eos":
            assert str(json.loads(trajectory.text)["answer"]) == trajectory.answer
        else:
            assert trajectory.answer is None
