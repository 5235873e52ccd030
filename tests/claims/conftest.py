# SPDX-License-Identifier: Apache-2.0
"""A recipe that trains nothing, and a claims file about it: their run folders are real, their figures arithmetic."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes_lib import claims, recipes
from recipes_lib.claim import Claim, Figure
from recipes_lib.config import DataConfig, EvalConfig, OptimConfig, TrainConfig, to_yaml
from recipes_lib.data import embedded
from recipes_lib.training import checkpoint


@dataclass(frozen=True, kw_only=True)
class Config:
    data: DataConfig = field(default_factory=lambda: DataConfig(name="digits"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    eval: EvalConfig = field(default_factory=EvalConfig)

    def validate(self) -> None:
        """Everything is allowed."""


def run(config: Config, out: Path) -> SimpleNamespace:
    """A run folder whose losses and score follow from learning rate, seed and steps."""
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(to_yaml("fake", config))
    losses = [4 - 10 * config.optim.lr * step - config.train.seed / 100 for step in range(config.train.steps)]
    (out / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": x}) + "\n" for i, x in enumerate(losses)))
    scores = {"knn": {"method": 0.5 + 10 * config.optim.lr + config.train.seed / 100}}
    report = {"scores": scores, "seconds": 2.0, "steps": config.train.steps, "versions": {"torch": "0"}}
    (out / "report.json").write_text(json.dumps(report))
    weights = {"a": torch.linspace(-1, 1, 5), "count": torch.tensor(3)}
    checkpoint.write_weights(out / "model.safetensors", weights)
    (out / "state.json").write_text(json.dumps({"status": "done", "step": config.train.steps}))
    return SimpleNamespace(folder=out, report=report)


CLAIM = Claim(
    id="fake.lr",
    statement="A larger learning rate scores higher.",
    metric="accuracy",
    better="higher",
    margin=0.01,
    ours=Figure("full", "scores.knn.method"),
    control=Figure("slow", "scores.knn.method"),
    control_arm="a small learning rate",
    paper={"value": None, "where": "nowhere"},
    full_scale="recipes run fake",
    control_tuning="nothing was searched for either",
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The fake recipe and its claims stand in for every name; ``data`` of a checkout lies in ``tmp_path``."""
    recipe = SimpleNamespace(config=Config, presets={"toy": Config(), "simmer": Config()}, run=run)
    facts = SimpleNamespace(
        PRESET="toy",
        SEEDS=(0, 1, 2),
        BASE={"train.steps": 20},
        ARMS={"full": {"optim.lr": 0.01}, "slow": {"optim.lr": 0.002}},
        MEASUREMENTS={"cost": lambda seed: {"cost": {"whole": 1.0 + seed}}},
        CLAIMS=(CLAIM,),
    )
    monkeypatch.setattr(recipes, "named", lambda name: recipe)
    monkeypatch.setattr(claims, "module", lambda name: facts)
    checkout = tmp_path / "checkout"
    (checkout / "data").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(embedded, "path", lambda name: checkout / "data" / name)
    return SimpleNamespace(recipe=recipe, facts=facts, data=checkout / "data", checkout=checkout)
