# SPDX-License-Identifier: Apache-2.0
"""SimCLR's objective: a view must find the other view of its image among all views of the batch.

Symbols, as in the paper: z_i, z_j projections of an image's two views, B images of this rank and N of all ranks, tau
temperature, d dimensions. The views of different images push each other apart, so a batch is spread as evenly as
possible. PMSN's paper calls this a hidden uniform prior.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> dict[str, Tensor]:
    """The normalised temperature-scaled cross-entropy (NT-Xent): each view classifies which other view is its partner.

    L_i = -log exp(<z_i, z_j> / tau) / sum_{k != i} exp(<z_i, z_k> / tau), averaged over the 2N views, z normalised. The
    sum runs over the 2N - 1 other views of all ranks. Half precision is raised to float32, under autocast too.

    Shapes: ``first`` and ``second`` [B, d], row by row views of the same image -> scalars ``loss`` (with its graph)
    and, detached, ``positive`` (mean cosine of an image's two views).
    Units: ``temperature`` above 0; ``loss`` in nats, log(2N - 1) if all views are alike.
    Raises: ``ValueError`` for a temperature out of range, shapes that differ, or a single image.
    Source: Eq. 1 and Algorithm 1.
    Differs: on several ranks ``loss`` is this rank's mean; averaging the ranks' gradients, as DDP does, gives the
    gradient of one rank with the whole batch.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; it must be above 0 and finite (0.1 is usual).")
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"two views of the same images are wanted, [B, d]; got {list(first.shape)}, {list(second.shape)}."
        )
    batch, images = len(first), len(first) * collectives.world_size()
    if images < 2:
        raise ValueError(f"{images} image has no negatives; use a batch of at least 2.")
    with torch.autocast(first.device.type, enabled=False):
        own = [F.normalize(at_least_float32(view), dim=1) for view in (first, second)]
        everyone = torch.cat([collectives.all_gather(view) for view in own])  # [2N, d]: first views, then second
        logits = torch.cat(own) @ everyone.T / temperature  # [2B, 2N]
        here = torch.arange(batch, device=first.device) + collectives.rank() * batch
        itself, other = torch.cat([here, here + images]), torch.cat([here + images, here])  # [2B] each: column numbers
        positive = logits.gather(1, other[:, None]).mean().detach() * temperature
        logits = logits.scatter(1, itself[:, None], -math.inf)  # a view is no candidate for itself
        loss = F.cross_entropy(logits, other)
    return {"loss": loss, "positive": positive}
