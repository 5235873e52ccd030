# SPDX-License-Identifier: Apache-2.0
"""What the scorer of pairs costs beside its models, and whether its memory stays flat: ``python benchmarks/pair_scores.py``.

The models are synthetic: a captioner that takes a known time, as BLIP would on a GPU while the processor is free, and an
encoder that looks its vectors up. Two minutes. ``--memory 1_000_000`` scores so many pairs with models that take no time
at all (ten minutes), and shows the process's memory as it goes on.
"""

import argparse
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table

from recipes_lib.data.pairs import Pair
from recipes_lib.recipes.sieve.pair_scores import SieveScorer, score_shards

COUNT, BATCH, DIM = 8, 64, 384
IMAGE = Image.new("RGB", (224, 224))
WORDS = [
    f"{a} {b} on a {c}"
    for a in ("red", "blue", "old")
    for b in ("mug", "jug", "bowl", "kettle")
    for c in ("table", "shelf")
]


class Captioner:
    """Takes ``seconds`` an image and then says what stands in a list."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.spent = seconds, 0.0

    def generate(self, images, count, seeds):
        start = time.perf_counter()
        if self.seconds:
            time.sleep(self.seconds * len(images))
        starts = (seeds % len(WORDS)).tolist()
        found = [[f"a photo of {WORDS[(s + k) % len(WORDS)]}" for k in range(count)] for s in starts]
        self.spent += time.perf_counter() - start
        return found


class Encoder:
    """Looks up rows of a table of unit vectors."""

    def __init__(self) -> None:
        self.table, self.spent = (
            F.normalize(torch.randn(1024, DIM, generator=torch.Generator().manual_seed(0)), dim=1),
            0.0,
        )

    def encode(self, texts):
        start = time.perf_counter()
        found = self.table[torch.tensor([hash(text) % 1024 for text in texts])]
        self.spent += time.perf_counter() - start
        return found


class Clip:
    """Takes no time."""

    def similarity(self, images, texts):
        return torch.zeros(len(texts))


def reader(pairs: int):
    """A reader of synthetic shards of this many pairs, which share one picture."""

    def read(path: Path, *, on_damage: str, counts: Counter) -> Iterator[Pair]:
        for row in range(pairs):
            uid = hashlib.md5(f"{path.stem} {row}".encode()).hexdigest()
            yield Pair(uid, f"{row:06d}", f"image of the {WORDS[row % len(WORDS)]}, number {row}", IMAGE)

    return read


def resident_mb() -> float:
    """This process's memory at the moment (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def score(shards: int, pairs: int, seconds: float, progress=lambda done: None) -> tuple[float, float, float]:
    """Seconds in all, seconds in the models, seconds of the processor, for ``shards`` shards of ``pairs`` pairs."""
    captioner, encoder = Captioner(seconds), Encoder()
    scorer = SieveScorer(captioner, encoder, Clip(), count=COUNT)
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(f"{number:05d}.tar") for number in range(shards)]
        start, cpu = time.perf_counter(), time.process_time()
        how = {"read": reader(pairs), "batch_size": BATCH, "config_hash": "benchmark"}
        score_shards(paths, scorer, Path(place), progress=progress, **how)
        return time.perf_counter() - start, captioner.spent + encoder.spent, time.process_time() - cpu


def overhead() -> None:
    """Shows the scorer's time beside that of models of several speeds."""
    table = Table(title=f"{COUNT} captions an image, batches of {BATCH}, shards of 1,000 pairs")
    for column in (
        "captioner: images/s",
        "pairs/s end to end",
        "all / models alone",
        "own ms a pair",
        "processor ms a pair",
    ):
        table.add_column(column, justify="right")
    for speed, shards in ((50, 1), (200, 3), (1000, 5), (None, 5)):
        total, models, cpu = score(shards, 1000, 1 / speed if speed else 0.0)
        pairs = 1000 * shards
        own = f"{(total - models) / pairs * 1e3:.3f}"
        ratio = f"{total / models:.3f}" if speed else "-"
        table.add_row(str(speed or "no time"), f"{pairs / total:,.0f}", ratio, own, f"{cpu / pairs * 1e3:.3f}")
    Console(width=110).print(table)


def memory(pairs: int) -> None:
    """Shows this process's memory after each tenth of so many pairs, in shards of 10,000 as DataComp's are."""
    shards = -(-pairs // 10_000)
    console, seen = Console(), []

    def progress(done) -> None:
        if done.shards_done > len(seen):
            seen.append(resident_mb())
            if len(seen) % max(1, shards // 10) == 0:
                console.print(f"{done.pairs:,} pairs: {seen[-1]:.0f} MB")

    total, _, _ = score(shards, 10_000, 0.0, progress)
    console.print(f"{shards * 10_000 / total:,.0f} pairs/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, metavar="PAIRS")
    pairs = parser.parse_args().memory
    torch.set_num_threads(1)
    if pairs:
        memory(pairs)
    else:
        overhead()


if __name__ == "__main__":
    main()
