# SPDX-License-Identifier: Apache-2.0
"""Puts many pictures on one sheet."""

from torch import Tensor


def contact_sheet(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Places pictures side by side on white, row by row, ``gap`` pixels apart.

    Shapes: uint8 [N, 3, H, W] -> uint8 [3, height, width].
    Raises: ``ValueError`` if ``columns`` is below 1.
    """
    if columns < 1:
        raise ValueError(f"columns = {columns} is not allowed: use at least 1.")
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255)
    for place, image in enumerate(images):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
