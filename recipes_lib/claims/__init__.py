# SPDX-License-Identifier: Apache-2.0
"""What the book puts to the test: a file a chapter (arms, seeds, claims), and the means to check, cook and verify.

A chapter's file imports no torch, so that ``recipes show`` can print its claims at once.
"""

import importlib
import json
from types import ModuleType

from recipes_lib.claim import Verdict, decide
from recipes_lib.data import embedded
from recipes_lib.errors import RunError


def module(name: str) -> ModuleType:
    """The claims file of recipe ``name``: ``PRESET``, ``SEEDS``, ``BASE``, ``ARMS``, ``SHOWN``, ``MEASUREMENTS``, ``CLAIMS``.

    Some have ``MARKS`` (measurement -> what takes its fingerprint) and ``NEEDS_DATA`` (arms that ask for ``RECIPES_DATA``).
    """
    return importlib.import_module(f"recipes_lib.recipes.{name}.claims")


def stored(name: str) -> dict[str, Verdict]:
    """The verdicts of recipe ``name``'s claims, by id, from the figures in ``data/claims/NAME.json``.

    Raises: ``RunError`` where nothing was verified yet, or not all that the claims compare.
    """
    found, lacking = measured(name)
    if lacking:
        raise RunError(f"{lacking[0]} Make them: recipes verify {name}")
    return found


def measured(name: str) -> tuple[dict[str, Verdict], list[str]]:
    """The verdicts that the stored figures allow, by id, and a sentence for each claim that lacks an arm's figures.

    Raises: ``RunError`` where nothing was verified yet.
    """
    path = embedded.path("") / "claims" / f"{name}.json"
    if not path.is_file():
        raise RunError(f"{path} is missing. Make it: recipes verify {name}")
    figures = json.loads(path.read_text())["figures"]
    facts = module(name)
    verdicts, lacking = {}, []
    for claim in facts.CLAIMS:
        arms = dict.fromkeys(figure.arm for figure in (claim.ours, claim.control) if figure)
        if absent := [arm for arm in arms if arm not in figures]:
            data = (
                "; it needs data that RECIPES_DATA names" if set(absent) & set(getattr(facts, "NEEDS_DATA", ())) else ""
            )
            lacking.append(f"Claim {claim.id} has no figures of arm {', '.join(absent)} yet{data}.")
            continue
        seconds = sum(report["seconds"] for arm in arms for report in figures[arm].values())
        verdicts[claim.id] = decide(claim, figures, seconds)
    return verdicts, lacking
