# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of the Pantry's page: ``python book/figures/pantry.py`` writes the PNG files beside it."""

from pathlib import Path

import torch
from PIL import Image

from recipes_lib.data import pantry

HERE = Path(__file__).parent


def save(name: str, images: torch.Tensor, columns: int, enlarge: int = 1) -> None:
    sheet = pantry.contact_sheet(images, columns).permute(1, 2, 0).numpy()
    picture = Image.fromarray(sheet)
    picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
    picture.quantize(192).save(HERE / f"{name}.png", optimize=True)


def one_of_each(scenes: str) -> pantry.Factors:
    """Two pictures of every class, the classes in their order."""
    factors = pantry.sample_factors(240, seed=0, scenes=scenes)
    rows = [(factors.label == kind).nonzero()[:2, 0] for kind in range(len(pantry.CLASSES))]
    return factors.select(torch.stack(rows, dim=1).flatten())


def changes() -> pantry.Factors:
    """One mug, and the same mug with one cause changed at a time."""
    mug = pantry.fix(
        one_of_each("natural").select(torch.tensor([0])), azimuth=40.0, objects=1, occluder=0, style="photo"
    )
    alone = [
        {},
        {"azimuth": 150.0},
        {"elevation": 60.0},
        {"size": 0.5},
        {"pattern": "checks"},
        {"material": "metal"},
        {"background": "cloth"},
        {"light_azimuth": 180.0, "light_elevation": 20.0},
        {"occluder": 1},
        {"objects": 3},
        {"style": "sketch"},
        {"style": "dusk"},
    ]
    pictures = [pantry.fix(mug, **change).to_dict() for change in alone]
    return pantry.Factors(**{name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]})


if __name__ == "__main__":
    save("pantry-natural", pantry.render(one_of_each("natural"), 96), columns=12)
    save("pantry-controlled", pantry.render(one_of_each("controlled"), 96), columns=12)
    save("pantry-small", pantry.render(one_of_each("natural"), 32), columns=12, enlarge=2)
    save("pantry-causes", pantry.render(changes(), 128), columns=6)
    save("pantry-large", pantry.render(one_of_each("natural").select(torch.tensor([0, 8, 13])), 224), columns=3)
