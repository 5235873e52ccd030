# SPDX-License-Identifier: Apache-2.0
import copy
import json
import math
import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import DataConfig, EvalConfig, TrainConfig
from recipes_lib.config.views import ViewsConfig
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.distributed import world
from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import DataError, Diverged, Interrupted, RunError
from recipes_lib.evaluation.features import extract
from recipes_lib.evaluation.finetune import Classifier, finetune, global_batch
from recipes_lib.evaluation.snn import nearest_neighbours
from recipes_lib.models.convnet import ConvNet
from recipes_lib.training import checkpoint, log

STEPS = 8


@dataclass(frozen=True)
class Config:
    """What fine-tuning reads of a recipe's config: 24 images in batches of 12, so two steps an epoch."""

    data: DataConfig = field(default_factory=lambda: DataConfig(name="digits", image_size=8))
    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(image_size=8, flip=0.0))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(threads=1, device="cpu", checkpoint_every=3, seed=5))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(finetune_epochs=4.0, finetune_batch_size=12))


CONFIG = Config()


def shaded(count: int, seed: int = 0) -> ImageSet:
    """Images of three classes: reddish, greenish, bluish."""
    labels = torch.arange(count) % 3
    images = torch.randint(0, 100, (count, 3, 8, 8), generator=randomness.generator(seed, 0, "images"))
    images[torch.arange(count), labels] += 120
    return ImageSet(images.to(torch.uint8), labels, ("red", "green", "blue"))


DATA = Splits(shaded(24), shaded(15, seed=1))


def net() -> tuple[nn.Module, nn.Sequential]:
    """A backbone of frozen weights with batch norm and dropout, and a layer of a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [
            nn.Conv2d(3, 6, 3, bias=False),
            CrossRankBatchNorm(6),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1),
        ]
        backbone = nn.Sequential(*parts, nn.Flatten()).requires_grad_(False)
        backbone.num_features = 6
        return backbone, nn.Sequential(nn.Linear(6, 10, bias=False), CrossRankBatchNorm(10), nn.ReLU())


def tune(folder: Path, config: Config = CONFIG, data: Splits = DATA, parts: tuple | None = None) -> float:
    backbone, layer = parts or net()
    place = world.start("cpu")
    return finetune(backbone, layer, data, config, folder=folder, place=place, go_on="recipes evaluate RUN")


def changed(**values: object) -> Config:
    return replace(CONFIG, eval=replace(CONFIG.eval, **values))


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.read_weights(folder / "model.safetensors")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    tune(folder)
    return folder


def test_the_first_loss_is_that_of_a_layer_of_zeros_and_the_rate_falls_to_zero(whole):
    told = lines(whole)
    assert len(told) == STEPS
    assert told[0]["loss"] == pytest.approx(math.log(3))
    rates = [line["lr"] for line in told]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)])


def test_every_weight_learns_and_those_that_were_handed_over_stay(tmp_path):
    parts = net()
    before = copy.deepcopy([part.state_dict() for part in parts])
    tune(tmp_path / "finetune", parts=parts)
    for part, old in zip(parts, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in part.state_dict().items())
    tuned = weights(tmp_path / "finetune")
    start = {f"backbone.{k}": v for k, v in before[0].items()} | {f"layer.{k}": v for k, v in before[1].items()}
    assert tuned.keys() == {*start, "linear.weight", "linear.bias"}
    assert [name for name, tensor in start.items() if torch.equal(tensor, tuned[name])] == []
    assert tuned["linear.weight"].shape == (3, 10)


def test_it_learns_the_classes_with_and_without_a_layer(tmp_path):
    config = changed(finetune_epochs=20.0, finetune_lr=0.5)
    assert tune(tmp_path / "with", config) > 0.9
    assert tune(tmp_path / "without", config, parts=(net()[0], None)) > 0.9
    assert weights(tmp_path / "without")["linear.weight"].shape == (3, 6)


def test_a_finished_one_is_read_and_not_trained_again(whole, tmp_path):
    report = json.loads((whole / "report.json").read_text())
    assert report["steps"] == STEPS
    stamp = (whole / "model.safetensors").stat().st_mtime_ns
    assert tune(whole) == report["accuracy"]
    assert (whole / "model.safetensors").stat().st_mtime_ns == stamp


def test_images_without_a_label_are_not_learned_from(tmp_path):
    train = replace(DATA.train, labels=torch.where(torch.arange(24) < 15, DATA.train.labels, UNLABELLED))
    tune(tmp_path / "hidden", data=replace(DATA, train=train))
    tune(tmp_path / "fewer", data=replace(DATA, train=DATA.train.select(torch.arange(15))))
    assert lines(tmp_path / "hidden")[-1]["loss"] == lines(tmp_path / "fewer")[-1]["loss"]


def test_files_are_cropped_as_images_in_memory_are_seen(tmp_path):
    for split, images in (("train", DATA.train), ("test", DATA.test)):
        for number, image in enumerate(images.images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{split}{number}.png")
    names = {
        split: np.array([f"{split}{i}.png" for i in range(count)]) for split, count in (("train", 24), ("test", 15))
    }
    kinds = DATA.train.class_names
    train = ImageFiles(tmp_path, names["train"], DATA.train.labels, kinds)
    files = Splits(train, ImageFiles(tmp_path, names["test"], DATA.test.labels, kinds))
    assert 0 <= tune(tmp_path / "files", data=files) <= 1
    tune(tmp_path / "memory")
    first, second = lines(tmp_path / "files")[1]["loss"], lines(tmp_path / "memory")[1]["loss"]
    assert first == pytest.approx(second, abs=0.05)  # crops of files are rounded to bytes


def in_a_process(folder: Path, deadly: tuple | None = None) -> int:
    process = multiprocessing.get_context("fork").Process(target=_tune_or_die, args=(folder, deadly))
    process.start()
    process.join(60)
    return process.exitcode


def _tune_or_die(folder: Path, deadly: tuple | None) -> None:
    torch.set_num_threads(1)
    if deadly:
        place, name = deadly
        function = getattr(*place)

        def die(*arguments: object) -> None:
            if name in str(arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            function(*arguments)

        setattr(*place, die)
    tune(folder)


def test_killed_anywhere_it_ends_with_the_same_bits(whole, tmp_path):
    folder = tmp_path / "finetune"
    logged = (log.RunLog, "step")
    for deadly in [
        (logged, " 1, {"),  # before the first checkpoint
        ((os, "rename"), "step-000003"),  # with the checkpoint's files written and not yet in place
        (logged, " 4, {"),  # between checkpoints
        ((checkpoint, "write_weights"), "model.safetensors"),  # all trained, nothing reported
    ]:
        assert in_a_process(folder, deadly) == -signal.SIGKILL
        assert not (folder / "report.json").exists()
    assert in_a_process(folder) == 0
    ours, expected = weights(folder), weights(whole)
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
    assert [line["loss"] for line in lines(folder)] == [line["loss"] for line in lines(whole)]
    assert (folder / "report.json").read_text() == (whole / "report.json").read_text()


def test_a_signal_is_told_with_the_command_that_goes_on(whole, tmp_path, monkeypatch):
    write = log.RunLog.step

    def step_then_ask(self: log.RunLog, number: int, metrics: dict) -> None:
        write(self, number, metrics)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.RunLog, "step", step_then_ask)
    with pytest.raises(Interrupted, match=r"^Fine-tuning was interrupted; .* Go on: recipes evaluate RUN$"):
        tune(tmp_path / "finetune")
    monkeypatch.undo()
    tune(tmp_path / "finetune")
    ours, expected = weights(tmp_path / "finetune"), weights(whole)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_other_weights_and_other_settings_are_refused_and_nothing_is_changed(whole):
    parts = net()
    with torch.no_grad():
        parts[1][0].weight[0, 0] += 1e-3
    report = (whole / "report.json").read_bytes()
    with pytest.raises(RunError, match=r"finetune was fine-tuned from other weights\. Move it away"):
        tune(whole, parts=parts)
    with pytest.raises(RunError, match=r"fine-tuned with other settings \(optim\)"):
        tune(whole, changed(finetune_lr=0.03))
    assert (whole / "report.json").read_bytes() == report


def test_a_folder_from_before_a_field_was_known_is_read_where_the_field_has_its_default(whole, tmp_path):
    old = tmp_path / "finetune"
    shutil.copytree(whole, old)
    values = yaml.safe_load((old / "config.yaml").read_text())
    del values["objective"], values["views"]["solarize_threshold"]
    (old / "config.yaml").write_text(yaml.safe_dump(values))
    assert tune(old) == json.loads((whole / "report.json").read_text())["accuracy"]
    with pytest.raises(RunError, match=r"fine-tuned with other settings \(.*objective.*\)"):
        tune(old, changed(finetune_objective="suncet"))


# SuNCEt


def embedding_net() -> tuple[nn.Module, nn.Sequential]:
    """A backbone with features as probes read them, and an embedding head, both with batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ConvNet().requires_grad_(False)
        return backbone, nn.Sequential(nn.Linear(128, 8), CrossRankBatchNorm(8), nn.ReLU(), nn.Linear(8, 8))


SUNCET = changed(finetune_objective="suncet", finetune_lr=2.0, finetune_epochs=30.0)


@pytest.fixture(scope="module")
def neighbourly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning run under SuNCEt."""
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    tune(folder, SUNCET, parts=embedding_net())
    return folder


def test_suncet_trains_the_embeddings_that_neighbours_compare_and_adds_no_layer(neighbourly):
    backbone, head = embedding_net()
    tuned = weights(neighbourly)
    assert {key.partition(".")[0] for key in tuned} == {"backbone", "layer"}
    moved = [name for name, p in backbone.named_parameters() if not torch.equal(p, tuned[f"backbone.{name}"])]
    assert moved == [name for name, _ in backbone.named_parameters()]
    told = lines(neighbourly)
    assert told[-1]["own_class"] > told[0]["own_class"] + 0.1
    rates = [line["lr"] for line in told]
    assert (rates[0], min(rates)) == pytest.approx((2.0, 0.2), rel=1e-2)
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in tuned.items() if k.startswith("backbone.")})
    head.load_state_dict({k.removeprefix("layer."): v for k, v in tuned.items() if k.startswith("layer.")})
    how = {"image_size": 8, "normalize": CONFIG.views.normalize, "embed": head.eval()}
    train, test = (extract(backbone, images, **how).embedding for images in (DATA.train, DATA.test))
    right = nearest_neighbours(train, DATA.train.labels, test, DATA.test.labels)
    assert json.loads((neighbourly / "report.json").read_text())["accuracy"] == pytest.approx(right)


def test_suncet_leaves_the_statistics_of_batch_norm_as_they_were(neighbourly):
    tuned = weights(neighbourly)
    for name, buffer in embedding_net()[0].named_buffers():
        assert torch.equal(tuned[f"backbone.{name}"], buffer)


def test_suncet_sees_two_views_of_equally_many_images_of_each_class(tmp_path, monkeypatch):
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, views: seen.append(views) or forward(self, views))
    tune(tmp_path / "finetune", replace(SUNCET, eval=replace(SUNCET.eval, finetune_epochs=1.0)), parts=embedding_net())
    for views in seen:
        assert views["images"].shape == (24, 3, 8, 8)  # 12 images
        assert views["labels"][:12].bincount().tolist() == [4, 4, 4]
        assert torch.equal(views["labels"][:12], views["labels"][12:])


def test_a_batch_of_fewer_images_than_classes_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(DataError, match=r"finetune_batch_size = 2: too few for 3 at a time.*equally many of 3 classes"):
        tune(tmp_path / "finetune", changed(finetune_objective="suncet", finetune_batch_size=2), parts=embedding_net())
    assert global_batch(640, 4000, 1, 10) == 640
    assert global_batch(14, 24, 2, 3) == 12


def test_a_loss_that_is_not_finite_is_told_with_the_field_to_lower(tmp_path):
    with pytest.raises(Diverged, match=r"diverged at step \d+.* below eval\.finetune_lr = 1e\+30: .*config\.yaml"):
        tune(tmp_path / "finetune", changed(finetune_lr=1e30))


def test_a_batch_is_what_was_asked_for_and_divides_among_the_processes():
    assert global_batch(1024, 60, 1) == 60
    assert global_batch(12, 60, 1) == 12
    assert global_batch(1024, 63, 4) == 60
    for wanted, available, processes in [(1024, 1, 1), (3, 60, 2), (1024, 7, 4)]:
        with pytest.raises(DataError, match=rf"There are {available} labelled images .* = {wanted}: too few for"):
            global_batch(wanted, available, processes)


def tune_here(folder: str) -> dict[str, Tensor]:
    backbone, layer = net()
    backbone[3] = nn.Identity()  # dropout draws for the images of a process
    tune(Path(folder), parts=(backbone, layer))
    return weights(Path(folder))


@pytest.mark.distributed
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    alone = tune_here(str(tmp_path / "one"))
    both = run_ranks(tune_here, 2, str(tmp_path / "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(both[0][name], tensor, rtol=1e-4, atol=1e-5)
