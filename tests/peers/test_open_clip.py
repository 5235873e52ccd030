# SPDX-License-Identifier: Apache-2.0
"""Parity with open_clip: losses and their gradients, the text tower with its weights, the tokenizer; and with the loss
of transformers' CLIP; and what the full-scale presets do to an image. Losses: float64, atol 1e-12, on one rank and on two
(``local_loss`` and ``gather_with_grad``); towers: float32, atol 1e-5; tokenizers: equal ids; images: equal at evaluation, in
training the same distribution of crops, resized to within 1/255.
"""

import csv
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from recipes_lib.data.tokenizer import clip_vocabulary, load
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.evaluation.features import read_chunks
from recipes_lib.models.text import TextTransformer
from recipes_lib.objectives.image_text import clip_loss, siglip_loss
from recipes_lib.randomness import sample_keys
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.switchback import recipe as switchback
from recipes_lib.views.multicrop import MultiCrop, eval_view

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")


def draw(count: int = 12, dim: int = 8) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, count, dim, generator=g, dtype=torch.float64)
    return [F.normalize(images, dim=1), F.normalize(texts, dim=1), torch.tensor(2.6, dtype=torch.float64)]


def share_of(inputs: list[Tensor]) -> list[Tensor]:
    """This rank's rows of the pairs, and the scalars, as fresh leaves."""
    ranks, rank = collectives.world_size(), collectives.rank()
    rows = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
    return [(x[rows] if x.dim() else x).clone().requires_grad_() for x in inputs]


def losses_and_gradients() -> dict[str, list[Tensor]]:
    """Ours and open_clip's, on this rank's share."""
    from open_clip.loss import ClipLoss, SigLipLoss

    ranks, rank = collectives.world_size(), collectives.rank()
    clip = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=ranks)
    siglip = SigLipLoss(rank=rank, world_size=ranks)
    bias = torch.tensor(-3.0, dtype=torch.float64)
    rivals = {
        "ours": (lambda f, g, a: clip_loss(f, g, a)["loss"], draw()),
        "theirs": (lambda f, g, a: clip(f, g, a.exp()), draw()),
        "our siglip": (lambda f, g, a, b: siglip_loss(f, g, a, b)["loss"], [*draw(), bias]),
        "their siglip": (lambda f, g, a, b: siglip(f, g, a.exp(), b), [*draw(), bias]),
    }
    results = {}
    for name, (loss, inputs) in rivals.items():
        leaves = share_of(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.distributed.nn, which open_clip gathers with
            value = loss(*leaves)
            results[name] = [value.detach(), *torch.autograd.grad(value, leaves)]
        if dist.is_initialized():
            dist.barrier()
    return results


def assert_equal(results: dict[str, list[Tensor]]) -> None:
    for ours, theirs in (("ours", "theirs"), ("our siglip", "their siglip")):
        torch.testing.assert_close(results[ours], results[theirs], rtol=0, atol=1e-12)


def test_losses_and_gradients_equal_open_clips_on_one_rank():
    assert_equal(losses_and_gradients())


@pytest.mark.distributed
def test_losses_and_gradients_equal_open_clips_on_two_ranks():
    for results in run_ranks(losses_and_gradients, 2):
        assert_equal(results)


def test_loss_equals_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.clip.modeling_clip", reason="transformers is not installed")
    images, texts, a = draw()
    theirs = modeling.image_text_contrastive_loss(texts @ images.T * a.exp())
    torch.testing.assert_close(clip_loss(images, texts, a)["loss"], theirs, rtol=0, atol=1e-12)


def test_text_tower_with_open_clips_weights_gives_its_features():
    from open_clip.transformer import TextTransformer as Peer

    torch.manual_seed(0)
    peer = Peer(context_length=20, vocab_size=60, width=32, heads=4, layers=3, output_dim=24)
    for weight in peer.parameters():  # biases and norms start at 0 and 1, which would hide a swap
        weight.data.add_(0.1 * torch.randn_like(weight))
    ours = TextTransformer(vocabulary=60, context=20, width=32, layers=3, heads=4, dim=24, end=59)
    ours.load_state_dict({name.replace("in_proj_", "in_proj."): w for name, w in peer.state_dict().items()})
    tokens = torch.randint(1, 59, (6, 20))
    for row, end in enumerate([1, 5, 9, 14, 15, 3]):
        tokens[row, end], tokens[row, end + 1 :] = 59, 0
    torch.testing.assert_close(ours(tokens), peer(tokens), rtol=0, atol=1e-5)


def test_text_tower_starts_as_open_clips_does():
    from open_clip.transformer import TextTransformer as Peer

    torch.manual_seed(0)
    peer = Peer(context_length=40, vocab_size=500, width=64, heads=4, layers=3, output_dim=48).state_dict()
    ours = TextTransformer(vocabulary=500, context=40, width=64, layers=3, heads=4, dim=48, end=499).state_dict()
    for name, weight in peer.items():
        if weight.dim() > 1:
            assert ours[name.replace("in_proj_", "in_proj.")].std().item() == pytest.approx(
                weight.std().item(), rel=0.05
            ), name


TEXTS = [
    "a photo of a cat",
    "",
    "  Two   SPACES\nand it's a line ",
    "DSC_0412.JPG",
    "Caf\u00e9 cr\u00e8me &amp; 12,345 croissants",
    "\U0001fad6 \u6f22\u5b57 mug",
    "word " * 2000,
]


@pytest.fixture(scope="module")
def pair():
    return clip_vocabulary(), open_clip.SimpleTokenizer()


def test_clip_vocabulary_gives_open_clips_ids(pair):
    ours, peer = pair
    assert ours.encode(TEXTS).tolist() == peer(TEXTS).tolist()
    assert (ours.vocabulary, ours.start, ours.end, ours.context) == (49408, 49406, 49407, 77)
    assert clip_vocabulary(16).encode(TEXTS).tolist() == peer(TEXTS, context_length=16).tolist()


def test_clip_vocabulary_comes_back_from_ids_and_from_a_file(pair, tmp_path):
    ours, _ = pair
    assert ours.decode(ours.encode(["A photo of a cat!"])[0]) == "a photo of a cat !"
    ours.save(tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json").encode(TEXTS).tolist() == ours.encode(TEXTS).tolist()


def test_real_alt_texts_have_open_clips_ids(pair, recipes_data):
    ours, peer = pair
    with (recipes_data / "wiki_alttext64/texts.csv").open(encoding="utf-8", newline="") as file:
        texts = [cell for row in csv.DictReader(file) for cell in row.values()]
    assert ours.encode(texts).tolist() == peer(texts).tolist()


FULL_SCALE = {
    name: preset.views
    for name, preset in {**clip.PRESETS, **switchback.PRESETS}.items()
    if name.startswith("datacomp") or name.endswith("laion2b")
}
NORMALIZATION = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


class Photos:
    """Two images, one wide and one high, as a loader opens them."""

    def __len__(self) -> int:
        return 2

    def open(self, index: int) -> PIL.Image.Image:
        coarse = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(index))
        sides = ((260, 410), (300, 280))[index]
        pixels = F.interpolate(coarse[None], sides, mode="bilinear")[0].mul(255).byte()
        return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("preset", FULL_SCALE)
def test_full_scale_presets_see_at_evaluation_what_open_clip_sees(preset):
    views = FULL_SCALE[preset]
    theirs = open_clip.image_transform(224, is_train=False, **NORMALIZATION)
    (chunk,) = read_chunks(Photos(), 224, 2, resize=views.resize)
    ours = eval_view(chunk, 224, views.normalize, views.resize)
    torch.testing.assert_close(ours, torch.stack([theirs(Photos().open(i)) for i in range(2)]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", FULL_SCALE)
def test_full_scale_presets_cut_crops_as_open_clip_does(preset):
    views = FULL_SCALE[preset]
    crop, *others = open_clip.image_transform(224, is_train=True, **NORMALIZATION).transforms
    assert (views.global_scale, views.image_size) == (tuple(crop.scale), 224)
    assert crop.interpolation.value == views.resize
    known = [
        "_convert_to_rgb",
        "MaybeConvertMode",
        "MaybeToTensor",
        "ToTensor",
        "Normalize",
    ]  # by release; nothing else alters an image
    assert all(getattr(other, "__name__", type(other).__name__) in known for other in others)
    assert (views.flip, views.jitter, views.grayscale, views.blur) == (0, 0, 0, 0)
    image, cropper = Photos().open(0), MultiCrop(views, seed=0)
    (ours,) = cropper.crop_one(image, 0, 0)
    keys = sample_keys(0, 0, torch.tensor([0]))
    boxes, _ = cropper._places(cropper.kinds[0], keys, image.height, image.width)
    theirs = TF.resized_crop(image, *boxes[0, 0].tolist(), [224, 224], InterpolationMode.BICUBIC)
    difference = ours.int() - torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
    assert difference.abs().max() <= 1
