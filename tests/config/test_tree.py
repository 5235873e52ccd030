# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml

from recipes_lib.config import (
    DataConfig,
    EvalConfig,
    OptimConfig,
    SyncConfig,
    TrainConfig,
    from_dict,
    override,
    to_dict,
    to_yaml,
)
from recipes_lib.errors import ConfigError, Faults

GROUPS = (DataConfig, OptimConfig, SyncConfig, TrainConfig, EvalConfig)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def lines(group) -> list[str]:
    faults = Faults()
    group.check(faults)
    return faults.lines


def test_a_config_comes_back_from_its_yaml_field_by_field():
    config = Config(
        data=DataConfig(name="npz", root=Path("a/b.npz")),
        train=TrainConfig(epochs=None, steps=5, threads=1),
        eval=EvalConfig(probes=("knn",)),
    )
    values = yaml.safe_load(to_yaml("msn", config))
    assert values.pop("recipe") == "msn"
    assert from_dict(Config, values) == config


def test_the_yaml_names_the_recipe_first_and_keeps_the_order_of_groups():
    keys = [line.split(":")[0] for line in to_yaml("msn", Config()).splitlines() if not line.startswith((" ", "-"))]
    assert keys == ["recipe", "data", "optim", "sync", "train", "eval"]


def test_plain_values_hold_neither_tuples_nor_paths():
    values = to_dict(Config(data=DataConfig(root=Path("x"))))
    assert values["data"]["root"] == "x"
    assert values["eval"]["probes"] == ["knn", "linear", "lowshot"]


def test_override_replaces_dotted_fields_and_nothing_else():
    changed = override(Config(), {"train.steps": 7, "optim.lr": 0.5, "eval.probes": ["knn"], "data.root": "d"})
    assert changed == Config(
        data=DataConfig(root=Path("d")),
        optim=OptimConfig(lr=0.5),
        train=TrainConfig(steps=7),
        eval=EvalConfig(probes=("knn",)),
    )


def test_override_takes_a_whole_number_for_a_float():
    assert override(Config(), {"optim.lr": 1}).optim.lr == 1


@pytest.mark.parametrize(
    ("dotted", "guess"), [("optim.lrr", "optim.lr"), ("optimm.lr", "optim.lr"), ("train.step", "train.steps")]
)
def test_override_names_the_nearest_field(dotted, guess):
    with pytest.raises(ConfigError, match=f"There is no field {dotted}. Did you mean '{guess}'"):
        override(Config(), {dotted: 1})


def test_override_refuses_a_value_of_another_type_naming_the_field():
    with pytest.raises(ConfigError, match=r"train\.steps"):
        override(Config(), {"train.steps": "many"})


def test_a_choice_that_does_not_exist_is_refused_when_read_back():
    with pytest.raises(ConfigError, match=r"data\.name"):
        override(Config(), {"data.name": "cifar11"})


def test_an_unknown_field_in_a_file_is_refused():
    values = to_dict(Config())
    values["train"]["stepz"] = 3
    with pytest.raises(ConfigError, match="stepz"):
        from_dict(Config, values)


@pytest.mark.parametrize("kind", GROUPS[1:], ids=lambda kind: kind.__name__)
def test_the_full_scale_defaults_are_allowed(kind):
    assert lines(kind()) == []


def test_data_from_disk_needs_a_root_and_says_which_flag():
    assert lines(DataConfig(name="npz")) == [
        "data.root is missing: data.name npz is read from disk. Add --data.root FILE.npz."
    ]
    assert "FOLDER" in lines(DataConfig(name="imagenet"))[0]


def test_data_that_is_drawn_refuses_a_root():
    assert "has no use here" in lines(DataConfig(name="digits", root=Path("x")))[0]


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (DataConfig(name="digits", image_size=4), "data.image_size"),
        (DataConfig(name="digits", train_size=0), "data.train_size"),
        (DataConfig(name="digits", test_size=0), "data.test_size"),
        (DataConfig(name="digits", holdout=1.0), "data.holdout"),
        (DataConfig(name="digits", workers=-1), "data.workers"),
        (DataConfig(name="digits", workers=1_000_000), "data.workers"),
        (TrainConfig(threads=1_000_000), "train.threads"),
        (OptimConfig(lr=0.0, lr_start=0.0, lr_final=0.0), "optim.lr"),
        (OptimConfig(lr_start=1.0), "optim.lr_start"),
        (OptimConfig(lr_final=1.0), "optim.lr_final"),
        (OptimConfig(lr_drops=(30.0, 30.0)), "optim.lr_drops"),
        (OptimConfig(lr_drops=(0.0,)), "optim.lr_drops"),
        (OptimConfig(warmup_epochs=-1.0), "optim.warmup_epochs"),
        (OptimConfig(weight_decay=-1.0), "optim.weight_decay"),
        (OptimConfig(weight_decay_final=-1.0), "optim.weight_decay_final"),
        (OptimConfig(stretch=0.5), "optim.stretch"),
        (OptimConfig(first_count=2), "optim.first_count"),
        (OptimConfig(lr_in_momentum=True), "optim.lr_in_momentum"),
        (OptimConfig(nesterov=False), "optim.nesterov"),
        (OptimConfig(clip=0.0), "optim.clip"),
        (TrainConfig(epochs=0.0), "train.epochs"),
        (TrainConfig(epochs=None), "train.epochs"),
        (TrainConfig(epochs=float("inf")), "train.epochs"),
        (TrainConfig(steps=0), "train.steps"),
        (TrainConfig(batch_size=1), "train.batch_size"),
        (TrainConfig(batch_size=10, accumulate=3), "train.accumulate"),
        (TrainConfig(accumulate=0), "train.accumulate"),
        (SyncConfig(name="local_sgd", period=0), "sync.period"),
        (SyncConfig(name="local_sgd", start=3), "sync.start"),
        (SyncConfig(name="post_local_sgd", start=-1), "sync.start"),
        (SyncConfig(name="slowmo", momentum=1.0), "sync.momentum"),
        (SyncConfig(name="slowmo", lr=0.0), "sync.lr"),
        (TrainConfig(batch_size=4, accumulate=4), "train.accumulate"),
        (TrainConfig(threads=0), "train.threads"),
        (TrainConfig(seed=-1), "train.seed"),
        (TrainConfig(seed=2**63), "train.seed"),
        (TrainConfig(checkpoint_every=0), "train.checkpoint_every"),
        (TrainConfig(keep_checkpoints=0), "train.keep_checkpoints"),
        (EvalConfig(neighbours=0), "eval.neighbours"),
        (EvalConfig(neighbour_temperature=0.0), "eval.neighbour_temperature"),
        (EvalConfig(labels_per_class=0), "eval.labels_per_class"),
        (EvalConfig(lowshot_splits=0), "eval.lowshot_splits"),
        (EvalConfig(lowshot_penalty=0.0), "eval.lowshot_penalty"),
        (EvalConfig(finetune_epochs=0.0), "eval.finetune_epochs"),
        (EvalConfig(finetune_lr=0.0), "eval.finetune_lr"),
        (EvalConfig(finetune_batch_size=1), "eval.finetune_batch_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_out_of_range_is_one_line_with_field_value_and_range(group, name):
    found = lines(group)
    assert len(found) == 1
    assert found[0].startswith(f"{name} = {getattr(group, name.split('.')[1])} is not allowed: use a ")


def test_nan_is_out_of_every_range():
    assert len(lines(OptimConfig(lr=float("nan"), lr_start=0.0, lr_final=0.0))) >= 1


def test_steps_win_over_epochs_which_count_whole_steps():
    assert replace(TrainConfig(), steps=9).total_steps(100) == 9
    assert TrainConfig(epochs=1.5).total_steps(101) == 152
    assert TrainConfig(epochs=0.001).total_steps(10) == 1


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_groups_are_frozen(kind):
    assert is_dataclass(kind)
    with pytest.raises(AttributeError):
        setattr(kind(), fields(kind)[0].name, None)
