# SPDX-License-Identifier: Apache-2.0
import pytest

from recipes_lib.launch import costs, trace


@pytest.fixture
def no_trace(monkeypatch) -> None:
    """Where only what follows from the config is looked at."""
    monkeypatch.setattr(trace, "measure", lambda *_, **__: trace.Trace(flops=10**12, activations=10**9, inputs=10**6))
    monkeypatch.setattr(costs, "_shared", lambda *_: 0.0)
