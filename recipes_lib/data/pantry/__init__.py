# SPDX-License-Identifier: Apache-2.0
"""The Pantry: a data set of twelve kinds of kitchen objects, drawn by our own renderer, with all true factors known.

>>> from recipes_lib.data import pantry
>>> factors = pantry.fix(pantry.sample_factors(4, seed=0, scenes="controlled"), label="mug", style="photo")
>>> pantry.render(factors, size=32).shape
torch.Size([4, 3, 32, 32])
"""

from recipes_lib.data.pantry.dataset import dataset, true_masks
from recipes_lib.data.pantry.factors import (
    BACKGROUNDS,
    CLASSES,
    MATERIALS,
    PATTERNS,
    STYLES,
    Factors,
    correlate,
    fix,
)
from recipes_lib.data.pantry.render import masks, render
from recipes_lib.data.pantry.scenes import sample_factors
from recipes_lib.data.pantry.sheet import contact_sheet

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "MATERIALS",
    "PATTERNS",
    "STYLES",
    "Factors",
    "contact_sheet",
    "correlate",
    "dataset",
    "fix",
    "masks",
    "render",
    "sample_factors",
    "true_masks",
]
