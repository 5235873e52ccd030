# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of the Pantry's page: ``python book/figures/pantry.py`` writes the PNG files beside it."""

from pathlib import Path

import matplotlib.pyplot as plt
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


def one_by_one() -> dict[str, torch.Tensor]:
    """One kettle; each entry has pictures in which one factor changes and nothing else."""
    scene = pantry.fix(
        pantry.sample_factors(1, seed=1), label="kettle", instance=(0.5, 0.5, 0.4, 0.5), material="glossy", azimuth=25,
        colour=(0.25, 0.5, 0.72), trim_colour=(0.25, 0.2, 0.2), pattern="plain", pattern_colour=(0.95, 0.92, 0.85),
        elevation=22, roll=0, position=(0.0, 0.0), size=0.72, background="wood", table_colour=(0.68, 0.45, 0.26),
        wall_colour=(0.86, 0.84, 0.76), light_azimuth=40, light_elevation=50, light_strength=1.0, occluder=0,
        light_colour=(1.0, 0.98, 0.94), objects=1, extra_label=(10, 0), extra_hue=(0.02, 0.4), style="photo",
        extra_azimuth=(15, 165), occluder_position=(0.6, -0.5), occluder_size=0.35, occluder_colour=(0.8, 0.6, 0.3),
    )  # fmt: skip
    values = {
        "shape": ("instance", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 0), (0, 0, 1, 1), (1, 1, 1, 1)]),
        "material": ("material", ["matte", "glossy", "metal", "glass"]),
        "pattern": ("pattern", list(pantry.PATTERNS)),
        "azimuth": ("azimuth", [-155, -95, -35, 25, 85, 145]),
        "elevation": ("elevation", [2, 15, 28, 41, 54, 67]),
        "position": ("position", [(-0.4, 0), (0.4, 0), (0, 0.4), (0, -0.4), (-0.3, 0.3), (0.3, -0.3)]),
        "size": ("size", [0.3, 0.45, 0.6, 0.75, 0.9, 1.05]),
        "background": ("background", list(pantry.BACKGROUNDS)),
        "light, direction": ("light_azimuth", [-60, 0, 60, 120, 180, 240]),
        "light, strength": ("light_strength", [0.2, 0.5, 0.8, 1.1, 1.4, 1.7]),
        "objects": ("objects", [1, 2, 3]),
        "occluder": ("occluder_size", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        "style": ("style", list(pantry.STYLES)),
    }
    sheets = {}
    for label, (field, options) in values.items():
        base = pantry.fix(scene, occluder=1) if label == "occluder" else scene
        sheets[label] = torch.cat([pantry.render(pantry.fix(base, **{field: option}), 64) for option in options])
    return sheets


def save_rows(name: str, rows: dict[str, torch.Tensor], side: int) -> None:
    """A row of pictures for each entry, its label at the left."""
    columns, gap, margin = max(len(images) for images in rows.values()), 2, 118
    width, height = margin + columns * (side + gap), len(rows) * (side + gap)
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    for row, (label, images) in enumerate(rows.items()):
        top = height - row * (side + gap) - side
        sheet = pantry.contact_sheet(images, columns, gap).permute(1, 2, 0).numpy()
        figure.figimage(sheet, margin, top)
        figure.text((margin - 8) / width, (top + side / 2) / height, label, ha="right", va="center", color="#222222")
    figure.canvas.draw()
    picture = Image.frombuffer("RGBA", (width, height), figure.canvas.buffer_rgba()).convert("RGB")
    picture.quantize(192).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    save("pantry-natural", pantry.render(one_of_each("natural"), 96), columns=12)
    save("pantry-controlled", pantry.render(one_of_each("controlled"), 96), columns=12)
    save("pantry-small", pantry.render(one_of_each("natural"), 32), columns=12, enlarge=2)
    save("pantry-causes", pantry.render(changes(), 128), columns=6)
    save("pantry-large", pantry.render(one_of_each("natural").select(torch.tensor([0, 8, 13])), 224), columns=3)
    save_rows("pantry-factors", one_by_one(), side=64)
