# SPDX-License-Identifier: Apache-2.0
"""Deep metric learning: a view must be nearer to the other view of its image than to views of other images."""

from dataclasses import replace

import torch
from torch import Tensor

from recipes_lib.models import heads
from recipes_lib.models.queue import Queue
from recipes_lib.objectives import contrastive
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese, Taught
from recipes_lib.recipes.families.settings import Config, LossConfig


class SimCLR(Siamese):
    """SimCLR: each view must find its partner among all views of the batch.

    Source: Chen et al., arXiv 2002.05709.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss = self.config.loss
        compare = contrastive.nt_xent if loss.negatives else contrastive.agreement
        return compare(*self.embeddings(views), temperature=loss.temperature)


class DCL(Siamese):
    """DCL: SimCLR whose loss has the partner in the numerator only.

    Source: Yeh et al., arXiv 2110.06848.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        return contrastive.dcl_loss(*self.embeddings(views), temperature=self.config.loss.temperature)


class NNCLR(Siamese):
    """NNCLR: the positive of a view is the nearest of the earlier images' embeddings, not the view itself.

    Source: Dwibedi et al., arXiv 2104.14548.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config, self.encoder.projector.out_dim)
        self.queue = Queue(config.loss.queue, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts; then the first views' embeddings enter the queue."""
        z = self.embeddings(views)  # [2, batch, dim]
        p = self.predictor(z.flatten(0, 1)).unflatten(0, (2, -1))
        parts = contrastive.nnclr_loss(
            (z[0], z[1]), (p[0], p[1]), self.queue.rows, temperature=self.config.loss.temperature
        )
        self.queue.push(z[0])
        return parts


class MoCoV2(Taught):
    """MoCo v2: a query must find the teacher's embedding of its image's other view among those of earlier images.

    Source: He et al., arXiv 1911.05722, with the projector, views and schedule of Chen et al., arXiv 2003.04297.
    Differs: batch norms take their statistics from all ranks' images, in place of shuffling the keys between ranks; both
    keep a rank's own statistics from telling a query where its key is.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.queue = Queue(config.loss.queue, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts; then the keys enter the queue."""
        first, second = views["large"].chunk(2)
        queries = self.encoder(first)
        with torch.no_grad():
            keys = self.teacher(second)
        parts = contrastive.info_nce(queries, keys, temperature=self.config.loss.temperature, queue=self.queue.rows)
        self.queue.push(keys)
        return parts


class MoCoV3(Taught):
    """MoCo v3: a prediction must find the teacher's embedding of its image's other view among those of the batch.

    Source: Chen, Xie, He, arXiv 2104.02057.
    Differs: the authors' code moves the teacher at the start of a step with that step's momentum, here it moves at the end
    of the step before, with that step's.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch, the sum over the two directions times 2 tau, and its parts (their means)."""
        temperature = self.config.loss.temperature
        queries = self.predictor(self.encoder(views["large"])).chunk(2)
        with torch.no_grad():
            keys = self.teacher(views["large"]).chunk(2)
        parts = [
            contrastive.info_nce(query, key, temperature=temperature)
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        # the factor keeps the gradient's size when the temperature changes, as in the authors' code
        loss = 2 * temperature * (parts[0].pop("loss") + parts[1].pop("loss"))
        return {"loss": loss, **{name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}}


def predictor(config: Config, dim: int) -> heads.MLPHead:
    """The predictor of ``config`` for embeddings of ``dim`` dimensions, which it keeps."""
    model = config.model
    return heads.MLPHead(
        dim, model.predictor_hidden, dim, layers=model.predictor_layers, last_norm=model.predictor_last_norm
    )


METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "dcl": DCL,
    "nnclr": NNCLR,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
}

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="simclr", temperature=0.2)),
    **small(LossConfig(objective="dcl", temperature=0.2)),
    **small(
        LossConfig(objective="nnclr", temperature=0.2, queue=1024),
        model=replace(CONVNET, predictor_layers=2, predictor_hidden=256),
    ),
    **small(
        LossConfig(objective="moco_v2", temperature=0.2, queue=1024), model=replace(CONVNET, ema=0.95, ema_final=0.95)
    ),
    **small(
        LossConfig(objective="moco_v3", temperature=0.2),
        model=replace(CONVNET, last_norm=True, predictor_layers=2, predictor_hidden=256, ema=0.95),
    ),
    # 69.3 after 1,000 epochs is the paper's (card); the defaults of the config are its 100 epochs at batch 4,096.
    "simclr_rn50_imagenet": Config(),
}
