# SPDX-License-Identifier: Apache-2.0
"""Draws the factors of pictures, for *natural* and for *controlled* scenes.

Natural scenes are like photographs: each class has its usual materials, colours, patterns, places and poses, with
variation, and there is one large object near the centre. So the class is what two views of an image share most. In
controlled scenes factors are independent: each is drawn separately, over a wide range.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recipes_lib.data.pantry.factors import (
    BACKGROUNDS,
    CLASSES,
    MATERIALS,
    PATTERNS,
    STYLES,
    Factors,
)
from recipes_lib.data.pantry.things import hue_colour
from recipes_lib.randomness import sample_keys, uniform

Scenes = Literal["natural", "controlled"]
Split = Literal["train", "test"]

# Colours are sRGB in hex; a colour drawn from a palette is then varied a little.
_STEEL, _DARK, _IVORY, _BROWN = "c9ced6", "35363b", "f1eadb", "5b3a22"


@dataclass(frozen=True)
class Habits:
    """The usual factors of one class in a natural scene; all entries of a tuple are equally likely."""

    materials: tuple[str, ...]
    colours: tuple[str, ...]
    """Colours of the body."""
    trims: tuple[str, ...]
    """Colours of handle, lid or stem; an empty tuple means the body's colour."""
    patterns: tuple[str, ...]
    places: tuple[str, ...]
    """Kinds of background."""
    elevation: tuple[float, float]
    """Range of the camera's elevation above the table, in degrees."""
    size: tuple[float, float]
    """Range of half the object's extent, in half image sides."""


NATURAL: dict[str, Habits] = {
    "mug": Habits(("glossy", "glossy", "matte"), ("c8402f", "2f6db0", "e9b23c", "f2efe8", "3d8f6b", "35363b"), (),
                  ("plain", "plain", "bands", "stripes", "dots"), ("wood", "worktop", "boards", "cloth"),
                  (15, 42), (0.66, 0.98)),
    "bowl": Habits(("glossy", "matte"), ("4d7ea8", "e8dcc2", "6aa36f", "d9743f", "b5482f", "f2efe8"), (),
                   ("plain", "plain", "bands", "dots"), ("cloth", "wood", "tiles", "marble"), (25, 52), (0.6, 0.9)),
    "plate": Habits(("glossy",), ("f4f3ee", "dfe7ee", "f3e3c8", "7fa6c9", "8fb8a0"), ("f4f3ee", "3a5f8f", "b9423a"),
                    ("plain", "plain", "bands"), ("cloth", "wood", "marble"), (30, 65), (0.62, 0.92)),
    "bottle": Habits(("glass", "glossy"), ("2e6b3a", "6b3a1a", "3f7f5f", "1f3d2b", "2f5f8f", "7a1f2b"),
                     ("b03a2e", "d8b25a", "2b2b2b"),
                     ("plain", "plain", "bands"), ("marble", "boards", "wood", "worktop"), (8, 32), (0.64, 0.92)),
    "jar": Habits(("glass", "glossy"), ("d98b2b", "a8323a", "e2c46a", "8b5a9a", "7f9a4f"),
                  ("c9a24a", "d9d9d6", "a8323a", "3a5f8f"),
                  ("plain", "plain", "bands", "checks"), ("boards", "tiles", "cloth", "wood"), (10, 38), (0.64, 0.96)),
    "pot": Habits(("metal", "glossy", "glossy"), (_STEEL, "b5482f", "3d5a80", "e9b23c", "4f7f5a"), (_DARK, "d9c9a3"),
                  ("plain",), ("tiles", "worktop", "boards"), (15, 45), (0.66, 0.95)),
    "pan": Habits(("metal", "matte"), (_DARK, "4a4d52", "6b3b2e", "9a9da3"), (_BROWN, "1c1c1e", "b03a2e"),
                  ("plain",), ("tiles", "worktop", "wood"), (25, 58), (0.66, 0.95)),
    "kettle": Habits(("metal", "glossy"), (_STEEL, "8fb8c9", "c9463d", "e8e1cf", "4f7f5a"), (_DARK, _BROWN),
                     ("plain",), ("tiles", "worktop", "boards"), (10, 38), (0.62, 0.9)),
    "goblet": Habits(("glass", "glass", "metal"), ("cfe0ea", "b8d0dc", "d9b45a", "c9a0b8", "8fb8a0"), (),
                     ("plain",), ("cloth", "marble", "wood"), (10, 35), (0.64, 0.92)),
    "spoon": Habits(("metal", "matte"), ("d2d6dc", "b98a55", "c7a06c", _STEEL, "7a5230"), (),
                    ("plain",), ("cloth", "marble", "wood", "worktop"), (32, 65), (0.7, 1.0)),
    "apple": Habits(("glossy",), ("c62f2f", "8fb53a", "d9a23a", "b3242c", "d9c04f"), (_BROWN,),
                    ("plain",), ("wood", "cloth", "marble", "worktop"), (12, 42), (0.58, 0.9)),
    "carrot": Habits(("matte",), ("ea7a1f", "e3681a", "f08c2e", "e9b23c"), ("3f8f3a", "5aa63f"),
                     ("plain",), ("wood", "marble", "boards", "cloth"), (28, 60), (0.7, 1.0)),
}  # fmt: skip

PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "worktop": (("b8b3aa", "8f9499", "d8d2c4"), ("e6e1d6", "b9c7c9", "d9c7b0")),
    "wood": (("a9713f", "8a5a34", "c79a63"), ("e9e2d2", "9fb3a8", "c9b8a0")),
    "tiles": (("d5d2cb", "9aa3a8", "6f7377"), ("e8edf0", "a9c5cf", "d9e2cf")),
    "cloth": (("c24d47", "4f78b0", "7ba05b", "e0a93a"), ("efe6d6", "d5dbe3", "cdb79a")),
    "marble": (("e9e7e4", "cfcac6", "55585c"), ("c9d0d6", "e9dfd0", "8f9aa5")),
    "boards": (("c2a27a", "7b5a3c", "b7b0a3"), ("dfe3dc", "7f9a94", "b88a5a")),
}
"""The usual colours of table and wall for every kind of background in a natural scene."""


def sample_factors(
    count: int, seed: int, scenes: Scenes = "natural", *, split: Split = "train", start: int = 0
) -> Factors:
    """Draws the factors of images ``start`` to ``start + count - 1`` of a data set, from (seed, split, index) only.

    Classes are balanced: every run of twelve images has each class once, in random order. The two splits are drawn
    separately and also have different individual objects.

    Raises: ``ValueError`` for a count or name that is not allowed.
    """
    if count < 1 or start < 0:
        raise ValueError(f"count = {count}, start = {start} is not allowed: use a count of at least 1, a start >= 0.")
    if scenes not in ("natural", "controlled"):
        raise ValueError(f"scenes = {scenes!r} is not known. Use natural or controlled.")
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r} is not known. Use train or test.")
    draw = _Draw(seed, split, start + torch.arange(count))
    return _natural(draw) if scenes == "natural" else _controlled(draw)


class _Draw:
    """Random draws for a range of images, each with a name for its purpose."""

    def __init__(self, seed: int, split: str, indices: Tensor) -> None:
        self.indices, self.split, self.seed = indices, split, seed
        self.keys = sample_keys(seed, 0, indices)

    def unit(self, purpose: str, count: int) -> Tensor:
        """Uniform numbers in [0, 1): [N, count]."""
        return uniform(self.keys, f"pantry {self.split} {purpose}", count)

    def between(self, purpose: str, low: float | Tensor, high: float | Tensor) -> Tensor:
        """Uniform numbers between two bounds (numbers, or one per image): [N]."""
        return low + (high - low) * self.unit(purpose, 1)[:, 0]

    def bell(self, purpose: str, spread: float, count: int) -> Tensor:
        """Numbers in [-spread, spread], triangularly distributed, so without a normal's outliers: [N, count]."""
        return (self.unit(purpose, 2 * count).view(-1, 2, count).sum(1) - 1) * spread

    def choice(self, purpose: str, sizes: int | Tensor) -> Tensor:
        """Uniform positions below ``sizes`` (one number, or one per image): int64 [N]."""
        return (self.unit(purpose, 1)[:, 0] * sizes).long()

    def labels(self) -> Tensor:
        """Balanced classes, int64 [N]: every run of twelve images has the twelve classes in a random order."""
        runs = self.indices // len(CLASSES)
        keys = sample_keys(self.seed, 0, runs)
        order = uniform(keys, f"pantry {self.split} label", len(CLASSES)).argsort(1)
        return order.gather(1, (self.indices % len(CLASSES))[:, None])[:, 0]

    def from_lists(self, purpose: str, row: Tensor, lists: list[tuple], spread: float = 0.0) -> Tensor:
        """A random entry of ``lists[row]`` per image: positions int64 [N], or colours [N, 3] varied by ``spread``."""
        sizes = torch.tensor([len(entries) for entries in lists])
        width = int(sizes.max())
        padded = torch.tensor([[*entries, *[entries[0]] * (width - len(entries))] for entries in lists])
        chosen = padded[row, self.choice(purpose, sizes[row])]
        if not spread:
            return chosen
        # one draw shifts all channels (lightness), three more draws shift one channel each (hue)
        shift = 0.7 * self.bell(purpose + " lightness", spread, 1) + 0.7 * self.bell(purpose + " hue", spread, 3)
        return (chosen + shift).clamp(0.02, 1)


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))


def _palettes(colours: list[tuple[str, ...]]) -> list[tuple]:
    return [tuple(_rgb(colour) for colour in palette) for palette in colours]


def _natural(draw: _Draw) -> Factors:
    habits = [NATURAL[name] for name in CLASSES]
    label = draw.labels()

    def named(purpose: str, lists: list[tuple[str, ...]], names: tuple[str, ...]) -> Tensor:
        return draw.from_lists(purpose, label, [tuple(names.index(name) for name in entries) for entries in lists])

    colour = draw.from_lists("colour", label, _palettes([h.colours for h in habits]), spread=0.12)
    trim = draw.from_lists("trim colour", label, _palettes([h.trims or (_IVORY,) for h in habits]), spread=0.08)
    place = 2 * draw.unit("occluder position", 2) - 1
    own = torch.tensor([not h.trims for h in habits])[label]
    background = named("background", [h.places for h in habits], BACKGROUNDS)
    tables, walls = (_palettes([PLACES[name][part] for name in BACKGROUNDS]) for part in (0, 1))
    low, high = torch.tensor([h.elevation for h in habits])[label].float().unbind(1)
    small, large = torch.tensor([h.size for h in habits])[label].float().unbind(1)
    return Factors(
        label=label,
        instance=draw.unit("instance", 4),
        material=named("material", [h.materials for h in habits], MATERIALS),
        colour=colour,
        trim_colour=torch.where(own[:, None], colour, trim),
        pattern=named("pattern", [h.patterns for h in habits], PATTERNS),
        pattern_colour=_contrasting(colour, draw.unit("pattern colour", 3)),
        azimuth=draw.between("azimuth", -180, 180),
        elevation=draw.between("elevation", low, high),
        roll=draw.bell("roll", 14, 1)[:, 0],
        position=draw.bell("position", 0.3, 2),
        size=draw.between("size", small, large),
        background=background,
        table_colour=draw.from_lists("table colour", background, tables, spread=0.1),
        wall_colour=draw.from_lists("wall colour", background, walls, spread=0.1),
        light_azimuth=draw.between("light azimuth", -20, 200),
        light_elevation=draw.between("light elevation", 35, 70),
        light_strength=draw.between("light strength", 0.8, 1.2),
        light_colour=_warmth(draw.between("light colour", 0.0, 1.0)),
        occluder=(draw.unit("occluder", 1)[:, 0] < 0.08).long(),
        # at the picture's border
        occluder_position=0.95 * place / place.abs().amax(1, keepdim=True).clamp_min(1e-6),
        **_shared(draw, largest=0.4),
        objects=1 + (draw.unit("objects", 1) < torch.tensor([0.15, 0.03])).sum(1),
        style=torch.where(draw.unit("style", 1)[:, 0] < 0.92, 0, STYLES.index("dusk")),
    )


def _controlled(draw: _Draw) -> Factors:
    count = len(draw.indices)
    return Factors(
        label=draw.labels(),
        instance=draw.unit("instance", 4),
        material=draw.choice("material", len(MATERIALS)),
        colour=_mild(draw.unit("colour", 3)),
        trim_colour=_mild(draw.unit("trim colour", 3)),
        pattern=draw.choice("pattern", len(PATTERNS)),
        pattern_colour=_mild(draw.unit("pattern colour", 3)),
        azimuth=draw.between("azimuth", -180, 180),
        elevation=draw.between("elevation", 10, 65),
        roll=draw.between("roll", -20, 20),
        position=0.6 * draw.unit("position", 2) - 0.3,
        size=draw.between("size", 0.5, 1.0),
        background=draw.choice("background", len(BACKGROUNDS)),
        table_colour=_mild(draw.unit("table colour", 3)),
        wall_colour=_mild(draw.unit("wall colour", 3)),
        light_azimuth=draw.between("light azimuth", -180, 180),
        light_elevation=draw.between("light elevation", 30, 80),
        light_strength=draw.between("light strength", 0.6, 1.4),
        light_colour=0.75 + 0.25 * draw.unit("light colour", 3),
        occluder=draw.choice("occluder", torch.full((count,), 2)),
        occluder_position=1.8 * draw.unit("occluder position", 2) - 0.9,
        **_shared(draw, largest=0.4),
        objects=1 + draw.choice("objects", 3),
        style=draw.choice("style", len(STYLES)),
    )


def _shared(draw: _Draw, largest: float) -> dict[str, Tensor]:
    """Draws the factors of occluders and further objects, which depend on the class in neither kind of scene."""
    turn = draw.unit("extra azimuth", 2)
    return {
        "occluder_size": draw.between("occluder size", 0.5 * largest, largest),
        "occluder_colour": _vivid(draw.unit("occluder colour", 3)),
        "extra_label": (draw.unit("extra label", 2) * len(CLASSES)).long(),
        # one object to the right and one to the left of the main object, beside or behind it
        "extra_azimuth": torch.stack([70 * turn[:, 0] - 10, 120 + 70 * turn[:, 1]], 1),
        "extra_hue": draw.unit("extra hue", 2),
    }


def _vivid(draws: Tensor) -> Tensor:
    """Colours of all hues, from pale to strong.  [N, 3] (hue, strength, lightness) -> [N, 3] sRGB"""
    strength = 0.85 * draws[:, 1:2]
    return hue_colour(draws[:, 0]) * strength + (1 - strength) * (0.25 + 0.7 * draws[:, 2:])


def _mild(draws: Tensor) -> Tensor:
    """Colours of all hues, neither very strong nor very dark.  [N, 3], as for ``_vivid`` -> [N, 3] sRGB"""
    return 0.15 + 0.8 * _vivid(draws * draws.new_tensor([1.0, 0.8, 1.0]))


def _contrasting(colour: Tensor, draws: Tensor) -> Tensor:
    """A tinted colour that contrasts with ``colour``: near white on dark, dark on light.  [N, 3], [N, 3] -> [N, 3]"""
    light = colour.mean(1, keepdim=True) < 0.55
    return torch.where(light, 0.78 + 0.22 * draws, 0.12 + 0.4 * draws)


def _warmth(share: Tensor) -> Tensor:
    """The colour of light from cool daylight (0) to a warm lamp (1).  [N] -> [N, 3]"""
    cool, warm = torch.tensor([0.94, 0.98, 1.0]), torch.tensor([1.0, 0.92, 0.78])
    return cool + (warm - cool) * share[:, None]
