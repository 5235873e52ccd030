# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib.models.nac.network import NeuralAttentiveCircuit, Shape
from recipes_lib.models.perceiver import PerceiverIO, Sizes
from recipes_lib.recipes.nac import answering, fitting
from recipes_lib.recipes.nac.answering import Answering, Asked
from recipes_lib.recipes.nac.fitting import Classifier, Settings

SHAPE = Shape(modules=6, outputs=1, width=12, signature_dim=4, depth=1, heads=2, head_width=6, hidden=12)
TASK, DRAWN = answering.task(0, train=120)


def generated() -> Answering:
    return Answering(NeuralAttentiveCircuit(SHAPE, answering.pair_tokens(12), text_dim=12), answering.text_encoder(12))


def joint() -> PerceiverIO:
    return PerceiverIO(Sizes(6, 1, 12, 1, 2, 6, 18), answering.joint_tokens(12))


def some(count: int = 12) -> Asked:
    return TASK.test.inputs[torch.arange(count)]


def test_the_sentence_chooses_the_circuit():
    torch.manual_seed(0)
    made, asked = generated().eval(), some()
    want = made(asked)
    assert want.shape == (12, 12)
    other = Asked(asked.pairs, asked.texts.roll(1, dims=0))  # the other sentence: two take turns
    assert (made(other) - want).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(made(Asked(asked.pairs[3:4], asked.texts[3:4])), want[3:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.use(asked).sum(1), torch.ones(12))


def test_the_joint_tokens_are_those_of_the_images_then_those_of_the_text():
    torch.manual_seed(0)
    made, asked = answering.joint_tokens(12).eval(), some()
    values, hidden = made(asked)
    assert values.shape == (12, 32 + answering.LENGTH, 28)
    assert not hidden[:, :32].any()
    torch.testing.assert_close(hidden[:, 32:], asked.texts == 256)
    torch.testing.assert_close(values[:, :32], made.pairs(asked.pairs).values)


def test_both_kinds_are_trained_by_the_same_loop():
    for make in (generated, joint):
        model = fitting.fit(make, TASK, Settings(steps=2, batch_size=16, module_dropout=1.0), seed=0)
        assert 0 <= fitting.accuracy(model, TASK.test) <= 1
        assert fitting.modules(model.network) == 6


def test_gradients_reach_both_systems_and_the_text():
    torch.manual_seed(0)
    model = Classifier(generated(), 2)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.functional.cross_entropy(model(some()), TASK.test.labels[:12]).backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert lacking == []


def test_questions_and_their_factors_come_in_the_same_order():
    assert torch.equal(TASK.test.labels, DRAWN["test"].labels)
    assert torch.equal(TASK.test.inputs.texts, DRAWN["test"].texts)
    assert [len(DRAWN[split]) for split in ("train", "validation", "test")] == [120, 600, 1200]
