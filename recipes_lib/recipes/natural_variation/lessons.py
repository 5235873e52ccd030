# SPDX-License-Identifier: Apache-2.0
"""What a model is trained on: which training instances, and which classes, are seen varying along a factor.

All lessons have the same number of images per instance and the same steps: an instance that is not seen varying shows its
canonical image as often as others show their varied ones. So only the values of the factor differ.

- *canonical*: no instance varies; the lesson of "out of the box".
- *share*: a share of the instances of every class varies. Sets are nested: whoever varies at 25 % varies at 50 %.
- *classes*: all instances of some random classes vary, none of the others. *spread* is its control with as many
  varying instances, spread over all classes.
- *twins*: of half of the families, one of its two near twins varies; so each class that is not seen varying has a near
  twin that is, or has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.errors import ConfigError
from recipes_lib.factors.gaps import CANONICAL, Varied

Kind = Literal["canonical", "share", "classes", "spread", "twins"]


@dataclass(frozen=True)
class Lesson:
    """One training set: which instances are seen varying."""

    kind: Kind
    varied: Varied
    """The factor along which they vary; empty for ``canonical``."""
    detail: int
    """The share in percent, or the number of the draw of classes."""
    varies: Tensor
    """bool [I]: which of the training instances vary."""
    seen: Tensor
    """bool [C]: the classes of which at least one instance varies."""

    @property
    def name(self) -> str:
        """A name for files, without blanks: ``canonical``, ``share-pose-25``."""
        return "-".join([self.kind, *self.varied, str(self.detail)]) if self.varied else self.kind


def varying(share: float, count: int) -> int:
    """The number of ``count`` instances that vary at ``share``, rounded half to even.

    Raises: ``ConfigError`` for a share outside [0, 1], or one above 0 that rounds to no instance.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"diversity.shares has {share:g}: use shares in [0, 1].")
    found = round(share * count)
    if share > 0 and not found:
        raise ConfigError(
            f"diversity.shares has {share:g}, of {count} instances {found}: the smallest usable share is just above "
            f"{0.5 / count:.3g} (share x instances must exceed 0.5)."
        )
    return found


def canonical(classes: Tensor) -> Lesson:
    """The lesson in which nothing varies.  classes: int64 [I] of the training instances"""
    count = int(classes.max()) + 1
    return Lesson(
        "canonical", CANONICAL, 0, torch.zeros_like(classes, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    )


def of_share(classes: Tensor, varied: Varied, share: float, seed: int, *, kind: Kind = "share") -> Lesson:
    """The lesson in which ``share`` of the instances of every class vary. Raises: as :func:`varying`."""
    order = randomness.uniform(randomness.sample_keys(seed, 0, torch.arange(len(classes))), "instances that vary", 1)[
        :, 0
    ]
    varies = torch.zeros_like(classes, dtype=torch.bool)
    for label in classes.unique():
        rows = (classes == label).nonzero()[:, 0]
        varies[rows[order[rows].argsort()[: varying(share, len(rows))]]] = True
    return _lesson(kind, varied, round(100 * share), varies, classes)


def of_classes(classes: Tensor, varied: Varied, share: float, draw: int, seed: int) -> Lesson:
    """The lesson in which all instances of a random ``share`` of the classes vary, and no others.

    Raises: ``ConfigError`` if that is no class, or all.
    """
    count = int(classes.max()) + 1
    number = round(share * count)
    if not 0 < number < count:
        raise ConfigError(
            f"transfer.classes = {share:g} of {count} classes makes {number} vary: transfer needs both seen and unseen classes."
        )
    chosen = randomness.permutation(randomness.step_key(seed, draw, "classes that vary"), 0, count)[:number]
    return _lesson("classes", varied, draw, torch.isin(classes, chosen), classes)


def of_twins(classes: Tensor, families: Tensor, varied: Varied, draw: int, seed: int) -> Lesson:
    """The lesson in which one random class of each of a random half of the families varies."""
    names, sizes = families.unique(return_counts=True)
    names = names[sizes > 1]
    if len(names) < 2:
        raise ConfigError(
            f"transfer.twins needs at least two families of near twins; there are {len(names)}. Leave it off."
        )
    key = randomness.step_key(seed, draw, "twins that vary")
    half = names[randomness.permutation(key, 0, len(names))[: len(names) // 2]]
    chosen = []
    for family in half.tolist():
        members = (families == family).nonzero()[:, 0]
        chosen.append(int(members[int(randomness.permutation(key, 1 + family, len(members))[0])]))
    return _lesson("twins", varied, draw, torch.isin(classes, torch.tensor(chosen)), classes)


def has_twin(lesson: Lesson, families: Tensor) -> Tensor:
    """Which classes that are not seen varying have a near twin that is: bool [C]."""
    return ~lesson.seen & torch.isin(families, families[lesson.seen])


def rows(lesson: Lesson, canonical: Tensor, varied: Tensor, instances: Tensor) -> Tensor:
    """The training images of a lesson, as positions in the canonical images followed by the varied ones: int64 [n].

    Shapes: ``canonical`` and ``varied`` int64, the instance that each image shows; ``instances`` int64 [I], ascending, in
    the order of ``lesson.varies``. Each instance appears as often as it has varied images, or canonical ones if nothing varies.
    """
    if not lesson.varied:
        return torch.arange(len(canonical))
    place, own = torch.searchsorted(instances, varied), torch.searchsorted(instances, canonical)
    by_instance, count = own.argsort(stable=True), own.bincount(minlength=len(instances))
    first = count.cumsum(0) - count  # where each instance begins among the canonical images
    still = by_instance[first[place] + _ranks(place, len(instances)) % count[place]]
    return torch.where(lesson.varies[place], len(canonical) + torch.arange(len(varied)), still)


def _ranks(place: Tensor, count: int) -> Tensor:
    """The number of equal values before each value, of values below ``count``: int64 [n] -> int64 [n]."""
    order, number = place.argsort(stable=True), place.bincount(minlength=count)
    ranks = torch.empty_like(place)
    ranks[order] = torch.arange(len(place)) - (number.cumsum(0) - number)[place[order]]
    return ranks


def plan(
    classes: Tensor,
    families: Tensor | None,
    *,
    shares: Sequence[float],
    share_factors: Sequence[str],
    class_factors: Sequence[str],
    class_share: float,
    draws: int,
    twins: bool,
    seed: int,
) -> list[Lesson]:
    """All lessons of a study, the canonical one first. ``classes``: int64 [I], of the training instances.

    A share of 0 is the canonical lesson, and is not repeated.

    Raises: ``ConfigError`` as the functions above.
    """
    found = [canonical(classes)]
    for factor in share_factors:
        found += [of_share(classes, (factor,), share, seed) for share in sorted(set(shares)) if share]
    for factor in class_factors if draws else ():
        found += [of_classes(classes, (factor,), class_share, draw, seed) for draw in range(draws)]
        real = round(class_share * (int(classes.max()) + 1)) / (int(classes.max()) + 1)
        found.append(of_share(classes, (factor,), real, seed, kind="spread"))
        if twins:
            if families is None:
                raise ConfigError("transfer.twins: these classes have no known near twins. Leave it off.")
            found += [of_twins(classes, families, (factor,), draw, seed) for draw in range(draws)]
    return found


def _lesson(kind: Kind, varied: Varied, detail: int, varies: Tensor, classes: Tensor) -> Lesson:
    seen = torch.zeros(int(classes.max()) + 1, dtype=torch.bool)
    seen[classes[varies]] = True
    return Lesson(kind, varied, detail, varies, seen)
