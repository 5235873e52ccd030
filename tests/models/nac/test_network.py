# SPDX-License-Identifier: Apache-2.0
import math
from types import MethodType

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models.nac.network import ARCHS, LinkConfig, NeuralAttentiveCircuit, Shape, draw_kept
from recipes_lib.models.nac.tokens import ImageTokens, SequenceTokens, Tokens

SHAPE = Shape(modules=8, outputs=2, width=12, signature_dim=4, depth=2, heads=2, head_width=5, hidden=10)


def network(text_dim: int | None = None, shape: Shape = SHAPE, **link: object) -> NeuralAttentiveCircuit:
    """A circuit of 8 modules over 4 patches, in float64, evaluating, with random parameters."""
    torch.manual_seed(0)
    tokens = ImageTokens(8, 4, 6, stem="patch", position_width=3)
    made = NeuralAttentiveCircuit(shape, tokens, link=LinkConfig(**link), text_dim=text_dim).double()
    for name, parameter in made.named_parameters():
        if not name.startswith("circuit"):
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(count: int = 3) -> Tokens:
    return Tokens(torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64), None)


# the whole circuit


def test_it_is_a_backbone():
    made = network()
    assert made.num_features == 12
    torch.testing.assert_close(made(images()), made.norm(made.before_norm(images())))
    assert (made(images()) - made.before_norm(images())).abs().max() > 0.1
    assert len(made.blocks) == 2


def test_of_several_output_modules_the_mean_is_taken_with_the_weights_of_their_confidence():
    made = network()
    states = made.read_out(*made._read(images(), None, None, None))  # [B, O, d]
    weights = made.confidence(states).softmax(1)
    torch.testing.assert_close(made.before_norm(images()), (weights * states).sum(1))
    one = network(shape=SHAPE._replace(outputs=1))
    torch.testing.assert_close(
        one.before_norm(images()), one.read_out(*one._read(images(), None, None, None)).squeeze(1)
    )


def test_the_order_of_modules_changes_nothing():
    made, x = network(), images()
    want = made(x)
    order = torch.tensor([3, 7, 0, 4, 1, 6, 2, 5])
    torch.testing.assert_close(made(x, kept=order), want, rtol=0, atol=1e-13)
    torch.testing.assert_close(made.use(x, kept=order), made.use(x)[:, order])


def test_the_length_of_signatures_changes_nothing():
    made, x = network(), images()
    want = made(x)
    made.circuit.signatures.data *= torch.linspace(0.1, 5, 10, dtype=torch.float64)[:, None]
    torch.testing.assert_close(made(x), want, rtol=0, atol=1e-13)


def test_equal_signatures_are_plain_attention():
    made, x = network(), images()
    made.circuit.signatures.data[:] = made.circuit.signatures.data[0].clone()
    plain = network()
    plain.log_links = MethodType(lambda self, circuit: torch.zeros(10, 10, dtype=torch.float64), plain)
    torch.testing.assert_close(made(x), plain(x), rtol=0, atol=1e-13)
    assert (network()(x) - plain(x)).abs().max() > 1e-3


def test_gradients_reach_every_parameter_in_training():
    for text in (None, texts()):
        made = network(None if text is None else 7).train()
        made(images(), text=text).square().sum().backward()
        lacking = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert lacking == []


def test_a_text_gives_each_sample_the_output_of_a_circuit_of_its_own():
    made, x, text = network(text_dim=7), images(), texts()
    want = torch.cat([made(x[i : i + 1], text=Tokens(text.values[i : i + 1], None)) for i in range(3)])
    torch.testing.assert_close(made(x, text=text), want)
    other = Tokens(text.values.flip(0), None)
    assert (made(x, text=other) - want).abs().amax(1)[0] > 1e-4


# draws of the links


def test_evaluation_draws_nothing_and_training_does():
    made, x = network(), images()
    assert torch.equal(made(x), made(x))
    made.train()
    assert (made(x) - made(x)).abs().max() > 1e-6
    torch.manual_seed(3)
    first = made(x)
    torch.manual_seed(3)
    assert torch.equal(made(x), first)


def test_with_keys_a_samples_draws_depend_on_its_key_alone():
    made, x = network().train(), images(4)
    keys = randomness.sample_keys(1, 2, torch.tensor([5, 9, 4, 2]))
    whole = made(x, keys=keys)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(made(x[order], keys=keys[order]), whole[order])
    torch.testing.assert_close(made(x[1:2], keys=keys[1:2]), whole[1:2])
    again = randomness.sample_keys(1, 3, torch.tensor([5, 9, 4, 2]))
    assert (made(x, keys=again) - whole).abs().amax(1).min() > 1e-6


def test_samples_and_layers_have_draws_of_their_own():
    made = network().train()
    seen = []
    made._strengths = MethodType(
        lambda self, *args: seen.append(NeuralAttentiveCircuit._strengths(self, *args)) or seen[-1], made
    )
    made(images(2), keys=randomness.sample_keys(0, 0, torch.arange(2)))
    assert [tuple(each.shape) for each in seen] == [(2, 8, 8), (2, 8, 8), (2, 2, 8)]
    assert (seen[0][0] - seen[0][1]).abs().max() > 0.1
    assert (seen[0] - seen[1]).abs().max() > 0.1


@pytest.mark.parametrize(("way", "changes"), [("threshold", False), ("sample", True)])
def test_evaluation_may_use_hard_links_or_draws(way, changes):
    made, x = network(evaluation=way, bandwidth=0.5), images()
    keys = [randomness.sample_keys(seed, 0, torch.arange(3)) for seed in range(2)]
    assert (made(x, keys=keys[0]) - network(bandwidth=0.5)(x)).abs().max() > 1e-5
    assert bool((made(x, keys=keys[0]) - made(x, keys=keys[1])).abs().max() > 1e-6) == changes


def test_with_a_low_temperature_draws_are_those_of_hard_links():
    made = network(temperature=1e-4).train()
    strengths = made._strengths(torch.full((8, 8), math.log(0.3)).double(), 500, None, "").exp()
    assert ((strengths < 1e-6) | (strengths > 1 - 1e-6)).double().mean() > 0.99
    assert float(strengths.mean()) == pytest.approx(0.3, abs=0.02)


# pruning


def masked(made: NeuralAttentiveCircuit, kept: list[int]) -> NeuralAttentiveCircuit:
    """The network with log C = -inf to and from all but the kept modules; a module stays linked to itself."""

    def log_links(self: NeuralAttentiveCircuit, circuit: object) -> Tensor:
        away = torch.ones(10, dtype=torch.bool)
        away[[*kept, 8, 9]] = False
        cut = (away[:, None] | away) & ~torch.eye(10, dtype=torch.bool)
        return NeuralAttentiveCircuit.log_links(self, circuit).masked_fill(cut, -torch.inf)

    made.log_links = MethodType(log_links, made)
    return made


@pytest.mark.parametrize("kept", [[2], [1, 4, 6], [0, 1, 2, 3, 5, 6, 7]])
@pytest.mark.parametrize("text", [False, True])
def test_pruning_by_slicing_equals_links_of_strength_0(kept, text):
    dim, given = (7, texts()) if text else (None, None)
    want = masked(network(dim), kept)(images(), text=given)
    torch.testing.assert_close(network(dim)(images(), text=given, kept=torch.tensor(kept)), want, rtol=0, atol=1e-12)
    pruned = network(dim)
    pruned.circuit.prune(torch.tensor(kept))
    torch.testing.assert_close(pruned(images(), text=given), want, rtol=0, atol=1e-12)
    assert (want - network(dim)(images(), text=given)).abs().max() > 1e-6


def test_pruned_modules_are_not_computed():
    made, rows = network(), []
    hook = made.blocks[0].query.linear.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    made(images(), kept=torch.tensor([1, 4, 6]))
    made.circuit.prune(torch.tensor([1, 4]))
    made(images())
    hook.remove()
    assert rows == [3, 2]


def test_fixed_scales_change_no_output():
    made, x = network(), images()
    want = made(x)
    made.fix()
    torch.testing.assert_close(made(x), want, rtol=0, atol=1e-14)
    made.circuit.codes.data += 1  # only the initial states still move
    assert torch.equal(made.blocks[0].query.scales(made.circuit.codes[:8]), made.blocks[0].query.fixed)


def test_a_circuit_from_texts_cannot_be_fixed():
    with pytest.raises(ValueError, match="other codes for each sample"):
        network(text_dim=7).fix()


def test_module_dropout_keeps_from_an_eighth_of_the_modules_to_all_equally_often():
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([len(draw_kept(16, 1.0, generator)) for _ in range(3000)])
    assert (int(counts.min()), int(counts.max())) == (2, 16)
    assert counts.bincount()[2:].max() < 1.5 * counts.bincount()[2:].min()
    whole = [len(draw_kept(16, 0.4, generator)) == 16 for _ in range(2000)]
    assert sum(whole) / 2000 == pytest.approx(0.6 + 0.4 / 15, abs=0.04)
    kept = draw_kept(16, 1.0, generator)
    assert kept.tolist() == sorted(set(kept.tolist()))


# two processes


def step_gradient(ranks: int) -> dict[str, Tensor]:
    """The gradients of one step of training on this rank's share of 4 images, with links that are not drawn."""
    made = network()  # evaluating: nothing is drawn
    x, target = images(4), images(4, seed=1)[:, 0, 0, :1].expand(-1, 12)
    part = slice(None) if ranks == 1 else slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    (made(x[part]) - target[part]).square().mean().backward()
    found = {name: p.grad for name, p in made.named_parameters()}
    for gradient in found.values() if ranks > 1 else ():
        dist.all_reduce(gradient)
        gradient /= ranks
    return found


def drawn(ranks: int) -> Tensor:
    """The features in training of this rank's share of 4 images, whose links are drawn with keys."""
    made, keys = network().train(), randomness.sample_keys(0, 0, torch.arange(4))
    part = slice(None) if ranks == 1 else slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    return made(images(4)[part], keys=keys[part]).detach()


def on_each_rank() -> tuple[dict[str, Tensor], Tensor]:
    return step_gradient(2), drawn(2)


@pytest.mark.distributed
def test_two_processes_equal_one_without_draws_and_with_draws_from_keys():
    both = run_ranks(on_each_rank, 2)
    for name, gradient in step_gradient(1).items():
        torch.testing.assert_close(both[0][0][name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat([rank[1] for rank in both]), drawn(1), rtol=1e-12, atol=1e-12)


# sizes and bad input


def test_the_papers_sizes():
    assert (ARCHS["nac_640"].modules, ARCHS["nac_640"].outputs, ARCHS["nac_640"].width) == (640, 64, 384)
    assert ARCHS["nac_320"].hidden == round(1.333 * 384)
    with torch.device("meta"):
        made = NeuralAttentiveCircuit(ARCHS["nac_320"], ImageTokens(64, 8, 384, stem="conv"))
        assert len(made.blocks) == 8
        assert made.read_in.key.linear.weight.shape == (64, 384 + 64)


def test_tokens_that_do_not_fit_are_refused():
    made = network()
    made.tokens.width = 11
    with pytest.raises(ValueError, match=r"tokens have shape \[3, 4, 9\]; \[B, V, 11\] is wanted"):
        made(images())


def test_texts_go_with_a_circuit_that_they_generate():
    for made, text in ((network(), texts()), (network(text_dim=7), None)):
        with pytest.raises(ValueError, match="a circuit that texts generate needs texts, and no other takes them"):
            made(images(), text=text)


def test_draws_in_evaluation_need_keys():
    with pytest.raises(
        ValueError, match=r"links are drawn in evaluation .*so it needs keys: one random key per sample"
    ):
        network(evaluation="sample")(images())


def test_links_out_of_range_are_faults_of_the_config():
    faults = Faults()
    LinkConfig(bandwidth=0.0, temperature=-1.0, truncation=3.0).check(faults)
    with pytest.raises(ConfigError) as caught:
        faults.raise_any()
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["model.bandwidth", "model.temperature", "model.truncation"]
    assert "A link's probability is at least exp(-2 / bandwidth)." in lines[0]


def test_sequences_of_different_lengths_give_the_features_of_each_alone():
    torch.manual_seed(0)
    made = NeuralAttentiveCircuit(SHAPE, SequenceTokens(16, 6, 8)).double().eval()
    ids = torch.tensor([[1, 2, 3, 16, 16], [4, 5, 6, 7, 8]])
    whole = made(ids)
    torch.testing.assert_close(whole[:1], made(ids[:1, :3]))
    torch.testing.assert_close(whole[1:], made(ids[1:]))
