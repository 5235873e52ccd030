# SPDX-License-Identifier: Apache-2.0
"""The verdicts that the reports in ``data/claims/NAME.json`` allow."""

import json

from recipes_lib import recipes
from recipes_lib.claim import Verdict, decide
from recipes_lib.data import embedded
from recipes_lib.errors import RunError


def stored(name: str) -> dict[str, Verdict]:
    """The verdicts of chapter ``name``'s claims, by id, from what ``recipes verify`` stored.

    Raises: ``RunError`` where nothing was verified yet, or not all that the claims compare.
    """
    found, lacking = measured(name)
    if lacking:
        raise RunError(f"{lacking[0]} Make them: recipes verify {name}")
    return found


def measured(name: str) -> tuple[dict[str, Verdict], list[str]]:
    """The verdicts that the stored metrics allow, by id, and a sentence for each claim that lacks an arm's metrics.

    Raises: ``RunError`` where nothing was verified yet.
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
