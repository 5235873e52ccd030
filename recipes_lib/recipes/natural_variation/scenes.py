# SPDX-License-Identifier: Apache-2.0
"""The two renderers as scenes of controlled images: the Pantry's kitchen objects, and pybullet's 3-D objects.

An instance has a shape and a look of its own, drawn without regard to its class, so that colour tells nothing. In the
canonical view it is upright and centred, before grey, in white light, at size 0.75. Then a factor is varied:

- ``pose``: seen from any side; the 3-D objects also from above and below, and rolled by up to 180 degrees. The Pantry's
  camera rises to between 5 and 80 degrees and rolls by up to 90, and the table is seen under the same angle.
- ``position``: the centre anywhere within half a half side of the image's centre, in both directions.
- ``background``: two random colours, and a random pattern or material.
- ``lighting``: the light's colour, three gains between 0.3 and 1. It tints the background too, as real light does.
- ``size``: between 0.4 and 1.3 times the canonical size, uniform on a logarithmic scale.
"""

import dataclasses

import torch
from torch import Tensor

from recipes_lib.data import objects3d, pantry
from recipes_lib.errors import nearest
from recipes_lib.randomness import sample_keys, uniform

SIZE = 0.75
"""Canonical size, in half image sides."""
SIZES = (0.4, 1.3)
"""Smallest and largest size, in canonical sizes."""
GAINS = (0.3, 1.0)
"""Smallest and largest gain of a colour channel."""
FURTHEST = 0.5
"""Largest shift of the object's centre in either direction, in half image sides."""
CONTRAST = 0.3
"""Least distance (sRGB, Euclidean) of a varied background's colours from the object's: an object is never invisible."""
TWINS = (
    (883, 925), (167, 357), (450, 799), (339, 433), (468, 600), (543, 547), (252, 794), (136, 542),
    (215, 510), (618, 730), (61, 589), (284, 823), (245, 676), (73, 410), (590, 596), (321, 454),
    (503, 858), (71, 193), (896, 992), (93, 557), (236, 683), (230, 895), (86, 540), (780, 891),
    (44, 442), (158, 846), (88, 648), (204, 470), (260, 892), (194, 948),
)  # fmt: skip
"""Pairs of 3-D objects of which each is the other's nearest. Similarity is the overlap of their masks (intersection over
union), the mean over four poses; it is 0.73 to 0.90 within these pairs and at most 0.63 between them."""
_VARIANTS = ("wide", "narrow")
_TWIN_KINDS = ("mug", "bottle", "jar", "goblet", "pot", "bowl")  # kinds whose width is one of their shape parameters


class Pantry:
    """The twelve kinds of the Pantry; with ``twins`` six kinds, each as a wide and low class and a narrow and tall one."""

    def __init__(self, seed: int, *, twins: bool = False) -> None:
        self.seed, self.twins = seed, twins
        names = [f"{variant} {kind}" for kind in _TWIN_KINDS for variant in _VARIANTS] if twins else pantry.CLASSES
        self.class_names: tuple[str, ...] = tuple(names)
        self.families: Tensor | None = torch.arange(len(names)) // 2 if twins else None

    def canonical(self, labels: Tensor, numbers: Tensor) -> pantry.Factors:
        """The canonical view of instance ``numbers`` of classes ``labels``, both int64 [N]."""
        keys = sample_keys(self.seed, 0, numbers * len(self.class_names) + labels)
        shape, look = uniform(keys, "pantry shape", 4), uniform(keys, "pantry look", 2)
        kinds = labels
        if self.twins:
            kinds = torch.tensor([pantry.CLASSES.index(name) for name in _TWIN_KINDS])[labels // 2]
            narrow = (labels % 2).float()  # width and height are the first two shape parameters
            shape[:, 0] = 0.25 * shape[:, 0] + 0.75 * (1 - narrow)
            shape[:, 1] = 0.25 * shape[:, 1] + 0.75 * narrow
        count, zero = len(labels), torch.zeros(len(labels))
        nothing = torch.zeros(count, dtype=torch.int64)
        grey = torch.full((count, 3), 0.75)
        return pantry.Factors(
            label=kinds,
            instance=shape,
            material=(look[:, 0] * 2).long(),  # matte or glossy: glass shows the background
            colour=uniform(keys, "pantry colour", 3),
            trim_colour=uniform(keys, "pantry trim", 3),
            pattern=(look[:, 1] * len(pantry.PATTERNS)).long(),
            pattern_colour=uniform(keys, "pantry pattern", 3),
            azimuth=zero + 35,
            elevation=zero + 25,
            roll=zero,
            position=torch.zeros(count, 2),
            size=zero + SIZE,
            background=nothing,
            table_colour=grey,
            wall_colour=grey,
            light_azimuth=zero + 60,
            light_elevation=zero + 50,
            light_strength=zero + 1,
            light_colour=torch.ones(count, 3),
            occluder=nothing,
            occluder_position=torch.zeros(count, 2),
            occluder_size=zero,
            occluder_colour=grey,
            objects=nothing + 1,
            extra_label=torch.zeros(count, 2, dtype=torch.int64),
            extra_azimuth=torch.zeros(count, 2),
            extra_hue=torch.zeros(count, 2),
            style=nothing,
        )

    def vary(self, scenes: pantry.Factors, factor: str, keys: Tensor) -> pantry.Factors:
        """The same scenes with ``factor`` drawn anew from ``keys`` [N]."""
        draws = uniform(keys, f"variation {factor}", 7)
        match factor:
            case "pose":
                turned = {
                    "azimuth": 360 * draws[:, 0],
                    "elevation": 5 + 75 * draws[:, 1],
                    "roll": 180 * draws[:, 2] - 90,
                }
                return dataclasses.replace(scenes, **turned)
            case "background":
                kind = (draws[:, 6] * len(pantry.BACKGROUNDS)).long()
                table, wall = (_apart(part, scenes.colour) for part in (draws[:, :3], draws[:, 3:6]))
                return dataclasses.replace(scenes, background=kind, table_colour=table, wall_colour=wall)
        return dataclasses.replace(scenes, **_plain(factor, draws))

    def render(self, scenes: pantry.Factors, side: int) -> Tensor:
        """The images: uint8 [N, 3, side, side]."""
        return pantry.render(scenes, side)


class Objects:
    """3-D objects in pairs of near twins: each class is a mesh, and an instance stretches and colours it."""

    def __init__(self, seed: int, *, pairs: int) -> None:
        if not 1 <= pairs <= len(TWINS):
            raise ValueError(f"pairs = {pairs} is not allowed: use 1 to {len(TWINS)} pairs of twins.")
        self.seed = seed
        self._meshes = torch.tensor(TWINS[:pairs]).flatten()
        self.class_names: tuple[str, ...] = tuple(f"object {mesh:03d}" for mesh in self._meshes.tolist())
        self.families: Tensor | None = torch.arange(2 * pairs) // 2

    def canonical(self, labels: Tensor, numbers: Tensor) -> objects3d.Factors:
        """The canonical view of instance ``numbers`` of classes ``labels``, both int64 [N]."""
        return objects3d.canonical(self._meshes[labels], seed=self.seed, instance=numbers)

    def vary(self, scenes: objects3d.Factors, factor: str, keys: Tensor) -> objects3d.Factors:
        """The same scenes with ``factor`` drawn anew from ``keys`` [N]."""
        draws = uniform(keys, f"variation {factor}", 10)
        match factor:
            case "pose":
                tilt = torch.rad2deg(torch.asin(2 * draws[:, 1] - 1))  # so that all directions are equally likely
                turned = {"azimuth": 360 * draws[:, 0], "elevation": tilt, "roll": 360 * draws[:, 2] - 180}
                return dataclasses.replace(scenes, **turned)
            case "background":
                kind = (draws[:, 6] * len(objects3d.BACKGROUNDS)).long()
                colours = torch.cat([_apart(part, scenes.colour) for part in draws[:, :6].split(3, dim=1)], dim=1)
                layout = draws[:, 7:]
                return dataclasses.replace(
                    scenes, background=kind, background_colours=colours, background_layout=layout
                )
        return dataclasses.replace(scenes, **_plain(factor, draws))

    def render(self, scenes: objects3d.Factors, side: int) -> Tensor:
        """The images: uint8 [N, 3, side, side]."""
        return objects3d.render(scenes, side)


def _plain(factor: str, draws: Tensor) -> dict[str, Tensor]:
    """The fields of the factors that both renderers name alike."""
    match factor:
        case "position":
            return {"position": FURTHEST * (2 * draws[:, :2] - 1)}
        case "lighting":
            return {"light_colour": GAINS[0] + (GAINS[1] - GAINS[0]) * draws[:, :3]}
        case "size":
            return {"size": SIZE * SIZES[0] * (SIZES[1] / SIZES[0]) ** draws[:, 0]}
    raise ValueError(
        f"There is no factor {factor!r}. {nearest(factor, ('pose', 'position', 'background', 'lighting', 'size'))}"
    )


def _apart(colours: Tensor, others: Tensor) -> Tensor:
    """``colours`` [N, 3], of which those that are closer than ``CONTRAST`` to ``others`` become their complements.

    The complement of a colour near middle grey is near too; such a colour becomes dark or light instead.
    """
    near = (colours - others).norm(dim=1) < CONTRAST
    opposite = torch.where((others - 0.5).norm(dim=1, keepdim=True) < 0.4, (others < 0.5).float(), 1 - others)
    return torch.where(near[:, None], opposite, colours)
