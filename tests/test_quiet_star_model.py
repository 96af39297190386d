"""The wrapper leaves the model as it is, and means what it says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from inferscale import zoo
from inferscale._compat import evaluating
from inferscale.generators import CheckpointError
from inferscale.quiet_star import QuietSTaR, ThoughtMixingHead, UnsupportedModelError, mix
from inferscale.quiet_star.head import mean_of_thoughts
from tests.quiet_star_tools import model_of, one_thought, wrapped

IDS = torch.tensor([[5, 17, 101, 8, 44, 250], [77, 6, 300, 31, 2, 19]])


def test_the_head_reads_both_states_and_starts_at_zero():
    head = ThoughtMixingHead(8)
    base, thought = torch.randn(2, 1, 3, 8), torch.randn(2, 4, 3, 8)
    assert head(base, thought).shape == (2, 4, 3, 1)
    assert torch.equal(head(base, thought), torch.zeros(2, 4, 3, 1))
    assert torch.equal(mix(base, thought, head(base, thought)), base.expand(2, 4, 3, 8))
    assert sum(p.numel() for p in head.parameters()) == (16 * 8 + 8) + (8 * 8 + 8) + 8
    assert head.flops == 2 * (16 * 8 + 8 * 8 + 8)
    assert sum(p.numel() for p in ThoughtMixingHead(64).parameters()) == 128 * 64 + 64 + 64 * 64 + 64 + 64
    with pytest.raises(ValueError, match="thought_hidden has shape"):
        head(base, thought[..., :7])


def test_the_bounded_head_stays_between_minus_one_and_one():
    free, bounded = ThoughtMixingHead(8), ThoughtMixingHead(8, bounded=True)
    for head in (free, bounded):
        assert float(head(torch.ones(8), torch.ones(8)).detach()) == 0.0
        torch.nn.init.constant_(head.last.weight, 50.0)
        torch.nn.init.constant_(head.layers[2].bias, 1.0)
    bounded.load_state_dict(free.state_dict())
    weight = free(torch.ones(8), torch.ones(8))
    assert float(weight.detach()) > 100
    assert torch.equal(bounded(torch.ones(8), torch.ones(8)), weight.tanh())


def test_mix_puts_the_weight_on_the_thought():
    base, thought = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert mix(base, thought, torch.tensor([0.25])).tolist() == [1.5, 3.0]
    assert mix(base, thought, torch.tensor([1.0])).tolist() == [3.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "cohere", "mamba"])
def test_an_untrained_wrapper_is_the_base_model_bit_for_bit(family, dtype):
    model = model_of(family).to(dtype)
    quiet = QuietSTaR(model, 2, parallel="fold" if family == "mamba" else "auto")
    with torch.no_grad():
        base = model(input_ids=IDS).logits
        output = quiet(IDS, seed=1)
    assert torch.equal(output.logits, base)
    assert torch.equal(output.base_logits, base)
    assert torch.equal(output.mixing_weight, torch.zeros(2, 6, 1, dtype=dtype))


def test_a_weight_of_one_is_the_thought_alone():
    quiet = wrapped("llama", trained=False, bounded=True)
    with torch.no_grad():
        quiet.head.last.weight.fill_(1000.0)
        quiet.head.layers[2].bias.fill_(1.0)
        output = quiet(IDS, seed=1)
        thought = output.thoughts.tokens[1, 0, 3].tolist()
        wanted = quiet.logits(one_thought(quiet, IDS[1, :4].tolist(), thought)[-1])
    assert bool((output.mixing_weight == 1).all())
    torch.testing.assert_close(output.logits[1, 3], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["cohere", "granite", "gemma2", "gemma3", "gpt2", "opt", "mixtral"])
def test_the_output_head_is_found_with_its_scale_and_cap(family):
    changes = {"granite": {"logits_scaling": 8.0}, "gemma2": {"final_logit_softcapping": 3.0}}.get(family, {})
    model = model_of(family, **changes)
    quiet = QuietSTaR(model, 0)
    with torch.no_grad():
        hidden = quiet.backbone.states(quiet.backbone.embed(IDS))
        torch.testing.assert_close(quiet.backbone.logits(hidden), model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_head_that_cannot_be_had_from_outside_is_refused(monkeypatch):
    model = model_of("llama")
    forward = model.forward

    def squared(**inputs):
        output = forward(**inputs)
        output.logits = output.logits**2
        return output

    monkeypatch.setattr(model, "forward", squared)
    with pytest.raises(UnsupportedModelError, match="cannot be had from its last hidden state"):
        QuietSTaR(model)


def test_the_model_is_left_as_it_is():
    model = model_of("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    quiet = QuietSTaR(model, 2, start_token_id=9)
    quiet(IDS)
    assert model.get_input_embeddings().weight.shape[0] == 320
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [type(module) for module in model.modules()] == modules
    assert torch.equal(quiet.start, model.get_input_embeddings()(torch.tensor(9)))
    assert quiet.start.data_ptr() != model.get_input_embeddings().weight[9].data_ptr()


def test_dropout_is_off_for_a_while_wherever_it_was_on():
    model = model_of("gpt2")
    model.transformer.h[0].train()  # the model as a whole is not
    before = [part.training for part in model.modules()]
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == before


def test_start_and_end_come_from_what_the_embedding_module_gives():
    model = model_of("gemma3")  # scales inside of the module
    quiet = QuietSTaR(model, 1, start_token_id=9, end_token_id=4)
    assert torch.equal(quiet.end, model.get_input_embeddings()(torch.tensor(4)))
    assert not torch.equal(quiet.end, model.get_input_embeddings().weight[4])
    mean = QuietSTaR(model, 1).start
    torch.testing.assert_close(mean, model.get_input_embeddings()(torch.arange(320)).mean(0))


def test_score_is_the_log_probability_of_the_text():
    quiet = wrapped("llama", 2)
    scores = quiet.score(IDS, num_thoughts=2, temperature=1.0, seed=3)
    output = quiet(IDS, num_thoughts=2, temperature=1.0, seed=3)
    wanted = output.logits.log_softmax(-1)[1, 3, IDS[1, 4]]
    torch.testing.assert_close(scores.mixed[1, 3], wanted.detach())
    torch.testing.assert_close(scores.utility, scores.mixed - scores.base)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    masked = quiet.score(IDS, mask)
    assert masked.mixed[0].tolist()[:2] == [0.0, 0.0]
    torch.testing.assert_close(masked.mixed[0, 2:], quiet.score(IDS[:1, 2:]).mixed[0])


def test_several_thoughts_average_probabilities():
    logits = torch.randn(2, 3, 4, 7)
    torch.testing.assert_close(mean_of_thoughts(logits).exp(), logits.softmax(-1).mean(1))
    assert torch.equal(mean_of_thoughts(logits[:, :1]), logits[:, 0])


def test_forbidden_ids_are_never_thought_or_predicted():
    free = wrapped("llama", 4)
    seen = free.think(IDS, num_thoughts=20, seed=1).tokens
    often = int(seen.flatten().mode().values)
    quiet = wrapped("llama", 4, forbidden_ids=[often, 3])
    thoughts = quiet.think(IDS, num_thoughts=20, seed=1)
    assert not bool(torch.isin(thoughts.tokens, torch.tensor([often, 3])).any())
    probabilities = quiet(IDS).logits.softmax(-1)
    assert float(probabilities[..., [often, 3]].detach().sum()) == 0.0
    assert bool(quiet(IDS).logits.isfinite().all())


def test_greedy_thoughts_need_no_seed_and_sampled_ones_obey_it():
    quiet = wrapped("llama", 4)
    greedy = [quiet.think(IDS, temperature=0.0, seed=seed).tokens for seed in (1, 2)]
    assert torch.equal(*greedy)
    one, same, other = (quiet.think(IDS, temperature=1.0, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    nearly = quiet.think(IDS, temperature=1e-4, seed=3).tokens
    assert torch.equal(nearly, greedy[0])  # a temperature divides logits: it is no Gumbel temperature


def test_thoughts_of_no_length_still_mix():
    quiet = wrapped("llama", 0)
    output = quiet(IDS)
    wanted = one_thought(quiet, IDS[0, :3].tolist(), [])[-1]
    with torch.no_grad():
        base = quiet.backbone.states(quiet.backbone.embed(IDS))[0, 2]
        mixed = quiet.logits(mix(base, wanted, quiet.head(base, wanted)))
    torch.testing.assert_close(output.logits[0, 2], mixed, rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_told():
    model = model_of("llama")
    with pytest.raises(ValueError, match="thought_length=-1"):
        QuietSTaR(model, -1)
    with pytest.raises(ValueError, match="token id 320 is outside"):
        QuietSTaR(model, start_token_id=320)
    with pytest.raises(ValueError, match="token id 320 is outside"):
        QuietSTaR(model, forbidden_ids=[3, 320])
    for option in ("positions_at_once", "rows_at_once"):
        with pytest.raises(ValueError, match=f"{option}=0: give a positive number"):
            QuietSTaR(model, **{option: 0})
    quiet = wrapped("llama", 1)
    for call in (quiet, quiet.think, quiet.score):
        with pytest.raises(ValueError, match="num_thoughts=0: give at least one"):
            call(IDS, num_thoughts=0)
    with pytest.raises(ValueError, match="talk_length=0: give at least one"):
        quiet.talk(IDS, None, quiet.think(IDS), 0)
    with pytest.raises(ValueError, match="hidden_size=0"):
        ThoughtMixingHead(0)


# -- saving ------------------------------------------------------------------------------------------------------------


def test_a_wrapper_comes_back_as_it_was_saved(tmp_path):
    quiet = wrapped("llama", 4, bounded=True, forbidden_ids=[3])
    quiet.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    back = QuietSTaR.from_pretrained(tmp_path, model_of("llama"))
    assert (back.thought_length, back.head.bounded, back.forbidden_ids) == (4, True, (3,))
    assert torch.equal(back(IDS, seed=1).logits, quiet(IDS, seed=1).logits)
    assert QuietSTaR.from_pretrained(tmp_path, model_of("llama"), thought_length=1).thought_length == 1


def test_a_merged_folder_is_complete_and_still_a_plain_model(tmp_path):
    quiet = wrapped("llama", 3)
    with torch.no_grad():
        next(quiet.model.parameters()).mul_(1.01)
    quiet.save_pretrained(tmp_path, merge=True)
    back = QuietSTaR.from_pretrained(tmp_path)
    assert torch.equal(back(IDS, seed=1).logits, quiet(IDS, seed=1).logits)
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(IDS).logits, quiet.model(IDS).logits)


def test_the_base_is_remembered_by_name_and_never_by_the_way_there(tmp_path):
    base = model_of("llama")
    base.save_pretrained(tmp_path / "mine")
    base.name_or_path = str(tmp_path / "mine")
    QuietSTaR(base, 2).save_pretrained(tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "quiet_star.json").read_text()
    with pytest.raises(CheckpointError, match=r"lay in a folder named 'mine' when it was saved: pass model=\.\.\."):
        QuietSTaR.from_pretrained(tmp_path / "out")
    assert QuietSTaR.from_pretrained(tmp_path / "out", tmp_path / "mine", dtype=torch.float64).thought_length == 2
    embedded, _ = zoo.load("policy-xs")
    QuietSTaR(embedded, 2).save_pretrained(tmp_path / "embedded")
    assert json.loads((tmp_path / "embedded" / "quiet_star.json").read_text())["base"]["name"] == "policy-xs"
    assert QuietSTaR.from_pretrained(tmp_path / "embedded").model.config.vocab_size == embedded.config.vocab_size


def test_another_base_is_refused(tmp_path):
    wrapped("llama", 3).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not the one that its thoughts were saved with"):
        QuietSTaR.from_pretrained(tmp_path, model_of("llama", seed=5))
    with pytest.raises(CheckpointError, match="does not say where its base lies"):
        QuietSTaR.from_pretrained(tmp_path)
    settings = (tmp_path / "quiet_star.json").read_text()
    (tmp_path / "quiet_star.json").write_text(settings.replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="has format 2; this inferscale reads format 1"):
        QuietSTaR.from_pretrained(tmp_path, model_of("llama"))
    (tmp_path / "quiet_star.json").write_text(settings)
    weights = load_file(tmp_path / "quiet_star.safetensors")
    save_file({k: v for k, v in weights.items() if k != "end"}, tmp_path / "quiet_star.safetensors")
    with pytest.raises(CheckpointError, match="end missing, too many or misshapen"):
        QuietSTaR.from_pretrained(tmp_path, model_of("llama"))
    with pytest.raises(CheckpointError, match="holds neither"):
        QuietSTaR.from_pretrained(tmp_path / "nothing")


def test_the_constructor_takes_objects_and_from_pretrained_loads(tmp_path):
    with pytest.raises(TypeError, match=r"not 'org/model': QuietSTaR.from_pretrained\(...\) loads one that thinks"):
        QuietSTaR("org/model")
    with pytest.raises(TypeError, match="AutoModelForCausalLM"):
        QuietSTaR(tmp_path)
    with pytest.raises(CheckpointError, match="'org/model' is no folder, and cannot be had from the hub"):
        QuietSTaR.from_pretrained("org/model")  # the tests are offline
    wrapped("llama", 3).save_pretrained(tmp_path / "thoughts")
    model_of("llama").save_pretrained(tmp_path / "base")
    options = {"forbidden_ids": [7], "positions_at_once": 3, "rows_at_once": 5, "parallel": "fold"}
    back = QuietSTaR.from_pretrained(tmp_path / "thoughts", tmp_path / "base", dtype=torch.float64, **options)
    assert (back.forbidden_ids, back.positions_at_once, back.rows_at_once) == ((7,), 3, 5)
    assert (back.parallel_check.way, back.start.dtype) == ("fold", torch.float64)


def test_the_published_layout_loads_with_its_trained_start_and_end(tmp_path):
    """The released code overwrites both when it first runs; their stored values must survive here."""
    model = model_of("mistral")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    head = ThoughtMixingHead(32)
    torch.nn.init.normal_(head.last.weight)
    weights |= {f"talk_head.0.{name}": tensor for name, tensor in head.layers.state_dict().items()}
    weights |= {f"{name}_embedding": torch.randn(2, 32) for name in ("start", "end")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    added = {"<|endthought|>": 319, "<|startthought|>": 318}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    quiet = QuietSTaR.from_pretrained(tmp_path)
    assert quiet.thought_length == 5
    assert quiet.forbidden_ids == (318, 319)
    torch.testing.assert_close(quiet.start.detach(), weights["start_embedding"][0] * 100)
    torch.testing.assert_close(quiet.end.detach(), weights["end_embedding"][0] * 100)
    state = torch.randn(4, 32), torch.randn(4, 32)
    assert torch.equal(quiet.head(*state), head(*state))
    assert torch.equal(quiet.model(IDS).logits, model(IDS).logits)
    del weights["talk_head.0.4.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"head.layers.4.weight"):
        QuietSTaR.from_pretrained(tmp_path)


def test_making_a_head_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, other = ThoughtMixingHead(8, seed=1), ThoughtMixingHead(8, seed=1)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(one.layers[0].weight, other.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, ThoughtMixingHead(8, seed=2).layers[0].weight)
    assert ThoughtMixingHead(256).layers[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
