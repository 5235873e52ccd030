# SPDX-License-Identifier: Apache-2.0
"""Pantry-X: images like those of ImageNet-X, but with known factors, which are set and not annotated.

*Ordinary* scenes are natural scenes without anything odd: usual material, pattern, background and light, one whole
object. Then each factor is made odd in a chosen share of the images, independently of the other factors. Whether a
factor is odd is decided from the true factors and from what is usual for the class (``pantry.scenes.NATURAL``):

- ``pose``: rolled by more than 30 degrees, or seen from more than 15 degrees outside the class's elevations. The
  azimuth does not count, since every class is seen from all sides.
- ``background``, ``pattern``, ``texture`` (the material): one that is not usual for the class.
- ``color``: farther than 0.35 (sRGB, Euclidean) from each usual colour of the class.
- ``smaller``, ``larger``: below 0.75 times the class's smallest size, above 1.15 times its largest.
- ``shape``: the four shape parameters are on average farther than 0.4 from their mean of 0.5.
- ``partial_view``: the object's centre is farther than 0.55 half sides from the image's centre, in either direction.
- ``darker``: dusk, and a light of strength below 0.6. ``brighter``: a light of strength above 1.5.
- ``style``: drawn as a poster or a sketch.
- ``object_blocking``: a card is in front of the scene. ``multiple_objects``: there is more than one object.

An ordinary scene has no odd factor. Two of ImageNet-X's sixteen factors have no counterpart here: subcategory, since
the Pantry's classes have no subclasses, and person_blocking, since the Pantry has no people.
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
"""The factors of ImageNet-X that can be set, in its order."""
SIZE = 32
"""Side of an image, in pixels."""
_ODD_STYLES = tuple(STYLES.index(name) for name in ("poster", "sketch"))
_DUSK = STYLES.index("dusk")
_TRIED_COLOURS = 8


def scenes(count: int, seed: int, split: Split, shares: Mapping[str, float]) -> Factors:
    """The true factors of ``count`` images, in which each factor of ``shares`` is odd in that share, independently.

    If two factors exclude each other (smaller and larger; darker and brighter, or style), the later one is set. If a
    share is raised, the images that were odd stay odd, and nothing else about the images changes.

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
    """The images of :func:`scenes`, uint8 [count, 3, 32, 32], with classes and true factors."""
    factors = scenes(count, seed, split, shares)
    return ImageSet(pantry.render(factors, SIZE), factors.label, CLASSES, factors.to_dict())


def annotations(images: ImageSet) -> Annotations:
    """The annotations of these images for a factor report; the marks are of kind ``multi``."""
    names = np.array([f"pantry_{number:06d}.png" for number in range(len(images))])
    found = marks(Factors(**images.factors)).numpy()
    return Annotations(names, images.labels.numpy().astype(np.int16), len(CLASSES), FACTORS, {"multi": found})


def ordinary(factors: Factors) -> Factors:
    """Makes natural scenes ordinary: without cards, further objects, dusk and extreme shapes."""
    instance = 0.5 + 0.7 * (factors.instance - 0.5)
    return pantry.fix(factors, instance=instance, occluder=0, objects=1, style="photo")


def marks(factors: Factors) -> Tensor:
    """Which factors are odd, by the rules at the top of this file: bool [N, 14] in the order of :data:`FACTORS`."""
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
    """The fields that make each image odd in factor ``name``, with shapes as in ``factors``.

    ``draws``: uniform random numbers [N, 27].
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
    """Smallest and largest usual elevation, smallest and largest usual size of each class: float32 [12, 4]."""
    return torch.tensor([[*NATURAL[name].elevation, *NATURAL[name].size] for name in CLASSES])


def _usual(field: str, names: tuple[str, ...]) -> Tensor:
    """Whether each of ``names`` is usual for each class: bool [12, names]."""
    return torch.tensor([[name in getattr(NATURAL[label], field) for name in names] for label in CLASSES])


def _unusual(field: str, names: tuple[str, ...], labels: Tensor, draw: Tensor) -> Tensor:
    """A random value that is not usual for the class, all equally likely: int64 [N]."""
    others = ~_usual(field, names)[labels]  # [N, names]
    wanted = (draw * others.sum(dim=1)).long()[:, None] + 1
    return (others.cumsum(dim=1) == wanted).int().argmax(dim=1)


def _palettes() -> list[Tensor]:
    """The usual colours of each class: float32 [colours, 3], sRGB in [0, 1]."""
    return [torch.tensor([list(bytes.fromhex(c)) for c in NATURAL[name].colours]) / 255 for name in CLASSES]


def _strangeness(colours: Tensor, labels: Tensor) -> Tensor:
    """The distance of colours to the nearest usual colour of the class: [N, ..., 3], [N] -> [N, ...]."""
    found = colours.new_empty(colours.shape[:-1])
    for label, palette in enumerate(_palettes()):
        own = labels == label
        found[own] = torch.cdist(colours[own].reshape(-1, 3), palette).amin(dim=1).view(colours[own].shape[:-1])
    return found


def _strange_colour(factors: Factors, draws: Tensor) -> dict[str, Tensor]:
    """The strangest of eight random colours; handle or stem get it too, if they usually have the body's colour."""
    tried = draws.unflatten(1, (_TRIED_COLOURS, 3))
    colour = tried[torch.arange(len(tried)), _strangeness(tried, factors.label).argmax(dim=1)]
    together = torch.tensor([not NATURAL[name].trims for name in CLASSES])[factors.label, None]
    return {"colour": colour, "trim_colour": torch.where(together, colour, factors.trim_colour)}
