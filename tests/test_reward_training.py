"""Training a process reward model on labelled steps."""

import importlib.util

import pytest
import torch

from inferscale.rewards import (
    HFProcessRewardModel,
    LabelledSolution,
    TrainingRecipe,
    diagnose,
    save_labelled,
    train_process_reward_model,
)
from inferscale.rewards.formats import separated_by
from inferscale.rewards.training import load_for_training, make_example, step_loss
from inferscale.tree import Problem
from tests.reward_checkpoints import causal, classifier, save
from tests.tiny_models import byte_tokenizer


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def labelled(count, seed=0):
    import random

    rng, items = random.Random(seed), []
    for number in range(count):
        marks = [rng.random() < 0.5 for _ in range(3)]
        first = next((k for k, bad in enumerate(marks) if bad), 3)
        steps = tuple(f"{'x is' if bad else 'a is'} {rng.randrange(1, 3)}" for bad in marks)
        labels = tuple(1.0 if k < first else 0.0 if k == first else None for k in range(3))
        items.append(LabelledSolution(Problem(f"b {seed} {number}"), steps, labels))
    return items


def test_examples_are_what_scoring_reads():
    tokenizer = byte_tokenizer()
    item = LabelledSolution(Problem("b"), ("a is 4", "b", "c"), (1.0, None, 0.25))
    example = make_example(item, separated_by("\n\n").layout.encoder(tokenizer), 999)
    ids = [tokenizer.bos_token_id, *plain(tokenizer, "b")]
    marks = []
    for step in item.steps:
        ids += plain(tokenizer, step) + plain(tokenizer, "\n\n")
        marks.append(len(ids) - 1)
    assert example.ids == tuple(ids)
    assert example.marks == (marks[0], marks[2])
    assert example.labels == (1.0, 0.25)
    assert make_example(item, separated_by("\n\n").layout.encoder(tokenizer), marks[0] + 1).marks == (marks[0],)


def test_the_loss_by_hand():
    tokenizer = byte_tokenizer()
    model = classifier(tokenizer)
    encoder = separated_by("\n").layout.encoder(tokenizer)
    items = [
        LabelledSolution(Problem("b"), ("a is 4", "b"), (1.0, 0.25)),
        LabelledSolution(Problem("the 12"), ("x",), (0.0,)),
    ]
    examples = [make_example(item, encoder, 999) for item in items]
    total = []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].detach().double()
        for mark, label in zip(example.marks, example.labels, strict=True):
            chance = logits[mark].softmax(-1)[1]
            total.append(-(label * chance.log() + (1 - label) * (1 - chance).log()))
    assert step_loss(model, examples).item() == pytest.approx(float(sum(total) / 3), abs=1e-5)


def test_training_learns_saves_and_is_read_back(tmp_path):
    tokenizer = byte_tokenizer()
    save(tmp_path / "policy", causal(tokenizer, hidden_size=32), tokenizer)
    model, loaded = load_for_training(tmp_path / "policy", seed=3)
    before = torch.random.get_rng_state()
    losses = []
    recipe = TrainingRecipe(separator="\n\n", epochs=5, batch_size=8, learning_rate=5e-3)
    trained = train_process_reward_model(
        model, loaded, labelled(48), recipe, lambda step, steps, loss: losses.append(loss)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    save(tmp_path / "prm", trained, loaded)
    reward = HFProcessRewardModel.from_pretrained(tmp_path / "prm")
    found = diagnose(reward, labelled(40, seed=1))
    assert found.first_error_auc > 0.95


def test_only_folders_and_hub_ids_are_loaded_for_training():
    with pytest.raises(TypeError, match="takes a folder or a hub id, not Qwen2ForTokenClassification"):
        load_for_training(classifier(byte_tokenizer()))


def test_the_same_seed_trains_the_same_model(tmp_path):
    save(tmp_path / "policy", causal(byte_tokenizer()), byte_tokenizer())

    def losses_of(seed):
        model, tokenizer = load_for_training(tmp_path / "policy", seed=seed)
        losses = []
        recipe = TrainingRecipe(batch_size=4, learning_rate=1e-3, seed=seed)
        train_process_reward_model(model, tokenizer, labelled(8), recipe, lambda step, steps, loss: losses.append(loss))
        return losses

    runs = [losses_of(seed) for seed in (3, 3, 4)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] != pytest.approx(runs[2], rel=1e-2)


def test_a_training_that_was_broken_off_ends_with_the_weights_of_a_whole_one(tmp_path):
    save(tmp_path / "policy", causal(byte_tokenizer(), attention_dropout=0.1), byte_tokenizer())
    recipe = TrainingRecipe(epochs=2, batch_size=4, learning_rate=1e-3)

    def trained(report, **options):
        model, tokenizer = load_for_training(tmp_path / "policy")
        return train_process_reward_model(model, tokenizer, labelled(12), recipe, report, **options)

    def breaks_off(step, steps, loss):
        if step == 4:
            raise KeyboardInterrupt

    seen = []
    whole = trained(lambda step, steps, loss: None)
    kept = {"checkpoint": tmp_path / "state.pt", "save_every": 3}
    with pytest.raises(KeyboardInterrupt):
        trained(breaks_off, **kept)
    resumed = trained(lambda step, steps, loss: seen.append(step), **kept)
    assert seen == [4, 5, 6]
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    model, tokenizer = load_for_training(tmp_path / "policy")
    with pytest.raises(ValueError, match="checkpoint of a training with another recipe or other solutions"):
        train_process_reward_model(model, tokenizer, labelled(12, seed=1), recipe, **kept)


def test_products_in_bfloat16_keep_float32_weights():
    tokenizer, losses = byte_tokenizer(), {}
    for precision in ("float32", "bfloat16"):
        recipe = TrainingRecipe(batch_size=4, learning_rate=1e-3, precision=precision)
        seen = losses[precision] = []
        torch.manual_seed(0)
        model = classifier(tokenizer)
        trained = train_process_reward_model(
            model, tokenizer, labelled(8), recipe, lambda step, steps, loss, seen=seen: seen.append(loss)
        )
        assert trained.dtype == torch.float32
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]
    with pytest.raises(ValueError, match='precision=\'half\': choose "float32" or "bfloat16"'):
        TrainingRecipe(precision="half")


def test_training_by_command(tmp_path):
    from typer.testing import CliRunner

    from inferscale.rewards.training import app

    tokenizer = byte_tokenizer()
    save(tmp_path / "policy", causal(tokenizer), tokenizer)
    save_labelled(labelled(24), tmp_path / "data.jsonl")
    arguments = [str(tmp_path / "policy"), str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "prm")]
    arguments += ["--held-out", "0.5", "--batch-size", "4", "--learning-rate", "0.001"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "12 solutions to train on, 12 held out" in result.output
    assert "update 3 of 3  loss" in result.output
    assert "held out: same-step first-error AUC 0." in result.output
    assert HFProcessRewardModel.from_pretrained(tmp_path / "prm", check=False).model.num_labels == 2


def test_what_cannot_be_trained_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="no judged step to train on"):
        train_process_reward_model(
            classifier(tokenizer), tokenizer, [LabelledSolution(Problem("b"), ("a",), (None,))], TrainingRecipe()
        )
    with pytest.raises(ValueError, match="must have two"):
        train_process_reward_model(torch.nn.Linear(1, 1), tokenizer, labelled(2))
    with pytest.raises(ValueError, match="batch_size=0"):
        TrainingRecipe(batch_size=0)
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(ModuleNotFoundError, match="pip install peft"):
            train_process_reward_model(classifier(tokenizer), tokenizer, labelled(2), TrainingRecipe(lora_rank=2))


def test_a_loss_that_is_no_number_ends_the_training():
    tokenizer, seen = byte_tokenizer(), []
    recipe = TrainingRecipe(epochs=3, batch_size=2, learning_rate=1e30, clip=1e30)
    with pytest.raises(RuntimeError, match=r"update \d+: the loss is (nan|inf): lower learning_rate"):
        train_process_reward_model(
            classifier(tokenizer), tokenizer, labelled(8), recipe, lambda step, steps, loss: seen.append(loss)
        )
    assert all(loss == loss for loss in seen)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft uses names that transformers gives up
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install peft")
def test_adapters_are_merged_into_what_is_saved(tmp_path):
    tokenizer = byte_tokenizer()
    save(tmp_path / "policy", causal(tokenizer), tokenizer)
    model, loaded = load_for_training(tmp_path / "policy")
    losses = []
    recipe = TrainingRecipe(epochs=10, batch_size=8, learning_rate=2e-2, lora_rank=4)
    trained = train_process_reward_model(
        model, loaded, labelled(32), recipe, lambda step, steps, loss: losses.append(loss)
    )
    assert sum(losses[-4:]) < sum(losses[:4])
    save(tmp_path / "prm", trained, loaded)
    assert HFProcessRewardModel.from_pretrained(tmp_path / "prm", format="trl").model.num_labels == 2
