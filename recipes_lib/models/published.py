# SPDX-License-Identifier: Apache-2.0
"""Networks with the weights that timm or torchvision publish, and errors that say what to do where there are none."""

import difflib
import logging
from collections.abc import Callable, Iterable

from torch import nn

from recipes_lib.errors import RunError


class Unknown(Exception):
    """A model name that a library does not know; the text suggests similar names."""


def fetched(model: str, create: Callable[[], nn.Module], *, otherwise: str) -> nn.Module:
    """The network that ``create`` makes with published weights, which its library downloads or has downloaded before.

    ``otherwise`` completes the error's "Run once where there is a network, or ...".

    Raises: ``RunError`` if the weights cannot be had; the library's own error for an unknown model.
    """
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it would print a warning per attempt, and the number of attempts cannot be set
    try:
        return create()
    except Exception as error:  # without internet access each library raises another class of error
        if "Unknown model" in str(error):
            raise
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0].rstrip('.')}"
        raise RunError(
            f"model = {model}: its weights are not on this machine and could not be fetched ({reason}). Run once where "
            f"there is a network, or {otherwise}."
        ) from None
    finally:
        hub.setLevel(level)


def unknown(library: str, name: str, known: Iterable[str]) -> str:
    """A sentence that says that ``library`` has no network ``name``, with the nearest of those that it has."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    guess = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{library} has no network {name!r}.{guess}"
