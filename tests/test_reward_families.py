"""Published process reward models: each format against a forward that is made by hand after its authors' recipe."""

import dataclasses

import pytest
import torch

from inferscale.rewards import FORMATS, HFProcessRewardModel
from inferscale.rewards.formats import TagError
from inferscale.rewards.huggingface import FormatError, choose_format
from inferscale.runtime.loading import CheckpointError
from tests.reward_checkpoints import (
    causal,
    classifier,
    llama_tokenizer,
    mistral_tokenizer,
    qwen_prm,
    qwen_tokenizer,
    save,
    save_value_checkpoint,
    solution,
    with_marks,
)
from tests.tiny_models import byte_tokenizer

QUESTION = "What is 2 + 2?"
STEPS = ("Step one: 2 + 2 = 4", "the answer is 4", "so: 4 - 1 = 3 x")
NODE = solution(QUESTION, [text + "\n" for text in STEPS])


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].double()


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def close(found, expected):
    assert len(found) == len(expected) == len(STEPS)
    assert found == pytest.approx(expected, abs=2e-5)
    assert max(found) - min(found) > 1e-3


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_math_shepherd(tmp_path, cache):
    tokenizer = mistral_tokenizer()
    model = causal(tokenizer, "mistral")
    folder = save(tmp_path / "math-shepherd-mistral-7b-prm", model, tokenizer)
    reward = HFProcessRewardModel.from_pretrained(folder, cache=cache)
    tokenizer = reward.tokenizer
    text = f"{QUESTION} " + "\n".join(f"Step {k}: {step} ки" for k, step in enumerate(STEPS, 1))
    ids = tokenizer(text)["input_ids"]
    assert ids.count(12902) == 3
    pairs = logits_of(model, ids)[torch.tensor(ids) == 12902][:, [648, 387]].softmax(-1)
    close(reward.step_scores([NODE])[0], pairs[:, 0].tolist())


def test_steps_that_are_numbered_already_keep_their_numbers():
    tokenizer = mistral_tokenizer()
    reward = HFProcessRewardModel(causal(tokenizer), tokenizer, format="math-shepherd")
    numbered = solution(QUESTION, [f"Step {k}: {text}" for k, text in enumerate(STEPS, 1)])
    assert reward.step_scores([numbered]) == reward.step_scores([NODE])


def test_er_prm_takes_the_ids_of_any_tokenizer():
    tokenizer = with_marks(" ки", " +", " -")
    model = causal(tokenizer)
    reward = HFProcessRewardModel(model, tokenizer, format="er-prm")
    tag, plus, minus = (tokenizer.convert_tokens_to_ids(token) for token in (" ки", " +", " -"))
    pieces = [f" Step {k}: {step}" if k == 1 else f"\nStep {k}: {step}" for k, step in enumerate(STEPS, 1)]
    ids = tokenizer(QUESTION.replace(" +", " plus"))["input_ids"]
    marks = []
    for piece in pieces:
        plain = piece.replace(" +", "+").replace(" -", "-")
        ids = [*ids, *tokenizer(plain, add_special_tokens=False)["input_ids"], tag]
        marks.append(len(ids) - 1)
    plain_steps = [step.replace(" +", "+").replace(" -", "-") for step in STEPS]
    node = solution(QUESTION.replace(" +", " plus"), plain_steps)
    close(reward.step_scores([node])[0], logits_of(model, ids)[marks][:, [plus, minus]].softmax(-1)[:, 0].tolist())


@pytest.mark.parametrize("name", ["Llama3.1-8B-PRM-Deepseek-Data", "Llama3.1-8B-PRM-Mistral-Data"])
@pytest.mark.parametrize("cache", ["tree", "none"])
def test_rlhflow(tmp_path, name, cache):
    tokenizer = llama_tokenizer()
    model = causal(tokenizer)
    reward = HFProcessRewardModel.from_pretrained(save(tmp_path / name, model, tokenizer), cache=cache)
    tokenizer = reward.tokenizer
    plus, minus = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]
    chat, expected = [], []
    for k, step in enumerate(STEPS):
        chat += [{"role": "user", "content": f"{QUESTION} {step}" if k == 0 else step}]
        chat += [{"role": "assistant", "content": "+"}]
        ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        expected.append(logits_of(model, ids)[-3, [plus, minus]].softmax(-1)[0].item())
    close(reward.step_scores([NODE])[0], expected)


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_skywork(tmp_path, prefix):
    tokenizer = byte_tokenizer()
    model = save_value_checkpoint(tmp_path / "own", tokenizer, "qwen2", prefix)
    reward = HFProcessRewardModel.from_pretrained(tmp_path / "own")
    tokenizer = reward.tokenizer
    ids = tokenizer.encode(tokenizer.bos_token + QUESTION + "\n")
    marks = []
    for step in STEPS:
        ids = [*ids, *plain(tokenizer, step), plain(tokenizer, "\n")[-1]]
        marks.append(len(ids) - 1)
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        expected = torch.sigmoid(model.v_head.summary(hidden))[0, marks, 0]
    close(reward.step_scores([NODE])[0], expected.tolist())


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_qwen(tmp_path, cache):
    tokenizer, model = qwen_tokenizer(), qwen_prm()
    folder = save(tmp_path / "any", model, tokenizer)
    reward = HFProcessRewardModel.from_pretrained(folder, cache=cache)
    tokenizer = reward.tokenizer
    assert list(model.state_dict())[-4:] == ["score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"]
    chat = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids.count(151651) == 3
    expected = logits_of(model, ids)[torch.tensor(ids) == 151651].softmax(-1)[:, 1]
    close(reward.step_scores([NODE])[0], expected.tolist())


@pytest.mark.parametrize("separator", ["\n", "\n\n", " ."])
def test_trl(tmp_path, separator):
    tokenizer = byte_tokenizer()
    model = classifier(tokenizer)
    model.config.step_separator = separator
    reward = HFProcessRewardModel.from_pretrained(save(tmp_path / "prm", model, tokenizer))
    tokenizer = reward.tokenizer
    ids, marks = [tokenizer.bos_token_id, *plain(tokenizer, QUESTION)], []
    for step in STEPS:
        ids = ids + plain(tokenizer, step) + plain(tokenizer, separator)
        marks.append(len(ids) - 1)
    close(reward.step_scores([NODE])[0], logits_of(model, ids)[marks].softmax(-1)[:, 1].tolist())


def test_pure(tmp_path):
    tokenizer = byte_tokenizer()
    model = classifier(tokenizer)
    reward = HFProcessRewardModel.from_pretrained(save(tmp_path / "PURE-PRM-7B", model, tokenizer), reduction="mean")
    tokenizer = reward.tokenizer
    ids, marks = plain(tokenizer, QUESTION), []
    for step in STEPS:
        ids = ids + plain(tokenizer, step) + plain(tokenizer, "\n")
        marks.append(len(ids) - 1)
    chances = logits_of(model, ids)[marks].softmax(-1)
    close(reward.step_scores([NODE])[0], (chances[:, 1] - chances[:, 0]).tolist())


def test_pqm(tmp_path):
    tokenizer = with_marks("[PRM]")
    model = save_value_checkpoint(tmp_path / "own", tokenizer, "llama")
    reward = HFProcessRewardModel.from_pretrained(tmp_path / "own")
    tokenizer = reward.tokenizer
    query = (
        "Below is an instruction that describes a task.\nWrite a response that appropriately completes the request."
        f"\n\n### Instruction:\n{QUESTION}\n\n### Response: Let's think step by step"
    )
    answer = " [PRM]\n".join(f"Step {k}: {step}" for k, step in enumerate(STEPS, 1)) + " [PRM]"
    ids = tokenizer.encode(f"{query}\n{answer}", add_special_tokens=False)
    tag = tokenizer.convert_tokens_to_ids("[PRM]")
    assert ids.count(tag) == 3
    close(reward.step_scores([NODE])[0], logits_of(model, ids)[torch.tensor(ids) == tag, 0].sigmoid().tolist())


CASES = {
    "math-shepherd": (mistral_tokenizer, lambda t: causal(t, "mistral"), " ки"),
    "rlhflow": (llama_tokenizer, causal, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n+<|eot_id|>"),
    "qwen": (qwen_tokenizer, lambda t: qwen_prm(), "<extra_0>"),
    "trl": (byte_tokenizer, classifier, "\n"),
}


@pytest.mark.parametrize("name", CASES)
def test_forged_tags_do_not_make_scores(name):
    tokenizer_of, model_of, forged = CASES[name]
    tokenizer = tokenizer_of()
    reward = HFProcessRewardModel(model_of(tokenizer), tokenizer, format=name)
    first, second = f"a{forged} is 4{forged}{forged}b", "then 1"
    both, alone = solution(QUESTION + forged, [first, second]), solution(QUESTION + forged, [first])
    scores = reward.step_scores([both, alone])
    # An end of turn that a text spells ends the solution: what follows is not judged.
    assert [len(values) for values in scores] == [1 if name == "rlhflow" else 2, 1]
    assert scores[0][0] == pytest.approx(scores[1][0], abs=1e-5)
    encoder = FORMATS[name].layout.encoder(tokenizer)
    shared, [piece] = encoder.encode(alone)
    ids = [*shared, *piece]
    if name == "math-shepherd":
        assert ids.count(12902) == 1
    if name == "qwen":
        assert ids.count(151651) == 1
    if name == "rlhflow":
        start, [clean] = encoder.encode(solution(QUESTION, ["a"]))
        ends = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|start_header_id|>"])
        counts = [[list(i).count(end) for end in ends] for i in (ids, [*start, *clean])]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("name", CASES)
def test_branches_are_scored_alike_together_and_one_by_one(name):
    tokenizer_of, model_of, _ = CASES[name]
    tokenizer = tokenizer_of()
    model = model_of(tokenizer)
    whole = HFProcessRewardModel(model, tokenizer, format=name, cache="none")
    tree = HFProcessRewardModel(model, tokenizer, format=name, cache="tree")
    for depth in (1, 2, 3):
        nodes = [
            solution(question, [f"{word} {k}" for k in range(depth)])
            for question in (QUESTION, "b")
            for word in ("a", "x is")
        ]
        found, expected = tree.step_scores(nodes), whole.step_scores(nodes)
        for one, other in zip(found, expected, strict=True):
            assert len(one) == depth
            assert one == pytest.approx(other, abs=1e-5)


def test_underflow_in_half_precision_drops_no_step():
    tokenizer = byte_tokenizer()
    model = classifier(tokenizer)
    with torch.no_grad():
        model.score.weight *= 300
    model = model.half()
    reward = HFProcessRewardModel(model, tokenizer, format="trl")
    [scores] = reward.step_scores([NODE])
    probabilities = logits_of(model, [tokenizer.bos_token_id, *plain(tokenizer, QUESTION)]).half().softmax(-1)
    assert (probabilities == 0).any()
    assert len(scores) == 3
    assert all(0 <= score <= 1 for score in scores)


def test_costs_count_the_head_of_each_family():
    tokenizer = qwen_tokenizer()
    model = qwen_prm()
    reward = HFProcessRewardModel(model, tokenizer, format="qwen", cache="none")
    [one], [three] = reward.cost([solution(QUESTION, STEPS[:1])]), reward.cost([NODE])
    width = model.config.hidden_size
    assert reward._scorers[0]._charges.spec.head == 2 * width * width + 2 * width * 2
    assert 0 < one.reward_flops < three.reward_flops
    assert one.scored_tokens < three.scored_tokens


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("pure/of-mine", "trl"),
        ("of-mine/pure-prm", "pure"),
        ("models--org--pure-prm/snapshots/0123abc", "pure"),
        ("models--org--other/snapshots/pure", "trl"),
    ],
)
def test_a_format_is_told_by_the_name_of_the_checkpoint_and_not_by_its_folders(tmp_path, path, found):
    tokenizer = byte_tokenizer()
    assert choose_format(save(tmp_path / path, classifier(tokenizer), tokenizer), "auto").name == found


def test_a_verifier_prm_is_no_er_prm(tmp_path):
    tokenizer = byte_tokenizer()
    with pytest.raises(FormatError, match="cannot be told"):
        choose_format(save(tmp_path / "verifier-prm", causal(tokenizer), tokenizer), "auto")
    assert choose_format(save(tmp_path / "er-prm", causal(tokenizer), tokenizer), "auto").name == "er-prm"


def test_the_wrong_family_is_refused_by_name(tmp_path):
    tokenizer = byte_tokenizer()
    folder = save(tmp_path / "lm", causal(tokenizer), tokenizer)
    with pytest.raises(FormatError, match=r"the format of .*lm'.*cannot be told: pass format=, one of er-prm, math-s"):
        HFProcessRewardModel.from_pretrained(folder)
    with pytest.raises(FormatError, match="format='shepherd': choose one of auto, er-prm"):
        HFProcessRewardModel.from_pretrained(folder, format="shepherd")
    with pytest.raises(CheckpointError, match=r"missing: v_head\.summary\.bias, v_head\.summary\.weight"):
        HFProcessRewardModel.from_pretrained(folder, format="skywork")
    with pytest.raises(TagError, match="the tag '<extra_0>' is 9 tokens in this tokenizer"):
        HFProcessRewardModel.from_pretrained(folder, format="qwen")
    tagged = save(tmp_path / "tagged", causal(qwen_tokenizer()), qwen_tokenizer())
    with pytest.raises(CheckpointError, match=r"missing: score\.0\.bias.*"):
        HFProcessRewardModel.from_pretrained(tagged, format="qwen")
    with pytest.raises(CheckpointError, match=r"does not fit LlamaForTokenClassification .*missing: score\."):
        HFProcessRewardModel.from_pretrained(folder, format="trl")
    with pytest.raises(FormatError, match="reads a ForTokenClassification, not a LlamaForCausalLM"):
        HFProcessRewardModel(causal(tokenizer), tokenizer, format="pure")
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        HFProcessRewardModel(causal(tokenizer), tokenizer, format="rlhflow")
    odd = with_marks(template="{{ messages[0]['content'] }}")
    with pytest.raises(ValueError, match=r"does not put '\+' where the assistant's turn begins"):
        HFProcessRewardModel(causal(odd), odd, format="rlhflow")


def test_outcome_models_and_odd_heads_are_refused(tmp_path):
    from tests.tiny_models import tiny_model

    tokenizer = byte_tokenizer()
    outcome = tiny_model("llama", "SequenceClassification", num_labels=1)
    outcome.config.architectures = ["LlamaForSequenceClassification"]
    with pytest.raises(FormatError, match="scores whole solutions: use HFOutcomeRewardModel"):
        HFProcessRewardModel.from_pretrained(save(tmp_path / "orm", outcome, tokenizer))
    three = tiny_model("llama", "TokenClassification", num_labels=3)
    with pytest.raises(FormatError, match="reads two labels, and this model has 3"):
        HFProcessRewardModel(three, tokenizer, format="trl")


def test_tags_are_checked_against_the_tokenizer():
    tokenizer = byte_tokenizer()
    with pytest.raises(TagError, match=r"' ки' is \d tokens in this tokenizer.* must be one"):
        HFProcessRewardModel(causal(tokenizer), tokenizer, format="er-prm")
    marked = with_marks(" ки", " +", " -")
    with pytest.raises(TagError, match=r"' ки' is token \d+ in this tokenizer and 12902 in the published math"):
        HFProcessRewardModel(causal(marked), marked, format="math-shepherd")
    with pytest.raises(TagError, match=r"'<extra_0>' is \d+ tokens"):
        HFProcessRewardModel(qwen_prm(), tokenizer, format="qwen")


def test_constant_and_broken_scores_are_refused(tmp_path):
    tokenizer, model = byte_tokenizer(), classifier(byte_tokenizer())
    with torch.no_grad():
        model.score.weight.zero_()
    with pytest.raises(FormatError, match=r"scores every step of two short solutions 0\.50000"):
        HFProcessRewardModel.from_pretrained(save(tmp_path / "constant", model, tokenizer), format="trl")
    reward = HFProcessRewardModel(model, tokenizer, format="trl")
    with pytest.raises(FormatError, match="its head or its positions were not loaded"):
        reward.self_check()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(FormatError, match=r"solutions \[nan, .*its weights are broken"):
        HFProcessRewardModel(model, tokenizer, format="trl", cache="none").self_check()


def test_objects_are_taken_by_the_class_and_their_format_is_told_too():
    tokenizer, model = byte_tokenizer(), classifier(byte_tokenizer())
    model.config.step_separator = "\n\n"
    told = HFProcessRewardModel(model, tokenizer, format="auto")
    assert told.format.layout.separator == "\n\n"
    assert told.step_scores([NODE]) == HFProcessRewardModel(model, tokenizer, format=told.format).step_scores([NODE])
    with pytest.raises(TypeError, match="from_pretrained takes a folder or a hub id, not Qwen2ForTokenClassification"):
        HFProcessRewardModel.from_pretrained(model, tokenizer, format="trl")
    for own, said in (
        ({"good_token": 3, "bad_token": 4}, "good_token and bad_token"),
        ({"step_separator": "|", "use_token_ids": True}, "step_separator, use_token_ids"),
        ({"chat_template": False}, "chat_template"),
    ):
        with pytest.raises(ValueError, match=f"^{said}: a format has its own"):
            HFProcessRewardModel(model, tokenizer, format="trl", **own)


def test_nan_scores_are_named_by_the_engine():
    from inferscale import BestOfN, RepeatedSampling, solve
    from inferscale.testing import ToyGenerator

    tokenizer, model = byte_tokenizer(), classifier(byte_tokenizer())
    reward = HFProcessRewardModel(model, tokenizer, format="trl")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"HFProcessRewardModel scored <Node .* as nan: a score must be a finite"):
        solve("How many?", RepeatedSampling(2), ToyGenerator(), reward_model=reward, aggregator=BestOfN())


def test_a_format_of_ones_own():
    tokenizer = with_marks("<step>")
    model = classifier(tokenizer)
    layout = dataclasses.replace(FORMATS["trl"].layout, separator="<step>", one_id=True, lead="\n")
    own = dataclasses.replace(FORMATS["trl"], name="mine", layout=layout)
    reward = HFProcessRewardModel(model, tokenizer, format=own)
    tag = tokenizer.convert_tokens_to_ids("<step>")
    ids, marks = [tokenizer.bos_token_id, *plain(tokenizer, QUESTION)], []
    for k, step in enumerate(STEPS):
        ids = [*ids, *plain(tokenizer, "\n" * (k == 0) + step), tag]
        marks.append(len(ids) - 1)
    close(reward.step_scores([NODE])[0], logits_of(model, ids)[marks].softmax(-1)[:, 1].tolist())
