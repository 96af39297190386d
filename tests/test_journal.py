"""Journals that are damaged, foreign or of a search that the clock ended."""

import json
import random
import re
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from inferscale.base import Generator, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch
from inferscale.engine.files import RunLockedError
from inferscale.engine.journal import repair_journal
from inferscale.flow import expand
from inferscale.generators import HFGenerator
from inferscale.identity import identity_of
from inferscale.quiet_star import QuietSTaR, ThoughtUtility
from inferscale.rewards import CachedProcessReward, EnsembleProcessReward, LikelihoodReward, TruncatedProcessReward
from inferscale.strategies import REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
from inferscale.tree import Step
from tests.tiny_models import byte_tokenizer, tiny_model

PROMPTS = ["How many?", "How many more?"]


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("bad", [b'{"root": "0', b"\xff\xfe", b"[1]", b'{"kind": "steps"}', b""], ids=repr)
def test_a_journal_damaged_in_the_middle_says_where_and_is_left_alone(tmp_path, bad):
    path = tmp_path / "journal.jsonl"
    solve(PROMPTS[0], BeamSearch(2, 2), ToyGenerator(), reward_model=ToyReward(), journal=path)
    lines = lines_of(path)
    lines[2] = bad + b"\n"
    damaged = b"".join(lines) + b'{"torn'
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"journal\.jsonl is damaged at line 3"):
        solve(PROMPTS[0], BeamSearch(2, 2), ToyGenerator(), reward_model=ToyReward(), journal=path)
    assert path.read_bytes() == damaged


def test_a_journal_has_one_writer_at_a_time(tmp_path):
    path = tmp_path / "journal.jsonl"

    class Second(ToyGenerator):
        """Makes the same call while the first one is under way."""

        def generate(self, requests):
            with pytest.raises(RunLockedError, match=r"another call is writing to the journal .*journal\.jsonl"):
                solve(PROMPTS[0], RepeatedSampling(2), ToyGenerator(), journal=path)
            return super().generate(requests)

        def identity(self):
            return identity_of(ToyGenerator())

    first = solve(PROMPTS[0], RepeatedSampling(2), Second(), journal=path)
    again = solve(PROMPTS[0], RepeatedSampling(2), Dead(Second()), journal=path)  # the lock is gone
    assert again.trajectories == first.trajectories


OPTIONS = {"strategy": REBASE(4), "generator": ToyGenerator(), "reward_model": ToyReward()}


def test_a_flipped_bit_is_told_and_what_is_whole_is_kept(tmp_path):
    """Of every line some bits: the call says where, and after the repair its results are those of before."""
    path, rng = tmp_path / "journal.jsonl", random.Random(0)
    straight = solve_batch(PROMPTS, **OPTIONS, journal=path)
    whole = lines_of(path)
    assert len(whole) > 6
    for number, line in enumerate(whole):
        for _ in range(4):
            bad = bytearray(line)
            place = rng.randrange(len(line) - 1)
            bad[place] ^= 1 << rng.randrange(8)
            path.write_bytes(b"".join([*whole[:number], bytes(bad), *whole[number + 1 :]]))
            path.with_name("journal.jsonl.damaged").unlink(missing_ok=True)
            told = ""
            try:
                again = solve_batch(PROMPTS, **OPTIONS, journal=path)
            except ValueError as error:
                told = str(error)
            if told:
                assert re.search(rf"journal\.jsonl is (damaged at line {number + 1}: |no journal)", told)
                if number == 0:
                    continue  # whose answers these are cannot be told
                stayed, taken = repair_journal(path)
                assert stayed >= number
                assert bytes(bad).rstrip(b"\n") in path.with_name("journal.jsonl.damaged").read_bytes()
                assert taken >= 1
                again = solve_batch(PROMPTS, **OPTIONS, journal=path)
            assert [r.trajectories for r in again] == [r.trajectories for r in straight]
            assert [r.cost.without_seconds() for r in again] == [r.cost.without_seconds() for r in straight]


def test_a_lost_line_is_seen(tmp_path):
    path = tmp_path / "journal.jsonl"
    solve_batch(PROMPTS, **OPTIONS, journal=path)
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(ValueError, match=r"damaged at line \d+: run `inferscale repair"):
        solve_batch(PROMPTS, **OPTIONS, journal=path)


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "journal.jsonl"
    straight = solve_batch(PROMPTS, **OPTIONS, journal=path)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (size // 3, size - size // 8):  # another run's journal may be some digits shorter
        path.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(OSError, match=r"journal\.jsonl"):
                solve_batch(PROMPTS, **OPTIONS, journal=path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes().endswith(b"\n")
        again = solve_batch(PROMPTS, **OPTIONS, journal=path)
        assert [r.trajectories for r in again] == [r.trajectories for r in straight]


@pytest.mark.parametrize("foreign", [b"my only copy", b'{"format": "x"}', b"a\nb", b"[1, 2]\n", b'{"a": 1}\n{"b'])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, foreign):
    path = tmp_path / "notes"
    path.write_bytes(foreign)
    with pytest.raises(ValueError, match="is no journal"):
        solve(PROMPTS[0], RepeatedSampling(2), ToyGenerator(), journal=path)
    assert path.read_bytes() == foreign


def test_a_header_that_was_torn_is_written_anew(tmp_path):
    path = tmp_path / "journal.jsonl"
    straight = solve(PROMPTS[0], RepeatedSampling(2), ToyGenerator(), journal=path)
    for length in (0, 1, 30):
        path.write_bytes(lines_of(path)[0][:length])
        again = solve(PROMPTS[0], RepeatedSampling(2), ToyGenerator(), journal=path)
        assert again.trajectories == straight.trajectories
        assert len(lines_of(path)) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"strategy": RepeatedSampling(np.int64(2))}, {"strategy": RepeatedSampling(2)}),
        ({"strategy": REBASE(2, np.float64(0.5))}, {"strategy": REBASE(2, 0.5)}),
        ({"seed": np.int64(3)}, {"seed": 3}),
        ({"budget": Budget(calls=np.int32(2), flops=np.int64(9))}, {"budget": Budget(calls=2, flops=9)}),
        ({"budget": Budget(tokens=1e3)}, {"budget": Budget(tokens=1000)}),
    ],
)
def test_numbers_of_numpy_are_the_same_numbers(tmp_path, one, other):
    for options in (one, other):
        options = {"strategy": RepeatedSampling(2), **options}
        solve(PROMPTS[0], generator=ToyGenerator(), reward_model=ToyReward(), journal=tmp_path / "j", **options)


class Arrays(Generator):
    """A generator that hands out what NumPy gave it."""

    def identity(self):
        return {}

    def generate(self, requests):
        step = Step("The answer is 5", tuple(np.arange(3)), np.float32(-1), None, "eos", flops=np.int64(6 * 10**18))
        return [[step] * request.n for request in requests]


def test_steps_of_numpys_numbers_are_recorded_and_add_up(tmp_path):
    straight = solve(PROMPTS[0], RepeatedSampling(4), Arrays(), journal=tmp_path / "j")
    path = tmp_path / "j"
    again = solve(PROMPTS[0], RepeatedSampling(4), Dead(Arrays()), journal=path)
    assert again.trajectories == straight.trajectories
    assert again.cost == straight.cost
    assert straight.cost.generator_flops == 24 * 10**18
    assert straight.load(straight.save(tmp_path / "r.json")).trajectories == straight.trajectories


class Dead(Generator):
    """Goes by the name of another generator, and gives nothing."""

    concurrent = True

    def __init__(self, other):
        self.other = other

    def identity(self):
        return identity_of(self.other)

    def generate(self, requests):
        raise AssertionError("all is in the journal")


@dataclass(frozen=True)
class Steps(SearchStrategy):
    """One path of a hundred steps, each judged only at the end."""

    def search(self, root, rng):
        node = root
        for _ in range(100):
            (node,) = yield from expand([node])
        return [node]


class Slow(ToyGenerator):
    """Takes its time."""

    def generate(self, requests):
        time.sleep(0.02)
        return super().generate(requests)


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_search_that_the_clock_ended_ends_there_again(tmp_path, concurrent):
    path = tmp_path / "journal.jsonl"
    slow = Slow(depth=None)
    reward = ToyReward()
    slow.concurrent = reward.concurrent = concurrent
    options = {"reward_model": reward, "budget": Budget(seconds=0.1), "journal": path}
    first = solve_batch(PROMPTS, Steps(), slow, **options)
    assert {result.stopped_by for result in first} == {"seconds"}
    again = solve_batch(PROMPTS, Steps(), Dead(Slow(depth=None)), **options)
    assert [result.to_dict() for result in again] == [result.to_dict() for result in first]


def test_what_is_replayed_counts_for_the_clock_but_never_stops_a_replay(tmp_path):
    path, options = tmp_path / "journal.jsonl", {"reward_model": ToyReward(), "budget": Budget(seconds=1000)}
    dying = BrokenGenerator(die_after=3, toy=ToyGenerator(depth=None))
    with pytest.raises(KeyboardInterrupt):
        solve(PROMPTS[0], Steps(), dying, journal=path, **options)
    header, *steps = [json.loads(line) for line in lines_of(path)]
    assert len(steps) == 3
    for row in (header, *steps):
        del row["crc32"]
    steps[1]["seconds"] = 2000.0
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *steps)))
    left = ToyGenerator(depth=None)
    again = solve(PROMPTS[0], Steps(), left, journal=path, **options)
    assert (again.stopped_by, left.calls) == ("seconds", 0)
    assert again.cost.num_generated == 3


def test_what_a_cancellation_has_cut_is_drawn_again(tmp_path):
    path, cancel = tmp_path / "journal.jsonl", threading.Event()

    class Cut(ToyGenerator):
        """Is cancelled in its second call, and ends it at once."""

        def identity(self):
            return ToyGenerator().identity()

        def generate(self, requests):
            groups = super().generate(requests)
            if self.calls < 2:
                return groups
            cancel.set()
            return [[replace(step, finish_reason="budget") for step in steps] for steps in groups]

    cut = solve(PROMPTS[0], REBASE(4), Cut(), reward_model=ToyReward(), journal=path, cancel=cancel)
    assert cut.stopped_by == "cancel"
    straight = solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward())
    again = solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward(), journal=path)
    assert (again.stopped_by, again.trajectories) == (None, straight.trajectories)


def test_a_search_killed_anywhere_ends_the_same_from_its_journal(tmp_path):
    straight = solve_batch(PROMPTS, REBASE(6), ToyGenerator(), reward_model=ToyReward())
    for calls in range(1, 4):
        path = tmp_path / f"{calls}.jsonl"
        dying = BrokenGenerator(die_after=calls)
        with pytest.raises(KeyboardInterrupt):
            solve_batch(PROMPTS, REBASE(6), dying, reward_model=ToyReward(), journal=path)
        path.write_bytes(path.read_bytes() + b'{"torn": ')
        rest, reward = ToyGenerator(), ToyReward()
        resumed = solve_batch(PROMPTS, REBASE(6), rest, reward_model=reward, journal=path)
        assert rest.calls == 4 - calls
        assert [r.trajectories for r in resumed] == [r.trajectories for r in straight]
        assert [r.cost.without_seconds() for r in resumed] == [r.cost.without_seconds() for r in straight]
        done = ToyGenerator()
        again = solve_batch(PROMPTS, REBASE(6), done, reward_model=ToyReward(), journal=path)
        assert done.calls == 0
        assert [r.trajectories for r in again] == [r.trajectories for r in straight]


JUDGES = {
    "likelihood": lambda generator: LikelihoodReward.from_generator(generator, use_token_ids=True),
    "cached": lambda generator: CachedProcessReward(LikelihoodReward.from_generator(generator)),
    "ensemble": lambda generator: EnsembleProcessReward(
        [LikelihoodReward.from_generator(generator), CachedProcessReward(LikelihoodReward.from_generator(generator))]
    ),
    "truncated": lambda generator: TruncatedProcessReward(LikelihoodReward.from_generator(generator)),
    "thoughts": lambda generator: ThoughtUtility(
        QuietSTaR(generator.model, 1, start_token_id=5, end_token_id=6), byte_tokenizer()
    ),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_a_resumed_search_bills_its_reward_model_as_an_undisturbed_one(tmp_path, judge):
    generator = HFGenerator(tiny_model("llama"), byte_tokenizer(), max_step_tokens=4, max_new_tokens=16)
    straight = solve_batch(PROMPTS, BeamSearch(2, 2), generator, reward_model=JUDGES[judge](generator))
    assert all(result.cost.scored_tokens > 0 for result in straight)
    for answers in (2, 7):
        path, left = tmp_path / f"{answers}.jsonl", iter(range(answers - 1))

        def die(update, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            solve_batch(
                PROMPTS, BeamSearch(2, 2), generator, reward_model=JUDGES[judge](generator), journal=path, on_step=die
            )
        resumed = solve_batch(PROMPTS, BeamSearch(2, 2), generator, reward_model=JUDGES[judge](generator), journal=path)
        assert [r.cost.without_seconds() for r in resumed] == [r.cost.without_seconds() for r in straight]
        for one, other in zip(resumed, straight, strict=True):
            assert [t.text for t in one.trajectories] == [t.text for t in other.trajectories]
            assert [t.score for t in one.trajectories] == pytest.approx([t.score for t in other.trajectories], abs=1e-5)


def test_a_journal_of_another_call_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    solve(PROMPTS[0], RepeatedSampling(2), ToyGenerator(), journal=path)
    with pytest.raises(ValueError, match=r"another call \(strategy.n was 2 and is 3; seed was 0 and is 1\)"):
        solve(PROMPTS[0], RepeatedSampling(3), ToyGenerator(), journal=path, seed=1)
