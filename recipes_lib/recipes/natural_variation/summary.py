# SPDX-License-Identifier: Apache-2.0
"""Turns stored answers into the study's results, as plain values for a report.

- ``models``: each model's gaps by factors that vary, with intervals, adjusted p-values, and interactions of pairs;
- ``agreement``: whether models rank the single factors alike;
- ``diversity``: accuracy by the share of training instances that were seen varying;
- ``transfer``: accuracy on classes that were seen varying and on those that were not, and how it goes with similarity;
- ``twins``: the same for classes with and without a near twin that was seen varying.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes_lib.factors import gaps, inference
from recipes_lib.factors.gaps import CANONICAL, Answers, Profile, Varied, title
from recipes_lib.recipes.natural_variation import measure
from recipes_lib.recipes.natural_variation.catalogue import ZeroShot
from recipes_lib.recipes.natural_variation.lessons import Lesson, has_twin
from recipes_lib.recipes.natural_variation.measure import Learned, Study
from recipes_lib.recipes.natural_variation.sources import Part

FEW_CLASSES = 3


class Summary:
    """Reads a study's answers and computes its results; each method returns plain values."""

    def __init__(
        self,
        study: Study,
        run: Path,
        learned: Learned,
        *,
        resamples: int,
        level: float,
        seed: int,
        names: Tensor | None = None,
    ) -> None:
        """``names``: float32 [C, C], the similarity of the classes' names, if they mean something."""
        self.study, self.run, self.learned, self.names = study, run, learned, names
        self.resamples, self.level, self.seed = resamples, level, seed
        self.profiles = {model.name: self._profile(model.name, study.lessons[0], study.views) for model in study.models}

    def results(self) -> dict[str, Any]:
        """All results."""
        found: dict[str, Any] = {"models": self.models()}
        matrix, singles = self._matrix()
        if len(matrix) > 1 and len(singles) > 2:
            own = inference.agreement(matrix, generator=self._generator("agreement"))
            found["agreement"] = {
                "mean_rank_correlation": own.mean_rank_correlation,
                "p": own.p,
                "factors": own.factors,
            }
        for name, part in (("diversity", self.diversity()), ("transfer", self.transfer()), ("twins", self.twins())):
            if part:
                found[name] = part
        return found | {"notes": self.notes()}

    def models(self) -> dict[str, Any]:
        """Each model's gaps, the largest single factor first in ``ranking``."""
        holm, fdr = gaps.adjusted(list(self.profiles.values()))
        found = {}
        for place, (name, profile) in enumerate(self.profiles.items()):
            cells = {
                title(varied): vars(gap) | {"holm": holm[place][varied], "benjamini_hochberg": fdr[place][varied]}
                for varied, gap in profile.gaps.items()
            }
            singles = [varied for varied in profile.gaps if len(varied) == 1]
            order = sorted(singles, key=lambda varied, profile=profile: -profile.gaps[varied].gap)
            found[name] = {
                "canonical": profile.canonical,
                "canonical_low": profile.canonical_low,
                "canonical_high": profile.canonical_high,
                "chance": profile.chance,
                "instances": profile.instances,
                "gaps": cells,
                "interactions": {title(varied): vars(pair) for varied, pair in profile.interactions.items()},
                "ranking": [title(varied) for varied in order],
            }
        return found

    def diversity(self) -> dict[str, Any]:
        """Model -> factor -> share in percent -> accuracies. At 0 and 100 no instance, or each, is seen varying."""
        found: dict[str, Any] = {}
        lessons = [lesson for lesson in self.study.lessons if lesson.kind == "share"]
        for model in self._taught():
            for factor in dict.fromkeys(lesson.varied for lesson in lessons):
                own = [self.study.lessons[0], *(lesson for lesson in lessons if lesson.varied == factor)]
                rows = {str(lesson.detail): self._at_share(model, lesson, factor) for lesson in own}
                found.setdefault(model, {})[title(factor)] = rows
        return found

    def transfer(self) -> dict[str, Any]:
        """Model -> factor -> accuracies of classes by whether they were seen varying; all draws, and their means."""
        found: dict[str, Any] = {}
        for model in self._taught():
            for factor, lessons in self._by_factor("classes").items():
                before = self._per_class(model, self.study.lessons[0], factor)
                draws = []
                for lesson in lessons:
                    after, seen = self._per_class(model, lesson, factor), lesson.seen.numpy()
                    draws.append(
                        {
                            "seen": float(after[seen].mean()),
                            "unseen": float(after[~seen].mean()),
                            "worst": float(after.min()),
                            "unseen_before": float(before[~seen].mean()),
                            "seen_before": float(before[seen].mean()),
                        }
                    )
                row = _means(draws)
                spread = next(one for one in self.study.lessons if (one.kind, one.varied) == ("spread", factor))
                even = self._per_class(model, spread, factor)
                row |= {"spread": float(even.mean()), "spread_worst": float(even.min())}
                row["similarity"] = self._similarities(model, lessons, factor)
                found.setdefault(model, {})[title(factor)] = row | {"draws": draws}
        return found

    def twins(self) -> dict[str, Any]:
        """Model -> factor -> accuracies of classes that were not seen varying, by whether a near twin was."""
        found: dict[str, Any] = {}
        families = self.study.source.families
        for model in self._taught():
            for factor, lessons in self._by_factor("twins").items():
                before = self._per_class(model, self.study.lessons[0], factor)
                draws = []
                for lesson in lessons:
                    after, seen = self._per_class(model, lesson, factor), lesson.seen.numpy()
                    near = has_twin(lesson, families).numpy()
                    far = ~seen & ~near
                    draws.append(
                        {
                            "seen": float(after[seen].mean()),
                            "with_twin": float(after[near].mean()),
                            "without": float(after[far].mean()),
                            "with_twin_before": float(before[near].mean()),
                            "without_before": float(before[far].mean()),
                        }
                    )
                found.setdefault(model, {})[title(factor)] = _means(draws) | {"draws": draws}
        return found

    def notes(self) -> list[str]:
        """Warnings for the reader, one line each."""
        found = [
            f"{name}: canonical accuracy {profile.canonical:.3f} is near chance ({profile.chance:.3f}), so its gaps say little: "
            "train longer, or give more training instances."
            for name, profile in self.profiles.items()
            if profile.uninformative
        ]
        if any(isinstance(model, ZeroShot) for model in self.study.models) and len(self.study.lessons) > 1:
            found.append(
                "Models that classify by the names of classes are not trained here: they have no diversity or transfer."
            )
        return found

    def _profile(self, model: str, lesson: Lesson, views: Sequence[Varied]) -> Profile:
        given = self._given(model, lesson, "test", views)
        generator = self._generator(f"{model} {lesson.name}")
        return gaps.profile(given, generator=generator, resamples=self.resamples, level=self.level)

    def _given(self, model: str, lesson: Lesson, part: Part, views: Sequence[Varied]) -> Answers:
        shots = {varied: self.study.source.shots(part, varied) for varied in views}
        right = {
            varied: measure.read(self.study, self.run, model, lesson, part, varied) == own.labels.numpy()
            for varied, own in shots.items()
        }
        instances, classes = measure.instances_of(shots[CANONICAL])
        of = {varied: own.instances.numpy() for varied, own in shots.items()}
        return gaps.answers(classes.numpy(), instances.numpy(), right, of)

    def _at_share(self, model: str, lesson: Lesson, factor: Varied) -> dict[str, float | None]:
        profile = self._profile(model, lesson, (CANONICAL, factor))
        gap = profile.gaps[factor]
        return {
            "varied": gap.accuracy,
            "canonical": profile.canonical,
            "gap": gap.gap,
            "low": gap.low,
            "high": gap.high,
            "still_instances": self._on_still(model, lesson, factor),
        }

    def _on_still(self, model: str, lesson: Lesson, factor: Varied) -> float | None:
        """Accuracy on varied images of the training instances that were not seen varying; None if all were."""
        if lesson.varies.all():
            return None
        shots = self.study.source.shots("train", factor)
        instances, classes = measure.instances_of(self.study.source.shots("train", CANONICAL))
        right = torch.from_numpy(
            measure.read(self.study, self.run, model, lesson, "train", factor) == shots.labels.numpy()
        )
        place = torch.searchsorted(instances, shots.instances)
        own = torch.bincount(place, weights=right.double()) / torch.bincount(place)
        own, labels = own[~lesson.varies], classes[~lesson.varies]
        return float(torch.stack([own[labels == label].mean() for label in labels.unique()]).mean())

    def _per_class(self, model: str, lesson: Lesson, factor: Varied) -> np.ndarray:
        """Accuracy on the varied test images of each class: float64 [C]."""
        labels = self.study.source.shots("test", factor).labels.numpy()
        right = measure.read(self.study, self.run, model, lesson, "test", factor) == labels
        return np.bincount(labels, weights=right) / np.bincount(labels)

    def _similarities(self, model: str, lessons: Sequence[Lesson], factor: Varied) -> dict[str, float]:
        """Spearman's rank correlation, over draws and unseen classes, of accuracy with the nearest seen class."""
        kinds = {"features": self.learned.similarity[model]}
        if self.names is not None:
            kinds["names"] = self.names
        found = {}
        for kind, alike in kinds.items():
            near = [alike[~lesson.seen][:, lesson.seen].amax(dim=1).numpy() for lesson in lessons]
            reached = [self._per_class(model, lesson, factor)[~lesson.seen.numpy()] for lesson in lessons]
            found[kind] = inference.rank_correlation(np.concatenate(near), np.concatenate(reached))
        return found

    def _by_factor(self, kind: str) -> dict[Varied, list[Lesson]]:
        found: dict[Varied, list[Lesson]] = {}
        for lesson in self.study.lessons:
            if lesson.kind == kind:
                found.setdefault(lesson.varied, []).append(lesson)
        return found

    def _taught(self) -> list[str]:
        return [model.name for model in self.study.models if not isinstance(model, ZeroShot)]

    def _matrix(self) -> tuple[np.ndarray, list[Varied]]:
        """The gaps of single factors, float64 [M, F], and the factors; models near chance are left out."""
        singles = [varied for varied in self.study.views if len(varied) == 1]
        told = [profile for profile in self.profiles.values() if not profile.uninformative]
        return np.array([[profile.gaps[varied].gap for varied in singles] for profile in told]), singles

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])


def _means(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
