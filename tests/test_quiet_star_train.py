"""The training loop: what moves, resume, precision, the command, and batches."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from inferscale.quiet_star import Objective, QuietSTaR, Recipe, quiet_star_loss
from inferscale.quiet_star.train import (
    Batch,
    aligned_batch,
    batch_loss,
    drive,
    load_checkpoint,
    load_texts,
    param_groups,
    save_checkpoint,
    span_batches,
    start,
    task_batches,
    term_norms,
    train,
)
from tests.quiet_star_tools import model_of, wrapped
from tests.tiny_models import byte_tokenizer

RECIPE = Recipe(Objective(2, 2), lr=1e-3, warmup_steps=2, steps=4, accumulation=2)


def batch_of(number):
    draw = torch.Generator().manual_seed(number)
    return Batch(torch.randint(5, 320, (2, 7), generator=draw))


def weights(quiet):
    return {name: p.detach().clone() for name, p in quiet.named_parameters()}


def test_the_defaults_are_the_published_ones():
    recipe, objective = Recipe(), Objective()
    assert (recipe.lr, recipe.warmup_steps, recipe.weight_decay, recipe.max_grad_norm) == (1e-6, 20, 1e-3, 1.0)
    assert (recipe.steps, recipe.decay_steps, recipe.accumulation, recipe.embedding_lr_scale) == (100, 100_000, 2, 100)
    assert (objective.talk_length, objective.num_thoughts, objective.reinforce_temperature) == (4, 2, 3.0)
    assert (objective.base_weight, objective.talk_weight, objective.thought_temperature) == (0.5, 0.5, 1.0)


def test_the_learning_rate_warms_up_and_falls():
    recipe = Recipe(warmup_steps=4, decay_steps=10)
    assert [recipe.lr_factor(step) for step in (0, 1, 3, 4, 9, 14, 99)] == [0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert Recipe(warmup_steps=0).lr_factor(0) == 1.0


def test_a_step_of_an_untrained_wrapper_moves_the_base_and_the_last_layer_of_the_head():
    quiet = wrapped("llama", 2, trained=False)
    before = weights(quiet)
    run = start(quiet, replace(RECIPE, weight_decay=0.0))
    report = next(train(run, batch_of))
    moved = {name for name, p in quiet.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if not name.startswith("model.")} == {"head.layers.4.weight"}
    assert any(name.startswith("model.") for name in moved)
    assert (report.step, report.reward, report.policy) == (1, 0.0, 0.0)
    next(train(run, batch_of))
    moved = {name for name, p in quiet.named_parameters() if not torch.equal(p, before[name])}
    assert {"start", "end", "head.layers.0.weight"} <= moved


def test_start_and_end_move_by_their_own_rate():
    """Under Adam a factor on the gradient does nothing; a factor on the rate does."""
    found = []
    for scale in (1.0, 100.0):
        quiet = wrapped("llama", 2)
        before = weights(quiet)
        next(train(start(quiet, replace(RECIPE, lr=1e-6, warmup_steps=0, embedding_lr_scale=scale)), batch_of))
        found.append(float((quiet.start.detach() - before["start"]).abs().median()))
    assert found[1] == pytest.approx(100 * found[0], rel=0.05)
    groups = param_groups(wrapped("llama", 2), RECIPE)
    assert [group["peak"] for group in groups] == pytest.approx([1e-3, 1e-3, 1e-1])
    assert [group["weight_decay"] for group in groups] == [1e-3, 1e-3, 0.0]


def test_a_frozen_base_stays():
    quiet = wrapped("llama", 2)
    before = weights(quiet)
    for _ in train(start(quiet, replace(RECIPE, freeze_base=True)), batch_of):
        pass
    moved = {name for name, p in quiet.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert not any(name.startswith("model.") for name in moved)


def test_a_resumed_run_is_the_run_without_a_break(tmp_path):
    whole = start(wrapped("llama", 2), RECIPE)
    reports = [replace(report, seconds=0.0) for report in train(whole, batch_of)]
    part = start(wrapped("llama", 2), RECIPE)
    first = [replace(report, seconds=0.0) for report in train(part, batch_of, until=2)]
    save_checkpoint(part, tmp_path / "checkpoint.pt")
    resumed = start(wrapped("llama", 2), RECIPE)
    load_checkpoint(resumed, tmp_path / "checkpoint.pt")
    rest = [replace(report, seconds=0.0) for report in train(resumed, batch_of)]
    assert first + rest == reports
    for name, parameter in whole.quiet.named_parameters():
        assert torch.equal(parameter, dict(resumed.quiet.named_parameters())[name])
    other = start(wrapped("llama", 2), replace(RECIPE, lr=1.0))
    with pytest.raises(ValueError, match=r"\['lr'\] differ"):
        load_checkpoint(other, tmp_path / "checkpoint.pt")


def test_a_checkpoint_on_a_frozen_base_holds_the_thoughts_and_knows_the_base(tmp_path):
    frozen = replace(RECIPE, freeze_base=True)
    whole, part = start(wrapped("llama", 2), frozen), start(wrapped("llama", 2), frozen)
    reports = [replace(report, seconds=0.0) for report in train(whole, batch_of)]
    first = [replace(report, seconds=0.0) for report in train(part, batch_of, until=2)]
    part.quiet.model.name_or_path = str(tmp_path)
    save_checkpoint(part, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(state["quiet"]) == {"start", "end", *(f"head.{name}" for name in part.quiet.head.state_dict())}
    assert state["base"]["name"] == tmp_path.name  # and not the way there
    resumed = start(wrapped("llama", 2), frozen)
    load_checkpoint(resumed, tmp_path / "checkpoint.pt")
    assert first + [replace(report, seconds=0.0) for report in train(resumed, batch_of)] == reports
    other = wrapped("llama", 2)
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.01)
    with pytest.raises(ValueError, match=f"made from the base '{tmp_path.name}', and this is another"):
        load_checkpoint(start(other, frozen), tmp_path / "checkpoint.pt")
    torch.save({**state, "quiet": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="does not fit this model: start, end, "):
        load_checkpoint(start(wrapped("llama", 2), frozen), tmp_path / "checkpoint.pt")


def test_a_resumed_run_drops_the_same_activations(tmp_path):
    """Dropout draws from a stream of the batch, whatever has drawn before; nobody else's numbers change."""
    reports, after = [], []
    for breaks in (False, True):
        torch.manual_seed(int(breaks))
        run = start(wrapped("gpt2", 2), RECIPE)
        if breaks:
            for _ in train(run, batch_of, until=3):
                pass
            save_checkpoint(run, tmp_path / "checkpoint.pt")
            run = start(wrapped("gpt2", 2), RECIPE)
            load_checkpoint(run, tmp_path / "checkpoint.pt")
        reports.append(replace(list(train(run, batch_of))[-1], seconds=0.0))
        after.append(torch.rand(3))
    assert reports[0] == reports[1]
    for breaks, found in enumerate(after):
        torch.manual_seed(breaks)
        assert torch.equal(torch.rand(3), found)
    still = wrapped("gpt2", 2)
    assert float(batch_loss(still, batch_of(6), RECIPE, 6).total.detach()) != float(
        batch_loss(still.train(), batch_of(6), RECIPE, 6).total.detach()
    )


def test_the_reward_is_the_mean_over_places_that_count():
    """However much padding there is."""
    ids, places = batch_of(0).input_ids, torch.arange(5)
    mask = torch.cat([ids * 0 + 1, ids * 0], dim=1)
    padded = Batch(torch.cat([ids, ids * 0], dim=1), mask, positions=torch.cat([places, places + 7]))
    found = []
    for batch in (Batch(ids, positions=places), padded):
        run = start(wrapped("llama", 2), replace(RECIPE, accumulation=1))
        found.append(next(train(run, lambda number, batch=batch: batch)))
    assert found[0].reward != 0
    assert found[1].reward == pytest.approx(found[0].reward, rel=1e-3)
    assert found[1].talk == pytest.approx(found[0].talk, rel=1e-3)


def test_recipes_that_train_nothing_are_told():
    for wrong in ("accumulation", "decay_steps"):
        with pytest.raises(ValueError, match=f"{wrong}=0: give at least 1"):
            Recipe(**{wrong: 0})
    with pytest.raises(ValueError, match="warmup_steps=-1: give at least 0"):
        Recipe(warmup_steps=-1)
    with pytest.raises(ValueError, match=r"max_grad_norm=-1\.0: give a positive number"):
        Recipe(max_grad_norm=-1.0)
    with pytest.raises(ValueError, match="precision='bf16': choose"):
        Recipe(precision="bf16")


def test_half_precision_runs_on_float32_weights():
    quiet = wrapped("llama", 2)
    run = start(quiet, replace(RECIPE, precision="bfloat16"))
    report = next(train(run, batch_of))
    full = next(train(start(wrapped("llama", 2), RECIPE), batch_of))
    assert report.base == pytest.approx(full.base, rel=0.02)
    assert report.base != full.base
    assert all(p.dtype == torch.float32 for p in quiet.parameters())
    with pytest.raises(ValueError, match=r"weights in torch.bfloat16 cannot be trained"):
        start(wrapped("llama", 2).bfloat16(), RECIPE)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
def test_attention_without_gradients_is_refused_before_the_first_step():
    with torch.compiler.set_stance("force_eager"):
        quiet = wrapped("llama", 2, changes={"attn_implementation": "flex_attention"})
    with pytest.raises(ValueError, match="no gradients on a CPU: load the model with attn_implementation='sdpa'"):
        start(quiet, RECIPE)


def test_steps_of_the_published_size_reach_weights_of_full_precision_alone():
    """A step of 1e-6 moves them under half-precision passes too; weights kept in bfloat16 would not have felt it."""
    quiet = wrapped("llama", 2)
    before = weights(quiet)
    recipe = replace(RECIPE, precision="bfloat16", lr=1e-6, warmup_steps=0, weight_decay=0.0)
    for _ in train(start(quiet, recipe), batch_of):
        pass
    named = [(before[name], p.detach()) for name, p in quiet.named_parameters() if name.startswith("model.")]
    old, new = (torch.cat([pair[i].flatten() for pair in named]) for i in (0, 1))
    assert float((old != new).float().mean()) > 0.9
    assert float((old.bfloat16() != new.bfloat16()).float().mean()) < 0.05


def test_half_precision_has_the_gradients_of_full_precision():
    gradients = []
    for enabled in (True, False):
        quiet = wrapped("llama", 2)
        ids = batch_of(0).input_ids
        thoughts = quiet.think(ids, positions=torch.arange(5), num_thoughts=2)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            quiet_star_loss(quiet, ids, thoughts, Objective(2, 2)).total.backward()
        gradients.append({name: p.grad for name, p in quiet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(gradient.flatten(), gradients[1][name].flatten(), 0)) > 0.98


def test_a_run_in_half_precision_resumes_to_the_bit(tmp_path):
    recipe = replace(RECIPE, precision="bfloat16")
    whole, part = start(wrapped("llama", 2), recipe), start(wrapped("llama", 2), recipe)
    for _ in train(whole, batch_of):
        pass
    for _ in train(part, batch_of, until=2):
        pass
    save_checkpoint(part, tmp_path / "checkpoint.pt")
    resumed = start(wrapped("llama", 2), recipe)
    load_checkpoint(resumed, tmp_path / "checkpoint.pt")
    for _ in train(resumed, batch_of):
        pass
    states = whole.optimizer.state_dict()["state"].values()
    assert {t.dtype for state in states for t in state.values() if isinstance(t, torch.Tensor)} == {torch.float32}
    assert all(torch.equal(p, q) for p, q in zip(whole.quiet.parameters(), resumed.quiet.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_trains_on_a_gpu():
    quiet = wrapped("llama", 2).cuda()
    reports = list(train(start(quiet, replace(RECIPE, precision="bfloat16")), batch_of))
    wanted = list(train(start(wrapped("llama", 2), replace(RECIPE, precision="bfloat16")), batch_of))
    assert all(p.dtype == torch.float32 and p.is_cuda for p in quiet.parameters())
    assert [r.base for r in reports] == pytest.approx([r.base for r in wanted], rel=0.02)


def test_gradients_that_are_not_finite_end_the_run_before_they_reach_the_weights():
    run = start(wrapped("llama", 2), replace(RECIPE, warmup_steps=0))
    list(train(run, batch_of, until=1))
    before = weights(run.quiet)
    spoiled = run.quiet.head.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(FloatingPointError, match="gradients of step 2 are not finite"):
        next(train(run, batch_of))
    spoiled.remove()
    assert run.step == 1
    assert all(torch.equal(p, before[name]) for name, p in run.quiet.named_parameters())


def test_clipping_is_apart_for_base_and_thoughts():
    quiet = wrapped("llama", 2)
    report = next(train(start(quiet, replace(RECIPE, max_grad_norm=1e-9)), batch_of))
    assert report.base_norm > 1e-3
    assert report.thought_norm > 1e-3


def test_gradient_norms_of_each_term():
    quiet = wrapped("llama", 2)
    terms = batch_loss(quiet, batch_of(0), RECIPE)
    norms = term_norms(quiet, terms)
    assert set(norms) == {"base", "talk", "policy"}
    assert all(norm > 0 for norm in norms.values())
    terms.total.backward()


def test_driving_writes_a_log_checkpoints_and_the_model(tmp_path):
    lines = []
    run = start(wrapped("llama", 2), RECIPE)
    drive(run, batch_of, tmp_path, lines.append, checkpoint_every=2)
    logged = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4]
    back = QuietSTaR.from_pretrained(tmp_path)
    assert torch.equal(back.start, run.quiet.start)
    assert torch.equal(next(back.model.parameters()), next(run.quiet.model.parameters()))
    more = start(wrapped("llama", 2), replace(RECIPE, steps=5))
    drive(more, batch_of, tmp_path, lines.append)
    assert lines[-2] == "going on from step 4"
    assert more.step == 5
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        drive(more, batch_of, tmp_path, lines.append, checkpoint_every=0)


def test_the_log_of_a_run_that_was_killed_has_every_step_once(tmp_path):
    class KilledError(Exception):
        pass

    def killed(number):
        if number == 6:  # the fourth step, one after the last checkpoint
            raise KilledError
        return batch_of(number)

    recipe = replace(RECIPE, steps=5)
    with pytest.raises(KilledError):
        drive(start(wrapped("llama", 2), recipe), killed, tmp_path, list, checkpoint_every=2)
    drive(start(wrapped("llama", 2), recipe), batch_of, tmp_path, list, checkpoint_every=2)
    logged = [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5]


def test_the_command_trains_a_folder_on_a_file(tmp_path):
    import typer

    from inferscale.quiet_star.train import main

    model = model_of("llama")
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "texts.txt").write_text("ab the is ab the 12 Step 12: x\n\n" * 3)
    app = typer.Typer()
    app.command()(main)
    options = ["--data", str(tmp_path / "texts.txt"), "--steps", "2", "--span", "8", "--thought-length", "2"]
    found = CliRunner().invoke(app, [str(tmp_path / "base"), "--folder", str(tmp_path / "out"), *options])
    assert found.exit_code == 0, found.output
    assert "step 2/2" in found.output
    assert QuietSTaR.from_pretrained(tmp_path / "out").thought_length == 2


# -- batches -----------------------------------------------------------------------------------------------------------


def test_task_batches_line_up_prompts_and_count_solutions_alone():
    from inferscale.zoo import task
    from inferscale.zoo.tokenizer import EOS, decode

    batch = task_batches(4, talk_length=2, seed=3, level=1)(7)
    assert torch.equal(task_batches(4, 2, 3, 1)(7).input_ids, batch.input_ids)
    assert not torch.equal(task_batches(4, 2, 3, 1)(8).input_ids[:, :5], batch.input_ids[:, :5])
    first = int(batch.positions[0])
    for ids, mask, counted in zip(batch.input_ids, batch.attention_mask.bool(), batch.in_loss, strict=True):
        prompt = decode(ids[: first + 1].tolist())
        assert decode(ids[counted].tolist()) == task.solution(prompt)
        assert ids[counted][-1] == EOS
        assert not bool((counted & ~mask).any())
    assert int(batch.positions[-1]) + 2 == batch.input_ids.shape[1] - 1


def testaligned_batch_rows_by_hand():
    batch = aligned_batch([([1, 2, 3], [4, 5]), ([6], [7, 8, 9])], 1)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 0], [0, 0, 6, 7, 8, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert batch.in_loss.int().tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert batch.positions.tolist() == [2, 3, 4]


def test_spans_are_pieces_of_the_texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a b a b ab", "x", "12 12 12 12")))
    texts = load_texts(path)
    assert texts == ["a b a b ab", "x", "12 12 12 12"]
    whole = [byte_tokenizer()(text)["input_ids"] for text in texts]
    make = span_batches(texts, byte_tokenizer(), batch_size=8, span=4, seed=1)
    for row in make(0).input_ids.tolist():
        assert any(ids[i : i + 4] == row for ids in whole for i in range(len(ids)))
    assert torch.equal(make(0).input_ids, make(0).input_ids)
    for seed in (-1, 2**40):  # any integer
        assert span_batches(texts, byte_tokenizer(), batch_size=8, span=4, seed=seed)(3).input_ids.shape == (8, 4)
    with pytest.raises(ValueError, match="lower the span"):
        span_batches(texts, byte_tokenizer(), span=400)
    for line, told in (('{"body": "a"}', "a line without a 'text'"), ('{"text": ', "a line that is no JSON")):
        path.write_text('{"text": "a b"}\n' + line)
        with pytest.raises(ValueError, match=told):
            load_texts(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no texts"):
        load_texts(path)
