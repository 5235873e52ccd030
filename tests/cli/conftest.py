# SPDX-License-Identifier: Apache-2.0
"""A recipe that trains nothing: its config is real, its run records what it was given."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes_lib import recipes
from recipes_lib.config import DataConfig, EvalConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.errors import Faults


@dataclass(frozen=True, kw_only=True)
class Config:
    data: DataConfig = field(default_factory=lambda: DataConfig(name="digits"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10, seed=4))
    eval: EvalConfig = field(default_factory=EvalConfig)

    def validate(self) -> None:
        faults = Faults()
        for group in (self.data, self.optim, self.train, self.eval):
            group.check(faults)
        faults.raise_any()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path | None]]:
    """What the fake recipe's ``run`` was called with; ``recipes.named`` gives that recipe in msn's place."""
    calls = []

    def run(config: Config, out: Path | None) -> SimpleNamespace:
        config.validate()
        calls.append((config, out))
        scores = {"knn": {"method": 0.5, "random_init": 0.25, "raw_pixels": 0.375}}
        return SimpleNamespace(folder=out or Path("runs/msn-x"), report={"scores": scores})

    fake = SimpleNamespace(config=Config, presets={"toy": Config()}, run=run)
    monkeypatch.setattr(recipes, "named", lambda name: fake)
    return calls
