# SPDX-License-Identifier: Apache-2.0
"""The small captioner's training, in a run folder of its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.data import tokenizer
from recipes_lib.data.loader import Batch
from recipes_lib.data.pairs import PairSet
from recipes_lib.distributed import world
from recipes_lib.errors import Interrupted, RunError
from recipes_lib.models.captioner import ToyCaptioner
from recipes_lib.models.sampling import Sampling
from recipes_lib.recipes.sieve import captioning
from recipes_lib.training import loop

TEXTS = ["a red mug", "a blue plate", "a green bowl on a table", "a jug"] * 4
WORDS = tokenizer.train(TEXTS, 300, 16)
CONFIG = captioning.CaptioningConfig(
    images=16,
    draw=0,
    image_size=16,
    sampling=Sampling(max_length=6),
    optim=OptimConfig(lr=3e-3, lr_start=0.0, lr_final=0.0, warmup_steps=1, clip=1.0),
    train=TrainConfig(epochs=None, steps=2, batch_size=8, threads=1, device="cpu", checkpoint_every=2),
)


def pairs() -> PairSet:
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return PairSet(images, None, (), texts=tuple(TEXTS), uids=tuple(f"{i:032x}" for i in range(16)))


def train(folder: Path, config: captioning.CaptioningConfig = CONFIG) -> ToyCaptioner:
    how = {"folder": folder, "place": world.start("cpu"), "go_on": "recipes resume HERE"}
    return captioning.captioner_of(pairs(), config, WORDS, **how)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_captioner_is_trained_for_its_steps_and_comes_ready_to_describe(tmp_path):
    captioner = train(tmp_path / "captioner")
    assert not captioner.training
    assert [line["step"] for line in lines(tmp_path / "captioner")] == [0, 1]
    assert lines(tmp_path / "captioner")[0]["loss"] == pytest.approx(torch.tensor(300.0).log().item(), rel=0.1)
    (texts,) = captioner.generate(pairs().images[:1], 3, torch.tensor([7]))
    assert len(texts) == 3


def test_a_finished_folder_is_read_and_not_trained_again(tmp_path, monkeypatch):
    first = train(tmp_path / "captioner")
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("it trained again"))
    again = train(tmp_path / "captioner")
    ours, theirs = first.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not again.training


@pytest.mark.parametrize("other", [{"draw": 1}, {"images": 15}, {"sampling": Sampling(top_p=0.5, max_length=6)}])
def test_a_folder_of_other_settings_is_refused_and_left_alone(tmp_path, other):
    train(tmp_path / "captioner")
    before = (tmp_path / "captioner" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="captioner is finished"):
        train(tmp_path / "captioner", replace(CONFIG, **other))
    assert (tmp_path / "captioner" / "model.safetensors").read_bytes() == before


def test_an_interrupted_user_is_told_how_to_go_on_and_the_steps_are_kept(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole").state_dict()
    fit = loop.fit

    def stopped(given, folder):
        fit(replace(given, steps=1), folder)
        raise Interrupted("Go on: recipes resume captioner")

    monkeypatch.setattr(loop, "fit", stopped)
    with pytest.raises(Interrupted, match=r"Training the captioner was interrupted.*Go on: recipes resume HERE$"):
        train(tmp_path / "captioner")
    monkeypatch.undo()
    assert train(tmp_path / "captioner").state_dict().keys() == whole.keys()
    assert [line["step"] for line in lines(tmp_path / "captioner")] == [0, 1]


def test_half_of_the_images_are_mirrored_and_each_by_itself():
    with torch.random.fork_rng():
        method = captioning.Captioning(ToyCaptioner(WORDS, image_size=16), seed=3)
    tokens = WORDS.encode(TEXTS)
    batch = Batch(torch.arange(16), 0, pairs().images, None, None, tokens=tokens)
    views = method.views(batch, step=0)
    plain = method.captioner.prepare(pairs().images)
    same = (views["images"] == plain).flatten(1).all(dim=1)
    flipped = (views["images"] == plain.flip(3)).flatten(1).all(dim=1)
    assert (same ^ flipped).all()
    assert 3 <= int(flipped.sum()) <= 13
    longest = int((tokens != 0).sum(dim=1).max())
    assert torch.equal(views["tokens"], tokens[:, :longest])  # nothing but padding is cut
    half = Batch(torch.arange(8, 16), 0, pairs().images[8:], None, None, tokens=tokens[8:])
    assert torch.equal(method.views(half, step=5)["images"], views["images"][8:])
    later = method.views(replace(batch, epoch=1), step=0)["images"]
    assert not torch.equal(later, views["images"])
