# SPDX-License-Identifier: Apache-2.0
"""Images and the texts that came with them: one pair, as it streams from a shard, and a set of them in memory."""

from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image
from torch import Tensor

from recipes_lib.data.images import ImageSet


@dataclass(frozen=True)
class Pair:
    """An image and its text (its alt-text, where it comes from the web)."""

    uid: str
    """32 hexadecimal digits: the pair's name in the whole pool, in score files and in subset files."""
    key: str
    """The pair's name in its shard."""
    text: str
    image: Image.Image
    """Decoded, in RGB."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else the shard's JSON member says of the pair."""


@dataclass(frozen=True, kw_only=True)
class PairSet(ImageSet):
    """Images of one size with a text each, held in memory.

    Raises: ``ValueError`` where the parts do not fit together.
    """

    texts: tuple[str, ...]
    uids: tuple[str, ...]
    """32 hexadecimal digits each."""

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
        """The pairs at ``indices`` (int64 [n], in that order), with all that belongs to them."""
        plain = ImageSet(**{part.name: getattr(self, part.name) for part in fields(ImageSet)}).select(indices)
        rows = indices.tolist()
        texts, uids = (tuple(part[i] for i in rows) for part in (self.texts, self.uids))
        return PairSet(**vars(plain), texts=texts, uids=uids)
