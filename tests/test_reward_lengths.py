"""The context length of reward models, and paths that are longer."""

from __future__ import annotations

import copy
import re
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from inferscale import REBASE, BestOfN, HFGenerator, Problem, RepeatedSampling, solve_batch
from inferscale.base import ContextLengthError
from inferscale.flops import FlopCounter
from inferscale.quiet_star import QuietSTaR, ThoughtUtility
from inferscale.quiet_star.reward import WithThoughts
from inferscale.rewards import (
    CachedProcessReward,
    CachedReward,
    CalibratedReward,
    EnsembleReward,
    GenerativeVerifier,
    HFOutcomeRewardModel,
    HFProcessRewardModel,
    ImplicitReward,
    LikelihoodReward,
    PlattCalibration,
    RewardFunction,
    TruncatedProcessReward,
    TruncatedReward,
    WeightedReward,
)
from inferscale.rewards.formats import FORMATS
from inferscale.runtime.loading import context_length
from inferscale.testing import ToyReward
from inferscale.tree import Node, Step
from tests.reward_checkpoints import causal, llama_tokenizer, pair_tokenizer, solution
from tests.tiny_models import VOCABULARY, byte_tokenizer, tiny_config, tiny_model

SHORT = {"max_position_embeddings": 64}
LONG = solution("b a", [" a is 12\n" * 9, " b is 12\n" * 9])


def ids_of(text: str) -> list[int]:
    return byte_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize(
    ("family", "changes", "length"),
    [
        ("llama", {}, 512),
        ("gpt2", {"n_positions": 48, "max_position_embeddings": 48}, 48),
        ("mistral_window", {}, 512),  # a window of 12 is no bound
        ("bloom", {"max_position_embeddings": None}, None),
        ("falcon", {"alibi": True}, None),
        ("falcon", {}, 512),
        ("mamba", {"max_position_embeddings": None}, None),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 1024),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, 512),
    ],
)
def test_the_context_length_of_decoders(family, changes, length):
    assert context_length(tiny_config(family, **changes)) == length


def test_yarn_stretches_what_was_trained():
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
    as_trained = tiny_config("qwen2", max_position_embeddings=128, rope_parameters=rope)  # as Qwen's pages say
    stretched = tiny_config("qwen2", max_position_embeddings=512, rope_parameters=rope)  # as DeepSeek's files do
    assert context_length(as_trained) == context_length(stretched) == 512


def test_a_tokenizer_may_tell_less_and_odd_values_tell_nothing():
    config, tokenizer = tiny_config("llama"), copy.deepcopy(byte_tokenizer())
    assert context_length(config, tokenizer) == 512  # transformers' 10^30 is no length
    tokenizer.model_max_length = 100
    assert context_length(config, tokenizer) == 100
    assert context_length(config) == 512
    assert context_length(SimpleNamespace(max_position_embeddings=-1)) is None  # XLNet
    assert context_length(SimpleNamespace(max_seq_len=2048)) == 2048  # MPT
    assert context_length(SimpleNamespace(max_position_embeddings=-1), tokenizer) == 100


_ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "num_labels": 1,
    "vocab_size": VOCABULARY, "pad_token_id": 1,
}  # fmt: skip


_FAMILIES = (
    "albert", "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "ibert",
    "longformer", "luke", "mpnet", "nystromformer", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
)  # fmt: skip


@pytest.mark.parametrize("family", _FAMILIES)
def test_the_context_length_of_encoders_is_what_their_positions_hold(family):
    more = {"xmod": {"default_language": "en_XX"}, "longformer": {"attention_window": [8]}}.get(family, {})
    more |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16} if family == "distilbert" else {}
    config = transformers.CONFIG_MAPPING[family](**_ENCODER, max_position_embeddings=40, **more)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    length = context_length(config)
    assert length in (38, 40)
    with torch.no_grad():
        model(input_ids=torch.full((1, length), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 7))


def too_long(cache: str = "tree") -> dict[str, tuple[object, str]]:
    """Reward models that read 64 tokens at most, and the model that their refusal names."""
    tokenizer = byte_tokenizer()
    pair = {"good_token": "<good>", "bad_token": "<bad>", "cache": cache}
    chat = llama_tokenizer()
    rlhflow = causal(chat, **SHORT)
    return {
        "prm": (HFProcessRewardModel(tiny_model("llama", **SHORT), tokenizer, **pair), "LlamaForCausalLM"),
        "learned": (HFProcessRewardModel(tiny_model("gpt2", **SHORT), tokenizer, **pair), "GPT2LMHeadModel"),
        "classifier": (
            HFProcessRewardModel(tiny_model("qwen2", "TokenClassification", num_labels=2, **SHORT), tokenizer),
            "Qwen2ForTokenClassification",
        ),
        "turns": (HFProcessRewardModel(rlhflow, chat, format=FORMATS["rlhflow"], cache=cache), "LlamaForCausalLM"),
        "outcome": (
            HFOutcomeRewardModel(tiny_model("llama", "SequenceClassification", num_labels=1, **SHORT), tokenizer),
            "LlamaForSequenceClassification",
        ),
        "likelihood": (LikelihoodReward(tiny_model("gpt2", **SHORT), tokenizer, cache=cache), "GPT2LMHeadModel"),
        "implicit": (
            ImplicitReward(tiny_model(), tiny_model(seed=1, **SHORT), tokenizer, cache=cache),
            "LlamaForCausalLM",
        ),
    }


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_longer_paths_are_refused_with_both_lengths_before_anything_runs(cache):
    for name, (reward, model) in too_long(cache).items():
        ran: list[str] = []
        for part in (reward.model, getattr(reward, "reference", None)):
            if part is not None:
                part.register_forward_pre_hook(lambda *_, ran=ran: ran.append("forward"))
        short = solution("b", [" a\n"])
        for ask in (reward.cost, reward.score):
            with pytest.raises(ValueError, match=rf"has \d+ tokens and {model} reads 64: sample shorter") as told:
                ask([short, LONG])
            count = int(re.search(r"has (\d+) tokens", str(told.value))[1])
            assert count >= len(ids_of(LONG.problem.prompt + LONG.text)) - 8, name
        with pytest.raises(ValueError, match=rf"the prompt 'aaa.* and {model} reads 64: shorten it"):
            reward.check_prompt(Node(Problem("a" * 300)))
        reward.check_prompt(short.root)
        assert not ran, name


def test_a_path_that_just_fits_is_scored():
    model = tiny_model("gpt2", **SHORT)
    for length, fits in ((64, True), (65, False)):
        node = solution("b", ["x" * (length - len(ids_of("b")))])
        reward = HFProcessRewardModel(model, byte_tokenizer(), good_token=3, bad_token=4, step_separator=None)
        if fits:
            assert len(reward.step_scores([node])[0]) == 1
        else:
            with pytest.raises(ValueError, match="has 65 tokens and GPT2LMHeadModel reads 64"):
                reward.step_scores([node])
    # the last token is predicted and never read
    likelihood = LikelihoodReward(model, byte_tokenizer(), step_separator=None)
    assert 0 < likelihood.score([node])[0] < 1


def test_a_verifier_leaves_room_for_its_question():
    tokenizer = byte_tokenizer()
    options = {"prompt": "{problem}{solution}", "yes": " a", "no": " b", "question": "\nab?"}
    verifier = GenerativeVerifier(tiny_model("gpt2", **SHORT), tokenizer, **options)
    [found] = verifier.verify([solution("b", [" a" * 10])])
    assert 0 <= found[0].probability <= 1  # the verification filled what was left, and the question still fitted
    with pytest.raises(
        ValueError, match=r"has \d+ tokens and GPT2LMHeadModel, with the verifier's own words, reads 64"
    ):
        verifier.cost([LONG])
    with pytest.raises(ValueError, match="shorten it"):
        verifier.check_prompt(Node(Problem("a" * 300)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_thoughts_need_room_too(family):
    model = tiny_model(family, max_position_embeddings=24)
    quiet = QuietSTaR(model, thought_length=3)
    utility = ThoughtUtility(quiet, byte_tokenizer())
    room = 24 - 3 - 1
    for length in (room, room + 1):
        own = tuple(ids_of("x" * (length - 1)))
        start = Node(Problem("b"), key=length)
        node = Node(start.problem, Step("x" * (length - 1), own), start, 1)
        if length == room:
            assert utility.score([node])
        else:
            with pytest.raises(ValueError, match=rf"has {length} tokens and .* beside a thought, reads {room}"):
                utility.cost([node])
    with pytest.raises(ValueError, match="shorten it"):
        WithThoughts(ToyReward(), utility).check_prompt(Node(Problem("a" * 30)))


def test_wrappers_ask_the_models_inside():
    prm = too_long()["prm"][0]
    outcome = HFOutcomeRewardModel(
        tiny_model("llama", "SequenceClassification", num_labels=1, **SHORT), byte_tokenizer()
    )
    start = Node(Problem("a" * 300))
    for wrapped in (
        EnsembleReward([ToyReward(), outcome]),
        WeightedReward([RewardFunction(lambda nodes: [0.0 for _ in nodes]), outcome]),
        CachedReward(outcome),
        CachedProcessReward(prm),
        CalibratedReward(prm, PlattCalibration(1.0, 0.0)),
    ):
        with pytest.raises(ValueError, match="reads 64: shorten it"):
            wrapped.check_prompt(start)
        wrapped.check_prompt(Node(Problem("b")))


def test_a_search_keeps_what_was_paid_for():
    tokenizer = byte_tokenizer()
    generator = HFGenerator(tiny_model(), tokenizer, max_new_tokens=90, max_step_tokens=30)
    reward = HFProcessRewardModel(tiny_model("llama", **SHORT), tokenizer, good_token=3, bad_token=4)
    with pytest.raises(ValueError, match=r"a solution .* has \d+ tokens and LlamaForCausalLM reads 64") as told:
        solve_batch(["a b", "b is 12"], REBASE(width=2), generator, reward_model=reward)
    partial = told.value.partial
    assert len(partial) == 2
    assert sum(len(result.trajectories) for result in partial) >= 4
    assert all(result.cost.generated_tokens > 0 for result in partial)


def test_a_prompt_that_cannot_be_scored_is_told_before_any_sampling():
    class Counted(HFGenerator):
        calls = 0

        def generate(self, requests):
            type(self).calls += 1
            return super().generate(requests)

    generator = Counted(tiny_model(), byte_tokenizer(), max_new_tokens=4)
    reward = HFOutcomeRewardModel(
        tiny_model("llama", "SequenceClassification", num_labels=1, **SHORT), byte_tokenizer()
    )
    problems = [Problem("b"), Problem("b a"), Problem("a" * 200)]
    with pytest.raises(ValueError, match=r"the prompt 'aaa.* has 200 tokens and LlamaForSeq.* reads 64: shorten it"):
        solve_batch(problems, RepeatedSampling(2), generator, reward_model=reward, aggregator=BestOfN(), batch_size=1)
    assert Counted.calls == 0


# Outcome models: where a text ends, and pairs of texts.


def test_an_end_of_sequence_is_appended_once():
    tokenizer = byte_tokenizer()
    model = tiny_model("llama", "SequenceClassification", num_labels=1)
    node = solution("b a", [" a\n", " is 12"])
    reward = HFOutcomeRewardModel(model, tokenizer, append_eos=True)
    ids = [*ids_of("b a a\n is 12"), tokenizer.eos_token_id]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
    assert reward.score([node])[0] == pytest.approx(expected, abs=1e-5)
    assert reward.cost([node])[0].scored_tokens == len(ids)
    closing = copy.deepcopy(tokenizer)  # ends texts itself
    closing.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    closed = HFOutcomeRewardModel(model, closing, append_eos=True)
    assert closed.score([node])[0] == pytest.approx(expected, abs=1e-5)
    assert HFOutcomeRewardModel(model, tokenizer).score([node])[0] != pytest.approx(expected, abs=1e-3)
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(ValueError, match="append_eos=True, but this tokenizer has no end-of-sequence token"):
        HFOutcomeRewardModel(model, bare, append_eos=True)


def test_append_eos_is_an_option_of_from_pretrained(tmp_path):
    model = tiny_model("llama", "SequenceClassification", num_labels=1)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    node = solution("b", [" a"])
    loaded = HFOutcomeRewardModel.from_pretrained(tmp_path, append_eos=True, device="cpu")
    assert loaded.score([node]) == HFOutcomeRewardModel(model, byte_tokenizer(), append_eos=True).score([node])


def encoder(family: str, **more: object) -> object:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](
        **_ENCODER | {"initializer_range": 0.5}, max_position_embeddings=130, **more
    )
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


ENCODERS = {
    "bert": {"type_vocab_size": 2},
    "roberta": {},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
    | {"share_att_key": True, "position_biased_input": False, "type_vocab_size": 0},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2}
    | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4},
    "fnet": {"type_vocab_size": 2},  # looks at padding
}


@pytest.mark.filterwarnings("ignore:FLOPs of this model will be reported as 0. FNet")
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_judge_a_pair_of_texts_alone_and_in_a_batch_alike(family):
    tokenizer = pair_tokenizer()
    model = encoder(family, **ENCODERS[family])
    reward = HFOutcomeRewardModel(model, tokenizer)
    nodes = [solution("b a", [" a is 12" * n]) for n in (1, 5, 2, 5)]
    scores = reward.score(nodes)
    for node, score in zip(nodes, scores, strict=True):
        pair = tokenizer(node.problem.prompt, node.text, return_tensors="pt")
        if family in ("distilbert", "modernbert"):
            del pair["token_type_ids"]
        if family == "fnet":
            del pair["attention_mask"]
        with torch.no_grad():
            assert score == pytest.approx(model(**pair).logits[0, 0].item(), abs=1e-5)
        assert score == pytest.approx(reward.score([node])[0], abs=1e-5)
    assert len(set(scores)) == 3
    marked = solution("b a", ["<bad> a"])  # the separator, written by a model
    assert list(reward._encoder.encode(marked).ids).count(4) == 2


# Judged by what fits.


def long_prm(**options: object) -> HFProcessRewardModel:
    return HFProcessRewardModel(tiny_model("gpt2", **SHORT), byte_tokenizer(), good_token=3, bad_token=4, **options)


def completion(problem: str, lines: list[str]) -> Node:
    """The same solution in one node, as a model ends it in one go."""
    ends = list(accumulate(map(len, lines)))
    start = Node(Problem(problem), key=7)
    step = Step("".join(lines), finish_reason="eos", inner_ends=tuple((end, 0) for end in ends))
    return Node(start.problem, step, start, 8)


@pytest.mark.parametrize("make", [solution, completion])
def test_steps_that_do_not_fit_have_the_score_of_the_last_that_does(make):
    lines = [" a is 12\n", " b is 12\n" * 3, " a\n", " b is 12\n" * 9, " x\n"]
    node, prm = make("b a", lines), long_prm()
    judged = prm.step_scores([make("b a", lines[:3])])[0]
    assert len(prm.step_scores([make("b a", lines[:3])])[0]) == 3
    with pytest.raises(ContextLengthError):
        prm.step_scores([make("b a", lines[:4])])
    wrapped = TruncatedProcessReward(prm)
    short = make("b", [" a\n"])
    for nodes in ([node, short], [node], [short]):
        assert len(wrapped.cost(nodes)) == len(nodes)
        found = wrapped.step_scores(nodes)
        for one, scores in zip(nodes, found, strict=True):
            assert scores == pytest.approx(
                [*judged, judged[-1], judged[-1]] if one is node else prm.step_scores([one])[0]
            )
    assert (node.stats.get("truncated"), short.stats.get("truncated")) == (True, None)
    assert wrapped.reduction == prm.reduction
    with torch.no_grad(), FlopCounter(reward=wrapped) as counter:  # the model inside of both
        prm.model(input_ids=torch.tensor([[5, 6]]))
    assert counter.flops > 0
    wrapped.release(node.root)
    assert not wrapped._beginnings.get(node.root)


def test_an_outcome_model_judges_the_beginning_that_fits():
    model = tiny_model("llama", "SequenceClassification", num_labels=1, **SHORT)
    reward = HFOutcomeRewardModel(model, byte_tokenizer(), append_eos=True)
    lines = [" a is 12\n", " b is 12\n", "x" * 60, "y"]
    [score] = TruncatedReward(reward).score([solution("b", lines)])
    assert score == pytest.approx(reward.score([solution("b", lines[:2])])[0])


def test_where_nothing_fits_it_is_told():
    prm = long_prm()
    node = solution("b", ["x" * 90 + "\n", "y\n"])
    with pytest.raises(ContextLengthError, match="reads 64"):
        TruncatedProcessReward(prm).step_scores([node])
    with pytest.raises(ContextLengthError, match="shorten it"):
        TruncatedProcessReward(prm).check_prompt(Node(Problem("a" * 300)))
    with pytest.raises(TypeError, match=r"TruncatedProcessReward\(model\) keeps them"):
        TruncatedReward(prm)
    with pytest.raises(TypeError, match="use TruncatedReward"):
        TruncatedProcessReward(ToyReward())


def test_no_long_path_ends_a_search_that_truncates():
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_new_tokens=90, max_step_tokens=30)
    results = solve_batch(
        ["a b", "b is 12"], REBASE(width=2), generator, reward_model=TruncatedProcessReward(long_prm())
    )
    nodes = [node for result in results for leaf in result.leaves for node in leaf.path]
    assert any(node.stats.get("truncated") for node in nodes)
    assert all(node.is_scored for node in nodes)


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_an_encoder_that_judges_steps_has_its_own_positions(family):
    config = transformers.CONFIG_MAPPING[family](
        **_ENCODER | {"num_labels": 2, "initializer_range": 0.5}, max_position_embeddings=130
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    reward = HFProcessRewardModel(model, byte_tokenizer(), cache="none")
    node = solution("b a", [" a\n", " b is 12\n"])
    ids = [*ids_of("b a"), *ids_of(" a\n"), *ids_of(" b is 12\n")]  # encoded piece by piece
    ends = [len(ids) - len(ids_of(" b is 12\n")) - 1, len(ids) - 1]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, ends].softmax(-1)[:, 1].tolist()
    assert reward.step_scores([node, solution("b", [" a\n"])])[0] == pytest.approx(expected, abs=1e-5)
