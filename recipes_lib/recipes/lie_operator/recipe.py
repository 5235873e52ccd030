# SPDX-License-Identifier: Apache-2.0
"""Lie operator: learn how an embedding moves when an object turns, instead of only ignoring that it did.

Ibrahim, Bouchacourt, Morcos, "Robust Self-Supervised Learning with Lie Groups", arXiv 2210.13356. Chapter:
``notebooks/lie_operator.py``. Of the paper, only the abstract and the introduction could be read, and no code is public; what
is ours is said in ``settings.py``.

1. A pair shows one object before and after a variation, such as another pose.
2. A matrix exp(sum_k t_k L_k) moves the embedding of the first image to that of the second. The generators L are learned.
3. A small network infers the coefficients t from the two embeddings.
4. An SSL objective keeps the embeddings from collapsing; it also compares moved embeddings, if asked to.
5. A motion that was seen on some objects is applied to others, so that a classifier sees poses that it was not shown.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import PROBES, OptimConfig, TrainConfig
from recipes_lib.config.views import ViewsConfig
from recipes_lib.data import posed
from recipes_lib.data.load import Splits
from recipes_lib.data.load import load as load_images
from recipes_lib.data.loader import Batch
from recipes_lib.distributed import collectives
from recipes_lib.distributed.sync import Traffic
from recipes_lib.evaluation.features import evaluating
from recipes_lib.models import backbones, heads, interchange, vit
from recipes_lib.models.lie_operator import CoefficientNetwork, LieOperator, MLPOperator
from recipes_lib.models.predictor import PatchPredictor, fix_positions
from recipes_lib.objectives.equivariance import refuse_equal_pairs, relative_error, transfer_loss
from recipes_lib.objectives.masked import mae_loss, patchify
from recipes_lib.objectives.precision import at_least_float32
from recipes_lib.objectives.redundancy import variance_hinge, vicreg_loss
from recipes_lib.optim import groups
from recipes_lib.pretraining import scoring
from recipes_lib.pretraining.recipe import Method, Recipe
from recipes_lib.pretraining.scoring import DATA_SEED, Scored, Scores
from recipes_lib.recipes.lie_operator import protocol
from recipes_lib.recipes.lie_operator.settings import (
    OF_POSES,
    Config,
    LieEval,
    LossConfig,
    ModelConfig,
    OperatorConfig,
    PoseData,
)
from recipes_lib.training import checkpoint, loop
from recipes_lib.training.folder import RunFolder
from recipes_lib.views import masking
from recipes_lib.views.multicrop import MultiCrop, eval_view

CHUNK = 256
"""Number of images that are embedded at once."""


class LieOperatorSSL(Method):
    """A backbone with an SSL objective, and an operator that moves the embedding of an image to that of its pair.

    An embedding z is a linear map of the backbone's features. Targets of the squared distance pass no gradient.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config = config
        model, operator = config.model, config.operator
        self.backbone = backbones.build(model, image_size=config.views.image_size)
        width = self.backbone.num_features
        self.to_embedding = nn.Linear(width, operator.dim)
        self.decoder, self.projector = None, None
        if config.loss.objective == "mae":
            fix_positions(self.backbone)
            shape = {"width": model.decoder_width, "depth": model.decoder_depth, "heads": model.decoder_heads}
            self.decoder = PatchPredictor(width, 3 * model.patch_size**2, grid=self._grid, **shape)
        elif config.loss.ssl_weight or config.loss.lie_weight:
            self.projector = heads.MLPHead(operator.dim, model.hidden, model.dim, layers=3)
        if model.frozen:
            self.backbone.requires_grad_(False)
        self.coefficients, self.operator = _operator(operator)
        self._crop = MultiCrop(config.views, config.train.seed)
        self.crop_one = self._crop.crop_one

    def train(self, mode: bool = True) -> "LieOperatorSSL":
        """Sets the mode; a frozen backbone stays in evaluation mode, with its own statistics."""
        super().train(mode)
        if self.config.model.frozen:
            self.backbone.eval()
        return self

    def embed(self, features: Tensor) -> Tensor:
        """The embeddings z of features: [batch, ``num_features``] -> [batch, d]."""
        return self.to_embedding(features)

    def infer(self, source: Tensor, target: Tensor) -> Tensor:
        """The coefficients t of the motion between embeddings: [batch, d] twice -> [batch, K]."""
        return self.coefficients(source, target)

    def move(self, embeddings: Tensor, coefficients: Tensor) -> Tensor:
        """g(t) z: [batch, d] and [batch, K] -> [batch, d]."""
        return self.operator(embeddings, coefficients)

    def views(self, batch: Batch, step: int) -> dict[str, Any]:
        """``first`` and ``second`` view of each pair, [batch, 3, side, side]; with MAE the patches to ``keep`` and ``hidden``.

        Raises: ``ValueError`` if both images of a pair are equal.
        """
        first, second = self._crop(batch)
        if batch.partners is not None:
            refuse_equal_pairs(batch.images, batch.partners)
            second = self._crop(replace(batch, images=batch.partners))[1]
        found = {"first": first, "second": second}
        if self.decoder is not None:
            keys = randomness.sample_keys(self.config.train.seed, batch.epoch, batch.indices)
            order = masking.random_keep(self._grid**2, 0.0, keys=keys)
            kept = masking.keep_count(self._grid**2, self.config.loss.mask_ratio)
            found |= {"keep": order[:, :kept], "hidden": order[:, kept:]}
        return found

    def forward(self, views: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of one micro-batch, and its terms. ``relative_error`` is 1 if the operator does nothing.

        ``latent_std`` is the mean standard deviation of the embeddings' dimensions: it falls to 0 if they shrink.
        """
        weights = self.config.loss
        z, other = self._embeddings(views["first"], views["second"])
        moved, size = self._moved(z, other)
        with torch.autocast(z.device.type, enabled=False):
            euclid = transfer_loss(moved, other.detach())
            everyone = [collectives.all_gather(at_least_float32(rows)) for rows in (z, other)]
            spread = sum(variance_hinge(rows) for rows in everyone) / 2
        ssl, lie = self._objective(views, z, other, moved)
        loss = weights.ssl_weight * ssl + weights.lie_weight * lie
        loss = loss + weights.euclid_weight * euclid + weights.spread_weight * spread + weights.penalty * size
        with torch.no_grad():
            parts = {"ssl": ssl, "lie": lie, "euclid": euclid, "spread": spread, "coefficient_square": size}
            relative = relative_error(moved, other, z)
            std = torch.cat(everyone).std(dim=0).mean()
        parts = {name: part.detach() for name, part in parts.items()}
        return {"loss": loss, **parts, "relative_error": relative, "latent_std": std}

    def _embeddings(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.cat([first, second])  # one call, so that batch norms see both
        if self.config.model.frozen:
            with torch.no_grad():
                features = self.backbone(images)
        else:
            features = self.backbone(images)
        z, other = self.to_embedding(features).chunk(2)
        return z, other

    def _moved(self, z: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The moved embeddings, and the mean squared coefficient."""
        if self.operator is None:
            return at_least_float32(z), z.new_zeros((), dtype=torch.float32)
        t = self.infer(z, other)
        return self.move(z, t), t.square().mean()

    def _objective(self, views: dict[str, Any], z: Tensor, other: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """The SSL objective of the images, and that of the moved embeddings; 0 where it has no weight."""
        nothing = z.new_zeros((), dtype=torch.float32)
        if self.decoder is not None:
            visible = self.backbone.tokens(views["first"], views["keep"])
            predicted = self.decoder(visible, views["keep"], views["hidden"])
            patches = vit.kept(patchify(views["first"], self.config.model.patch_size), views["hidden"])
            return mae_loss(predicted, patches)["loss"], nothing
        if self.projector is None:
            return nothing, nothing
        loss = self.config.loss
        compare = partial(
            vicreg_loss,
            invariance_weight=loss.invariance_weight,
            variance_weight=loss.variance_weight,
            covariance_weight=loss.covariance_weight,
        )
        mine, theirs, ours = self.projector(torch.cat([z, other, moved.to(z.dtype)])).chunk(3)
        ssl = compare(mine, theirs)["loss"] if loss.ssl_weight else nothing
        lie = compare(ours, theirs)["loss"] if loss.lie_weight else nothing
        return ssl, lie

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: the backbone with its own rate; generators do not decay, since their norm is fixed."""
        backbone = [{**group, "lr_scale": self.config.model.lr_scale} for group in groups.decay_groups(self.backbone)]
        generators = []
        if isinstance(self.operator, LieOperator) and self.operator.weight.requires_grad:
            generators = [{"params": [self.operator.weight], "decays": False}]
        elsewhere = [*self.backbone.parameters(), *(each for group in generators for each in group["params"])]
        return [*backbone, *groups.decay_groups(self, without=elsewhere), *generators]

    @property
    def _grid(self) -> int:
        return self.config.views.image_size // self.config.model.patch_size


def _operator(config: OperatorConfig) -> tuple[CoefficientNetwork | None, LieOperator | MLPOperator | None]:
    """The network that infers coefficients, and the operator; none of both with t = 0."""
    if config.kind == "none":
        return None, None
    how = {"hidden": config.hidden, "reads": config.reads, "bound": config.bound}
    coefficients = CoefficientNetwork(config.dim, config.generators, **how)
    if config.kind == "mlp":
        return coefficients, MLPOperator(config.dim, config.generators, hidden=config.hidden)
    how = {"skew": config.skew, "unit_norm": config.unit_norm, "block_size": config.block_size}
    how["taylor"] = config.taylor
    operator = LieOperator(config.dim, config.generators, **how)
    return coefficients, operator.requires_grad_(config.kind == "lie")


def pose_sets(data: PoseData) -> posed.PoseSets:
    """The sets of images of objects in several poses that a config names. Raises: ``DataError`` without pybullet."""
    objects = posed.MeshObjects() if data.name == "object_poses" else posed.PantryObjects()
    names = ("diverse", "typical", "unknown", "poses", "azimuth", "elevation", "roll")
    counts = posed.PoseCounts(**{name: getattr(data, name) for name in names})
    return posed.draw(objects, counts, size=data.image_size, seed=DATA_SEED)


def load(config: Config, warn: Callable[[str], None]) -> Splits:
    """Loads the images; of objects in several poses, the new poses are the test set."""
    if not config.data.posed:
        return load_images(config.data, DATA_SEED, warn=warn)
    sets = pose_sets(config.data)
    return Splits(sets.train, sets.new_poses)


def fit(given: loop.Training, folder: RunFolder) -> Traffic:
    """Trains as :func:`loop.fit` does, from the weights of ``model.init``; a resumed run has its own.

    Raises: ``RunError`` if the weights cannot be read or are of another network; as :func:`loop.fit`.
    """
    init = given.method.config.model.init
    if init is not None and not checkpoint.newest_step(folder.checkpoints):
        found = interchange.load(init).state_dict()
        interchange.fill(given.method.backbone, found, f"the weights in {init}")
    return loop.fit(given, folder)


def score(scored: Scored) -> Scores:
    """Scores by ``new_poses`` and ``unknown`` with the operator (arm method), without it (still) and untrained.

    All other probes are those of :func:`scoring.score`.
    """
    own = [name for name in OF_POSES if name in scored.probes]
    others = tuple(name for name in scored.probes if name not in own)
    if others:
        report = scoring.score(replace(scored, probes=others))
    else:
        diagnostics = scored.diagnostics(scored.method, None, scored.splits)
        report = {"scores": {}, "spread": {}, "diagnostics": diagnostics}
    if own:
        report["scores"] = _of_poses(scored, own, report["diagnostics"]) | report["scores"]
    return report


def _of_poses(scored: Scored, names: list[str], diagnostics: dict[str, float]) -> dict[str, dict[str, float]]:
    config, method, sets = scored.config, scored.method, pose_sets(scored.config.data)
    embedded = embeddings(method, sets, config)
    measures = {"new_poses": protocol.new_poses, "unknown": protocol.unknown}
    chosen = {name: measures[name] for name in names}
    found = {name: {"still": measure(embedded, None, None, seed=DATA_SEED)} for name, measure in chosen.items()}
    if method.operator is not None:
        with evaluating(method):
            seen = protocol.motions(embedded, method.infer)
            diagnostics["unknown_relative_error"] = protocol.explained(embedded, method.infer, method.move)
            for name, measure in chosen.items():
                found[name]["method"] = measure(embedded, seen, method.move, seed=DATA_SEED)
    if scored.untrained:
        plain = scoring.random_init(config, scored.untrained(), scored.splits.train)
        start = embeddings(plain, sets, config)
        for name, measure in chosen.items():
            found[name]["random_init"] = measure(start, None, None, seed=DATA_SEED)
    return found


@torch.no_grad()
def embeddings(method: LieOperatorSSL, sets: posed.PoseSets, config: Config) -> protocol.Embedded:
    """The embeddings of all sets of images, without augmentation."""
    device, look = next(method.parameters()).device, config.views

    def embed(images: Tensor) -> Tensor:
        chunks = (
            eval_view(c.to(device), config.data.image_size, look.normalize, look.resize) for c in images.split(CHUNK)
        )
        return torch.cat([method.embed(method.backbone(chunk)).float() for chunk in chunks])

    with evaluating(method):
        return protocol.Embedded.of(sets, embed)


_POSED = PoseData(name="pantry_poses", image_size=32, diverse=40, typical=20, unknown=20, poses=8)
# A pose must stay as it is: no crop, no mirror image, and colours too, since they are the same in both images.
_STILL = ViewsConfig(
    image_size=32, local_views=0, global_scale=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0
)
_TOY = Config(
    data=_POSED,
    views=_STILL,
    model=ModelConfig(arch="convnet", stem="cifar", lr_scale=1.0, hidden=128, dim=64),
    operator=OperatorConfig(dim=16, generators=3, hidden=64),
    loss=LossConfig(lie_weight=1.0),
    optim=OptimConfig(
        lr=2e-3,
        lr_start=0.0,
        lr_final=0.0,
        warmup_epochs=0.0,
        warmup_steps=10,
        weight_decay=0.02,
        weight_decay_final=0.02,
        stretch=1.0,
        first_count=0,
        clip=3.0,
    ),
    train=TrainConfig(epochs=None, steps=150, batch_size=64, threads=1, device="cpu", checkpoint_every=75),
    eval=LieEval(probes=("new_poses", "unknown"), baselines="all"),
)
_VICREG = Config()
_OBJECTS = replace(
    _TOY,
    data=PoseData(name="object_poses", image_size=64, diverse=400, typical=100, unknown=100),
    views=replace(_STILL, image_size=64),
    model=ModelConfig(arch="resnet18", stem="cifar", lr_scale=1.0, hidden=512, dim=256),
    operator=OperatorConfig(dim=32, generators=4, hidden=256),
    train=TrainConfig(epochs=None, steps=3000, batch_size=128, checkpoint_every=500),
    eval=LieEval(probes=("new_poses", "unknown")),
)

# Optimiser, dimensions, weights and epochs of the ImageNet presets are ours: none of the paper's could be read. Its gain on
# ImageNet is almost 4 points (abstract). A pair is two augmented views. Give --model.init a pretrained backbone.
PRESETS: dict[str, Config] = {
    # 60 objects of the Pantry in 8 poses each. About 30 seconds of one core.
    "toy": _TOY,
    # The same for longer: what `recipes cook lie_operator` stores.
    "simmer": replace(_TOY, train=replace(_TOY.train, steps=1500, checkpoint_every=500)),
    # Six hundred 3-D objects of pybullet, in poses that show other sides of them; needs the extra `objects`.
    "laptop": _OBJECTS,
    # With MAE's objective on the images and the squared distance of moved embeddings.
    "mae_vitb16_imagenet": replace(
        _VICREG,
        model=ModelConfig(pool="mean"),
        loss=LossConfig(objective="mae"),
    ),
    # With VICReg's objective on the images and on moved embeddings.
    "vicreg_vitb16_imagenet": replace(
        _VICREG,
        model=ModelConfig(hidden=8192, dim=8192),
        loss=LossConfig(lie_weight=1.0),
    ),
    # The control of the second: pairs as plain positives, with the same steps.
    "positives_vitb16_imagenet": replace(
        _VICREG,
        model=ModelConfig(hidden=8192, dim=8192),
        operator=OperatorConfig(kind="none"),
        loss=LossConfig(euclid_weight=0.0),
    ),
}

RECIPE = Recipe(
    name="lie_operator",
    config=Config,
    presets=PRESETS,
    method=LieOperatorSSL,
    load=load,
    fit=fit,
    score=score,
    probes=("new_poses", "unknown", *PROBES),
)
