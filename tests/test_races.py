"""Races: which samples come first is told by tokens, the others end there, whatever runs when."""

import pytest

from inferscale import HFGenerator, solve_batch
from inferscale.flow import GenerateRequest, Race
from inferscale.strategies import ShortMofK
from inferscale.testing import PROMPTS, ToyGenerator
from inferscale.viz import render_tree
from tests.tiny_models import byte_tokenizer, root, shared_model, tiny_model


def ended(step):
    return step.finish_reason == "eos"


def requests(race=None, aheads=(0, 5, 30)):
    return [GenerateRequest(root(f"How many {i}?"), 3, "end", race=race, ahead=n) for i, n in enumerate(aheads)]


def plain(groups):
    return [[(step.text, step.token_ids, step.finish_reason, step.flops) for step in steps] for steps in groups]


@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}, {"check_every": 5}, {"cache": "none"}], ids=str)
def test_of_each_sample_no_more_is_kept_than_the_last_of_the_first_has(places, options):
    generator = HFGenerator(
        shared_model(), byte_tokenizer(), max_new_tokens=40, eos_token_id=list(range(0, 60, 4)), **options
    )
    whole = generator.generate(requests())
    lengths = sorted(
        request.ahead + step.generated_tokens
        for request, steps in zip(requests(), whole, strict=True) for step in steps if ended(step)
    )  # fmt: skip
    line, race = lengths[places - 1], Race(places, ended)
    beside = [GenerateRequest(root("And something else?"), 2, "end")]
    asked = requests(race)
    found = generator.generate([*asked, *beside])
    assert plain(found[3:]) == plain(generator.generate(beside))
    cuts = 0
    for request, steps, others in zip(asked, found, whole, strict=False):
        for step, other in zip(steps, others, strict=True):
            most = max(line - request.ahead, 0)
            assert step.token_ids == other.token_ids[:most]
            assert step.generated_tokens == min(other.generated_tokens, most)
            if other.generated_tokens <= most:
                assert plain([[step]]) == plain([[other]])
            else:
                cuts += 1
                assert step.finish_reason == "budget"
    assert cuts > 2
    assert generator.stats.decoded_tokens == sum(
        s.generated_tokens for g in (whole, found, found[3:]) for ss in g for s in ss
    )


def test_a_race_is_the_same_however_many_rows_there_are():
    found = []
    for rows in (1, 3, 64):
        generator = HFGenerator(tiny_model(), byte_tokenizer(), max_new_tokens=40, micro_batch=rows)
        found.append(generator.generate(requests(Race(2, lambda step: True))))
    assert [plain(groups) for groups in found[1:]] == [plain(found[0])] * 2


def test_a_race_that_is_cancelled_does_not_wait():
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_new_tokens=30)
    with generator.open() as sampling:
        tickets = [sampling.submit(request) for request in requests(Race(2, ended))]
        for ticket in tickets:
            sampling.cancel(ticket)
        steps = sampling.collect_all()
    assert len(steps) == 9
    assert {step.finish_reason for _, _, step in steps} == {"budget"}


def test_lengths_of_earlier_calls_count():
    assert Race(2, ended, (7, 3)).line([]) == 7
    assert Race(2, ended, (7, 3)).line([5]) == 5
    assert Race(3, ended, (7,)).line([5]) is None


def test_what_short_m_of_k_does_not_need_is_not_paid_for():
    """Each chain costs no more than the longest that votes, and all schedules agree to the token."""
    alone, ragged = (solve_batch(PROMPTS, ShortMofK(2, 5), ToyGenerator(ragged=ragged)) for ragged in (False, True))
    assert [render_tree(r.root, max_text=99) for r in alone] == [render_tree(r.root, max_text=99) for r in ragged]
    for result in alone:
        leaves = [node for node in result.root.walk() if node.is_finished]
        lengths = [sum(node.step.generated_tokens for node in leaf.path if node.step) for leaf in leaves]
        done = sorted(n for n, leaf in zip(lengths, leaves, strict=True) if leaf.step.finish_reason == "eos")
        assert len(leaves) == 5
        assert max(lengths) <= done[1]
