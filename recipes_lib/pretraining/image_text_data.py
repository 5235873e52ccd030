# SPDX-License-Identifier: Apache-2.0
"""Image-text pairs for a recipe: the Pantry with captions or with alt-texts as on the web, or shards from disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from recipes_lib.config import DataConfig
from recipes_lib.config.views import ViewsConfig
from recipes_lib.data import pantry
from recipes_lib.data.load import Splits
from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pantry import alt_text, captions
from recipes_lib.data.pools import shards, uids
from recipes_lib.data.pools.shard_pairs import ShardPairs
from recipes_lib.distributed import collectives
from recipes_lib.errors import DamagedImage, DataError, Faults

VOCABULARY_SEED = 1234
"""Seed of the texts that the Pantry's vocabulary is learned from; no run trains or tests on them."""


@dataclass(frozen=True, kw_only=True)
class PairData(DataConfig):
    """Which image-text pairs the run uses, and where they come from."""

    name: Literal["pantry", "shards"] = "shards"
    """Name of the data. ``pantry`` comes with the library. ``shards``: tar files of webdataset's layout in ``root``."""
    texts: Literal["captions", "web"] = "captions"
    """``pantry`` only. captions: every text is true of its image;
    web: alt-texts of all kinds, about half of which do not describe their image."""
    draw: int = 0
    """``pantry`` only. Seed of the pictures and texts, at least 0."""
    subset: Path | None = None
    """File of uids (``.npy``, DataComp's format) of the pairs to train on; None: all pairs.
    ``recipes run sieve`` writes such a file."""
    test_root: Path | None = None
    """``shards`` only. Folder of held-out shards, for retrieval."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.draw >= 0, "data.draw", self.draw, "of at least 0")
        if self.name == "pantry" and self.test_root is not None:
            faults.add(f"data.test_root = {self.test_root} has no use here: data.name pantry draws its own test pairs.")
        unused = {
            "tail": 0.0,
            "holdout": 0.0,
            "scenes": "natural",
            "classes_per_batch": None,
            "repeats": 1,
            "share": 1.0,
        }
        for name, only in unused.items():
            found = getattr(self, name)
            faults.need(found == only, f"data.{name}", found, f"of {only}: pairs have no such option")


@dataclass(frozen=True, kw_only=True)
class PairViews(ViewsConfig):
    """One view per image with little augmentation, so that its text stays true. :data:`OPEN_CLIP` is open_clip's."""

    global_views: int = 0
    """Always 0: the only view of an image is the one that is compared with its text."""
    global_scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest area of the crop, as a share of the image's area."""
    local_views: int = 0
    """Always 0: see ``global_views``."""
    flip: float = 0.0
    """Probability of mirroring left to right. It makes texts wrong that say left or right, and reverses letters."""
    jitter: float = 0.0
    """Probability of colour jitter. It makes texts wrong that name colours."""
    grayscale: float = 0.0
    """Probability of turning a view grey. It makes texts wrong that name colours."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    patch_dropout: float = 0.0
    """Share of patches that a Vision Transformer drops in training, in [0, 1); they are drawn anew each time."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(0 <= self.patch_dropout < 1, "views.patch_dropout", self.patch_dropout, "in [0, 1)")

    def check_anchors(self, faults: Faults) -> None:
        """Adds a fault to ``faults`` if the config asks for a second view, for which there is no text."""
        for name in ("global_views", "local_views"):
            faults.need(getattr(self, name) == 0, f"views.{name}", getattr(self, name), "of 0: a text has one image")


OPEN_CLIP = PairViews(normalize="openai", resize="bicubic")
"""The view of open_clip's default options, in training and evaluation; the full-scale presets use it."""


def load(data: PairData, warn: Callable[[str], None]) -> Splits:
    """Loads the training pairs and the test pairs. The Pantry's test pairs always have true captions.

    Shards without a ``test_root`` have no test pairs; the training pairs take their place.

    Raises: ``DataError`` in one line if the data is missing, damaged or of the wrong kind.
    """
    if data.name == "pantry":
        mix = alt_text.Mix() if data.texts == "web" else alt_text.CLEAN
        train = alt_text.pool(data.train_size, size=data.image_size, seed=data.draw, mix=mix)
        test = alt_text.pool(data.test_size, size=data.image_size, seed=data.draw, mix=alt_text.CLEAN, split="test")
    else:
        train = _read(data.root, data, warn)
        test = _read(data.test_root, data, warn) if data.test_root else train
        if data.test_root and data.on_damage == "stop":
            collectives.from_main(lambda: _require_readable(test, data, warn))
    return Splits(train if data.subset is None else _kept(train, data.subset, warn), test)


def _read(root: Path, data: PairData, warn: Callable[[str], None]) -> ShardPairs:
    pairs = ShardPairs.index(shards.find(root), on_damage=data.on_damage)
    if data.on_damage == "skip":
        warn(f"Opening each of the {len(pairs):,} images under {root} once, to leave out those that are damaged.")
        found = pairs.check(_threads(data))
        keep = torch.ones(len(pairs), dtype=torch.bool)
        keep[list(found.faults)] = False
        pairs = pairs.select(keep.nonzero()[:, 0])
        pairs.counts.update([*found.faults.values(), *found.remarks.elements()])
    for reason, number in sorted(pairs.counts.items()):
        warn(f"{number:,} pairs under {root}: {reason}.")
    return pairs


def _require_readable(test: ShardPairs, data: PairData, warn: Callable[[str], None]) -> None:
    """Decodes all test images. Raises: ``DataError`` about the first image that cannot be decoded."""
    found = test.check(_threads(data))
    for index in found.faults:
        try:
            test.open(index)
        except DamagedImage as error:  # every rank prints a DamagedImage, but here all ranks find the same one
            raise DataError(str(error)) from None
    for remark, number in sorted(found.remarks.items()):
        warn(f"{number:,} pairs under {data.test_root}: {remark}.")


def _threads(data: PairData) -> int:
    return max(data.workers, os.cpu_count() or 1)


def _kept(train: PairSet | ShardPairs, subset: Path, warn: Callable[[str], None]) -> PairSet | ShardPairs:
    """The pairs that the uid file names. Raises: ``DataError`` if it names none of them."""
    wanted = uids.verify_subset(subset)
    if isinstance(train, ShardPairs):
        kept = train.subset(wanted)
        absent = (kept.counts - train.counts).total()
    else:
        rows, absent = uids.rows_kept(wanted, uids.to_u8(train.uids))
        kept = train.select(torch.from_numpy(rows))
    if not len(kept):
        raise DataError(f"None of the {len(wanted):,} uids in {subset} is in this pool. It belongs to another one.")
    if absent:
        warn(f"{absent:,} uids of {subset} are not in this pool.")
    return kept


def vocabulary_texts() -> list[str]:
    """Texts of all kinds and wordings of the Pantry, from which a vocabulary is learned."""
    factors = pantry.sample_factors(3000, VOCABULARY_SEED)
    texts, _, _ = alt_text.alt_texts(factors, VOCABULARY_SEED, alt_text.Mix())
    plain, unusual = (captions.captions(factors, VOCABULARY_SEED, wording=way) for way in ("plain", "unusual"))
    return [*texts, *plain, *unusual, *pantry.CLASSES]
