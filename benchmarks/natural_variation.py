# SPDX-License-Identifier: Apache-2.0
"""How fast controlled images are made, beside what a network needs for them, and how much memory they take.

``python benchmarks/natural_variation.py``; one thread, under two minutes. Needs the extra ``objects``.
"""

import argparse
import time

import torch
from side_by_side import show, side_by_side

from recipes_lib.data import objects3d, pantry
from recipes_lib.recipes.natural_variation import catalogue, scenes, sources

COUNT, SIDE = 96, 64
BATCHED = "objects, rendered together"


def main() -> None:
    """Prints one table, and the memory of the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = sources.Drawn(scenes.Objects(0, pairs=6), train=1, test=1, values=8, side=SIDE, seed=0)
    shots = source.shots("test", ("pose",)).select(slice(0, COUNT))
    images = source.images(shots)
    how = {"class_names": source.class_names, "side": SIDE, "device": torch.device("cpu"), "seed": 0}
    network = catalogue.load("lite0", **how)
    kitchen = pantry.sample_factors(COUNT, seed=0, scenes="controlled")
    meshes = objects3d.canonical(list(range(COUNT)))
    rivals = {
        BATCHED: lambda: source.images(shots),
        "objects, one by one": lambda: [source.images(shots.select(slice(i, i + 1))) for i in range(COUNT)],
        "objects, each another mesh": lambda: objects3d.render(meshes, SIDE),
        "the Pantry": lambda: pantry.render(kitchen, SIDE),
        "features by EfficientNet-Lite0": lambda: network.features(images),
    }
    found = side_by_side(rivals, rounds=arguments.rounds, reference=BATCHED, clock=time.process_time)
    show(
        f"{COUNT} images of {SIDE} pixels, one thread, process time",
        {"64 pixels": found},
        per_call={"64 pixels": COUNT},
    )
    print(
        f"a million images: {images[0].numel() / 1e3:.1f} GB as stored bytes, four times that as float32; none is stored"
    )


if __name__ == "__main__":
    main()
