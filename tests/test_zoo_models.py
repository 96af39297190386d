"""The models in the package are there, whole, and load without a network; how good they are is measured elsewhere."""

import json
import socket

import pytest
import torch

from inferscale import zoo
from inferscale.zoo import tokenizer

NAMES = [card.name for card in zoo.list()]


@pytest.fixture(scope="module")
def no_network():
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a model was loaded over the network"))
    yield
    patch.undo()


def test_there_are_models_and_they_are_small():
    assert "policy-s" in NAMES
    assert sum(card.size_bytes for card in zoo.list()) <= 12_000_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("no_network")
def test_model_is_whole_and_matches_its_card(name):
    state = torch.random.get_rng_state()
    model, hub_tokenizer = zoo.load(name)
    assert torch.equal(state, torch.random.get_rng_state())
    card = zoo.card(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (zoo.path(name) / "model.safetensors").stat().st_size == card.size_bytes
    assert not model.training
    assert hub_tokenizer.get_vocab() == tokenizer.vocabulary()
    assert "/tmp" not in card.command
    ids = torch.arange(8, 40)[None]
    hidden = model(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.lm_head(hidden), model(ids).logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("no_network")
def test_auto_classes_load_the_same_model(name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours, _ = zoo.load(name)
    theirs = AutoModelForCausalLM.from_pretrained(zoo.path(name), local_files_only=True, dtype=torch.float32)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    assert not theirs.generation_config.do_sample
    text = "Mia has 12 pens. Mia sells 3 of them. How many pens are left?\n"
    ids = AutoTokenizer.from_pretrained(zoo.path(name), local_files_only=True)(text).input_ids
    assert ids == [tokenizer.BOS, *tokenizer.encode(text)]


def test_unknown_model_names_the_known_ones():
    with pytest.raises(ValueError, match="policy-s"):
        zoo.load("policy-xxl")


def test_fixed_test_problems_are_those_of_their_seed():
    text = (zoo.path("policy-s").parent.parent / "problems-test.jsonl").read_text(encoding="utf-8")
    made = [json.loads(line) for line in text.splitlines()]
    fixed = zoo.problems("test")
    assert [(p.prompt, p.answer, p.id) for p in fixed] == [(m["prompt"], m["answer"], m["id"]) for m in made]
    assert fixed[:50] == zoo.task.generate(50, seed=0, split="test")
    assert len({p.prompt for p in fixed}) == len(fixed) == 500


def test_fixed_sets_are_disjoint():
    test, dev = zoo.problems("test"), zoo.problems("dev")
    assert len(dev) == 500
    assert not {p.prompt for p in test} & {p.prompt for p in dev}
    assert {zoo.task.split_of(p.prompt) for p in test} == {"test"}
    assert {zoo.task.split_of(p.prompt) for p in dev} == {"dev"}
    for problem in test + dev:
        assert problem.answer == str(zoo.task.reference(problem.prompt)[1])


def test_the_judge_reads_the_same_through_the_library():
    """Scores on the tree (cached, ids as sampled) are those that training and its figures use."""
    from inferscale import HFProcessRewardModel
    from inferscale.tree import Node, Step
    from studies.embedded.judge import score_steps

    judge, hub_tokenizer = zoo.load("prm-s")
    tokens = {"good_token": "<good>", "bad_token": "<bad>"}
    by_text = HFProcessRewardModel(judge, hub_tokenizer, **tokens)
    by_ids = HFProcessRewardModel(judge, hub_tokenizer, **tokens, use_token_ids=True)
    for problem in zoo.problems("dev")[:6]:
        solution = zoo.task.solution(problem.prompt)
        node = Node(problem)
        lines = solution.splitlines(keepends=True)
        for line in lines:
            ids = tokenizer.encode(line) + ([] if line.endswith("\n") else [tokenizer.EOS])
            node = Node(problem, Step(line, tuple(ids), finish_reason="step" if line.endswith("\n") else "eos"), node)
        expected = score_steps(judge, [problem.prompt], [solution + "\n"])[0]
        assert by_ids.step_scores([node])[0] == pytest.approx(expected, abs=1e-4)
        assert by_text.step_scores([node])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft
def test_adapters_are_merged_one_after_the_other_and_may_bring_another_head(tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need the extra: peft")
    from transformers import LlamaForTokenClassification

    model, _ = zoo.load("policy-xs")
    ids = torch.arange(8, 20)[None]
    plain = model(ids).logits
    torch.manual_seed(0)
    lora = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    policy = peft.get_peft_model(model, peft.LoraConfig(**lora, task_type="CAUSAL_LM"))
    policy.save_pretrained(tmp_path / "policy")
    policy = policy.merge_and_unload()
    model.config.architectures, model.config.num_labels = ["LlamaForTokenClassification"], 2
    judge = LlamaForTokenClassification(model.config)
    judge.model.load_state_dict(policy.model.state_dict())
    config = peft.LoraConfig(**lora, task_type="TOKEN_CLS", modules_to_save=["score"])
    judge = peft.get_peft_model(judge, config).eval()
    judge.save_pretrained(tmp_path / "judge")
    model.config.save_pretrained(tmp_path / "judge")

    adapted, tokens = zoo.load("policy-xs", [tmp_path / "policy"])
    torch.testing.assert_close(adapted(ids).logits, policy(ids).logits)
    assert not torch.allclose(adapted(ids).logits, plain)
    scorer, _ = zoo.load("policy-xs", [tmp_path / "policy", tmp_path / "judge"])
    torch.testing.assert_close(scorer(ids).logits, judge(ids).logits)
    assert not scorer.training
    names = adapted.name_or_path, scorer.name_or_path  # not the plain model's: a plan's command line would load that
    assert names == ("policy-xs+policy", "policy-xs+policy+judge")
    assert tokens.eos_token == "</s>"
    with pytest.raises(ValueError, match=r"nothing' is no folder of an adapter: adapter_config.json"):
        zoo.load("policy-xs", [tmp_path / "nothing"])
    with pytest.raises(TypeError, match=r"give a list of folders, \['policy'\]"):
        zoo.load("policy-xs", "policy")
