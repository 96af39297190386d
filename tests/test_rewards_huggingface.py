"""Transformers reward models against forwards of one sequence at a time."""

import copy
import inspect
import math
from functools import cache

import pytest
import torch

from inferscale.flops.spec import forward_flops, model_spec
from inferscale.generators import HFGenerator
from inferscale.rewards import (
    GenerativeVerifier,
    HFOutcomeRewardModel,
    HFProcessRewardModel,
    ImplicitReward,
    LikelihoodReward,
    scorer,
)
from inferscale.runtime.loading import CheckpointError
from inferscale.tree import Node, Step
from tests.tiny_models import byte_tokenizer, grow, grow_all, root, tiny_model

PROMPTS = ["Step 1: a", "b", "Step 2: the ab is 12\n", "é ü 2"]


def ids_of(text, special=False):
    return byte_tokenizer()(text, add_special_tokens=special)["input_ids"]


def node_of(prompt, *texts):
    node = root(prompt)
    for text in texts:
        node = Node(node.problem, Step(text, tuple(ids_of(text))), node)
    return node


@cache
def sampled_nodes():
    gen = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=6, max_new_tokens=18)
    roots = [root(prompt) for prompt in PROMPTS]
    level = [n for group in grow_all(gen, roots, 2) for n in group]
    deeper = [n for group in grow_all(gen, [n for n in level if not n.is_finished], 2) for n in group]
    whole = [n for group in grow_all(gen, roots, 2, until="end") for n in group]
    return [n for n in level + deeper + whole if n.inner_steps()]


def without_end(ids):
    """Ids up to the last one that is not a special token."""
    return list(ids[: 1 + max(place for place, i in enumerate(ids) if i > 4)])


def reference(model, node, read, separator="\n", use_ids=False):
    """Step scores from one forward for each step's prefix."""
    ids, scores = ids_of(node.problem.prompt, special=True), []
    for text, own in node.inner_steps():
        if use_ids:
            ids = ids + without_end(own) + ([] if text.endswith(separator) else ids_of(separator))
        else:
            ids = ids + ids_of(text.removesuffix(separator).rstrip()) + ids_of(separator)
        with torch.no_grad():
            scores.append(read(model(input_ids=torch.tensor([ids])).logits[0, -1]))
    return scores


def softmax_good(logits):
    return logits.softmax(-1)[1].item()


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize(
    ("family", "use_ids"), [("llama", False), ("llama", True), ("gpt2", False), ("gpt_neox", True)]
)
def test_two_label_classifiers_are_read_at_each_separator(family, use_ids, cache):
    model = tiny_model(family, "TokenClassification", num_labels=2)
    reward = HFProcessRewardModel(model, byte_tokenizer(), use_token_ids=use_ids, micro_batch=5, cache=cache)
    nodes = sampled_nodes()
    found = reward.step_scores(nodes)
    for node, scores in zip(nodes, found, strict=True):
        assert scores == pytest.approx(reference(model, node, softmax_good, use_ids=use_ids), abs=1e-5)
        assert all(0 < score < 1 for score in scores)
    assert max(map(len, found)) > 2
    assert reward.step_scores(nodes[:1])[0] == pytest.approx(found[0], abs=1e-6)


def test_one_label_classifiers_and_token_pairs():
    nodes = sampled_nodes()[:6]
    single = tiny_model("llama", "TokenClassification", num_labels=1)
    for node, scores in zip(nodes, HFProcessRewardModel(single, byte_tokenizer()).step_scores(nodes), strict=True):
        assert scores == pytest.approx(reference(single, node, lambda x: x.sigmoid()[0].item()), abs=1e-5)
    causal = tiny_model("qwen2")
    by_name = HFProcessRewardModel(causal, byte_tokenizer(), good_token="<good>", bad_token="<bad>")
    by_id = HFProcessRewardModel(causal, byte_tokenizer(), good_token=3, bad_token=4)

    def pair(logits):
        return logits[[3, 4]].softmax(-1)[0].item()

    for node, scores in zip(nodes, by_name.step_scores(nodes), strict=True):
        assert scores == pytest.approx(reference(causal, node, pair), abs=1e-5)
    assert by_id.step_scores(nodes) == by_name.step_scores(nodes)


def test_reductions_and_separators():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    node = node_of("b", " a\n", " b is 12", "\n\n x\n")
    scores = {
        reduction: HFProcessRewardModel(model, byte_tokenizer(), reduction=reduction).score([node])[0]
        for reduction in ("last", "min", "prod", "mean")
    }
    steps = HFProcessRewardModel(model, byte_tokenizer()).step_scores([node])[0]
    assert len(steps) == 3
    assert scores["last"] == steps[-1]
    assert scores["min"] == min(steps)
    assert scores["prod"] == pytest.approx(steps[0] * steps[1] * steps[2])
    assert scores["mean"] == pytest.approx(sum(steps) / 3)
    other = HFProcessRewardModel(model, byte_tokenizer(), step_separator=".\n").step_scores([node])[0]
    assert other == pytest.approx(reference(model, node, softmax_good, ".\n"), abs=1e-5)
    bare = HFProcessRewardModel(model, byte_tokenizer(), step_separator=None).step_scores([node])[0]
    ids = ids_of("b", special=True) + ids_of(" a\n") + ids_of(" b is 12")
    assert bare[1] == pytest.approx(softmax_good(model(input_ids=torch.tensor([ids])).logits[0, -1]), abs=1e-5)


def test_a_completion_gets_the_scores_of_its_steps():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    reward = HFProcessRewardModel(model, byte_tokenizer(), use_token_ids=True)
    stepwise = node_of("b", " a\n", " b is 12\n", "the x\n")
    text = " a\n b is 12\nthe x\n"
    ends = [(3, len(ids_of(" a\n"))), (12, len(ids_of(" a\n b is 12\n"))), (len(text), len(ids_of(text)))]
    start = root("b")
    whole = Node(start.problem, Step(text, tuple(ids_of(text)), inner_ends=tuple(ends)), start)
    assert reward.step_scores([whole])[0] == pytest.approx(reward.step_scores([stepwise])[0], abs=1e-6)


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("token_reduction", ["min", "mean"])
@pytest.mark.parametrize("use_ids", [False, True])
def test_likelihood_of_steps(token_reduction, use_ids, cache):
    model = tiny_model("qwen3")
    options = {"token_reduction": token_reduction, "use_token_ids": use_ids, "cache": cache}
    reward = LikelihoodReward(model, byte_tokenizer(), micro_batch=4, **options)
    nodes = sampled_nodes()
    for node, scores in zip(nodes, reward.step_scores(nodes), strict=True):
        ids, expected = ids_of(node.problem.prompt, special=True), []
        for text, own in node.inner_steps():
            piece = ids_of(text.removesuffix("\n").rstrip()) + ids_of("\n")
            if use_ids:
                piece = without_end(own) + ([] if text.endswith("\n") else ids_of("\n"))
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids + piece])).logits[0].double().log_softmax(-1)
            values = [log_p[len(ids) + i - 1, token] for i, token in enumerate(piece)]
            expected.append((min(values) if token_reduction == "min" else sum(values) / len(values)).exp().item())
            ids = ids + piece
        assert scores == pytest.approx(expected, rel=1e-3)


def test_plain_costs_are_the_closed_form_of_the_whole_text():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    reward = HFProcessRewardModel(model, byte_tokenizer(), cache="none")
    node = node_of("b a", " a\n", " b is 12\n")
    length = len(ids_of("b a", special=True)) + len(ids_of(" a\n")) + len(ids_of(" b is 12\n"))
    [cost] = reward.cost([node])
    assert cost.scored_tokens == length
    spec = model_spec(model.config, head="labels")
    assert cost.reward_flops == forward_flops(spec, length, logits=2).causal > 0
    outcome = HFOutcomeRewardModel(tiny_model("llama", "SequenceClassification", num_labels=1), byte_tokenizer())
    assert outcome.cost([node])[0].scored_tokens == len(ids_of("b a" + node.text, special=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("pad", [None, 203])
def test_outcome_models_are_read_at_the_last_token(family, pad):
    model = tiny_model(family, "SequenceClassification", num_labels=1)
    model.config.pad_token_id = pad
    nodes = sampled_nodes()
    reward = HFOutcomeRewardModel(model, byte_tokenizer(), micro_batch=4)
    scores = reward.score(nodes)
    assert model.config.pad_token_id == pad
    model.config.pad_token_id = None
    for node, score in zip(nodes, scores, strict=True):
        ids = ids_of(node.problem.prompt + node.text, special=True)
        expected = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_outcome_models_with_a_chat_template():
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}Step {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}the{% endif %}"
    )
    model = tiny_model("llama", "SequenceClassification", num_labels=1)
    [score] = HFOutcomeRewardModel(model, tokenizer).score([node_of("b", " a")])
    ids = torch.tensor([ids_of("Step b\nStep  a\n")])
    assert score == pytest.approx(model(input_ids=ids).logits[0, 0].item(), abs=1e-5)


@pytest.mark.parametrize(("cache", "name"), [("tree", "TreeScorer"), ("none", "BatchScorer")])
def test_out_of_memory_halves_the_batch(monkeypatch, cache, name):
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    nodes = sampled_nodes()
    expected = HFProcessRewardModel(model, byte_tokenizer()).step_scores(nodes)
    kind = getattr(scorer, name)
    run = kind._run

    def tight(self, batch, *args):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, batch, *args)

    monkeypatch.setattr(kind, "_run", tight)
    found = HFProcessRewardModel(model, byte_tokenizer(), cache=cache).step_scores(nodes)
    assert [len(s) for s in found] == [len(s) for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_checkpoints_are_loaded_whole_or_refused(tmp_path):
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    model.save_pretrained(tmp_path / "prm")
    byte_tokenizer().save_pretrained(tmp_path / "prm")
    node = node_of("b", " a\n")
    loaded = HFProcessRewardModel.from_pretrained(tmp_path / "prm", format=None, device="cpu")
    assert loaded.score([node]) == HFProcessRewardModel(model, byte_tokenizer()).score([node])
    tiny_model().save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"does not fit LlamaForTokenClassification .*missing: score\."):
        HFProcessRewardModel.from_pretrained(tmp_path / "lm", format=None)
    with pytest.raises(ValueError, match=r"does not fit LlamaForSequenceClassification .*score\.weight"):
        HFOutcomeRewardModel.from_pretrained(tmp_path / "lm")


@pytest.mark.parametrize(
    ("told", "shares"),
    [
        ({}, lambda logits: logits.softmax(-1)),
        ({"problem_type": "multi_label_classification"}, torch.sigmoid),
        ({"problem_type": "regression"}, lambda logits: logits),
    ],
)
def test_of_several_labels_one_is_the_score(tmp_path, told, shares):
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = tiny_model("llama", "SequenceClassification", **names, **told)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    node = node_of("b", " b is 12\n")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids_of("b b is 12\n", special=True)])).logits
    expected = shares(logits[0].double()).tolist()
    for label, number in (("bad", 0), ("good", 1), (0, 0), (1, 1)):
        reward = HFOutcomeRewardModel(model, byte_tokenizer(), label=label)
        assert reward.score([node]) == pytest.approx([expected[number]], abs=1e-6)
        assert reward.label == number
    assert HFOutcomeRewardModel.from_pretrained(tmp_path, device="cpu", label="good").score([node]) == reward.score(
        [node]
    )


def test_of_several_labels_one_must_be_given(tmp_path):
    model = tiny_model("llama", "SequenceClassification", num_labels=2)
    with pytest.raises(ValueError, match=r"has the labels 0 \('LABEL_0'\), 1 \('LABEL_1'\): give the good one, label="):
        HFOutcomeRewardModel(model, byte_tokenizer())
    for label in (2, -1, "good"):
        with pytest.raises(ValueError, match=rf"label={label!r} is none of them"):
            HFOutcomeRewardModel(model, byte_tokenizer(), label=label)
    model.save_pretrained(tmp_path)  # two labels without names leave no trace in the configuration
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"score\.weight is \[2, 32\] there and \[1, 32\] here.*label=\.\.\."):
        HFOutcomeRewardModel.from_pretrained(tmp_path, device="cpu")


def test_classes_take_objects_and_from_pretrained_loads_them(tmp_path):
    policy, outcome = tiny_model(), tiny_model("llama", "SequenceClassification", num_labels=1)
    for name, model in (("lm", policy), ("orm", outcome)):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    node = node_of("b", " a\n", " b is 12\n")
    lm, orm = tmp_path / "lm", tmp_path / "orm"
    pair = {"good_token": "<good>", "bad_token": "<bad>", "use_token_ids": True}
    likelihood = {"token_reduction": "min", "step_separator": None}
    for loaded, given in (
        (HFProcessRewardModel.from_pretrained(lm, **pair), HFProcessRewardModel(policy, byte_tokenizer(), **pair)),
        (LikelihoodReward.from_pretrained(lm, **likelihood), LikelihoodReward(policy, byte_tokenizer(), **likelihood)),
        (ImplicitReward.from_pretrained(lm, lm, beta=1), ImplicitReward(policy, policy, byte_tokenizer(), beta=1)),
        (HFOutcomeRewardModel.from_pretrained(orm), HFOutcomeRewardModel(outcome, byte_tokenizer())),
    ):
        assert loaded.score([node]) == given.score([node])
        assert not set(inspect.signature(type(given)).parameters) & {"options", "load_options", "device"}
    for kind, folders in (
        (HFProcessRewardModel, [lm, None]),
        (LikelihoodReward, [str(lm), None]),
        (ImplicitReward, [lm, lm, None]),
        (HFOutcomeRewardModel, [orm, None]),
        (GenerativeVerifier, [lm, None]),
    ):
        with pytest.raises(TypeError, match=rf"{kind.__name__}\.from_pretrained\('.*m'\) loads"):
            kind(*folders)
        with pytest.raises(TypeError, match="from_pretrained takes a folder or a hub id, not LlamaFor"):
            kind.from_pretrained(*[policy for _ in folders[:-1]])


def test_heads_that_give_no_score_are_refused():
    with pytest.raises(ValueError, match="both good_token and bad_token"):
        HFProcessRewardModel(tiny_model(), byte_tokenizer(), good_token="<good>")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .*has no step score"):
        HFProcessRewardModel(tiny_model(), byte_tokenizer())
    with pytest.raises(ValueError, match="3 labels has no step score"):
        HFProcessRewardModel(tiny_model("llama", "TokenClassification", num_labels=3), byte_tokenizer())
    with pytest.raises(ValueError, match="LlamaForCausalLM has no outcome score: give a sequence classifier"):
        HFOutcomeRewardModel(tiny_model(), byte_tokenizer())
    with pytest.raises(ValueError, match="'good grief' is not one token"):
        HFProcessRewardModel(tiny_model(), byte_tokenizer(), good_token="good grief", bad_token="<bad>")
    with pytest.raises(ValueError, match="token id 9999 is outside"):
        HFProcessRewardModel(tiny_model(), byte_tokenizer(), good_token=9999, bad_token=4)
    with pytest.raises(ValueError, match="token_reduction='max'"):
        LikelihoodReward(tiny_model(), byte_tokenizer(), token_reduction="max")
    start = root("b")
    bare = Node(start.problem, Step(" a\n"), start)
    reward = LikelihoodReward(tiny_model(), byte_tokenizer(), use_token_ids=True)
    with pytest.raises(ValueError, match="carries no ids"):
        reward.score([bare])
    assert LikelihoodReward(tiny_model(), byte_tokenizer()).score([bare])[0] > 0


def test_scores_are_float32_in_half_precision():
    model = tiny_model("llama", "TokenClassification", num_labels=2).bfloat16()
    with torch.no_grad():
        model.score.weight *= 200
    scores = HFProcessRewardModel(model, byte_tokenizer()).step_scores([node_of("b", " a\n", " b\n", " x\n")])[0]
    assert len(scores) == 3
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_growing_and_scoring_go_together():
    gen = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=6)
    children = [n for n in grow(gen, root("b"), 8) if n.inner_steps()]
    reward = LikelihoodReward(gen.model, byte_tokenizer(), use_token_ids=True, step_separator=None)
    children = [n for n in children if n.step.token_ids[-1] > 4]
    assert len(children) > 1
    for child, score in zip(children, reward.score(children), strict=True):
        assert score == pytest.approx(math.exp(child.step.confidence), rel=1e-3)
