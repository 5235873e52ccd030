# SPDX-License-Identifier: Apache-2.0
"""What several files do to a run: something that happens after one of its steps."""

from collections.abc import Callable

import pytest

from recipes_lib.training import log


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """``after_step(number, act)``: from now on a run calls ``act()`` when the metrics of step ``number`` are written."""
    write = log.RunLog.step

    def arrange(number: int, act: Callable[[], object]) -> None:
        def step_then_act(self: log.RunLog, step: int, metrics: dict) -> None:
            write(self, step, metrics)
            if step == number:
                act()

        monkeypatch.setattr(log.RunLog, "step", step_then_act)

    return arrange
