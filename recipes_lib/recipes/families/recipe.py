# SPDX-License-Identifier: Apache-2.0
"""The families of self-supervised learning: one loop, one backbone, one data set, and a preset for each method.

Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210, sorts the methods into four families.
Chapter: ``notebooks/families.py``.

1. Deep metric learning (``contrastive.py``): SimCLR, DCL, NNCLR, MoCo v2 and v3.
2. Self-distillation (``distillation.py``): BYOL, SimSiam, DINO with iBOT's and KoLeo's terms as options.
3. Canonical correlation (``correlation.py``): Barlow Twins, VICReg, SwAV, W-MSE; and LeJEPA (``gaussian.py``), which came
   later.
4. Masked modelling (``masked.py``): MAE, SimMIM, BEiT; and I-JEPA (``latents.py``), which came later.
5. The pretext task that all of them replaced: rotation (``rotation.py``).
"""

from recipes_lib.distributed.sync import Traffic
from recipes_lib.pretraining.recipe import Method, Recipe
from recipes_lib.recipes.families import contrastive, correlation, distillation, gaussian, latents, masked, rotation
from recipes_lib.recipes.families.diagnostics import diagnostics
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import checkpoint, loop
from recipes_lib.training.folder import RunFolder

_FAMILIES = (rotation, contrastive, distillation, correlation, masked, gaussian, latents)
METHODS: dict[str, type[Method]] = {name: method for family in _FAMILIES for name, method in family.METHODS.items()}
"""The class of each method, by ``loss.objective``."""
_SIZES: tuple[str, ...] = ("toy", "simmer", "laptop")
_OF_ALL = {name: preset for family in _FAMILIES for name, preset in family.PRESETS.items()}
_SMALL = {name: preset for name, preset in _OF_ALL.items() if name.endswith(_SIZES)}
PRESETS: dict[str, Config] = {size: _OF_ALL[f"simclr_{size}"] for size in _SIZES} | _SMALL | _OF_ALL
"""SimCLR's three by their plain names, then each method's three, then the papers' runs."""


def build(config: Config, steps: int) -> Method:
    """Builds the method of ``loss.objective``."""
    return METHODS[config.loss.objective](config, steps)


def fit(given: loop.Training, folder: RunFolder) -> Traffic:
    """Trains as :func:`loop.fit` does; BEiT's visual words are found before, and a resumed run's are in its checkpoint.

    Raises: as :func:`loop.fit`.
    """
    if isinstance(given.method, masked.BEiT) and not checkpoint.newest_step(folder.checkpoints):
        given.method.fit_words(given.batches)
    return loop.fit(given, folder)


RECIPE = Recipe(name="families", config=Config, presets=PRESETS, method=build, fit=fit, diagnostics=diagnostics)
