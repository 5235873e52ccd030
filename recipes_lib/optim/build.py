# SPDX-License-Identifier: Apache-2.0
"""The optimiser that a config asks for, and its hyper-parameters at each step."""

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
    """Raises ``ConfigError`` where the optimiser cannot run on ``device``, or its state be averaged as ``sync`` asks."""
    if config.name == "adamw8bit":
        eight_bit.check(device)
        if sync.buffers == "average":
            raise ConfigError(
                "sync.buffers average cannot average the running means of optim.name adamw8bit, which are 8-bit codes. Use "
                "--sync.buffers maintain or reset, or --optim.name adamw."
            )


def build(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of ``config.name`` over ``groups``, each with ``params`` and ``decays``.

    Its learning rate and weight decay are set by :meth:`Schedule.apply` before each step.

    Raises: ``ConfigError`` where ``adamw8bit`` cannot run.
    """
    match config.name:
        case "adamw":
            # fused: one pass over each tensor in place of a dozen, on CPUs too
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
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
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
    """Learning rate and weight decay of a run.

    Source: the released codes: in MSN's the counter is 1 at the first update, so update ``step`` (from 0) has that of
    ``step + 1`` (the EMA's counter is 0 there); in PAWS's it is 0.
    Differs: there a warm-up of a fractional number of steps is cut to whole ones, and so is ``stretch`` times the run; here
    the warm-up is rounded and the stretched run may end within a step. Both are the same where these are whole numbers, as
    in every published setting.
    """

    config: OptimConfig
    steps: int
    """Optimiser steps of the run."""
    steps_per_epoch: int
    """What ``config.warmup_epochs`` is counted in."""

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
        """Gives every group its learning rate, and its weight decay where it ``decays``."""
        now = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = now["lr"]
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0
