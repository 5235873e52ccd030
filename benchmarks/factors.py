# SPDX-License-Identifier: Apache-2.0
"""Factor accuracies and error ratios of many models against the official toolkit, run model by model: time and memory.

``RECIPES_DATA=FOLDER python benchmarks/error_ratios.py``: four real models and 2,200 drawn ones, 50,000 images each, with the
annotations of the installed ``imagenet-x``. Reading files is left out on both sides: the toolkit has tables in memory, we
have an int16 array. Both find all three kinds of correctness; the toolkit for one kind of mark (``top``), we for both. The
toolkit is timed on a few models, alternately with ours on all, and its time is scaled: it is the same for each. Seconds are
the processor's, of one thread; memory is that of a process of its own. Minutes.
"""

import argparse
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import imagenet_x as toolkit
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from selection import peak_mb

from recipes_lib.factors import error_ratios, imagenet_x_files, inference, predictions
from recipes_lib.factors.annotations import Annotations
from recipes_lib.factors.predictions import Predictions

COLUMNS = ("is_correct", "is_correct_real", "is_metaclass_correct")


def known() -> Annotations:
    return imagenet_x_files.read(Path(toolkit.__file__).parent).val


def drawn(labels: np.ndarray, models: int) -> Predictions:
    """Models right on 60 to 80 % of the images, made one by one so that making them takes no memory."""
    draw = np.random.default_rng(0)
    classes = np.empty((models, len(labels)), np.int16)
    for row in classes:
        wrong = draw.integers(1000, size=len(labels), dtype=np.int16)
        np.copyto(row, np.where(draw.random(len(labels), dtype=np.float32) < draw.uniform(0.6, 0.8), labels, wrong))
    return Predictions(tuple(f"model-{number}" for number in range(models)), classes)


def ours(known: Annotations, given: Predictions) -> list[np.ndarray]:
    found = [error_ratios.count(given, known, kind) for kind in error_ratios.allowed(known)]
    return [by_kind[which].error_ratio for by_kind in found for which in ("top", "multi")]


def theirs(marks: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> list[np.ndarray]:
    """Model by model: joined with the annotations, judged, grouped. [models, 16] for each kind of correctness."""
    ratios: list[list[np.ndarray]] = [[] for _ in COLUMNS]
    for name, frame in tables.items():
        rows = toolkit.augment_model_predictions(marks, {name: frame})
        for place, column in enumerate(COLUMNS):
            found = toolkit.error_ratio(toolkit.compute_factor_accuracies(rows, toolkit.FACTORS, column))
            ratios[place].append(found.to_numpy()[0])
    return [np.stack(rows) for rows in ratios]


def frames(known: Annotations, given: Predictions, models: int) -> dict[str, pd.DataFrame]:
    """The first models as the toolkit holds them, in the order of its own list."""
    order = np.argsort(known.labels, kind="stable")
    index = pd.Index(known.names[order], name="file_name")
    pairs = zip(given.models[:models], given.classes[:models], strict=True)
    return {
        name: pd.DataFrame({"predicted_class": row[order].astype(int), "predicted_probability": 1.0}, index=index)
        for name, row in pairs
    }


def bootstrap(counts: error_ratios.Counts) -> tuple[np.ndarray, np.ndarray]:
    return inference.bootstrap_ratio(counts, 0, generator=np.random.default_rng(0), resamples=1000)


def timed(call: Callable, *arguments: object) -> tuple[float, Sequence[np.ndarray]]:
    start = time.process_time()
    found = call(*arguments)
    return time.process_time() - start, found


def compare(known: Annotations, given: Predictions, models: int, rounds: int) -> tuple[float, float]:
    """Median seconds of ours on all models, and of the toolkit on as many, scaled from ``models``; both must agree."""
    marks, tables = toolkit.load_annotations("top"), frames(known, given, models)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        own, found = timed(ours, known, given)
        other, expected = timed(theirs, marks, tables)
        for place, ratios in enumerate(expected):
            np.testing.assert_array_equal(found[2 * place][:models], ratios)
        seconds[0].append(own)
        seconds[1].append(other * len(given.models) / models)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def memory(models: int, sender: Connection) -> None:
    """Sends the size of the predictions, and the most memory beyond what was there before them, in MB."""
    images = known()
    error_ratios.count(drawn(images.labels, 1), images)
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")  # forgets the peak of reading the annotations
    before = peak_mb()
    given = drawn(images.labels, models)
    ours(images, given)
    sender.send((given.classes.nbytes / 2**20, peak_mb() - before))


def peak_of(models: int) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=memory, args=(models, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=2200)
    parser.add_argument("--toolkit-models", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # pandas', about the toolkit
    images = known()
    table = Table(title="three kinds of correctness, 16 factors, 50,000 images")
    for column in ("models", "ours, s", "toolkit, s", "times as long", "predictions, MB", "peak, MB", "times these"):
        table.add_column(column, justify="right")
    cases = {"drawn": drawn(images.labels, given.models)}
    if place := os.environ.get("RECIPES_DATA"):
        cases["real"] = predictions.read([Path(place, "imagenet_x", "imagenet_x_val.npz")], images)
    for name, answers in cases.items():
        count = len(answers.models)
        own, other = compare(images, answers, min(count, given.toolkit_models), given.rounds)
        row = (f"{count:,} {name}", f"{own:.3f}", f"{other:,.1f}", f"{other / own:.0f}")
        size, peak = peak_of(count) if name == "drawn" else (0, 0)
        table.add_row(*row, *((f"{size:.0f}", f"{peak:.0f}", f"{peak / size:.2f}") if size else ("", "", "")))
    Console(width=110).print(table)
    for which, counts in error_ratios.count(Predictions(("one",), cases["drawn"].classes[:1]), images).items():
        seconds = [timed(bootstrap, counts)[0] for _ in range(7)]
        print(f"bootstrap, one model, 16 factors ({which}), 1,000 resamples: {statistics.median(seconds) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
