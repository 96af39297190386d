"""A task that only thoughts can solve: they learn to, and the controls do not."""

import pytest
import torch

from studies.quiet_star_toy import (
    COLON,
    DOT,
    EQUALS,
    PermutationTask,
    pretrain,
    recipe,
    taught,
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


def before_and_after(state, seed=0, **objective):
    model = toy_model(TASK)
    model.load_state_dict(state)
    return toy_score(toy_quiet(model, TASK).eval(), TASK), taught(state, recipe(100, seed, **objective))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thoughts_learn_what_one_pass_cannot_compute(pretrained):
    for seed in (0, 1):
        before, quiet = before_and_after(pretrained, seed)
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
    before, quiet = before_and_after(pretrained, policy_weight=0.0)
    after = toy_score(quiet, TASK)
    assert after.nll > 1.0
    assert after.chain_rate < before.chain_rate + 0.2
