# SPDX-License-Identifier: Apache-2.0
"""Runs the ``recipes`` command for ``python -m recipes_lib``, and so for ``torchrun -m recipes_lib``."""

import sys

from recipes_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
