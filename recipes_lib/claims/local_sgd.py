# SPDX-License-Identifier: Apache-2.0
"""What the local SGD chapter puts to the test. Data alone; no torch.

One measurement a seed: every arm is tuned by as many runs as any other, on images that are not the test's. Margins were
fixed before the runs, at most half of what pilot seeds (100 to 102) showed on validation images, at other learning rates:
accuracy .811 and .654 in 48 steps (period 1 and 48), .926 and .899 in 192 (1 and 16), .950 and .950 on the bare scans, .025
less by forgotten momentum, and with noise .785 to .797 by SlowMo. With four workers SlowMo had shown no gain (.900, .901):
that claim, and the one about the number of workers, go to the test without a pilot that speaks for them.
"""

from collections.abc import Mapping

from recipes_lib.claims.check import Claim, Figure

PRESET = "toy"
SEEDS = (0, 1, 2, 3, 4)
BASE = {}
ARMS = {}
SHOWN = ()
"""Arms of no claim, which the chapter shows: none; the measurement has many figures of no claim."""


def workers(seed: int) -> Mapping:
    """Accuracy and bytes by period, length, workers and strategy; each arm tuned, then scored once."""
    from recipes_lib.recipes import local_sgd_study

    return local_sgd_study.measure(seed)


MEASUREMENTS = {"workers": workers}
"""Arms that measure in place of training: a function of the seed that returns a report."""


def _mark() -> dict:
    from recipes_lib.recipes import local_sgd_study

    return local_sgd_study.fingerprint()


MARKS = {"workers": _mark}
"""The fingerprint of each measurement."""

_RUN = "torchrun --nproc-per-node 16 -m recipes_lib run local_sgd --data.root IMAGENET --preset resnet50_imagenet"
_STUDY = {"value": None, "where": "the study's argument, on ImageNet; figures not verified by us"}
_ACCURACY = "test accuracy at the learning rate that is best on a validation split"


def _claim(
    identity: str,
    statement: str,
    ours: str,
    control: str,
    what: str,
    *,
    margin: float,
    preset: str = "_local",
    metric: str = _ACCURACY,
    better: str = "lower",
    no_worse: bool = False,
    paper: Mapping = _STUDY,
) -> Claim:
    return Claim(
        id=f"local_sgd.{identity}",
        statement=statement,
        metric=metric,
        better=better,
        margin=margin,
        no_worse=no_worse,
        ours=Figure("workers", ours),
        control=Figure("workers", control),
        control_arm=what,
        paper=paper,
        full_scale=f"{_RUN}{preset}",
    )


CLAIMS = (
    _claim(
        "bytes", "At period 16 each worker sends 16 times fewer bytes, to the last one.",
        "times_period.16", "times_period.1", "the bytes of synchronous steps",
        margin=0.5, metric="bytes sent by each worker in 192 steps, times the period", no_worse=True,
        paper={"value": None, "where": "follows from the algorithm"},
    ),
    _claim(
        "long_periods_cost", "In a short training, averaging once at the end costs accuracy.",
        "accuracy.drawn.48.local.48", "accuracy.drawn.48.local.1", "synchronous steps, as many",
        margin=0.05,
    ),
    _claim(
        "more_training", "With four times the steps, period 16 costs less.",
        "gap.192.16", "gap.48.16", "the same gap in a run of 48 steps",
        margin=0.02, metric="accuracy of synchronous steps less that of period 16",
    ),
    _claim(
        "looks_free", "On plain scans of digits, period 16 costs nothing in 192 steps.",
        "accuracy.scans.192.local.16", "accuracy.scans.192.local.1", "synchronous steps, as many",
        margin=0.01, better="higher", no_worse=True,
    ),
    _claim(
        "is_not_free", "On digits in random inks, the same period, workers and steps cost accuracy.",
        "accuracy.drawn.192.local.16", "accuracy.drawn.192.local.1", "synchronous steps, as many",
        margin=0.01,
    ),
    _claim(
        "more_workers", "Eight workers that share a batch lose more to period 16 than two.",
        "accuracy.drawn.192.workers_8.16", "accuracy.drawn.192.workers_2.16", "two workers, the same batch in all",
        margin=0.01,
    ),
    _claim(
        "reset", "Forgetting the momentum at each averaging costs accuracy, where that is every fourth step.",
        "accuracy.drawn.48.reset.4", "accuracy.drawn.48.local.4", "each worker's momentum kept",
        margin=0.01, paper={"value": None, "where": "an option of the papers; no figure verified by us"},
    ),
    _claim(
        "slowmo", "SlowMo recovers part of what period 16 costs four workers in 192 steps.",
        "accuracy.drawn.192.slowmo.16", "accuracy.drawn.192.local.16", "local SGD, as many settings tried",
        margin=0.005, better="higher", preset="_slowmo",
    ),
    _claim(
        "slowmo_noise", "It does where gradients are noisy: eight workers of eight images, labels in part random.",
        "accuracy.noisy.192.slowmo.16", "accuracy.noisy.192.local.16", "local SGD, as many settings tried",
        margin=0.006, better="higher", preset="_slowmo",
    ),
)  # fmt: skip
