# SPDX-License-Identifier: Apache-2.0
"""The three small presets of a method: ``toy``, ``simmer`` and ``laptop``. Methods differ in what their paper asks for.

All methods that compare views share one network, one data set, one augmentation and one optimiser; all that hide
patches share a Vision Transformer. What a method changes stands in its family's file, with the reason.
"""

from dataclasses import replace

from recipes_lib.config import DataConfig, EvalConfig, OptimConfig, TrainConfig
from recipes_lib.recipes.families.settings import Config, FamiliesViews, LossConfig, ModelConfig

# The Pantry's images of 32 pixels. Half of SimCLR's jitter: colour is a part of what tells the Pantry's classes apart.
DATA = DataConfig(name="pantry", image_size=32, train_size=6000, test_size=1000)
VIEWS = FamiliesViews(
    image_size=32, global_scale=(0.3, 1.0), blur=0.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
)
ONE_VIEW = replace(VIEWS, global_views=0, jitter=0.0, grayscale=0.0)
"""A crop and a mirror image alone: masked modelling needs no colour jitter."""
CONVNET = ModelConfig(arch="convnet", hidden=256, dim=64)
VIT = ModelConfig(arch="vit_pico", stem="patch", patch_size=8, hidden=256, dim=64)
"""16 patches of 8 x 8 pixels."""
ADAMW = OptimConfig(
    lr=3e-3,
    lr_start=0.0,
    lr_final=0.0,
    warmup_epochs=1.0,
    weight_decay=0.05,
    weight_decay_final=0.05,
    stretch=1.0,
)
TRAIN = TrainConfig(epochs=None, steps=300, batch_size=128, threads=1, device="cpu", checkpoint_every=150)


def small(
    loss: LossConfig,
    *,
    views: FamiliesViews = VIEWS,
    model: ModelConfig = CONVNET,
    optim: OptimConfig = ADAMW,
    toy_steps: int = 300,
    simmer_steps: int = 1000,
    laptop_model: ModelConfig | None = None,
    name: str | None = None,
) -> dict[str, Config]:
    """The presets ``METHOD_toy`` (45 s of a core), ``METHOD_simmer`` and ``METHOD_laptop`` (CIFAR-10) of a method.

    ``name`` replaces METHOD where an objective has options that go by a name of their own. ``laptop_model`` is the
    network for CIFAR-10; by default a ResNet-18 with the same heads, or a larger transformer.
    """
    toy = Config(
        data=DATA,
        views=views,
        model=model,
        loss=loss,
        optim=optim,
        train=replace(TRAIN, steps=toy_steps),
        eval=EvalConfig(baselines="all", probes=("knn",)),
    )
    if laptop_model is None:
        larger = {"arch": "vit_nano", "patch_size": 4} if model.has_blocks else {"arch": "resnet18", "stem": "cifar"}
        laptop_model = replace(model, hidden=512, dim=128, **larger)
    name = name or loss.objective
    return {
        f"{name}_toy": toy,
        f"{name}_simmer": replace(toy, train=replace(toy.train, steps=simmer_steps, checkpoint_every=500)),
        f"{name}_laptop": replace(
            toy,
            data=DataConfig(name="cifar10", image_size=32),
            model=laptop_model,
            optim=replace(optim, warmup_epochs=5.0),
            train=TrainConfig(epochs=None, steps=6000, batch_size=256, checkpoint_every=500),
            eval=EvalConfig(probes=("knn", "linear")),
        ),
    }
