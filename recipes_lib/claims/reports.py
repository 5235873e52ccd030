# SPDX-License-Identifier: Apache-2.0
"""Computes verdicts from the reports stored in ``data/claims/NAME.json``."""

import json

from recipes_lib import recipes
from recipes_lib.claim import Verdict, decide
from recipes_lib.data import embedded
from recipes_lib.errors import RunError


def stored(name: str) -> dict[str, Verdict]:
    """The verdicts of all claims of chapter ``name``, by id, from the metrics that ``recipes verify`` stored.

    Raises: ``RunError`` if nothing was verified yet, or metrics of an arm are missing.
    """
    found, lacking = measured(name)
    if lacking:
        raise RunError(f"{lacking[0]} Make them: recipes verify {name}")
    return found


def measured(name: str) -> tuple[dict[str, Verdict], list[str]]:
    """The verdicts of all claims whose metrics are stored, by id, and one sentence per claim whose metrics are missing.

    Raises: ``RunError`` if nothing was verified yet.
    """
    path = embedded.path("") / "claims" / f"{name}.json"
    if not path.is_file():
        raise RunError(f"{path} is missing. Make it: recipes verify {name}")
    reports = json.loads(path.read_text())["figures"]
    chapter = recipes.chapter(name)
    verdicts, lacking = {}, []
    for claim in chapter.claims:
        arms = dict.fromkeys(metric.arm for metric in (claim.ours, claim.control) if metric)
        if absent := [arm for arm in arms if arm not in reports]:
            data = "; it needs data that RECIPES_DATA names" if chapter.needs_data & set(absent) else ""
            lacking.append(f"Claim {claim.id} has no metrics of arm {', '.join(absent)} yet{data}.")
            continue
        seconds = sum(report["seconds"] for arm in arms for report in reports[arm].values())
        verdicts[claim.id] = decide(claim, reports, seconds)
    return verdicts, lacking
