# SPDX-License-Identifier: Apache-2.0
"""Selection of a fifth of a pool from its score files, streaming, beside all scores in memory: rows/s and peak memory.

``python benchmarks/selection.py --rows 10_000_000``; two minutes and 600 MB of temporary files. Each rival runs in a
process of its own, whose peak memory counts from what the interpreter and its imports take.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from recipes_lib.data.pools import pool_selection, score_files, selection
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.data.pools.uids import save_subset, verify_subset

FILE_ROWS = 100_000
WEIGHTS = {"sieve": 0.5, "clip": 0.5}


def make_pool(folder: Path, rows: int) -> list[Path]:
    """Score files without texts: selection never reads these."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        digits = draws.bytes(16 * count).hex()
        uids = [digits[at : at + 32] for at in range(0, 32 * count, 32)]
        sieve, clip = draws.normal(size=(2, count)).astype(np.float32)
        scores = Scores(uids, [""] * count, [""] * count, [[]] * count, sieve, clip)
        path = folder / f"{start:010d}.parquet"
        score_files.write(path, scores, config_hash="benchmark", counts={})
    return sorted(folder.iterdir())


def streaming(files: list[Path], out: Path) -> None:
    pool_selection.select(files, 0.2, WEIGHTS, out, memory_rows=1 << 21)


def in_memory(files: list[Path], out: Path) -> None:
    parts = [batch for path in files for batch in score_files.columns(path, ["sieve", "clip", "uid"])]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    chosen = selection.keep(selection.fuse(columns, WEIGHTS), columns["uid"], 0.2)
    out.mkdir()
    save_subset(out / "subset.npy", columns["uid"][chosen])


def work(rival, files: list[Path], out: Path, sender: Connection) -> None:
    score_files.facts(files[0])  # imports pyarrow
    before, start, cpu = peak_mb(), time.perf_counter(), time.process_time()
    rival(files, out)
    sender.send((time.perf_counter() - start, time.process_time() - cpu, before, peak_mb() - before))


def peak_mb() -> float:
    """The most memory that this process ever had, by Linux's own count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(rival, files: list[Path], out: Path) -> tuple[float, float, float, float]:
    """Seconds, seconds of the processor, MB before and MB more at the peak."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(rival, files, out, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    table = Table(title="a fifth of a pool kept, fused from two signals; files of 100,000 rows")
    for column in ("rows", "rival", "seconds", "rows/s", "processor s", "MB before", "MB more at the peak"):
        table.add_column(column, justify="right")
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as place:
            files = make_pool(Path(place) / "pool", rows)
            for rival in (streaming, in_memory):
                seconds, cpu, before, more = measure(rival, files, Path(place) / rival.__name__)
                figures = (f"{seconds:.1f}", f"{rows / seconds:,.0f}", f"{cpu:.1f}", f"{before:.0f}", f"{more:.0f}")
                table.add_row(f"{rows:,}", rival.__name__, *figures)
            ours, theirs = (verify_subset(Path(place) / name / "subset.npy") for name in ("streaming", "in_memory"))
            np.testing.assert_array_equal(ours, theirs)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
