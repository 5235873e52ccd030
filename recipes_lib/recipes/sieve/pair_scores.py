# SPDX-License-Identifier: Apache-2.0
"""Scores how well a text fits its image, for pools of any size: by Sieve, and optionally by CLIP.

A captioner generates r captions of the image. The pair's score is the cosine, in a sentence encoder's space, of the
text and the nearest caption. A pool is read shard by shard, and each shard's scores are one file, so a killed run
continues with the first shard without a file, and ranks do not communicate.

Symbols: B: pairs in a batch; r: captions per image; d: dimension of the sentence encoder.

Source: Mahmoud et al., "Sieve: Multimodal Dataset Pruning Using Image Captioning Models", CVPR 2024, arXiv 2310.02110.
Differs: phrases about the medium are removed at once (its code does so in a second pass); an image's captions depend on
its uid and the seed (there: on the order of batches); an empty text or caption has cosine 0 with everything (its code
scores 0 only if the nearest caption is empty).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recipes_lib.data.pairs import Pair
from recipes_lib.data.pools import score_files
from recipes_lib.data.pools import shards as shard_files
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.durable import whole
from recipes_lib.errors import DataError, Interrupted
from recipes_lib.models.captioner import Captioner
from recipes_lib.models.sentence import TextEncoder
from recipes_lib.recipes.sieve.phrases import PHRASES, remove_phrases

UNIT = 1e-3
"""Largest allowed difference between 1 and the norm of an embedding."""


class Clip(Protocol):
    """A model that compares images with texts."""

    def similarity(self, images: list[Image.Image], texts: list[str]) -> Tensor:
        """The cosine of each image with its own text: float [n]."""
        ...


class Reader(Protocol):
    """A function that reads the pairs of a shard, such as :func:`recipes_lib.data.pools.shards.read`."""

    def __call__(self, path: Path, *, on_damage: Literal["stop", "skip"], counts: Counter[str]) -> Iterator[Pair]:
        """The pairs in order; skipped pairs and remarks are counted in ``counts``, by reason."""
        ...


class SieveScorer:
    """Scores pairs by Sieve, and by CLIP if a ``clip`` is given.

    ``count``: number of captions per image (r). ``seed``: draws the captions, together with a pair's uid. The other
    arguments are those of :func:`recipes_lib.recipes.sieve.phrases.remove_phrases`; CLIP gets texts with all phrases.

    Raises: ``ValueError`` for a ``count`` below 1 or phrases that are not allowed.
    """

    def __init__(
        self,
        captioner: Captioner,
        encoder: TextEncoder,
        clip: Clip | None = None,
        *,
        count: int = 8,
        phrases: Sequence[str] = PHRASES,
        boundary: Literal["word", "substring"] = "word",
        seed: int = 0,
    ) -> None:
        if count < 1:
            raise ValueError(f"count = {count}; use at least 1 caption an image.")
        remove_phrases("", phrases, boundary)  # raises for wrong phrases now, not after the first captions
        self.captioner, self.encoder, self.clip = captioner, encoder, clip
        self.count, self.phrases, self.boundary, self.seed = count, phrases, boundary, seed

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Scores the pairs, in their order. The size of a batch changes scores at most by rounding.

        Raises: ``ValueError`` if a model does not return what its protocol says.
        """
        images, texts = [pair.image for pair in pairs], [pair.text for pair in pairs]
        uids = [pair.uid for pair in pairs]
        captions = self.captioner.generate(images, self.count, caption_seeds(uids, self.seed))
        found = [len(of_one) for of_one in captions]
        if found != [self.count] * len(pairs):
            raise ValueError(
                f"{type(self.captioner).__name__}: expected B*r={len(pairs)}*{self.count}={len(pairs) * self.count} "
                f"captions, got {sum(found)} for {len(found)} images"
            )
        how = {"phrases": self.phrases, "boundary": self.boundary}
        sieve = cosines(self.encoder, texts, captions, **how).amax(dim=1).cpu().numpy()
        clip = None if self.clip is None else self._similarity(images, texts)
        return Scores(uids, [pair.key for pair in pairs], texts, captions, sieve, clip)

    def _similarity(self, images: list[Image.Image], texts: list[str]) -> np.ndarray:
        found = self.clip.similarity(images, texts)
        if found.shape != (len(texts),):
            raise ValueError(f"{type(self.clip).__name__}: expected {len(texts)} scores [n], got {list(found.shape)}")
        return found.float().cpu().numpy()


@torch.no_grad()
def cosines(
    encoder: TextEncoder,
    texts: Sequence[str],
    captions: Sequence[Sequence[str]],
    *,
    phrases: Sequence[str] = PHRASES,
    boundary: Literal["word", "substring"] = "word",
) -> Tensor:
    """The cosine of each text with each of its captions, after ``phrases`` are removed.

    Sieve's score is the largest cosine of a row. An empty text has cosine 0 with everything.

    Shapes: B texts, B x r captions -> float32 [B, r].
    Raises: ``ValueError`` if the encoder does not return vectors of norm 1.
    """
    texts, *rows = ([remove_phrases(text, phrases, boundary).strip() for text in row] for row in (texts, *captions))
    # each text is encoded once, and sorting by length reduces padding
    distinct = sorted({text for row in (texts, *rows) for text in row if text}, key=lambda text: (len(text), text))
    if not distinct:
        return torch.zeros(len(texts), len(rows[0]) if rows else 0)
    embedded = _embedded(encoder, distinct)
    table = torch.cat([embedded, embedded.new_zeros(1, embedded.shape[1])])  # the last row is the empty text
    place = {text: row for row, text in enumerate(distinct)} | {"": len(distinct)}
    of_texts = table[torch.tensor([place[text] for text in texts])]  # [B, d]
    of_captions = table[torch.tensor([[place[text] for text in row] for row in rows])]  # [B, r, d]
    return (of_captions @ of_texts[:, :, None])[:, :, 0]  # [B, r]


def _embedded(encoder: TextEncoder, texts: list[str]) -> Tensor:
    """The embeddings of texts, of norm 1: float32 [n, d]. Raises: ``ValueError`` if a norm is not 1."""
    found = encoder.encode(texts).float()
    if found.dim() != 2 or len(found) != len(texts) or not ((found.norm(dim=1) - 1).abs() <= UNIT).all():
        name, lengths = type(encoder).__name__, found.norm(dim=-1)
        raise ValueError(
            f"{name}: expected {len(texts)} unit vectors [n, d], got {list(found.shape)} with lengths from "
            f"{lengths.min():.4g} to {lengths.max():.4g}"
        )
    return found


def caption_seeds(uids: Sequence[str], seed: int) -> Tensor:
    """A non-negative 63-bit seed per pair, which depends only on its uid and ``seed``: int64 [n]."""
    digests = (hashlib.blake2b(f"{seed} {uid.lower()}".encode(), digest_size=8).digest() for uid in uids)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


@dataclass
class ShardsScored:
    """The progress of scoring in this process."""

    shards: int
    """Number of shards that this process scores."""
    shards_done: int = 0
    """Number of these shards that have a score file, from this or an earlier start."""
    pairs: int = 0
    """Number of pairs scored since this start."""
    counts: Counter[str] = field(default_factory=Counter)
    """Numbers of skipped pairs and of remarks in the finished shards, by reason."""


def score_file(shard: Path, folder: Path) -> Path:
    """The path of the score file of ``shard`` in ``folder``."""
    return folder / f"{shard.stem}.parquet"


def score_shards(
    shards: Sequence[Path],
    scorer: SieveScorer,
    folder: Path,
    *,
    batch_size: int,
    config_hash: str,
    rank: int = 0,
    world_size: int = 1,
    on_damage: Literal["stop", "skip"] = "stop",
    read: Reader = shard_files.read,
    progress: Callable[[ShardsScored], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> ShardsScored:
    """Scores every ``world_size``-th shard, beginning with number ``rank``, into one file each; existing files stay.

    No batch has pairs of two shards, so scores depend neither on the number of processes nor on interruptions.
    ``progress`` is called after each batch and each shard; ``stop`` is called before each batch. While a batch is
    scored, a thread reads the next one. The scores of a shard are in memory until the shard ends.

    Raises: ``Interrupted`` if ``stop`` returns True; ``DataError`` if two shards have the same name, a shard of an
    earlier start is missing, or a shard is damaged and ``on_damage`` is ``stop``; ``RunError`` if score files come from
    another config.
    """
    shards = sorted(shards)
    folder.mkdir(parents=True, exist_ok=True)
    _check_names(shards, folder, writes=rank == 0)
    own = shards[rank::world_size]
    done = ShardsScored(len(own))
    for shard in own:
        path = score_file(shard, folder)
        if score_files.complete(path, config_hash):
            done.counts.update(score_files.facts(path).counts)
        else:
            counts: Counter[str] = Counter()
            parts = []
            for batch in _ahead(_batches(read(shard, on_damage=on_damage, counts=counts), batch_size)):
                if stop():
                    raise Interrupted(
                        f"Scoring was stopped after {done.shards_done} of {len(own)} shards of process {rank}. Start it "
                        "again as before, and it goes on with the next one."
                    )
                parts.append(scorer.score(batch))
                done.pairs += len(batch)
                progress(done)
            rows = score_files.join(parts, clip=scorer.clip is not None)
            score_files.write(path, rows, config_hash=config_hash, counts=counts)
            done.counts.update(counts)
        done.shards_done += 1
        progress(done)
    return done


def _check_names(shards: Sequence[Path], folder: Path, *, writes: bool) -> None:
    """Writes the names of the shards into ``folder``, so that a later start notices if a shard is missing."""
    first: dict[str, Path] = {}
    for shard in shards:
        if first.setdefault(shard.stem, shard) != shard:
            raise DataError(
                f"{first[shard.stem]} and {shard} have one name, and so would their score files. Rename one, or score them "
                "into folders of their own."
            )
    path = folder / "shards.json"
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    gone = [name for name in noted if name not in first]
    if gone:
        raise DataError(
            f"{len(gone)} shards that scoring into {folder} began with have gone, the first {gone[0]!r}. Bring them back, "
            "or score into another folder."
        )
    if writes and noted != list(first):
        with whole(path) as partial:
            partial.write_text(json.dumps(list(first)), encoding="utf-8")


def _batches(pairs: Iterator[Pair], size: int) -> Iterator[list[Pair]]:
    while batch := list(islice(pairs, size)):
        yield batch


def _ahead(batches: Iterator[list[Pair]]) -> Iterator[list[Pair]]:
    """The same batches, but a thread reads the next batch while one is in use (decoding releases Python's lock)."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = thread.submit(next, batches, None)
            yield batch
