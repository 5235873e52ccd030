# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.models.nac.network import NeuralAttentiveCircuit, Shape
from recipes_lib.models.perceiver import PerceiverIO, matched
from recipes_lib.recipes.nac import fitting, priors, tasks
from recipes_lib.recipes.nac.fitting import Classifier, Settings

SHAPE = Shape(modules=8, outputs=1, width=16, signature_dim=4, depth=1, heads=2, head_width=8, hidden=16)
TASK = tasks.digits()


def circuit() -> NeuralAttentiveCircuit:
    return NeuralAttentiveCircuit(SHAPE, TASK.tokens(16))


def perceiver() -> PerceiverIO:
    return PerceiverIO(matched(SHAPE, "operations", tokens=16, token_width=32), TASK.tokens(16))


def weights(model: Classifier) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("make", [circuit, perceiver])
def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_as_it_was(make):
    settings = Settings(steps=4, module_dropout=0.8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fitting.fit(make, TASK, settings, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(fitting.fit(make, TASK, settings, seed=1)), weights(first))
    assert not torch.equal(weights(fitting.fit(make, TASK, settings, seed=2)), weights(first))
    assert not first.training


def test_it_learns():
    losses = []
    model = fitting.fit(
        circuit,
        tasks.only(TASK, range(2)),
        Settings(steps=60, lr=1e-2),
        seed=0,
        watch=lambda step, model: losses.append(step),
    )
    assert losses == list(range(60))
    assert fitting.accuracy(model, tasks.only(TASK, range(2)).test) > 0.8


def test_module_dropout_runs_between_an_eighth_of_the_modules_and_all():
    counts = []

    def make() -> NeuralAttentiveCircuit:
        made = circuit()
        made.read_in.leave.register_forward_hook(lambda _, args, __: counts.append(args[0].shape[1]))
        return made

    fitting.fit(make, TASK, Settings(steps=30, module_dropout=1.0, batch_size=4), seed=0)
    assert len(set(counts)) > 4
    assert 1 <= min(counts) <= max(counts) <= 8
    del counts[:]
    fitting.fit(make, TASK, Settings(steps=3, batch_size=4), seed=0)
    assert counts == [8] * 3


def test_a_strong_prior_moves_the_links_to_its_target():
    graph = priors.planted_partition(8, 2)
    far, near = (
        fitting.fit(circuit, TASK, Settings(steps=40, batch_size=8, lr=0.05, prior=weight, graph=graph), seed=0)
        for weight in (0.0, 100.0)
    )
    found = [
        priors.distance(model.network.circuit().signatures[:8].detach(), graph, bandwidth=1.0)["mse"]
        for model in (far, near)
    ]
    assert found[1] < 0.5 * found[0]


def test_codes_latents_and_positions_do_not_decay():
    for make, still in ((circuit, "circuit.codes"), (perceiver, "latents")):
        model = Classifier(make(), 10)
        decays, others = (
            {id(parameter) for parameter in group["params"]} for group in model.param_groups(weight_decay=0.1)
        )
        named = {name: id(parameter) for name, parameter in model.named_parameters()}
        assert named[f"network.{still}"] in others
        assert named["network.tokens.positions"] in others
        assert named["network.norm.weight"] in others
        assert named["head.weight"] in decays
        assert decays | others == set(named.values())


def test_the_rate_rises_and_then_falls_to_0():
    shares = [fitting._share(step, 400) for step in range(400)]
    assert shares[0] == pytest.approx(1 / 40)
    assert max(shares) == pytest.approx(shares[39], rel=1e-3)
    assert shares[200] == pytest.approx(0.5)
    assert shares[-1] < 1e-4


def test_accuracy_and_loss_are_those_of_the_kept_modules():
    model = Classifier(circuit(), 10).eval()
    torch.nn.init.normal_(model.head.weight)
    kept = torch.tensor([1, 5])
    with torch.no_grad():
        logits = model(TASK.test.inputs, kept=kept)
    want = (logits.argmax(1) == TASK.test.labels).double().mean()
    assert fitting.accuracy(model, TASK.test, kept) == pytest.approx(float(want))
    assert fitting.loss(model, TASK.test, kept) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, TASK.test.labels))
    )
    assert fitting.modules(model.network) == 8
    assert fitting.modules(perceiver()) == 8
