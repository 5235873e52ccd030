# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes_lib.config import EvalConfig
from recipes_lib.data import splits
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.errors import DataError
from recipes_lib.evaluation import probes
from recipes_lib.evaluation.features import Features
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.evaluation.linear import linear_probe
from recipes_lib.evaluation.lowshot import low_shot
from recipes_lib.evaluation.snn import nearest_neighbours

LABELS, TEST_LABELS = torch.arange(90) % 3, torch.arange(60) % 3


def features(count: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 8, generator=generator)
    rows[:, :3] += torch.eye(3)[torch.arange(count) % 3]
    return Features(final=rows[:, :6], before_norm=rows)


TRAIN, TEST = features(90, 0), features(60, 1)


def image_set(labels: torch.Tensor | None) -> ImageSet:
    count = 6 if labels is None else len(labels)
    return ImageSet(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), labels, ("a", "b", "c"))


def test_each_probe_reads_its_features_with_its_values():
    config = EvalConfig(neighbours=7, neighbour_temperature=0.2, labels_per_class=4, lowshot_penalty=0.075)
    result = probes.run_probes(config, TRAIN, LABELS, TEST, TEST_LABELS, seed=0)
    knn = weighted_knn(TRAIN.final, LABELS, TEST.final, TEST_LABELS, k=7, temperature=0.2)
    linear = linear_probe(TRAIN.before_norm, LABELS, TEST.before_norm, TEST_LABELS, seed=0)
    choices = [splits.few_per_class(LABELS, 4, seed) for seed in (0, 1, 2)]
    few = low_shot(TRAIN.before_norm, LABELS, TEST.before_norm, TEST_LABELS, choices=choices, penalty=0.075)
    assert result.scores == {"knn": knn, "linear": linear, "lowshot": few.mean}
    assert result.spread == {"lowshot": few.std}


def test_soft_nearest_neighbours_compare_embeddings_where_there_are_some():
    config = EvalConfig(probes=("snn",))
    final = nearest_neighbours(TRAIN.final, LABELS, TEST.final, TEST_LABELS)
    assert probes.run_probes(config, TRAIN, LABELS, TEST, TEST_LABELS, seed=0).scores == {"snn": final}
    train, test = (replace(f, embedding=f.final[:, 3:]) for f in (TRAIN, TEST))  # which know nothing of the classes
    embedded = nearest_neighbours(train.embedding, LABELS, test.embedding, TEST_LABELS)
    assert probes.run_probes(config, train, LABELS, test, TEST_LABELS, seed=0).scores == {"snn": embedded}
    assert embedded < final


def test_only_the_probes_asked_for_are_run():
    result = probes.run_probes(EvalConfig(probes=("knn",)), TRAIN, LABELS, TEST, TEST_LABELS, seed=0)
    assert list(result.scores) == ["knn"]
    assert result.spread == {}
    assert probes.run_probes(EvalConfig(probes=()), TRAIN, LABELS, TEST, TEST_LABELS, seed=0).scores == {}


def test_named_images_take_the_place_of_drawn_ones():
    chosen = torch.tensor([0, 1, 2, 3, 4, 5])
    config = EvalConfig(probes=("lowshot",))
    result = probes.run_probes(config, TRAIN, LABELS, TEST, TEST_LABELS, seed=0, labelled=chosen)
    few = low_shot(TRAIN.before_norm, LABELS, TEST.before_norm, TEST_LABELS, choices=[chosen])
    assert result.scores["lowshot"] == few.mean


def test_two_seeds_share_no_choice_of_labels():
    config = EvalConfig(labels_per_class=4)
    choices = [tuple(c.tolist()) for seed in (0, 1) for c in probes._draw_labelled(config, LABELS, seed)]
    assert len(set(choices)) == 6


@pytest.mark.parametrize(
    ("train", "test", "changes", "text"),
    [
        (None, LABELS, {}, "The training images have no labels"),
        (LABELS, None, {}, "The test images have no labels"),
        (LABELS, LABELS, {"neighbours": 91}, "eval.neighbours = 91, but there are 90 labelled training images"),
        (LABELS * 0, LABELS, {}, "The labelled training images are all of class 'a'"),
        (LABELS, LABELS, {"labels_per_class": 31}, "Class 0 has 30 labelled images, but 31 per class are wanted"),
    ],
)
def test_what_a_probe_will_lack_is_told_before_training(train, test, changes, text):
    data = Splits(image_set(train), image_set(test))
    with pytest.raises(DataError, match=text):
        probes.require_labels(data, EvalConfig(**changes))
    probes.require_labels(data, EvalConfig(probes=(), **changes))  # no probe, no need


def test_training_rows_without_a_label_are_left_out():
    half = torch.where(torch.arange(90) < 45, LABELS, UNLABELLED)
    config, few = EvalConfig(neighbours=7), torch.tensor([0, 1, 2, 3, 4, 5])
    ours = probes.run_probes(config, TRAIN, half, TEST, TEST_LABELS, seed=0, labelled=few)
    expected = TRAIN.select(torch.arange(45))
    assert ours == probes.run_probes(config, expected, LABELS[:45], TEST, TEST_LABELS, seed=0, labelled=few)


def test_factors_are_read_of_all_images_and_the_class_where_none_is_hidden():
    weight = [{"weight": rows.before_norm[:, 3] + rows.before_norm[:, 4]} for rows in (TRAIN, TEST)]
    sides = [
        replace(image_set(labels), factors=known) for labels, known in zip((LABELS, TEST_LABELS), weight, strict=True)
    ]
    found = probes.read_factors(TRAIN, sides[0], TEST, sides[1])
    assert list(found) == ["label", "weight"]
    assert found["weight"] == pytest.approx(1, abs=1e-6)
    assert 0.1 < found["label"] < 1
    hidden = replace(sides[0], labels=torch.where(torch.arange(90) < 45, LABELS, UNLABELLED))
    assert probes.read_factors(TRAIN, hidden, TEST, sides[1]) == {"weight": found["weight"]}


def test_probes_that_read_no_class_from_frozen_features_need_no_labels_and_give_no_score_here():
    config = EvalConfig(probes=("factors", "finetune"))
    assert probes.run_probes(config, TRAIN, None, TEST, None, seed=0) == probes.ProbeScores({}, {})


def test_what_factors_and_finetuning_will_lack_is_told_before_training():
    factors = EvalConfig(probes=("factors",))
    plain = Splits(image_set(LABELS), image_set(TEST_LABELS))
    with pytest.raises(DataError, match=r"needs images whose true factors are known: --data\.name pantry or digits"):
        probes.require_labels(plain, factors)
    known = replace(image_set(None), factors={"size": torch.arange(6)})
    with pytest.raises(DataError, match="factors needs 10 training images, and there are 6"):
        probes.require_labels(Splits(known, known), factors)
    many = replace(plain.train, labels=None, factors={"size": torch.arange(90)})
    probes.require_labels(Splits(many, known), factors)  # factors are no labels
    with pytest.raises(DataError, match="The training images have no labels"):
        probes.require_labels(Splits(many, known), EvalConfig(probes=("factors", "finetune")))
    one = replace(plain, train=image_set(LABELS[:1]))
    with pytest.raises(DataError, match=r"There are 1 labelled images to fine-tune on"):
        probes.require_labels(one, EvalConfig(probes=("finetune",)))


def test_named_images_are_looked_up_among_those_with_a_label(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("a_3.JPEG\na_0.JPEG\n")
    names = np.array([f"a/a_{i}.JPEG" for i in range(4)])
    files = ImageFiles(tmp_path, names, torch.tensor([0, UNLABELLED, 0, 0]), ("a",))
    assert probes.labelled_indices(path, Splits(files, files)).tolist() == [2, 0]
    assert probes.labelled_indices(None, Splits(files, files)) is None
    path.write_text("a_1.JPEG")
    with pytest.raises(DataError, match=r"line 1: 'a_1\.JPEG' has no label\. Take the line out"):
        probes.labelled_indices(path, Splits(files, files))


def test_an_image_in_memory_is_called_by_its_number_whatever_was_left_out_before_it(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("7\n3\n")
    train = image_set(LABELS).select(torch.tensor([1, 3, 5, 7]))
    assert probes.labelled_indices(path, Splits(train, train)).tolist() == [3, 1]


@pytest.mark.parametrize("probe", ["knn", "linear", "snn", "lowshot", "finetune"])
def test_images_of_one_class_are_refused_for_any_probe_could_only_be_right(probe):
    one = replace(image_set(LABELS), labels=torch.zeros(90, dtype=torch.long))
    with pytest.raises(DataError, match=r"all of class 'a'.*probes need two classes"):
        probes.require_labels(Splits(one, one), EvalConfig(probes=(probe,)))
