# SPDX-License-Identifier: Apache-2.0
"""Image-text pairs: a single pair, as it is read from a shard, and a set of pairs in memory."""

from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image
from torch import Tensor

from recipes_lib.data.images import ImageSet


@dataclass(frozen=True)
class Pair:
    """An image and its text (its alt-text, if the pair comes from the web)."""

    uid: str
    """32 hexadecimal digits: the pair's name in the whole pool, in score files and in subset files."""
    key: str
    """The pair's name in its shard."""
    text: str
    """The text."""
    image: Image.Image
    """The decoded image, in RGB."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The other fields of the pair's JSON member in the shard."""


@dataclass(frozen=True, kw_only=True)
class PairSet(ImageSet):
    """Images of one size in memory, with one text per image.

    Raises: ``ValueError`` if the parts do not fit together.
    """

    texts: tuple[str, ...]
    """One text per image."""
    uids: tuple[str, ...]
    """One uid of 32 hexadecimal digits per pair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, part in {"texts": self.texts, "uids": self.uids}.items():
            if len(part) != len(self.images):
                raise ValueError(f"{len(part)} {name} for {len(self.images)} images")

    def text(self, index: int) -> str:
        """The text of the image at ``index``."""
        return self.texts[index]

    def uid(self, index: int) -> str:
        """The uid of the pair at ``index``."""
        return self.uids[index]

    def select(self, indices: Tensor) -> "PairSet":
        """The pairs at ``indices`` (int64 [n], in that order), with labels, factors, names, texts and uids."""
        plain = ImageSet(**{part.name: getattr(self, part.name) for part in fields(ImageSet)}).select(indices)
        rows = indices.tolist()
        texts, uids = (tuple(part[i] for i in rows) for part in (self.texts, self.uids))
        return PairSet(**vars(plain), texts=texts, uids=uids)
