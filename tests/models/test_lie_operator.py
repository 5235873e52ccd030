# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.models.lie_operator import (
    CoefficientNetwork,
    LieOperator,
    MLPOperator,
    act,
    exponentials,
    generator_sum,
    most_generators,
    operators,
    taylor_action,
)

J = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
D = torch.diag(torch.tensor([0.5, -0.25], dtype=torch.float64))


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_matrix(found, wanted, atol=1e-9):
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=atol, rtol=0)


def test_golden_rotation():
    found = operators(row(0.3), J[None])[0]
    assert_matrix(found, [[0.955336489, -0.295520207], [0.295520207, 0.955336489]])


def test_golden_sum_of_two_generators_is_not_the_product_of_their_exponentials():
    together = operators(row(0.3, 0.2), torch.stack([J, D]))[0]
    assert_matrix(together, [[1.058184725, -0.303287200], [0.303287200, 0.906541125]])
    one_by_one = operators(row(0.3), J[None])[0] @ operators(row(0.2), D[None])[0]
    assert_matrix(one_by_one, [[1.055810105, -0.281107516], [0.326600338, 0.908744179]])


def test_golden_nilpotent_generator():
    n = torch.tensor([[0.0, 1, 2], [0, 0, 3], [0, 0, 0]], dtype=torch.float64)
    assert_matrix(operators(row(0.5), n[None])[0], [[1, 0.5, 1.375], [0, 1, 1.5], [0, 0, 1]], atol=1e-15)


def test_golden_embedding_is_a_column_vector():
    assert_matrix(act(operators(row(0.7), J[None]), row(1, 2)), [[-0.523593187, 2.173902062]])


@pytest.mark.parametrize("seed", range(3))
def test_group_laws(seed):
    generators, t = draw(2, 5, 5, seed=seed, scale=0.3), draw(4, 2, seed=seed + 10)
    g = operators(t, generators)
    identity = torch.eye(5, dtype=torch.float64).expand(4, 5, 5)
    torch.testing.assert_close(operators(0 * t, generators), identity, atol=0, rtol=0)
    torch.testing.assert_close(g @ operators(-t, generators), identity, atol=1e-12, rtol=0)
    traces = (t * generators.diagonal(dim1=1, dim2=2).sum(dim=1)).sum(dim=1)
    torch.testing.assert_close(torch.linalg.det(g), traces.exp())
    one = generators[:1]
    torch.testing.assert_close(operators(t[:, :1], one) @ operators(t[:, 1:], one), operators(t.sum(1, True), one))


def test_motions_in_different_planes_commute_and_in_the_same_space_they_do_not():
    planes, none = torch.zeros(3, 4, 4, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for k, (i, j) in enumerate([(0, 1), (2, 3), (1, 2)]):
        planes[k, i, j], planes[k, j, i] = -1, 1

    def difference(a, b):
        first, second = operators(none + 0.7, planes[[a]])[0], operators(none + 0.4, planes[[b]])[0]
        return (first @ second - second @ first).abs().max().item()

    assert difference(0, 1) < 1e-15
    assert difference(0, 2) > 0.1


def test_scale_of_coefficients_and_generators_is_one_freedom():
    generators, t, z = draw(2, 4, 4, seed=1), draw(3, 2, seed=2), draw(3, 4, seed=3)
    other = act(operators(3 * t, generators / 3), z)
    torch.testing.assert_close(act(operators(t, generators), z), other, atol=1e-12, rtol=1e-12)


def test_no_generator_or_a_generator_of_zero_leaves_the_embedding():
    z = draw(3, 4)
    for t, generators in ((z[:, :0], z.new_zeros(0, 4, 4)), (z[:, :2], z.new_zeros(2, 4, 4))):
        assert torch.equal(act(operators(t, generators), z), z)


def test_gradient_is_that_of_finite_differences():
    inputs = [draw(3, 2, seed=4).requires_grad_(), draw(2, 4, 4, seed=5, scale=0.5).requires_grad_()]
    z = draw(3, 4, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, generators, z: act(operators(t, generators), z), [*inputs, z])
    assert torch.autograd.gradcheck(lambda t, generators, z: taylor_action(t, generators, z, substeps=2), [*inputs, z])


def test_rows_do_not_see_each_other():
    operator, t, z = LieOperator(6, 2).double(), draw(5, 2), draw(5, 6, seed=1)
    torch.testing.assert_close(operator(z, t)[2:3], operator(z[2:3], t[2:3]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("block_size", [None, 3])
def test_taylor_action_is_the_exponential_and_so_is_its_gradient(block_size):
    t = draw(5, 2, seed=7)
    found = []
    for taylor in (False, True):
        operator = LieOperator(6, 2, block_size=block_size, taylor=taylor).double()
        with torch.no_grad():
            operator.weight.copy_(draw(*operator.weight.shape, seed=9))
        z = draw(5, 6, seed=8).requires_grad_()
        out = operator(z, t)
        (out * draw(5, 6, seed=2)).sum().backward()
        found.append((out.detach(), z.grad, operator.weight.grad))
    for exact, truncated in zip(*found, strict=True):
        torch.testing.assert_close(truncated, exact, rtol=1e-5, atol=1e-5)
        assert not torch.equal(truncated, exact)  # it is another computation


def test_skew_generators_keep_norms_however_far():
    operator = LieOperator(8, 2).double()
    z = draw(6, 8)
    torch.testing.assert_close(operator(z, draw(6, 2, scale=30)).norm(dim=1), z.norm(dim=1))
    assert torch.equal(operator.generators, -operator.generators.mT)


@pytest.mark.parametrize(("skew", "unit_norm"), [(True, True), (False, True), (True, False), (False, False)])
def test_norm_of_a_generator_is_the_root_of_its_dimensions(skew, unit_norm):
    operator = LieOperator(9, 3, skew=skew, unit_norm=unit_norm)
    norms = torch.linalg.matrix_norm(operator.generators)
    assert bool(((norms - 3).abs() < 1e-5).all()) is unit_norm
    grown = LieOperator(9, 3, skew=skew, unit_norm=unit_norm)
    grown.weight.data = 5 * operator.weight.data
    same = torch.allclose(grown.generators, operator.generators, atol=1e-6)
    assert same is unit_norm


def test_blocks_act_as_the_whole_matrix():
    operator, t, z = LieOperator(6, 2, block_size=2).double(), draw(4, 2), draw(4, 6, seed=1)
    assert operator.generators.shape == (2, 6, 6)
    torch.testing.assert_close(operator(z, t), act(operators(t, operator.generators), z), atol=1e-12, rtol=0)


def test_autocast_does_not_reach_the_exponential():
    operator, network = LieOperator(8, 2), CoefficientNetwork(8, 2, hidden=16)
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t = network(z, z.flip(0))
        moved = operator(z, t)
        plain = MLPOperator(8, 2, hidden=4)(z, t)
    assert t.dtype == moved.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(moved, operator(z.float(), t), atol=0, rtol=0)


def test_antisymmetric_input_changes_sign_with_the_direction_and_ignores_scale():
    network = CoefficientNetwork(5, 2, hidden=8).double()
    a, b = draw(3, 5), draw(3, 5, seed=1)
    forward, back = network._read(a, b), network._read(b, a)
    assert torch.equal(forward, -back)
    torch.testing.assert_close(network._read(2 * a, 7 * b), forward)
    assert forward.shape == (3, 10)
    # the first entry is 5 (a_0 b_1 - a_1 b_0) / (|a| |b|)
    wanted = 5 * (a[0, 0] * b[0, 1] - a[0, 1] * b[0, 0]) / (a[0].norm() * b[0].norm())
    assert forward[0, 0].item() == pytest.approx(wanted.item(), abs=1e-12)
    assert network._read(0 * a, b).abs().max() == 0


def test_pair_input_is_both_embeddings_and_the_bound_holds():
    network = CoefficientNetwork(3, 2, hidden=8, reads="pair", bound=0.2).double()
    a, b = draw(4, 3), draw(4, 3, seed=1)
    assert torch.equal(network._read(a, b), torch.cat([a, b], dim=1))
    assert network(1e6 * a, b).abs().max().item() <= 0.2
    small = CoefficientNetwork(3, 2, hidden=8, reads="pair", bound=1e9).double()
    small.load_state_dict(network.state_dict())
    plain = small.layers(torch.cat([a, b], dim=1))
    torch.testing.assert_close(small(a, b), plain, atol=1e-9, rtol=0)


def test_mlp_operator_starts_as_the_identity_and_reads_its_code():
    operator = MLPOperator(4, 2, hidden=8)
    z, t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))[0], torch.ones(3, 2)
    assert torch.equal(operator(z, t), z)
    torch.nn.init.ones_(operator.layers[-1].weight)
    assert not torch.allclose(operator(z, t), operator(z, -t))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\[2, 3, 4\]; they must be square, \[K, d, d\]"):
        generator_sum(torch.ones(1, 2), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"\[5, 3\] for 2 generators; they must be \[N, 2\]"):
        generator_sum(torch.ones(5, 3), torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match=r"\[5, 4, 4\] act on embeddings \[5, 4\], not on \[5, 6\]"):
        act(torch.ones(5, 4, 4), torch.ones(5, 6))
    with pytest.raises(ValueError, match=r"\[N, 4\] are wanted; got \[2, 3\] and \[2, 3\]"):
        CoefficientNetwork(4, 1, hidden=2)(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"bound = 0; use a number above 0"):
        CoefficientNetwork(4, 1, hidden=2, bound=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_half_precision_and_integers_are_refused(dtype):
    with pytest.raises(TypeError, match="float32 or float64, not torch"):
        exponentials(torch.ones(1, 2, 2).to(dtype))


def test_overflow_names_the_pair_and_its_norm():
    algebra = torch.zeros(3, 2, 2)
    algebra[1] = 200 * torch.eye(2)
    with pytest.raises(ValueError, match=r"overflows for pair 1, whose A has the norm 200 .* skew-symmetric"):
        exponentials(algebra)
    assert exponentials(1e4 * (J - 0)[None]).isfinite().all()


def test_number_of_generators_is_that_of_their_space():
    assert [most_generators(6, 6, True), most_generators(6, 6, False)] == [15, 36]
    assert [most_generators(6, 2, True), most_generators(6, 3, False)] == [3, 18]
    for count in (0, 16):
        with pytest.raises(ValueError, match=f"generators = {count}; use 1 to 15 skew-symmetric"):
            LieOperator(6, count)
    with pytest.raises(ValueError, match="block_size = 4 does not divide dim = 6"):
        LieOperator(6, 1, block_size=4)


def test_small_weights_start_near_the_identity():
    torch.manual_seed(0)
    found = LieOperator(8, 1, unit_norm=False).operators(torch.full((1, 1), 0.5))[0, 0]
    assert (found - torch.eye(8)).abs().max().item() < 0.2
    assert math.isclose(torch.linalg.det(found).item(), 1, abs_tol=1e-5)
