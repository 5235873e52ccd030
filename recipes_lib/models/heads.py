# SPDX-License-Identifier: Apache-2.0
"""What stands on a backbone: projection heads and prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm


class ProjectionHead(nn.Module):
    """Linear, batch norm, GELU, twice; then a last Linear with neither norm nor activation.

    Batch statistics are those of all ranks: two processes take the step of one. Call it once for each resolution of
    views, so that statistics do not mix them. Layers bear the names that the official weights use.

    Shapes: [batch, in_dim] -> [batch, out_dim].
    Source: Assran et al., arXiv 2204.07141; Linear weights truncated normal of std 0.02, biases 0.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(in_dim, hidden), CrossRankBatchNorm(hidden)
        self.fc2, self.bn2 = nn.Linear(hidden, hidden), CrossRankBatchNorm(hidden)
        self.fc3 = nn.Linear(hidden, out_dim)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings of the features."""
        hidden = F.gelu(self.bn1(self.fc1(features)))
        hidden = F.gelu(self.bn2(self.fc2(hidden)))
        return self.fc3(hidden)


class Prototypes(nn.Module):
    """Learnable directions that embeddings are assigned to.

    The stored rows stay unnormalised; every use normalises a copy, so the optimiser's state keeps its meaning.

    Shapes: ``weight`` [count, dim]; embeddings [batch, dim] -> logits [batch, count].
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self, embeddings: Tensor, temperature: float) -> Tensor:
        """Cosine of each embedding with each prototype, divided by ``temperature``."""
        return F.normalize(embeddings, dim=1) @ F.normalize(self.weight, dim=1).T / temperature
