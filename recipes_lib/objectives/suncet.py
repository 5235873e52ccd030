# SPDX-License-Identifier: Apache-2.0
"""SuNCEt: a labelled view must find the other views of its own class among all views of the batch.

Symbols: z embeddings, y classes, tau temperature, n views of this rank and N of all ranks, d dimensions, C classes.
PAWS's authors fine-tune their CIFAR-10 network with this loss, because it trains the same classifier that scores the
network: soft nearest neighbours.

Source: Assran, Ballas, Castrejon, Rabbat, "Supervision Accelerates Pre-training in Contrastive Semi-Supervised Learning
of Visual Representations", arXiv 2006.10803, and PAWS's code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32


def suncet_loss(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1) -> dict[str, Tensor]:
    """The SuNCEt loss: minus the log share of the softmax that a view's own class gets, averaged over the views i.

    L_i = -log [sum_{k != i, y_k = y_i} exp(<z_i, z_k> / tau)] / [sum_{k != i} exp(<z_i, z_k> / tau)], z normalised. The
    sums run over the other views of all ranks. Half precision is raised to float32, under autocast too.

    Shapes: ``embeddings`` [n, d], ``labels`` int64 [n] -> scalars ``loss`` (with its graph) and, detached,
    ``own_class`` (the mean share of the softmax that a view's own class gets, in [0, 1]).
    Units: ``temperature`` above 0; ``loss`` in nats, log C if embeddings tell nothing about C equally frequent classes.
    Raises: ``ValueError`` for a temperature out of range, sizes that do not fit, or a view that is the only one of its
    class.
    Differs: on several ranks ``loss`` is this rank's mean; averaging the ranks' gradients, as DDP does, gives the
    gradient of one rank with the whole batch. Labels are not smoothed, as in the released configs.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; it must be above 0 and finite (the released code has 0.1).")
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"a class for each embedding is wanted, [n, d] and [n]; got {list(embeddings.shape)} and {list(labels.shape)}."
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        z = F.normalize(at_least_float32(embeddings), dim=1)
        others, classes = collectives.all_gather(z), collectives.all_gather(labels)  # [N, d], [N]
        itself = torch.arange(len(z), device=z.device) + collectives.rank() * len(z)
        logits = (z @ others.T / temperature).scatter(1, itself[:, None], -math.inf)  # [n, N]
        alike = (labels[:, None] == classes).scatter(1, itself[:, None], False)  # [n, N]
        if not (found := alike.any(dim=1)).all():
            row = int((~found).nonzero()[0])
            raise ValueError(f"embedding {row} is the only one of class {int(labels[row])}; each class needs two.")
        own = logits.masked_fill(~alike, -math.inf).logsumexp(dim=1) - logits.logsumexp(dim=1)  # [n]: log share, <= 0
    return {"loss": -own.mean(), "own_class": own.detach().exp().mean()}
