# SPDX-License-Identifier: Apache-2.0
"""SwitchBack and StableAdamW: CLIP with 8-bit matrix products, and an optimiser with shorter steps when gradients jump.

Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt, "Stable and low-precision training for large-scale
vision-language models", NeurIPS 2023, arXiv 2304.13013. Chapter: ``notebooks/switchback.py``.

1. A training step of a linear layer has three matrix products: the output, the input's gradient, the weight's gradient.
2. Each number of the first two is a sum of as many terms as the layer is wide; SwitchBack computes them in 8-bit
   integers.
3. Each number of the third is a sum over all tokens of the batch. Rounding would add an error per token, so this
   product stays in 16 bits.
4. The paper finds loss spikes after steps in which AdamW's running mean square lags behind the gradients. StableAdamW
   divides such a step by the factor by which the gradients outgrew it.
5. For 8-bit floats, the paper finds that one scale per matrix is enough if each block starts as the identity.

The model is :mod:`recipes_lib.recipes.clip.recipe`. ``model.linear``, ``model.layer_scale`` and ``optim.name`` are
options of every recipe.
"""

from dataclasses import replace

from recipes_lib.recipes.clip import recipe as clip

_STABLE = {"name": "stable_adamw", "betas": (0.9, 0.99), "eps": 1e-6, "clip": None}

# CLIP's toy in half a minute of one CPU core. Here the image tower is a transformer too, since SwitchBack is made for
# its linear layers.
_TOY = replace(
    clip.PRESETS["toy"],
    model=replace(
        clip.PRESETS["toy"].model, arch="vit_pico", stem="conv", patch_size=8, pre_norm=False, linear="switchback"
    ),
    optim=replace(clip.PRESETS["toy"].optim, **_STABLE),
)
_LAPTOP = clip.PRESETS["laptop"]


def _laion(arch: str, patch_size: int, text_width: int, text_heads: int, text_layers: int, dim: int) -> clip.Config:
    """A CLIP model of the paper's low-precision runs, as in its first author's launch scripts and run names.

    20,000 steps of 16,384 pairs, 5,000 of them warm-up, then a cosine; learning rate 2e-3, weight decay 0.2, epsilon
    1e-6, half of the patches dropped, beta2 0.98 (0.99 in the runs of "stabilised loss"). If a step is shortened, the
    weight decay keeps the scheduled learning rate (``clip_decay`` False; the smaller presets have True).
    Differs: bfloat16 here; float16 with a fixed loss scale there.
    """
    base = clip.Config()
    return replace(
        base,
        views=replace(base.views, patch_dropout=0.5),
        model=replace(
            base.model,
            arch=arch,
            patch_size=patch_size,
            text_width=text_width,
            text_heads=text_heads,
            text_layers=text_layers,
            dim=dim,
            linear="switchback",
        ),
        optim=replace(base.optim, lr=2e-3, warmup_steps=5000, clip_decay=False, **{**_STABLE, "betas": (0.9, 0.98)}),
        train=replace(base.train, steps=20_000, batch_size=16_384),
    )


PRESETS: dict[str, clip.Config] = {
    "toy": _TOY,
    # The toy run with more images and steps; `recipes cook switchback` stores the result.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, train_size=12000, test_size=1000),
        train=replace(_TOY.train, steps=1200, checkpoint_every=400),
    ),
    # Shards of your own images and texts at 64 pixels, in about an hour on a laptop.
    "laptop": replace(
        _LAPTOP,
        model=replace(_LAPTOP.model, linear="switchback"),
        optim=replace(_LAPTOP.optim, **_STABLE),
    ),
    "vitb32_laion2b": _laion("vit_base", 32, 512, 8, 12, 512),
    "vitl14_laion2b": _laion("vit_large", 14, 768, 12, 12, 768),
    "vith14_laion2b": _laion("vit_huge", 14, 1024, 16, 24, 1024),
}


RECIPE = replace(clip.RECIPE, name="switchback", presets=PRESETS)
