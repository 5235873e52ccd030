# SPDX-License-Identifier: Apache-2.0
"""What the SwitchBack chapter puts to the test.

The arms train CLIP's two towers on the Pantry's captions, all from the same weights, on the same batches. Margins were fixed
before the runs, and no arm had a pilot. What the spikes and the noise of sums are measured on is told in
``recipes/switchback_study.py``, with what pilots on other seeds had seen.
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
    "switchback_bf16": {"train.precision": "bf16"},
}
SHOWN = ("bf16", "switchback_bf16")
"""Arms of no claim, which the chapter shows."""
MEASUREMENTS = {}
"""Arms that measure in place of training: none."""

_FULL_SCALE = "torchrun --nproc-per-node 8 --nnodes 8 -m recipes_lib run switchback --preset vith14_laion2b --data.root SHARDS --eval.imagenet IMAGENET"
_ABSTRACT = {"value": None, "where": "abstract: within 0.1 points of bfloat16's accuracy for CLIP ViT-Huge"}
_SECTION = {"value": None, "where": "the paper's argument; no figure of this kind"}


def _recall(identity: str, statement: str, ours: str, control: str, what: str, margin: float, **rest: object) -> Claim:
    """A claim about what two towers find."""
    return Claim(
        **{
            "id": f"switchback.{identity}",
            "statement": statement,
            "metric": "IR@5 on new pairs",
            "better": "higher",
            "margin": margin,
            "ours": Figure(ours, "scores.ir5.method"),
            "control": Figure(control, "scores.ir5.method"),
            "control_arm": what,
            "paper": _SECTION,
            "full_scale": _FULL_SCALE,
            **rest,
        }
    )


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
)  # fmt: skip
