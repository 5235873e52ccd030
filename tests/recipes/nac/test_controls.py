# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib.models.nac.network import NeuralAttentiveCircuit, Shape
from recipes_lib.recipes.nac import controls, tasks

SHAPE = Shape(modules=8, outputs=1, width=16, signature_dim=4, depth=1, heads=2, head_width=8, hidden=16)
TASK = tasks.digits()


def dense() -> NeuralAttentiveCircuit:
    torch.manual_seed(0)
    return controls.densely(NeuralAttentiveCircuit(SHAPE, TASK.tokens(16)))


def test_all_modules_of_a_dense_network_are_linked_and_draws_change_next_to_nothing():
    made, images = dense(), TASK.test.inputs[:8]
    assert made.log_links(made.circuit()).abs().max() < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(made.train()(images), made.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_code_moves_what_a_dense_module_starts_from_and_scales_nothing():
    made = dense()
    codes = made.circuit().codes
    assert made.blocks[0].query.scales(codes).eq(1).all()
    made(TASK.test.inputs[:4]).square().sum().backward()
    assert made.circuit.codes.grad.abs().sum() > 0


def test_neither_links_nor_scales_of_a_dense_network_are_learned():
    still = {name for name, parameter in dense().named_parameters() if not parameter.requires_grad}
    assert "circuit.signatures" in still
    assert {name.rpartition(".")[2] for name in still} == {"signatures", "gain", "weight"}
    assert all(".code." in name for name in still if name.endswith("weight"))


def test_a_perceiver_has_as_many_latents_and_parameters_as_the_circuit():
    circuit = NeuralAttentiveCircuit(SHAPE, TASK.tokens(16))
    made = controls.perceiver(SHAPE, TASK.tokens(16), 16)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (circuit, made)]
    assert abs(counts[0] - counts[1]) < 0.02 * counts[0]
    assert len(made.latents) == 8
