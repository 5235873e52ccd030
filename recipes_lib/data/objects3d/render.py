# SPDX-License-Identifier: Apache-2.0
"""Renders factors of 3-D objects to images: shades of a white object by pybullet's CPU renderer, and the rest here.

The camera stays, and the image window moves and grows instead of the object, so position and size show the same side.
Order of operations: the object is rotated and shaded; its colour multiplies the shade; it is laid over the background
by its mask; the light's colour multiplies the result; 2 x 2 pixels are averaged into one.
"""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from recipes_lib.data.objects3d import meshes
from recipes_lib.data.objects3d.factors import BACKGROUNDS, Factors

VERSION = 1
"""The renderer's version. Raise it if the image of the same factors changes: cached images are then made again."""
SMALLEST, LARGEST = 8, 512
"""Smallest and largest side of an image, in pixels."""
_DISTANCE = 4.0  # of the camera from the object's centre, in radii of the object
_AMBIENT, _DIFFUSE = 0.35, 0.65
_CHUNK = 256  # images that are composed together


@torch.no_grad()
def render(factors: Factors, size: int) -> Tensor:
    """Renders the images of ``factors``: uint8 [N, 3, size, size].

    An image depends on its own factors only, so images may be rendered in any order, number and process.

    Raises: ``ValueError`` for factors out of range or a side outside 8 to 512; ``DataError`` without pybullet.
    """
    _check(factors, size)
    images = torch.empty(len(factors), 3, size, size, dtype=torch.uint8)
    for rows in torch.arange(len(factors)).split(_CHUNK):
        part = factors.select(rows)
        shade, mask = _shades(part, 2 * size)
        images[rows] = _composed(part, shade[:, None], mask[:, None])
    return images


@torch.no_grad()
def masks(factors: Factors, size: int) -> Tensor:
    """Where the object is seen: bool [N, size, size]. Raises: as :func:`render`."""
    _check(factors, size)
    return _shades(factors, 2 * size)[1].view(-1, size, 2, size, 2).float().mean(dim=(2, 4)) >= 0.5


def backgrounds(factors: Factors, side: int) -> Tensor:
    """The backgrounds without objects: float32 [N, 3, side, side] in [0, 1], before the light's colour."""
    share = torch.zeros(len(factors), 1, side, side)
    for number, kind in enumerate(BACKGROUNDS):
        rows = (factors.background == number).nonzero()[:, 0]
        if kind != "plain" and len(rows):
            share[rows, 0] = _pattern(kind, factors.background_layout[rows], side)
    one, other = factors.background_colours.view(-1, 2, 3, 1, 1).unbind(dim=1)
    return one + share * (other - one)


def _pattern(kind: str, layout: Tensor, side: int) -> Tensor:
    """The share of the second colour at each pixel, in [0, 1].  [N, 3] -> [N, side, side]"""
    across, down = torch.meshgrid(*[(torch.arange(side) + 0.5) / side * 2 - 1] * 2, indexing="xy")
    angle, scale, shift = layout[:, :, None, None].unbind(dim=1)  # [N, 1, 1] each
    along = (torch.pi * angle).cos() * across + (torch.pi * angle).sin() * down
    if kind == "fade":
        return (0.5 + 0.35 * along).clamp(0, 1)
    beside = (torch.pi * angle).cos() * down - (torch.pi * angle).sin() * across
    periods = 1 + 3 * scale  # per half image side
    first = (periods * along + shift) % 1
    if kind == "stripes":
        return (first < 0.5).float()
    if kind == "checks":
        return ((first < 0.5) ^ ((periods * beside + shift) % 1 < 0.5)).float()
    crossing = 0.7 * periods * beside + 0.5 * along + shift  # clouds: two waves that do not repeat together
    return ((2 * torch.pi * first).sin() + (2 * torch.pi * crossing).sin()) / 4 + 0.5


def _check(factors: Factors, size: int) -> None:
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size = {size} is not allowed: use a side of {SMALLEST} to {LARGEST} pixels.")
    factors.check()


def _composed(factors: Factors, shade: Tensor, mask: Tensor) -> Tensor:
    """uint8 [N, 3, side / 2, side / 2] of shades and masks [N, 1, side, side]."""
    colour = factors.colour.view(-1, 3, 1, 1) * shade
    image = torch.where(mask, colour, backgrounds(factors, shade.shape[-1]))
    image = (image * factors.light_colour.view(-1, 3, 1, 1)).clamp(0, 1)
    return (torch.nn.functional.avg_pool2d(image, 2) * 255 + 0.5).to(torch.uint8)


def _shades(factors: Factors, side: int) -> tuple[Tensor, Tensor]:
    """Shades of white objects, float32 [N, side, side] in [0, 1], and where they are, bool [N, side, side]."""
    shade = torch.zeros(len(factors), side, side)
    mask = torch.zeros(len(factors), side, side, dtype=torch.bool)
    values = {name: value.double().numpy() for name, value in factors.to_dict().items()}
    turn = Rotation.from_euler("zxy", np.stack([values["azimuth"], values["elevation"], -values["roll"]], 1), True)
    with meshes.simulator() as (bullet, client):
        view = bullet.computeViewMatrix((0, -_DISTANCE, 0), (0, 0, 0), (0, 0, 1), physicsClientId=client)
        for row, body, centre in _bodies(factors, bullet, client):
            place = -turn[row].apply(centre)
            bullet.resetBasePositionAndOrientation(body, place, turn[row].as_quat(), physicsClientId=client)
            _, _, colours, _, seen = bullet.getCameraImage(
                side,
                side,
                view,
                window(values["position"][row], values["size"][row]),
                lightDirection=_towards(values["light_azimuth"][row], values["light_elevation"][row]),
                lightColor=(1, 1, 1),
                shadow=0,
                lightAmbientCoeff=_AMBIENT,
                lightDiffuseCoeff=_DIFFUSE,
                lightSpecularCoeff=0,
                renderer=bullet.ER_TINY_RENDERER,
                physicsClientId=client,
            )
            shade[row] = torch.from_numpy(np.asarray(colours).reshape(side, side, 4)[..., 0] / np.float32(255))
            mask[row] = torch.from_numpy(np.asarray(seen).reshape(side, side) >= 0)
    return shade, mask


def _bodies(factors: Factors, bullet: ModuleType, client: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each row, in an order in which each instance is loaded once, with its body and the body's centre [3]."""
    rows = torch.cat([factors.mesh[:, None].float(), factors.stretch], dim=1)
    kinds, kind = torch.unique(rows, dim=0, return_inverse=True)
    for number, (mesh, *stretch) in enumerate(kinds.double().tolist()):
        corners = meshes.vertices(int(mesh)) * stretch
        centre = (corners.max(axis=0) + corners.min(axis=0)) / 2
        radius = np.linalg.norm(corners - centre, axis=1).max()
        shape = bullet.createVisualShape(
            bullet.GEOM_MESH,
            fileName=str(meshes.path(int(mesh))),
            meshScale=[value / radius for value in stretch],
            rgbaColor=(1, 1, 1, 1),
            physicsClientId=client,
        )
        body = bullet.createMultiBody(baseMass=0, baseVisualShapeIndex=shape, physicsClientId=client)
        for row in (kind == number).nonzero()[:, 0].tolist():
            yield row, body, centre / radius
        bullet.removeBody(body, physicsClientId=client)


def window(position: np.ndarray, size: float) -> list[float]:
    """The projection matrix, column by column, that shows the unit sphere with radius ``size`` at ``position`` [2]."""
    near, far = _DISTANCE - 1.5, _DISTANCE + 1.5
    focus = np.sqrt(_DISTANCE**2 - 1)  # the unit sphere's outline then touches the image's borders at size 1
    matrix = np.zeros((4, 4))
    matrix[0, 0] = matrix[1, 1] = size * focus
    matrix[0, 2], matrix[1, 2] = -position
    matrix[2, 2:] = (near + far) / (near - far), 2 * near * far / (near - far)
    matrix[3, 2] = -1
    return matrix.T.ravel().tolist()


def _towards(azimuth: float, elevation: float) -> tuple[float, float, float]:
    around, up = np.deg2rad(azimuth), np.deg2rad(elevation)
    return (float(np.cos(around) * np.cos(up)), float(-np.sin(around) * np.cos(up)), float(np.sin(up)))
