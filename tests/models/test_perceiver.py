# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib.models import perceiver
from recipes_lib.models.nac import network as nac
from recipes_lib.models.nac.tokens import ImageTokens, SequenceTokens
from recipes_lib.models.perceiver import PerceiverIO, Sizes

SIZES = Sizes(latents=8, outputs=2, width=12, depth=2, heads=2, head_width=5, hidden=10)


def network(sizes: Sizes = SIZES) -> PerceiverIO:
    torch.manual_seed(0)
    made = PerceiverIO(sizes, ImageTokens(8, 4, 6, stem="patch", position_width=3)).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def flops(model: nn.Module, inputs: Tensor) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


def test_it_is_a_backbone_whose_gradients_reach_every_parameter():
    made = network()
    torch.testing.assert_close(made(images()), made.norm(made.before_norm(images())))
    assert made.num_features == 12
    made(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_latents_that_are_left_out_have_no_influence_and_are_not_computed():
    made, kept = network(), torch.tensor([1, 4, 6])
    want = made(images(), kept=kept)
    other = network()
    other.latents.data[[0, 2, 3, 5, 7]] += 1
    torch.testing.assert_close(other(images(), kept=kept), want)
    rows = []
    made.blocks[0].query.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    made.prune(kept)
    torch.testing.assert_close(made(images()), want)
    assert rows == [3]


def test_the_output_is_what_the_queries_read_and_not_the_queries_themselves():
    made = network(SIZES._replace(outputs=1))
    for layer in (made.read_out.leave, made.read_out.mlp2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert made.before_norm(images()).abs().max() == 0


def test_the_order_of_latents_changes_nothing():
    order = torch.tensor([3, 7, 0, 4, 1, 6, 2, 5])
    torch.testing.assert_close(network()(images(), kept=order), network()(images()), rtol=0, atol=1e-13)


def test_sequences_of_different_lengths_give_the_features_of_each_alone():
    torch.manual_seed(0)
    made = PerceiverIO(SIZES, SequenceTokens(16, 6, 8)).double().eval()
    ids = torch.tensor([[1, 2, 3, 16, 16], [4, 5, 6, 7, 8]])
    torch.testing.assert_close(made(ids)[:1], made(ids[:1, :3]))


@pytest.mark.parametrize("arch", ["nac_pico", "nac_nano", "nac_320"])
def test_a_control_of_equal_size_differs_by_at_most_2_percent(arch):
    shape = nac.ARCHS[arch]
    with torch.device("meta"):
        tokens, x = ImageTokens(32, 8, shape.width, stem="conv"), torch.randn(32, 3, 32, 32)
        ours = nac.NeuralAttentiveCircuit(shape, tokens).eval()
        ours.fix()
        sizes = {
            by: perceiver.matched(shape, by, tokens=16, token_width=tokens.width) for by in ("operations", "parameters")
        }
        theirs = {by: PerceiverIO(each, tokens).eval() for by, each in sizes.items()}
    assert [each[:3] for each in sizes.values()] == [shape[:3]] * 2
    of_tokens = flops(tokens, x)
    counted = {by: flops(model, x) - of_tokens for by, model in theirs.items()}
    assert counted["operations"] == pytest.approx(flops(ours, x) - of_tokens, rel=0.02)
    numbers = [sum(p.numel() for p in model.parameters()) for model in (theirs["parameters"], ours)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.002)
    assert counted["parameters"] > 1.2 * counted["operations"]


@pytest.mark.parametrize("modules", [8, 3])
def test_operations_are_those_that_torch_counts(modules):
    shape = nac.Shape(8, 2, 12, 4, 2, 2, 5, 10)
    tokens = ImageTokens(8, 4, 6, stem="patch", position_width=3)
    given, x = {"tokens": 4, "token_width": 9}, torch.randn(64, 3, 8, 8)
    circuit = nac.NeuralAttentiveCircuit(shape, tokens).eval()
    circuit.circuit.prune(torch.arange(modules))
    circuit.fix()
    small = flops(tokens, x)
    confidence = 64 * 2 * 2 * 12  # the weights of the two output modules
    once = 2 * (modules * 12 * 5 + modules * 5 * 9 + 2 * 12 * 5 + (modules + 2) ** 2 * 4)  # not per sample
    assert flops(circuit, x) - small - confidence - once == 64 * nac.operations(shape, modules, **given)
    control = PerceiverIO(SIZES, tokens).eval()
    control.prune(torch.arange(modules))
    assert flops(control, x) - small - confidence == 64 * perceiver.operations(SIZES, modules, **given)


def test_a_latent_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="module 9 cannot be kept: modules are 0 to 7"):
        network()(images(), kept=torch.tensor([9]))
