# SPDX-License-Identifier: Apache-2.0
"""What the Sieve chapter puts to the test.

Each seed is a pool of its own, with a captioner and a CLIP of its own, none of which saw a picture of the pool. Margins
were fixed before the runs. One pilot (another pool, 600 pairs, models trained for a fifth as long) had found, of all
kinds, .85 by Sieve, .78 by CLIPScore, .88 fused, and of texts drawn into the picture .71 by both. On Wikipedia's texts one
choice of wrong descriptions had been measured before: .859, .854 with phrases, .655 by letters.
"""

from recipes_lib.claims.check import Claim, Figure

PRESET = "toy"
SEEDS = (0, 1, 2)
BASE = {}
ARMS = {}
SHOWN = ()
"""Arms of no claim, which the chapter shows: none."""


def pool(seed: int) -> dict[str, dict]:
    """Scores a pool of its own, selects from it by each signal, and trains a CLIP on each selection."""
    from recipes_lib.recipes import sieve_study

    return sieve_study.measure(seed)


def wikipedia(seed: int) -> dict[str, dict]:
    """How well the sentence encoder alone separates real alt-texts, by machine descriptions of their images."""
    from recipes_lib.recipes import sieve_real

    return sieve_real.measure(seed)


MEASUREMENTS = {"pool": pool, "wikipedia": wikipedia}
"""Arms that measure in place of training: a function of the seed that returns a report."""
NEEDS_DATA = ("wikipedia",)
"""Arms on data that may not be shipped: run where ``RECIPES_DATA`` is set; only aggregates are stored."""


def _mark() -> dict:
    from recipes_lib.recipes import sieve, sieve_study

    return sieve.fingerprint(sieve_study.config_of(0))


MARKS = {"pool": _mark}
"""The fingerprint of each measurement."""

_FULL_SCALE = (
    "torchrun --nproc-per-node 8 -m recipes_lib run sieve --preset datacomp_medium --data.root SHARDS --stage select"
)
_TRAIN = "torchrun --nproc-per-node 8 -m recipes_lib run clip --preset datacomp_medium --data.root SHARDS --data.subset subset.npy"


def _auc(
    identity: str, statement: str, ours: str, control: str, what: str, margin: float, where: str, arm: str = "pool"
) -> Claim:
    """A claim about how well two scores separate right pairs from wrong ones."""
    return Claim(
        id=f"sieve.{identity}",
        statement=statement,
        metric="AUC, the chance that a right pair scores above a wrong one",
        better="higher",
        margin=margin,
        ours=Figure(arm, ours),
        control=Figure(arm, control),
        control_arm=what,
        paper={"value": None, "where": where},
        full_scale=_FULL_SCALE,
    )


def _pruned(identity: str, statement: str, ours: str, control: str, arm: str) -> Claim:
    """A claim about the CLIP that is trained on what is left."""
    return Claim(
        id=f"sieve.{identity}",
        statement=statement,
        metric="mean of TR@5 and IR@5 on new, true pairs",
        better="higher",
        margin=0.02,
        ours=Figure("pool", f"recall.{ours}"),
        control=Figure("pool", f"recall.{control}"),
        control_arm=arm,
        paper={"value": None, "where": "the paper's 38 tasks at 12.8 and 128 million pairs; no figure of this kind"},
        full_scale=_TRAIN,
    )


_NO_FIGURE = "the paper's argument; no figure of this kind"

CLAIMS = (
    _auc("all_kinds", "Of all kinds of noise together, Sieve tells more than CLIPScore.",
         "auc.sieve.all", "auc.clip.all", "CLIPScore, by a CLIP that learned from such pairs", 0.02, _NO_FIGURE),
    _auc("drawn_text", "Where the wrong text is drawn into the picture, Sieve is fooled less than CLIPScore.",
         "auc.sieve.spurious_text", "auc.clip.spurious_text", "CLIPScore", 0.05, _NO_FIGURE),
    _auc("unusual_words", "True texts in unusual words are better kept apart from noise by Sieve.",
         "auc.sieve.unusual", "auc.clip.unusual", "CLIPScore", 0.03, _NO_FIGURE),
    _auc("wrong_pairs", "Captions of another picture are told better by CLIPScore, which compares with the picture itself.",
         "auc.clip.wrong_pair", "auc.sieve.wrong_pair", "Sieve's score", 0.02, _NO_FIGURE),
    _auc("fused_best", "Both scores added tell more than the better of the two.",
         "auc.fused.all", "auc.better.all", "the better of Sieve's score and CLIPScore", 0.01, _NO_FIGURE),
    _auc("more_captions", "Eight captions a picture tell more than one.",
         "captions.8", "captions.1", "one caption a picture", 0.01, _NO_FIGURE),
    _auc("saturates", "The step from one caption to two gives more than that from four to eight.",
         "gains.1_to_2", "gains.4_to_8", "the gain from four captions to eight", 0.002, _NO_FIGURE),
    _auc("phrases", "Removing phrases about the medium helps.",
         "auc.sieve.all", "auc.with_phrases.all", "the same texts and captions with these phrases left in", 0.005, _NO_FIGURE),
    _auc("real_meaning", "On real alt-texts of Wikipedia, a sentence encoder tells more than counts of letters and words.",
         "auc.minilm", "auc.ngrams", "hashed words and three-letter pieces", 0.1, _NO_FIGURE, arm="wikipedia"),
    _auc("real_phrases", "On real alt-texts of Wikipedia, removing phrases about the medium helps.",
         "auc.minilm", "auc.with_phrases", "the same texts with these phrases left in", 0.002, _NO_FIGURE, arm="wikipedia"),
    _pruned("beats_random", "Trained on the 30 % that both scores keep, a CLIP finds more than on a random 30 %.",
            "fused", "random", "as many pairs at random, as many steps"),
    _pruned("beats_all", "It finds more than trained on the whole pool, at as many samples seen.",
            "fused", "all", "all pairs, as many steps"),
    _pruned("sieve_beats_clip", "Trained on the 30 % that Sieve keeps, a CLIP finds more than on what CLIPScore keeps.",
            "sieve", "clip", "the 30 % that CLIPScore keeps, as many steps"),
)  # fmt: skip
