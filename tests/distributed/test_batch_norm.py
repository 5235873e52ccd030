# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.batch_norm import CrossRankBatchNorm, convert, separate, without_variance
from recipes_lib.distributed.local import run_ranks

SHARES = {"flat": (4, 4), "uneven": (3, 5), "image": (4, 4), "far": (4, 4), "average": (4, 4)}


def case(name: str) -> tuple[Tensor, Tensor, dict]:
    """Input, upstream gradient and batch norm arguments; float32 where precision is the point."""
    g = torch.Generator().manual_seed(3)
    shape = (8, 3, 2, 2) if name == "image" else (8, 3)
    dtype = torch.float32 if name == "far" else torch.float64
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    if name == "far":
        x = 1e4 + x  # mean of squares minus square of mean would leave nothing of the variance in float32
    arguments = {"momentum": None} if name == "average" else {"momentum": 0.3}
    return x.to(dtype), torch.randn(shape, generator=g, dtype=torch.float64).to(dtype), arguments


def two_steps(norm: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    norm = norm.to(x.dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    x = x.clone().requires_grad_()
    norm(2 * x.detach() + 1)  # another batch, so that running statistics are mixed
    y = norm(x)
    (y * upstream).sum().backward()
    norm.eval()
    out = {"y": y.detach(), "x.grad": x.grad, "eval": norm(x).detach(), "weight.grad": norm.weight.grad}
    return out | {"bias.grad": norm.bias.grad} | norm.state_dict()


def on_each_rank() -> dict:
    results = {}
    for name, sizes in SHARES.items():
        x, upstream, arguments = case(name)
        share = slice(sum(sizes[: collectives.rank()]), sum(sizes[: collectives.rank() + 1]))
        out = two_steps(CrossRankBatchNorm(3, **arguments), x[share], upstream[share])
        for key in ("weight.grad", "bias.grad"):
            dist.all_reduce(out[key])
        results[name] = out
    with pytest.raises(ValueError, match="more than one value per channel"):
        CrossRankBatchNorm(3)(torch.ones(1 - collectives.rank(), 3))
    bf16 = CrossRankBatchNorm(3)(torch.randn(4, 3).bfloat16())
    return results | {"bf16": str(bf16.dtype)}


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(on_each_rank, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("name", SHARES)
def test_two_ranks_equal_torch_on_the_concatenated_batch(ranks, name):
    x, upstream, arguments = case(name)
    torch_norm = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    whole = two_steps(torch_norm(3, **arguments), x, upstream)
    # float64 up to the order of sums; "far" is float32 at 1e4, where the inputs themselves are rounded to 1e-3
    rtol, atol = (2e-3, 2e-3) if name == "far" else (1e-11, 1e-12)
    for key, expected in whole.items():
        if key in ("y", "x.grad", "eval"):
            found = torch.cat([r[name][key] for r in ranks])
            torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda m, key=key: f"{key}: {m}")
        else:
            for r in ranks:
                torch.testing.assert_close(r[name][key], expected, rtol=rtol, atol=atol)


@pytest.mark.distributed
def test_bf16_stays_bf16(ranks):
    assert ranks[0]["bf16"] == "torch.bfloat16"


@pytest.mark.parametrize("name", ["flat", "image", "average"])
def test_one_process_is_torch_bit_for_bit(name):
    x, upstream, arguments = case(name)
    torch_norm = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    ours, theirs = (two_steps(kind(3, **arguments), x, upstream) for kind in (CrossRankBatchNorm, torch_norm))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def test_convert_keeps_weights_statistics_and_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.Sequential(nn.BatchNorm2d(4)))
    net(torch.randn(2, 3, 8, 8))
    net[2].eval()
    before = copy.deepcopy(net)
    assert convert(net) is net
    assert [type(m) for m in net.modules()].count(CrossRankBatchNorm) == 2
    assert (net[1].eps, net[1].momentum, net[1].training, net[2][0].training) == (1e-3, 0.2, True, False)
    assert net.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x), before(x))
    assert isinstance(convert(nn.BatchNorm1d(2)), CrossRankBatchNorm)


def test_separate_is_the_way_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(CrossRankBatchNorm(4, momentum=0.3), nn.ReLU())).train()
    before, x = {name: value.clone() for name, value in net.state_dict().items()}, torch.randn(5, 3, 2, 2)
    expected, weight = net(x), net[1][0].weight
    net.load_state_dict(before)
    assert separate(net) is net
    assert type(net[1][0]) is nn.BatchNorm2d
    assert net[1][0].weight is weight
    assert net[1][0].momentum == 0.3
    assert torch.equal(net(x), expected)


def test_convert_refuses_a_batch_norm_that_does_more():
    class NormAct(nn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match="NormAct does more than batch norm"):
        convert(nn.Sequential(NormAct(2)))


def test_input_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"needs \[batch, channels, ...\], got shape \(3,\)"):
        CrossRankBatchNorm(3)(torch.ones(3))


def test_a_batch_norm_that_met_equal_rows_only_is_found_by_its_name():
    fed, starved = CrossRankBatchNorm(3), CrossRankBatchNorm(3)
    model = nn.ModuleDict({"fed": fed, "starved": starved, "unused": CrossRankBatchNorm(3)})
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        fed(0.1 * torch.randn(8, 3, generator=generator))
        starved(torch.randn(1, 3, generator=generator).expand(8, 3))
        assert without_variance(model) == ["starved"]
    starved(torch.randn(8, 3, generator=generator))
    assert without_variance(model) == []
