# SPDX-License-Identifier: Apache-2.0
"""``python -m recipes_lib`` (and so ``torchrun -m recipes_lib``) is the ``recipes`` command."""

import sys

from recipes_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
