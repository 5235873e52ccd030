# SPDX-License-Identifier: Apache-2.0
"""Runs all arms and seeds of a chapter's claims (``verify``), stores metrics and shows verdicts. No torch here.

The claims themselves are in each chapter's ``recipes/NAME/claims.py``; :func:`recipes_lib.recipes.chapter` reads them.
"""

from recipes_lib.claims.reports import measured, stored
from recipes_lib.claims.show import against_paper, verdicts

__all__ = ["against_paper", "measured", "stored", "verdicts"]
