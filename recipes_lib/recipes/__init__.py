# SPDX-License-Identifier: Apache-2.0
"""The menu: what can be cooked. It imports no torch, so that ``recipes list`` and ``show`` answer at once."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes_lib.errors import ConfigError, RunError, nearest

if TYPE_CHECKING:
    from recipes_lib.claim import Chapter
    from recipes_lib.pretraining.recipe import Job, Recipe


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe and its chapter as the menu, the pages and the chapter's first cell show them."""

    name: str
    """Name of the recipe's module, chapter and tests."""
    title: str
    """Also the heading of the chapter."""
    paper: str
    """Authors, title, venue and year."""
    idea: str
    """One sentence."""
    presets: tuple[str, ...]
    """Smallest first; the paper's runs last, the largest of them last of all."""
    seconds: int
    """Seconds that the chapter takes on one core of a common machine."""
    needs: tuple[str, ...] = ()
    """Names of the chapters to read first."""

    @property
    def chapter(self) -> str:
        """The notebook that teaches the recipe, from the root of the repository."""
        return f"notebooks/{self.name}.ipynb"


_SIZES = ("toy", "simmer", "laptop")
_OF_THE_FAMILIES = (
    "rotation",
    "simclr",
    "dcl",
    "nnclr",
    "moco_v2",
    "moco_v3",
    "byol",
    "simsiam",
    "dino",
    "ibot",
    "barlow_twins",
    "vicreg",
    "swav",
    "w_mse",
    "mae",
    "simmim",
    "beit",
    "lejepa",
    "ijepa",
)
"""The methods that the recipe ``families`` has small presets of."""

MENU = {
    entry.name: entry
    for entry in (
        Entry(
            name="what_is_ssl",
            title="What self-supervised learning is",
            paper="Balestriero, Ibrahim, Sobal, Morcos, Shekhar, Goldstein, Bordes, Bardes, Mialon, Tian, Schwarzschild, "
            "Wilson, Geiping, Garrido, Fernandez, Bar, Pirsiavash, LeCun, Goldblum: A Cookbook of Self-Supervised "
            "Learning, 2023, arXiv 2304.12210",
            idea="A task made of the data itself, why its cheapest answer is worthless, and how one knows what was learned.",
            presets=("toy", "simmer"),
            seconds=40,
        ),
        Entry(
            name="families",
            title="The families: eighteen methods, one loop",
            paper="Balestriero, Ibrahim, Sobal, Morcos, Shekhar, Goldstein, Bordes, Bardes, Mialon, Tian, Schwarzschild, "
            "Wilson, Geiping, Garrido, Fernandez, Bar, Pirsiavash, LeCun, Goldblum: A Cookbook of Self-Supervised "
            "Learning, 2023, arXiv 2304.12210, section 2",
            idea="The losses of eighteen methods in one training loop, each with and without what keeps it from collapsing.",
            presets=(
                *_SIZES,
                *(f"{method}_{size}" for method in _OF_THE_FAMILIES for size in _SIZES),
                "rotation_rn50_imagenet",
                "simclr_rn50_imagenet",
                "dcl_rn50_imagenet",
                "nnclr_rn50_imagenet",
                "moco_v2_rn50_imagenet",
                "moco_v3_rn50_imagenet",
                "moco_v3_vits16_imagenet",
                "byol_rn50_imagenet",
                "simsiam_rn50_imagenet",
                "dino_vits16_imagenet",
                "dino_rn50_imagenet",
                "ibot_vits16_imagenet",
                "w_mse_rn18_cifar10",
                "w_mse_rn18_imagenet100",
                "barlow_twins_rn50_imagenet",
                "vicreg_rn50_100ep_imagenet",
                "vicreg_rn50_imagenet",
                "swav_rn50_b256_imagenet",
                "swav_rn50_imagenet",
                "mae_vitl16_imagenet",
                "mae_vitb16_imagenet",
                "simmim_vitb16_imagenet",
                "beit_vitb16_imagenet",
                "lejepa_vits8_imagenette",
                "lejepa_vitl14_imagenet",
                "ijepa_vith14_imagenet",
            ),
            seconds=90,
            needs=("what_is_ssl",),
        ),
        Entry(
            name="msn",
            title="Masked Siamese Networks",
            paper="Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas: Masked Siamese Networks "
            "for Label-Efficient Learning, ECCV 2022, arXiv 2204.07141",
            idea="An image with patches missing must choose the same prototypes as another view of it with none missing.",
            presets=(
                "toy",
                "simmer",
                "laptop",
                "vits16_imagenet",
                "vits16_imagenet_no_sinkhorn",
                "vitb4_imagenet",
            ),
            seconds=60,
            needs=("what_is_ssl",),
        ),
        Entry(
            name="paws",
            title="PAWS: a handful of labels",
            paper="Assran, Caron, Misra, Bojanowski, Joulin, Ballas, Rabbat: Semi-Supervised Learning of Visual "
            "Features by Non-Parametrically Predicting View Assignments with Support Samples, ICCV 2021, "
            "arXiv 2104.13963",
            idea="Two views of an unlabelled image must resemble the same labelled images.",
            presets=(
                "toy",
                "simmer",
                "laptop",
                "wrn28_2_cifar10",
                "rn50_imagenet_1pct_100",
                "rn50_imagenet_1pct_200",
                "rn50_imagenet_1pct",
                "rn50_imagenet_10pct_100",
                "rn50_imagenet_10pct_200",
                "rn50_imagenet_10pct",
            ),
            seconds=70,
            needs=("msn",),
        ),
        Entry(
            name="pmsn",
            title="The hidden uniform prior (PMSN)",
            paper="Assran, Balestriero, Duval, Bordes, Misra, Bojanowski, Vincent, Rabbat, Ballas: The Hidden Uniform "
            "Cluster Prior in Self-Supervised Learning, ICLR 2023, arXiv 2210.07277",
            idea="Prototypes are chosen as often as a prior says, such as a power law, where MSN asks for equally often.",
            presets=("toy", "simmer", "laptop", "vits16_places365_lt", "vits16_inat18"),
            seconds=70,
            needs=("msn",),
        ),
        Entry(
            name="evaluation",
            title="Evaluation: how one knows what was learned",
            paper="Balestriero, Ibrahim, Sobal, Morcos, Shekhar, Goldstein, Bordes, Bardes, Mialon, Tian, Schwarzschild, "
            "Wilson, Geiping, Garrido, Fernandez, Bar, Pirsiavash, LeCun, Goldblum: A Cookbook of Self-Supervised "
            "Learning, 2023, arXiv 2304.12210, section 3",
            idea="A number for a network is of use if it ranks networks rightly; some do only within one method.",
            presets=("toy", "simmer"),
            seconds=70,
            needs=("families",),
        ),
        Entry(
            name="knobs",
            title="Knobs: what each setting does",
            paper="Balestriero, Ibrahim, Sobal, Morcos, Shekhar, Goldstein, Bordes, Bardes, Mialon, Tian, Schwarzschild, "
            "Wilson, Geiping, Garrido, Fernandez, Bar, Pirsiavash, LeCun, Goldblum: A Cookbook of Self-Supervised "
            "Learning, 2023, arXiv 2304.12210, section 3",
            idea="Augmentation, projector, batch size, rates and masks, turned one at a time and compared with the advice.",
            presets=("toy", "simmer"),
            seconds=70,
            needs=("families",),
        ),
        Entry(
            name="troubleshooting",
            title="Troubleshooting: what went wrong",
            paper="Balestriero, Ibrahim, Sobal, Morcos, Shekhar, Goldstein, Bordes, Bardes, Mialon, Tian, Schwarzschild, "
            "Wilson, Geiping, Garrido, Fernandez, Bar, Pirsiavash, LeCun, Goldblum: A Cookbook of Self-Supervised "
            "Learning, 2023, arXiv 2304.12210",
            idea="Twelve faults made on purpose, the number that shows each, and how far these numbers can be trusted.",
            presets=("toy", "simmer"),
            seconds=85,
            needs=("families",),
        ),
        Entry(
            name="clip",
            title="CLIP: pictures and their captions",
            paper="Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: "
            "Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, arXiv 2103.00020",
            idea="An image must find its own text among those of the batch, and a text its own image.",
            presets=(
                "toy",
                "simmer",
                "laptop",
                "datacomp_small",
                "datacomp_medium",
                "datacomp_large",
                "datacomp_xlarge",
            ),
            seconds=50,
            needs=("what_is_ssl",),
        ),
        Entry(
            name="sieve",
            title="Sieve: which pairs deserve to be learned from",
            paper="Mahmoud, Elhoushi, Abbas, Yang, Ardalani, Leather, Morcos: Sieve: Multimodal Dataset Pruning Using "
            "Image Captioning Models, CVPR 2024, arXiv 2310.02110",
            idea="Keep the pairs whose text says what an image captioner says of the image.",
            presets=("toy", "simmer", "laptop", "datacomp_medium"),
            seconds=50,
            needs=("clip",),
        ),
        Entry(
            name="convit",
            title="ConViT: attention that starts as a convolution",
            paper="d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun: ConViT: Improving Vision Transformers with Soft "
            "Convolutional Inductive Biases, ICML 2021, arXiv 2103.10697",
            idea="Attention that begins by looking at neighbours needs fewer images, and a gate lets it look elsewhere.",
            presets=(
                *_SIZES,
                "deit_small_imagenet_10",
                "small_imagenet_10",
                "deit_small_imagenet",
                "tiny_imagenet",
                "small_imagenet",
                "base_imagenet",
                "tiny_plus_imagenet",
                "small_plus_imagenet",
                "base_plus_imagenet",
            ),
            seconds=80,
        ),
        Entry(
            name="tcnn",
            title="Transformed CNNs: a convolution as attention",
            paper="d'Ascoli, Sagun, Biroli, Morcos: Transformed CNNs: Recasting Pre-trained Convolutional Layers with "
            "Self-attention, arXiv 2106.05795",
            idea="The last convolutions of a trained network become attention that computes the same, and learns on.",
            presets=(
                "toy",
                "simmer",
                "finetune",
                "laptop",
                "cnn_imagenet",
                "cnn_finetune_imagenet",
                "hybrid_imagenet",
                "finetune_imagenet",
            ),
            seconds=80,
            needs=("convit",),
        ),
        Entry(
            name="local_sgd",
            title="Local SGD and SlowMo: talking less",
            paper="Ortiz, Frankle, Rabbat, Morcos, Ballas: Trade-offs of Local SGD at Scale: An Empirical Study, 2021, "
            "arXiv 2110.08133; Wang, Tantia, Ballas, Rabbat: SlowMo, ICLR 2020, arXiv 1910.00643",
            idea="Workers step alone and average their weights every so often: fewer bytes, at a price in accuracy.",
            presets=(
                "toy",
                "simmer",
                "laptop",
                "resnet50_imagenet",
                "resnet50_imagenet_local",
                "resnet50_imagenet_post_local",
                "resnet50_imagenet_slowmo",
            ),
            seconds=40,
        ),
        Entry(
            name="switchback",
            title="SwitchBack: eight bits where they suffice",
            paper="Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt: Stable and low-precision training for "
            "large-scale vision-language models, NeurIPS 2023, arXiv 2304.13013",
            idea="Two of a linear layer's three products need 8 bits only; the third, and the optimiser, need care.",
            presets=("toy", "simmer", "laptop", "vitb32_laion2b", "vitl14_laion2b", "vith14_laion2b"),
            seconds=50,
            needs=("clip",),
        ),
        Entry(
            name="imagenet_x",
            title="ImageNet-X: why a model fails",
            paper="Youbi Idrissi, Bouchacourt, Balestriero, Evtimov, Hazirbas, Ballas, Vincent, Drozdzal, Lopez-Paz, "
            "Ibrahim: ImageNet-X: Understanding Model Mistakes with Factor of Variation Annotations, ICLR 2023, "
            "arXiv 2211.01866",
            idea="Compare a model's errors on images with an odd pose, background or texture with its errors on all.",
            presets=("toy", "simmer", "score", "report"),
            seconds=40,
            needs=("msn", "clip"),
        ),
    )
}


def entry(name: str) -> Entry:
    """The menu's entry of this name. Raises: ``ConfigError`` naming the nearest where there is none."""
    if name not in MENU:
        raise ConfigError(f"There is no recipe {name!r}. {nearest(name, MENU)}")
    return MENU[name]


def named(name: str) -> "Recipe | Job":
    """What the chapter's ``recipe.py`` ends in; imports torch.

    Raises: ``ConfigError`` naming the nearest recipe where there is none of this name.
    """
    return importlib.import_module(f"recipes_lib.recipes.{entry(name).name}.recipe").RECIPE


def chapter(name: str) -> "Chapter":
    """What the recipe's chapter puts to the test; imports no torch.

    Raises: ``ConfigError`` naming the nearest recipe where there is none of this name.
    """
    if name not in MENU:
        raise ConfigError(f"There is no recipe {name!r}. {nearest(name, MENU)}")
    return importlib.import_module(f"recipes_lib.recipes.{name}.claims").CHAPTER


def of_run(path: Path) -> "Recipe | Job":
    """The recipe of a run folder. Raises: ``RunError`` where it is no run folder, or one of a recipe that is not here."""
    from recipes_lib.training.folder import RunFolder  # imports torch

    run = RunFolder.open(path)
    try:
        return named(run.read_config()["recipe"])
    except ConfigError as error:
        raise RunError(f"{run.path / 'config.yaml'}: {error}") from None


def that_trained(path: Path) -> "Recipe":
    """The recipe of a run folder that holds a trained backbone. Raises: ``RunError`` where there is none to have."""
    from recipes_lib.pretraining.recipe import Recipe  # imports torch

    recipe = of_run(path)
    if not isinstance(recipe, Recipe):
        raise RunError(f"{path} is a run of a recipe that trains no backbone: there is nothing to evaluate or export.")
    return recipe
