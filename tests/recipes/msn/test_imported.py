# SPDX-License-Identifier: Apache-2.0
"""``recipes import``: weights that others trained become a run folder that is evaluated and exported like any other."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes_lib import cli
from recipes_lib.config import override
from recipes_lib.models import exports
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.vit import ARCHS, Shape, VisionTransformer
from recipes_lib.pretraining import runs
from recipes_lib.recipes.msn import imported
from recipes_lib.recipes.msn import recipe as msn

DATA = {"data.name": "pantry", "data.train_size": 64, "data.test_size": 40}
FLAGS = [part for name, value in DATA.items() for part in (f"--{name}", str(value))] + ["--train.device", "cpu"]
SHORT = {"train.batch_size": 32, "train.steps": 2, "eval.probes": [], "eval.baselines": "none", "eval.cooked": False}


def import_(file: Path, layout: str, out: Path, *more: str) -> int:
    return cli.main(["import", str(file), "--format", layout, "--out", str(out), *FLAGS, *more])


def fault(capsys) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


@pytest.fixture(scope="module", params=["timm", "hf"])
def trained(request, tmp_path_factory) -> tuple[str, Path]:
    """A run of the toy, where the layout of Hugging Face has a place for its network, and its export."""
    layout = request.param
    stem = {"model.stem": "patch"} if layout == "hf" else {}
    place = tmp_path_factory.mktemp("trained")
    msn.RECIPE.run(override(msn.PRESETS["toy"], DATA | SHORT | stem), place / "run")
    runs.export(msn.RECIPE, place / "run", layout, place / "export")
    return layout, place


def test_a_run_that_was_exported_and_imported_has_the_same_scores_and_the_same_export(trained, tmp_path, capsys):
    layout, place = trained
    assert import_(place / "export", layout, tmp_path / "run") == 0
    said = capsys.readouterr()
    assert said.out == f"run folder: {tmp_path / 'run'}\n"
    assert "export has no projection head and no prototypes: initialised as at the start of a run." in said.err
    scores = [runs.evaluate(msn.RECIPE, run, ["knn", "lowshot"])["scores"] for run in (place / "run", tmp_path / "run")]
    assert scores[0] == scores[1]
    runs.export(msn.RECIPE, tmp_path / "run", layout, tmp_path / "again")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", place / "export"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_imported_run_is_finished_and_says_where_it_comes_from(trained, tmp_path, capsys):
    layout, place = trained
    import_(place / "export", layout, tmp_path / "run")
    state, report = (json.loads((tmp_path / "run" / name).read_text()) for name in ("state.json", "report.json"))
    assert state == {"status": "done", "step": 0}
    assert (
        report["imported"].pop("sha256")
        == hashlib.sha256((place / "export" / "model.safetensors").read_bytes()).hexdigest()
    )
    assert report["imported"] == {
        "source": str(place / "export"),
        "format": layout,
        "initialised": ["projection head", "prototypes"],
    }
    capsys.readouterr()
    assert cli.main(["resume", str(tmp_path / "run")]) == 2
    assert "is finished" in fault(capsys)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert import_(place / "export", layout, tmp_path / "run") == 2
    assert f"{tmp_path / 'run'} exists and is not overwritten" in fault(capsys)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def official(file: Path, **changes) -> msn.MSN:
    """An official checkpoint, as its code writes one, of a whole small MSN."""
    config = override(
        msn.PRESETS["toy"],
        {"model.stem": "patch", "model.hidden": 24, "model.dim": 12, "model.prototypes": 7, **DATA, **changes},
    )
    torch.manual_seed(3)
    method = msn.MSN(config, steps=1)
    target = {f"module.{key}": value for key, value in method.target.backbone.state_dict().items()}
    target |= {f"module.fc.{key}": value for key, value in method.target.head.state_dict().items()}
    torch.save({"target_encoder": target, "prototypes": method.prototypes.weight.detach(), "epoch": 800}, file)
    return method


def test_an_official_checkpoint_keeps_its_head_and_its_prototypes(tmp_path, capsys):
    theirs = official(tmp_path / "msn.pth.tar")
    assert import_(tmp_path / "msn.pth.tar", "msn", tmp_path / "run") == 0
    assert "warning" not in capsys.readouterr().err
    config, ours = runs.engine.reopen(msn.RECIPE, tmp_path / "run")
    assert (config.model.hidden, config.model.dim, config.model.prototypes) == (24, 12, 7)
    assert (config.model.arch, config.model.patch_size, config.views.image_size) == ("vit_pico", 8, 32)
    images = torch.randn(4, 3, 32, 32)
    for encoder in (ours.target, ours.anchor):
        assert torch.equal(encoder.eval()(images), theirs.target.eval()(images))
    assert torch.equal(ours.prototypes.weight, theirs.prototypes.weight)


def test_preprocessing_comes_from_the_file_or_is_said_to_be_assumed(tmp_path, capsys):
    network = VisionTransformer(ARCHS["vit_pico"], image_size=32, patch_size=8, stem="patch")
    exports.write(network, tmp_path / "export", "timm", normalize="openai", resize="bicubic")
    import_(tmp_path / "export", "timm", tmp_path / "run")
    views = runs.engine.reopen(msn.RECIPE, tmp_path / "run")[0].views
    assert (views.normalize, views.resize) == ("openai", "bicubic")
    capsys.readouterr()
    import_(tmp_path / "export" / "model.safetensors", "timm", tmp_path / "bare", "--views.normalize", "grey")
    said = capsys.readouterr().err
    assert "does not say its normalize: views.normalize grey is taken." in said
    assert "does not say its resize: views.resize bilinear is taken." in said


@pytest.mark.parametrize("patch", [4, 7, 14, 16])
def test_the_config_of_a_network_on_any_patches_is_one_that_a_run_would_take(tmp_path, patch):
    network = VisionTransformer(ARCHS["vit_pico"], image_size=7 * 16 * 2, patch_size=patch, stem="patch")
    exports.write(network, tmp_path / "export", "timm")
    override(imported.read(tmp_path / "export", "timm").config, {"data.root": tmp_path}).validate()


# what cannot be imported


def refused(capsys, file: Path, layout: str, out: Path, *more: str) -> str:
    assert import_(file, layout, out, *more) == 2
    assert not out.exists()
    return fault(capsys)


def test_files_that_cannot_be_imported_are_refused_in_one_line_and_nothing_is_written(tmp_path, capsys):
    out = tmp_path / "run"
    official(tmp_path / "msn.pth.tar")
    assert "has the layout of msn, not of timm. Use --format msn." in refused(
        capsys, tmp_path / "msn.pth.tar", "timm", out
    )
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x04N.")
    assert "Pickles are refused" in refused(capsys, tmp_path / "pickle.pth", "msn", out)
    assert "nowhere does not exist" in refused(capsys, tmp_path / "nowhere", "hf", out)
    exports.write(ResNet("resnet18", stem="cifar"), tmp_path / "resnet", "timm")
    assert "holds a ResNet; recipes import makes runs of Vision Transformers alone" in refused(
        capsys, tmp_path / "resnet", "timm", out
    )
    network = VisionTransformer(Shape(48, 2, 3), image_size=32, patch_size=8, stem="patch")
    exports.write(network, tmp_path / "other", "timm")
    assert "width, depth and heads 48, 2, 3, for which there is no model.arch" in refused(
        capsys, tmp_path / "other", "timm", out
    )


def test_a_mistake_in_the_config_is_refused_in_one_line_and_nothing_is_written(tmp_path, capsys):
    official(tmp_path / "msn.pth.tar")
    file, out = tmp_path / "msn.pth.tar", tmp_path / "run"
    assert "There is no field data.nme. Did you mean 'data.name'?" in refused(
        capsys, file, "msn", out, "--data.nme", "x"
    )
    assert "data.root is missing" in refused(capsys, file, "msn", out, "--data.name", "imagenet")
    assert "the weights in" in refused(capsys, file, "msn", out, "--model.arch", "vit_nano")
    assert cli.main(["import", str(file)]) == 2
    assert "the following arguments are required: --format" in fault(capsys)
