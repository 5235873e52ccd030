# SPDX-License-Identifier: Apache-2.0
"""A thousand 3-D objects, rendered on the CPU with all true factors known; needs the extra ``objects`` (pybullet).

The meshes are pybullet's random objects, made of a few joined parts: numbers 0 to 999, without names of their own.

>>> from recipes_lib.data import objects3d
>>> factors = objects3d.fix(objects3d.canonical([7, 7, 12], seed=0), azimuth=[0, 90, 0], light_colour=[1, 0.8, 0.6])
>>> objects3d.render(factors, size=64).shape  # doctest: +SKIP
torch.Size([3, 3, 64, 64])
"""

from recipes_lib.data.objects3d.factors import BACKGROUNDS, MESHES, Factors, canonical, fix
from recipes_lib.data.objects3d.meshes import missing, vertices
from recipes_lib.data.objects3d.render import masks, render

__all__ = [
    "BACKGROUNDS",
    "MESHES",
    "Factors",
    "canonical",
    "fix",
    "masks",
    "missing",
    "render",
    "vertices",
]
