# SPDX-License-Identifier: Apache-2.0
"""Sieve's run, stage by stage, and what its config refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from recipes_lib.cli import verbs
from recipes_lib.config import override
from recipes_lib.data.pools import selection, shards, uids
from recipes_lib.errors import ConfigError, DataError, RunError
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.recipes.sieve.pool import pantry_pool, scores_of
from recipes_lib.training.folder import RunFolder


def results(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "scores").iterdir(), folder / "subset.npy", folder / "subset.json"]
    return {path.name: path.read_bytes() for path in files}


# stages


def test_a_run_goes_through_all_stages_and_reports(whole):
    report = RunFolder.open(whole).read_report()
    assert {path.name for path in (whole / "scores").iterdir()} == {
        "00000000.parquet",
        "00000001.parquet",
        "00000002.parquet",
        "shards.json",
    }
    assert (report["recipe"], report["pairs"], report["steps"], report["counts"]) == ("sieve", 24, 3, {})
    assert report["selection"]["kept"] == 12
    assert set(report["scores"]) == {"auc_sieve"}
    assert RunFolder.open(whole).state() == {"status": "done", "step": 3}
    assert [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_the_subset_is_what_datacomps_resharder_reads_and_has_the_best_half(tiny_sieve, whole):
    subset = np.load(whole / "subset.npy")
    assert subset.dtype == np.dtype("u8,u8")
    pairs = [pair for path in shards.find(whole / "pool") for pair in shards.read(path, on_damage="stop")]
    taken = []
    for pair in pairs:  # as resharder.py looks each sample up
        uid = np.array([(int(pair.uid[:16], 16), int(pair.uid[16:], 16))], np.dtype("u8,u8"))[0]
        taken.append(np.searchsorted(subset, uid, "right") - np.searchsorted(subset, uid, "left"))
    assert sorted(set(taken)) == [0, 1]
    scores = scores_of(whole / "scores", pantry_pool(tiny_sieve.data), clip=False)
    best = selection.keep(scores.sieve, uids.to_u8(scores.uids), 0.5)
    assert np.flatnonzero(taken).tolist() == best.tolist()


def test_the_stage_score_ends_with_the_score_files(tiny_sieve, whole, tmp_path):
    run = sieve.RECIPE.run(override(tiny_sieve, {"stage": "score"}), tmp_path / "run")
    assert not (run.folder / "subset.npy").exists()
    assert "selection" not in run.report
    assert "kept" not in run.report
    for path in (run.folder / "scores").iterdir():
        assert path.read_bytes() == (whole / "scores" / path.name).read_bytes()


def test_an_earlier_runs_scores_are_selected_from_without_any_model(tiny_sieve, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(sieve, "load_encoder", lambda name: pytest.fail("an encoder was loaded"))
    config = override(tiny_sieve, {"select.scores": whole / "scores", "select.fraction": 0.25})
    run = sieve.RECIPE.run(config, tmp_path / "run")
    assert len(uids.verify_subset(run.folder / "subset.npy")) == run.report["selection"]["kept"] == 6
    assert uids.times_kept(np.load(whole / "subset.npy"), np.load(run.folder / "subset.npy")).all()
    with pytest.raises(DataError, match="has no column 'clip'"):
        sieve.RECIPE.run(override(config, {"select.fuse": "clip"}), tmp_path / "fused")
    with pytest.raises(DataError, match=r"fraction 0\.01 keeps no sample of 24"):
        sieve.RECIPE.run(override(config, {"select.fraction": 0.01}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_clips_scores_stand_beside_sieves_and_both_are_fused(tiny_sieve, whole, tmp_path):
    clip = {"clip.name": "toy", "clip.images": 256, "clip.steps": 1, "select.fuse": "clip"}
    run = sieve.RECIPE.run(override(tiny_sieve, clip), tmp_path / "run")
    assert set(run.report["scores"]) == {"auc_sieve", "auc_clip", "auc_fused"}
    scores = scores_of(run.folder / "scores", pantry_pool(tiny_sieve.data))
    plain = scores_of(whole / "scores", pantry_pool(tiny_sieve.data), clip=False)
    assert scores.captions == plain.captions
    assert np.array_equal(scores.sieve, plain.sieve)
    fused = selection.fuse({"sieve": scores.sieve, "clip": scores.clip}, {"sieve": 0.5, "clip": 0.5})
    kept = uids.times_kept(np.load(run.folder / "subset.npy"), uids.to_u8(scores.uids))
    assert np.flatnonzero(kept).tolist() == selection.keep(fused, uids.to_u8(scores.uids), 0.5).tolist()


def test_a_finished_run_is_refused_and_left_alone(tiny_sieve, whole):
    before = results(whole)
    for again in (lambda: sieve.RECIPE.run(tiny_sieve, whole), lambda: runs.resume(sieve.RECIPE, whole)):
        with pytest.raises(RunError, match="is finished"):
            again()
    assert results(whole) == before


# configs


def test_the_paper_scale_has_the_published_codes_values():
    paper = sieve.PRESETS["datacomp_medium"]
    assert (paper.captioner.count, paper.captioner.top_p, paper.captioner.repetition_penalty) == (8, 0.9, 1.1)
    # there 5 to 20 tokens, of which the prompt is 4
    assert (paper.captioner.min_length, paper.captioner.max_length) == (1, 16)
    assert (paper.encoder.name, paper.encoder.phrases) == ("minilm", "sieve")
    assert (paper.clip.arch, paper.clip.weights) == ("ViT-B-32", "openai")
    assert (paper.select.fraction, paper.select.weights) == (0.2, {"sieve": 0.5, "clip": 0.5})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"select.fraction": 1.5}, r"select\.fraction = 1\.5 .*\(0, 1\]\. The paper keeps 0\.2"),
        ({"select.fraction": 0.0}, r"select\.fraction = 0\.0 .*\(0, 1\]"),
        ({"select.fraction": float("nan")}, r"select\.fraction = nan is not a number"),
        ({"select.fuse": "clip"}, r"select\.fuse = clip needs CLIPScores, but clip\.name = none"),
        ({"stage": "score", "select.scores": "x"}, r"select\.scores = x has no use with stage = score"),
        ({"stage": "selct"}, "selct"),
        ({"score.batch_size": 0}, r"score\.batch_size = 0 .*at least 1"),
        ({"score.seed": -1}, r"score\.seed = -1 .*at least 0"),
        ({"score.threads": 0}, r"score\.threads = 0 .*at least 1"),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line(tiny_sieve, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        override(tiny_sieve, changes).validate()
    assert "\n" not in str(error.value)


def test_a_fingerprint_is_three_losses_of_each_model_and_a_mean_score(tiny_sieve):
    found = sieve.fingerprint(tiny_sieve)
    assert len(found["losses"]) == 3
    assert all(np.isfinite(value) for value in (*found["losses"], found["mean_sieve_score"]))


def test_the_command_line_says_how_many_pairs_were_kept_and_where_they_are_named(whole, capsys):
    verbs._finish(engine.Result(whole, json.loads((whole / "report.json").read_text())))
    assert f"kept 12 of 24 pairs: {whole / 'subset.npy'}" in capsys.readouterr().out
