# SPDX-License-Identifier: Apache-2.0
"""Converts texts to rows of token ids: byte-pair encoding with a trained vocabulary, or with OpenAI's.

Byte-level pairs can spell any text in any script, so there is no unknown token.

Source: Sennrich et al., arXiv 1508.07909 (byte-pair encoding); Radford et al., arXiv 2103.00020 (start and end tokens).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recipes_lib import durable
from recipes_lib.errors import DataError

PADDING, START, END = range(3)
"""Ids of a trained tokenizer's special tokens; the ids of the pieces of words come after them."""
SPECIAL, BYTES = 3, 256
"""Number of special tokens, and of single bytes, each of which is a piece."""


class Pieces(Protocol):
    """A map between texts and ids without special tokens."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids spell."""
        ...

    def state(self) -> object:
        """The JSON value from which :func:`load` restores the map."""
        ...


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Converts texts to rows of ids with start and end; made by :func:`train`, :func:`load` or :func:`clip_vocabulary`.

    No text can spell the special tokens of a trained tokenizer.
    """

    pieces: Pieces
    """The byte-pair encoding."""
    vocabulary: int
    """Number of ids, with the special tokens."""
    context: int
    """Number of tokens per row, with start and end."""
    start: int
    """Id of the first token of every row."""
    end: int
    """Id of the token after the last token of a text."""
    padding: int = PADDING
    """Id that fills a row after its end. OpenAI's vocabulary has a piece of the same id: look for the end instead."""

    def __post_init__(self) -> None:
        if self.context < SPECIAL:
            raise ValueError(f"context = {self.context} tokens leave none for the text; use at least {SPECIAL}.")

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encodes n texts as rows of start, the text's ids, end and padding: int64 [n, context].

        A text that is too long is truncated; its row still has the end.

        Raises: ``TypeError`` for a single text that is not in a list.
        """
        rows = []
        for ids in self._ids(texts):
            row = [self.start, *ids[: self.context - 2], self.end]
            rows.append(row + [self.padding] * (self.context - len(row)))
        return torch.tensor(rows, dtype=torch.int64).view(len(texts), self.context)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of one row, up to its first end, without the start."""
        row = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.end in row:
            row = row[: row.index(self.end)]
        return self.pieces.decode([token for token in row if token != self.start])

    def save(self, path: Path) -> None:
        """Writes the tokenizer to a JSON file, completely or not at all."""
        durable.write_text(path, json.dumps({"context": self.context, "pieces": self.pieces.state()}))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError(f"a list of texts is wanted, not the one text {texts[:40]!r}: put it in a list.")
        return self.pieces.encode(texts)


def train(texts: Iterable[str], vocabulary: int, context: int) -> Tokenizer:
    """Learns a vocabulary from ``texts``: the most frequent pair of pieces becomes one piece, again and again.

    Letters are lower-cased and runs of white space become one space. The same texts, in any order, give the same
    vocabulary. ``vocabulary`` is the largest number of ids; few texts give fewer.

    Raises: ``ValueError`` for a vocabulary without room for every byte; ``DataError`` if the package ``tokenizers`` is
    missing.
    """
    if vocabulary < SPECIAL + BYTES:
        raise ValueError(f"vocabulary = {vocabulary} has no room for {SPECIAL} special tokens and all {BYTES} bytes.")
    package = _tokenizers()
    bpe = package.Tokenizer(package.models.BPE())
    spaces = package.normalizers.Replace(package.Regex(r"\s+"), " ")
    steps = [package.normalizers.NFC(), package.normalizers.Lowercase(), spaces, package.normalizers.Strip()]
    bpe.normalizer = package.normalizers.Sequence(steps)
    bpe.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)  # a first word gets the same pieces
    bpe.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocabulary - SPECIAL,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((_valid(text) for text in texts), trainer)
    return _trained(bpe, context)


def load(path: Path) -> Tokenizer:
    """Loads a tokenizer that :meth:`Tokenizer.save` wrote.

    Raises: ``DataError`` naming a file that is missing or damaged, or a package that is missing.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        context, pieces = int(saved["context"]), saved["pieces"]
    except OSError as error:
        raise DataError(f"The tokenizer {path} cannot be read: {error.strerror}. Train it again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no tokenizer of ours, or is damaged ({error}). Train it again.") from error
    if pieces == _OpenAI.NAME:
        return clip_vocabulary(context)
    package = _tokenizers()
    try:
        bpe = package.Tokenizer.from_str(json.dumps(pieces))
    except Exception as error:  # the package raises nothing narrower
        raise DataError(f"{path} is no tokenizer of ours, or is damaged ({error}). Train it again.") from error
    return _trained(bpe, context)


def clip_vocabulary(context: int = 77) -> Tokenizer:
    """A tokenizer with OpenAI's vocabulary of 49,408 ids, by open_clip, which cleans texts as OpenAI did.

    A text that contains the name of a special token is encoded with that token, as in the original.

    Raises: ``DataError`` if the package ``open_clip_torch`` is missing.
    """
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise DataError(
            "OpenAI's vocabulary needs the package open_clip_torch: pip install 'ssl-cookbook[text]'."
        ) from error
    peer = SimpleTokenizer()
    return Tokenizer(_OpenAI(peer), peer.vocab_size, context, start=peer.sot_token_id, end=peer.eot_token_id)


def _trained(bpe: Any, context: int) -> Tokenizer:
    return Tokenizer(_Trained(bpe), bpe.get_vocab_size() + SPECIAL, context, start=START, end=END)


@dataclass(frozen=True, eq=False)
class _Trained:
    """Byte-level pairs of the package ``tokenizers``, whose ids are shifted to make room for the special tokens."""

    bpe: Any

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.bpe.encode_batch_fast([_valid(text) for text in texts])
        return [[token + SPECIAL for token in text.ids] for text in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self.bpe.decode([token - SPECIAL for token in ids if token >= SPECIAL]).strip()

    def state(self) -> object:
        return json.loads(self.bpe.to_str())


@dataclass(frozen=True, eq=False)
class _OpenAI:
    """OpenAI's byte-pair encoding, by open_clip's tokenizer."""

    peer: Any

    NAME = "openai"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.peer.encode(_valid(text)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self.peer.decode(ids).strip()

    def state(self) -> object:
        return self.NAME


def _valid(text: str) -> str:
    """The text with a question mark in place of each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise DataError("Byte-pair encoding needs the package tokenizers: pip install 'ssl-cookbook[text]'.") from error
    return tokenizers
