"""The commands that make and measure the embedded models, end to end on a few steps."""

import json

import pytest
import torch
from typer.testing import CliRunner

from inferscale import zoo
from inferscale.zoo.models import load_model
from studies.embedded import evaluate, rollouts, train
from studies.embedded import loop as recipes

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def invoke(app, *arguments):
    result = run(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_policy_and_judge_from_nothing_to_figures(tmp_path):
    policy, judge, drawn = tmp_path / "policy-m", tmp_path / "prm-s", tmp_path / "rollouts.jsonl"
    invoke(train.app, "policy-m", "--folder", policy, "--steps", 2, "--decay-steps", 0, "--checkpoint-every", 1)
    assert "resumed at step 2" in invoke(train.app, "policy-m", "--folder", policy, "--steps", 3, "--decay-steps", 0)
    parent = policy / "step-000003.pt"
    output = invoke(rollouts.app, parent, "policy-m", "--output", drawn, "--problems", 2, "--n", 1)
    assert "2 distinct rollouts" in output
    output = invoke(
        train.app, "prm-s", "--folder", judge, "--steps", 1, "--decay-steps", 1,
        "--parent", parent, "--rollouts", drawn,
    )  # fmt: skip
    assert "branched from step 3" in output
    assert "pairs won" in output
    card = json.loads((judge / "prm-s" / "card.json").read_text())
    assert card["kind"] == "process reward model"
    assert load_model(judge / "prm-s").config.num_hidden_layers == 6
    figures = json.loads(invoke(evaluate.app, "policy", policy / "policy-m", "--n", 2, "--count", 3))
    assert figures["pass@1"] == 0
    assert "problems=3 n=2" in figures["of"]


@pytest.mark.slow
def test_a_judge_of_an_embedded_policy(tmp_path):
    drawn = tmp_path / "rollouts.jsonl"
    assert "distinct rollouts" in invoke(rollouts.app, "policy-s", "--output", drawn, "--problems", 4, "--n", 1)
    assert {json.loads(line)["policy"] for line in drawn.read_text().splitlines()} == {"policy-s"}
    output = invoke(train.app, "prm-xs", "--folder", tmp_path, "--steps", 1, "--decay-steps", 1, "--rollouts", drawn)
    assert f"branched from step {recipes.POLICIES['policy-s'].steps}" in output
    card = json.loads((tmp_path / "prm-xs" / "card.json").read_text())
    assert card["training_tokens"] > zoo.models.card("policy-s").training_tokens
    result = run(rollouts.app, ["nothing.pt", "--output", str(drawn)])
    assert result.exit_code == 2
    assert "policy-xs" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["policy-l"], "choose one of"), (["prm-s"], "--rollouts")],
)
def test_wrong_names_say_what_to_do(tmp_path, arguments, message):
    result = run(train.app, [*arguments, "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.output
