"""Strategies for models that think, on a model whose thoughts, trial answers and confidences are scripted."""

import math
import random

import pytest

from inferscale import Generator, Node, Problem, Step, Thinking, solve, solve_batch
from inferscale.engine.search import thinking_tokens
from inferscale.strategies import DEER, Dynasor, NoThinking, RepeatedSampling, ShortMofK
from inferscale.testing import ToyGenerator
from inferscale.tree import branch_key

THINKING = Thinking(prefilled=True)


class Thinker(Generator):
    """Thinks in steps and then answers; every sampled word is a token.

    Attributes:
        steps: Given the number of the chain, its steps of thinking; the end of thinking and the answer follow.
        trials: Given the text before a trial, what is answered there, and the probability of each of its tokens.
        asked: Whatever was forced before a trial.
    """

    thinking = THINKING

    def __init__(self, steps, trials=lambda text: ("7", 0.5), logprobs=True):
        self.steps, self.trials, self.logprobs = steps, trials, logprobs
        self.asked = []

    def identity(self):
        return {}

    def generate(self, requests):
        return [[self.sample(request, request.first + i) for i in range(request.n)] for request in requests]

    def sample(self, request, draw):
        text = request.node.text + request.forced
        if not request.node.path:
            chain = draw
        else:
            chain = next(i for i, node in enumerate(request.node.root.children) if node is request.node.path[0])
        logprob = None
        if request.forced and "</think>" not in text:
            self.asked.append((request.node.text, request.forced))
            new, probability = self.trials(request.node.text)
            logprob = math.log(probability) * len(new.split()) if self.logprobs else None
            reason = "eos"
        elif "</think>" in text:
            new, reason = "The answer is 7.", "eos"
        else:
            steps = self.steps(chain)
            done = len(request.node.path)
            new, reason = (steps[done], "step") if done < len(steps) else ("</think>", "step")
        words = new.split(" ")
        if request.max_tokens is not None and len(words) > request.max_tokens:
            words, reason = words[: request.max_tokens], "budget"
        new = request.forced + " ".join(words)
        return Step(new, tuple(range(len(words))), logprob, finish_reason=reason, num_tokens=len(words))


def thoughts(*lengths):
    """Steps of so many words."""
    return ["hm " * (length - 1) + "so\n" for length in lengths]


# -- short-m@k ---------------------------------------------------------------------------------------------------------


def test_the_first_m_answer_and_the_others_are_stopped():
    lengths = [[3, 3, 1, 1, 9], [3, 2], [3, 9], [3, 3, 3]]
    result = solve("How many?", ShortMofK(2, 4), Thinker(lambda chain: thoughts(*lengths[chain])))
    # Chain 1 ends at 3 + 2 + 1 tokens, chain 3 at 10, when chain 0 has 8 and chain 2, which waits, has 12.
    assert [len(leaf.thoughts.split()) for leaf in result.leaves] == [5, 9]
    assert [leaf.path[0] for leaf in result.leaves] == [result.root.children[1], result.root.children[3]]
    assert result.answer == "7"
    drawn = [sum(node.step.generated_tokens for node in child.walk()) for child in result.root.children]
    assert drawn == [10, 6 + 4, 12, 10 + 4]  # chain 0 is cut at that very token
    whole = solve("How many?", ShortMofK(4, 4), Thinker(lambda chain: thoughts(*lengths[chain])))
    assert result.cost.generated_tokens == sum(drawn) < whole.cost.generated_tokens == 18 + 6 + 13 + 10 + 4 * 4
    assert len(whole.leaves) == 4


@pytest.mark.parametrize("trial", range(8))
def test_they_are_the_shortest_ones_whatever_their_steps(trial):
    rng = random.Random(trial)
    chains = [[rng.randint(1, 9) for _ in range(rng.randint(1, 6))] for _ in range(7)]
    result = solve("How many?", ShortMofK(3, 7), Thinker(lambda chain: thoughts(*chains[chain])))
    expected = sorted(range(7), key=lambda chain: sum(chains[chain]))[:3]
    found = [result.root.children.index(leaf.path[0]) for leaf in result.leaves]
    assert [sum(chains[chain]) for chain in found] == [sum(chains[chain]) for chain in expected]
    for chain, child in enumerate(result.root.children):
        if chain not in found:  # not much longer than the last one that votes
            thought = sum(node.step.generated_tokens for node in child.walk())
            assert thought <= sum(chains[expected[-1]]) + 1 + 2 * 9


def test_an_answer_that_the_cap_has_cut_is_sampled_to_its_end():
    class InOneStep(Thinker):
        """The end of thinking and the answer come in one step."""

        def sample(self, request, draw):
            step = super().sample(request, draw)
            if step.text != "</think>":
                return step
            words = ["</think>The", "answer", "is", "7."][: request.max_tokens]
            return Step(" ".join(words), tuple(range(len(words))), finish_reason="eos" if len(words) == 4 else "budget")

    lengths = [[5], [2, 2, 2]]
    result = solve("How many?", ShortMofK(2, 2), InOneStep(lambda chain: thoughts(*lengths[chain])))
    assert [leaf.final_text for leaf in result.leaves] == ["The answer is 7."] * 2
    lengths = [[5], [2, 2, 3]]  # 7 tokens of thoughts, and 2 of what follows fit below the 9 of the first
    result = solve("How many?", ShortMofK(1, 2), InOneStep(lambda chain: thoughts(*lengths[chain])))
    assert [leaf.final_text for leaf in result.leaves] == ["The answer is 7."]
    with pytest.raises(ValueError, match="m <= k"):
        ShortMofK(3, 2)


# -- early exits -------------------------------------------------------------------------------------------------------

WAITING = ["So 3.\n", "Wait, is it?\n", "It is 5.\n", "Wait, no.\n", "It is 7.\n", "Wait, sure?\n", "Yes.\n"]


def growing(text):
    """A trial answer of two tokens, surer with every step that it has seen."""
    return "7 7", min(0.99, 0.3 + 0.2 * text.count("\n"))


def test_thinking_ends_at_the_first_switch_where_a_trial_is_sure():
    generator = Thinker(lambda chain: WAITING, growing)
    result = solve("How many?", DEER(0.8), generator)
    assert [text for text, _ in generator.asked] == ["".join(WAITING[:1]), "".join(WAITING[:3])]
    assert {forced for _, forced in generator.asked} == {"\n**Final Answer**\n\\boxed{"}
    assert result.leaves[0].text == "".join(WAITING[:3]) + "</think>The answer is 7."
    assert result.answer == "7"
    # The trial looks at the thoughts before the switch: C = 0.5 after one step, 0.9 after three.
    seen = [node.stats["trial_confidence"] for node in result.root.walk() if "trial_confidence" in node.stats]
    assert seen == pytest.approx([0.5, 0.9])
    trials = 2 * 2
    assert result.cost.generated_tokens == sum(len(step.split(" ")) for step in WAITING[:4]) + trials + 4
    assert not any("Final Answer" in node.text for node in result.root.walk())  # trials are no part of the tree


def test_without_switches_every_step_is_tried_and_none_is_wasted():
    generator = Thinker(lambda chain: WAITING, growing)
    result = solve("How many?", DEER(0.8, switches=()), generator)
    assert len(generator.asked) == 3
    assert result.leaves[0].text == "".join(WAITING[:3]) + "</think>The answer is 7."
    assert max(node.depth for node in result.root.walk()) == 4


def test_who_is_never_sure_thinks_to_the_end_and_who_has_no_end_is_ended():
    result = solve("How many?", DEER(1.0, n=2), Thinker(lambda chain: WAITING, growing))
    assert [leaf.text for leaf in result.leaves] == ["".join(WAITING) + "</think>The answer is 7."] * 2
    result = solve("How many?", DEER(1.0, max_depth=3), Thinker(lambda chain: thoughts(*[2] * 99), growing))
    assert result.leaves[0].text == "hm so\n" * 3 + "</think>The answer is 7."
    with pytest.raises(ValueError, match="DEER reads log-probabilities"):
        solve("How many?", DEER(), Thinker(lambda chain: WAITING, growing, logprobs=False))
    with pytest.raises(ValueError, match="threshold"):
        DEER(0.0)


def test_probes_that_agree_end_the_thinking():
    said = ["3", "wait 5", "5", "5", "5", "9"]
    generator = Thinker(lambda chain: thoughts(*[2] * 9), lambda text: (said[text.count("\n") - 1], 0.5))
    result = solve("How many?", Dynasor(2, 3), generator)
    assert len(generator.asked) == 5  # 5 three times in a row, the hesitant one apart
    assert result.leaves[0].text == "hm so\n" * 5 + "</think>The answer is 7."
    assert [node.stats["probe"] for node in result.leaves[0].path[:-1]] == said[:5]
    generator = Thinker(lambda chain: thoughts(*[2] * 9), lambda text: ("5", 0.5))
    solve("How many?", Dynasor(5, 2), generator)
    assert [text.count("\n") for text, _ in generator.asked] == [3, 6]  # after at least 5 tokens of thinking each


class Outside(Thinker):
    """Begins its thoughts itself."""

    thinking = Thinking()


def test_no_thinking_says_that_it_has_thought():
    thought = "\nOkay, I think I have finished thinking.\n</think>\n\n"
    result = solve("How many?", NoThinking(2), Thinker(lambda chain: WAITING))
    assert [leaf.text for leaf in result.leaves] == [thought + "The answer is 7."] * 2
    assert result.answer == "7"
    result = solve("How many?", NoThinking(), Outside(lambda chain: WAITING))
    assert result.leaves[0].text == "<think>" + thought + "The answer is 7."
    assert "thinking" not in solve("How many?", NoThinking(), ToyGenerator(), thinking=False).leaves[0].text


@pytest.mark.parametrize("strategy", [ShortMofK(2, 4), DEER(0.8, n=3), Dynasor(2, 2, n=3)], ids=repr)
def test_a_chain_is_the_same_in_any_batch(strategy):
    def steps(chain):
        return thoughts(*[1 + branch_key(chain, i) % 5 for i in range(2 + chain)])

    prompts = ["How many?", "How many more?", "How many are left?"]
    together = [[leaf.text for leaf in r.leaves] for r in solve_batch(prompts, strategy, Thinker(steps, growing))]
    alone = [[leaf.text for leaf in solve(prompt, strategy, Thinker(steps, growing)).leaves] for prompt in prompts]
    assert together == alone


def test_thinking_is_told_apart_on_the_bill():
    result = solve("How many?", ShortMofK(2, 2), Thinker(lambda chain: thoughts(3, 4)))
    assert result.cost.generated_tokens == 2 * (3 + 4 + 1 + 4)
    assert result.cost.shares["thinking"].generated_tokens == 2 * (3 + 4 + 1)  # the end marker is a token of them
    assert "thinking" not in solve("How many?", NoThinking(), Thinker(lambda chain: [])).cost.shares
    assert "thinking" not in solve("How many?", RepeatedSampling(2), ToyGenerator()).cost.shares


def test_tokens_of_thoughts_in_one_step():
    root = Node(Problem("How many?"), thinking=THINKING)
    ids = tuple(range(6))
    whole = Step("ab cd\n</think>xyxyxyxy", ids, inner_ends=((6, 2), (22, 6)))
    assert thinking_tokens(root, whole) == 2 + 4 / 2  # half of the second piece is the marker
    assert thinking_tokens(root, Step("ab cd\n", ids)) == 6
    assert thinking_tokens(root, Step("Wait ab\n", ids, num_tokens=4), "Wait") == 4  # two ids were forced
    assert thinking_tokens(root, Step("ab</think>7.", ids, num_tokens=2), "ab</think>") == 0
    after = Node(root.problem, Step("ab</think>", (0,)), root)
    assert thinking_tokens(after, Step("The answer is 7.", ids)) == 0
    assert thinking_tokens(after, Step(" \n", ids)) == 0
    assert thinking_tokens(Node(root.problem), Step("<think>ab", ids)) == 0  # nothing tells
    assert thinking_tokens(Node(root.problem, thinking=Thinking()), Step("<think>ab", ids)) == 6
    assert thinking_tokens(Node(root.problem, thinking=Thinking()), Step("ab", ids)) == 0
    assert thinking_tokens(Node(root.problem, thinking=Thinking("", "Answer:")), Step("ab", ids)) == 6
