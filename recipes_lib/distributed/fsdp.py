# SPDX-License-Identifier: Apache-2.0
"""Fully sharded data parallelism (FSDP): each rank stores a shard of every weight, gradient and optimiser state.

Training steps are the same as with :class:`~recipes_lib.distributed.sync.DDP`; only the storage differs. A block's
weights are gathered for its forward pass and again for its backward pass, and its gradient is scattered to the ranks
that store the shards. torch's ``fully_shard`` does this. It changes a module's class and cannot be undone, so it is
applied to a copy of the method. The method itself keeps its class, and has weights without storage until training has
ended. This module adds what ``fully_shard`` does not have: the choice of blocks, scalars (which it refuses), the norm
of the gradient, and unsharded checkpoints.

**Bytes.** In a ring, an all-gather or a reduce-scatter of N bytes sends (K - 1) / K N bytes from each of K ranks, half
as much as an all-reduce of N bytes. Every collective of ``fully_shard`` is counted when it is called, with its padding,
so a block that is called twice in a step is counted as often as it was gathered.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.sync import Traffic, refuse_other_models
from recipes_lib.errors import RunError


class FSDP:
    """Averages gradients at every step; weights, gradients and optimiser state are sharded. One process shards nothing.

    Each block of a network (:func:`blocks`) is gathered as a unit, and all other weights together as one more. Every
    rank stores scalars (such as CLIP's temperature) itself. The method is built unsharded before its copy is sharded.

    Source: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.
    """

    def __init__(self) -> None:
        self.traffic = Traffic()

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Returns a sharded copy of ``method``, whose shards ``optimizer`` then updates.

        The method's own parameters have no storage until :meth:`unwrap`.

        Raises: ``RunError`` for an optimiser that needs unsharded weights, for a torch that is too old, and if the
        ranks' models differ.
        """
        self.trained, self._method, self._scalars = method, method, []
        if collectives.world_size() == 1:
            return method
        _refuse(optimizer)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        refuse_other_models(method)
        collectives.broadcast_in_place([*method.parameters(), *method.buffers()])
        names = {weight: name for name, weight in method.named_parameters()}
        places = [[names[weight] for weight in group["params"]] for group in optimizer.param_groups]
        self._scalars = [weight for weight in names if not weight.dim()]
        self.trained = copy.deepcopy(method, {id(tensor): tensor for tensor in [*names, *method.buffers()]})
        mesh = init_device_mesh(next(iter(names)).device.type, (collectives.world_size(),))
        for module in [*blocks(self.trained), self.trained]:
            fully_shard(module, mesh=mesh, ignored_params=set(self._scalars))
            module.set_custom_all_gather(_Gather(self.traffic))
            module.set_custom_reduce_scatter(_ReduceScatter(self.traffic))
        shares = dict(self.trained.named_parameters())
        for group, own in zip(optimizer.param_groups, places, strict=True):
            group["params"] = [shares[name] for name in own]
        _give_weights(method, {name: weight.detach().to("meta") for weight, name in names.items()})
        return self.trained

    @contextlib.contextmanager
    def hold(self, step: int, last: bool) -> Iterator[None]:
        """Exchanges gradients only in the ``last`` micro-batch; until then each rank keeps them unsharded."""
        if self.trained is not self._method:
            self.trained.set_requires_gradient_sync(last)
        yield
        if last:
            gradients = [weight.grad for weight in self._scalars if weight.grad is not None]
            self.traffic.averaged += collectives.average_in_place(gradients)

    def meets(self, step: int) -> bool:
        """Always true."""
        return True

    def after_step(self, step: int) -> None:
        """Replaces buffers by those of rank 0, as DDP does before each step."""
        collectives.broadcast_in_place(list(self.trained.buffers()))
        self.traffic.add(0)

    def finish(self, step: int) -> None:
        """Does nothing: every step has averaged already."""

    def alike(self, step: int) -> bool:
        """Always true, because weights and optimiser state are gathered before they are saved."""
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Returns an empty dict: FSDP has no state of its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: FSDP has no state of its own."""

    @torch.no_grad()
    def unwrap(self) -> None:
        """Gives the method the trained weights, unsharded, on every rank; then rank 0 can call the method alone."""
        if self.trained is self._method:
            return
        _give_weights(self._method, {name: gathered(share) for name, share in self.trained.named_parameters()})
        for name, buffer in self.trained.named_buffers(remove_duplicate=False):
            _put(self._method, name, buffer)
        self._method.train(self.trained.training)
        self.trained, self._scalars = self._method, []


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: all but the last module of each list whose modules have one class and children.

    The last block is left out because its backward pass follows its forward pass at once, so it would be gathered twice
    for nothing. A Vision Transformer also computes [CLS] from the parts of its last block, without calling the block.
    """
    found = []
    for container in module.modules():
        members = list(container.children())
        repeated = len(members) > 1 and len({type(member) for member in members}) == 1 and any(members[0].children())
        if isinstance(container, nn.ModuleList | nn.Sequential) and repeated:
            found += members[:-1]
    return found[::-1]  # an inner block is sharded before the block that contains it


def clip_grad_norm(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Clips gradients like ``nn.utils.clip_grad_norm_``, also sharded ones, by the norm of the unsharded gradients.

    Every rank must call it. Shapes: -> [], the norm before clipping.
    """
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    shares = [gradient.to_local() for gradient in gradients if is_sharded(gradient)]
    if not shares:
        return nn.utils.clip_grad_norm_(parameters, most)
    others = [gradient for gradient in gradients if not is_sharded(gradient)]
    squares = collectives.all_reduce_sum(nn.utils.get_total_norm(shares).square())
    norm = (squares + nn.utils.get_total_norm(others).to(squares.device).square()).sqrt()
    torch._foreach_mul_(shares + others, (most / (norm + 1e-6)).clamp(max=1.0))  # 1e-6 as in torch
    return norm


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers sharded tensors into rank 0's main memory; other ranks get none of them. All ranks must call it.

    Tensors that are not sharded are returned as they are, on every rank.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = gathered(tensor)
        if not is_sharded(tensor):
            found[name] = whole
        elif collectives.is_main():
            found[name] = whole.cpu()
    return found


def cut(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Shards tensors, which are equal on every rank, in the same way as the parameters of ``module`` they belong to.

    A tensor ``NAME`` or ``NAME/key`` belongs to the parameter ``NAME``. Tensors with another shape than their
    parameter, such as an optimiser's count of steps, stay as they are.
    """
    shares = {name: weight for name, weight in module.named_parameters() if is_sharded(weight)}
    found = dict(tensors)
    if not shares:
        return found
    from torch.distributed.tensor import distribute_tensor

    for name, tensor in tensors.items():
        share = shares.get(name.partition("/")[0])
        if share is not None and tensor.shape == share.shape:
            # every rank has the unsharded tensor, so nothing is sent
            found[name] = distribute_tensor(
                tensor.to(share.device), share.device_mesh, share.placements, src_data_rank=None
            )
    return found


class _Counted:
    """A custom collective for ``fully_shard`` that counts its bytes in ``traffic``."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        self._traffic.averaged += output_tensor.nbytes // 2
        gather = (
            getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        )  # its name in newer torch, and in older
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _ReduceScatter(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        self._traffic.averaged += input_tensor.nbytes // 2
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def _refuse(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.AdamW | torch.optim.SGD):
        raise RunError(
            f"sync.name fsdp cuts each weight into shares, and {type(optimizer).__name__} measures whole ones. "
            "Use --optim.name adamw or sgd, or --sync.name ddp."
        )
    from torch.distributed import fsdp

    if not hasattr(getattr(fsdp, "FSDPModule", None), "set_custom_all_gather"):
        raise RunError(
            f"sync.name fsdp needs a newer torch than {torch.__version__}: fully_shard with set_custom_all_gather. "
            "Update torch, or use --sync.name ddp."
        )


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is sharded, so that each rank has only a part of it."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose class is imported only if there are shards


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each rank may have a part, without gradient. If it is sharded, all ranks call it."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()


def _give_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Makes ``weights`` the parameters of ``module``; a parameter that is used in several places stays shared."""
    names = {weight: name for name, weight in module.named_parameters()}
    made = {weight: nn.Parameter(weights[name], weight.requires_grad) for weight, name in names.items()}
    for name, weight in list(module.named_parameters(remove_duplicate=False)):
        _put(module, name, made[weight])


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, tensor)
