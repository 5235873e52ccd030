# SPDX-License-Identifier: Apache-2.0
"""Sieve's run, stopped anywhere, on two processes, and over damaged or real shards."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")

from recipes_lib.config import override
from recipes_lib.data.pairs import Pair
from recipes_lib.data.pools import score_files, shards, uids
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import DataError, Interrupted
from recipes_lib.pretraining import runs
from recipes_lib.recipes.sieve import pair_scores
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.training.folder import RunFolder


@pytest.fixture
def pool(tmp_path, whole) -> Path:
    """The same pool as shards of one's own."""
    return Path(shutil.copytree(whole / "pool", tmp_path / "mine"))


def of_shards(config: sieve.Config, pool: Path, **changes) -> sieve.Config:
    return override(config, {"data.name": "shards", "data.root": pool, **changes})


def unscored(whole: Path, folder: Path) -> Path:
    """The run as it was when its captioner had just been trained."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("scores", "subset.*", "report.json", "state.json"))
    return folder


def results(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "scores").iterdir(), folder / "subset.npy", folder / "subset.json"]
    return {path.name: path.read_bytes() for path in files}


# stopped


def _killed(config: sieve.Config, folder: Path, arrange: Callable[[], None]) -> int:
    def work() -> None:
        torch.set_num_threads(1)
        arrange()
        sieve.RECIPE.run(config, folder)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    return process.exitcode


def _within(shard: int, batch: int) -> Callable[[], None]:
    """Dies when it has scored so many batches of the shard."""

    def arrange() -> None:
        score, calls = pair_scores.SieveScorer.score, []

        def score_then_die(self, pairs):
            calls.append(pairs)
            if len(calls) == 2 * shard + batch:  # 8 pairs are two batches
                os.kill(os.getpid(), signal.SIGKILL)
            return score(self, pairs)

        pair_scores.SieveScorer.score = score_then_die

    return arrange


def test_killed_while_scoring_the_same_command_goes_on_to_the_same_bytes(tiny_sieve, whole, tmp_path):
    folder = unscored(whole, tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    assert _killed(tiny_sieve, folder, _within(shard=1, batch=2)) == -signal.SIGKILL
    assert [path.name for path in (folder / "scores").glob("*.parquet")] == ["00000000.parquet"]
    assert _killed(tiny_sieve, folder, _within(shard=0, batch=2)) == -signal.SIGKILL  # the second shard anew
    report = runs.resume(sieve.RECIPE, folder).report
    assert results(folder) == results(whole)
    assert report["pairs"] == 24
    assert noted(folder) == SHARDS


SHARDS = [(1, "00000000", 8), (2, "00000001", 8), (3, "00000002", 8)]


def noted(folder: Path) -> list[tuple[int, str, int]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["shard"], line["pairs"]) for line in lines]


@pytest.mark.parametrize("before", ["file", "line"])
def test_killed_around_a_shards_end_each_shard_has_its_line_once(tiny_sieve, whole, tmp_path, before):
    folder = unscored(whole, tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "sha')  # of a kill before this one

    def arrange() -> None:
        write = score_files.write

        def write_or_die(path, rows, **how):
            if before == "line" or not path.stem.endswith("1"):
                write(path, rows, **how)
            if path.stem.endswith("1"):
                os.kill(os.getpid(), signal.SIGKILL)

        score_files.write = write_or_die

    assert _killed(tiny_sieve, folder, arrange) == -signal.SIGKILL
    runs.resume(sieve.RECIPE, folder)
    assert noted(folder) == SHARDS


def test_a_signal_ends_between_batches_and_says_how_to_go_on(tiny_sieve, whole, tmp_path, monkeypatch):
    folder = unscored(whole, tmp_path / "run")
    score = pair_scores.SieveScorer.score

    def score_then_ask(self, pairs):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(self, pairs)

    monkeypatch.setattr(pair_scores.SieveScorer, "score", score_then_ask)
    with pytest.raises(Interrupted, match=rf"complete shards are kept\. Go on: recipes resume {folder}$"):
        sieve.RECIPE.run(tiny_sieve, folder)
    assert RunFolder.open(folder).state()["status"] == "interrupted"
    monkeypatch.undo()
    sieve.RECIPE.run(tiny_sieve, folder)
    assert results(folder) == results(whole)


def go_on(folder: str) -> int:
    return runs.resume(sieve.RECIPE, Path(folder)).report["pairs"]


@pytest.mark.distributed
def test_two_ranks_write_the_files_of_one(whole, tmp_path):
    folder = unscored(whole, tmp_path / "run")
    assert run_ranks(go_on, 2, str(folder)) == [24, 24]
    assert results(folder) == results(whole)
    assert noted(folder) == SHARDS


# bad input


def test_weights_or_shards_that_are_absent_leave_no_folder(tiny_sieve, tmp_path, pool, monkeypatch):
    with pytest.raises(DataError, match=r"There is no shard .*nowhere"):
        sieve.RECIPE.run(of_shards(tiny_sieve, tmp_path / "nowhere"), tmp_path / "run")

    def absent(name: str) -> None:
        raise DataError(f"{name} is not installed")

    monkeypatch.setattr(sieve, "load_encoder", absent)
    with pytest.raises(DataError, match="ngrams is not installed"):
        sieve.RECIPE.run(of_shards(tiny_sieve, pool), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 2000])
def test_a_shard_that_is_cut_or_no_tar_file_is_told_before_a_model_is_trained(
    tiny_sieve, tmp_path, pool, monkeypatch, damage
):
    second = pool / "00000001.tar"
    second.write_bytes(damage(second.read_bytes()))
    monkeypatch.setattr(sieve.models, "captioner_of", lambda *_: pytest.fail("a model was trained"))
    with pytest.raises(DataError, match=r"Shard .*00000001\.tar.*--data\.on-damage skip"):
        sieve.RECIPE.run(of_shards(tiny_sieve, pool), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_shard_stops_by_name_and_the_run_goes_on_when_it_is_mended(tiny_sieve, tmp_path, pool, whole):
    second = pool / "00000001.tar"
    sound = second.read_bytes()
    with tarfile.open(second) as archive:
        place = archive.getmembers()[12].offset
    second.write_bytes(sound[:place] + b"\xff" * 8 + sound[place + 8 :])  # a header in the middle
    with pytest.raises(DataError, match=r"Shard .*00000001\.tar.*--data\.on-damage skip") as error:
        sieve.RECIPE.run(of_shards(tiny_sieve, pool), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert RunFolder.open(tmp_path / "run").state()["status"] == "failed"
    second.write_bytes(sound)
    runs.resume(sieve.RECIPE, tmp_path / "run")
    assert (tmp_path / "run" / "subset.npy").read_bytes() == (whole / "subset.npy").read_bytes()
    third = pool / "00000002.tar"
    third.unlink()
    (tmp_path / "run" / "state.json").write_text('{"status": "interrupted", "step": 0}')
    with pytest.raises(DataError, match=r"1 shards that scoring into .* have gone, the first '00000002'"):
        runs.resume(sieve.RECIPE, tmp_path / "run")


def test_damage_that_is_skipped_is_counted_and_told(tiny_sieve, tmp_path, pool, capsys):
    sound = list(shards.read(pool / "00000001.tar", on_damage="stop"))
    odd = Pair(f"{1:032x}", "odd", " ", sound[0].image)
    (path,) = shards.write([*sound, odd], tmp_path / "longer", 20)
    with tarfile.open(path) as old, tarfile.open(pool / "00000001.tar", "w") as new:
        for member in old:
            if member.name != f"{sound[2].key}.txt":
                new.addfile(member, old.extractfile(member))
    report = sieve.RECIPE.run(of_shards(tiny_sieve, pool, **{"data.on_damage": "skip"}), tmp_path / "run").report
    assert report["pairs"] == 24  # one is lost, one was added
    assert report["counts"]["empty text"] == 1
    (lost,) = [reason for reason in report["counts"] if reason != "empty text"]
    said = capsys.readouterr().err
    assert f"warning: 1 pairs: {lost}." in said
    assert "warning: 1 pairs: empty text." in said
    rows = score_files.read(tmp_path / "run" / "scores" / "00000001.parquet")
    assert rows.sieve[rows.uids.index(odd.uid)] == 0
    assert sound[2].uid not in rows.uids


def test_what_is_said_of_a_copied_shard_can_be_done_to_the_end(tiny_sieve, tmp_path, pool, whole):
    copy, folder = Path(shutil.copyfile(pool / "00000001.tar", pool / "00000003.tar")), tmp_path / "run"
    with pytest.raises(
        DataError, match="A shard that is a copy may go altogether, with its score file and its name in"
    ):
        sieve.RECIPE.run(of_shards(tiny_sieve, pool), folder)
    copy.unlink()
    (folder / "scores" / "00000003.parquet").unlink()
    names = json.loads((folder / "scores" / "shards.json").read_text())
    (folder / "scores" / "shards.json").write_text(json.dumps(names[:-1]))
    runs.resume(sieve.RECIPE, folder)
    assert (folder / "subset.npy").read_bytes() == (whole / "subset.npy").read_bytes()
    assert noted(folder) == SHARDS


def test_what_is_said_of_a_pair_in_two_shards_can_be_done_to_the_end_of_a_finished_run(tiny_sieve, tmp_path, pool):
    first, second = (list(shards.read(pool / f"0000000{i}.tar", on_damage="stop")) for i in range(2))
    sound = (pool / "00000001.tar").read_bytes()
    (twice,) = shards.write([*second[:7], first[0]], tmp_path / "twice", 8)
    shutil.copyfile(twice, pool / "00000001.tar")
    scored = sieve.RECIPE.run(of_shards(tiny_sieve, pool, stage="score"), tmp_path / "scored").folder
    select = of_shards(tiny_sieve, pool, **{"select.scores": scored / "scores"})
    with pytest.raises(DataError, match=rf"Leave this one out of all shards but one, .* recipes resume {scored}\."):
        sieve.RECIPE.run(select, tmp_path / "select")
    (pool / "00000001.tar").write_bytes(sound)
    (scored / "scores" / "00000001.parquet").unlink()
    assert runs.resume(sieve.RECIPE, scored).report["pairs"] == 24
    assert sieve.RECIPE.run(select, tmp_path / "select").report["selection"]["kept"] == 12


# real data


def test_wikipedias_images_go_through_every_stage(tiny_sieve, tmp_path, recipes_data, sentence_encoder):
    source = recipes_data / "wiki_alttext64"
    rows = list(csv.DictReader((source / "texts.csv").open(encoding="utf-8", newline="")))[:30]
    images = np.load(source / "images64.npz")["images"]
    pairs = [Pair(f"{i:032x}", f"{i:06d}", row["alt_text"], Image.fromarray(images[i])) for i, row in enumerate(rows)]
    shards.write(pairs, tmp_path / "pool", 12)
    run = sieve.RECIPE.run(of_shards(tiny_sieve, tmp_path / "pool", **{"encoder.name": "minilm"}), tmp_path / "run")
    assert run.report["pairs"] == 30
    assert run.report["scores"] == {}  # nobody knows which of them are right
    scores = [score_files.read(path) for path in sorted((run.folder / "scores").glob("*.parquet"))]
    assert [text for part in scores for text in part.texts] == [pair.text for pair in pairs]
    assert len(uids.verify_subset(run.folder / "subset.npy", uids.to_u8([pair.uid for pair in pairs]))) == 15
