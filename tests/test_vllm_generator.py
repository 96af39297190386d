"""`VLLMGenerator` on a stub of vLLM, and on vLLM itself where an environment has it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.vllm_server import VARIABLE, environment
from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch
from inferscale.engine.result import step_from_dict
from inferscale.flops import closed_form
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator, VLLMGenerator
from inferscale.strategies import REBASE, Greedy, RepeatedSampling
from inferscale.testing import ToyReward
from inferscale.tree import Node, Problem, Step, branch_key
from tests import vllm_stub, vllm_worker
from tests.tiny_models import byte_tokenizer, tiny_model

LIMITS = {"max_step_tokens": 8, "max_new_tokens": 24}
PROMPTS = ["What is 2 + 2?", "How many?"]


@pytest.fixture
def llm(monkeypatch):
    vllm_stub.install(monkeypatch)
    return vllm_stub.LLM()


def root(prompt=PROMPTS[0], key=12345):
    return Node(Problem(prompt), key=key)


def ids(rows):
    return [[step.token_ids for step in row] for row in rows]


def close(found, expected):
    """Whether two steps are the same but for rounding."""
    unknown = {"logprob": None, "confidence": None, "model_logprob": None}
    assert replace(found, **unknown) == replace(expected, **unknown)
    assert found.model_logprob == pytest.approx(expected.model_logprob, abs=1e-4)
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)


def test_what_is_over_is_not_asked_for(llm):
    there = VLLMGenerator(llm, **LIMITS)
    late, other = GenerateRequest(root(), 2, deadline=0.0), GenerateRequest(root(PROMPTS[1]), 2)
    nothing, whole = there.generate([late, other])
    assert [(step.finish_reason, step.token_ids, step.flops) for step in nothing] == [("budget", (), 0)] * 2
    assert [whole] == VLLMGenerator(vllm_stub.LLM(), **LIMITS).generate([other])
    assert {len(prompts) for prompts, _ in llm.calls} == {1}


def test_an_engine_that_dies_of_seeds_is_told_of_and_goes_on_without(llm, monkeypatch):
    whole = llm.generate

    def dies(prompts, options, **others):
        if any(each.seed is not None for each in options):
            raise RuntimeError("EngineCore encountered an issue")
        return whole(prompts, options, **others)

    monkeypatch.setattr(llm, "generate", dies)
    with pytest.raises(RuntimeError, match=r"had seeds \(RuntimeError: EngineCore.*seeds=False"):
        VLLMGenerator(llm, **LIMITS).generate([GenerateRequest(root(), 2)])
    VLLMGenerator(llm, **LIMITS).generate([GenerateRequest(root(), 2, greedy=True)])  # which has none
    unseeded = VLLMGenerator(llm, seeds=False, **LIMITS)
    first, second = unseeded.generate([GenerateRequest(root(), 2)])[0]
    assert first.token_ids
    assert second.token_ids
    assert unseeded.identity() != VLLMGenerator(llm, **LIMITS).identity()


def test_greedy_steps_are_those_of_transformers(llm):
    here = HFGenerator(llm.model, llm.tokenizer, eos_token_id=[2, 5], **LIMITS)
    there = VLLMGenerator(llm, eos_token_id=[2, 5], **LIMITS)
    step = here.generate([GenerateRequest(root(), 1)])[0][0]
    child = Node(root().problem, replace(step, finish_reason="step"), root(), 7)
    for node in (root(), child):
        for until in ("step", "end"):
            for forced in ("", "Step 1: "):
                request = GenerateRequest(node, 2, until=until, greedy=True, forced=forced)
                for found, expected in zip(there.generate([request])[0], here.generate([request])[0], strict=True):
                    close(found, expected)
                assert there.max_sample_tokens(request) == here.max_sample_tokens(request)
    assert all(params.n == 1 for _, calls in llm.calls for params in calls)


def test_siblings_are_one_request_and_a_sample_depends_on_its_branch_alone(llm):
    generator = VLLMGenerator(llm, **LIMITS)
    other = root(PROMPTS[1], key=99)
    whole = generator.generate([GenerateRequest(root(), 4), GenerateRequest(other, 2)])
    prompts, params = llm.calls[0]
    assert [p.n for p in params] == [4, 2]
    assert prompts[0]["prompt_token_ids"] == llm.tokenizer(PROMPTS[0])["input_ids"]
    parts = generator.generate([GenerateRequest(root(), 1, first=3), GenerateRequest(root(), 3)])
    assert ids(whole)[0] == [*ids(parts)[1], *ids(parts)[0]]
    assert ids(generator.generate([GenerateRequest(other, 2)]))[0] == ids(whole)[1]
    assert len({step.token_ids for row in whole for step in row}) == 6


def test_a_search_is_the_same_alone_and_in_a_batch(llm):
    generator = VLLMGenerator(llm, **LIMITS)
    together = solve_batch(PROMPTS, REBASE(3), generator, reward_model=ToyReward())
    for prompt, result in zip(PROMPTS, together, strict=True):
        alone = solve(prompt, REBASE(3), generator, reward_model=ToyReward())
        assert [leaf.token_ids for leaf in alone.leaves] == [leaf.token_ids for leaf in result.leaves]
        assert alone.cost.without_seconds() == result.cost.without_seconds()


def test_bytes_are_those_of_rows_that_each_read_the_prompt(llm):
    generator = VLLMGenerator(llm, **LIMITS)
    found = solve(PROMPTS[0], RepeatedSampling(2), generator)
    cost = found.cost
    spec, prompt = closed_form(llm.model), cost.prompt_tokens
    (keys,), counts = spec.attention, [len(leaf.token_ids) - 1 for leaf in found.leaves]
    tokens = prompt + sum(count * prompt + count * (count - 1) // 2 + count for count in counts)
    assert cost.cache_bytes == 4 * keys.kv_width * tokens
    assert cost.bytes == cost.cache_bytes + 4 * spec.active_weights * (1 + max(counts))
    for options in ({"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}):
        packed = VLLMGenerator(vllm_stub.LLM(**options), **LIMITS)
        with pytest.raises(ValueError, match="VLLMGenerator cannot tell its bytes"):
            solve(PROMPTS[0], Greedy(), packed, budget=Budget(bytes=1e9))


def blank_first(llm, monkeypatch, blank):
    """Every fresh sample starts with the ids `blank`, where the engine stops."""
    sample = llm.sample

    def changed(prompt, params, index):
        found = sample(prompt, params, index)
        if prompt[-1] != blank[-1] and params.stop:
            found.token_ids, found.logprobs = blank, [{i: found.logprobs[0].popitem()[1]} for i in blank]
        return found

    monkeypatch.setattr(llm, "sample", changed)


def test_a_sample_that_is_blank_when_the_engine_stops_goes_on(llm, monkeypatch):
    newline = llm.tokenizer("\n", add_special_tokens=False)["input_ids"]
    blank_first(llm, monkeypatch, newline)
    generator = VLLMGenerator(llm, **LIMITS)
    (steps,) = generator.generate([GenerateRequest(root(), 2)])
    assert len(llm.calls) == 2
    assert [p["prompt_token_ids"][-len(newline) :] for p in llm.calls[1][0]] == [newline] * 2
    assert [p.max_tokens for p in llm.calls[1][1]] == [8 - len(newline)] * 2
    seeds = {p.seed for _, params in llm.calls for p in params}
    assert seeds == {12345 >> 2, *(branch_key(branch_key(12345, i), len(newline)) >> 2 for i in range(2))}
    assert all(list(step.token_ids[: len(newline)]) == newline and step.text.strip() for step in steps)
    assert all(len(step.token_ids) <= 8 for step in steps)


def test_lengths_and_caps_are_those_that_were_asked_for(llm):
    generator = VLLMGenerator(llm, **LIMITS)
    (row,) = generator.generate([GenerateRequest(root(), 3, until="end", max_tokens=5)])
    assert all(len(step.token_ids) <= 5 and step.finish_reason in ("budget", "eos") for step in row)
    full = Node(root().problem, Step(llm.tokenizer.decode([40] * 24), (40,) * 24), root(), 3)
    (row,) = generator.generate([GenerateRequest(full, 2)])
    assert [(step.finish_reason, step.token_ids) for step in row] == [("empty", ())] * 2
    assert len(llm.calls) == 1
    with pytest.raises(ValueError, match=r"there is no room for an answer"):
        VLLMGenerator(vllm_stub.LLM(max_model_len=4)).generate([GenerateRequest(root("What is 2 + 2? " * 4))])


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_numbers_that_the_engine_cannot_tell_are_none(mode, monkeypatch):
    vllm_stub.install(monkeypatch)
    llm = vllm_stub.LLM(logprobs_mode=mode)
    for temperature in (1.0, 0.5, 0.0):
        generator = VLLMGenerator(llm, **LIMITS, temperature=temperature)
        sampled, greedy = generator.generate([GenerateRequest(root(), 1), GenerateRequest(root(), 1, greedy=True)])
        assert None not in (greedy[0].logprob, greedy[0].confidence)
        known = (sampled[0].logprob is not None, sampled[0].confidence is not None)
        assert known == ((True, True) if temperature != 0.5 else (mode != "raw_logprobs", mode == "raw_logprobs"))


def test_requests_may_give_a_temperature(llm):
    request = GenerateRequest(root(), n=2, until="end")
    for temperature in (0.0, 0.5):
        asked = VLLMGenerator(llm, **LIMITS).generate([replace(request, temperature=temperature)])
        assert asked == VLLMGenerator(llm, **LIMITS, temperature=temperature).generate([request])


def test_the_engine_starts_with_prefix_caching_and_the_callers_options(monkeypatch):
    vllm_stub.install(monkeypatch)
    options = VLLMGenerator.from_pretrained("tiny", dtype="float32", logprobs_mode="raw_logprobs").llm.options
    assert options == {"enable_prefix_caching": True, "logprobs_mode": "raw_logprobs", "dtype": "float32"}


def test_bad_lengths_are_told_before_the_engine_starts(monkeypatch):
    vllm_stub.install(monkeypatch)
    monkeypatch.setattr(vllm_stub.LLM, "__init__", None)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        VLLMGenerator.from_pretrained("tiny", max_new_tokens=0)


def test_bad_calls_are_refused(llm, monkeypatch):
    with pytest.raises(TypeError, match=r"unknown option 'dtype'"):
        VLLMGenerator(llm, dtype="float32")
    with pytest.raises(TypeError, match=r"takes a vllm.LLM: VLLMGenerator.from_pretrained\('tiny'\) starts one"):
        VLLMGenerator("tiny")
    with pytest.raises(ValueError, match="temperature"):
        VLLMGenerator(llm, temperature=-1)
    with pytest.raises(ValueError, match="system_prompt needs a chat template"):
        VLLMGenerator(llm, system_prompt="Be brief.")
    with pytest.raises(ValueError, match="max_step_tokens=0"):
        VLLMGenerator(llm, max_step_tokens=0)
    with pytest.raises(ValueError, match=r'logprobs_mode="raw_logits" of the engine'):
        VLLMGenerator(vllm_stub.LLM(logprobs_mode="raw_logits"))
    generator = VLLMGenerator(llm)
    nothing = SimpleNamespace(token_ids=[], logprobs=[], finish_reason="abort")
    monkeypatch.setattr(llm, "sample", lambda *_: nothing)
    with pytest.raises(RuntimeError, match=r"without a token \(abort\)"):
        generator.generate([GenerateRequest(root())])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'pip install "inferscale\[vllm\]"'):
        VLLMGenerator.from_pretrained("tiny")


# -- vLLM itself ------------------------------------------------------------------------------------------------------


CONTROLS = {"stop": ["a", "\ufffd"], "min_p": 0.3, "repetition_penalty": 1.5}


@pytest.mark.parametrize("until", ["step", "end"])
def test_controls_are_those_of_transformers(llm, until):
    here = HFGenerator(llm.model, llm.tokenizer, eos_token_id=[2, 5], **LIMITS, **CONTROLS)
    there = VLLMGenerator(llm, eos_token_id=[2, 5], **LIMITS, **CONTROLS)
    for prompt in (*PROMPTS, "a b", "12"):
        request = GenerateRequest(root(prompt), until=until, greedy=True)
        [found], [expected] = there.generate([request])[0], here.generate([request])[0]
        unknown = {"logprob": None, "confidence": None, "model_logprob": None}
    assert replace(found, **unknown) == replace(expected, **unknown)
    assert found.model_logprob == pytest.approx(expected.model_logprob, abs=1e-4)
    there.generate([GenerateRequest(root(), 3, until=until)])
    params = llm.calls[-1][1][0]
    assert (params.min_p, params.repetition_penalty) == (0.3, 1.5)
    assert params.stop == ["a", "\ufffd"] + ["\n"] * (until == "step")
    there.generate([GenerateRequest(root(), until=until, stop=("b",))])
    assert llm.calls[-1][1][0].stop == ["a", "\ufffd", "b"] + ["\n"] * (until == "step")


def test_steps_end_where_a_function_or_an_expression_says(llm):
    plain = VLLMGenerator(llm, step_delimiter="=", max_step_tokens=12, max_new_tokens=40)
    for delimiter in (re.compile("="), lambda text: text.find("=", 1) + 1):
        other = VLLMGenerator(llm, step_delimiter=delimiter, max_step_tokens=12, max_new_tokens=40)
        for key in range(6):
            request = GenerateRequest(root(key=key), greedy=True)
            assert ids(other.generate([request])) == ids(plain.generate([request]))
    assert llm.calls[-2][1][0].stop is None


def test_an_option_that_no_engine_knows_is_refused_by_its_name(monkeypatch):
    vllm_stub.install(monkeypatch)
    monkeypatch.setattr(vllm_stub.LLM, "__init__", lambda self, model="", **options: None)
    with pytest.raises(TypeError, match=r"VLLMGenerator.from_pretrained\(\) got an unknown option 'min_pp'.*min_p\?"):
        VLLMGenerator.from_pretrained("tiny", min_pp=0.1)
    with pytest.raises(TypeError, match=r"'max_modellen': did you mean max_model_len\?"):
        VLLMGenerator.from_pretrained("tiny", max_modellen=16)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """What `tests.vllm_worker` says, and the model."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} names no python of an environment with vLLM")
    model = tiny_model(
        "llama", hidden_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=512
    )
    folder = tmp_path_factory.mktemp("vllm") / "tiny"
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return said(folder, "main"), HFGenerator(model, byte_tokenizer(), **vllm_worker.LIMITS), folder


def said(folder, function):
    """What a function of `tests.vllm_worker` says in the environment of vLLM."""
    here = Path(__file__).parents[1]
    variables = environment(PYTHONPATH=os.pathsep.join([str(here / "src"), str(here)]))
    command = [os.environ[VARIABLE], "-m", "tests.vllm_worker", str(folder), function]
    run = subprocess.run(command, cwd=here, env=variables, capture_output=True, text=True, check=False)
    if "No module named 'ray'" in run.stderr:
        pytest.skip("the environment of vLLM has no Ray")
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def same(found, expected):
    """Whether a step out of JSON is `expected`, but for rounding."""
    close(step_from_dict(found), expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_vllm_greedy_steps_are_those_of_transformers(real):
    found, here, _ = real
    for step, prompt in zip(found["completions"], vllm_worker.PROMPTS, strict=True):
        same(step, solve(prompt, Greedy(), here).leaves[0].step)
    node = root(vllm_worker.PROMPTS[0])
    words = tuple(here.tokenizer(" Ste\n", add_special_tokens=False)["input_ids"])
    child = Node(node.problem, Step(" Ste\n", words), node, 7)
    expected = here.generate([GenerateRequest(place, 2, greedy=True) for place in (node, child)])
    for row, others in zip(found["greedy_steps"], expected, strict=True):
        for step, other in zip(row, others, strict=True):
            same(step, other)
    forced = here.generate([GenerateRequest(node, 1, greedy=True, forced="Step 1: ", until="end")])
    same(found["forced"][0][0], forced[0][0])
    assert found["most"] == [here.max_sample_tokens(GenerateRequest(node, until=until)) for until in ("step", "end")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_vllm_a_sample_depends_on_its_branch_alone(real):
    found, _, _ = real
    assert found["whole"][0] == found["parts"][1] + found["parts"][0]
    assert found["together"] == found["alone"]
    assert all(each["cost"]["generator_bytes"] > each["cost"]["cache_bytes"] > 0 for each in found["alone"])
    assert found["capped"][0][:4] == found["capped"][1]
    assert len({tuple(step["token_ids"]) for step in found["whole"][0]}) == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_vllm_engines_in_actors_of_ray_find_the_same(real):
    found = said(real[2], "on_ray")
    assert found["spread"] == found["alone"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_vllm_log_probabilities_are_those_of_the_distribution_drawn_from(real):
    found, here, _ = real
    first, greedy = found["warm"][0][0], found["warm"][1][0]
    assert first["confidence"] is None is not greedy["confidence"]
    prompt = here.tokenizer("What is 2 + 2?\n")["input_ids"]
    assert first["logprob"] == pytest.approx(logprob_of(here.model, prompt, first["token_ids"], 0.7, 20), abs=1e-3)
    assert greedy["logprob"] == pytest.approx(logprob_of(here.model, prompt, greedy["token_ids"], 1.0, 0), abs=1e-3)


def logprob_of(model, prompt, tokens, temperature, top_k):
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    return logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].sum().item()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_vllm_steps_end_at_the_delimiter_and_trees_hit_the_prefix_cache(real):
    found, _, _ = real
    for step in found["delimited"][0]:
        assert len(step["token_ids"]) <= 24
        if step["finish_reason"] == "step" and len(step["token_ids"]) < 24:
            assert " " in step["text"].lstrip()[1:]
    looked_up, hits = found["prefix"]
    assert hits / looked_up > 0.5
