"""Each kernel against its plain form: values, gradients, and gradients of gradients where it has them."""

import pytest
import torch
from torch.nn import functional

from isoform.model import kernels


def compared(fast, plain, *shapes, seed=0):
    torch.manual_seed(seed)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    results = []
    for f in (fast, plain):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = f(*leaves)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        results.append((out, *torch.autograd.grad((out * weight).sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_relu2():
    compared(kernels.relu2, lambda x: functional.relu(x).square(), (7, 33))


def test_gelu_tanh():
    compared(kernels.gelu_tanh, lambda x: functional.gelu(x, approximate="tanh"), (7, 33))
    far = torch.tensor([-40.0, 40.0], requires_grad=True)
    kernels.gelu_tanh(far).sum().backward()
    assert far.grad.tolist() == [0.0, 1.0]


def test_rms_norm():
    def plain(x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    compared(lambda x: kernels.rms_norm(x, 1e-6), plain, (3, 5, 16))
    compared(lambda x, g: kernels.rms_norm(x, 1e-6, g), lambda x, g: plain(x) * g, (3, 5, 16), (16,))


@pytest.mark.parametrize("block", [1, 5, 64])
def test_an_online_softmax_is_a_softmax_however_large_the_scores(block):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 21, 8, dtype=torch.float64).unbind()
    for scale in (1.0, 1e3, -1e5):
        k[:, 7] = scale * q[:, 7]
        plain = (q @ k.mT / 8**0.5).softmax(-1) @ v
        everything = torch.ones(21, 21, dtype=torch.bool)
        torch.testing.assert_close(kernels.online_attention(q, k, v, everything, block=block), plain)
    assert (kernels.online_attention(q, k, v, ~everything, block=block) == 0).all()


@pytest.mark.parametrize("length", [1, 2, 17, kernels.SHORT])
def test_short_causal_attention(length):
    shape = (2, 3, length, 8)
    compared(
        kernels.short_causal_attention,
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        *[shape] * 3,
    )


def test_the_plain_form_is_taken_where_it_is_the_fast_one():
    x = torch.randn(3, 4)
    assert not kernels.wants_plain(x)
    assert kernels.wants_plain(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.wants_plain(x)


def test_reduced_products_are_those_of_rounded_factors():
    torch.manual_seed(0)
    x, g = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 5, 24)
    linear = kernels.Linear(16, 24, bias=True)
    linear.product_dtype = torch.bfloat16
    out = linear(x)
    assert out.dtype == torch.float32
    weight = linear.weight.bfloat16().double()
    expected = x.bfloat16().double() @ weight.T
    torch.testing.assert_close(out.double(), expected + linear.bias.double(), rtol=1e-2, atol=1e-2)
    out.backward(g)
    rounded = g.bfloat16().double()
    torch.testing.assert_close(x.grad.double(), rounded @ weight, rtol=1e-2, atol=1e-2)
    outer = torch.einsum("bto,bti->oi", rounded, x.detach().bfloat16().double())
    torch.testing.assert_close(linear.weight.grad.double(), outer, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(linear.bias.grad, g.sum((0, 1)))


def test_dropout_keeps_its_rate_and_the_mean():
    torch.manual_seed(0)
    x = torch.ones(300, 1001, requires_grad=True)
    out = kernels.dropout(x, 0.3)
    out.sum().backward()
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=3e-3)
    assert out.mean().item() == pytest.approx(1.0, abs=5e-3)
    torch.testing.assert_close(x.grad, out.detach())
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    torch.manual_seed(0)
    assert torch.equal(kernels.dropout(x, 0.3), out)
    rows = (out == 0).float()
    assert abs(float(torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1])) < 0.01


@torch.inference_mode(False)
def test_a_rounded_copy_is_that_of_the_weight_and_format_of_now():
    layer, x = kernels.Linear(8, 4, bias=False), torch.randn(3, 8)

    def check() -> None:
        with torch.no_grad():
            dtype = layer.product_dtype
            assert torch.equal(layer(x), functional.linear(x.to(dtype), layer.weight.to(dtype)).float())

    layer.product_dtype = torch.bfloat16
    check()
    layer.product_dtype = torch.float16
    check()
    layer.weight = torch.nn.Parameter(torch.randn(4, 8))
    check()
    layer.load_state_dict({"weight": torch.randn(4, 8)}, assign=True)
    check()
    layer.weight.data = torch.randn(4, 8)
    check()
    with torch.no_grad():
        layer.weight.mul_(2)
    check()
    for fused in (False, True):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1.0, fused=fused)
        layer(x).sum().backward()
        optimizer.step()
        check()
