# SPDX-License-Identifier: Apache-2.0
"""What the chapter on circuits puts to the test. Data alone; no torch.

Margins were fixed before the runs. They are at most half of the effect that pilots saw (scored on validation data, with seeds
10 and 11, or one of them; the pilots of the controls had other numbers of steps and another match of the Perceiver IO), where
pilots saw one. Where they saw none, the claim is the paper's, with half of its effect as the margin
(three points for an eighth of the modules), and may fail. The pilots also chose the number of steps, the learning rate and
the rates of adaptation; all arms that are compared have the same.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from recipes_lib.claim import Chapter, Claim, Measurement, higher, no_worse

_STUDY = "recipes_lib.recipes.nac.study"
_ACCURACY = "accuracy on test scans of the digits 0 to 5"
_NEW = "accuracy on test scans of the digits 6 to 9, after 50 steps on 5 scans of each"
_SAME = "Nothing was searched for either side: it is the same trained network."
_SEARCH = "Pilots with other seeds chose steps, learning rate and rates of adaptation on validation scans; both arms have the same."
_FULL = "torchrun --nproc-per-node 8 -m recipes_lib run nac --data.root /data/tiny-imagenet-200 --preset"
_ABSTRACT = {"control": None, "read": "abstract"}
_UNREAD: Mapping[str, Any] = {"value": None, "control": None}
_KINDS = {
    "clouds": "point clouds of four solids",
    "letters": "strings of bytes that hold one of four words",
    "symbols": "nested expressions of symbols",
}


def _kind(name: str, what: str) -> Claim:
    return no_worse(
        f"nac.{name}",
        f"On {what}, the same circuit is no worse than a Perceiver IO of equal size.",
        better="higher",
        ours=(name, "circuit"),
        control=(name, "perceiver"),
        by=0.05,
        metric="accuracy on test samples",
        control_arm="a Perceiver IO with as many latents, layers and parameters, and as many steps",
        control_tuning=_SEARCH,
        paper={**_UNREAD, "where": "abstract: competitive on point clouds, symbols and text; the tables were not read"},
        full_scale=f"{_FULL} tiny_imagenet",
    )


_pruned = partial(
    no_worse,
    better="higher",
    control=("circuit", "accuracy"),
    by=0.03,
    metric=_ACCURACY,
    control_arm="the same circuit with all 32 modules",
    control_tuning=_SAME,
    full_scale=f"{_FULL} tiny_imagenet --model.module-dropout 0.8",
)
_against = partial(
    higher,
    control_tuning=_SEARCH,
    full_scale=f"{_FULL} tiny_imagenet",
    full_scale_control=f"{_FULL} tiny_imagenet_perceiver",
)
_LOW_SHOT = {
    **_ABSTRACT,
    "value": 10,
    "where": "abstract: about 10 points over a non-modular baseline, on CIFAR and CUB",
}

CHAPTER = Chapter(
    name="nac",
    measurements={
        "circuit": Measurement(f"{_STUDY}:circuit", fingerprint=f"{_STUDY}:fingerprint"),
        **{name: Measurement(f"{_STUDY}:{name}") for name in ("whole", "dense", "perceiver", *_KINDS, "questions")},
    },
    headline=("nac.eighth", "nac.quarter", "nac.dropout", "nac.low_shot_perceiver", "nac.specialise"),
    claims=(
        _pruned(
            "nac.eighth",
            "An eighth of the modules is worse than all of them by less than three points.",
            ours=("circuit", "pruned.greedy.4"),
            paper={**_ABSTRACT, "value": 3, "where": "abstract: 8 times faster for less than 3 points, on ImageNet"},
        ),
        _pruned(
            "nac.quarter",
            "A quarter of the modules is worse than all of them by less than three points.",
            ours=("circuit", "pruned.greedy.8"),
            paper={**_UNREAD, "where": "no number for a quarter was read"},
        ),
        higher(
            "nac.speed",
            "An eighth of the modules runs at least three times as fast as all of them.",
            ours=("circuit", "speed.4"),
            control=("circuit", "speed.32"),
            by=2.0,
            metric="images per second of processor time, 256 at a time, in units of the whole circuit's",
            control_arm="the whole circuit",
            control_tuning=_SAME,
            paper={**_ABSTRACT, "value": 8, "where": "abstract: 8 times faster at inference"},
            full_scale="python benchmarks/nac.py --archs nac_640 --tokens 784",
        ),
        higher(
            "nac.ranking",
            "At an eighth of the modules, those that greedy elimination leaves are better than random ones.",
            ours=("circuit", "pruned.greedy.4"),
            control=("circuit", "pruned.random.4"),
            by=0.04,
            metric=_ACCURACY,
            control_arm="the mean of ten random choices",
            control_tuning=_SAME,
            paper={**_UNREAD, "where": "the paper's rule for dropping modules was not read"},
            full_scale=f"{_FULL} tiny_imagenet --model.module-dropout 0.8",
        ),
        higher(
            "nac.dropout",
            "Module dropout in training makes a random eighth of the modules more accurate.",
            ours=("circuit", "pruned.random.4"),
            control=("whole", "pruned.random.4"),
            by=0.07,
            metric=_ACCURACY,
            control_arm="the same circuit trained without module dropout",
            control_tuning=_SEARCH,
            paper={**_UNREAD, "where": "module dropout is ours"},
            full_scale=f"{_FULL} tiny_imagenet --model.module-dropout 0.8",
            full_scale_control=f"{_FULL} tiny_imagenet",
        ),
        _against(
            "nac.low_shot_perceiver",
            "A circuit learns new classes from few labels better than a Perceiver IO of equal size.",
            ours=("circuit", "adapted.5.all"),
            control=("perceiver", "adapted.5.all"),
            by=0.05,
            metric=_NEW,
            control_arm="a Perceiver IO with as many parameters, trained with the same dropout of its latents",
            paper=_LOW_SHOT,
        ),
        _against(
            "nac.low_shot_dense",
            "A circuit learns new classes from few labels better than the same network without codes and links.",
            ours=("circuit", "adapted.5.all"),
            control=("dense", "adapted.5.all"),
            by=0.05,
            metric=_NEW,
            control_arm="the same network without codes and links, trained with the same module dropout",
            paper=_LOW_SHOT,
        ),
        higher(
            "nac.codes_adapt",
            "Codes and signatures adapt to new classes: with the head they learn more than the head alone.",
            ours=("circuit", "adapted.5.circuit"),
            control=("circuit", "adapted.5.head"),
            by=0.025,
            metric=_NEW,
            control_arm="the same trained circuit, of which only the new head moves",
            control_tuning=_SEARCH,
            paper={**_UNREAD, "where": "what moves in the paper's adaptation was not read"},
            full_scale=f"{_FULL} tiny_imagenet",
        ),
        _against(
            "nac.damaged",
            "On damaged images a circuit is better than a Perceiver IO of equal size.",
            ours=("circuit", "damaged.mean"),
            control=("perceiver", "damaged.mean"),
            by=0.0125,
            metric="mean accuracy on test scans with noise, without two rows, and shifted by a pixel",
            control_arm="a Perceiver IO with as many parameters, trained with the same dropout of its latents",
            paper={**_ABSTRACT, "value": 2.5, "where": "abstract: about 2.5 points on Tiny-ImageNet-R"},
        ),
        *(_kind(name, what) for name, what in _KINDS.items()),
        higher(
            "nac.specialise",
            "Modules specialise: how much a module is read tells the digit better than chance does.",
            ours=("circuit", "use.bits"),
            control=("circuit", "use.chance"),
            by=0.25,
            metric="mutual information in bits of the digit and the use of the module that tells most",
            control_arm="the same with permuted digits, the largest mean over permutations of any module",
            control_tuning=_SAME,
            paper={**_UNREAD, "where": "abstract: diverse and meaningful configurations on NLVR2, in pictures"},
            full_scale=f"{_FULL} tiny_imagenet",
        ),
        higher(
            "nac.sentence",
            "In a circuit that a sentence generates, the use of modules tells which sentence it was.",
            ours=("questions", "use.sentence.bits"),
            control=("questions", "use.sentence.chance"),
            by=0.3,
            metric="mutual information in bits of the sentence and the use of the module that tells most",
            control_arm="the same with permuted sentences, the largest mean over permutations of any module",
            control_tuning=_SAME,
            paper={**_UNREAD, "where": "abstract: diverse and meaningful configurations on NLVR2, in pictures"},
            full_scale=f"{_FULL} tiny_imagenet",
        ),
    ),
)
