# SPDX-License-Identifier: Apache-2.0
"""A queue of earlier embeddings, with which a small batch is compared with many images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.distributed import collectives


class Queue(nn.Module):
    """A first-in first-out queue of embeddings: the newest come first, the oldest leave.

    The rows are a buffer, so that they are saved with the weights and a resumed run goes on with the same ones. They
    start as random directions, drawn from torch's global generator, which the run's seed sets. These are no images: until
    ``size`` embeddings have entered, which takes ``size`` / batch size steps, a part of the rows is noise.

    All ranks' embeddings enter, so that the queue is equal on all ranks. Under ``train.accumulate`` each micro-batch
    enters on its own, so later micro-batches of a step meet the embeddings of the earlier ones.

    Shapes: ``rows`` [size, dim], normalised.
    Source: He et al., arXiv 1911.05722.
    Differs: the authors' code writes at a pointer, and clones the queue for the loss. Here each call of :meth:`push`
    makes a new tensor, so that a loss may keep the old one for its backward pass.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Puts the normalised embeddings of all ranks in front, and drops as many of the oldest rows.

        Call it after the loss of the batch: an image must not meet itself.

        Shapes: [batch, dim].
        Raises: ``ValueError`` for another dim, or for more embeddings than the queue has rows.
        """
        size, dim = self.rows.shape
        if embeddings.dim() != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"embeddings have shape {list(embeddings.shape)}; this queue takes [batch, {dim}].")
        new = collectives.all_gather(F.normalize(embeddings.detach().to(self.rows.dtype), dim=1))
        if len(new) > size:
            raise ValueError(f"{len(new)} embeddings do not fit into a queue of {size} rows.")
        self.rows = torch.cat([new, self.rows[: size - len(new)]])
