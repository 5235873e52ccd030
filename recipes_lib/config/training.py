# SPDX-License-Identifier: Apache-2.0
"""The config groups ``optim``, ``sync`` and ``train``: optimiser, synchronisation of processes, length of the run."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from recipes_lib.errors import Faults


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedules. Schedules count optimiser steps."""

    name: Literal["adamw", "adamw8bit", "lars", "sgd", "stable_adamw"] = "adamw"
    """Name of the optimiser. adamw8bit is bitsandbytes' AdamW, with 8-bit running means (needs the extra ``lowbit``).
    sgd has momentum 0.9; fine-tuning always uses it.
    stable_adamw takes smaller steps for a tensor whose gradient outgrows its running mean square."""
    lr: float = 1e-3
    """Peak learning rate. It is used as given and not scaled with the batch size."""
    lr_start: float = 2e-4
    """Learning rate at the start of the warm-up, in [0, ``lr``]."""
    lr_final: float = 1e-6
    """Learning rate at the end of the cosine, which lies at ``stretch`` times the run's steps; in [0, ``lr``]."""
    lr_drops: tuple[float, ...] = ()
    """Epochs after which the learning rate is divided by 10, instead of a cosine. Empty: the cosine is used."""
    warmup_epochs: float = 15.0
    """Epochs of linear warm-up; may be fractional."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; if given, ``warmup_epochs`` is not used."""
    weight_decay: float = 0.04
    """Decoupled weight decay at the start. It applies to weights only, not to biases, norms or prototypes."""
    weight_decay_final: float = 0.4
    """Weight decay at the end of its cosine, which lies at ``stretch`` times the run's steps."""
    stretch: float = 1.25
    """The cosines are planned for this many times the run's steps, at least 1; above 1, the run ends before they do."""
    first_count: Literal[0, 1] = 1
    """Number that the schedules give to the first step: 1 in MSN's code, 0 in PAWS's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square, each in [0, 1);
    ``adamw``, ``adamw8bit`` and ``stable_adamw`` only."""
    eps: float = 1e-8
    """Added to the root of the running mean square, so that no step divides by 0;
    ``adamw``, ``adamw8bit`` and ``stable_adamw`` only."""
    clip_decay: bool = True
    """``stable_adamw`` only. True: if a tensor's step is shortened, so is its weight decay.
    False: the decay keeps the scheduled learning rate, as in the code of the method's authors."""
    lr_in_momentum: bool = False
    """``lars`` only. True: the learning rate multiplies each update before it enters the momentum, as in PAWS.
    False: the learning rate multiplies the momentum."""
    nesterov: bool = True
    """``sgd`` only. True: Nesterov momentum. False: plain momentum, as in the code of SimSiam and DINO."""
    clip: float | None = 3.0
    """Largest norm of the gradient of the clipped parameters (in MSN the encoder's); None: no clipping."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.lr > 0, "optim.lr", self.lr, "above 0")
        faults.need(0 <= self.lr_start <= self.lr, "optim.lr_start", self.lr_start, f"in [0, optim.lr = {self.lr}]")
        faults.need(0 <= self.lr_final <= self.lr, "optim.lr_final", self.lr_final, f"in [0, optim.lr = {self.lr}]")
        rising = all(earlier < later for earlier, later in pairwise((0.0, *self.lr_drops)))
        faults.need(rising, "optim.lr_drops", self.lr_drops, "of epochs above 0, each later than the one before")
        faults.need(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "of at least 0")
        steps = self.warmup_steps
        faults.need(steps is None or steps >= 0, "optim.warmup_steps", steps, "of at least 0")
        faults.need(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "of two numbers in [0, 1)")
        faults.need(self.eps > 0, "optim.eps", self.eps, "above 0")
        faults.need(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "of at least 0")
        faults.need(self.weight_decay_final >= 0, "optim.weight_decay_final", self.weight_decay_final, "of at least 0")
        faults.need(self.stretch >= 1, "optim.stretch", self.stretch, "of at least 1", "The paper's code uses 1.25.")
        faults.need(self.first_count in (0, 1), "optim.first_count", self.first_count, "of 0 or 1")
        faults.need(
            not self.lr_in_momentum or self.name == "lars",
            "optim.lr_in_momentum",
            self.lr_in_momentum,
            f"of False with optim.name {self.name}",
            "Only lars has this form.",
        )
        faults.need(
            self.nesterov or self.name == "sgd",
            "optim.nesterov",
            self.nesterov,
            f"of True with optim.name {self.name}",
            "Only sgd has plain momentum.",
        )
        faults.need(self.clip is None or self.clip > 0, "optim.clip", self.clip, "above 0, or None for no clipping")


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How the processes of a run keep their weights equal; see :mod:`recipes_lib.distributed.sync`."""

    name: Literal["ddp", "fsdp", "local_sgd", "post_local_sgd", "slowmo"] = "ddp"
    """ddp: gradients are averaged at every step. fsdp: the same, but each rank stores only a shard of the weights.
    local_sgd: weights, not gradients, are averaged, every ``period`` steps.
    post_local_sgd: ddp before step ``start``, local_sgd from then on. slowmo: post_local_sgd with a slow momentum."""
    period: int = 48
    """Number of steps between two averagings of the weights; not used by ``ddp`` and ``fsdp``."""
    start: int = 0
    """Number of first steps in which gradients are averaged as in ddp; ``post_local_sgd`` and ``slowmo`` only."""
    momentum: float = 0.5
    """Slow momentum, in [0, 1); ``slowmo`` only. With 0, and ``lr`` 1, slowmo averages weights as local_sgd does."""
    lr: float = 1.0
    """Slow learning rate: factor, above 0, on the change of the workers' mean since the last averaging;
    ``slowmo`` only."""
    buffers: Literal["maintain", "reset", "average"] = "maintain"
    """What happens to the optimiser's running means when weights are averaged. maintain: each rank keeps its own;
    reset: they restart from 0; average: they are averaged as well, which sends more bytes."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.period >= 1, "sync.period", self.period, "of at least 1", "1 averages at every step.")
        later = self.name in ("post_local_sgd", "slowmo")
        allowed = "of at least 0" if later else f"of 0 with sync.name {self.name}"
        faults.need(self.start >= 0 if later else self.start == 0, "sync.start", self.start, allowed)
        faults.need(0 <= self.momentum < 1, "sync.momentum", self.momentum, "in [0, 1)")
        faults.need(self.lr > 0, "sync.lr", self.lr, "above 0", "1 goes where the workers' mean went.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of a run, its batch size, its device and its checkpoints."""

    epochs: float | None = 800.0
    """Number of passes over the training images, may be fractional; give this or ``steps``."""
    steps: int | None = None
    """Number of optimiser steps; if given, ``epochs`` is not used."""
    batch_size: int = 1024
    """Images per optimiser step, summed over processes and accumulated micro-batches; at least 2."""
    accumulate: int = 1
    """Number of micro-batches per optimiser step; it must divide ``batch_size``.
    Batch statistics (batch norm, Sinkhorn) are computed over one micro-batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32: everything in float32. bf16: matrix products in bfloat16 under autocast; losses stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if the machine has one, otherwise the CPU."""
    threads: int | None = None
    """Number of CPU threads of torch, 1 to 1024; None: torch's own choice.
    1 gives bit-equal results, and is faster on a busy machine."""
    memory_limit: float | None = None
    """Largest memory in GB that a run may need, checked before it starts; None: the memory of the device."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentations."""
    checkpoint_every: int = 1000
    """Number of steps between checkpoints; the last step always gets one."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that stay on disk. With two, an older one is left if the newest is damaged."""
    timeout: float = 1800.0
    """Seconds that a process of a distributed run may make no progress; after that it is named and all processes end.
    The run can then be resumed. Choose more seconds than the slowest step takes."""
    tensorboard: bool = False
    """Also write TensorBoard events, beside ``metrics.jsonl`` (needs the extra ``track``)."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        if self.steps is None:
            some = self.epochs is not None and 0 < self.epochs < float("inf")
            faults.need(some, "train.epochs", self.epochs, "above 0, or give train.steps")
        else:
            faults.need(self.steps >= 1, "train.steps", self.steps, "of at least 1")
        faults.need(self.batch_size >= 2, "train.batch_size", self.batch_size, "of at least 2")
        faults.need(
            self.accumulate >= 1
            and self.batch_size % self.accumulate == 0
            and not self.batch_size == self.accumulate > 1,  # batch norm takes no statistics from one image
            "train.accumulate",
            self.accumulate,
            f"that divides train.batch_size = {self.batch_size} into micro-batches of at least 2",
        )
        faults.need(self.threads is None or 1 <= self.threads <= 1024, "train.threads", self.threads, "of 1 to 1024")
        faults.need(0 <= self.seed < 2**63, "train.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)
        limit = self.memory_limit
        faults.need(
            limit is None or limit > 0, "train.memory_limit", limit, "above 0, or None for the machine's memory"
        )
        faults.need(self.checkpoint_every >= 1, "train.checkpoint_every", self.checkpoint_every, "of at least 1")
        faults.need(self.keep_checkpoints >= 1, "train.keep_checkpoints", self.keep_checkpoints, "of at least 1")
        faults.need(1 <= self.timeout <= 10**7, "train.timeout", self.timeout, "from 1 to 10,000,000 seconds")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of optimiser steps of the run. Raises: ``ValueError`` if neither steps nor epochs are given."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            raise ValueError("train.steps and train.epochs are both None. Give one of them; validate() asks for it.")
        return max(1, round(self.epochs * steps_per_epoch))
