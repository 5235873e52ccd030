# SPDX-License-Identifier: Apache-2.0
"""Batch norm over the global batch, on any backend (``nn.SyncBatchNorm`` needs a GPU)."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes_lib.distributed.collectives import all_gather, world_size


class CrossRankBatchNorm(_BatchNorm):
    """Equals ``nn.BatchNorm1d/2d/3d`` on the concatenated batches of all ranks; its state dict has the same keys.

    On one process, and in eval mode, it is torch's batch norm. It needs one collective in forward and one in backward.

    Shapes: [batch, channels, ...] -> the same; ranks may have batches of different sizes.
    Raises: ``ValueError`` in training if all ranks together have one value per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm needs [batch, channels, ...], got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each channel over all ranks: [batch, channels, ...] -> the same."""
        if world_size() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)
        x = input if input.dtype == torch.float64 else input.float()  # statistics in bfloat16 would be too coarse
        mean, variance, count = _global_statistics(x)
        if self.training and self.track_running_stats:
            self._track(mean.detach(), variance.detach(), count)
        along = (1, -1, *[1] * (x.ndim - 2))  # [C] -> [1, C, 1, ...]
        scale = torch.rsqrt(variance + self.eps)
        y = (x - mean.view(along)) * (scale if self.weight is None else scale * self.weight).view(along)
        return (y if self.bias is None else y + self.bias.view(along)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        # momentum None: the average over all batches so far, as in torch
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        unbiased = variance * count / (count - 1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over all ranks: [batch, C, ...] -> [C], [C], [C].

    The centred variances of the ranks are combined (Chan et al. 1979), because a difference of sums of squares would
    lose all digits for a mean far from 0.
    """
    variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    rows = torch.full_like(mean, x.numel() // x.shape[1])
    means, variances, counts = all_gather(torch.stack([mean, variance, rows])[None]).unbind(1)  # 3 x [ranks, C]
    count = counts.detach().sum(0)
    if count[0] <= 1:
        raise ValueError("batch norm in training needs more than one value per channel over all ranks, got 1")
    share = counts.detach() / count
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0), count


def convert(module: nn.Module) -> nn.Module:
    """Replaces every batch norm in ``module`` by a cross-rank one, in place, with its parameters and statistics.

    Returns the module.

    Raises: ``TypeError`` for a subclass of batch norm that does more, such as timm's with a built-in activation.
    """
    for name, child in module.named_children():
        setattr(module, name, convert(child))
    if not isinstance(module, _BatchNorm) or isinstance(module, CrossRankBatchNorm):
        return module
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        raise TypeError(f"{type(module).__name__} does more than batch norm and cannot be made cross-rank")
    return _twin(module, CrossRankBatchNorm)


def separate(module: nn.Module) -> nn.Module:
    """Replaces every cross-rank batch norm in ``module`` by ``nn.BatchNorm2d``, so that ranks exchange no statistics.

    It works in place, with the same parameters and running statistics, and returns the module. It is meant for ranks
    that take steps alone, as in local SGD.
    """
    for name, child in module.named_children():
        setattr(module, name, separate(child))
    return _twin(module, nn.BatchNorm2d) if isinstance(module, CrossRankBatchNorm) else module


def without_variance(module: nn.Module) -> list[str]:
    """The names of the batch norms in ``module`` whose inputs had no variance in any batch.

    It is computed from the running variance: this starts at 1 and shrinks by the factor 1 - momentum with every batch
    of variance 0. It is a diagnosis for a run that diverged; batches with hardly any variance (1e-4) count too.
    """
    found = []
    for name, child in module.named_modules():
        if isinstance(child, _BatchNorm) and child.running_var is not None and child.momentum is not None:
            batches = int(child.num_batches_tracked)
            left = (1 - child.momentum) ** batches
            if batches and float(child.running_var.max()) <= left * (1 + 1e-5) + 1e-12:
                found.append(name)
    return found


def _twin(module: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    twin = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    twin.weight, twin.bias = module.weight, module.bias
    twin.running_mean, twin.running_var = module.running_mean, module.running_var
    twin.num_batches_tracked = module.num_batches_tracked
    return twin.train(module.training)
