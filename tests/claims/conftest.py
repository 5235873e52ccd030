# SPDX-License-Identifier: Apache-2.0
"""A recipe that trains nothing, and a claims file about it: their run folders are real, their metrics arithmetic."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.claim import Arm, Chapter, Measurement, higher
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


CLAIM = higher(
    "fake.lr",
    "A larger learning rate scores higher.",
    ours=("full", "scores.knn.method"),
    control=("slow", "scores.knn.method"),
    by=0.01,
    metric="accuracy",
    control_arm="a small learning rate",
    paper={"value": None, "where": "nowhere"},
    full_scale="recipes run fake",
    control_tuning="nothing was searched for either",
)


def cost(seed: int) -> dict[str, dict[str, float]]:
    """A measurement."""
    return {"cost": {"whole": 1.0 + seed}}


def arm(lr: float, recipe: str = "fake") -> Arm:
    """A run of 20 steps."""
    return Arm(recipe=recipe, changes={"train.steps": 20, "optim.lr": lr})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The fake recipe and its claims stand in for every name; ``data`` of a checkout lies in ``tmp_path``."""
    recipe = SimpleNamespace(config=Config, presets={"toy": Config(), "simmer": Config()}, run=run)
    chapter = Chapter(
        name="fake",
        arms={"full": arm(0.01), "slow": arm(0.002)},
        measurements={"cost": Measurement(f"{__name__}:cost")},
        claims=(CLAIM,),
        shown=("cost",),
        headline=("fake.lr",),
    )
    place = SimpleNamespace(recipe=recipe, chapter=chapter, change=lambda **changes: change(place, changes))
    monkeypatch.setattr(recipes, "named", lambda name: recipe)
    monkeypatch.setattr(recipes, "chapter", lambda name: place.chapter)
    checkout = tmp_path / "checkout"
    (checkout / "data").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(embedded, "path", lambda name: checkout / "data" / name)
    place.data, place.checkout = checkout / "data", checkout
    return place


def change(place: SimpleNamespace, changes: dict) -> None:
    """Gives the fake chapter other arms, measurements or claims."""
    place.chapter = dataclasses.replace(place.chapter, **changes)
