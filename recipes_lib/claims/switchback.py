# SPDX-License-Identifier: Apache-2.0
"""What the SwitchBack chapter puts to the test.

The arms train CLIP's two towers on the Pantry's captions, all from the same weights, on the same batches. Margins were fixed
before the runs, and no arm had a pilot. The noise of sums (``recipes/noise_study.py``) and the peaks had one on other seeds;
in the latter the shorter memory was better than StableAdamW. What was tried for the lag, ``recipes/spike_study.py`` tells.
"""

from recipes_lib.claims.check import Claim, Figure

PRESET = "toy"
SEEDS = (0, 1, 2)
BASE = {"train.steps": 300, "train.checkpoint_every": 300, "eval.baselines": "none"}
ARMS = {
    "switchback": {},
    "full": {"model.linear": "full"},
    "int8": {"model.linear": "int8"},
    "fp8": {"model.linear": "fp8"},
    "fp8_scaled": {"model.linear": "fp8", "model.layer_scale": True},
    "full_scaled": {"model.linear": "full", "model.layer_scale": True},
    "bf16": {"model.linear": "full", "train.precision": "bf16"},
}
SHOWN = ("bf16",)
"""Arms of no claim, which the chapter shows."""


def noise(seed: int) -> dict[str, dict]:
    """Errors of inner products and of layers in 8 bits."""
    from recipes_lib.recipes import noise_study

    return noise_study.measure(seed)


def spikes(seed: int) -> dict[str, dict]:
    """Losses after a jump of the gradients, by optimiser, and whether loss spikes follow RMS spikes."""
    from recipes_lib.recipes import spike_study

    return spike_study.measure(seed)


MEASUREMENTS = {"noise": noise, "spikes": spikes}
"""Arms that measure in place of training: a function of the seed that returns a report."""


def _noise_mark() -> dict:
    from recipes_lib.recipes import noise_study

    return noise_study.fingerprint()


def _spikes_mark() -> dict:
    from recipes_lib.recipes import spike_study

    return spike_study.fingerprint()


MARKS = {"noise": _noise_mark, "spikes": _spikes_mark}
"""The fingerprint of each measurement."""

_FULL_SCALE = "torchrun --nproc-per-node 8 --nnodes 8 -m recipes_lib run switchback --preset vith14_laion2b --data.root SHARDS --eval.imagenet IMAGENET"
_ABSTRACT = {"value": None, "where": "abstract: within 0.1 points of bfloat16's accuracy for CLIP ViT-Huge"}
_SPIKES = {
    "value": None,
    "where": "abstract: loss spikes 1-8 steps after the second moment lags; no figure of this kind",
}
_SECTION = {"value": None, "where": "the paper's argument; no figure of this kind"}


def _claim(identity: str, statement: str, ours: Figure, control: Figure, what: str, **rest: object) -> Claim:
    shared = {"better": "higher", "paper": _SECTION, "full_scale": _FULL_SCALE}
    return Claim(
        id=f"switchback.{identity}",
        statement=statement,
        ours=ours,
        control=control,
        control_arm=what,
        **{**shared, **rest},
    )


def _recall(identity: str, statement: str, ours: str, control: str, what: str, margin: float, **rest: object) -> Claim:
    """A claim about what two towers find."""
    figures = (Figure(arm, "scores.ir5.method") for arm in (ours, control))
    return _claim(identity, statement, *figures, what, metric="IR@5 on new pairs", margin=margin, **rest)


def _peak(identity: str, statement: str, control: str, what: str, margin: float, **rest: object) -> Claim:
    """A claim about the largest loss after the jump, at learning rate 0.01."""
    figures = (Figure("spikes", f"one_jump.middle.{arm}.peak") for arm in ("stable_adamw", control))
    facts = {"metric": "largest loss of 29 steps after the jump", "better": "lower", "paper": _SPIKES}
    return _claim(identity, statement, *figures, what, margin=margin, **facts, **rest)


CLAIMS = (
    _recall("accuracy", "With SwitchBack in both towers, captions find their pictures as with full precision.",
            "switchback", "full", "float32 throughout, the same weights at the start and the same batches", 0.03,
            no_worse=True, paper=_ABSTRACT),
    _recall("int8_worse", "With the weight's gradient in 8 bits too, they find less than with SwitchBack.",
            "switchback", "int8", "all three products in 8-bit integers", 0.03),
    _recall("fp8_fails", "With one scale a matrix in 8-bit floats, they find less than with full precision.",
            "full", "fp8", "simulated 8-bit floats, one scale a matrix, all three products", 0.05),
    _recall("fp8_scaled", "Where every block starts as the identity, one scale a matrix in 8-bit floats is enough.",
            "fp8_scaled", "full_scaled", "float32 throughout, blocks that start as the identity", 0.03, no_worse=True),
    _claim("dw_error", "In 8 bits the weight's gradient errs more than the output, where tokens' gradients are uneven.",
           Figure("noise", "layers.uneven.16384.dw.int8"), Figure("noise", "layers.uneven.16384.y.int8"),
           "the output of the same layer", metric="relative error at 16,384 tokens", margin=0.005),
    _peak("stable", "After a jump of the gradients StableAdamW's loss peaks lower than AdamW's.",
          "adamw", "AdamW, beta2 0.999", 0.03),
    _peak("clipping", "It peaks lower than AdamW's with gradients clipped to norm 1.",
          "clip_1", "AdamW, beta2 0.999, gradients clipped to norm 1", 0.03),
    _peak("low_beta2", "It peaks no higher than AdamW's with a shorter memory.",
          "beta2_95", "AdamW, beta2 0.95", 0.01, no_worse=True),
    _claim("lag", "AdamW's loss spikes come 1 to 8 steps after an RMS spike more often than by chance.",
           Figure("spikes", "several_jumps.adamw.fraction"), Figure("spikes", "several_jumps.adamw.chance"),
           "share of all steps that come so", metric="share of loss spikes 1 to 8 steps after an RMS spike", margin=0.25,
           paper=_SPIKES),
)  # fmt: skip
