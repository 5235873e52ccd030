# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.models.nac.circuit import Circuit, LearnedCircuit, TextCircuit


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned() -> LearnedCircuit:
    torch.manual_seed(0)
    return LearnedCircuit(6, 2, 4, 3)


def from_text() -> TextCircuit:
    torch.manual_seed(0)
    return TextCircuit(6, 2, 4, 3, 5).double()


def test_a_learned_circuit_is_one_for_all_samples_and_ends_in_its_output_modules():
    made = learned()
    circuit = made()
    assert (circuit.modules, circuit.outputs) == (6, 2)
    assert (tuple(circuit.codes.shape), tuple(circuit.signatures.shape)) == ((8, 4), (8, 3))
    assert torch.equal(circuit.codes, made.codes)


def test_kept_modules_come_in_the_order_asked_for_and_output_modules_stay():
    circuit = learned()()
    left = circuit.kept(torch.tensor([4, 1]))
    assert (left.modules, left.outputs) == (2, 2)
    for ours, whole in ((left.codes, circuit.codes), (left.signatures, circuit.signatures)):
        assert torch.equal(ours, whole[[4, 1, 6, 7]])


@pytest.mark.parametrize("make", [learned, from_text])
def test_a_pruned_generator_gives_the_kept_part_of_its_circuit(make):
    made = make()
    given = () if make is learned else (draw(3, 7, 5),)
    want = made(*given).kept(torch.tensor([5, 0, 2]))
    made.prune(torch.tensor([5, 0, 2]))
    torch.testing.assert_close(made(*given).codes, want.codes)
    torch.testing.assert_close(made(*given).signatures, want.signatures)
    assert made(*given).modules == 3


def test_a_text_gives_every_sample_codes_and_signatures_of_its_own():
    made, text = from_text(), draw(3, 7, 5)
    circuit = made(text)
    assert (tuple(circuit.codes.shape), tuple(circuit.signatures.shape)) == ((3, 8, 4), (3, 8, 3))
    for ours in (circuit.codes, circuit.signatures):
        assert (ours[0] - ours[1]).abs().amax(-1).min() > 1e-3  # of every module
    torch.testing.assert_close(made(text[1:2]).codes[0], circuit.codes[1])


def test_the_codes_of_a_text_are_queries_plus_what_they_attend_to():
    made, text = from_text(), draw(2, 7, 5)
    part, x = made.codes, made.norm(text)
    weights = ((part.queries @ part.query.weight.T) @ (x @ part.key.weight.T).mT / 5**0.5).softmax(-1)
    torch.testing.assert_close(made(text).codes, part.queries + part.value(weights @ x))


def test_tokens_of_a_text_that_do_not_exist_have_no_influence():
    made, text = from_text(), draw(2, 7, 5)
    hidden = torch.arange(7) >= torch.tensor([[4], [7]])
    other = text.clone()
    other[0, 4:] += 1
    torch.testing.assert_close(made(other, hidden).codes, made(text, hidden).codes)
    torch.testing.assert_close(made(text[:1, :4]).signatures, made(text, hidden).signatures[:1])


def test_gradients_reach_both_systems_of_a_text_circuit():
    made, text = from_text(), draw(3, 7, 5).requires_grad_()
    circuit = made(text)
    (circuit.codes.square().sum() + circuit.signatures.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters())
    assert text.grad.abs().sum() > 0


# bad input


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        ([], r"the modules to keep have shape \[0\]; name at least 1 of the 6 modules"),
        ([[1], [2]], r"the modules to keep have shape \[2, 1\]"),
        ([0, 3, 3], "module 3 is named twice among the modules to keep"),
        ([0, 6], "module 6 cannot be kept: modules are 0 to 5, and output modules always stay"),
        ([-1, 2], "module -1 cannot be kept"),
    ],
)
def test_modules_to_keep_are_distinct_and_there(kept, line):
    with pytest.raises(ValueError, match=line):
        learned()().kept(torch.tensor(kept, dtype=torch.int64))
    with pytest.raises(ValueError, match=line):
        learned().prune(torch.tensor(kept, dtype=torch.int64))


def test_codes_and_signatures_of_different_modules_are_refused():
    with pytest.raises(ValueError, match=r"codes \[8, 4\] and signatures \[7, 3\] are not of the same modules"):
        Circuit(torch.zeros(8, 4), nn.Parameter(torch.zeros(7, 3)), 1)
