# SPDX-License-Identifier: Apache-2.0
"""A web pool in small: pictures of the Pantry with alt-texts of known kinds, most of which the web has too.

Source of the kinds: Mahmoud et al., "Sieve: Multimodal Dataset Pruning Using Image Captioning Models", CVPR 2024,
arXiv 2310.02110, on what CLIPScore takes for right (text drawn into the image) and for wrong (unusual wording).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pantry import junk
from recipes_lib.data.pantry.captions import describe
from recipes_lib.data.pantry.dataset import dataset
from recipes_lib.data.pantry.factors import CLASSES, Factors
from recipes_lib.data.pantry.lettering import stamp
from recipes_lib.data.pantry.scenes import Split, sample_factors
from recipes_lib.errors import Faults
from recipes_lib.randomness import sample_keys, step_key, uniform

KINDS = ("caption", "unusual", "wrong_pair", "file_name", "boilerplate", "spurious_text")
"""Kinds of alt-text. The first two are true of their image."""
ALIGNED = KINDS[:2]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How much of each kind a pool has; the shares of the kinds sum to 1. Shares are chances: a pool's counts vary."""

    caption: float = 0.3
    """True, in everyday words."""
    unusual: float = 0.15
    """True, with no word of a class: what a word-matcher takes for wrong."""
    wrong_pair: float = 0.25
    """The caption of another image, whose classes are none of this one's."""
    file_name: float = 0.1
    boilerplate: float = 0.1
    spurious_text: float = 0.1
    """A wrong caption whose class word is drawn into the image: what a reader of letters takes for right."""
    stamped: float = 0.25
    """Share of the *true* pairs that have their own class word drawn into the image, so that letters are worth reading."""
    medium: float = 0.3
    """Share of all texts, of whatever kind, with a phrase such as "a photo of"."""

    def check(self, faults: Faults, group: str = "mix") -> None:
        """Notes every fault in ``faults``; ``group`` is what stands before a field's name there."""
        for part in fields(self):
            share = getattr(self, part.name)
            faults.need(0 <= share <= 1, f"{group}.{part.name}", share, "in [0, 1]")
        total = sum(self.shares())
        if not abs(total - 1) <= 1e-6:
            faults.add(f"{group}: the shares of {', '.join(KINDS)} sum to {total:g}. Make them sum to 1.")

    def shares(self) -> tuple[float, ...]:
        """The share of each of ``KINDS``."""
        return tuple(getattr(self, kind) for kind in KINDS)


CLEAN = Mix(caption=1.0, unusual=0.0, wrong_pair=0.0, file_name=0.0, boilerplate=0.0, spurious_text=0.0, stamped=0.0,
            medium=0.0)  # fmt: skip
"""Everyday captions and nothing else: what a captioner is trained on, and what retrieval is scored on."""


def pool(count: int, *, size: int, seed: int, mix: Mix, split: Split = "train") -> PairSet:
    """The first ``count`` pairs of a pool: natural scenes, with the words that belong into the images drawn there.

    ``factors`` has, beside the true factors of the scenes, ``kind`` (a position in ``KINDS``) and ``stamped`` (1 where
    a word was drawn). A uid comes from (seed, split, position): it stays when the mix changes. Pools of two seeds have
    no image in common.

    Raises: ``ConfigError`` for shares that are not allowed, ``ValueError`` for a count, size or split that is not.
    """
    pictures = dataset(count, size=size, seed=seed, split=split)
    draws = step_key(seed, 0, f"pantry pool {split}")
    texts, kinds, words = alt_texts(Factors(**pictures.factors), draws, mix)
    return PairSet(
        stamp(pictures.images, words, sample_keys(draws, 0, torch.arange(count))),
        pictures.labels,
        pictures.class_names,
        {**pictures.factors, "kind": kinds, "stamped": torch.tensor([int(word != "") for word in words])},
        texts=tuple(texts),
        uids=tuple(hashlib.sha256(f"pantry {seed} {split} {i}".encode()).hexdigest()[:32] for i in range(count)),
    )


def alt_texts(factors: Factors, seed: int, mix: Mix, *, start: int = 0) -> tuple[list[str], Tensor, list[str]]:
    """An alt-text per image, its kind, and the word to draw into the image.

    Everything comes from (seed, position): ``start`` is the position of the first image in the data set. Wrong captions
    are those of other *natural* scenes, in unusual words as often as true ones are, so that no wording tells the kind.

    Returns: texts; kinds int64 [N], positions in ``KINDS``; words, "" where none is drawn.
    Raises: ``ConfigError`` for shares that are not allowed.
    """
    faults = Faults()
    mix.check(faults)
    faults.raise_any()
    keys = sample_keys(seed, 0, start + torch.arange(len(factors)))
    kind, wording, stamped, medium = uniform(keys, "pantry alt-text", 4).double().unbind(1)
    shares = torch.tensor(mix.shares()).double()
    kinds = torch.bucketize(kind.contiguous(), (shares / shares.sum()).cumsum(0)[:-1], right=True)
    strangers = _strangers(factors, keys, seed, start)
    true, swapped, false = (
        kinds < len(ALIGNED),
        kinds == KINDS.index("wrong_pair"),
        kinds == KINDS.index("spurious_text"),
    )
    odd = (kinds == KINDS.index("unusual")) | (swapped & (wording < mix.unusual / max(mix.caption + mix.unusual, 1e-9)))

    texts = [""] * len(factors)
    for scenes, rows in ((factors, true), (strangers, swapped | false)):
        for name, mine in (("plain", rows & ~odd), ("unusual", rows & odd)):
            _put(texts, mine, lambda at, scenes=scenes, name=name: describe(scenes.select(at), keys[at], name))
    draws = [iter(row) for row in uniform(keys, "pantry alt-text words", 10).tolist()]
    for name, make in (("file_name", junk.file_name), ("boilerplate", junk.boilerplate)):
        _put(texts, kinds == KINDS.index(name), lambda at, make=make: [make(draws[i]) for i in at.tolist()])
    _put(texts, medium < mix.medium, lambda at: [junk.with_medium(texts[i], draws[i]) for i in at.tolist()])

    words = [""] * len(factors)
    _put(words, true & (stamped < mix.stamped), lambda at: [CLASSES[i] for i in factors.label[at]])
    _put(words, false, lambda at: [CLASSES[i] for i in strangers.label[at]])
    return texts, kinds, words


def _put(texts: list[str], chosen: Tensor, make: Callable[[Tensor], list[str]]) -> None:
    """Writes what ``make`` gives for the chosen rows (bool [N]) into ``texts``; ``make`` takes their positions."""
    at = chosen.nonzero()[:, 0]
    if len(at):
        for row, text in zip(at.tolist(), make(at), strict=True):
            texts[row] = text


def _strangers(factors: Factors, keys: Tensor, seed: int, start: int) -> Factors:
    """For each image another scene, whose classes are none of the image's own.

    Scenes come in runs of twelve with each class once; an image takes one of the run at its own position in another data
    set, so what it takes does not depend on how many images there are.
    """
    run = len(CLASSES)
    first = start // run * run
    count = -(-(start + len(factors) - first) // run) * run
    others = sample_factors(count, step_key(seed, 0, "pantry strangers"), start=first)
    at = start - first + torch.arange(len(factors))
    candidates = (at // run * run)[:, None] + torch.arange(run)  # [N, 12]
    own, theirs = _classes(factors), _classes(others)
    shared = (own[:, None] & theirs[candidates]).any(2)  # [N, 12]
    main = own.gather(1, others.label[candidates])  # the worse of the two: its caption would begin with what is seen
    tie = uniform(keys, "pantry stranger", run)
    chosen = (shared.float() + main.float() + tie).argmin(1)
    return others.select(candidates.gather(1, chosen[:, None])[:, 0])


def _classes(factors: Factors) -> Tensor:
    """Which classes stand on the table: bool [N, 12]."""
    extra = torch.arange(2) < factors.objects[:, None] - 1  # [N, 2]
    labels = torch.cat([factors.label[:, None], torch.where(extra, factors.extra_label, factors.label[:, None])], 1)
    return torch.zeros(len(factors), len(CLASSES), dtype=torch.bool).scatter(1, labels, value=True)
