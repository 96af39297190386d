"""A task that only thoughts can solve: they learn to, and the controls do not."""

import pytest
import torch

from inferscale.quiet_star import Objective, Recipe
from inferscale.quiet_star.train import start, train
from studies.quiet_star_toy import (
    COLON,
    DOT,
    EQUALS,
    PermutationTask,
    pretrain,
    toy_batch,
    toy_model,
    toy_quiet,
    toy_score,
)

TASK = PermutationTask()


def test_the_answer_is_the_composition():
    draw = torch.Generator().manual_seed(0)
    prompts, chain = TASK.problems(50, draw)
    for prompt, states in zip(prompts.tolist(), chain.tolist(), strict=True):
        state = prompt[1] - 4
        for move, wanted in zip(prompt[2:6], states, strict=True):
            state = int(TASK.tables[move - 12, state])
            assert wanted == state + 4
        assert prompt[TASK.equals_at] == EQUALS
    assert TASK.vocabulary == 18
    assert sorted(TASK.tables[0].tolist()) == list(range(8))


def test_both_forms_by_shape():
    draw = torch.Generator().manual_seed(0)
    direct, worked = TASK.direct(200, draw), TASK.worked(200, draw)
    assert direct.shape == (200, 9)
    assert worked.shape == (200, 14)
    assert set(direct[:, -1].tolist()) == {DOT}
    assert set(worked[:, 7].tolist()) == {COLON}
    assert 60 < int((worked[:, 11] == worked[:, 13]).sum()) < 160  # half are true, an eighth of the rest by chance
    assert sum(p.numel() for p in toy_model(TASK).parameters()) == 84_544


@pytest.fixture(scope="module")
def pretrained():
    torch.set_num_threads(1)
    model = toy_model(TASK)
    for _ in pretrain(model, TASK, steps=2000):
        pass
    return model.state_dict()


def taught(state, steps=100, seed=0, **options):
    model = toy_model(TASK)
    model.load_state_dict(state)
    quiet = toy_quiet(model, TASK).eval()
    before = toy_score(quiet, TASK)
    objective = Objective(1, 4, reinforce_temperature=1.0, **options)
    recipe = Recipe(
        objective,
        lr=3e-4,
        head_lr_scale=10.0,
        embedding_lr_scale=10.0,
        weight_decay=0.0,
        warmup_steps=0,
        steps=steps,
        accumulation=1,
        seed=seed,
    )
    for _ in train(start(quiet, recipe), lambda number: toy_batch(TASK, 64, 1000 * seed + number)):
        pass
    return quiet.eval(), before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thoughts_learn_what_one_pass_cannot_compute(pretrained):
    for seed in (0, 1):
        quiet, before = taught(pretrained, seed=seed)
        after, random = toy_score(quiet, TASK), toy_score(quiet, TASK, random=True)
        assert before.chain_rate > 0.35
        assert before.nll == pytest.approx(before.plain_nll, abs=1e-6)
        assert after.plain_nll > 1.7
        assert after.nll < 0.4
        assert random.nll > 1.5
        assert after.chain_rate > before.chain_rate + 0.2
        assert after.accuracy > 0.85


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_the_policy_term_thoughts_do_not_learn(pretrained):
    quiet, before = taught(pretrained, policy_weight=0.0)
    after = toy_score(quiet, TASK)
    assert after.nll > 1.0
    assert after.chain_rate < before.chain_rate + 0.2
