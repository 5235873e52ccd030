# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch

from recipes_lib.data import objects3d
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.data.posed import TYPICAL, MeshObjects, PantryObjects, PoseCounts, PosedImages, draw
from recipes_lib.errors import DataError

COUNTS = PoseCounts(diverse=3, typical=2, unknown=4, poses=5, azimuth=40.0)


class Painted:
    """Objects whose image is their pose: its first pixels hold the instance and the rounded roll."""

    name, most = "painted", 9

    def render(self, instances, poses, size, seed):
        images = torch.zeros(len(instances), 3, size, size, dtype=torch.uint8)
        images[:, 0, 0, 0] = instances.to(torch.uint8)
        images[:, 1, 0, 0] = (poses[:, 2] / 2 + 100).to(torch.uint8)
        return images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path))


def posed(labels):
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return PosedImages(images, labels, tuple(map(str, range(int(labels.max()) + 1))))


def test_sets_have_the_instances_and_poses_that_their_names_say():
    found = draw(Painted(), COUNTS, size=8, seed=3)
    assert found.train.labels.tolist() == [i for i in range(5) for _ in range(5)]
    assert found.new_poses.labels.tolist() == [3] * 5 + [4] * 5
    assert found.unknown.labels.tolist() == [i for i in range(4) for _ in range(5)]
    assert sorted(set(found.unknown.images[:, 0, 0, 0].tolist())) == [5, 6, 7, 8]  # in no other set
    turned = found.train.factors["pose"].abs().view(5, 5, 3)
    limits = torch.tensor([40.0, 0.0, 180.0])
    assert (turned[:3].amax(dim=(0, 1)) <= limits).all()
    assert (turned[3:].amax(dim=(0, 1)) <= TYPICAL * limits).all()
    assert turned[:3].amax(dim=(0, 1))[2] > 90
    assert found.new_poses.factors["pose"][:, 2].abs().max() > 60


def test_first_image_of_an_instance_is_canonical_except_among_the_new_poses():
    found = draw(Painted(), COUNTS, size=8, seed=3)
    for images, canonical in ((found.train, True), (found.unknown, True), (found.new_poses, False)):
        assert bool((images.factors["pose"][::5] == 0).all()) is canonical


def test_poses_depend_on_instance_and_number_alone():
    few, more = (draw(Painted(), replace(COUNTS, poses=n), size=8, seed=3).train for n in (3, 5))
    assert torch.equal(few.factors["pose"].view(5, 3, 3), more.factors["pose"].view(5, 5, 3)[:, :3])
    other = draw(Painted(), COUNTS, size=8, seed=4).train
    assert not torch.equal(other.factors["pose"], more.factors["pose"])


def test_partner_is_another_image_of_the_instance_and_all_others_occur():
    images = posed([2, 0, 1, 2, 0, 2, 1, 0, 0])
    seen = {index: set() for index in range(9)}
    for epoch in range(60):
        partners = images.partners(torch.arange(9), seed=0, epoch=epoch)
        assert torch.equal(images.labels[partners], images.labels)
        for index, partner in enumerate(partners.tolist()):
            seen[index].add(partner)
    for index, others in seen.items():
        assert others == {i for i in range(9) if images.labels[i] == images.labels[index] and i != index}


def test_partner_depends_on_the_image_and_epoch_and_not_on_the_batch():
    images = posed([0, 0, 0, 1, 1, 1])
    whole = images.partners(torch.arange(6), seed=1, epoch=2)
    assert torch.equal(images.partners(torch.tensor([4, 1]), seed=1, epoch=2), whole[[4, 1]])


@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_bring_the_partners(ranks):
    images = posed([0, 0, 0, 0, 1, 1, 1, 1])
    batches = [StepBatches(images, seed=0, batch_size=4, rank=rank, world_size=ranks)[1] for rank in range(ranks)]
    own = torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).long()
    others = torch.cat([batch.partners[:, 0, 0, 0] for batch in batches]).long()
    assert torch.equal(images.labels[own], images.labels[others])
    assert (own != others).all()
    assert torch.equal(others, images.partners(own, seed=0, epoch=0))
    assert batches[0].to(torch.device("cpu")).partners is not None


def test_batches_of_other_images_have_no_partners():
    plain = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, ())
    assert StepBatches(plain, seed=0, batch_size=2)[0].partners is None


def test_selected_images_still_form_pairs():
    images = posed([0, 0, 1, 1, 1]).select(torch.tensor([1, 0, 4, 3]))
    assert images.partners(torch.arange(4), seed=0, epoch=0).tolist() == [1, 0, 3, 2]


def test_instances_without_a_pair_are_refused():
    with pytest.raises(ValueError, match="instance 1 has one image, which forms no pair"):
        posed([0, 0, 1])
    with pytest.raises(ValueError, match="posed images need labels"):
        PosedImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, ())
    with pytest.raises(DataError, match=r"10 instances are asked for .*, and there are 9"):
        draw(Painted(), replace(COUNTS, unknown=5), size=8, seed=0)


def test_objects_of_the_pantry_turn_and_keep_their_looks():
    poses = torch.tensor([[0.0, 0, 0], [0, 0, 180], [90, 0, 0], [0, 0, 0]])
    images = PantryObjects().render(torch.tensor([0, 0, 0, 1]), poses, 24, 0).float()
    assert (images[0] - images[1].flip(1, 2)).abs().mean() < (images[0] - images[1]).abs().mean()
    assert (images[0] - images[3]).abs().mean() > 1
    assert torch.equal(PantryObjects().render(torch.tensor([1]), poses[3:], 24, 0)[0].float(), images[3])


@pytest.mark.skipif(objects3d.missing() is not None, reason=objects3d.missing() or "")
def test_meshes_turn():
    poses = torch.tensor([[0.0, 0, 0], [0, 0, 90], [0, 0, 0]])
    images = MeshObjects().render(torch.tensor([0, 0, 1]), poses, 32, 0).float()
    shown = (images != images[0, :, :1, :1]).any(dim=1)  # the light does not turn with the object, its outline does
    assert (shown[0].rot90() != shown[1]).float().mean() < 0.04
    assert (shown[0] != shown[1]).float().mean() > 0.05
    assert (shown[0] != shown[2]).float().mean() > 0.02
