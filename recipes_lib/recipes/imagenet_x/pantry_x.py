# SPDX-License-Identifier: Apache-2.0
"""Pantry-X: ImageNet-X's questions where the answers are known, because each factor is set in place of annotated.

*Ordinary* scenes are natural ones without anything odd: usual material, pattern, background and light, one whole object.
Each factor is then made odd in a share of the images of one's choice, on its own. What is odd is judged from the true
factors alone, against what is usual for the class (``pantry.scenes.NATURAL``):

- ``pose``: rolled by more than 30 degrees, or seen from more than 15 degrees beyond the class's elevations. The azimuth
  is not judged: every class is seen from all around.
- ``background``, ``pattern``, ``texture`` (the material): none that is usual for the class.
- ``color``: farther than 0.35 (sRGB, Euclidean) from each usual colour of the class.
- ``smaller``, ``larger``: below 0.75 times the class's smallest size, above 1.15 times its largest.
- ``shape``: the four shape parameters are on average farther than 0.4 from their mean of 0.5.
- ``partial_view``: the centre is farther than 0.55 half sides from the middle, across or up.
- ``darker``: dusk, and a light of strength below 0.6. ``brighter``: a light of strength above 1.5.
- ``style``: drawn as a poster or a sketch.
- ``object_blocking``: a card stands before the scene. ``multiple_objects``: there is more than one.

An ordinary scene bears no mark. Two of the sixteen have no twin here:
subcategory, since the Pantry's classes have no kinds within them, and person_blocking, since nobody is in the Pantry.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recipes_lib.data import pantry
from recipes_lib.data.images import ImageSet
from recipes_lib.data.pantry.factors import BACKGROUNDS, CLASSES, MATERIALS, PATTERNS, STYLES, Factors
from recipes_lib.data.pantry.scenes import NATURAL, Split
from recipes_lib.factors.annotations import Annotations
from recipes_lib.randomness import sample_keys, uniform

FACTORS = (
    "pose",
    "background",
    "pattern",
    "color",
    "smaller",
    "shape",
    "partial_view",
    "texture",
    "larger",
    "darker",
    "object_blocking",
    "style",
    "brighter",
    "multiple_objects",
)
"""Those of ImageNet-X that can be set, in its order."""
SIZE = 32
"""Side of a picture, in pixels."""
_ODD_STYLES = tuple(STYLES.index(name) for name in ("poster", "sketch"))
_DUSK = STYLES.index("dusk")
_TRIED_COLOURS = 8


def scenes(count: int, seed: int, split: Split, shares: Mapping[str, float]) -> Factors:
    """The factors of ``count`` images, each factor of ``shares`` odd in that share of them, on its own.

    Of two that exclude each other (smaller and larger; darker and brighter, or style) the later one stays. An image whose share of
    a factor grows keeps all else: the same images are odd first.

    Raises: ``ValueError`` for an unknown factor or a share outside [0, 1].
    """
    factors = ordinary(pantry.sample_factors(count, seed, split=split))
    keys = sample_keys(seed, 0, torch.arange(count))
    for name, share in shares.items():
        if name not in FACTORS or not 0 <= share <= 1:
            raise ValueError(f"shares[{name!r}] = {share}: use a share in [0, 1] of {', '.join(FACTORS)}.")
        chosen = uniform(keys, f"pantry-x {split} {name}", 1)[:, 0] < share
        changed = odd(factors, name, uniform(keys, f"pantry-x {split} odd {name}", 3 * _TRIED_COLOURS + 3))
        factors = Factors(**{
            field: torch.where(chosen.view(-1, *[1] * (old.ndim - 1)), changed[field], old) if field in changed else old
            for field, old in factors.to_dict().items()
        })  # fmt: skip
    return factors


def image_set(count: int, seed: int, split: Split, shares: Mapping[str, float]) -> ImageSet:
    """The pictures of :func:`scenes`: uint8 [count, 3, 32, 32], classes and true factors."""
    factors = scenes(count, seed, split, shares)
    return ImageSet(pantry.render(factors, SIZE), factors.label, CLASSES, factors.to_dict())


def annotations(images: ImageSet) -> Annotations:
    """What a factor report needs of these pictures; the marks are of kind ``multi``."""
    names = np.array([f"pantry_{number:06d}.png" for number in range(len(images))])
    found = marks(Factors(**images.factors)).numpy()
    return Annotations(names, images.labels.numpy().astype(np.int16), len(CLASSES), FACTORS, {"multi": found})


def ordinary(factors: Factors) -> Factors:
    """Natural scenes without what is odd in some of them: cards, further objects, dusk, extreme shapes."""
    instance = 0.5 + 0.7 * (factors.instance - 0.5)
    return pantry.fix(factors, instance=instance, occluder=0, objects=1, style="photo")


def marks(factors: Factors) -> Tensor:
    """Which factors are odd, by the rules above: bool [N, 14] in the order of :data:`FACTORS`."""
    low, high, small, large = _habits().T[:, factors.label]
    away = (factors.elevation - high).maximum(low - factors.elevation)
    shown = {
        "pose": (factors.roll.abs() > 30) | (away > 15),
        "background": ~_usual("places", BACKGROUNDS)[factors.label, factors.background],
        "pattern": ~_usual("patterns", PATTERNS)[factors.label, factors.pattern],
        "color": _strangeness(factors.colour, factors.label) > 0.35,
        "smaller": factors.size < 0.75 * small,
        "shape": (factors.instance - 0.5).abs().mean(dim=1) > 0.4,
        "partial_view": factors.position.abs().amax(dim=1) > 0.55,
        "texture": ~_usual("materials", MATERIALS)[factors.label, factors.material],
        "larger": factors.size > 1.15 * large,
        "darker": (factors.style == _DUSK) & (factors.light_strength < 0.6),
        "object_blocking": factors.occluder == 1,
        "style": torch.isin(factors.style, torch.tensor(_ODD_STYLES)),
        "brighter": factors.light_strength > 1.5,
        "multiple_objects": factors.objects > 1,
    }
    return torch.stack([shown[name] for name in FACTORS], dim=1)


def odd(factors: Factors, name: str, draws: Tensor) -> dict[str, Tensor]:
    """The fields that make each image odd in one factor: field -> as in ``factors``.

    ``draws``: uniform, [N, 27].
    """
    _, _, small, large = _habits().T[:, factors.label]
    first, second, third = draws[:, :3].unbind(dim=1)
    side = torch.where(second < 0.5, -1.0, 1.0)
    match name:
        case "pose":
            return {"roll": side * (45 + 45 * first)}
        case "background":
            mild = 0.15 + 0.7 * draws[:, 3:9]
            place = _unusual("places", BACKGROUNDS, factors.label, first)
            return {"background": place, "table_colour": mild[:, :3], "wall_colour": mild[:, 3:]}
        case "pattern":
            return {"pattern": _unusual("patterns", PATTERNS, factors.label, first)}
        case "color":
            return _strange_colour(factors, draws[:, 3:])
        case "smaller":
            return {"size": (0.45 + 0.15 * first) * small}
        case "larger":
            return {"size": (1.2 + 0.2 * first) * large}
        case "shape":
            centred = factors.instance - 0.5
            return {"instance": 0.5 + centred.sign() * (0.42 + 0.08 * draws[:, 3:7])}
        case "partial_view":
            moved, up = side * (0.65 + 0.2 * first), (third < 0.5)[:, None]
            across, along = factors.position.unbind(dim=1)
            position = torch.where(up, torch.stack([across, moved], 1), torch.stack([moved, along], 1))
            return {"position": position}
        case "texture":
            return {"material": _unusual("materials", MATERIALS, factors.label, first)}
        case "darker":
            return {"light_strength": 0.1 + 0.2 * first, "style": torch.full_like(factors.style, _DUSK)}
        case "brighter":
            return {"light_strength": 2 + first}
        case "object_blocking":
            return {"occluder": torch.ones_like(factors.occluder), "occluder_position": draws[:, 3:5] - 0.5}
        case "style":
            return {"style": torch.tensor(_ODD_STYLES)[(first < 0.5).long()]}
        case "multiple_objects":
            return {"objects": 2 + (first < 0.5).long()}
    raise ValueError(f"there is no factor {name!r}; there are {', '.join(FACTORS)}")


def _habits() -> Tensor:
    """The usual elevations and sizes of each class, from and to: float32 [12, 4]."""
    return torch.tensor([[*NATURAL[name].elevation, *NATURAL[name].size] for name in CLASSES])


def _usual(field: str, names: tuple[str, ...]) -> Tensor:
    """Whether each class has each of ``names`` in a natural scene: bool [12, names]."""
    return torch.tensor([[name in getattr(NATURAL[label], field) for name in names] for label in CLASSES])


def _unusual(field: str, names: tuple[str, ...], labels: Tensor, draw: Tensor) -> Tensor:
    """One of the values that the class does not have, all with equal chances: int64 [N]."""
    others = ~_usual(field, names)[labels]  # [N, names]
    wanted = (draw * others.sum(dim=1)).long()[:, None] + 1
    return (others.cumsum(dim=1) == wanted).int().argmax(dim=1)


def _palettes() -> list[Tensor]:
    """Each class's usual colours: float32 [colours, 3], sRGB in [0, 1]."""
    return [torch.tensor([list(bytes.fromhex(c)) for c in NATURAL[name].colours]) / 255 for name in CLASSES]


def _strangeness(colours: Tensor, labels: Tensor) -> Tensor:
    """Distance to the nearest usual colour of the class: [N, ..., 3], [N] -> [N, ...]."""
    found = colours.new_empty(colours.shape[:-1])
    for label, palette in enumerate(_palettes()):
        own = labels == label
        found[own] = torch.cdist(colours[own].reshape(-1, 3), palette).amin(dim=1).view(colours[own].shape[:-1])
    return found


def _strange_colour(factors: Factors, draws: Tensor) -> dict[str, Tensor]:
    """The strangest of eight colours; where handle or stem has the body's colour, it goes along."""
    tried = draws.unflatten(1, (_TRIED_COLOURS, 3))
    colour = tried[torch.arange(len(tried)), _strangeness(tried, factors.label).argmax(dim=1)]
    together = torch.tensor([not NATURAL[name].trims for name in CLASSES])[factors.label, None]
    return {"colour": colour, "trim_colour": torch.where(together, colour, factors.trim_colour)}
