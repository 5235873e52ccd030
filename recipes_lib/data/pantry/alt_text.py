# SPDX-License-Identifier: Apache-2.0
"""A small imitation of a web pool: pictures of the Pantry with alt-texts of known kinds, most of which the web has too.

Source of the kinds: Mahmoud et al., "Sieve: Multimodal Dataset Pruning Using Image Captioning Models", CVPR 2024,
arXiv 2310.02110, on pairs that CLIPScore overrates (text drawn into the image) and underrates (unusual wording).
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
"""Kinds of alt-text. The first two describe their image truly."""
ALIGNED = KINDS[:2]
"""The kinds that describe their image truly."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The share of each kind of alt-text in a pool, which sum to 1; each is a probability, so the counts vary."""

    caption: float = 0.3
    """Share of true captions in everyday words."""
    unusual: float = 0.15
    """Share of true captions without a class name, which a matcher of words takes for wrong."""
    wrong_pair: float = 0.25
    """Share of captions of another image, which has no class in common with this one."""
    file_name: float = 0.1
    """Share of file names."""
    boilerplate: float = 0.1
    """Share of phrases of web pages, such as "click to enlarge"."""
    spurious_text: float = 0.1
    """Share of wrong captions whose class name is drawn into the image, which a reader of letters takes for right."""
    stamped: float = 0.25
    """Share of the *true* pairs with their own class name drawn into the image, so that reading letters is useful."""
    medium: float = 0.3
    """Share of all texts, of any kind, with a phrase such as "a photo of"."""

    def check(self, faults: Faults, group: str = "mix") -> None:
        """Adds every fault to ``faults``; ``group`` is the prefix of the field names there."""
        for part in fields(self):
            share = getattr(self, part.name)
            faults.need(0 <= share <= 1, f"{group}.{part.name}", share, "in [0, 1]")
        total = sum(self.shares())
        if not abs(total - 1) <= 1e-6:
            faults.add(f"{group}: the shares of {', '.join(KINDS)} sum to {total:g}. Make them sum to 1.")

    def shares(self) -> tuple[float, ...]:
        """The shares of the kinds, in the order of ``KINDS``."""
        return tuple(getattr(self, kind) for kind in KINDS)


CLEAN = Mix(caption=1.0, unusual=0.0, wrong_pair=0.0, file_name=0.0, boilerplate=0.0, spurious_text=0.0, stamped=0.0,
            medium=0.0)  # fmt: skip
"""Only everyday captions, for training a captioner and for scoring retrieval."""


def pool(count: int, *, size: int, seed: int, mix: Mix, split: Split = "train") -> PairSet:
    """Makes the first ``count`` pairs of a pool: natural scenes, some with a word drawn into the image.

    ``factors`` has the true factors of the scenes, ``kind`` (a position in ``KINDS``) and ``stamped`` (1 if a word was
    drawn). A uid derives from (seed, split, position), so it does not depend on the mix. Pools of different seeds have
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
    """Makes an alt-text per image, its kind, and the word to draw into the image.

    Everything derives from (seed, position): ``start`` is the position of the first image in the data set. Wrong
    captions are captions of other *natural* scenes. They are in unusual words as often as true captions, so the wording
    does not reveal the kind.

    Returns: texts; kinds int64 [N], positions in ``KINDS``; words, "" for none.
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
    """Replaces the ``chosen`` rows (bool [N]) of ``texts`` by the results of ``make``, which takes their positions."""
    at = chosen.nonzero()[:, 0]
    if len(at):
        for row, text in zip(at.tolist(), make(at), strict=True):
            texts[row] = text


def _strangers(factors: Factors, keys: Tensor, seed: int, start: int) -> Factors:
    """Chooses for each image another scene that has no class in common with it.

    Scenes come in runs of twelve with each class once. An image gets a scene from the run at its own position in
    another data set, so the choice does not depend on the number of images.
    """
    run = len(CLASSES)
    first = start // run * run
    count = -(-(start + len(factors) - first) // run) * run
    others = sample_factors(count, step_key(seed, 0, "pantry strangers"), start=first)
    at = start - first + torch.arange(len(factors))
    candidates = (at // run * run)[:, None] + torch.arange(run)  # [N, 12]
    own, theirs = _classes(factors), _classes(others)
    shared = (own[:, None] & theirs[candidates]).any(2)  # [N, 12]
    main = own.gather(1, others.label[candidates])  # a common main class is worse: a caption begins with it
    tie = uniform(keys, "pantry stranger", run)
    chosen = (shared.float() + main.float() + tie).argmin(1)
    return others.select(candidates.gather(1, chosen[:, None])[:, 0])


def _classes(factors: Factors) -> Tensor:
    """Whether each class is on the table of each image, as bool [N, 12]."""
    extra = torch.arange(2) < factors.objects[:, None] - 1  # [N, 2]
    labels = torch.cat([factors.label[:, None], torch.where(extra, factors.extra_label, factors.label[:, None])], 1)
    return torch.zeros(len(factors), len(CLASSES), dtype=torch.bool).scatter(1, labels, value=True)
