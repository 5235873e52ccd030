# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest

from recipes_lib.data.objects3d import meshes
from recipes_lib.errors import DataError

needs_pybullet = pytest.mark.skipif(meshes.missing() is not None, reason=str(meshes.missing()))


@needs_pybullet
def test_corners_are_those_of_the_file():
    found = meshes.vertices(0)
    np.testing.assert_array_equal(found[0], [-0.038857, -3.562738, -0.959044])
    assert found.shape[1] == 3


@needs_pybullet
def test_the_first_import_of_pybullet_prints_nothing():
    code = "from recipes_lib.data.objects3d import meshes\nwith meshes.simulator(): print('only this')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("only this\n", "")


def test_without_pybullet_one_line_says_what_to_install(monkeypatch):
    meshes.path.cache_clear()
    monkeypatch.setattr(meshes, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pybullet, which is not installed: pip install 'ssl-cookbook\[objects\]'"):
        meshes.path(3)
