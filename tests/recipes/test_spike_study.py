# SPDX-License-Identifier: Apache-2.0
"""What the SwitchBack chapter measures of loss spikes, on a few steps."""

import pytest
import torch
from torch import nn

from recipes_lib.optim import StableAdamW
from recipes_lib.recipes import spike_study
from recipes_lib.recipes.spike_study import ARMS, SWEEP, Arm

JUMPING = [spike_study.BEFORE] * 30 + [1.0] * 8


def test_rms_of_adamw_is_that_of_stable_adamw():
    """Learning rates of 0, so that both see the same gradients; StableAdamW's own figures are held to golden values elsewhere."""
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    same = {"lr": 0.0, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}
    a, b = StableAdamW([ours], **same), torch.optim.AdamW([theirs], **same)
    for step in range(12):
        gradient = (20.0 if step == 9 else 1.0) * torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        torch.testing.assert_close(spike_study.rms(b, theirs), spike_study.rms(a, ours), rtol=1e-5, atol=0)


def test_arms_of_a_seed_see_the_same_examples_and_start_alike():
    first = {name: spike_study.train(arm, 0.01, [1.0], 5).losses[0] for name, arm in (ARMS | SWEEP).items()}
    assert len(set(first.values())) == 1
    assert spike_study.train(ARMS["adamw"], 0.01, [1.0], 6).losses[0] not in first.values()


def test_the_factor_is_not_in_the_recorded_loss_nor_in_adams_steps():
    """Without a jump a factor of 2^-10 changes nothing but the last bits: eps is far below the gradients."""
    whole, scaled = (spike_study.train(ARMS["adamw"], 0.01, [scale] * 20, 0) for scale in (1.0, 2.0**-10))
    assert scaled.losses == pytest.approx(whole.losses, rel=1e-4)


def test_before_a_jump_rms_is_near_one_and_after_it_near_its_bound():
    """After 30 steps, one with gradients that are far larger has u = (1 - b) g^2: RMS = 1 / sqrt(1 - b)."""
    for arm in (ARMS["adamw"], ARMS["beta2_95"], ARMS["stable_adamw"]):
        rms = spike_study.train(arm, 0.01, JUMPING, 0).rms
        kept = (1 - arm.beta2) / (1 - arm.beta2**31)
        assert max(rms[1:30]) < 1.5
        assert rms[30] == pytest.approx(kept**-0.5, rel=0.01)


def test_the_loss_rises_after_the_jump_and_not_in_it():
    g = [spike_study.train(ARMS[name], 0.02, JUMPING, 0).losses for name in ("adamw", "stable_adamw")]
    before = [spike_study.train(ARMS[name], 0.02, [1.0] * 31, 0).losses[30] for name in ("adamw", "stable_adamw")]
    assert [losses[30] for losses in g] == pytest.approx(before, rel=1e-2)
    assert max(g[0][31:]) > 2 * max(g[1][31:])


def test_clipping_acts_on_the_gradients_alone():
    """All gradients below the norm: bit for bit the same. All above it: Adam divides by their size, whatever it is."""
    plain = spike_study.train(Arm("adamw"), 0.01, [1.0] * 10, 0)
    assert spike_study.train(Arm("adamw", clip=1e6), 0.01, [1.0] * 10, 0) == plain
    clipped = spike_study.train(Arm("adamw", clip=1e-3), 0.01, [1.0] * 10, 0)
    assert clipped != plain
    assert max(clipped.rms) < 2


def test_one_jumps_figures_are_of_the_steps_that_they_name(monkeypatch):
    losses = [float(step) for step in range(spike_study.STEPS)]
    sizes = losses[::-1]
    monkeypatch.setattr(spike_study, "train", lambda arm, lr, scales, seed: spike_study.Series(losses, sizes))
    found = spike_study.one_jump(ARMS["adamw"], 0.01, 0)
    # 120 to 149; 179 is the last of 29 steps after 150; 210 to 229
    assert found == {"before": 134.5, "peak": 179.0, "end": 219.5, "rms": 79.0}


def test_jumps_lie_within_the_run_with_room_before_and_after():
    for seed in range(20):
        times = spike_study.jumps(seed)
        gaps = [b - a for a, b in zip([0, *times], times, strict=False)]
        assert all(spike_study.GAP // 2 <= gap <= spike_study.GAP * 3 // 2 for gap in gaps)
        assert len(gaps) == spike_study.JUMPS
        assert times[-1] + 100 <= spike_study.LONG
    assert spike_study.jumps(0) != spike_study.jumps(1)


def test_several_jumps_are_counted_by_the_spikes_of_the_series(monkeypatch):
    """A loss of small waves rises tenfold for two steps, two steps after each RMS of 5."""
    times = spike_study.jumps(0)
    losses = [1.0 + 0.01 * (step % 2) for step in range(spike_study.LONG)]
    sizes = [1.0] * spike_study.LONG
    for time in times:
        sizes[time] = 5.0
        losses[time + 2] = losses[time + 3] = 10.0
    seen = []

    def train(arm, lr, scales, seed):
        seen.extend(scales)
        return spike_study.Series(losses, sizes)

    monkeypatch.setattr(spike_study, "train", train)
    found = spike_study.several_jumps(SWEEP["adamw"], 0)
    assert (found["rms_spikes"], found["peak"]) == (5, 10.0)
    assert found["spikes"] == found["followed"] >= 4  # one soon after another lies within its history
    assert found["fraction"] == 1
    assert found["p_value"] < 0.01
    assert seen[-1] == 1.0
    assert seen[0] == pytest.approx(spike_study.JUMP**-5)
    assert [step for step in range(1, len(seen)) if seen[step] != seen[step - 1]] == times


def test_without_spikes_nothing_follows(monkeypatch):
    flat = spike_study.Series([1.0] * spike_study.LONG, [1.0] * spike_study.LONG)
    monkeypatch.setattr(spike_study, "train", lambda *_: flat)
    found = spike_study.several_jumps(SWEEP["adamw"], 0)
    assert (found["spikes"], found["followed"], found["fraction"], found["rms_spikes"]) == (0, 0, 0, 0)


def test_a_seeds_report_has_every_figure(monkeypatch):
    short = spike_study.Series([1.0] * spike_study.LONG, [1.0] * spike_study.LONG)
    monkeypatch.setattr(spike_study, "train", lambda *_: short)
    report = spike_study.measure(0)
    assert set(report["one_jump"]) == {"low", "middle", "high"}
    assert set(report["one_jump"]["high"]) == set(ARMS)
    assert set(report["several_jumps"]) == set(SWEEP)
    assert set(report["several_jumps"]["adamw"]) == {
        "spikes", "rms_spikes", "followed", "fraction", "chance", "p_value", "peak", "end",
    }  # fmt: skip


def test_the_fingerprint_is_that_of_a_moment():
    found = spike_study.fingerprint()
    assert len(found["losses"]) == 3
    assert found["knn"] > 1
    assert found == spike_study.fingerprint()


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="there is no optimiser 'sgd'"):
        spike_study.train(Arm("sgd"), 0.01, [1.0], 0)
