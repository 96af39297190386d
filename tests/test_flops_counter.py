"""`FlopCounter` as a context manager: attribution, nesting, reports, errors."""

import contextlib
import gc
import json
import sys
import time
import weakref

import pytest
import torch
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode
from transformers import PreTrainedModel

from inferscale.base import Generator, RewardModel
from inferscale.flops import (
    FlopCounter,
    FlopsWarning,
    UnknownArchitectureError,
    forward_flops,
    measured_peak,
    model_spec,
    report_tokens,
)
from inferscale.flops import counter as clock
from tests.flops_models import hand_config, hand_model
from tests.tiny_models import cache_of, cached

IDS = torch.arange(128).reshape(2, 64)
FULL, CAUSAL = 60_817_408, 56_688_640  # one forward of IDS


@pytest.fixture(scope="module")
def model():
    return hand_model("llama")


@pytest.fixture(scope="module")
def reward():
    return hand_model("llama", "SequenceClassification", num_labels=1)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    assert clock.active() == {}
    assert clock._calls.get() == ()
    assert not clock._hooks
    assert not clock._strangers
    assert "__call__" not in vars(PreTrainedModel)
    assert _get_current_dispatch_mode() is None
    assert not torch_module._has_any_global_hook()


def test_two_models_of_one_class_stay_apart(model):
    other = hand_model("llama")
    with FlopCounter(policy=model, reward=other) as counter:
        model(IDS)
        other(IDS[:1])
        other(IDS[:1])
    assert counter.flops_by("model") == {"policy": CAUSAL, "reward": CAUSAL}
    assert counter.flops == 2 * CAUSAL
    assert counter.flops_of("reward", convention="full") == FULL
    assert counter.tally("reward").forwards == 2


def test_best_of_n_is_majority_and_the_reward_model(model, reward):
    with FlopCounter(generator=model, reward=reward) as counter:
        model(IDS)
        without = counter.flops
        reward(IDS)
    assert counter.flops - without == counter.flops_by("model")["reward"] == 51_462_144
    assert counter.flops_of("generator") == without


def test_hooks_are_gone_after_the_block(model):
    with FlopCounter(model) as counter:
        assert model._forward_pre_hooks
        model(IDS)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    model(IDS)
    assert counter.flops == CAUSAL


@pytest.mark.parametrize("mode", ["analytic", "exact", "verify"])
def test_a_counter_can_be_entered_again_and_inside_of_itself(model, mode):
    counter = FlopCounter(model, mode=mode)
    with counter:
        model(IDS)
    with counter, counter, counter.scope("inner"), counter:
        model(IDS)
    assert counter.flops_of(convention="full") == 2 * FULL
    assert counter.flops_by("scope", convention="full") == {"": FULL, "inner": FULL}
    counter.reset()
    assert (counter.flops, counter.tokens, counter.uncounted) == (0, (0, 0, 0), {})
    with counter:
        model(IDS)
    assert counter.flops_of(convention="full") == FULL


@pytest.mark.parametrize("modes", [("analytic", "exact"), ("exact", "analytic"), ("exact", "verify")])
def test_outer_counters_include_inner_ones(model, modes):
    with FlopCounter(model, mode=modes[0]) as outer:
        model(IDS)
        with FlopCounter(model, mode=modes[1]) as inner:
            model(IDS)
        model(IDS)
    assert (outer.flops_of(convention="full"), inner.flops_of(convention="full")) == (3 * FULL, FULL)


def test_blocks_may_end_in_any_order(model):
    first, second = FlopCounter(model), FlopCounter(model)
    first.__enter__()
    second.__enter__()
    model(IDS)
    scope = second.scope(problem=1)
    scope.__enter__()
    first.__exit__(None, None, None)
    model(IDS)
    scope.__exit__(None, None, None)
    model(IDS)
    second.__exit__(None, None, None)
    assert first.flops == CAUSAL
    assert second.flops_by("problem") == {None: 2 * CAUSAL, 1: CAUSAL}


@pytest.mark.parametrize("mode", ["analytic", "exact", "verify"])
def test_an_exception_leaves_nothing_behind(model, mode):
    broken = hand_model("llama")
    broken.model.layers[2].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with contextlib.suppress(RuntimeError), FlopCounter(broken, model, mode=mode) as counter, counter.scope(problem=1):
        broken(IDS)
    with counter:
        model(IDS)
    assert counter.flops_by("model", convention="full")["model_2"] == FULL
    assert counter.flops_by("problem", "model_2", convention="full") == {None: FULL}
    if mode == "analytic":
        assert counter.flops_by("model", convention="full")["model"] == FULL  # charged when it began


def test_scopes_label_and_nest(model):
    with FlopCounter(generator=model) as counter:
        model(IDS)
        for problem in (3, 4):
            with counter.scope(problem=problem):
                model(IDS)
                with counter.scope("rollout", depth=2):
                    model(IDS)
    assert counter.flops_by("problem") == {None: CAUSAL, 3: 2 * CAUSAL, 4: 2 * CAUSAL}
    assert counter.flops_by("depth") == {None: 3 * CAUSAL, 2: 2 * CAUSAL}
    assert counter.flops_by("scope")["problem=3/rollout/depth=2"] == CAUSAL
    assert sum(counter.flops_by("scope").values()) == counter.flops


def test_every_grouping_adds_up_in_every_convention(model, reward):
    with FlopCounter(generator=model, reward=reward, nominal_parameters={"generator": 7e9, "reward": 7e9}) as counter:
        with counter.scope(problem=1):
            model.generate(IDS, max_new_tokens=3, do_sample=False)
        reward(IDS)
    for convention in ("causal", "full", "2N", "2N_nominal", "kaplan", "chinchilla", "abdelhameed2024"):
        total = counter.flops_of(convention=convention)
        assert total > 0
        for key in ("model", "phase", "scope", "problem"):
            assert sum(counter.flops_by(key, convention=convention).values()) == total


def test_phases(model):
    with FlopCounter(model) as counter:
        cache = cache_of(model, model(IDS, use_cache=True))
        cache = cache_of(model, model(IDS[:, :1], **cached(model, cache)))
        model(IDS[:, :5], **cached(model, cache))
    spec = model_spec(model.config)
    assert counter.flops_by("phase") == {
        "prefill": CAUSAL,
        "decode": 952_320,
        "chunk": forward_flops(spec, 5, 65, batch=2).causal,
    }


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_analytic_counts_under_every_grad_mode(model, grad):
    with grad(), FlopCounter(model) as counter:
        model(input_ids=IDS)
        model(IDS, None, None, None)
    assert counter.flops == 2 * CAUSAL


def test_logits_to_keep_may_be_a_tensor(model):
    with FlopCounter(model, mode="verify") as counter:
        model(IDS, logits_to_keep=torch.tensor([5, 9, 11]))
        model(IDS, logits_to_keep=1000)
    assert counter.tally().head == 2 * (3 + 64) * 2 * 64 * 320


class Wrapper:
    """Anything that holds a module as `.model`."""

    def __init__(self, model):
        self.model = model


class SomeGenerator(Generator):
    def __init__(self, model):
        self.model = model

    def generate(self, requests):
        return []


class SomeReward(RewardModel):
    def __init__(self, model):
        self.model = model

    def score(self, nodes):
        return []


def test_generators_and_reward_models_are_watched_by_their_model(model, reward):
    with FlopCounter(SomeGenerator(model), SomeReward(reward)) as counter:
        model(IDS)
        reward(IDS)
    assert counter.flops_by("model") == {"generator": CAUSAL, "reward": 51_462_144}
    with FlopCounter(Wrapper(model)) as counter:
        model(IDS)
    assert counter.flops_by("model") == {"model": CAUSAL}


def test_what_cannot_be_watched_is_refused(model):
    with pytest.raises(TypeError, match="got str"):
        FlopCounter("gpt2")
    with pytest.raises(ValueError, match="itself or a part of it"):
        FlopCounter(a=model, b=model)
    with pytest.raises(ValueError, match="itself or a part of it"):
        FlopCounter(a=model, b=model.model)
    with pytest.raises(ValueError, match="mode='fast'"):
        FlopCounter(model, mode="fast")
    with pytest.raises(ValueError, match="nominal_parameters names"):
        FlopCounter(generator=model, nominal_parameters={"policy": 7e9})
    with pytest.raises(UnknownArchitectureError, match='FlopCounter\\(mode="exact"\\)'):
        FlopCounter(torch.nn.Linear(3, 3))


def test_names_given_and_names_found_never_meet(model):
    other = hand_model("llama")
    with FlopCounter(other, model_2=model) as counter:
        model(IDS)
        other(IDS[:1])
    assert counter.flops_by("model") == {"model_2": CAUSAL, "model": CAUSAL // 2}
    third = hand_model("llama")
    assert set(FlopCounter(other, third, model_2=model).ledger.models) == {"model", "model_2", "model_3"}


def test_the_head_may_be_called_by_keyword(model):
    hidden = model.model(IDS).last_hidden_state
    with FlopCounter(model) as counter:
        model.lm_head(input=hidden)
    assert counter.flops == 2 * 128 * 64 * 320


class Recurrent(torch.nn.Module):
    """A module of one's own, whose cache is a number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(8))

    def forward(self, input_ids, past_key_values=None):
        return torch.ones(input_ids.shape[1], 8) @ self.weight


def test_a_cache_of_ones_own_is_counted_op_by_op_and_told_of_in_analytic_mode(model):
    own = Recurrent()
    with FlopCounter(own, mode="exact") as exact:
        own(IDS, past_key_values=3)
    assert exact.flops == 2 * 64 * 8 * 8
    with (
        pytest.warns(FlopsWarning, match="must tell its `packed_rows`"),
        FlopCounter(model=own, specs={"model": model_spec(model.config)}) as counter,
    ):
        own(IDS, past_key_values=3)
    assert counter.uncounted


def test_an_unwatched_model_is_reported_once(model, reward):
    with pytest.warns(FlopsWarning, match="LlamaForSequenceClassification") as caught:
        counter = _run(FlopCounter(generator=model), model, reward, reward)
    assert counter.uncounted == {"LlamaForSequenceClassification (not watched)": 2}
    assert len(caught) == 1
    assert counter.flops == CAUSAL


def test_a_model_that_is_built_while_a_counter_is_open_is_noticed(model):
    with FlopCounter(generator=model) as counter:
        later = hand_model("llama")
        for part in (later, later.model):
            with pytest.warns(FlopsWarning, match="not watched"):
                part(IDS)
    assert counter.uncounted == {"LlamaForCausalLM (not watched)": 1, "LlamaModel (not watched)": 1}
    assert not later._forward_pre_hooks


def test_an_unwatched_model_is_noticed_by_the_counter_that_does_not_watch_it(model, reward):
    with FlopCounter(generator=model, reward=reward) as outer, pytest.warns(FlopsWarning, match="not watched"):
        inner = _run(FlopCounter(generator=model), model, reward)
    assert inner.uncounted == {"LlamaForSequenceClassification (not watched)": 1}
    assert outer.uncounted == {}


def test_an_unwatched_model_is_reported_in_exact_mode_too(model, reward):
    with pytest.warns(FlopsWarning, match="pass every model"):
        counter = _run(FlopCounter(generator=model, mode="exact"), model, reward)
    assert counter.flops_by("model", convention="full") == {"generator": FULL, "other": 55_590_912}
    everything = _run(FlopCounter(mode="exact"), model, reward)  # with no model given, all of it is wanted
    assert everything.flops_of(convention="full") == FULL + 55_590_912


def _run(counter, *models):
    with counter:
        for part in models:
            part(IDS)
    return counter


def test_tokens_are_inferred_until_the_generator_reports_them(model):
    with FlopCounter(generator=model, nominal_parameters={"generator": 7e9}) as counter:
        model.generate(IDS, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        assert counter.tokens == (2 * 64 + 2 * 4, 2 * 5, 0)
        report_tokens(Wrapper(model), sampled=7, useful=100)
    assert counter.tokens == (136, 7, 100)
    assert counter.flops_of(convention="2N_nominal") == 2 * 7_000_000_000 * 7
    report_tokens(model, sampled=1)  # nobody listens


def test_served_models_are_added_by_their_configuration(model):
    config = hand_config("llama")
    counter = FlopCounter(generator=model)
    counter.add(config, prompt=64, new=24, n=2, shared_prefix=False)
    assert counter.flops_of(convention="full") == 78_077_952
    with counter, counter.scope(problem=1):
        counter.add(config, prompt=64, new=24, n=2, model="judge")
    assert counter.flops_by("problem", "judge") == {1: counter.flops_of("judge")}
    assert counter.tokens.sampled == 2 * 2 * 24
    with pytest.raises(ValueError, match="already stands for a different model"):
        counter.add(hand_config("qwen3"), prompt=1, new=1, model="generator")
    with pytest.raises(ValueError, match="prompt=0"):
        counter.add(config, prompt=0, new=1, model="typo")
    assert counter.ledger.models == ["generator", "server", "judge"]


def test_counts_survive_json_and_add_up(model, reward):
    with FlopCounter(generator=model) as first, first.scope(problem=1):
        model(IDS)
    with FlopCounter(generator=model, reward=reward) as second, second.scope(problem=2):
        model(IDS)
        reward(IDS)
    state = json.loads(json.dumps(first.state_dict()))
    merged = FlopCounter.merge(state, second)
    assert merged.flops_by("problem") == {1: CAUSAL, 2: CAUSAL + 51_462_144}
    assert merged.flops_of(convention="chinchilla") == first.flops_of(convention="chinchilla") + second.flops_of(
        convention="chinchilla"
    )
    assert merged.seconds == pytest.approx(first.seconds + second.seconds)
    assert FlopCounter.merge(merged).state_dict() == merged.state_dict()
    with pytest.raises(ValueError, match="already stands for a different model"):
        FlopCounter.merge(first, FlopCounter(generator=reward))
    with pytest.raises(ValueError, match="version 2"):
        FlopCounter.merge({**state, "version": 2})
    with pytest.raises(ValueError, match="version None"):
        FlopCounter.merge({})


def test_reports_read_as_text(model, reward, capsys):
    with FlopCounter(generator=model, reward=reward, display=True) as counter, counter.scope(problem=1):
        model(IDS)
        reward(IDS)
    expected = """\
scope      model      phase    forwards  tokens  sampled  causal    full  of all
problem=1  generator  prefill         1     128        0  56.69M  60.82M   52.2%
problem=1  reward     prefill         1     128        0  51.46M  55.59M   47.8%
total                                 2     256        0  108.2M  116.4M  100.0%"""
    assert counter.table() == counter.get_table() == expected
    assert capsys.readouterr().out == expected + "\n"
    assert counter.table(depth=0).splitlines()[1].startswith("all  ")
    assert counter.get_total_flops() == FULL + 55_590_912
    assert counter.get_flop_counts()["Global"]["linear"] == counter.tally().linear
    assert sum(counter.get_flop_counts()["reward"].values()) == 55_590_912


def test_utilisation_needs_a_named_peak(model):
    with FlopCounter(model) as counter:
        model(IDS)
    assert counter.mfu(peak=1e12) == pytest.approx(CAUSAL / (counter.seconds * 1e12))
    assert counter.mfu(peak="A100-bf16") == pytest.approx(CAUSAL / (counter.seconds * 312e12))
    with pytest.raises(ValueError, match=r"peak=None.*A100-bf16.*measured_peak"):
        counter.mfu()
    with pytest.raises(ValueError, match=r"peak='TPU'.*H100-SXM-bf16"):
        counter.mfu(peak="TPU")
    with pytest.raises(ValueError, match=r"bandwidth=None.*A100-80GB"):
        counter.mbu()
    weights = model_spec(model.config).active_weights
    assert counter.mbu(1e9, bytes_per_number=4) == pytest.approx(4 * weights / (counter.seconds * 1e9))


def test_a_peak_can_be_measured():
    assert 0 < measured_peak(size=64, seconds=0.01) < 1e15


def test_reads_of_weights_and_cache(model):
    with FlopCounter(model) as counter:
        cache = cache_of(model, model(IDS, use_cache=True))
        model(IDS[:, :1], **cached(model, cache))
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 64 // 65
    assert counter.tally().numbers_read == 2 * weights + held


def test_seconds_run_inside_of_the_blocks_only(model):
    counter = FlopCounter(model)
    with counter, counter:
        time.sleep(0.02)
        assert counter.seconds >= 0.02
    inside = counter.seconds
    time.sleep(0.02)
    assert 0.02 <= inside == counter.seconds
    counter.reset()
    assert counter.seconds == 0
    assert counter.peak_memory is None or torch.cuda.is_available()


class Event:
    """A CUDA event at a moment told by hand."""

    now = 0.0

    def __init__(self):
        self.moment = Event.now

    def synchronize(self):
        """Nothing to wait for."""

    def elapsed_time(self, end):
        return (end.moment - self.moment) * 1000


def test_a_reset_inside_of_a_block_forgets_what_the_gpu_did_before(monkeypatch):
    monkeypatch.setattr(clock, "_event", Event)
    timer = clock.Clock()
    timer.start()
    Event.now = 50.0
    timer.reset()
    Event.now = 53.0
    timer.stop()
    assert timer.seconds == pytest.approx(3.0, abs=0.5)


def test_scopes_and_bound_functions_need_an_open_counter(model):
    counter = FlopCounter(model)
    with pytest.raises(RuntimeError, match=r"scope\(\) outside"), counter.scope(problem=1):
        pass
    with pytest.raises(RuntimeError, match=r"bind\(\) where the counter is not counting"):
        counter.bind(print)
    with counter:
        bound = counter.bind(print)
        with pytest.raises(ValueError, match="name or a label"), counter.scope():
            pass
    with pytest.raises(RuntimeError, match="has closed"):
        bound()
    with pytest.raises(ValueError, match=r"\['prm'\] are not counted here"):
        counter.flops_of("prm")


def test_an_interrupted_forward_is_forgotten(model):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    with contextlib.suppress(KeyboardInterrupt), FlopCounter(model):
        model(IDS)
    hook.remove()
    with FlopCounter(model) as counter:
        model.model(IDS)
    assert counter.flops == CAUSAL - 2 * 128 * 64 * 320


def test_counters_do_not_keep_models_alive():
    model = hand_model("llama")
    with FlopCounter(model):
        model(IDS)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_the_hooks_of_a_forward_call_few_functions(model):
    """Their time is a ratio in `benchmarks.flops`; what a machine's load cannot change is counted here."""
    with FlopCounter(model):
        before, after = [*model._forward_pre_hooks.values()], [*model._forward_hooks.values()]
        calls = []
        for _ in range(2):  # what is looked up once is remembered
            calls.clear()
            sys.setprofile(lambda frame, event, value: calls.append(event) if event in ("call", "c_call") else None)
            try:
                before[0](model, (), {"input_ids": IDS})
                after[0](model, (), None)
            finally:
                sys.setprofile(None)
    assert len(before) == len(after) == 1
    assert 10 < len(calls) <= 90
