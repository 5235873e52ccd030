# SPDX-License-Identifier: Apache-2.0
"""The machinery of claims: run all arms and seeds (``verify``), store them, and show the verdicts. No torch here.

What is put to the test stands in each chapter's ``recipes/NAME/claims.py``; :func:`recipes_lib.recipes.chapter` reads it.
"""

from recipes_lib.claims.reports import measured, stored
from recipes_lib.claims.show import against_paper, verdicts

__all__ = ["against_paper", "measured", "stored", "verdicts"]
