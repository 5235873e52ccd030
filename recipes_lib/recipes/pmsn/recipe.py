# SPDX-License-Identifier: Apache-2.0
"""Prior Matching for Siamese Networks: MSN with prototypes that are used as often as a prior says, not equally often.

Assran, Balestriero, Duval, Bordes, Misra, Bojanowski, Vincent, Rabbat, Ballas, "The Hidden Uniform Cluster Prior in
Self-Supervised Learning", ICLR 2023, arXiv 2210.07277. Chapter: ``notebooks/pmsn.py``. No code was released.

1. Objectives that spread features over a mini-batch (SimCLR, VICReg, SwAV, MSN) imply a prior: clusters of equal size.
2. This prior fits balanced ImageNet; it does harm on data with a long tail, and in batches of a few classes.
3. MSN's prior is explicit: its mean-entropy term is KL(pbar || uniform); pbar is the mean assignment to prototypes.
4. PMSN replaces the uniform prior by another, by default a power law over the prototypes; nothing else changes.

``loss.objective`` trains SimCLR, VICReg or SwAV with the same network and views, to compare what their priors cost.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recipes_lib.config import DataConfig
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.loader import Batch
from recipes_lib.distributed import sync
from recipes_lib.errors import DataError, Faults
from recipes_lib.evaluation.features import Features
from recipes_lib.objectives import priors, prototypes
from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.objectives.redundancy import vicreg_loss
from recipes_lib.objectives.swapped import swav_loss
from recipes_lib.recipes.msn import recipe as msn
from recipes_lib.training import checkpoint, loop
from recipes_lib.training.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class LossConfig(msn.LossConfig):
    """MSN's objective with a prior over the prototypes, or another objective, which has a fixed prior."""

    objective: Literal["msn", "simclr", "vicreg", "swav"] = "msn"
    """msn: MSN's loss with the prior of the next fields, which the other objectives do not use.
    Of the other fields of ``loss``, simclr uses ``temperature``, and swav uses ``temperature`` and
    ``sinkhorn_iterations``.
    All else about simclr, vicreg and swav is as in their papers."""
    prior: Literal["uniform", "power_law", "file"] = "power_law"
    """How often each prototype should be used. uniform: all equally often, which is MSN."""
    exponent: float = 0.25
    """Exponent of ``prior`` power_law, at least 0 (the paper's tau): prototype k, counted from 1, should be used in
    proportion to k ** -exponent. 0: uniform."""
    prior_file: Path | None = None
    """For ``prior`` file: a text file with one number per prototype, or an ``.npy`` file; frequencies or counts."""
    prior_warmup: float = 0.0
    """Share of the run, in [0, 1], in which the prior moves from uniform to the chosen one. 0: no warm-up."""
    direction: Literal["forward", "reverse"] = "forward"
    """Direction of the divergence. forward: KL(pbar || prior), of which MSN's term is a special case;
    reverse: KL(prior || pbar), as in the library lightly. pbar is the mean assignment."""
    sinkhorn: Literal["off", "uniform", "prior"] = "off"
    """The distribution over prototypes that ``sinkhorn_iterations`` Sinkhorn iterations balance the targets to.
    off: no balancing; uniform: as in MSN, which works against any other ``prior``; prior: the chosen prior."""

    @property
    def is_uniform(self) -> bool:
        """Whether the prior is MSN's uniform one."""
        return self.prior == "uniform" or (self.prior == "power_law" and self.exponent == 0)

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        hint = "0 is uniform; lightly's default is 0.25."
        faults.need(0 <= self.exponent < float("inf"), "loss.exponent", self.exponent, "of at least 0", hint)
        share = self.prior_warmup
        faults.need(0 <= share <= 1, "loss.prior_warmup", share, "in [0, 1]", "0 has the prior from the first step.")
        if (self.prior == "file") != (self.prior_file is not None):
            faults.add(
                f"loss.prior = {self.prior} does not fit loss.prior_file = {self.prior_file}: give both "
                "--loss.prior file and --loss.prior-file FILE, or neither."
            )
        if (self.objective == "swav" or self.sinkhorn != "off") and self.sinkhorn_iterations == 0:
            who = "loss.objective swav" if self.objective == "swav" else f"loss.sinkhorn {self.sinkhorn}"
            faults.add(f"loss.sinkhorn_iterations = 0 leaves {who} no round: use a value of at least 1.")


@dataclass(frozen=True, kw_only=True)
class Config(msn.Config):
    """PMSN's config: MSN's with a prior. The defaults are MSN's ViT-S/16 and a power law with exponent 0.25."""

    loss: LossConfig = field(default_factory=LossConfig)

    def check(self, faults: Faults) -> None:
        """Adds to ``faults`` every fault of the groups, and of values of two groups that do not fit together."""
        super().check(faults)
        views, objective = (self.views.global_views, self.views.local_views), self.loss.objective
        if objective in ("simclr", "vicreg") and views != (1, 0):
            faults.add(
                f"loss.objective {objective} compares two views: set views.global_views (now {views[0]}) to 1 and "
                f"views.local_views (now {views[1]}) to 0."
            )


class PMSN(msn.MSN):
    """MSN with a prior over its prototypes; the prior is a buffer that is stored with the weights.

    If ``loss.prior_file`` cannot be read, the prior is nan until weights are loaded, and ``unread`` holds the error.
    :func:`fit` raises this error if the run has no checkpoint to load the prior from.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.unread: DataError | None = None
        try:
            prior = _prior(config.loss, config.model.prototypes)
        except DataError as error:
            self.unread, prior = error, torch.full((config.model.prototypes,), torch.nan)
        self.register_buffer("prior", prior.float())

    @property
    def sinkhorn_prototypes(self) -> int:
        """The number of prototypes that Sinkhorn spreads the targets of a micro-batch over; 0 without it."""
        return 0 if self.config.loss.sinkhorn == "off" else super().sinkhorn_prototypes

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """The views of MSN, and ``prior`` [prototypes], which depends only on the number of the step."""
        return super().views(batch, step) | {"prior": self.prior_at(step)}

    def prior_at(self, step: int) -> Tensor:
        """The prior at a step [prototypes]: moves linearly from uniform to the chosen prior during the warm-up."""
        length = self.config.loss.prior_warmup * self.steps
        share = min(1.0, step / length) if length else 1.0
        if share == 1:
            return self.prior
        return torch.lerp(torch.full_like(self.prior, 1 / len(self.prior)), self.prior, share)

    def forward(self, views: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        return self.objective(*self.embeddings(views), prior=views["prior"])

    def objective(self, anchors: Tensor, targets: Tensor, *, prior: Tensor) -> dict[str, Tensor]:
        """The loss and its parts: anchors [V * batch, dim], view-major, targets [batch, dim], prior [prototypes]."""
        loss = self.config.loss
        prior = None if loss.is_uniform else prior  # None: MSN's own term, which is equal to the last bit
        return prototypes.msn_loss(
            anchors,
            targets,
            self.prototypes.weight,
            temperature=loss.temperature,
            sharpen_temperature=loss.sharpen_temperature,
            sinkhorn_iterations=0 if loss.sinkhorn == "off" else loss.sinkhorn_iterations,
            me_max_weight=loss.me_max_weight,
            entropy_weight=loss.entropy_weight,
            prior=prior,
            direction=loss.direction,
            sinkhorn_prior=prior if loss.sinkhorn == "prior" else None,
        )


class Siamese(msn.MSN):
    """SimCLR, VICReg or SwAV with MSN's views and encoder; as in MSN, the moving average is evaluated."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.prototypes.requires_grad_(config.loss.objective == "swav")

    @property
    def sinkhorn_prototypes(self) -> int:
        """The number of prototypes that SwAV's codes use equally often; 0 for SimCLR and VICReg."""
        return super().sinkhorn_prototypes if self.config.loss.objective == "swav" else 0

    def forward(self, views: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`msn.MSN.views`."""
        large = [self.anchor.backbone(views["target"])]  # no stop-gradient: all views learn
        if views["global"] is not None:
            large.append(self.anchor.backbone(views["global"], views["keep"]))
        embeddings = [self.anchor.head(torch.cat(large))]  # one head call per resolution, as in MSN
        if views["local"] is not None:
            embeddings.append(self.anchor(views["local"]))
        z = torch.cat(embeddings).unflatten(0, (-1, len(views["target"])))  # [V, batch, dim]
        loss = self.config.loss
        match loss.objective:
            case "simclr":
                return nt_xent(*z, temperature=loss.temperature)
            case "vicreg":
                return vicreg_loss(*z)
        return swav_loss(
            z,
            self.prototypes.weight,
            code_views=1 + self.config.views.global_views,
            temperature=loss.temperature,
            sinkhorn_iterations=loss.sinkhorn_iterations,
        )

    def param_groups(self) -> list[dict]:
        """The optimiser's groups: weights decay; biases, norms and SwAV's prototypes do not."""
        return [group for group in super().param_groups() if all(p.requires_grad for p in group["params"])]


def build(config: Config, steps: int) -> msn.MSN:
    """Builds the method of ``loss.objective``."""
    return PMSN(config, steps) if config.loss.objective == "msn" else Siamese(config, steps)


def fit(given: loop.Training, folder: RunFolder) -> sync.Traffic:
    """Trains as :func:`loop.fit` does. A resumed run takes the prior from its checkpoint and does not need the file.

    Raises: ``DataError`` naming a file that holds no prior, at the start of a run; else as :func:`loop.fit`.
    """
    method = given.method
    if isinstance(method, PMSN) and method.unread and not checkpoint.newest_step(folder.checkpoints):
        raise method.unread
    return loop.fit(given, folder)


_MOST_PRIOR_BYTES = 1 << 25
"""Largest size of a file with a prior: 32 MiB, enough for a million frequencies in full digits."""


def _prior(loss: LossConfig, count: int) -> Tensor:
    """The prior, float64 [count]. Raises: ``DataError`` naming a file that does not hold ``count`` frequencies."""
    if loss.is_uniform:
        return priors.uniform(count)
    if loss.prior == "power_law":
        return priors.power_law(count, loss.exponent)
    path = loss.prior_file
    if not path.is_file():
        raise DataError(f"loss.prior_file = {path} is no file. Give a text or .npy file of {count} frequencies.")
    if (size := path.stat().st_size) > _MOST_PRIOR_BYTES:
        raise DataError(
            f"loss.prior_file = {path} has {size:,} bytes. Give a text or .npy file of {count} frequencies."
        )
    try:
        numbers = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, ndmin=1)
        prior = priors.given(torch.from_numpy(numbers), normalise=True)
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"loss.prior_file = {path} holds no prior: {str(error).splitlines()[0]}") from None
    if len(prior) != count:
        raise DataError(f"loss.prior_file = {path} has {len(prior)} numbers, but model.prototypes = {count}.")
    return prior


def cautions(config: Config) -> list[str]:
    """Lines about settings that are allowed but perhaps not intended."""
    loss, count = config.loss, config.model.prototypes
    images = config.train.batch_size // config.train.accumulate
    anchors = images * (config.views.global_views + config.views.local_views)
    lines = []
    if loss.objective != "msn":
        return lines
    if loss.sinkhorn == "uniform" and not loss.is_uniform:
        lines.append(
            f"loss.sinkhorn = uniform and loss.prior = {loss.prior} pull apart: the targets are balanced equally. Use "
            "--loss.sinkhorn off or prior."
        )
    if anchors < count:
        lines.append(f"{anchors} anchors a micro-batch cannot match a prior over model.prototypes = {count} of them.")
    if loss.sinkhorn != "off" and images < count:
        lines.append(f"{images} targets a micro-batch cannot be balanced over model.prototypes = {count} of them.")
    return lines


def diagnostics(method: msn.MSN, features: Features, test: ImageSet | ImageFiles) -> dict[str, float]:
    """MSN's diagnostics; an empty dict for SimCLR and VICReg, which have no prototypes."""
    if method.config.loss.objective in ("simclr", "vicreg"):
        return {}
    return msn.diagnostics(method, features, test)


def _extend(base: msn.Config, **groups: object) -> Config:
    """The config of MSN's preset ``base`` as a config of PMSN, with ``groups`` replaced."""
    return Config(
        **{**{group.name: getattr(base, group.name) for group in fields(base)}, "loss": LossConfig(), **groups}
    )


# MSN's toy on a long tail: class r of the Pantry keeps r ** -0.5 times as many images as class 1. A minute of training
# shows the prior at work, but the k-NN score is still about that of random weights (0.296 and 0.290, seed 0).
# Sinkhorn balances to the prior here: without Sinkhorn a short run collapses, and MSN's Sinkhorn would make the
# assignment uniform again.
_TOY = _extend(
    msn.PRESETS["toy"],
    data=replace(msn.PRESETS["toy"].data, train_size=6000, tail=0.5),
    loss=LossConfig(sinkhorn="prior"),
)
_SIMMER, _LAPTOP = (msn.PRESETS[name] for name in ("simmer", "laptop"))

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # A longer tail, a steeper prior and more steps, with MSN's mask; `recipes cook pmsn` stores the result.
    "simmer": _extend(
        replace(_SIMMER, train=replace(_SIMMER.train, steps=1000)),
        data=replace(_TOY.data, train_size=12000, test_size=1000, tail=1.0),
        loss=replace(_TOY.loss, exponent=1.0),
    ),
    # CIFAR-10 with a long tail (14,645 images), about an hour of one core.
    "laptop": _extend(_LAPTOP, data=replace(_LAPTOP.data, tail=1.0), loss=_TOY.loss),
    # Places365 with a long tail. The paper's subset, epochs and batch size are not known to us: the values are those of
    # MSN's ViT-S/16, and the exponent of the tail is our choice.
    "vits16_places365_lt": Config(data=DataConfig(name="places365", tail=0.75)),
    # iNaturalist 2018, which has a long tail by nature. The paper's lambda, epochs, batch size and use of Sinkhorn are
    # not known to us: the exponent 0.25 is lightly's default; lambda 1 and 800 epochs are the values of MSN's ViT-S/16.
    # lambda may be too small: without Sinkhorn, MSN on ImageNet reached 67.2 with lambda 5 and 60.8 with lambda 1 (1 %
    # of the labels, MSN's Table 11), so compare a run with --loss.me-max-weight 5.
    "vits16_inat18": Config(data=DataConfig(name="inat18")),
}


RECIPE = replace(
    msn.RECIPE,
    name="pmsn",
    config=Config,
    presets=PRESETS,
    method=build,
    fit=fit,
    diagnostics=diagnostics,
    cautions=cautions,
)
