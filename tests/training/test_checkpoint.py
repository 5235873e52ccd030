# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import json
import os
import pickle
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from recipes_lib import durable
from recipes_lib.errors import RunError
from recipes_lib.optim.lars import LARS
from recipes_lib.optim.stable_adamw import StableAdamW
from recipes_lib.training import checkpoint

WEIGHTS = {
    "layer.weight": torch.arange(6.0).reshape(2, 3),
    "layer.steps": torch.tensor(3),
    "half": torch.ones(2).half(),
}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, {"w": torch.full((40,), float(step))}, {"w/m": torch.ones(4)}, {"a": 1}, keep)


def no_warning(line: str) -> None:
    pytest.fail(f"unexpected warning: {line}")


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    facts = {"lr": 0.1 + 0.2, "none": None, "list": [1, "two"]}
    path = checkpoint.save(tmp_path, 120, WEIGHTS, {}, facts, 2)
    found = checkpoint.latest(tmp_path, no_warning)
    assert (path.name, found.path, found.step, found.facts, found.optimizer) == ("step-000120", path, 120, facts, {})
    assert found.model.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found.model[name], tensor)
        assert found.model[name].dtype == tensor.dtype


def test_manifest_names_sizes_and_checksums(tmp_path):
    path = save(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    assert visible(path) == ["manifest.json", "model.safetensors", "optimizer.safetensors"]
    assert manifest["files"]["model.safetensors"]["bytes"] == (path / "model.safetensors").stat().st_size
    digest = subprocess.run(
        ["sha256sum", path / "model.safetensors"], capture_output=True, text=True, check=True
    ).stdout
    assert manifest["files"]["model.safetensors"]["sha256"] == digest.split()[0]


def test_the_newest_are_kept(tmp_path):
    for step in (10, 20, 30, 1_000_000):
        save(tmp_path, step, keep=2)
    assert visible(tmp_path) == ["step-000030", "step-1000000"]
    assert checkpoint.latest(tmp_path, no_warning).step == 1_000_000


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path, no_warning) is None
    assert checkpoint.latest(tmp_path / "absent", no_warning) is None


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def other_learning_rate(path: Path) -> None:
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))


def names_a_device(path: Path) -> None:
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"]["/dev/zero"] = {"bytes": 0, "sha256": ""}
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "sha256": digest}))


@pytest.mark.parametrize(
    ("harm", "file", "reason"),
    [
        (truncate, "model.safetensors", r"model.safetensors has \d+ bytes of \d+"),
        (flip_a_bit, "optimizer.safetensors", "optimizer.safetensors was altered"),
        (Path.unlink, "optimizer.safetensors", "optimizer.safetensors: No such file"),
        (truncate, "manifest.json", "manifest.json cannot be read"),
        (other_learning_rate, "manifest.json", "manifest.json was altered"),
        (Path.unlink, "manifest.json", "manifest.json: No such file"),
        (names_a_device, "manifest.json", "manifest.json names '/dev/zero', which is no file of this checkpoint"),
    ],
)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, harm, file, reason):
    save(tmp_path, 10)
    harm(save(tmp_path, 20) / file)
    lines = []
    assert checkpoint.latest(tmp_path, lines.append).step == 10
    assert len(lines) == 1
    assert re.search(rf"step-000020 \({reason}.* Going on from step-000010\.$", lines[0])
    harm(tmp_path / "step-000010" / file)
    with pytest.raises(RunError, match=rf"Every .* damaged: step-000020 \({reason}.*; step-000010 \({reason}"):
        checkpoint.latest(tmp_path, no_warning)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    save(tmp_path, 10)
    for step in (20, 30):
        truncate(save(tmp_path, step, keep=3) / "model.safetensors")
    save(tmp_path, 20, keep=3)
    assert visible(tmp_path) == ["step-000010", "step-000020"]  # 30 lies beyond where training now is
    assert checkpoint.latest(tmp_path, no_warning).step == 20


def test_newest_step_is_of_a_checkpoint_that_is_whole(tmp_path):
    assert checkpoint.newest_step(tmp_path) is None
    save(tmp_path, 10)
    truncate(save(tmp_path, 20) / "model.safetensors")
    assert checkpoint.newest_step(tmp_path) == 10


def test_what_is_in_the_way_of_a_checkpoint_is_removed_and_a_link_not_followed(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "mine").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-000010.partial").touch()
    (tmp_path / "checkpoints" / ".step-000020.partial").symlink_to(tmp_path / "victim")
    save(tmp_path / "checkpoints", 10)
    save(tmp_path / "checkpoints", 20)
    assert visible(tmp_path / "checkpoints") == ["step-000010", "step-000020"]
    assert (tmp_path / "victim" / "mine").exists()


def test_a_checkpoint_that_cannot_be_written_says_what_is_there_and_not_that_the_disk_is_full(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(RunError, match=r"File exists.*There is none before it: mend that, then start again"):
        save(tmp_path / "checkpoints", 10)


def test_a_manifest_that_is_nested_without_end_is_damaged(tmp_path):
    save(tmp_path, 10)
    (save(tmp_path, 20) / "manifest.json").write_text("[" * 100_000)
    lines = []
    assert checkpoint.latest(tmp_path, lines.append).step == 10
    assert "step-000020 (manifest.json cannot be read)" in lines[0]


def test_what_a_killed_process_left_is_ignored_and_swept(tmp_path):
    (tmp_path / ".step-000030.partial").mkdir()
    (tmp_path / ".step-000030.partial" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".step-000001.doomed").mkdir()
    assert checkpoint.latest(tmp_path, no_warning) is None
    save(tmp_path, 30)
    assert visible(tmp_path) == ["step-000030"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_disk_that_fills_up_leaves_the_one_before(tmp_path, monkeypatch, call):
    save(tmp_path, 10)
    calls = iter(range(1, 9))
    sync = durable.sync

    def fill_up(path: Path) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(durable, "sync", fill_up)
    with pytest.raises(
        RunError, match=r"step 20 .*No space left on device.* last good one is step-000010: free"
    ) as error:
        save(tmp_path, 20)
    assert "\n" not in str(error.value)
    assert visible(tmp_path) == ["step-000010"]


def test_a_really_full_disk_leaves_the_one_before(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    try:
        save(disk / "checkpoints", 10)
        big = {"w": torch.ones(30_000)}
        with pytest.raises(RunError, match=r"No space left on device.* last good one is step-000010"):
            checkpoint.save(disk / "checkpoints", 20, big, {}, {}, 2)
        assert visible(disk / "checkpoints") == ["step-000010"]
        assert checkpoint.latest(disk / "checkpoints", no_warning).step == 10
        with pytest.raises(RunError, match=r"weights could not be written to .*No space left"):
            checkpoint.write_weights(disk / "model.safetensors", big)
        assert visible(disk) == ["checkpoints"]
    finally:
        subprocess.run(["umount", disk], check=True)


def train(optimizer: torch.optim.Optimizer, net: nn.Module, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def sgd(groups: list) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def adamw(groups: list) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95))


def fused_adamw(groups: list) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


def lars(groups: list) -> torch.optim.Optimizer:
    return LARS(groups, lr=0.5)


@pytest.mark.parametrize("make", [sgd, adamw, fused_adamw, lars, partial(StableAdamW, lr=0.01)])
def test_training_goes_on_bit_for_bit_through_a_checkpoint(tmp_path, make):
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
        nn.init.constant_(net[0].weight, 0.3)
        weights = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim == 1]
        return net, make(
            [{"params": weights, "weight_decay": 0.1, "decays": True}, {"params": others, "decays": False}]
        )

    net, optimizer = fresh()
    train(optimizer, net, range(3))
    optimizer.param_groups[0]["lr"] = 0.3  # a schedule was at work
    tensors, facts = checkpoint.flatten_optimizer(optimizer, dict(net.named_parameters()))
    checkpoint.save(tmp_path, 3, net.state_dict(), tensors, facts, 2)
    train(optimizer, net, range(3, 6))

    again, resumed = fresh()
    found = checkpoint.latest(tmp_path, no_warning)
    again.load_state_dict(found.model)
    checkpoint.restore_optimizer(resumed, dict(again.named_parameters()), found)
    assert resumed.param_groups[0]["decays"] is True
    assert resumed.param_groups[0].get("betas") == optimizer.param_groups[0].get("betas")
    train(resumed, again, range(3, 6))
    for ours, theirs in zip(again.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def saved(optimizer: torch.optim.Optimizer, named: dict[str, Tensor]) -> checkpoint.Checkpoint:
    tensors, facts = checkpoint.flatten_optimizer(optimizer, named)
    return checkpoint.Checkpoint(1, Path("step-000001"), {}, tensors, json.loads(json.dumps(facts)))


def test_state_that_is_no_tensor_comes_back():
    weight = nn.Parameter(torch.ones(2))
    optimizer, other = sgd([weight]), sgd([weight])
    optimizer.state[weight] = {"momentum_buffer": torch.ones(2), "scale": None, "count": 3}
    checkpoint.restore_optimizer(other, {"w": weight}, saved(optimizer, {"w": weight}))
    assert other.state[weight]["scale"] is None
    assert other.state[weight]["count"] == 3


def test_optimiser_state_of_other_parameters_is_refused():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    state = saved(sgd([a, b]), {"a": a, "b": b})
    with pytest.raises(RunError, match="step-000001 belongs to other parameters: only one side has b, c"):
        checkpoint.restore_optimizer(sgd([a, b]), {"a": a, "c": b}, state)
    with pytest.raises(RunError, match="grouped in another way"):
        checkpoint.restore_optimizer(sgd([{"params": [a]}, {"params": [b]}]), {"a": a, "b": b}, state)


def test_weights_round_trip_and_others_may_read_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write_weights(path, WEIGHTS | {"transposed": WEIGHTS["layer.weight"].T})
    found = checkpoint.read_weights(path)
    assert torch.equal(found["transposed"], WEIGHTS["layer.weight"].T)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, name, zipped):
    monkeypatch.chdir(tmp_path)
    if zipped:
        torch.save(Bomb(), name)
    else:
        Path(name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError, match=rf"{name} is a pickle, which can run any code") as error:
        checkpoint.read_weights(Path(name))
    assert "\n" not in str(error.value)
    assert visible(tmp_path) == [name]


def test_a_truncated_weights_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write_weights(path, WEIGHTS)
    truncate(path)
    with pytest.raises(RunError, match=r"model.safetensors is not a whole safetensors file .* Copy it again"):
        checkpoint.read_weights(path)
    with pytest.raises(RunError, match="There is no weights file"):
        checkpoint.read_weights(tmp_path / "absent.safetensors")


@given(st.integers(min_value=1, max_value=2000))
def test_every_header_length_reads_as_safetensors(tmp_path_factory, length):
    """A header of 640 bytes starts like a pickle (80 02)."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    tensors: dict[str, Tensor] = {"n" * length: torch.ones(1)}
    checkpoint.write_weights(path, tensors)
    assert checkpoint.read_weights(path).keys() == tensors.keys()
