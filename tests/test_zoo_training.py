"""Training of the embedded models: tokenizer, rows, labels, optimiser, loop; nothing here needs trained weights."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.zoo import task, tokenizer
from inferscale.zoo.models import export, load_model, load_tokenizer
from studies.embedded import data, judge, loop, rollouts
from studies.embedded import data as mistakes
from studies.embedded import judge as judging
from studies.embedded import judge as likelihood
from studies.embedded import judge as monitor
from studies.embedded import loop as optimizer
from studies.embedded import loop as recipes

TINY = recipes.Recipe(recipes.Shape(32, 2, 2, 64), steps=24, decay_steps=8, warmup_steps=4, batch_size=8, seed=3)
TEXT = st.text(alphabet="0123456789 +-*/=\n.,Miapens<>é", max_size=40)


@pytest.fixture(scope="module")
def hub_tokenizer():
    return tokenizer.build_tokenizer()


@pytest.fixture(scope="module")
def tiny():
    return loop.start(TINY).model.train(False)


def some_problems(count, seed=0):
    return task.generate(count, seed, split="train")


def test_tokenizer_agrees_with_the_fast_encoder(hub_tokenizer):
    for problem in some_problems(50):
        text = problem.prompt + task.solution(problem.prompt)
        ids = hub_tokenizer(text, add_special_tokens=False).input_ids
        assert ids == tokenizer.encode(text)
        assert hub_tokenizer.decode(ids) == text == tokenizer.decode(ids)
        assert tokenizer.UNK not in ids
        assert tokenizer.encode(problem.prompt) + tokenizer.encode(task.solution(problem.prompt)) == ids
        words = hub_tokenizer.convert_ids_to_tokens(ids)
        assert all(len(word) == 1 for word in words if any(character.isdigit() for character in word))
        assert [word for word in words if "\n" in word] == ["\n"] * text.count("\n")


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_tokenizer_reads_any_text(hub_tokenizer, text):
    ids = hub_tokenizer(text, add_special_tokens=False).input_ids
    if "<" not in text:  # a special token written out is one token for the shipped tokenizer
        assert ids == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("é", "")


def test_special_tokens(hub_tokenizer):
    ids = hub_tokenizer.convert_tokens_to_ids(list(tokenizer.SPECIAL_TOKENS))
    assert ids == list(range(8))
    assert (hub_tokenizer.pad_token_id, hub_tokenizer.bos_token_id, hub_tokenizer.eos_token_id) == (0, 1, 2)
    assert hub_tokenizer("Mia").input_ids[0] == tokenizer.BOS
    assert len(hub_tokenizer) <= tokenizer.VOCABULARY_SIZE
    assert len(set(tokenizer.vocabulary().values())) == len(tokenizer.vocabulary())


def test_problem_rows_train_the_solution_only():
    for problem in some_problems(20):
        row = data.problem_row(random.Random(1), problem)
        trained = [token for token, wanted in zip(row.token_ids, row.in_loss, strict=True) if wanted]
        given_ids = [token for token, wanted in zip(row.token_ids, row.in_loss, strict=True) if not wanted]
        assert given_ids == [tokenizer.BOS, *tokenizer.encode(problem.prompt)]
        assert trained[-1] == tokenizer.EOS
        assert all(task.check_steps(problem.prompt, tokenizer.decode(trained)))


def test_drill_rows_are_right_and_train_results_only():
    row = data.drill_row(random.Random(0), lines=200)
    for line in tokenizer.decode(list(row.token_ids)).splitlines():
        left, op, right, equals, result = line.split(" ")
        assert equals == "="
        value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
        assert value.get(op, int(left) / int(right)) == int(result)
    trained = tokenizer.decode([token for token, wanted in zip(row.token_ids, row.in_loss, strict=True) if wanted])
    assert all(part.isdigit() for part in trained.split())


def test_training_never_sees_held_out_problems():
    rows = itertools.chain.from_iterable(data.policy_batches(0, 8, 0, 0.0))
    for row in rows:
        prompt = tokenizer.decode([t for t, wanted in zip(row.token_ids, row.in_loss, strict=True) if not wanted])
        assert task.split_of(prompt) == "train"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_token_labels_equal_the_checker(seed):
    rng = random.Random(seed)
    (problem,) = some_problems(1, seed)
    text, error = mistakes.corrupt(rng, problem.prompt)
    assert task.first_error(problem.prompt, text) == error
    row = judging.judged_row(problem.prompt, text)
    at_ends = [label for label, end in zip(row.labels, row.ends, strict=True) if end]
    assert [bool(label) for label in at_ends] == task.step_labels(problem.prompt, text)
    labelled = [label for label in row.labels if label >= 0]
    assert labelled == sorted(labelled, reverse=True)  # right up to the deviation, wrong from there
    assert [token for token, label in zip(row.token_ids, row.labels, strict=True) if label >= 0] == [
        *tokenizer.encode(text), *([] if text.endswith("\n") else [tokenizer.EOS]),
    ]  # fmt: skip


def test_token_labels_by_hand():
    prompt = "Tom has 12 eggs. Tom buys 5 more. Tom loses 4. How many eggs are left?\n"
    assert task.solution(prompt) == "12 + 5 = 17\n17 - 4 = 13\nThe answer is: 13"

    def labels(completion):
        row = judging.judged_row(prompt, completion)
        return "".join(str(label) for label in row.labels if label >= 0)

    assert labels("5 + 12 = 17\n") == "1" * 8
    assert labels("12 + 5 = 18\n17 - 4 = 13\n") == "1" * 6 + "00"  # the last digit; nothing after the line
    assert labels("12 + 5 = 1\n") == "1" * 6 + "0"  # the end of line comes too early
    assert labels("12 + 5 = 173\n") == "1" * 7 + "00"
    assert labels("12 - 5 = 7\n") == "11" + "0" * 5
    assert labels("12 + 5 = 17\n17 - 4 = 13\nThe answer is: 1") == "1" * 8 + "1" * 8 + "1" * 6 + "0"


def test_judged_drills_label_every_line_alone():
    row = judging.drill_judged_row(random.Random(0), lines=200)
    starts = [0, *[at for at, end in enumerate(row.ends) if end]]
    verdicts = []
    for begin, end in itertools.pairwise(starts):
        text = tokenizer.decode(list(row.token_ids[begin + 1 : end + 1]))
        left, op, right, _, result = text.split()
        value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
        verdicts.append(value.get(op, int(left) // int(right)) == int(result))
        labels = [label for label in row.labels[begin + 1 : end + 1] if label >= 0]
        assert len(labels) == len(result) + 1
        assert labels == sorted(labels, reverse=True)
        assert bool(labels[-1]) == verdicts[-1]
        assert any(row.in_loss[begin + 1 : end + 1]) == verdicts[-1]
    assert 60 < sum(verdicts) < 140


def test_orthogonalize_makes_singular_values_one():
    matrices = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optimizer.orthogonalize(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3
    alone = torch.stack([optimizer.orthogonalize(matrix) for matrix in matrices])
    torch.testing.assert_close(optimizer.orthogonalize(matrices), alone)


def test_every_weight_has_one_optimizer():
    model = loop.start(TINY).model
    groups = [p for made in optimizer.make_optimizers(model, 0.1, 0.1) for g in made.param_groups for p in g["params"]]
    assert len(groups) == len({id(p) for p in groups}) == len(list(model.parameters()))


def test_schedule():
    recipe = replace(TINY, steps=100, warmup_steps=10, decay_steps=40)
    assert [recipe.lr_factor(step) for step in (0, 9, 50, 60, 80, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.025])


def test_loss_falls_on_a_tiny_run():
    run = loop.start(replace(TINY, steps=40, decay_steps=10, early_drills=0.0))
    losses = list(loop.train(run, 40))
    assert losses[0] == pytest.approx(5.4, abs=0.3)  # log of 224 tokens
    assert sum(losses[-5:]) / 5 < 3.0
    assert run.tokens > 10_000


def test_a_loss_that_is_not_finite_never_reaches_the_weights():
    run = loop.start(TINY)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="loss of step 1 is nan"):
        list(loop.train(run, 1, lambda run: (run.model.lm_head.weight.sum() * float("nan"), 1)))
    assert run.step == 0
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


@pytest.mark.parametrize("stop", [5, 8])
def test_resumed_run_equals_straight_run(tmp_path, stop):
    straight = loop.start(TINY)
    expected = list(loop.train(straight, 12))
    first = loop.start(TINY)
    losses = list(loop.train(first, stop))
    loop.save_checkpoint(first, tmp_path / "step-000005.pt")
    second = loop.start(TINY)
    loop.load_checkpoint(second, tmp_path / "step-000005.pt")
    losses += list(loop.train(second, 12))
    assert losses == expected
    assert second.tokens == straight.tokens
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_decay_from_a_longer_run_equals_the_shorter_run(tmp_path):
    longer = loop.start(replace(TINY, steps=24, decay_steps=8))
    list(loop.train(longer, 6))
    loop.save_checkpoint(longer, tmp_path / "a.pt")
    branched = loop.start(replace(TINY, steps=12, decay_steps=4))
    loop.load_checkpoint(branched, tmp_path / "a.pt")
    straight = loop.start(replace(TINY, steps=12, decay_steps=4))
    losses = list(loop.train(straight, 12))
    assert list(loop.train(branched, 12)) == losses[6:]


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    loop.save_checkpoint(loop.start(TINY), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="batch_size"):
        loop.load_checkpoint(loop.start(replace(TINY, batch_size=4)), tmp_path / "a.pt")
    loop.load_checkpoint(loop.start(replace(TINY, steps=99, decay_steps=9)), tmp_path / "a.pt")


def test_start_leaves_the_global_random_state():
    state = torch.random.get_rng_state()
    loop.start(TINY)
    assert torch.equal(state, torch.random.get_rng_state())


def test_early_exit_is_trained():
    run = loop.start(replace(TINY, exit_layer=1, exit_weight=0.5))
    rows = data.policy_batches(0, 8, 0, 0.0)[0]
    plain, both = loop.token_loss(run.model, rows), loop.token_loss(run.model, rows, 1, 0.5)
    assert both.item() == pytest.approx(1.5 * plain.item(), rel=0.05)  # random weights: both near log 224


def test_judge_loss_falls_and_labels_reach_every_source():
    recipe = recipes.JudgeRecipe("policy-m", replace(TINY, steps=30, decay_steps=5))
    made = [judging.Rollout(p.prompt, mistakes.corrupt(random.Random(0), p.prompt)[0], "x") for p in some_problems(8)]
    run = judge.branch(recipe, loop.start(TINY).model)
    losses = list(loop.train(run, 30, judge.judge_loss(recipe, made)))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_judge_scores_do_not_depend_on_the_batch(tiny):
    problems = some_problems(6)
    prompts = [p.prompt for p in problems]
    texts = [task.solution(p.prompt) for p in problems]
    for score in (judge.score_steps, likelihood.score_lines):
        together = score(tiny, prompts, texts)
        alone = [score(tiny, [prompt], [text])[0] for prompt, text in zip(prompts, texts, strict=True)]
        for row, other, text in zip(together, alone, texts, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
            assert len(row) == len(text.splitlines())


def test_likelihood_by_hand(tiny):
    (problem,) = some_problems(1)
    text = task.solution(problem.prompt)
    ids = [tokenizer.BOS, *tokenizer.encode(problem.prompt + text), tokenizer.EOS]
    chances = torch.softmax(tiny(input_ids=torch.tensor([ids])).logits[0], -1)
    first = len(tokenizer.encode(problem.prompt)) + 1
    length = len(tokenizer.encode(text.splitlines()[0] + "\n"))
    expected = min(chances[at - 1, ids[at]].item() for at in range(first, first + length))
    assert likelihood.score_lines(tiny, [problem.prompt], [text])[0][0] == pytest.approx(expected, rel=1e-4)


def test_greedy_sampling_equals_generate(tiny):
    prompts = [p.prompt for p in some_problems(5)]
    made = rollouts.sample(tiny, prompts, 1, temperature=0, max_new_tokens=12)
    for prompt, (text,) in zip(prompts, made, strict=True):
        ids = torch.tensor([[tokenizer.BOS, *tokenizer.encode(prompt)]])
        out = tiny.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert text == tokenizer.decode(out[0, ids.shape[1] :].tolist())


def test_sampling_is_seeded_and_keeps_order(tiny):
    prompts = [p.prompt for p in some_problems(4)]
    first = rollouts.sample(tiny, prompts, 3, seed=1, max_new_tokens=8)
    assert first == rollouts.sample(tiny, prompts, 3, seed=1, max_new_tokens=8)
    assert first != rollouts.sample(tiny, prompts, 3, seed=2, max_new_tokens=8)
    assert [len(row) for row in first] == [3] * 4


def test_rollouts_survive_their_file(tmp_path, tiny):
    made = rollouts.make_rollouts(tiny, "x", problems=2, n=2, seed=0)
    rollouts.write_rollouts(made, tmp_path / "r.jsonl")
    assert rollouts.read_rollouts([tmp_path / "r.jsonl"]) == made


def test_pairs_differ_at_the_named_line_only():
    prompts, right, wrong, errors = monitor.corrupted_pairs(30, seed=0)
    for prompt, good, bad, error in zip(prompts, right, wrong, errors, strict=True):
        assert task.first_error(prompt, good) is None
        assert task.first_error(prompt, bad) == error == len(bad.splitlines()) - 1
        assert task.split_of(prompt) == "dev"


def test_export_round_trip_and_missing_weights(tmp_path, tiny):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "policy-tiny"
    card = export(tiny, folder, kind="policy", training_tokens=5, command="none")
    assert (card.name, card.parameters) == ("policy-tiny", sum(p.numel() for p in tiny.parameters()))
    loaded, ids = load_model(folder), torch.arange(8, 40)[None]
    assert not loaded.training
    torch.testing.assert_close(loaded(ids).logits, tiny(ids).logits, atol=0.02, rtol=0.01)
    assert load_tokenizer(folder)("Mia has 12 pens.").input_ids == [
        tokenizer.BOS,
        *tokenizer.encode("Mia has 12 pens."),
    ]
    weights = load_file(folder / "model.safetensors")
    for changed in ({**weights, "extra": torch.zeros(1)}, dict(list(weights.items())[1:])):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match="do not fit"):
            load_model(folder)
