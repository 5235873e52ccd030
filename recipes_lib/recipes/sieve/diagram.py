# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram: Sieve in one picture, drawn from one pair."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from recipes_lib import diagrams
from recipes_lib.diagrams import Box, Image, Shares


def draw(
    ax: Axes, picture: ArrayLike, text: str, captions: Sequence[str], cosines: Sequence[float], *, threshold: float
) -> Axes:
    """A pair, the captions of its picture, their cosines with its text, and whether the pair is kept.

    ``threshold``: the lowest score that is kept. A negative cosine is drawn as 0.
    Shapes: ``picture`` uint8 [3, H, W]; as many ``cosines`` as ``captions``.
    """
    score = max(cosines)
    kept = score >= threshold
    nodes = {
        "picture": Image(0, 0, picture, "picture"),
        "text": Box(0, 1, "its alt-text:\n" + textwrap.fill(text, 17)),
        "captioner": Box(1, 0, "captioner"),
        "captions": Box(2, 0, "\n".join(textwrap.fill(f"{n}. {caption}", 19) for n, caption in enumerate(captions, 1))),
        "phrases": Box(2, 1, 'words such as\n"photo" are\nremoved'),
        "encoder": Box(3, 0.5, "sentence\nencoder"),
        "cosines": Shares(4, 0.5, [max(0, value) for value in cosines], _listed(cosines)),
        "decision": Box(
            5, 0.5, f"largest: {score:.2f}\n{'≥' if kept else '<'} {threshold:.2f}, so\n{'keep' if kept else 'drop'}"
        ),
    }
    ways = [("picture", "captioner"), ("captioner", "captions"), ("captions", "phrases"), ("text", "phrases")]
    ways += [("phrases", "encoder"), ("encoder", "cosines"), ("cosines", "decision")]
    return diagrams.draw(ax, nodes, ways)


def _listed(cosines: Sequence[float]) -> str:
    return "cosines\n" + "\n".join(f"{number}. {value:.2f}" for number, value in enumerate(cosines, 1))
