# SPDX-License-Identifier: Apache-2.0
"""What several files look at: the folder of a run that was interrupted."""

from pathlib import Path

import pytest

from recipes_lib.config import override
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.training.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An unfinished run that nobody works at: seven of twenty steps are done."""
    path = tmp_path / "runs" / "msn"
    config = override(local_sgd.PRESETS["toy"], {"train.steps": 20, "optim.lr": 0.001})
    with RunFolder.create_or_continue(path, "msn", config) as folder:
        folder.set_state("interrupted", 7)
    return path
