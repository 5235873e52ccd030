# SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check. Each test lists every offender; sizes are warnings (``tests/house.py``)."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _house():
    """``tests/house.py``, by its path: the tests are no package."""
    spec = importlib.util.spec_from_file_location("house", Path(__file__).with_name("house.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = _house()
LIBRARY = house.files("recipes_lib")
NO_TORCH = ["recipes_lib", "recipes_lib.claim", "recipes_lib.recipes", "recipes_lib.cli"] + [
    f"recipes_lib.recipes.{path.parent.name}.claims" for path in (ROOT / "recipes_lib" / "recipes").glob("*/claims.py")
]

LOOKED_UP_BY_NAME = {
    # name of the attribute: the one file that may look it up, and why it cannot know that it is there
    "encoding": "terminal.py",  # standard error may be replaced by a stream that has none
    "errno": "training/checkpoint.py",  # the writer of weights raises an error of its own class, with or without it
    "all_gather_single": "distributed/fsdp.py",  # the name that newer versions of torch give to all_gather_into_tensor
    "reduce_scatter_single": "distributed/fsdp.py",  # the same, of reduce_scatter_tensor
    "FSDPModule": "distributed/fsdp.py",  # absent in versions of torch that cannot shard: refused in a line
    "set_custom_all_gather": "distributed/fsdp.py",  # the same
    "full_tensor": "distributed/fsdp.py",  # only a DTensor has it, and its class takes long to import
    "layers": "lowbit/convert.py",  # torch's encoder has them, torch's encoder layer has not
}

TESTED_ELSEWHERE = {
    # module without a test file of the same place: where its behaviour is tested
    "claims/reports": "claims/test_verify.py",
    "cli/display": "cli/test_main.py",
    "cli/flags": "cli/test_main.py",
    "cli/plan_table": "cli/test_plan.py",
    "cli/verbs": "cli/test_main.py",
    "config/data": "config/test_tree.py",
    "config/evaluation": "evaluation/test_probes.py",
    "config/training": "training/test_folder.py",
    "data/cache": "data/pantry/test_dataset.py",
    "data/identity": "pretraining/test_run_data.py",
    "data/pantry/ground": "data/pantry/test_render.py",
    "data/pantry/junk": "data/pantry/test_alt_text.py",
    "data/pantry/looks": "data/pantry/test_render.py",
    "data/pantry/marching": "data/pantry/test_shapes.py",
    "data/pantry/painting": "data/pantry/test_shapes.py",
    "data/pantry/sheet": "data/pantry/test_render.py",
    "data/pantry/surfaces": "data/pantry/test_render.py",
    "data/pantry/things": "data/pantry/test_render.py",
    "data/pantry/words": "data/pantry/test_captions.py",
    "factors/imagenet_x_files": "factors/test_annotations.py",
    "factors/imagenet_x_folder": "factors/test_annotations.py",
    "factors/report_json": "factors/test_report.py",
    "launch/hardware": "launch/test_plan.py",
    "launch/fake_tensors": "launch/test_trace.py",
    "lowbit/autograd": "lowbit/test_linear.py",
    "models/blip": "peers/test_hf_blip.py",
    "pretraining/class_scores": "recipes/local_sgd/test_recipe.py",
    "pretraining/few_labels": "recipes/paws/test_recipe.py",
    "pretraining/recipe": "contract/test_recipes.py",
    "pretraining/runs": "pretraining/test_run_life.py",
    "pretraining/scoring": "pretraining/test_engine.py",
    "recipes/barack/finding": "recipes/barack/test_recipe.py",
    "recipes/barack/settings": "recipes/barack/test_recipe.py",
    "recipes/imagenet_x/drawn": "recipes/imagenet_x/test_recipe.py",
    "recipes/imagenet_x/networks": "recipes/imagenet_x/test_score.py",
    "recipes/imagenet_x/pictures": "recipes/imagenet_x/test_report.py",
    "recipes/imagenet_x/tables": "recipes/imagenet_x/test_report.py",
    "recipes/natural_variation/measure": "recipes/natural_variation/test_recipe.py",
    "recipes/natural_variation/report": "recipes/natural_variation/test_recipe.py",
    "recipes/natural_variation/summary": "recipes/natural_variation/test_recipe.py",
    "recipes/lie_operator/settings": "recipes/lie_operator/test_recipe.py",
    "recipes/paws/study": "claims/test_verify.py",
    "recipes/sieve/real": "claims/test_verify.py",
    "training/loop": "training/test_resume.py",
    "training/rank_checkpoints": "training/test_fsdp_runs.py",
    "views/corruptions/rounding": "views/corruptions/test_by_name.py",
    "views/look": "views/test_multicrop.py",
}

OWN_SUBJECT = {
    # test file that mirrors no module: rooms of the tests whose subject is not a module, then single files
    "book/",  # notebooks and built pages
    "benchmarks/",
    "contract/",  # what holds of every recipe
    "peers/",  # parity with other libraries
    "test_house.py",
    "test_packaging.py",
    "test_readme.py",
    "claims/test_chapters.py",  # what holds of every chapter's claims
    "claims/test_commands.py",
    "claims/test_imagenet_x.py",
    "claims/test_msn_paws_pmsn.py",
    "cli/test_main.py",  # of cli/__init__.py, as are the next two
    "cli/test_plan.py",
    "cli/test_sweep.py",
    "distributed/test_sync_rounds.py",
    "launch/test_paper_runs.py",
    "launch/test_two_ranks.py",
    "lowbit/test_drop_in.py",
    "objectives/test_prototypes_input.py",
    "objectives/test_snn_input.py",
    "pretraining/test_run_data.py",
    "pretraining/test_run_life.py",
    "recipes/imagenet_x/test_ranks.py",
    "recipes/sieve/test_pair_scores_shards.py",
    "recipes/sieve/test_stopped.py",
    "training/test_folder_faults.py",
    "training/test_fsdp_runs.py",
    "training/test_local_runs.py",
    "training/test_resume.py",
    "training/test_two_processes.py",
}


def found(pattern: str, paths: list[Path] = LIBRARY) -> list[str]:
    """``file: text`` of every match of the expression in the files."""
    return [f"{house.short(path)}: {match}" for path in paths for match in re.findall(pattern, house.text(path), re.M)]


def in_trees(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of these kinds in the library, with ``file:line``."""
    for path in LIBRARY:
        for node in house.nodes(path):
            if isinstance(node, kinds):
                yield f"{house.short(path)}:{node.lineno}", node


def test_imports_only_go_down_the_house_and_recipes_import_the_siblings_that_are_listed():
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_what_answers_at_once_imports_no_torch():
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(name + ' imports torch')"
    )
    ended = subprocess.run([sys.executable, "-c", program, *NO_TORCH], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_importing_the_library_takes_no_time():
    program = "import time; start = time.process_time(); import recipes_lib; print(time.process_time() - start)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 0.1


def test_every_file_bears_its_licence():
    ours = [
        path for path in house.files(*house.PLACES) if path.parent.name != "notebooks"
    ]  # jupytext's come first there
    lacking = [house.short(p) for p in ours if not house.text(p).startswith("# SPDX-License-Identifier: Apache-2.0\n")]
    assert lacking == []


def undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """The public classes, functions and methods without a docstring."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{prefix}{node.name}.")


def test_modules_and_public_names_say_what_they_are():
    lacking = []
    for path in LIBRARY:
        tree = ast.parse(house.text(path))
        if tree.body and not ast.get_docstring(tree):
            lacking.append(house.short(path))
        lacking += undocumented(tree.body, f"{house.short(path)}: ")
    assert lacking == []


def test_the_library_prints_nothing():
    assert [where for where, call in in_trees(ast.Call) if ast.unparse(call.func) == "print"] == []


def test_ranks_meet_in_distributed_only():
    others = [path for path in LIBRARY if path.parent.name != "distributed"]
    calls = r"\b(?:dist|distributed)\.(?:all_reduce|all_gather|reduce|broadcast|gather|scatter|barrier)\w*\("
    imports = r"^\s*(?:import torch\.distributed|from torch\.distributed import|from torch import distributed)"
    assert found(f"{calls}|{imports}", others) == []


def test_nothing_draws_from_a_global_generator_of_numpy_or_python():
    others = [path for path in LIBRARY if path.name != "randomness.py"]  # seeded_libraries lends it to other libraries
    assert found(r"\bnp\.random\.(?!Generator|default_rng)\w+|^import random$|^from random import", others) == []


def test_nothing_is_unpickled_from_a_file():
    assert found(r"^\s*import pickle|^\s*from pickle|allow_pickle=True|weights_only=False") == []
    loads = [(where, call) for where, call in in_trees(ast.Call) if ast.unparse(call.func) == "torch.load"]
    assert [where for where, call in loads if "weights_only=True" not in map(ast.unparse, call.keywords)] == []


def test_a_users_mistake_is_no_assertion():
    assert [where for where, _ in in_trees(ast.Assert)] == []


def test_no_exception_is_swallowed_unseen():
    assert [where for where, handler in in_trees(ast.ExceptHandler) if handler.type is None] == []


def test_no_file_has_a_name_that_says_nothing_or_lies_too_deep():
    nothing = {"utils", "util", "common", "misc", "base", "helpers"}
    assert [house.short(path) for path in LIBRARY if path.stem in nothing] == []
    assert [house.short(path) for path in LIBRARY if len(path.relative_to(ROOT / "recipes_lib").parts) > 3] == []


def test_no_attribute_is_looked_for_by_its_name():
    """What a recipe, a config or a method may have is written in its class: ``hasattr`` would make a typing error pass."""
    looked_up = set()
    for where, call in in_trees(ast.Call):
        if ast.unparse(call.func) in ("getattr", "hasattr") and isinstance(call.args[1], ast.Constant):
            looked_up.add((call.args[1].value, where.split(":")[0].removeprefix("recipes_lib/")))
    listed = {(name, file) for name, places in LOOKED_UP_BY_NAME.items() for file in places.split()}
    assert sorted(looked_up - listed) == [], "name it in its class instead"
    assert sorted(listed - looked_up) == [], "no longer looked up: strike it from LOOKED_UP_BY_NAME"


def mirrored(path: Path) -> str:
    """``data/load`` of ``tests/data/test_load.py``."""
    inside = path.relative_to(ROOT / "tests")
    return (inside.parent / inside.stem.removeprefix("test_")).as_posix()


def test_tests_mirror_the_library():
    """A chapter's claims are the exception: ``tests/claims`` holds all chapters' to one another."""
    modules = {path.relative_to(ROOT / "recipes_lib").with_suffix("").as_posix() for path in LIBRARY}
    modules = {name for name in modules if not name.endswith(("__init__", "__main__", "/claims"))}
    tests = {mirrored(path): path for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(modules - set(tests) - set(TESTED_ELSEWHERE)) == [], "has no test file of the same place"
    assert sorted(set(TESTED_ELSEWHERE) & set(tests) | set(TESTED_ELSEWHERE) - modules) == [], (
        "strike it from the table"
    )
    others = {path.relative_to(ROOT / "tests").as_posix() for name, path in tests.items() if name not in modules}
    assert sorted(name for name in others if not name.startswith(tuple(OWN_SUBJECT))) == [], "mirrors no module"
    assert sorted(name for name in OWN_SUBJECT if not any(other.startswith(name) for other in others)) == []
    assert sorted(place for place in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / place).exists()) == []


@pytest.mark.parametrize("lines", [401, 400])
def test_a_long_file_is_a_warning(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    (tmp_path / "recipes_lib").mkdir()
    (tmp_path / "recipes_lib" / "long.py").write_text("a = 1\n" * lines)
    assert list(house.oversized()) == (
        ["recipes_lib/long.py: 401 lines; most files stay within 400"] if lines > 400 else []
    )
