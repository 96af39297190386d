"""The voting rule: vectors, permutations, equivalences, and the reduction that is configured."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.aggregators import (
    BestOfN,
    BordaVote,
    ConfidenceVote,
    HedgedBestOfN,
    MajorityVote,
    Medoid,
    Oracle,
    answer_weights,
    group_answers,
)
from inferscale.functional import majority_vote
from inferscale.tree import Problem, Step, Trajectory

PROBLEM = Problem("q", answer="5")


def path(answer, score=None, step_scores=None, confidences=(None,), text=None, tokens=1):
    steps = tuple(
        Step(text or f"{answer}", tuple(range(tokens)), confidence=c, finish_reason="eos") for c in confidences
    )
    return Trajectory(PROBLEM, steps, step_scores, answer, score)


def paths(answers, scores=None):
    return [path(a, s) for a, s in zip(answers, scores or [None] * len(answers), strict=True)]


ALL = [MajorityVote(), MajorityVote(weighted=True), BestOfN(), BordaVote(), ConfidenceVote(), Medoid(), Oracle()]
ANSWERED = BestOfN(drop_abstentions=True)


@pytest.mark.parametrize("aggregator", ALL, ids=repr)
def test_no_trajectories_is_a_clear_error(aggregator):
    with pytest.raises(ValueError, match="no trajectories"):
        aggregator.select([])


def test_known_votes():
    assert MajorityVote().select(paths(["a", "b", "b", "a", None, None, None])).answer == "a"
    assert MajorityVote().select(paths([None, None, None, "5", "5"])).answer == "5"
    three = paths(["a", "b", "b"], [0.6, 0.3, 0.35])
    assert MajorityVote().select(three) is three[2]  # b, its best-scored member
    assert MajorityVote(weighted=True).select(three) is three[2]
    assert BestOfN().select(three) is three[0]
    assert MajorityVote(weighted=True).select(paths(["a", "b", "b"], [0.7, 0.3, 0.35])).answer == "a"


def test_ties_go_to_the_greater_sum_of_scores_and_then_to_the_earliest():
    tied = paths(["a", "b", "b", "a"], [0.1, 0.3, 0.2, 0.1])
    assert MajorityVote().select(tied) is tied[1]
    same = paths(["a", "b", "b", "a"], [0.1, 0.2, 0.1, 0.2])
    assert MajorityVote().select(same) is same[3]  # a came first; its second member scores best
    members = paths(["a", "a"], [0.2, 0.2])
    assert MajorityVote().select(members) is members[0]
    assert BestOfN().select(members) is members[0]
    exact = paths(["a", "b", "b", "b"], [0.6, 0.1, 0.2, 0.3])
    assert MajorityVote(weighted=True).select(exact).answer == "a"  # 0.1 + 0.2 + 0.3 == 0.6, summed exactly


@pytest.mark.parametrize("aggregator", [MajorityVote(), MajorityVote(weighted=True), ANSWERED, BordaVote()], ids=repr)
def test_an_abstention_never_wins_unless_all_abstain(aggregator):
    mixed = paths([None, None, "c", None], [0.9, 0.9, 0.1, 0.9])
    assert aggregator.select(mixed) is mixed[2]
    nobody = paths([None, None, None], [0.1, 0.9, 0.9])
    assert aggregator.select(nobody) is nobody[1]  # the best-scored, the earliest on ties


@pytest.mark.parametrize("aggregator", [MajorityVote(weighted=True), ANSWERED, BordaVote()], ids=repr)
def test_an_answer_without_a_score_still_comes_before_an_abstention(aggregator):
    mixed = paths([None, "a", "b"], [0.9, None, None])
    assert aggregator.select(mixed) is mixed[1]


def test_without_scores_all_abstaining_gives_the_first():
    nobody = paths([None, None])
    assert MajorityVote().select(nobody) is nobody[0]


def test_a_missing_score_abstains_where_scores_are_read_and_breaks_no_ties_elsewhere():
    some = paths(["a", "a", "b"], [None, None, 0.2])
    assert MajorityVote(weighted=True).select(some).answer == "b"
    assert BestOfN().select(some).answer == "b"
    assert BordaVote().select(some).answer == "b"
    assert MajorityVote().select(some).answer == "a"
    tied = paths(["a", "b"], [None, 0.9])
    assert MajorityVote().select(tied).answer == "a"  # not all have scores, so the earliest wins
    assert answer_weights(some, weighted=True) == {"b": 0.2}


@pytest.mark.parametrize("aggregator", [MajorityVote(weighted=True), BestOfN(), BordaVote()], ids=repr)
def test_aggregators_that_read_scores_say_so(aggregator):
    assert aggregator.needs_scores
    with pytest.raises(ValueError, match="pass reward_model="):
        aggregator.select(paths(["a", "b"]))
    with pytest.raises(ValueError, match="finite"):
        aggregator.select(paths(["a", "b"], [0.5, math.nan]))


def test_scores_that_cannot_be_weights_are_refused():
    with pytest.raises(ValueError, match=r"0 or more, got -0.4"):
        MajorityVote(weighted=True).select(paths(["a", "b"], [0.5, -0.4]))
    with pytest.raises(ValueError, match=r"0 or more, got -0.4"):
        answer_weights(paths(["a", "b"], [0.5, -0.4]), weighted=True)
    assert MajorityVote().select(paths(["a", "b"], [-0.5, -0.4])).answer == "b"
    assert BordaVote().select(paths(["a", "b"], [-0.5, -0.4])).answer == "b"


def test_the_plain_votes_need_no_scores():
    assert not MajorityVote().needs_scores
    assert not ConfidenceVote().needs_scores
    assert not Oracle().needs_scores


# --- the configured reduction is the one used

STEPPED = [path("a", 0.9, (0.3, 0.9)), path("b", 0.6, (0.8, 0.6)), path("c", 0.5, (0.95, 0.65))]


@pytest.mark.parametrize(
    "make", [BestOfN, lambda r: MajorityVote(weighted=True, reduction=r), lambda r: BordaVote(9.0, r)]
)
@pytest.mark.parametrize(
    ("reduction", "winner"),
    [(None, "a"), ("last", "a"), ("min", "c"), ("prod", "c"), ("mean", "c"), (lambda s: -abs(s[0] - 0.8) + 1, "b")],
)
def test_the_reduction_decides_the_winner(make, reduction, winner):
    assert make(reduction).select(STEPPED).answer == winner


def test_reductions_differ_from_each_other_and_from_the_stored_score():
    stepped = [path("a", 0.0, (0.1, 0.9)), path("b", 0.0, (0.6, 0.6)), path("c", 0.1, (0.5, 0.5, 0.89))]
    winners = {r: BestOfN(r).select(stepped).answer for r in (None, "last", "min", "mean")}
    assert winners == {None: "c", "last": "a", "min": "b", "mean": "c"}
    assert MajorityVote(reduction="min").select(stepped).answer == "b"  # ties follow it too
    assert MajorityVote(reduction="last").select(stepped).answer == "a"
    weights = answer_weights(stepped, weighted=True, reduction="last")
    assert weights == {"a": 0.9, "b": 0.6, "c": 0.89}


def test_a_reduction_needs_step_scores():
    assert MajorityVote(reduction="min").needs_scores
    for aggregator in (BestOfN("min"), MajorityVote(weighted=True, reduction="min"), MajorityVote(reduction="min")):
        with pytest.raises(ValueError, match="ProcessRewardModel"):
            aggregator.select(paths(["a"], [0.5]))
    with pytest.raises(ValueError, match="check_range=False"):
        BestOfN("prod").select([path("a", 1.0, (2.0, 3.0))])
    assert BestOfN(math.prod).select([path("a", 1.0, (2.0, 3.0)), path("b", 1.0, (7.0,))]).answer == "b"


# --- where there is no short answer


def text_path(text, score=None, reason="eos", answer=None):
    return Trajectory(PROBLEM, (Step(text, finish_reason=reason),), None, answer, score)


def test_best_of_n_reads_no_answers():
    letters = [
        text_path("Dear Ann, thank you so much for your letter.", 44.0),
        text_path("thx 4 ur letter", 15.0, answer="4"),
    ]
    programs = [text_path("return a + b", 1.0), text_path("return a - 1", 0.0, answer="1")]
    for votes in (letters, programs):
        assert BestOfN().select(votes) is votes[0]
        assert BestOfN().select(votes[::-1]) is votes[0]
        assert ANSWERED.select(votes) is votes[1]
    assert not BestOfN().reads_answers
    assert ANSWERED.reads_answers


def test_a_part_of_a_text_is_reported_only_where_there_is_no_whole():
    whole = text_path("short", 0.1)
    parts = [text_path("cut", 0.9, "length"), text_path("cu", 0.95, "budget"), text_path("c", 0.99, "step")]
    failed = text_path("server gone", 1.0, "error")
    for aggregator in (BestOfN(), Medoid()):
        assert aggregator.select([*parts, whole, failed]) is whole
        assert aggregator.select([failed]) is failed
    assert BestOfN().select([failed, *parts]) is parts[2]
    stated = text_path("The answer is 5. And", 0.9, "length", answer="5")
    assert ANSWERED.select([stated, whole, text_path("So 5", 0.5, answer="5")]) is stated


def test_thoughts_are_no_text_to_report():
    thinking = [text_path("<think>Ann? Ann", 0.9), text_path("<think>Ann?</think>Dear Ann", 0.1)]
    assert BestOfN().select(thinking) is thinking[1]
    votes = [text_path(f"<think>{'Who is it? ' * 9}</think>{text}") for text in ("Dear Bob", "Dear Ann", "Dear Ann")]
    assert Medoid(shared_words).select([text_path("<think>Who is it?"), *votes]) is votes[1]


def test_best_of_n_with_a_missing_score():
    some = [text_path("judged", 0.2), text_path("never judged")]
    assert BestOfN().select(some) is some[0]


# --- the medoid


def shared_words(first, second):
    return float(len({*first.split()} & {*second.split()}))


def test_a_medoid_by_hand():
    # Shared words: ab-bc 1, ab-abc 2, ab-d 0, bc-abc 2, bc-d 0, abc-d 0: sums 3, 3, 4, 0.
    votes = [text_path(text) for text in ("a b", "b c", "a b c", "d")]
    assert Medoid(shared_words).select(votes) is votes[2]
    # A copy counts as another text: d-d 1 each; a second and a third one reach 2.
    assert Medoid(shared_words).select([*votes, votes[3]]) is votes[2]
    risk = {"x": {"x": 0.0, "y": 0.9, "z": 0.0}, "y": {"x": 0.2, "y": 0.0, "z": 0.3}, "z": {"x": 0.4, "y": 0.4, "z": 0}}
    votes = [text_path(text) for text in "xyz"]
    # How well the candidate does, not how well it is done by: rows sum up to 0.9, 0.5 and 0.8.
    assert Medoid(lambda text, other: risk[text][other]).select(votes) is votes[0]


def test_a_medoid_of_equal_or_different_texts_is_the_majority_vote():
    votes = [text_path(text) for text in "abbacb"]
    assert Medoid(lambda first, second: float(first == second)).select(votes) is votes[1]
    tied = [text_path("a", 0.1), text_path("b", 0.1), text_path("b", 0.3), text_path("a", 0.2)]
    for votes in (tied, tied[::-1]):
        assert Medoid().select(votes) is tied[2]
    unscored = [text_path(text) for text in "ab"]
    assert Medoid().select(unscored) is unscored[0]
    assert Medoid().select([*unscored, text_path("c", 0.9)]) is unscored[0]  # not all have scores


def test_the_default_medoid_is_the_answer_that_others_say_too():
    says = [
        "The library closes at six on Sundays.",
        "On Sundays the library closes at six.",
        "It closes at six o'clock on Sundays, the library.",
        "Bananas are rich in potassium and grow in bunches.",
        "I do not know.",
    ]
    votes = [text_path(text) for text in says]
    assert Medoid().select(votes) in votes[:3]
    assert Medoid().select(votes[3:] + votes[:3]) in votes[:3]


def test_a_medoid_by_vectors():
    vectors = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 2.0], "d": [0.0, 0.0]}
    votes = [text_path(text) for text in "abcd"]
    # Cosines: ab and bc 1/sqrt(2), ac 0, d with anything 0.
    assert Medoid(embed=lambda texts: [vectors[text] for text in texts]).select(votes) is votes[1]
    with pytest.raises(ValueError, match="has 4 texts and 1 vectors: give one for each text"):
        Medoid(embed=lambda texts: [[1.0, 2.0]]).select(votes)
    with pytest.raises(ValueError, match="finite"):
        Medoid(embed=lambda texts: [[math.nan]] * 4).select(votes)


def test_a_medoid_of_answers():
    votes = [text_path("long " * 9 + "x", answer="x"), text_path("other", answer="y"), text_path("y", answer="y")]
    votes += [text_path("long " * 9 + "z")] * 5
    assert Medoid(of="answer").select(votes) is votes[1]
    assert Medoid().select(votes) is votes[3]
    assert Medoid(of="answer").select(votes[3:]) is votes[3]
    assert Medoid(of="answer").reads_answers
    assert not Medoid().reads_answers


def test_a_medoid_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="not both"):
        Medoid(shared_words, embed=list)
    with pytest.raises(ValueError, match=r"of='steps'"):
        Medoid(of="steps")
    with pytest.raises(ValueError, match="finite"):
        Medoid(lambda first, second: math.nan).select([text_path("a"), text_path("b")])


def test_votes_over_free_text_take_a_measure_of_likeness():
    alike = MajorityVote(same_answer=lambda first, second: shared_words(first, second) >= 2)
    texts = ("the cat sat", "dogs bark", "cat sat down", "sat the mouse")
    votes = [Trajectory(Problem("q", kind="text"), (Step(text),), answer=text) for text in texts]
    assert answer_weights(votes, same_answer=alike.same_answer) == {"the cat sat": 3, "dogs bark": 1}
    assert alike.select(votes) is votes[0]


# --- equivalence


def test_answers_with_one_normal_form_vote_together():
    votes = paths(["6", "20.50", "$20.5", "6"], None) + paths([r"\frac{41}{2}"])
    assert MajorityVote().select(votes) is votes[1]
    assert answer_weights(votes) == {"6": 2.0, "20.50": 3.0}
    assert MajorityVote(normalize=str).select(votes).answer == "6"
    assert answer_weights(votes, normalize=str) == {"6": 2.0, "20.50": 1.0, "$20.5": 1.0, r"\frac{41}{2}": 1.0}


def test_whole_chains_with_one_answer_vote_together():
    chains = [path("5", text="… so 5."), path("7", text="So 7."), path("5", text="Hence, 5.")]
    assert MajorityVote().select(chains).answer == "5"


def test_a_predicate_may_be_asymmetric():
    def accepts(first, second):
        return (first, second) == ("x>5", "(5,oo)")  # true this way round only

    assert not accepts("(5,oo)", "x>5")
    for answers in (["0", "x>5", "(5,oo)"], ["0", "(5,oo)", "x>5"]):
        assert group_answers(answers, accepts) == [[0], [1, 2]]
        assert MajorityVote(same_answer=accepts).select(paths(answers)).answer == answers[1]


def test_a_predicate_need_not_be_transitive():
    def near(first, second):
        return abs(float(first) - float(second)) <= 1

    # compared with the first member of each group, in order: 2 is near 1; 3 is near 2 but not near 1
    assert group_answers(["1", "2", "3"], near) == [[0, 1], [2]]
    assert group_answers(["2", "1", "3"], near) == [[0, 1, 2]]
    # the normal form comes first: a second "2" stays with the first one although 3 would accept it too
    assert group_answers(["3", "1", "2", "2.0"], near) == [[0, 2, 3], [1]]
    assert group_answers(["1", None, "2", "3"], near) == [[0, 2], [3]]


def test_the_predicate_is_asked_once_for_each_normal_form_and_group():
    asked = []

    def never(first, second):
        asked.append((first, second))
        return False

    group_answers(["1", "2"] * 50, never)
    assert asked == [("2", "1"), ("1", "2")]


# --- the other votes


def test_borda_weights_by_hand():
    votes = paths(["a", "b", "b", None, "c"], [0.9, 0.5, 0.4, 1.0, 0.1])  # ranks 1 2 3 - 4: weights 4 3 2 - 1
    assert BordaVote(p=1).select(votes).answer == "b"  # 5 against 4
    assert BordaVote(p=2).select(votes).answer == "a"  # 13 against 16
    short = paths(["a", "b", "b", None, None], [0.95, 0.5, 0.4, 1.0, 1.0])
    assert BordaVote(p=1).select(short).answer == "a"  # of 3 voters: 3 against 3, and more score
    assert BordaVote(p=0).select(votes).answer == MajorityVote().select(votes).answer == "b"
    ties = paths(["a", "b"], [0.5, 0.5])
    assert BordaVote(p=1).select(ties).answer == "a"
    for p in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="p must be 0 or more"):
            BordaVote(p=p)


def test_the_hedged_vote_by_hand():
    votes = paths(["a", "b", "b", None, "c"], [0.9, 0.5, 0.4, 1.0, 0.1])
    # of 6 pairs a is the best of 3, b of 2 + 1 and c of none: a tie, and b has more score
    assert HedgedBestOfN(2).select(paths(["a", "b", "b", "c"], [0.9, 0.6, 0.4, 0.1])).answer == "b"
    assert HedgedBestOfN(3).select(votes).answer == "a"  # 3 triples of 4, b 1
    assert HedgedBestOfN(1).select(votes).answer == MajorityVote().select(votes).answer == "b"
    for n in (4, 99):
        assert HedgedBestOfN(n).select(votes).answer == "a"
    assert HedgedBestOfN(2).select(paths([None, None], [0.1, 0.2])).score == 0.2
    for n in (0, 1.5):
        with pytest.raises(ValueError, match="n must be an integer >= 1"):
            HedgedBestOfN(n)


def test_a_hedge_holds_where_best_of_n_falls():
    """A judge that likes a rare wrong answer most: best-of-n finds it as n grows, the hedged vote does not."""
    rng, right = random.Random(0), {"best": [0, 0], "hedged": [0, 0]}
    for _ in range(300):
        for place, n in enumerate((4, 64)):
            answers = rng.choices(["right", "rare", "wrong"], [0.4, 0.04, 0.56], k=n)
            scores = [{"right": 0.7, "rare": 0.9, "wrong": 0.3}[answer] + 0.1 * rng.random() for answer in answers]
            given = paths(answers, scores)
            right["best"][place] += BestOfN().select(given).answer == "right"
            right["hedged"][place] += HedgedBestOfN(4).select(given).answer == "right"
    assert right["best"][1] < 60 < 200 < right["best"][0]
    assert right["hedged"][1] > 280


def test_confidence_votes():
    votes = [path("a", confidences=(9.0,)), path("b", confidences=(4.0,)), path("b", confidences=(4.0,))]
    assert MajorityVote().select(votes).answer == "b"
    assert ConfidenceVote().select(votes) is votes[0]
    dipping = [path("a", confidences=(9.0, 1.0)), path("b", confidences=(3.0, 3.0))]
    assert ConfidenceVote("mean").select(dipping).answer == "a"
    assert ConfidenceVote("min").select(dipping).answer == "b"
    assert ConfidenceVote("last").select(dipping).answer == "b"
    unknown = [path("a", confidences=(9.0, None)), path("b", confidences=(0.5,))]
    assert ConfidenceVote().select(unknown).answer == "b"
    with pytest.raises(ValueError, match="no confidence"):
        ConfidenceVote().select(paths(["a"]))
    with pytest.raises(ValueError, match=r'0 or more, got -1\.0: a generator made with confidence="self_certainty"'):
        ConfidenceVote().select([path("a", confidences=(-1.0,))])
    with pytest.raises(ValueError, match="reduction must be"):
        ConfidenceVote("max")


def test_the_mean_confidence_is_over_tokens():
    long = Step("x", tuple(range(9)), confidence=1.0)
    short = Step("y", (1,), confidence=11.0, finish_reason="eos")
    votes = [Trajectory(PROBLEM, (long, short), answer="a"), path("b", confidences=(2.5,))]
    assert ConfidenceVote().select(votes).answer == "b"  # (9 * 1 + 11) / 10 = 2 against 2.5; over steps it were 6


def test_the_oracle_finds_a_correct_answer_and_falls_back_to_the_first():
    votes = paths([None, "4", "5.0", "5"])
    assert Oracle().select(votes) is votes[2]
    assert Oracle(same_answer=lambda answer, gold: answer == gold).select(votes) is votes[3]
    assert Oracle().select(votes[:2]) is votes[1]
    assert Oracle().select(votes[:1]) is votes[0]
    with pytest.raises(ValueError, match="gold answer"):
        Oracle().select([Trajectory(Problem("q"), (), answer="5")])


# --- properties

rows = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.integers(0, 6).map(lambda i: i / 10)), min_size=1, max_size=12
)


@given(rows, st.booleans())
@settings(max_examples=150, deadline=None)
def test_votes_agree_with_the_arithmetic_and_with_the_table_of_weights(row, weighted):
    votes = paths([answer for answer, _ in row], [score for _, score in row])
    chosen = MajorityVote(weighted).select(votes)
    ids = [-1 if answer is None else "abc".index(answer) for answer, _ in row]
    scores = [score for _, score in row]
    winner = int(majority_vote(ids, scores if weighted else None, scores))
    assert chosen.answer == (None if winner < 0 else "abc"[winner])
    weights = answer_weights(votes, weighted)
    assert list(weights) == list(dict.fromkeys(a for a, _ in row if a is not None))
    assert all(weights[a] == math.fsum(s if weighted else 1 for b, s in row if b == a) for a in weights)
    assert chosen.answer is None or weights[chosen.answer] == max(weights.values())
    best = [v for v in votes if v.answer == chosen.answer]
    assert chosen is max(best, key=lambda v: v.score)


@given(rows, st.randoms(), st.sampled_from([MajorityVote(), MajorityVote(weighted=True)]))
@settings(max_examples=100, deadline=None)
def test_a_shuffle_that_keeps_the_first_members_in_order_keeps_the_winner(row, random, aggregator):
    """Ties must not depend on which answer reached the maximum first."""
    answered = list(dict.fromkeys(row))
    firsts = [next(r for r in answered if r[0] == a) for a in dict.fromkeys(a for a, _ in row)]
    rest = list(row)
    for first in firsts:
        rest.remove(first)
    shuffled = firsts + random.sample(rest, len(rest))
    before = aggregator.select(paths(*zip(*row, strict=True)))
    after = aggregator.select(paths(*zip(*shuffled, strict=True)))
    assert (before.answer, before.score) == (after.answer, after.score)


def test_aggregators_are_values():
    assert MajorityVote() == MajorityVote(weighted=False)
    assert hash(BestOfN("min")) == hash(BestOfN("min"))
    assert repr(Oracle()) == "Oracle()"
    assert repr(MajorityVote()) == "MajorityVote(weighted=False, reduction=None, same_answer=None)"
    assert answer_weights([]) == answer_weights(paths([None])) == {}


@pytest.mark.parametrize("kind", [MajorityVote, BestOfN, BordaVote])
def test_an_unknown_reduction_is_refused_where_it_is_written(kind):
    with pytest.raises(ValueError, match=r"reduction='lst'\): choose one of 'last', 'min', 'prod', 'mean', or a func"):
        kind(reduction="lst")


def test_scores_of_any_size_are_summed():
    assert MajorityVote(weighted=True).select(paths("aabbb", [1e308] * 5)).answer == "b"
    assert MajorityVote().select(paths("abab", [1e308, -1e308, 1e308, -1e308])).answer == "a"
    assert MajorityVote().select(paths("abab", [-1e308, 1e308, -1e308, 1e308])).answer == "b"


@pytest.mark.parametrize("p", [200, 1e6])
def test_a_great_power_makes_borda_best_of_n(p):
    scores = [i / 64 for i in range(63)] + [1.0]
    assert BordaVote(p=p).select(paths(["a"] * 63 + ["b"], scores)).answer == "b"


def test_a_confidence_that_is_no_number_is_refused_wherever_it_stands():
    for confidences in ((0.5, math.nan), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="got nan"):
            ConfidenceVote(reduction="min").select([path("a", confidences=confidences)])
