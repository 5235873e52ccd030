# SPDX-License-Identifier: Apache-2.0
"""SwitchBack and StableAdamW: CLIP trained with 8-bit products, by an optimiser that shortens steps after a jump.

Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt, "Stable and low-precision training for large-scale
vision-language models", NeurIPS 2023, arXiv 2304.13013. Chapter: ``notebooks/switchback.py``.

1. Three matrix products make a linear layer's step: the output, the input's gradient and the weight's gradient.
2. The first two add up as many terms as the layer is wide; SwitchBack makes them in 8-bit integers.
3. The third adds up a term for each token of the batch. Rounding would add an error for each, so it stays in 16 bits.
4. The paper finds loss spikes after steps in which AdamW's running mean square lags behind the gradients; StableAdamW
   divides such a step by how much they outgrew it.
5. In 8-bit floats one scale for a whole matrix is enough, the paper finds, where each block starts as the identity.

What is trained is :mod:`recipes_lib.recipes.clip.recipe`; ``model.linear``, ``model.layer_scale`` and ``optim.name`` are options of
every recipe.
"""

from dataclasses import replace

from recipes_lib.recipes.clip import recipe as clip

_STABLE = {"name": "stable_adamw", "betas": (0.9, 0.99), "eps": 1e-6, "clip": None}

# CLIP's toy with a transformer as image tower too: its blocks are what SwitchBack is for. Half a minute of one core.
_TOY = replace(
    clip.PRESETS["toy"],
    model=replace(
        clip.PRESETS["toy"].model, arch="vit_pico", stem="conv", patch_size=8, pre_norm=False, linear="switchback"
    ),
    optim=replace(clip.PRESETS["toy"].optim, **_STABLE),
)
_LAPTOP = clip.PRESETS["laptop"]


def _laion(arch: str, patch_size: int, text_width: int, text_heads: int, text_layers: int, dim: int) -> clip.Config:
    """A CLIP of the paper's precision runs, as its first author's launch scripts and run names have them.

    20,000 steps of 16,384 pairs, 5,000 of them warm-up, a cosine, learning rate 2e-3, weight decay 0.2, epsilon 1e-6, half of
    the patches dropped, beta2 0.98; the runs of "stabilised loss" have 0.99. Weight decay keeps the scheduled learning
    rate where a step is shortened (``clip_decay``; the smaller presets' does not). Differs: there low precision is
    float16 with a fixed loss scale, here bfloat16.
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
    # More pictures and steps: what `recipes cook switchback` stores.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, train_size=12000, test_size=1000),
        train=replace(_TOY.train, steps=1200, checkpoint_every=400),
    ),
    # Shards of your own images and texts at 64 pixels, about an hour of a laptop.
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
