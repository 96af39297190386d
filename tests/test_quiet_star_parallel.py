"""Thinking at all positions at once is thinking at each alone; and never any different for what it should not see."""

import warnings
from shutil import which

import pytest
import torch

from inferscale.quiet_star import QuietSTaR, UnsupportedModelError, parallel
from inferscale.quiet_star.parallel import Slots, additive, block_mask, check_parallel, thought_mask
from tests.quiet_star_tools import model_of, one_thought, wrapped

MASKED = [
    "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "olmo2", "smollm3", "granite", "cohere",
    "starcoder2", "gpt2", "gpt_neox", "opt", "mixtral", "qwen2_moe", "stablelm", "falcon", "mistral_window",
    "gemma3",
]  # fmt: skip
EAGER_ONLY = ["gemma2", "gpt_oss"]
FLEX = ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gemma3", "gemma2", "mistral_window"))]
FOLDED = ["bloom", "mpt", "mamba", "lfm2", "qwen3_next", "falcon_alibi"]
IDS = torch.tensor([[5, 17, 101, 8, 44, 250, 3, 9], [77, 6, 300, 31, 2, 19, 120, 64]])


def relative_error(found, wanted):
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def checkpoint_activations(model):
    new = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def naive_talk(quiet, ids, thoughts, talk_length):
    """The states of `talk`, one prefix and one thought at a time: `[batch, thoughts, positions, T + 1 + n, hidden]`."""
    rows = []
    for row in range(len(ids)):
        text = ids[row].tolist()
        for tokens in thoughts.tokens[row]:
            for position, thought in zip(thoughts.positions.tolist(), tokens.tolist(), strict=True):
                ahead = text[position + 1 : position + talk_length]
                rows.append(one_thought(quiet, text[: position + 1], thought, ahead)[position + 1 :])
    return torch.stack(rows).reshape(*thoughts.tokens.shape[:3], -1, rows[0].shape[-1])


def check_family(quiet, ids=IDS, talk_length=2):
    positions = torch.arange(ids.shape[1] - talk_length + 1)
    thoughts = quiet.think(ids, positions=positions, num_thoughts=2, seed=3)
    with torch.no_grad():
        talk = quiet.talk(ids, None, thoughts, talk_length)
        wanted = naive_talk(quiet, ids, thoughts, talk_length)
    length = quiet.thought_length
    assert relative_error(talk.policy, wanted[..., :length, :]) < 1e-5
    assert relative_error(talk.thought, wanted[..., length + 1 :, :]) < 1e-5
    # the thoughts are what their own states say, by the same uniform numbers
    again = quiet.think(ids, positions=positions, num_thoughts=2, seed=3)
    assert torch.equal(again.tokens, thoughts.tokens)
    logprobs = quiet.logits(wanted[..., :length, :]).log_softmax(-1).gather(-1, thoughts.tokens[..., None])[..., 0]
    torch.testing.assert_close(thoughts.logprobs, logprobs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", MASKED)
def test_parallel_thoughts_are_single_thoughts_under_sdpa(family):
    quiet = wrapped(family)
    check_family(quiet)
    assert quiet.parallel_check.way.startswith("mask")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_window", "gemma3", *EAGER_ONLY])
def test_parallel_thoughts_are_single_thoughts_under_eager_attention(family):
    quiet = wrapped(family, changes={"attn_implementation": "eager"})
    check_family(quiet)
    assert quiet.backbone.attention == "eager"
    assert quiet.parallel_check.way.startswith("mask")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", FLEX)
def test_parallel_thoughts_are_single_thoughts_under_flex_attention(family):
    """The block mask through transformers, with the kernel's reference implementation in place of a compiled one."""
    with torch.compiler.set_stance("force_eager"):
        quiet = wrapped(family, changes={"attn_implementation": "flex_attention"})
        check_family(quiet)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
        thoughts = quiet.think(IDS, mask, seed=1)
        with torch.no_grad():
            flex = quiet.talk(IDS, mask, thoughts)
    assert quiet.backbone.attention == "flex_attention"
    assert quiet.parallel_check.way.startswith("mask")
    with torch.no_grad():
        dense = wrapped(family).talk(IDS, mask, thoughts)
    assert relative_error(flex.thought[0, :, 2:], dense.thought[0, :, 2:]) < 1e-5
    assert relative_error(flex.thought[1], dense.thought[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.skipif(which("g++") is None and not torch.cuda.is_available(), reason="nothing to compile the kernel with")
def test_compiled_flex_attention_is_right_or_left_and_told():
    quiet = wrapped("llama", changes={"attn_implementation": "flex_attention"})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert quiet.parallel_check.way == "mask"
    # a kernel for shapes that change does not compile everywhere, and is not right everywhere
    assert was_told(told) == (quiet.backbone.attention == "sdpa")
    with torch.no_grad():
        thoughts = quiet.think(IDS, positions=torch.tensor([2, 6]))
        found, wanted = quiet.talk(IDS, None, thoughts), wrapped("llama").talk(IDS, None, thoughts)
    assert relative_error(found.thought, wanted.thought) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(which("g++") is None and not torch.cuda.is_available(), reason="nothing to compile the kernel with")
def test_flex_attention_compiled_for_each_shape_is_right_or_left_and_told():
    backbone = wrapped("llama", changes={"attn_implementation": "flex_attention"}).backbone
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=64):
            assert check_parallel(backbone, "mask").errors["mask"] < 1e-5
    assert was_told(told) == (backbone.attention == "sdpa")


def was_told(warned):
    return any("runs under 'sdpa' attention" in str(warning.message) for warning in warned)


def does_not_compile(*_):
    raise RuntimeError("does not compile")


def nobody_sees_thoughts(query, key, keep=None, window=None):
    """A block mask that is wrong in silence."""
    return block_mask(query, Slots(torch.full_like(key.owner, 99), key.anchor, key.step), keep, window)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("broken", [does_not_compile, nobody_sees_thoughts], ids=lambda broken: broken.__name__)
def test_where_flex_attention_fails_the_model_runs_under_sdpa_and_it_is_told(monkeypatch, family, broken):
    monkeypatch.setattr(parallel, "block_mask", broken)
    with torch.compiler.set_stance("force_eager"):
        quiet = wrapped(family, changes={"attn_implementation": "flex_attention"})
        assert quiet.backbone.attention == "flex_attention"
        with pytest.warns(UserWarning, match="from now on this model runs under 'sdpa' attention"):
            way = quiet.parallel_check.way
    assert way.startswith("mask")
    assert quiet.model.config._attn_implementation == "sdpa"
    check_family(quiet)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
def test_nothing_is_folded_under_flex_attention_on_a_cpu():
    """Its kernel may read what lies behind short texts, and a trial may or may not show it."""
    with torch.compiler.set_stance("force_eager"):
        quiet = wrapped("llama", parallel="fold", changes={"attn_implementation": "flex_attention"})
        with pytest.warns(UserWarning, match="from now on this model runs under 'sdpa' attention"):
            assert quiet.parallel_check.way == "fold"
    assert quiet.backbone.attention == "sdpa"
    check_family(quiet)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
def test_plain_text_that_flex_attention_gets_wrong_is_seen_by_the_check(monkeypatch):
    """The kernel without AVX-512: what is not finite is the truth that the ways are compared with."""
    with torch.compiler.set_stance("force_eager"):
        backbone = wrapped("llama", changes={"attn_implementation": "flex_attention"}).backbone
        right = backbone.states

        def wrong(embeds, *rest):
            states = right(embeds, *rest)
            return states * torch.nan if backbone.attention == "flex_attention" and embeds.shape[1] == 8 else states

        monkeypatch.setattr(backbone, "states", wrong)
        with pytest.warns(UserWarning, match="mask: not finite.*runs under 'sdpa' attention"):
            check = check_parallel(backbone)
    assert (check.way, backbone.attention) == ("mask", "sdpa")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has gradients on a GPU alone")
def test_flex_attention_has_the_gradients_of_dense_masks():
    gradients = []
    for attention in ("flex_attention", "sdpa"):
        quiet = wrapped("llama", changes={"attn_implementation": attention}).cuda()
        thoughts = wrapped("llama").think(IDS, seed=1)
        moved = type(thoughts)(*(tensor.cuda() for tensor in (thoughts.tokens, thoughts.logprobs, thoughts.positions)))
        quiet.logits(quiet.talk(IDS.cuda(), None, moved).mixed).log_softmax(-1)[..., 5].sum().backward()
        gradients.append({name: p.grad for name, p in quiet.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FOLDED)
def test_architectures_that_ignore_the_mask_are_folded_and_told_about(family):
    quiet = wrapped(family)
    with pytest.warns(UserWarning, match="cannot run parallel thoughts through a mask"):
        assert quiet.parallel_check.way == "fold"
    check_family(quiet)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_fold_and_mask_agree(family):
    masked, folded = wrapped(family), wrapped(family, parallel="fold")
    thoughts = masked.think(IDS, seed=1)
    assert torch.equal(folded.think(IDS, seed=1).tokens, thoughts.tokens)
    with torch.no_grad():
        one, other = masked.talk(IDS, None, thoughts), folded.talk(IDS, None, thoughts)
    assert relative_error(other.thought, one.thought) < 1e-5
    assert folded.parallel_check.way == "fold"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_window", "gemma3", "lfm2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_matters(family, side):
    quiet = wrapped(family, parallel="fold" if family == "lfm2" else "auto")
    pads = torch.full((2, 3), 7)
    mask = torch.ones_like(IDS)
    padded = torch.cat([pads, IDS] if side == "left" else [IDS, pads], dim=1)
    padded_mask = torch.cat([pads * 0, mask] if side == "left" else [mask, pads * 0], dim=1)
    shift = 3 if side == "left" else 0
    thoughts = quiet.think(IDS, seed=1)
    moved = type(thoughts)(thoughts.tokens, thoughts.logprobs, thoughts.positions + shift)
    with torch.no_grad():
        plain, other = quiet.talk(IDS, None, thoughts), quiet.talk(padded, padded_mask, moved)
        padded[:, slice(0, 3) if side == "left" else slice(8, 11)] = 200
        again = quiet.talk(padded, padded_mask, moved)
    assert relative_error(other.thought, plain.thought) < 1e-5
    assert relative_error(other.mixing_weight, plain.mixing_weight) < 1e-4
    assert torch.equal(again.thought, other.thought)


def test_left_padded_rows_can_think_at_padding_without_nan():
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    for family in ("llama", "gpt2", "mamba"):
        quiet = wrapped(family, parallel="fold" if family == "mamba" else "auto")
        assert bool(quiet(IDS, mask, seed=1).logits.isfinite().all())


def test_a_thought_changes_nothing_at_other_positions():
    quiet = wrapped("llama")
    thoughts = quiet.think(IDS, seed=1)
    tokens = thoughts.tokens.clone()
    tokens[:, :, 3] = (tokens[:, :, 3] + 1) % 320
    with torch.no_grad():
        one = quiet.talk(IDS, None, thoughts)
        other = quiet.talk(IDS, None, type(thoughts)(tokens, thoughts.logprobs, thoughts.positions))
    same = (one.thought == other.thought).all(dim=-1).all(dim=-1).all(dim=0)[0]
    assert same.tolist() == [True] * 3 + [False] + [True] * 4
    assert torch.equal(one.text, other.text)


@pytest.mark.parametrize("mask", [None, torch.ones_like(IDS)])
def test_the_future_never_leaks(mask):
    quiet = wrapped("llama")
    changed = IDS.clone()
    changed[:, 5] = 99
    one, other = quiet(IDS, mask, seed=2), quiet(changed, mask, seed=2)
    assert torch.equal(one.thoughts.tokens[:, :, :5], other.thoughts.tokens[:, :, :5])
    assert relative_error(other.logits[:, :5], one.logits[:, :5]) < 1e-5
    assert relative_error(other.logits[:, 5], one.logits[:, 5]) > 1e-3


def test_positions_can_be_chosen_and_taken_in_pieces():
    whole, pieces = wrapped("llama"), wrapped("llama", positions_at_once=2)
    some = torch.tensor([6, 1, 4])
    thoughts = whole.think(IDS, positions=some, num_thoughts=2, seed=4)
    assert torch.equal(pieces.think(IDS, positions=some, num_thoughts=2, seed=4).tokens, thoughts.tokens)
    with torch.no_grad():
        one, other = whole.talk(IDS, None, thoughts, 2), pieces.talk(IDS, None, thoughts, 2)
        wanted = naive_talk(whole, IDS, thoughts, 2)
    assert relative_error(other.thought, one.thought) < 1e-5
    assert relative_error(one.thought, wanted[..., 4:, :]) < 1e-5
    with pytest.raises(ValueError, match="do not fit a text of 8"):
        whole.think(IDS, positions=torch.tensor([8]))
    with pytest.raises(ValueError, match="with 1 tokens after each"):
        whole.talk(IDS, None, whole.think(IDS), 2)


def test_position_major_without_a_cache_is_time_major_with_one():
    quiet = wrapped("gemma3", changes={"attn_implementation": "eager"})
    thoughts = quiet.think(IDS, seed=1)
    with torch.no_grad():
        cached = quiet.talk(IDS, None, thoughts)
        checkpoint_activations(quiet.model)
        quiet.train()
        assert quiet.backbone.recomputes
        plain = quiet.talk(IDS, None, thoughts)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
        padded = quiet.talk(IDS, mask, thoughts)
        quiet.eval()
        wanted = quiet.talk(IDS, mask, thoughts)
    assert relative_error(plain.thought, cached.thought) < 1e-5
    assert relative_error(padded.thought[0, :, 2:], wanted.thought[0, :, 2:]) < 1e-5


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        quiet = wrapped("gpt_neox", changes={"attention_dropout": 0.0, "hidden_dropout": 0.0}).double()
        quiet.train()
        if checkpointing:
            checkpoint_activations(quiet.model)
        thoughts = quiet.think(IDS, seed=1)
        quiet.logits(quiet.talk(IDS, None, thoughts, 1).mixed).log_softmax(-1)[..., 5].sum().backward()
        gradients.append({name: p.grad for name, p in quiet.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-11)


def test_a_mask_by_hand():
    """Text a b, one thought of two tokens after each; rows are queries."""
    text = Slots.text(2, torch.device("cpu"))
    keys = text + Slots.thoughts(torch.tensor([0, 1]), 0, 2)
    wanted = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert thought_mask(keys, keys)[0, 0].int().tolist() == wanted
    assert keys.place.tolist() == [0, 1, 1, 2, 2, 3]
    narrow = thought_mask(keys, keys, window=2)[0, 0].int().tolist()
    assert narrow[3] == [0, 0, 1, 1, 0, 0]
    padded = thought_mask(keys, keys, torch.tensor([[False, True]]))[0, 0].int().tolist()
    assert padded[0] == [1, 0, 0, 0, 0, 0]
    assert padded[2] == [0, 0, 1, 0, 0, 0]
    assert padded[5] == [0, 1, 0, 0, 1, 1]
    added = additive(thought_mask(keys, keys), torch.float16)
    assert added[0, 0, 0].tolist() == [0.0] + [torch.finfo(torch.float16).min] * 5


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_the_block_mask_of_flex_attention_holds_the_same_visibility(window, padded):
    from torch.nn.attention.flex_attention import create_mask

    slots = Slots.text(40, torch.device("cpu")) + Slots.thoughts(torch.arange(40), 0, 4)
    keep = torch.arange(40)[None].expand(2, -1) >= torch.tensor([[0], [7]]) if padded else None
    dense = thought_mask(slots, slots, keep, window)
    blocks = block_mask(slots, slots, keep, window)
    found = create_mask(blocks.mask_mod, len(dense), 1, 200, 200, device="cpu")
    assert torch.equal(found, dense)


def test_position_major_blocks_leave_most_of_the_square_out():
    """256 tokens and thoughts of 14: 97 of 900 blocks of 128 x 128 are seen by anybody."""
    slots = Slots.text(256, torch.device("cpu")) + Slots.thoughts(torch.arange(256), 0, 14)
    blocks = block_mask(slots, slots)
    assert int(blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum()) == 97


def test_a_bool_mask_under_eager_attention_would_be_seen_by_the_check(monkeypatch):
    """Eager attention adds what it is given: bools are silently wrong there, and so are never sent."""
    backbone = wrapped("llama", changes={"attn_implementation": "eager"}).backbone
    assert check_parallel(backbone).way == "mask"
    monkeypatch.setattr(parallel, "additive", lambda mask, dtype: mask)
    with pytest.warns(UserWarning, match="cannot run parallel thoughts"):
        check = check_parallel(backbone)
    assert check.way == "fold"
    assert check.errors["mask"] > 0.5


def test_one_mask_for_layers_of_two_kinds_would_be_seen_by_the_check():
    backbone = wrapped("gemma3").backbone
    backbone.window = 2
    with pytest.warns(UserWarning, match="cannot run parallel thoughts"):
        check = check_parallel(backbone)
    assert check.errors["mask"] > 0.1


def test_a_way_that_is_wrong_is_refused_when_it_is_asked_for():
    with pytest.raises(UnsupportedModelError, match="parallel thoughts disagree with single ones for BloomForCausalLM"):
        wrapped("bloom", parallel="mask").think(IDS)
    with pytest.raises(ValueError, match="parallel='maybe'"):
        QuietSTaR(model_of("llama"), parallel="maybe")


def test_the_rows_of_a_fold_can_be_capped():
    few, many = wrapped("bloom", parallel="fold", rows_at_once=3), wrapped("bloom", parallel="fold")
    thoughts = many.think(IDS, seed=5)
    with torch.no_grad():
        one, other = many.talk(IDS, None, thoughts), few.talk(IDS, None, thoughts)
    assert relative_error(other.thought, one.thought) < 1e-5


def test_what_is_thought_at_a_place_depends_on_nothing_else():
    quiet = wrapped("llama")
    many = quiet.think(IDS, num_thoughts=3, seed=4)
    few = quiet.think(IDS[:1], positions=torch.tensor([5, 2]), num_thoughts=2, seed=4)
    assert torch.equal(few.tokens[0], many.tokens[0, :2][:, [5, 2]])
    assert not torch.equal(many.tokens[0, 0], many.tokens[0, 1])
