"""Counters under threads, asyncio and torch.compile."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from inferscale.flops import FlopCounter, FlopsWarning, model_spec
from inferscale.flops.ledger import ForwardShape
from tests.flops_models import hand_model
from tests.test_flops_counter import CAUSAL, FULL, IDS, nothing_is_left_behind  # noqa: F401

MODES = ["analytic", "exact", "verify"]


@pytest.fixture(scope="module")
def model():
    return hand_model("llama")


@torch.no_grad()
def forward(model, times=1):
    for _ in range(times):
        model(IDS)


@pytest.mark.parametrize("mode", MODES)
def test_threads_with_a_counter_each(model, mode):
    counters = [FlopCounter(model, mode=mode) for _ in range(3)]
    barrier = threading.Barrier(3)

    def work(index):
        barrier.wait()
        with counters[index]:
            forward(model, 4 + index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [counter.flops_of(convention="full") for counter in counters] == [4 * FULL, 5 * FULL, 6 * FULL]


@pytest.mark.parametrize("mode", MODES)
def test_asyncio_tasks_with_a_counter_each(model, mode):
    async def work(times):
        with FlopCounter(model, mode=mode) as counter:
            for _ in range(times):
                forward(model)
                await asyncio.sleep(0)
        return counter.flops_of(convention="full")

    async def main():
        return await asyncio.gather(*(work(times) for times in (3, 5, 2)))

    assert asyncio.run(main()) == [3 * FULL, 5 * FULL, 2 * FULL]


@pytest.mark.parametrize("mode", MODES)
def test_asyncio_tasks_in_scopes_of_one_counter(model, mode):
    async def work(counter, name, times):
        with counter.scope(task=name):
            for _ in range(times):
                forward(model)
                await asyncio.sleep(0)

    async def main():
        with FlopCounter(model, mode=mode) as counter:
            await asyncio.gather(work(counter, "a", 3), work(counter, "b", 5))
        return counter.flops_by("task", convention="full")

    assert asyncio.run(main()) == {"a": 3 * FULL, "b": 5 * FULL}


@pytest.mark.parametrize("mode", MODES)
def test_to_thread_follows_by_itself(model, mode):
    async def main():
        with FlopCounter(model, mode=mode) as counter, counter.scope(task=1):
            await asyncio.to_thread(forward, model)
        return counter.flops_by("task", convention="full")

    assert asyncio.run(main()) == {1: FULL}


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_with_bind(model, mode):
    with FlopCounter(model, mode=mode) as counter, counter.scope(stage="pool"), ThreadPoolExecutor(3) as pool:
        list(pool.map(counter.bind(forward), [model] * 4))
    assert counter.flops_by("stage", convention="full") == {"pool": 4 * FULL}
    assert not counter.uncounted


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_with_scopes(model, mode):
    def work(index):
        with counter.scope(item=index):
            forward(model)

    with FlopCounter(model, mode=mode) as counter, ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(3)))
    assert counter.flops_by("item", convention="full") == dict.fromkeys(range(3), FULL)


@pytest.mark.parametrize("mode", ["exact", "verify"])
def test_leaving_in_another_thread_is_refused_and_leaves_no_hooks(model, mode):
    counter = FlopCounter(model, mode=mode)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(counter.__enter__).result()
        with pytest.raises(RuntimeError, match="in the thread in which it was entered"):
            counter.__exit__(None, None, None)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_an_unbound_thread_is_reported(model):
    with pytest.warns(FlopsWarning, match=r"LlamaForCausalLM in a thread.*bind\(function\)"):
        counter = _in_a_pool(model)
    assert counter.flops == CAUSAL
    assert counter.uncounted == {"LlamaForCausalLM in a thread or task where its counter is not active": 2}


def _in_a_pool(model):
    with FlopCounter(model) as counter, ThreadPoolExecutor(1) as pool:
        forward(model)
        list(pool.map(forward, [model] * 2))
    return counter


def test_many_threads_lose_nothing(model):
    small = hand_model("llama", num_hidden_layers=1)
    ids = torch.ones(1, 1, dtype=torch.long)

    @torch.no_grad()
    def work(_):
        for _ in range(40):
            small(ids)

    with FlopCounter(small) as counter, ThreadPoolExecutor(8) as pool:
        list(pool.map(counter.bind(work), range(8)))
    one = ForwardShape(1).tally(model_spec(small.config))
    assert counter.tally().forwards == 320
    assert counter.flops_of(convention="full") == 320 * (one.linear + one.head + one.attention_full)


class Graphs:
    """A torch.compile backend that counts how often graphs are made and run."""

    def __init__(self):
        self.made = self.run = 0

    def __call__(self, graph, inputs):
        self.made += 1

        def run(*args):
            self.run += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("mode", "watch_wrapper"),
    [
        ("analytic", True),
        ("exact", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("analytic", False), ("exact", True), ("verify", True)]
        ),
    ],
)
def test_a_compiled_model_stays_compiled(graphs, mode, watch_wrapper):
    model = hand_model("llama", num_hidden_layers=1)
    compiled = torch.compile(model, backend=graphs)
    seen = []

    @torch.no_grad()
    def step():
        compiled(IDS)
        seen.append((graphs.made, graphs.run))

    step()
    step()
    made = graphs.made
    with FlopCounter(generator=compiled if watch_wrapper else model, mode=mode) as counter:
        step()
        step()
    step()
    runs = [run for _, run in seen]
    assert runs == [made * i for i in range(1, 6)]  # every step ran the graphs
    assert {count for count, _ in seen} == {made}  # and none was made again
    spec = model_spec(model.config)
    full = ForwardShape(64, batch=2).tally(spec)
    assert counter.flops_of(convention="full") == 2 * (full.linear + full.head + full.attention_full)


def test_compiling_inside_of_a_counter_counts_once(graphs):
    model = hand_model("llama", num_hidden_layers=1)
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad(), FlopCounter(generator=model) as counter:
        for _ in range(3):
            compiled(IDS)
    assert counter.tally().forwards == 3
    assert graphs.run == 3 * graphs.made


def test_a_model_compiled_in_place_is_counted(graphs):
    model = hand_model("llama", num_hidden_layers=1)
    model.compile(backend=graphs)
    with torch.no_grad(), FlopCounter(generator=model) as counter:
        for _ in range(3):
            model(IDS)
    assert counter.tally().forwards == 3
    assert graphs.run == 3 * graphs.made


def test_watching_out_for_other_models_leaves_compiled_code_alone(graphs):
    model, other = hand_model("llama", num_hidden_layers=1), hand_model("llama", num_hidden_layers=1)
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        compiled(IDS)
        made = graphs.made
        with FlopCounter(generator=other):
            assert model._forward_pre_hooks
            compiled(IDS)  # what is not watched and compiled is the one thing that runs unnoticed in analytic mode
        compiled(IDS)
    assert graphs.made == made
    assert graphs.run == 3 * made


@pytest.mark.filterwarnings("ignore:.*cuda.*:UserWarning")
def test_a_data_parallel_wrapper_sees_the_whole_batch(model):
    wrapper = torch.nn.DataParallel(model)
    with FlopCounter(generator=wrapper) as counter:
        forward(wrapper)
    assert counter.flops == CAUSAL
