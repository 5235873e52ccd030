# SPDX-License-Identifier: Apache-2.0
"""Fully sharded data parallelism: each rank keeps a share of every weight, gradient and optimiser state.

Steps are those of :class:`~recipes_lib.distributed.sync.DDP`; what changes is who keeps what. A block's weights are gathered
while it computes forward, and again backward; its gradient goes to the ranks that keep its parts. torch's
``fully_shard`` does that, to a copy of the method: it changes a module's class for good, and has no way back. The method itself
keeps its class, and has weights without storage until training has ended. Here stands what ``fully_shard`` leaves open: which
modules are blocks, scalars (which it refuses), the gradient's norm, and checkpoints as one process writes them.

**Bytes.** A ring sends (K - 1) / K N bytes from each of K ranks to gather, or to reduce and scatter, N bytes: half of an
all-reduce of N. Every collective of ``fully_shard`` is counted as it is called, its padding included, so a block that
computes twice in a step counts as often as it was gathered.
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
    """Gradients are averaged at every step; weights, gradients and optimiser state are kept in shares. On one process: whole.

    Gathered together are each block of a network (:func:`blocks`) and, as one more, all the rest. Scalars (CLIP's
    temperature) are kept whole by every rank. The method is built whole before its copy is cut.

    Source: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.
    """

    def __init__(self) -> None:
        self.traffic = Traffic()

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """A copy of ``method``, cut; ``optimizer`` then moves the shares. The method's own parameters take no memory meanwhile.

        Raises: ``RunError`` for an optimiser that measures whole weights, for a torch without what is needed, and where
        the ranks' models differ.
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
        """Gradients are exchanged in the ``last`` micro-batch alone; until then each rank keeps them whole."""
        if self.trained is not self._method:
            self.trained.set_requires_gradient_sync(last)
        yield
        if last:
            gradients = [weight.grad for weight in self._scalars if weight.grad is not None]
            self.traffic.averaged += collectives.average_in_place(gradients)

    def meets(self, step: int) -> bool:
        """Always."""
        return True

    def after_step(self, step: int) -> None:
        """Buffers become rank 0's, as DDP's are before each step."""
        collectives.broadcast_in_place(list(self.trained.buffers()))
        self.traffic.add(0)

    def finish(self, step: int) -> None:
        """Nothing is left to do."""

    def alike(self, step: int) -> bool:
        """Always: what is saved is gathered."""
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""

    @torch.no_grad()
    def unwrap(self) -> None:
        """Gives the method the trained weights, whole, on every rank; rank 0 may call it alone from then on."""
        if self.trained is self._method:
            return
        _give_weights(self._method, {name: _gathered(share) for name, share in self.trained.named_parameters()})
        for name, buffer in self.trained.named_buffers(remove_duplicate=False):
            _put(self._method, name, buffer)
        self._method.train(self.trained.training)
        self.trained, self._scalars = self._method, []


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that a network repeats: members, of one class and with parts of their own, of a list or a sequence.

    All but the last, which is used forward and at once again backward, so it would be gathered twice for nothing; and a
    Vision Transformer computes its class token there from the block's parts, without calling the block.
    """
    found = []
    for container in module.modules():
        members = list(container.children())
        repeated = len(members) > 1 and len({type(member) for member in members}) == 1 and any(members[0].children())
        if isinstance(container, nn.ModuleList | nn.Sequential) and repeated:
            found += members[:-1]
    return found[::-1]  # an inner one is cut before the one around it


def clip_grad_norm(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """As ``nn.utils.clip_grad_norm_``, also of shares: the norm is that of the whole gradients. Every rank must call it.

    Shapes: -> [], the norm before clipping.
    """
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    shares = [gradient.to_local() for gradient in gradients if is_share(gradient)]
    if not shares:
        return nn.utils.clip_grad_norm_(parameters, most)
    others = [gradient for gradient in gradients if not is_share(gradient)]
    squares = collectives.all_reduce_sum(nn.utils.get_total_norm(shares).square())
    norm = (squares + nn.utils.get_total_norm(others).to(squares.device).square()).sqrt()
    torch._foreach_mul_(shares + others, (most / (norm + 1e-6)).clamp(max=1.0))  # as torch has it
    return norm


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shares put together in rank 0's main memory, and left out elsewhere; other tensors as they are. All ranks call it."""
    found = {}
    for name, tensor in tensors.items():
        whole = _gathered(tensor)
        if not is_share(tensor):
            found[name] = whole
        elif collectives.is_main():
            found[name] = whole.cpu()
    return found


def cut(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Whole tensors, the same on every rank, cut as the parameter of ``module`` is whose name theirs is or begins with.

    What has another shape than that parameter (an optimiser's count of steps) stays as it is: ``NAME`` and ``NAME/key``.
    """
    shares = {name: weight for name, weight in module.named_parameters() if is_share(weight)}
    found = dict(tensors)
    if not shares:
        return found
    from torch.distributed.tensor import distribute_tensor

    for name, tensor in tensors.items():
        share = shares.get(name.partition("/")[0])
        if share is not None and tensor.shape == share.shape:
            # every rank has the whole: nothing is sent
            found[name] = distribute_tensor(
                tensor.to(share.device), share.device_mesh, share.placements, src_data_rank=None
            )
    return found


class _Counted:
    """What ``fully_shard`` asks of a collective."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        self._traffic.averaged += output_tensor.nbytes // 2
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name in newer torch
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


def is_share(tensor: Tensor) -> bool:
    """Whether each rank has a part of ``tensor`` only."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose class is imported only where there are shares


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if is_share(tensor) else tensor.detach()


def _give_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Makes ``weights`` the parameters of ``module``; one that stands in several places stays one."""
    names = {weight: name for name, weight in module.named_parameters()}
    made = {weight: nn.Parameter(weights[name], weight.requires_grad) for weight, name in names.items()}
    for name, weight in list(module.named_parameters(remove_duplicate=False)):
        _put(module, name, made[weight])


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, tensor)
