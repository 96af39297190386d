"""FLOPs of single operators against numbers worked out by hand, whatever way torch runs them."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from inferscale.flops import FlopCounter, FlopsWarning, register_flop_formula
from inferscale.flops.ops import ExactMode

GRAD_MODES = [contextlib.nullcontext, torch.no_grad, torch.inference_mode]


def ones(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype)


def counted(*work):
    """An exact counter after it has seen each piece of `work` once."""
    with FlopCounter(mode="exact") as counter:
        for piece in work:
            piece()
    return counter


def conv(inputs, outputs, groups=1):
    return nn.Conv1d(inputs, outputs, 3, groups=groups)


CASES = {
    "linear": (lambda: nn.Linear(8, 16)(ones(4, 8)), 1024),
    "linear without bias": (lambda: nn.Linear(8, 16, bias=False)(ones(4, 8)), 1024),
    "linear 3-D": (lambda: nn.Linear(8, 16)(ones(2, 3, 8)), 1536),
    "linear 1-D": (lambda: nn.Linear(8, 16)(ones(8)), 256),
    "linear bf16": (lambda: nn.Linear(8, 16).bfloat16()(ones(4, 8, dtype=torch.bfloat16)), 1024),
    "mv": (lambda: ones(16, 8) @ ones(8), 256),
    "addmv": (lambda: torch.addmv(ones(16), ones(16, 8), ones(8)), 256),
    "dot": (lambda: ones(8) @ ones(8), 16),
    "bmm": (lambda: torch.bmm(ones(2, 3, 4), ones(2, 4, 5)), 240),
    "einsum": (lambda: torch.einsum("bij,bjk->bik", ones(2, 3, 4), ones(2, 4, 5)), 240),
    "matmul, broadcast": (lambda: ones(2, 3, 4) @ ones(4, 5), 240),
    "baddbmm": (lambda: torch.baddbmm(ones(2, 3, 5), ones(2, 3, 4), ones(2, 4, 5)), 240),
    "addbmm": (lambda: torch.addbmm(ones(3, 5), ones(2, 3, 4), ones(2, 4, 5)), 240),
    "addmm in place": (lambda: ones(3, 5).addmm_(ones(3, 4), ones(4, 5)), 120),
    "conv1d": (lambda: conv(4, 6)(ones(1, 4, 10)), 1152),
    "depthwise conv1d": (lambda: conv(4, 4, groups=4)(ones(1, 4, 10)), 192),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3)(ones(1, 4, 8)), 2 * 8 * 4 * 6 * 3),
    "int8": (lambda: torch._int_mm(ones(32, 16, dtype=torch.int8), ones(16, 8, dtype=torch.int8)), 8192),
    "elementwise": (lambda: torch.softmax(ones(8, 8) * 2 + ones(8, 8), -1).norm(), 0),
}


@pytest.mark.parametrize("grad", GRAD_MODES, ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("name", CASES)
def test_operators(name, grad):
    work, flops = CASES[name]
    with grad(), FlopCounter(mode="exact") as counter:
        work()
    assert (counter.flops, counter.flops_of(convention="full")) == (flops, flops)
    assert not counter.uncounted


@pytest.mark.parametrize("grad", GRAD_MODES, ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("backend", ["default", "math"])
def test_attention(backend, kv_heads, grad):
    query, key = ones(1, 4, 16, 8), ones(1, kv_heads, 16, 8)
    gqa = {"enable_gqa": kv_heads != 4}

    def force():
        math = torch.nn.attention.SDPBackend.MATH
        return torch.nn.attention.sdpa_kernel(math) if backend == "math" else contextlib.nullcontext()

    with grad(), force(), FlopCounter(mode="exact") as full:
        F.scaled_dot_product_attention(query, key, key, **gqa)
    with grad(), force(), FlopCounter(mode="exact") as causal:
        F.scaled_dot_product_attention(query, key, key, is_causal=True, **gqa)
    with grad(), force(), FlopCounter(mode="exact") as decode:
        F.scaled_dot_product_attention(query[:, :, :1], key, key, **gqa)
    assert full.flops_of(convention="full") == causal.flops_of(convention="full") == 32_768
    assert decode.flops_of(convention="full") == 2_048
    assert full.flops == 32_768
    if backend == "default" or grad is torch.inference_mode:  # else it comes as products, without is_causal
        assert causal.flops == 17_408


def test_eager_attention_is_the_same():
    query, key = ones(1, 4, 16, 8), ones(1, 4, 16, 8)
    with FlopCounter(mode="exact") as counter:
        torch.softmax(query @ key.transpose(-1, -2), -1) @ key
    assert counter.flops_of(convention="full") == 32_768


def test_grouped_products():
    left, right = ones(8, 16, dtype=torch.bfloat16), ones(2, 16, 32, dtype=torch.bfloat16)
    ends = torch.tensor([3, 8], dtype=torch.int32)
    with FlopCounter(mode="exact") as counter:
        torch._grouped_mm(left, right, offs=ends)
    assert counter.flops == 8_192


def test_backward_costs_twice_the_forward():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    with FlopCounter(mode="exact") as counter:
        model(ones(3, 8, dtype=torch.float32).requires_grad_()).sum().backward()
    assert counter.flops == 3 * (2 * 3 * 8 * 16 + 2 * 3 * 16 * 4)


def test_backward_of_attention_agrees_with_torch():
    query = ones(1, 4, 16, 8).requires_grad_()
    with FlopCounter(mode="exact") as counter:
        F.scaled_dot_product_attention(query, query, query).sum().backward()
    assert counter.flops_of(convention="full") == 32_768 + 5 * 16_384  # five products after the two of the forward


@pytest.mark.filterwarnings("ignore")  # torch calls the whole module deprecated
def test_dynamically_quantised_layers_are_counted():
    model = nn.Sequential(nn.Linear(8, 16))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad(), FlopCounter(mode="exact") as counter:
        quantised(ones(4, 8))
    assert counter.flops == 1024


def test_the_meta_device_counts_without_memory():
    with FlopCounter(mode="exact") as counter:
        nn.Linear(4096, 8192, device="meta")(torch.empty(4, 4096, device="meta"))
    assert counter.flops == 268_435_456


def test_products_without_a_formula_are_named():
    with pytest.warns(FlopsWarning, match=r"_cdist_forward.*register_flop_formula"):
        counter = counted(*2 * [lambda: torch.cdist(ones(10, 3), ones(10, 3))])
    assert counter.uncounted == {"aten._cdist_forward.default": 2}


def test_sparse_products_are_named_and_not_guessed():
    sparse = torch.eye(4).to_sparse()
    with pytest.warns(FlopsWarning, match="mm"):
        counter = counted(lambda: torch.sparse.mm(sparse, ones(4, 4)))
    assert counter.flops == 0
    assert counter.uncounted


@pytest.fixture(scope="module")
def custom_op():
    @torch.library.custom_op("inferscale_tests::double_product", mutates_args=())
    def double_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return 2 * (left @ right)

    return torch.ops.inferscale_tests.double_product


def test_custom_operators_are_named_until_they_have_a_formula(custom_op):
    def work():
        custom_op(ones(2, 3), ones(3, 4))

    with pytest.warns(FlopsWarning, match="double_product"):
        counter = counted(work)
    assert counter.uncounted == {"inferscale_tests.double_product.default": 1}
    assert counter.flops == 0

    @register_flop_formula(custom_op)
    def formula(left, right, out_shape=None, **kwargs):
        return 2 * left[0] * left[1] * right[1]

    counter = counted(work)
    assert (counter.flops, counter.uncounted) == (48, {})

    @register_flop_formula([custom_op], get_raw=True)
    def raw(left, right, out_val=None):
        return out_val.numel()

    assert counted(work).flops == 8


def test_flop_counter_mode_counts_the_same_inside_and_outside():
    def work():
        nn.Linear(8, 16)(ones(4, 8)).relu() @ ones(16, 3)

    with FlopCounterMode(display=False) as alone:
        work()
    with FlopCounterMode(display=False) as outer, FlopCounter(mode="exact") as counter:
        work()
    with FlopCounter(mode="exact") as outside, FlopCounterMode(display=False) as inner:
        work()
    expected = alone.get_total_flops()
    assert outer.get_total_flops() == inner.get_total_flops() == expected
    assert counter.get_total_flops() == outside.get_total_flops() == expected


def test_flex_attention_is_counted():
    from torch.nn.attention.flex_attention import flex_attention

    query = torch.randn(1, 2, 16, 16)
    counted = []
    with (
        ExactMode(lambda operator, flops: counted.append(flops)),
        pytest.warns(UserWarning, match="flex_attention called without torch.compile"),
    ):
        out = flex_attention(query, query, query)
    assert torch.isfinite(out).all()
    assert sum(flops.full for flops in counted) == 2 * 2 * 2 * 16 * 16 * 16
