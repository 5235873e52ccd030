# SPDX-License-Identifier: Apache-2.0
"""The modules that follow a backbone: projection head, predictor and prototypes."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm


class ProjectionHead(nn.Module):
    """A projection head: twice Linear, batch norm and GELU or ReLU, then a Linear without norm and activation.

    Batch statistics are computed over all ranks, so two processes take the same step as one. Call the head once per
    resolution of views, so that statistics do not mix resolutions. The layers have the names of the official weights.

    Shapes: [batch, in_dim] -> [batch, out_dim].
    Source: Assran et al., arXiv 2204.07141 (MSN, GELU) and 2104.13963 (PAWS, ReLU); Linear weights from a truncated
    normal distribution of std 0.02, biases 0, as in MSN.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, *, activation: Literal["gelu", "relu"] = "gelu") -> None:
        super().__init__()
        self.activation = F.gelu if activation == "gelu" else F.relu
        self.fc1, self.bn1 = nn.Linear(in_dim, hidden), CrossRankBatchNorm(hidden)
        self.fc2, self.bn2 = nn.Linear(hidden, hidden), CrossRankBatchNorm(hidden)
        self.fc3 = nn.Linear(hidden, out_dim)
        _initialise(self.fc1, self.fc2, self.fc3)

    def first_layer(self, features: Tensor) -> Tensor:
        """The first Linear, norm and activation, which fine-tuning keeps.  [batch, in_dim] -> [batch, hidden]"""
        return self.activation(self.bn1(self.fc1(features)))

    def forward(self, features: Tensor) -> Tensor:
        """The embeddings of the features.  [batch, in_dim] -> [batch, out_dim]"""
        hidden = self.first_layer(features)  # [batch, hidden]
        hidden = self.activation(self.bn2(self.fc2(hidden)))  # [batch, hidden]
        return self.fc3(hidden)


class MLPHead(nn.Module):
    """A projector or predictor of any depth: hidden layers with batch norm and ReLU, then a plain linear layer.

    With ``norm="none"`` the hidden layers have GELU alone. ``last_norm`` adds a batch norm without learned scale behind
    the last layer. With 0 layers the head returns its input. Batch statistics are computed over all ranks.

    Shapes: [batch, in_dim] -> [batch, ``out_dim``].
    Source: the projectors and predictors of SimCLR, BYOL, SimSiam, MoCo v3, Barlow Twins, VICReg and DINO differ in
    these arguments only. Weights are torch's defaults; a layer before a batch norm has no bias.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        out_dim: int,
        *,
        layers: int,
        norm: Literal["batch", "none"] = "batch",
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim if layers else in_dim
        widths = [in_dim, *[hidden] * (layers - 1), out_dim] if layers else []
        modules: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            modules.append(nn.Linear(before, after, bias=norm == "none"))
            modules += [CrossRankBatchNorm(after), nn.ReLU()] if norm == "batch" else [nn.GELU()]
        if layers:
            modules.append(nn.Linear(*widths[-2:], bias=not last_norm))
            modules += [CrossRankBatchNorm(out_dim, affine=False)] if last_norm else []
        self.layers = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """The embeddings of the features.  [batch, in_dim] -> [batch, out_dim]"""
        return self.layers(features)


class Predictor(nn.Module):
    """A predictor: batch norm, then a bottleneck of a quarter of the dimensions: Linear, batch norm, ReLU, Linear.

    Anchors pass through it after the projection head; targets do not.

    Shapes: [batch, dim] -> [batch, dim].
    Raises: ``ValueError`` for a dim that is not a multiple of 4.
    Source: Assran et al., arXiv 2104.13963; weights are initialised like those of the projection head.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 4:
            raise ValueError(f"dim = {dim}; a predictor's must be a multiple of 4: its bottleneck has dim / 4 units.")
        self.bn1, self.fc1 = CrossRankBatchNorm(dim), nn.Linear(dim, dim // 4)
        self.bn2, self.fc2 = CrossRankBatchNorm(dim // 4), nn.Linear(dim // 4, dim)
        _initialise(self.fc1, self.fc2)

    def forward(self, embeddings: Tensor) -> Tensor:
        """The predictions of the other view's embeddings.  [batch, dim] -> [batch, dim]"""
        return self.fc2(F.relu(self.bn2(self.fc1(self.bn1(embeddings)))))


class Prototypes(nn.Module):
    """Prototypes: learnable directions that embeddings are assigned to.

    The stored rows are not normalised; every use normalises a copy, so that the optimiser's state keeps its meaning.

    Shapes: ``weight`` [count, dim]; embeddings [batch, dim] -> logits [batch, count].
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self, embeddings: Tensor, temperature: float) -> Tensor:
        """The cosines of embeddings and prototypes, divided by ``temperature``.  [batch, dim] -> [batch, count]"""
        return F.normalize(embeddings, dim=1) @ F.normalize(self.weight, dim=1).T / temperature


def _initialise(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
