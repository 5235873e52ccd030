# SPDX-License-Identifier: Apache-2.0
"""Measures for the Sieve chapter how well scores separate a pool with known truth, and how much pruning by them helps.

Each seed has its own pool, captioner and CLIP. Captioner and CLIP have seen neither the pool's images nor the test
pairs.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pantry import alt_text
from recipes_lib.data.pools import selection, uids
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.models.sentence import load_encoder
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.sieve import models, separation
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.recipes.sieve.pair_scores import cosines
from recipes_lib.recipes.sieve.phrases import remove_phrases
from recipes_lib.recipes.sieve.pool import pantry_pool, scores_of, seed_of

FRACTION = 0.3
"""Share of the pool that each score keeps."""
COUNTS = (1, 2, 4, 8)
"""Numbers of captions per image to compare."""
STEPS = 200
"""Number of optimiser steps of each CLIP; it does not depend on the size of the training set."""


def config_of(seed: int) -> sieve.Config:
    """The config that scores the pool of one seed. ``data.draw`` starts at 1, since 0, the toy's, served for trials."""
    base = sieve.PRESETS["simmer"]
    return replace(
        base,
        stage="score",
        data=replace(base.data, draw=seed + 1),
        captioner=replace(base.captioner, count=max(COUNTS), images=4000, steps=600),
        clip=replace(base.clip, images=4000, steps=300),
        score=replace(base.score, seed=seed),
    )


def fingerprint() -> dict[str, Any]:
    """The recipe's fingerprint with the pool of seed 0, which changes if the numerics of :func:`measure` change."""
    return sieve.fingerprint(config_of(0))


def measure(seed: int) -> dict[str, Any]:
    """All metrics of one seed: AUCs by score and kind, and by captions per image; a CLIP's recall by training set."""
    config = config_of(seed)
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        folder = sieve.RECIPE.run(config, Path(place) / "sieve").folder
        pool = pantry_pool(config.data)
        scores = scores_of(folder / "scores", pool)
        towers = json.loads((folder / "clip" / "report.json").read_text())["scores"]
        signals = {"sieve": scores.sieve, "clip": scores.clip}
        signals["fused"] = selection.fuse(signals, {"sieve": 0.5, "clip": 0.5})
        report = _separation(scores, signals, pool)
        report["models"] = {name: towers[name]["method"] for name in ("zero_shot", "ir5")}
        report["models"]["captioner"] = names_class(scores, pool)
        report["recall"], report["zero_shot"], report["kept"] = _pruned(config, signals, pool, Path(place))
        return report


def measure_clean_clip(seed: int) -> dict[str, Any]:
    """AUCs by kind, and recall, of a CLIP that learned from the captioner's clean pairs, on the same pool.

    All else is as for the CLIP of :func:`measure`: number of images, steps, batch size and learning rate.
    """
    config = config_of(seed)
    torch.set_num_threads(1)
    training = models.toy_clip(config)
    clean = replace(training.data, texts="captions", draw=models.captioners_draw(config))
    pool = pantry_pool(config.data)
    with TemporaryDirectory() as place:
        found = clip.RECIPE.run(replace(training, data=clean), Path(place) / "clip")
        towers = models.Towers.reopen(found.folder)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pool.images]
    parts = [slice(first, first + 200) for first in range(0, len(pool), 200)]
    cosines = torch.cat([towers.similarity(pictures[part], pool.texts[part]) for part in parts]).numpy()
    auc = separation.by_kind({"clip": cosines}, pool.factors["kind"].numpy(), alt_text.KINDS, alt_text.ALIGNED)
    return {"auc": auc, "models": {name: found.report["scores"][name]["method"] for name in ("zero_shot", "ir5")}}


def _separation(scores: Scores, signals: Mapping[str, np.ndarray], pool: PairSet) -> dict[str, Any]:
    kinds = pool.factors["kind"].numpy()
    encoder = load_encoder("minilm")
    bare = cosines(encoder, scores.texts, scores.captions).numpy()  # [N, r], without phrases
    left_in = bare.copy()
    rows = [
        row
        for row, said in enumerate(zip(scores.texts, *zip(*scores.captions, strict=True), strict=True))
        if any(remove_phrases(text) != text for text in said)
    ]  # the pairs with a phrase; the cosines of all others stay the same
    texts, captions = ([part[row] for row in rows] for part in (scores.texts, scores.captions))
    left_in[rows] = cosines(encoder, texts, captions, phrases=()).numpy()
    every = {**signals, "with_phrases": left_in.max(axis=1)}
    auc = separation.by_kind(every, kinds, alt_text.KINDS, alt_text.ALIGNED)
    auc["better"] = {kind: max(auc["sieve"][kind], auc["clip"][kind]) for kind in auc["sieve"]}
    good = np.isin(kinds, [alt_text.KINDS.index(kind) for kind in alt_text.ALIGNED])
    by_count = {str(count): separation.auc(bare[:, :count].max(axis=1), good) for count in COUNTS}
    gains = {"1_to_2": by_count["2"] - by_count["1"], "4_to_8": by_count["8"] - by_count["4"]}
    return {"auc": auc, "captions": by_count, "gains": gains}


def names_class(scores: Scores, pool: PairSet) -> float:
    """The share of captions, in [0, 1], that name the class of their image."""
    rows = zip(scores.captions, pool.labels.tolist(), strict=True)
    return float(np.mean([pool.class_names[label] in caption for row, label in rows for caption in row]))


def _pruned(
    config: sieve.Config, signals: Mapping[str, np.ndarray], pool: PairSet, place: Path
) -> tuple[dict[str, float], dict[str, float], dict[str, dict[str, float]]]:
    """Recall and zero-shot accuracy of a CLIP by its training set, and the share of each kind of pair in that set."""
    own, kinds = uids.to_u8(pool.uids), pool.factors["kind"].numpy()
    by_chance = np.random.default_rng(config.score.seed).random(len(pool))
    recall, accuracy, kept = {}, {}, {}
    for name, signal in {"all": None, "random": by_chance, **signals}.items():
        subset = None
        if signal is not None:
            rows = selection.keep(signal, own, FRACTION)
            subset = place / f"{name}.npy"
            uids.save_subset(subset, own[rows])
            kept[name] = separation.kept_kinds(np.isin(np.arange(len(pool)), rows), kinds, alt_text.KINDS)
        found = clip.RECIPE.run(_training(config, subset), place / f"trained-{name}").report["scores"]
        recall[name] = (found["tr5"]["method"] + found["ir5"]["method"]) / 2
        accuracy[name] = found["zero_shot"]["method"]
    return recall, accuracy, kept


def _training(config: sieve.Config, subset: Path | None) -> clip.Config:
    """The config of the CLIP that is trained on the pool, or on a subset of it."""
    base = clip.PRESETS["toy"]
    pool = config.data
    return replace(
        base,
        data=replace(base.data, texts="web", train_size=pool.pool_size, draw=seed_of(pool), subset=subset),
        train=replace(base.train, steps=STEPS, checkpoint_every=STEPS, batch_size=128, seed=config.score.seed),
        eval=replace(base.eval, baselines="none"),
    )
