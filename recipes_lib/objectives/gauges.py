# SPDX-License-Identifier: Apache-2.0
"""Numbers that tell a healthy embedding from a collapsed one. They have no gradient: no loss contains them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """The standard deviation of the normalised embeddings, averaged over dimensions, times sqrt(d).

    It is 0 if all embeddings point in one direction (collapse), and about 1 if they point everywhere equally. It uses
    the images of all ranks. Embeddings that are tiny but point everywhere have 1 as well.

    Shapes: [..., d] -> [].
    Source: Chen, He, arXiv 2011.10566 (SimSiam).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(at_least_float32(embeddings), dim=-1).flatten(0, -2)  # [n, d]
        mean = collectives.all_reduce_mean(unit.mean(dim=0))
        variance = collectives.all_reduce_mean((unit - mean).square().mean(dim=0))
        return variance.sqrt().mean() * unit.shape[1] ** 0.5
