# SPDX-License-Identifier: Apache-2.0
"""I-JEPA's objective: the embeddings of hidden blocks are predicted, not their pixels.

Symbols, as in the paper: x visible part (context) and y image, s_x and s_y their embeddings patch by patch, M target
blocks B_i of m patches each, g predictor, B images, D dimensions.

Source: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
arXiv 2301.08243. How the method was read, with file and line of the official code, stands in
``recipes/families/latents.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.objectives.precision import at_least_float32


def ijepa_loss(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """I-JEPA's loss: the smooth-L1 distance of the predicted and the target encoder's embeddings of hidden patches.

    L = mean of h(g(s_x) - LN(s_y)), where LN brings each embedding to mean 0 and variance 1, and h(d) = d^2 / 2 up to
    |d| = 1 and |d| - 1/2 beyond. Half precision is raised to float32, under autocast too.

    Shapes: both [B, M, m, D] -> scalars ``loss`` (with its graph) and, detached, ``squared``: the mean squared
    difference.
    Raises: ``ValueError`` if the shapes differ or nothing is hidden.
    Differs: the paper's section 3 has the squared distance, summed over a block's patches and averaged over blocks; the
    official code has smooth-L1 averaged over all values, and normalises the targets, and we follow it. The target has
    no gradient if it is computed without one: that is the caller's part.
    """
    if predicted.shape != target.shape or predicted.dim() != 4 or not predicted.numel():
        raise ValueError(
            "predicted and target embeddings of at least one hidden patch are wanted, [B, M, m, D]; got "
            f"{list(predicted.shape)}, {list(target.shape)}."
        )
    with torch.autocast(predicted.device.type, enabled=False):
        normal = F.layer_norm(at_least_float32(target), target.shape[-1:])  # without learned scale; epsilon 1e-5
        guess = at_least_float32(predicted)
        loss = F.smooth_l1_loss(guess, normal)
        squared = F.mse_loss(guess.detach(), normal.detach())
    return {"loss": loss, "squared": squared}
