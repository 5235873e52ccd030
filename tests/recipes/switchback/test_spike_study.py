# SPDX-License-Identifier: Apache-2.0
"""What the SwitchBack chapter measures of loss spikes, on a few steps."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from recipes_lib.data import embedded
from recipes_lib.optim import StableAdamW
from recipes_lib.recipes.switchback import spike_study
from recipes_lib.recipes.switchback.claims import CHAPTER
from recipes_lib.recipes.switchback.spike_study import GRIDS, PILOT, RATES, SWEEP, TUNED, Arm

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
    every = {**SWEEP, **{name: arm for name, (arm, _) in TUNED.items()}}
    first = {name: spike_study.train(arm, 0.01, [1.0], 5).losses[0] for name, arm in every.items()}
    assert len(set(first.values())) == 1
    assert spike_study.train(SWEEP["adamw"], 0.01, [1.0], 6).losses[0] not in first.values()


def test_the_factor_is_not_in_the_recorded_loss_nor_in_adams_steps():
    """Without a jump a factor of 2^-10 changes nothing but the last bits: eps is far below the gradients."""
    whole, scaled = (spike_study.train(SWEEP["adamw"], 0.01, [scale] * 20, 0) for scale in (1.0, 2.0**-10))
    assert scaled.losses == pytest.approx(whole.losses, rel=1e-4)


def test_before_a_jump_rms_is_near_one_and_after_it_near_its_bound():
    """After 30 steps, one with gradients that are far larger has u = (1 - b) g^2: RMS = 1 / sqrt(1 - b)."""
    for arm in (SWEEP["adamw"], SWEEP["beta2_95"], SWEEP["stable_adamw"]):
        rms = spike_study.train(arm, 0.01, JUMPING, 0).rms
        kept = (1 - arm.beta2) / (1 - arm.beta2**31)
        assert max(rms[1:30]) < 1.5
        assert rms[30] == pytest.approx(kept**-0.5, rel=0.01)


def test_the_loss_rises_after_the_jump_and_not_in_it():
    g = [spike_study.train(SWEEP[name], 0.02, JUMPING, 0).losses for name in ("adamw", "stable_adamw")]
    before = [spike_study.train(SWEEP[name], 0.02, [1.0] * 31, 0).losses[30] for name in ("adamw", "stable_adamw")]
    assert [losses[30] for losses in g] == pytest.approx(before, rel=1e-2)
    assert max(g[0][31:]) > 2 * max(g[1][31:])


def test_clipping_acts_on_the_gradients_alone():
    """All gradients below the norm: bit for bit the same. All above it: Adam divides by their size, whatever it is."""
    plain = spike_study.train(Arm("adamw"), 0.01, [1.0] * 10, 0)
    assert spike_study.train(Arm("adamw", clip=1e6), 0.01, [1.0] * 10, 0) == plain
    clipped = spike_study.train(Arm("adamw", clip=1e-3), 0.01, [1.0] * 10, 0)
    assert clipped != plain
    assert max(clipped.rms) < 2


def test_clipping_below_the_norms_before_a_jump_lets_no_gradient_outgrow_u():
    """What a clipped gradient is divided by differs before and after the jump, so Adam does not cancel it."""
    rms = {clip: spike_study.train(Arm("adamw", clip=clip), 0.01, JUMPING, 0).rms[30] for clip in (None, 1.0, 3e-5)}
    assert rms[1.0] == rms[None] > 5
    assert rms[3e-5] < 1.5


def test_every_cure_may_try_as_many_settings_and_all_have_the_same_rates():
    assert {cure: len(grid) for cure, grid in GRIDS.items()} == {"clip": 7, "beta2": 7, "stable": 7}
    assert GRIDS["beta2"].keys() == GRIDS["stable"].keys()
    assert {rate for _, rate in TUNED.values()} <= set(RATES)
    for grid, ours in zip(GRIDS["beta2"].values(), GRIDS["stable"].values(), strict=True):
        assert replace(grid, name="stable_adamw") == ours


def test_the_setting_with_the_least_mean_peak_is_taken_and_pilots_see_other_seeds(monkeypatch):
    asked = []

    def one_jump(arm, rate, seed):
        asked.append(seed)
        # 0.01 and 0.99 are best on average, though the second seed alone would take 0.98
        first = abs(rate - 0.01) + abs(arm.beta2 - (0.99 if seed == PILOT else 0.985))
        return {"peak": first}

    monkeypatch.setattr(spike_study, "one_jump", one_jump)
    pilots = [spike_study.pilot(seed) for seed in (0, 1)]
    assert set(asked) == {PILOT, PILOT + 1}
    assert len(asked) == 2 * 3 * 7 * len(RATES)
    assert spike_study.best(pilots, "stable") == ("0.99", "0.01")
    assert spike_study.best(pilots, "beta2", ["0.999", "0.9"]) == ("0.999", "0.01")


def test_the_tuned_arms_are_those_that_the_stored_pilot_chooses():
    stored = json.loads(embedded.path("claims/switchback.json").read_text())["figures"]["pilot"]
    pilots = list(stored.values())
    assert not set(CHAPTER.seeds) & {PILOT + int(seed) for seed in stored}
    for name, cure, knobs in (
        ("adamw", "beta2", ["0.999"]),
        ("stable_999", "stable", ["0.999"]),
        *((cure, cure, None) for cure in GRIDS),
    ):
        knob, rate = spike_study.best(pilots, cure, knobs)
        assert TUNED[name] == (GRIDS[cure][knob], float(rate)), name


def test_one_jumps_figures_are_of_the_steps_that_they_name(monkeypatch):
    losses = [float(step) for step in range(spike_study.STEPS)]
    sizes = losses[::-1]
    monkeypatch.setattr(spike_study, "train", lambda arm, lr, scales, seed: spike_study.Series(losses, sizes))
    found = spike_study.one_jump(SWEEP["adamw"], 0.01, 0)
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
    assert set(report["one_jump"]) == set(TUNED)
    assert set(report["several_jumps"]) == set(SWEEP)
    assert set(report["several_jumps"]["adamw"]) == {
        "spikes", "rms_spikes", "followed", "fraction", "chance", "p_value", "peak", "end",
    }  # fmt: skip


def test_the_fingerprint_is_that_of_a_moment():
    found = spike_study.fingerprint()
    assert len(found["losses"]) == 3
    assert found["rms"] > 1
    assert found == spike_study.fingerprint()


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="there is no optimiser 'sgd'"):
        spike_study.train(Arm("sgd"), 0.01, [1.0], 0)
