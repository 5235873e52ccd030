# SPDX-License-Identifier: Apache-2.0
"""The map of systems: what each method of the book is made of, as data. It imports no torch.

``book/systems.md`` shows it as a table. Tests hold the entries of the families to the code: who has a teacher, whose
loss depends on the rest of the batch, and so on.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class System:
    """The ingredients of one method."""

    title: str
    """Its usual name."""
    family: str
    """Its family in the Cookbook, or what it came after."""
    cite: str
    """Its paper's key in ``book/references.bib``."""
    chapter: str
    """Name of the chapter that teaches it."""
    terms: str
    """The terms of its loss."""
    guard: str
    """What keeps its embeddings from collapsing to one point."""
    teacher: bool = False
    """Whether targets come from a moving average of the network."""
    stop_gradient: bool = False
    """Whether the targets pass no gradient."""
    predictor: bool = False
    """Whether one branch has a predictor that the other has not."""
    negatives: bool = False
    """Whether other images' embeddings are pushed away one by one."""
    masking: bool = False
    """Whether patches are hidden."""
    batch_coupled: bool = False
    """Whether an image's loss depends on the other images of the batch, beyond batch norm."""


_METRIC = "deep metric learning"
_DISTILLATION = "self-distillation"
_CORRELATION = "canonical correlation"
_MASKED = "masked modelling"
_AFTER = "after the Cookbook"

SYSTEMS: dict[str, System] = {
    "rotation": System(
        title="rotation (RotNet)",
        family="pretext task",
        cite="gidaris2018rotation",
        chapter="families",
        terms="cross-entropy of the four rotations",
        guard="targets are angles, which do not depend on the network",
    ),
    "simclr": System(
        title="SimCLR",
        family=_METRIC,
        cite="chen2020simclr",
        chapter="families",
        terms="cross-entropy of the partner among all other views (NT-Xent)",
        guard="negatives",
        negatives=True,
        batch_coupled=True,
    ),
    "dcl": System(
        title="DCL",
        family=_METRIC,
        cite="yeh2022dcl",
        chapter="families",
        terms="NT-Xent without the partner in the denominator",
        guard="negatives",
        negatives=True,
        batch_coupled=True,
    ),
    "nnclr": System(
        title="NNCLR",
        family=_METRIC,
        cite="dwibedi2021nnclr",
        chapter="families",
        terms="InfoNCE between an image's nearest neighbour in a queue and its other view",
        guard="negatives",
        stop_gradient=True,
        predictor=True,
        negatives=True,
        batch_coupled=True,
    ),
    "moco_v2": System(
        title="MoCo v2",
        family=_METRIC,
        cite="he2020moco",
        chapter="families",
        terms="InfoNCE of the teacher's key among a queue of keys",
        guard="negatives from a queue",
        teacher=True,
        stop_gradient=True,
        negatives=True,
    ),
    "moco_v3": System(
        title="MoCo v3",
        family=_METRIC,
        cite="chen2021mocov3",
        chapter="families",
        terms="InfoNCE of the teacher's key among the batch's keys",
        guard="negatives",
        teacher=True,
        stop_gradient=True,
        predictor=True,
        negatives=True,
        batch_coupled=True,
    ),
    "byol": System(
        title="BYOL",
        family=_DISTILLATION,
        cite="grill2020byol",
        chapter="families",
        terms="squared distance of normalised prediction and teacher",
        guard="predictor, stop-gradient and teacher",
        teacher=True,
        stop_gradient=True,
        predictor=True,
    ),
    "simsiam": System(
        title="SimSiam",
        family=_DISTILLATION,
        cite="chen2021simsiam",
        chapter="families",
        terms="cosine of prediction and the other view",
        guard="predictor and stop-gradient",
        stop_gradient=True,
        predictor=True,
    ),
    "dino": System(
        title="DINO",
        family=_DISTILLATION,
        cite="caron2021dino",
        chapter="families",
        terms="cross-entropy of the teacher's centred and sharpened prototypes; iBOT adds hidden patches, KoLeo spreads features",
        guard="centring and sharpening",
        teacher=True,
        stop_gradient=True,
    ),
    "barlow_twins": System(
        title="Barlow Twins",
        family=_CORRELATION,
        cite="zbontar2021barlow",
        chapter="families",
        terms="cross-correlation of the two views against the identity",
        guard="redundancy reduction of normalised dimensions",
        batch_coupled=True,
    ),
    "vicreg": System(
        title="VICReg",
        family=_CORRELATION,
        cite="bardes2022vicreg",
        chapter="families",
        terms="invariance, variance and covariance",
        guard="variance and covariance terms",
        batch_coupled=True,
    ),
    "swav": System(
        title="SwAV",
        family=_CORRELATION,
        cite="caron2020swav",
        chapter="families",
        terms="cross-entropy with the other view's balanced code",
        guard="codes that use all prototypes equally often (Sinkhorn)",
        stop_gradient=True,
        batch_coupled=True,
    ),
    "w_mse": System(
        title="W-MSE",
        family=_CORRELATION,
        cite="ermolov2021wmse",
        chapter="families",
        terms="squared distance of whitened embeddings",
        guard="whitening",
        batch_coupled=True,
    ),
    "mae": System(
        title="MAE",
        family=_MASKED,
        cite="he2022mae",
        chapter="families",
        terms="squared error of hidden pixels",
        guard="targets are pixels, which do not depend on the network",
        masking=True,
    ),
    "simmim": System(
        title="SimMIM",
        family=_MASKED,
        cite="xie2022simmim",
        chapter="families",
        terms="absolute error of hidden pixels",
        guard="targets are pixels, which do not depend on the network",
        masking=True,
    ),
    "beit": System(
        title="BEiT",
        family=_MASKED,
        cite="bao2022beit",
        chapter="families",
        terms="cross-entropy of hidden visual words",
        guard="targets are visual words, which do not depend on the network",
        masking=True,
    ),
    "lejepa": System(
        title="LeJEPA",
        family=_AFTER,
        cite="balestriero2025lejepa",
        chapter="families",
        terms="distance to the views' mean, and SIGReg's distance from a Gaussian",
        guard="SIGReg",
        batch_coupled=True,
    ),
    "ijepa": System(
        title="I-JEPA",
        family=_AFTER,
        cite="assran2023ijepa",
        chapter="families",
        terms="smooth absolute error of hidden blocks' embeddings",
        guard="teacher, stop-gradient and predictor",
        teacher=True,
        stop_gradient=True,
        predictor=True,
        masking=True,
    ),
    "msn": System(
        title="MSN",
        family=_DISTILLATION,
        cite="assran2022msn",
        chapter="msn",
        terms="cross-entropy of the target's prototypes, and mean-entropy maximisation",
        guard="Sinkhorn and mean-entropy maximisation",
        teacher=True,
        stop_gradient=True,
        masking=True,
        batch_coupled=True,
    ),
    "pmsn": System(
        title="PMSN",
        family=_DISTILLATION,
        cite="assran2023prior",
        chapter="pmsn",
        terms="cross-entropy of the target's prototypes, and a divergence from a prior",
        guard="divergence from a prior",
        teacher=True,
        stop_gradient=True,
        masking=True,
        batch_coupled=True,
    ),
    "paws": System(
        title="PAWS",
        family="with a few labels",
        cite="assran2021paws",
        chapter="paws",
        terms="cross-entropy of the sharpened class of the other view, and mean-entropy maximisation",
        guard="labelled supports and sharpening",
        stop_gradient=True,
        predictor=True,
        batch_coupled=True,
    ),
    "clip": System(
        title="CLIP",
        family="images and texts",
        cite="radford2021clip",
        chapter="clip",
        terms="cross-entropy of the partner, both ways",
        guard="negatives",
        negatives=True,
        batch_coupled=True,
    ),
}
"""The systems by name; those of the families bear the names of ``loss.objective``."""
