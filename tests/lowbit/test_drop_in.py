# SPDX-License-Identifier: Apache-2.0
"""What a user of ``nn.Linear`` does with a layer beside training it: all low-bit layers do it too."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from recipes_lib.lowbit import Fp8Linear, Int8Linear, SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear

INTEGERS = {kind.__name__: kind for kind in (SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear, Int8Linear)}
FP8 = {f"fp8 by {scaling}": scaling for scaling in ("tensor", "row")}
ALL = [*INTEGERS, *FP8]


def build(name, inside=8, outside=4, **options):
    if name in FP8:
        return Fp8Linear(inside, outside, scaling=FP8[name], **options)
    return INTEGERS[name](inside, outside, **options)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("compiled", [False, True])
def test_one_input_feature_gives_the_weight(name, compiled):
    layer = build(name, 1, 3, bias=False)
    nn.init.ones_(layer.weight)
    torch.compiler.reset()  # a function may be compiled anew eight times only
    call = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    x = torch.ones(4, 1, requires_grad=True)
    y = call(x)
    y.backward(torch.ones(4, 3))
    assert torch.equal(y, torch.ones(4, 3))
    assert torch.equal(x.grad, torch.full((4, 1), 3.0))
    assert torch.equal(layer.weight.grad, torch.full((3, 1), 4.0))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sizes", [(0, 4, 3), (8, 0, 3), (8, 4, 0), (0, 0, 2), (0, 4, 0)])
def test_sizes_of_zero_give_what_nn_linear_gives(name, sizes):
    inside, outside, rows = sizes
    plain = nn.Linear(inside, outside)
    layer = build(name, inside, outside)
    layer.load_state_dict(plain.state_dict())
    for shape in ((rows, inside), (2, rows, inside)):
        results = []
        for each in (layer, plain):
            x = torch.ones(shape, requires_grad=True)
            y = each(x)
            results.append((y, *torch.autograd.grad(y, (x, each.weight, each.bias), torch.ones_like(y))))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ALL)
def test_a_single_vector_has_a_single_output(name):
    layer = build(name)
    assert torch.equal(layer(draw(8)), layer(draw(8)[None])[0])


@pytest.mark.parametrize("name", ALL)
def test_on_the_meta_device_shapes_come_out(name):
    layer, x = build(name, device="meta"), torch.empty(2, 3, 8, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.device.type, list(y.shape)) == ("meta", [2, 3, 4])
    assert list(x.grad.shape) == [2, 3, 8]
    assert list(layer.weight.grad.shape) == [4, 8]


@pytest.mark.parametrize("name", ALL)
def test_in_fake_tensors_shapes_come_out(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y = build(name)(torch.empty(3, 8, requires_grad=True))
        y.sum().backward()
    assert list(y.shape) == [3, 4]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_over_inputs_gives_what_a_loop_gives(name, dim):
    layer, x = build(name), draw(5, 5, 8)
    assert torch.equal(vmap(layer, in_dims=dim)(x), torch.stack([layer(each) for each in x.unbind(dim)]))


@pytest.mark.parametrize("name", ALL)
def test_vmap_over_weights_and_gradients_gives_what_a_loop_gives(name):
    """As the simulated workers of local SGD, each with weights of its own."""
    layer = build(name)
    weights, biases, x = draw(5, 4, 8), draw(5, 4, seed=1), draw(5, 3, 8, seed=2)

    def loss(weight, bias, x):
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,)).square().sum()

    for call in (loss, grad(loss, argnums=(0, 1, 2)), grad(loss)):
        want = [call(*each) for each in zip(weights, biases, x, strict=True)]
        got = vmap(call)(weights, biases, x)
        if isinstance(got, torch.Tensor):
            got, want = (got,), [(each,) for each in want]
        for mine, theirs in zip(got, zip(*want, strict=True), strict=True):
            assert torch.equal(mine, torch.stack(theirs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("name", ALL)
def test_a_trace_takes_other_numbers_of_rows(name):
    layer = build(name)
    traced = torch.jit.trace(layer, (draw(3, 8),))
    torch.testing.assert_close(traced(draw(6, 8, seed=1)), layer(draw(6, 8, seed=1)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_it_compiles_for_any_number_of_rows_into_one_graph(name):
    layer = build(name)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (3, 5):
        results = []
        for call in (compiled, layer):
            x = draw(rows, 8).requires_grad_()
            y = call(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_scaler_skips_the_step_whose_gradients_overflow(name):
    """float16 autocast on a CPU, with a scale whose gradients are not finite; and the step after it is taken."""
    layer = build(name)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, backoff_factor=2.0**-16)
    for taken in (False, True):
        with torch.autocast("cpu", dtype=torch.float16):
            y = layer(draw(6, 8).requires_grad_())
        optimizer.zero_grad()
        scaler.scale(y.float().square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(layer.weight, before) != taken
    assert scaler.get_scale() == 16
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_is_hidden_in_nothing_that_comes_of_it(name, bad):
    layer, x, gradient = build(name), draw(3, 8).requires_grad_(), draw(3, 4, seed=1)
    gradient[1, 2] = bad
    dx, dw, db = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), gradient)
    if name != "fp8 by tensor":  # with one scale for a matrix all of it is lost
        assert dx.isfinite().all(dim=1).tolist() == [True, False, True]
    assert not dx[1].isfinite().any()
    assert not dw[2].isfinite().any()
    assert not db[2].isfinite()
