# SPDX-License-Identifier: Apache-2.0
"""What Sieve scores with: a CLIP of ours or of open_clip, and configs of all three models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("pyarrow")

from recipes_lib.config import override
from recipes_lib.errors import ConfigError, DataError, Faults, RunError
from recipes_lib.pretraining import engine
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.sieve import models
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.recipes.sieve.models import CaptionerConfig, ClipConfig, Towers

SMALL = override(
    clip.PRESETS["toy"], {"model.dim": 16, "model.text_width": 32, "model.text_layers": 1, "train.steps": 1}
)
TEXTS = ["a red mug", "a plate", "a red mug"]


def pictures(*sides: int) -> list[Image.Image]:
    g = np.random.default_rng(0)
    return [Image.fromarray(g.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]


def test_the_similarity_of_our_towers_is_the_cosine_of_image_and_text():
    method = engine.build(clip.RECIPE, SMALL, steps=1).eval()
    images = pictures(32, 32, 32)
    found = Towers(SMALL, method).similarity(images, TEXTS)
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        seen = method.image_projection(method.backbone((pixels - mean[:, None, None]) / deviation[:, None, None]))
        read = method.text(method.encode_texts(TEXTS))
    torch.testing.assert_close(found, torch.cosine_similarity(seen, read), rtol=1e-4, atol=1e-5)


def test_images_of_every_side_and_mode_are_compared_each_as_it_would_be_alone():
    towers = Towers(SMALL, engine.build(clip.RECIPE, SMALL, steps=1))
    assert not towers.method.training
    images = [pictures(40)[0], pictures(50)[0].convert("L"), pictures(64)[0].resize((20, 70))]
    together = towers.similarity(images, TEXTS)
    alone = [towers.similarity([image], [text])[0] for image, text in zip(images, TEXTS, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_a_run_of_another_recipe_is_no_clip(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        Towers.reopen(tmp_path)
    for name in ("msn", "sieve"):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"recipe": name}))
        with pytest.raises(DataError, match=rf"is a run of {name}, and no CLIP\. Give one of recipe clip\."):
            Towers.reopen(tmp_path)


@pytest.fixture
def tiny_arch(tmp_path: Path) -> str:
    """An architecture that open_clip knows from here on."""
    open_clip = pytest.importorskip("open_clip")
    parts = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "cookbook-tiny.json").write_text(json.dumps(parts))
    open_clip.add_model_config(tmp_path / "cookbook-tiny.json")
    return "cookbook-tiny"


def test_the_similarity_by_open_clip_is_the_cosine_of_its_features(tmp_path, tiny_arch):
    import open_clip

    with torch.random.fork_rng():
        model, _, view = open_clip.create_model_and_transforms(tiny_arch)
    torch.save(model.eval().state_dict(), tmp_path / "weights.pt")
    images = pictures(32, 48, 64)
    ours = models.OpenClip(tiny_arch, str(tmp_path / "weights.pt"), torch.device("cpu"))
    found = ours.similarity(images, TEXTS)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([view(image) for image in images]))
        read = model.encode_text(open_clip.get_tokenizer(tiny_arch)(TEXTS))
    torch.testing.assert_close(found, torch.cosine_similarity(seen, read), rtol=1e-4, atol=1e-5)
    assert found.shape == (3,)


@pytest.mark.parametrize("arch", ["no-such-arch", "cookbook-tiny"])
def test_a_clip_that_is_absent_is_one_line_with_its_name(arch, tiny_arch, tmp_path):
    weights = str(tmp_path / "nowhere.pt")
    with pytest.raises(DataError, match=rf"clip\.arch = {arch}, clip\.weights = .*nowhere\.pt cannot be") as error:
        models.OpenClip(arch, weights, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_captioner_whose_weights_are_absent_or_whose_captions_are_too_long_is_one_line(tmp_path, monkeypatch):
    config = override(sieve.PRESETS["toy"], {"captioner.name": "blip", "captioner.weights": str(tmp_path / "nowhere")})
    place = type("Place", (), {"device": torch.device("cpu")})
    with pytest.raises(DataError, match=r"No BLIP could be loaded from .*nowhere") as error:
        models.captioner_of(config, None, place)
    assert "\n" not in str(error.value)

    def too_long(*_, **__):
        raise ValueError("max_length = 900 and a prompt of 4 tokens exceed the 512 positions of x.")

    monkeypatch.setattr(models, "HFBlipCaptioner", too_long)
    with pytest.raises(ConfigError, match=r"captioner\.max_length is not allowed: max_length = 900 .* 512 positions"):
        models.captioner_of(config, None, place)


def test_no_clip_is_none():
    assert models.clip_of(override(sieve.PRESETS["toy"], {"clip.name": "none"}), None, None) is None


def test_a_toy_clip_is_the_chapters_own_on_noisy_pairs_that_are_not_the_pools():
    config = override(sieve.PRESETS["toy"], {"data.draw": 2, "clip.steps": 7, "clip.images": 300, "score.seed": 5})
    toy = models.toy_clip(config)
    toy.validate()
    assert (toy.data.texts, toy.data.train_size, toy.data.draw) == ("web", 300, 8)  # the pool's is 6, the captioner's 7
    assert (toy.train.steps, toy.train.seed) == (7, 5)
    base = clip.PRESETS["toy"]
    assert (toy.model, toy.optim, toy.loss, toy.views) == (base.model, base.optim, base.loss, base.views)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (CaptionerConfig(), r"captioner\.weights = None does not fit captioner\.name = blip: add --captioner\.weights"),
        (CaptionerConfig(name="toy", weights="x"), r"captioner\.weights = x does not fit captioner\.name = toy: leave"),
        (CaptionerConfig(name="toy", count=0), r"captioner\.count = 0 .*at least 1\. The paper uses 8"),
        (CaptionerConfig(name="toy", top_p=0.0), r"captioner\.top_p = 0\.0 .*\(0, 1\]"),
        (CaptionerConfig(name="toy", min_length=9, max_length=8), r"captioner\.min_length, max_length = \(9, 8\)"),
        (CaptionerConfig(name="toy", max_length=32), r"captioner\.max_length = 32 .*below 32 with captioner\.name toy"),
        (CaptionerConfig(name="toy", repetition_penalty=0.5), r"captioner\.repetition_penalty = 0\.5 .*at least 1"),
        (CaptionerConfig(name="toy", images=1), r"captioner\.images = 1 .*at least 2"),
        (CaptionerConfig(name="toy", steps=0), r"captioner\.steps = 0 .*at least 1"),
        (
            ClipConfig(name="open_clip"),
            r"clip\.weights = None does not fit clip\.name = open_clip: add --clip\.weights",
        ),
        (ClipConfig(name="run"), r"clip\.run = None does not fit clip\.name = run: add --clip\.run"),
        (ClipConfig(run=Path("x")), r"clip\.run = x does not fit clip\.name = none: leave it out"),
        (ClipConfig(name="toy", images=100), r"clip\.images = 100 .*at least 256, one batch"),
        (ClipConfig(name="toy", steps=0), r"clip\.steps = 0 .*at least 1"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(group, words):
    faults = Faults()
    group.check(faults)
    with pytest.raises(ConfigError, match=words) as error:
        faults.raise_any()
    assert "\n" not in str(error.value)
