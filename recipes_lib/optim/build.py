# SPDX-License-Identifier: Apache-2.0
"""Builds the optimiser of a config, and computes its learning rate and weight decay at each step."""

from dataclasses import dataclass
from typing import Any

import torch

from recipes_lib.config import OptimConfig, SyncConfig
from recipes_lib.errors import ConfigError
from recipes_lib.optim import eight_bit, layout
from recipes_lib.optim.lars import LARS
from recipes_lib.optim.schedules import cosine, warmup_cosine, warmup_drops
from recipes_lib.optim.stable_adamw import StableAdamW


def check(config: OptimConfig, sync: SyncConfig, device: torch.device) -> None:
    """Raises ``ConfigError`` if the optimiser cannot run on ``device``, or ``sync`` cannot average its state."""
    if config.name == "adamw8bit":
        eight_bit.check(device)
        if sync.buffers == "average":
            raise ConfigError(
                "sync.buffers average cannot average the running means of optim.name adamw8bit, which are 8-bit codes. Use "
                "--sync.buffers maintain or reset, or --optim.name adamw."
            )


def build(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Builds the optimiser ``config.name`` over ``groups``, dicts with the keys of :mod:`recipes_lib.optim.groups`.

    :meth:`Schedule.apply` sets its learning rate and weight decay before each step.

    Raises: ``ConfigError`` if ``adamw8bit`` cannot run; ``ValueError`` for an unknown name.
    """
    optimizer = _plain(config, groups)
    optimizer.register_step_pre_hook(_drop_frozen_gradients)
    return optimizer


def _drop_frozen_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Removes the gradients of the groups that do not move in this step: the optimiser skips what has no gradient."""
    for group in optimizer.param_groups:
        if group.get("still", False):
            for weight in group["params"]:
                weight.grad = None


def _plain(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    match config.name:
        case "adamw":
            # fused: one pass over each tensor instead of a dozen, on CPUs too
            optimizer = torch.optim.AdamW(
                groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True
            )
            optimizer.register_step_pre_hook(lambda optimizer, *_: layout.match_gradients(optimizer))
            optimizer.register_load_state_dict_post_hook(layout.match_state)
            return optimizer
        case "adamw8bit":
            return eight_bit.adamw(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0)
        case "lars":
            return LARS(groups, lr=config.lr, lr_in_momentum=config.lr_in_momentum)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=config.nesterov)
        case "stable_adamw":
            return StableAdamW(
                groups,
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                weight_decay=0.0,
                clip_decay=config.clip_decay,
            )
        case unknown:
            raise ValueError(
                f"there is no optimiser {unknown!r}; there are adamw, adamw8bit, lars, sgd and stable_adamw"
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate and weight decay of a run, as functions of the step.

    Source: the released code of each paper. MSN's counter is 1 at the first update, so update ``step`` (from 0) gets
    the value of ``step + 1`` (MSN's EMA counter starts at 0); PAWS's counter is 0 at the first update.
    Differs: the released code truncates a fractional number of warm-up steps, and ``stretch`` times the run, to whole
    steps. Here the warm-up is rounded, and the stretched run may end within a step. Both give the same values where
    these are whole numbers, as in every published setting.
    """

    config: OptimConfig
    steps: int
    """Number of optimiser steps of the run."""
    steps_per_epoch: int
    """Number of optimiser steps per epoch, which ``warmup_epochs`` and ``lr_drops`` of ``config`` are multiplied by."""

    def at(self, step: int) -> dict[str, float]:
        """``lr`` and ``weight_decay`` of the update ``step``, counted from 0."""
        config, count = self.config, step + self.config.first_count
        warmup = config.warmup_steps
        if warmup is None:
            warmup = round(config.warmup_epochs * self.steps_per_epoch)
        rise = {"start": config.lr_start, "peak": config.lr, "warmup_steps": warmup}
        if config.lr_drops:
            lr = warmup_drops(count, drops=[epoch * self.steps_per_epoch for epoch in config.lr_drops], **rise)
        else:
            lr = warmup_cosine(count, final=config.lr_final, total_steps=self.steps, stretch=config.stretch, **rise)
        decay = cosine(count, config.weight_decay, config.weight_decay_final, self.steps, stretch=config.stretch)
        return {"lr": lr, "weight_decay": decay}

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Sets for every group the learning rate, the weight decay, and ``still``: whether it is frozen at this step.

        The weight decay is 0 unless the group ``decays``.
        """
        now = self.at(step)
        for group in optimizer.param_groups:
            rate = self.config.lr if group.get("constant_lr", False) else now["lr"]
            group["lr"] = rate * group.get("lr_scale", 1.0)
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0
            if "frozen" in group:
                group["still"] = step < group["frozen"] * self.steps
