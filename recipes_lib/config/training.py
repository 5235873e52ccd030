# SPDX-License-Identifier: Apache-2.0
"""The config groups ``optim``, ``sync`` and ``train``: optimiser, agreement of processes, length of a run."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from recipes_lib.errors import Faults


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedules; the counter of a schedule is the optimiser step."""

    name: Literal["adamw", "adamw8bit", "lars", "sgd", "stable_adamw"] = "adamw"
    """adamw8bit: bitsandbytes' AdamW, whose running means take 8 bits (needs the extra ``lowbit``). sgd has Nesterov momentum
    0.9; fine-tuning uses it. stable_adamw takes smaller steps where gradients outgrow their running mean square."""
    lr: float = 1e-3
    """Peak learning rate, absolute: it is not scaled with the batch."""
    lr_start: float = 2e-4
    """Learning rate before the first step of the warm-up."""
    lr_final: float = 1e-6
    """Learning rate that the cosine ends in, after ``stretch`` times the run."""
    lr_drops: tuple[float, ...] = ()
    """Epochs after which the learning rate is a tenth of what it was, in place of the cosine; empty: the cosine."""
    warmup_epochs: float = 15.0
    """Epochs of linear warm-up; may be fractional."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; where it is given, ``warmup_epochs`` is not used."""
    weight_decay: float = 0.04
    """Decoupled weight decay at the start; weights only, neither biases nor norms nor prototypes."""
    weight_decay_final: float = 0.4
    """Weight decay that its cosine ends in, after ``stretch`` times the run."""
    stretch: float = 1.25
    """The cosines are laid out over this many times the run, so they stop before their end."""
    first_count: Literal[0, 1] = 1
    """What the schedules count the first step as: 1 in MSN's code, 0 in PAWS's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square; ``adamw``, ``adamw8bit`` and ``stable_adamw`` only."""
    eps: float = 1e-8
    """Added to the root of the mean square; ``adamw``, ``adamw8bit`` and ``stable_adamw`` only."""
    clip_decay: bool = True
    """``stable_adamw`` only. Where a tensor's step is shortened its weight decay is too; if not, the decay keeps the
    scheduled learning rate, as in the code of the method's authors."""
    lr_in_momentum: bool = False
    """``lars`` only. The learning rate enters the momentum, as in PAWS; else it multiplies the momentum."""
    clip: float | None = 3.0
    """Largest norm of the encoder's gradient; none: no clipping."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
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
        faults.need(self.clip is None or self.clip > 0, "optim.clip", self.clip, "above 0, or None for no clipping")


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How the processes of one run agree on the weights: :mod:`recipes_lib.distributed.sync`."""

    name: Literal["ddp", "fsdp", "local_sgd", "post_local_sgd", "slowmo"] = "ddp"
    """ddp: gradients are averaged at every step. fsdp: likewise, each rank keeping a share of the weights. local_sgd: weights
    are, every ``period`` steps. post_local_sgd: so from step ``start`` on, ddp before. slowmo: that, with a slow momentum."""
    period: int = 48
    """Steps from one averaging of the weights to the next; not used by ``ddp`` and ``fsdp``."""
    start: int = 0
    """Steps in which gradients are still averaged; ``post_local_sgd`` and ``slowmo`` only."""
    momentum: float = 0.5
    """Slow momentum, in [0, 1); ``slowmo`` only. 0, at ``lr`` 1, is plain averaging."""
    lr: float = 1.0
    """Slow learning rate, a factor of the step that the workers' mean took; ``slowmo`` only."""
    buffers: Literal["maintain", "reset", "average"] = "maintain"
    """What becomes of the optimiser's running means when weights are averaged; ``average`` sends them too."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        faults.need(self.period >= 1, "sync.period", self.period, "of at least 1", "1 averages at every step.")
        later = self.name in ("post_local_sgd", "slowmo")
        allowed = "of at least 0" if later else f"of 0 with sync.name {self.name}"
        faults.need(self.start >= 0 if later else self.start == 0, "sync.start", self.start, allowed)
        faults.need(0 <= self.momentum < 1, "sync.momentum", self.momentum, "in [0, 1)")
        faults.need(self.lr > 0, "sync.lr", self.lr, "above 0", "1 goes where the workers' mean went.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how many at once, and what is kept."""

    epochs: float | None = 800.0
    """Passes over the training images; give this or ``steps``."""
    steps: int | None = None
    """Optimiser steps; where it is given, ``epochs`` is not used."""
    batch_size: int = 1024
    """Images per optimiser step, summed over processes and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimiser step; batch statistics (batch norm, Sinkhorn) are those of a micro-batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products under autocast; losses stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    threads: int | None = None
    """CPU threads of torch; none: torch's own choice. One is bit-stable, and on a busy machine faster."""
    memory_limit: float | None = None
    """GB that a run may ask for, checked before it starts; none: what the device has."""
    seed: int = 0
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step is always kept."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk; two, so that a damaged one has another before it."""
    timeout: float = 1800.0
    """Seconds in which a process that trains with others must get on; where one does not, all end, naming it, and the run
    can be resumed. Longer than the slowest step."""
    tensorboard: bool = False
    """Write TensorBoard events beside ``metrics.jsonl`` (needs the extra ``track``)."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
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
        """Optimiser steps of the whole run. Raises: ``ValueError`` where neither steps nor epochs are given."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            raise ValueError("train.steps and train.epochs are both None. Give one of them; validate() asks for it.")
        return max(1, round(self.epochs * steps_per_epoch))
