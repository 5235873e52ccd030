# SPDX-License-Identifier: Apache-2.0
"""What the methods of the families share: the encoder, the views, and the teacher."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.recipes.families.ladder import CONVNET, VIEWS, VIT, small
from recipes_lib.recipes.families.network import Encoder, Siamese, Taught, local_look, second_look
from recipes_lib.recipes.families.settings import Config, LossConfig

CONFIG = override(
    small(LossConfig(objective="moco_v3"), model=replace(CONVNET, hidden=32, dim=16))["moco_v3_toy"],
    {"views.image_size": 16, "train.batch_size": 8},
)
STEPS = 10


def batch(size: int = 8) -> Batch:
    images = torch.randint(0, 256, (size, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(size), 0, images, None, None)


def taught(**changes: float) -> Taught:
    torch.manual_seed(0)
    return Taught(override(CONFIG, {f"model.{name}": value for name, value in changes.items()}), STEPS)


class TeachersLoss(Taught):
    """The embeddings must equal the teacher's."""

    def forward(self, views: dict) -> dict[str, Tensor]:
        return {"loss": (self.encoder(views["large"]) - self.teacher(views["large"])).square().mean()}


def test_an_encoder_is_a_backbone_and_its_projector():
    encoder = Encoder(CONFIG).eval()
    images = torch.randn(3, 3, 16, 16)
    assert encoder(images).shape == (3, 16)
    torch.testing.assert_close(encoder(images), encoder.projector(encoder.backbone(images)))
    bare = Encoder(override(CONFIG, {"model.projector_layers": 0})).eval()
    torch.testing.assert_close(bare(images), bare.backbone(images))


def test_a_frozen_patch_embedding_keeps_its_random_start_and_nothing_else_does():
    config = override(replace(CONFIG, model=replace(VIT, hidden=32, dim=16)), {"model.freeze_patch": True})
    encoder = Encoder(config)
    still = {name for name, weight in encoder.named_parameters() if not weight.requires_grad}
    assert still == {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    groups = Siamese(config, STEPS).param_groups()
    moved = {id(weight) for group in groups for weight in group["params"]}
    assert len(moved) == sum(weight.requires_grad for weight in encoder.parameters())


def test_views_are_view_major_and_the_step_comes_with_them():
    method = Siamese(CONFIG, STEPS)
    views = method.views(batch(), step=3)
    assert views["large"].shape == (16, 3, 16, 16)
    assert views["small"] is None
    assert views["step"] == 3
    first, second = views["large"].chunk(2)
    assert not torch.equal(first, second)
    again = method.views(batch(4), step=7)["large"][:4]  # they depend neither on the step nor on the batch
    torch.testing.assert_close(again, first[:4], rtol=0, atol=2e-5)


def test_embeddings_of_all_views_have_the_large_ones_first():
    config = override(CONFIG, {"loss.objective": "dino", "views.local_views": 2, "views.local_size": 8})
    method = Siamese(config, STEPS).eval()
    views = method.views(batch(), step=0)
    assert views["small"].shape == (16, 3, 8, 8)
    z = method.embeddings(views)
    assert z.shape == (4, 8, 16)
    torch.testing.assert_close(z[0], method.encoder(views["large"][:8]))
    torch.testing.assert_close(z[1], method.encoder(views["large"][8:]))
    torch.testing.assert_close(z[3], method.encoder(views["small"][8:]))


@pytest.mark.parametrize(("model", "layout"), [(CONVNET, torch.channels_last), (VIT, torch.contiguous_format)])
def test_a_convolutional_network_gets_the_channels_of_a_pixel_side_by_side(model, layout):
    method = Siamese(replace(CONFIG, model=model), STEPS)
    assert method.views(batch(), 0)["large"].is_contiguous(memory_format=layout)


def test_a_teacher_starts_as_a_copy_of_the_encoder():
    method = taught()
    ours, copied = method.encoder.state_dict(), method.teacher.state_dict()
    assert all(torch.equal(ours[name], copied[name]) for name in ours)
    assert not {p.data_ptr() for p in method.encoder.parameters()} & {p.data_ptr() for p in method.teacher.parameters()}
    assert method.backbone is method.encoder.backbone


def test_no_gradient_and_no_optimiser_reaches_the_teacher():
    torch.manual_seed(0)
    method = TeachersLoss(CONFIG, STEPS)
    with torch.no_grad():
        method.encoder.projector.layers[-1].weight.mul_(1.5)  # else both are equal and no gradient is expected
    method(method.views(batch(), 0))["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert sum(p.grad.abs().sum() for p in method.encoder.parameters()) > 0
    own = {id(p) for p in method.encoder.parameters()}
    assert {id(p) for group in method.param_groups() for p in group["params"]} == own


# tau_k = 1 - (1 - 0.996) (cos(pi k / 10) + 1) / 2
GOLDEN = [
    0.996,
    0.99609789,
    0.99638197,
    0.99682443,
    0.99738197,
    0.998,
    0.99861803,
    0.99917557,
    0.99961803,
    0.99990211,
    1,
]


@pytest.mark.parametrize("step", range(11))
def test_the_teacher_moves_by_the_momentum_of_the_step(step):
    method = taught(ema=0.996)
    before = [p.double().clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    method.after_step(step)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new.double(), old + 1 - GOLDEN[step], rtol=0, atol=3e-7)


def test_the_teachers_batch_norms_keep_their_own_running_statistics():
    method = taught()
    method.encoder(method.views(batch(), 0)["large"])
    before = {name: buffer.clone() for name, buffer in method.teacher.named_buffers()}
    method.after_step(0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.teacher.named_buffers())
    moved = dict(method.encoder.named_buffers())
    assert any(not torch.equal(moved[name], before[name]) for name in before)


def test_the_second_and_the_small_views_have_their_own_colours():
    plain = replace(VIEWS, blur=0.3, solarize=0.1)
    assert second_look(plain) == local_look(plain) == plain
    other = replace(plain, second_blur=0.0, second_solarize=0.2, local_blur=1.0)
    assert (second_look(other).blur, second_look(other).solarize) == (0.0, 0.2)
    assert (local_look(other).blur, local_look(other).solarize) == (1.0, 0.1)


def test_a_config_says_how_the_second_view_looks_and_the_method_cuts_it_so():
    quiet = {"jitter": 0.0, "grayscale": 0.0, "flip": 0.0, "global_scale": (1.0, 1.0)}
    config = replace(CONFIG, views=replace(CONFIG.views, **quiet, second_solarize=1.0))
    first, second = Siamese(config, STEPS).views(batch(), 0)["large"].chunk(2)
    plain, _ = (
        Siamese(replace(config, views=replace(config.views, second_solarize=None)), STEPS)
        .views(batch(), 0)["large"]
        .chunk(2)
    )
    assert torch.equal(first, plain)
    assert not torch.allclose(first, second)


def test_the_defaults_are_a_config_of_two_views():
    assert Config().views.global_views == 1
