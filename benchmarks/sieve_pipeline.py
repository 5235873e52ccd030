# SPDX-License-Identifier: Apache-2.0
"""Sieve's scorer against two other ways to do the same work: ``python benchmarks/sieve_pipeline.py``.

*One at a time*: a picture, its captions, their embeddings, the score, then the next picture. *Three passes*, in the
official pipeline's order: all captions, to disk; all embeddings, each text as often as it comes; all scores. The three
use the same models: the chapter's cooked captioner and the real MiniLM; their scores are compared first. One thread,
process time. ``--pairs 64 --rounds 3`` takes about three minutes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from side_by_side import show, side_by_side

from recipes_lib.data import embedded, tokenizer
from recipes_lib.data.pairs import Pair
from recipes_lib.data.pantry import alt_text
from recipes_lib.models.captioner import ToyCaptioner
from recipes_lib.models.sentence import load_encoder
from recipes_lib.pretraining import image_text_data
from recipes_lib.recipes.sieve import models as sieve_models
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.recipes.sieve.pair_scores import SieveScorer, caption_seeds
from recipes_lib.recipes.sieve.phrases import remove_phrases
from recipes_lib.training import checkpoint

COUNT = 8


class Timed:
    """Counts the process time that is spent in one method of a model."""

    def __init__(self, model: object, method: str) -> None:
        self.seconds, call = 0.0, getattr(model, method)

        def timed(*arguments: object) -> object:
            start = time.process_time()
            found = call(*arguments)
            self.seconds += time.process_time() - start
            return found

        setattr(self, method, timed)


def models() -> tuple[ToyCaptioner, object]:
    """The captioner that the chapter has cooked, and MiniLM."""
    config = sieve.PRESETS["simmer"]
    words = tokenizer.train(image_text_data.vocabulary_texts(), 1024, sieve_models.CONTEXT)
    captioner = ToyCaptioner(words, image_size=config.data.image_size, sampling=config.captioner.sampling)
    weights = checkpoint.read_weights(embedded.path("cooked/sieve") / "model.safetensors")
    captioner.load_state_dict({name.removeprefix("captioner."): value.float() for name, value in weights.items()})
    return captioner.eval(), load_encoder("minilm")


def pairs_of(count: int) -> list[Pair]:
    """Noisy pairs that the captioner has never seen."""
    pool = alt_text.pool(count, size=32, seed=777, mix=alt_text.Mix())
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pool.images]
    return [Pair(pool.uids[row], str(row), pool.texts[row], picture) for row, picture in enumerate(pictures)]


def streamed(captioner: object, encoder: object, pairs: list[Pair]) -> np.ndarray:
    """Ours: batch by batch."""
    return SieveScorer(captioner, encoder, count=COUNT).score(pairs).sieve


def one_at_a_time(captioner: object, encoder: object, pairs: list[Pair]) -> np.ndarray:
    """A loop over pictures, as one would write it first."""
    scores = []
    for pair in pairs:
        (captions,) = captioner.generate([pair.image], COUNT, caption_seeds([pair.uid], 0))
        text, *said = encoder.encode([remove_phrases(line) for line in (pair.text, *captions)])
        scores.append(max(float(text @ line) for line in said))
    return np.array(scores)


def three_passes(captioner: object, encoder: object, pairs: list[Pair]) -> np.ndarray:
    """Captions of all pictures to disk, then embeddings of all texts, then scores."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "captions.json"
        captions = captioner.generate(
            [pair.image for pair in pairs], COUNT, caption_seeds([pair.uid for pair in pairs], 0)
        )
        path.write_text(json.dumps(captions))
        rows = json.loads(path.read_text())
    texts = encoder.encode([remove_phrases(pair.text) for pair in pairs])
    said = encoder.encode([remove_phrases(line) for row in rows for line in row]).unflatten(0, (len(pairs), COUNT))
    return (said @ texts[:, :, None])[:, :, 0].amax(dim=1).numpy()


def main() -> None:
    """Compares the three, and shows where ours spends its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (captioner, encoder), pairs = models(), pairs_of(options.pairs)
    ways = {"streamed": streamed, "three passes": three_passes, "one at a time": one_at_a_time}
    full = [
        row for row, pair in enumerate(pairs) if remove_phrases(pair.text)
    ]  # an empty text is scored 0 by ours alone
    found = {name: way(captioner, encoder, pairs)[full] for name, way in ways.items()}
    for name, scores in found.items():
        np.testing.assert_allclose(scores, found["streamed"], atol=1e-4, err_msg=name)
    calls = {name: lambda way=way: way(captioner, encoder, pairs) for name, way in ways.items()}
    timings = side_by_side(calls, rounds=options.rounds, reference="streamed", warm_up=0, clock=time.process_time)
    show(f"{options.pairs} pairs, {COUNT} captions each", {"score": timings}, per_call={"score": options.pairs})
    parts = Timed(captioner, "generate"), Timed(encoder, "encode")
    start = time.process_time()
    streamed(*parts, pairs)
    whole = time.process_time() - start
    captions, sentences = (part.seconds / whole for part in parts)
    line = f"ours: captions {captions:.0%}, sentences {sentences:.0%}, all else {1 - captions - sentences:.0%}"
    Console().print(line)


if __name__ == "__main__":
    main()
