# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.launch import plan, trace


def preset(name: str, which: str, **changes: Any) -> Any:
    return override(
        recipes.named(name).presets[which], {key.replace("__", "."): value for key, value in changes.items()}
    )


@pytest.mark.parametrize(
    ("kept", "changes", "line"),
    [
        (
            150e9,
            {},
            "A GPU needs 153.0 GB, and H100 SXM has 80.0 GB. Ways out: --gpus or --nodes for 16 GPUs; --train.accumulate 2 (its "
            "loss and batch norms see a micro-batch).",
        ),
        (
            78e9,
            {},
            "--train.accumulate 2 (its loss and batch norms see a micro-batch); --sync.name fsdp (shares of 3.0 GB).",
        ),
        (78e9, {"train__accumulate": 4}, "--gpus or --nodes for 16 GPUs; --train.accumulate 8 (its loss"),
        (78e9, {"optim__name": "stable_adamw"}, "--sync.name fsdp --optim.name adamw (shares of 3.0 GB)."),
        (78e9, {"sync__name": "fsdp"}, None),
        (1e15, {}, "Ways out: a GPU with more memory."),
    ],
)
def test_too_little_memory_is_a_warning_with_ways_out_that_fit(kept, changes, line, monkeypatch, no_trace):
    monkeypatch.setattr(trace, "measure", lambda *_, **__: trace.Trace(flops=10**12, activations=int(kept)))
    found = plan.plan("clip", preset("clip", "datacomp_large", **changes), world=8).warnings
    assert found == () if line is None else line in found[0]


def test_a_config_that_runs_on_a_cpu_is_a_warning(no_trace):
    assert plan.plan("msn", preset("msn", "toy"), world=1).warnings[0].startswith("train.device is cpu")
