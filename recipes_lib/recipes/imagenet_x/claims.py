# SPDX-License-Identifier: Apache-2.0
"""What the ImageNet-X chapter puts to the test.

On the published annotations (arm ``real``) the figures of a claim are counted by thirds and not by seeds: three disjoint
thirds of the images, and of the runs of each published sweep. Before the margins were fixed, the tables of all images and
all runs had been read: pose .69 to .77 and texture 2.04 to 2.39 over the four models; smaller 1.26 to 1.53 along the crop
sweep; along the jitter sweep darker 1.46 to 1.29, and pose .78 to .81. Rank correlations had not been computed. So these
verdicts say that the figures do not hang on a few images or runs; they are no forecasts that came true.

On Pantry-X (arm ``pantry``) each seed is a training set, a test set and nets of its own. Margins were fixed after one pilot, with seed
100, which is not among the seeds that decide. In it jitter took the ratio of dark pictures from 1.32 to 1.02, the accuracy on
them from .41 to .49, and the ratio of odd shapes, which it does not touch, from .84 to .97; crops took the ratio of cut-off objects from
1.79 to 1.37 and, against the paper, that of small ones from 1.67 to 1.49; over the four factors of the Latin square the
ratio was 1.42 at 1 % of the training pictures and 1.10 at 50 %.

What taught a net (arm ``captions``) has seeds of the same kind, and a pilot with seed 100: error ratios of nets by labels, by
captions and the cooked MSN had rank correlations of .85, .78 and .68; jitter took CLIP's accuracy from .38 to .20.
"""

from typing import Any

from recipes_lib.claim import Claim, Figure

PRESET = "toy"
SEEDS = (0, 1, 2)
BASE = {}
ARMS = {}
SHOWN = ()
"""Arms of no claim, which the chapter shows: none."""


def real(seed: int) -> dict[str, dict]:
    """Four models on a third of ImageNet-X, and a third of the runs of two published sweeps."""
    from recipes_lib.recipes.imagenet_x import real_study as factor_study

    return factor_study.measure(seed)


def pantry(seed: int) -> dict[str, dict]:
    """Nets by augmentation and by a factor's rarity in training, on Pantry-X."""
    from recipes_lib.recipes.imagenet_x import pantry_study as pantry_x_study

    return pantry_x_study.measure(seed)


def captions(seed: int) -> dict[str, dict]:
    """CLIPs by augmentation on Pantry-X, and what they share with a net with labels and with MSN."""
    from recipes_lib.recipes.imagenet_x import pantry_study as pantry_x_study

    return pantry_x_study.measure_captions(seed)


MEASUREMENTS = {"pantry": pantry, "captions": captions, "real": real}
"""Arms that measure in place of training: a function of the seed that returns a report."""
NEEDS_DATA = ("real",)
"""Arms on data that may not be shipped: run where ``RECIPES_DATA`` is set; only aggregates are stored."""


def _mark() -> dict:
    from recipes_lib.recipes.imagenet_x import pantry_study as pantry_x_study

    return pantry_x_study.fingerprint()


def _mark_captions() -> dict:
    from recipes_lib.recipes.imagenet_x import pantry_study as pantry_x_study

    return pantry_x_study.fingerprint_captions()


MARKS = {"pantry": _mark, "captions": _mark_captions}
"""The fingerprint of each measurement."""

_REPORT = (
    "recipes run imagenet_x --preset report --predictions ViT.csv ResNet50.csv DINO.csv SimCLR.csv "
    "--annotations imagenet_x/annotations"
)
"""Whole validation set; ratios, rank correlations and what shuffled factors give stand in its report."""
_PUBLISHED_RUNS = "RECIPES_DATA=FOLDER recipes verify imagenet_x --arm real"
_SIMMER = "recipes run imagenet_x --preset simmer"
"""With 2.5 times the pictures, and 2.7 or, for CLIPs, 4 times the steps; its report has nets with and without augmentation."""
_RATIO = "error ratio: errors where the factor is present, over errors on average"

_READ = (
    "Nothing was searched for either: the predictions are published, and the control is no run. The ratios of all images had been "
    "read before the margin was fixed; the thirds are parts of the same images."
)
_CHANCE = (
    "Nothing was searched for either: the predictions are published, and the control shuffles the same figures 1,000 times. No "
    "rank correlation had been computed before the margin was fixed."
)
_ENDS = (
    "Nothing could be searched for either: all runs are published ResNet-50s. By their names, both ends of the sweep have the same weight "
    "decay ({decay}) and differ in the strength alone; {runs}. What counts as an end, and the margin, were fixed "
    "with the table of all runs at hand; the thirds are parts of the same runs."
)
_CROP_ENDS = _ENDS.format(
    decay="1e-4, where the paper's text has 1e-5",
    runs="231 runs allow crops of 20 % of the area or smaller ones, 92 none below 90 %",
)
_JITTER_ENDS = _ENDS.format(
    decay="1e-5",
    runs="82 runs have at least 88 % of the full strength, 75 at most 10 %. By the paper one strength sets jitter, greyscale and solarising",
)
_PILOT = (
    "Both nets start alike and see the same pictures in the same order, for 300 steps at a learning rate of 3e-3; no "
    "search of it is on record. They differ in {difference}. On the pilot seed 100 alone, and for all nets at once, 300 steps were taken after 400 and 800, "
    "and dark pictures were given dusk beside a weak light. The strength of the augmentation was not searched."
)
_JITTER = _PILOT.format(difference="the jitter of brightness, contrast, saturation and hue")
_CROP = _PILOT.format(difference="the random crop, of 20 to 100 % of the area and of aspect ratios from 3:4 to 4:3")
_LATIN = (
    "All four nets have the same start, 300 steps and learning rate, and pictures that differ in the four factors alone. "
    "Each factor is rare in one net and frequent in another, and each net has one factor at each share, so that both figures "
    "are means over the same four factors and the same four nets. The steps were chosen on the pilot seed 100, for all nets at once."
)
_TEACHERS = (
    "The control shuffles the same figures 1,000 times. Steps were chosen on the pilot seed 100, by accuracy and for each kind of net alone: 300 "
    "with labels (of 300, 400, 800), 150 with captions (of 150, 300); MSN is the cooked one of its chapter. MSN and SimCLR trained "
    "on these pictures were tried on that seed, and left out since they found only 16 to 28 %."
)
_CAPTIONS = (
    "Both CLIPs start alike and see the same pairs in the same order, with the settings of the toy CLIP; they differ in the jitter alone. The "
    "150 steps were chosen on the pilot seed 100 for the CLIP without jitter (.38 right, .33 after 300), which favours the control; nothing was searched "
    "for the one with jitter. The cooked nets, with 600 steps, show the opposite order."
)
_SWEEPS = "section 3.3.2 and Figure 6: the direction alone, in words; ours is from the published runs"
_PANTRY = "section 3.3.2 says so of ImageNet, in words; nothing on this data"


def _claim(
    identity: str, statement: str, better: str, margin: float, ours: Figure, control: Figure, what: str, **named: Any
) -> Claim:
    return Claim(
        id=f"imagenet_x.{identity}",
        statement=statement,
        better=better,
        margin=margin,
        ours=ours,
        control=control,
        control_arm=what,
        **{"metric": _RATIO} | named,
    )


def _real(
    identity: str,
    statement: str,
    better: str,
    margin: float,
    ours: str,
    control: str,
    what: str,
    *,
    where: str,
    value: str | None = None,
    **named: Any,
) -> Claim:
    """A claim about two figures on the published annotations."""
    read = {"value": value, "where": where, "read": "full text"}
    named |= {"setting": "on the published annotations", "unit": "third", "paper": read}
    return _claim(identity, statement, better, margin, Figure("real", ours), Figure("real", control), what, **named)


def _pantry(
    identity: str,
    statement: str,
    better: str,
    margin: float,
    ours: str,
    control: str,
    what: str,
    *,
    where: str = "not in the paper as read",
    arm: str = "pantry",
    **named: Any,
) -> Claim:
    """A claim about two figures of one arm on Pantry-X."""
    named["paper"] = {"value": None, "where": where}
    return _claim(identity, statement, better, margin, Figure(arm, ours), Figure(arm, control), what, **named)


CLAIMS = (
    _real("shared", "A ViT, a ResNet-50, DINO and SimCLR share their worst factors.", "higher", 0.2,
          "shared.top.mean_rank_correlation", "shared.top.null_95", "95 % quantile of what shuffled factors give",
          metric="mean rank correlation of error ratios over pairs of models", full_scale=_REPORT, control_tuning=_CHANCE,
          where="section 3.1: the hard and the easy factors of all models, in words; ours is from four published models"),
    _real("pose_easier", "None of the four errs more on odd poses than on average.", "lower", 0.1,
          "extreme.pose", "extreme.one", "1: errors as on average", full_scale=_REPORT, control_tuning=_READ,
          where="section 3.1: pose is among the easy factors, in words; ours is the highest ratio of four published models"),
    _real("texture_harder", "Each of the four errs more on odd textures than on average.", "higher", 0.5,
          "extreme.texture", "extreme.one", "1: errors as on average", full_scale=_REPORT, control_tuning=_READ,
          value="2.02 to 2.11",
          where="section 3.2.1: texture, occlusion and subcategory of a ViT of 84 % accuracy, all images, another ViT than "
          "here; ours is the lowest ratio of four published models on a third of the images"),
    _real("crop_smaller", "Strong random crops come with a higher error ratio of small objects.", "higher", 0.12,
          "sweep.crop.low.ratio.smaller", "sweep.crop.high.ratio.smaller", "published runs with hardly any crop",
          full_scale=_PUBLISHED_RUNS, control_tuning=_CROP_ENDS, where=_SWEEPS),
    _real("jitter_darker", "Strong colour jitter comes with a lower error ratio of dark images.", "lower", 0.08,
          "sweep.colorjitter.high.ratio.darker", "sweep.colorjitter.low.ratio.darker", "published runs with hardly any jitter",
          full_scale=_PUBLISHED_RUNS, control_tuning=_JITTER_ENDS, where=_SWEEPS),
    _real("jitter_pose", "Strong colour jitter comes with a higher error ratio of odd poses, which it does not touch.", "higher", 0.015,
          "sweep.colorjitter.high.ratio.pose", "sweep.colorjitter.low.ratio.pose", "published runs with hardly any jitter",
          full_scale=_PUBLISHED_RUNS, control_tuning=_JITTER_ENDS, where=_SWEEPS),
    _real("rarity_real", "Factors that are rarer among annotated training images have higher error ratios.", "lower", 0.1,
          "rarity.top.rank_correlation", "rarity.top.null_5", "5 % quantile of what shuffled factors give",
          metric="rank correlation of a factor's share in training and its mean error ratio", full_scale=_REPORT,
          control_tuning=_CHANCE, where="no such figure in the text as read; ours is from its published data"),
    _pantry("pantry_jitter", "On Pantry-X, colour jitter lowers the error ratio of dark pictures.", "lower", 0.12,
            "ratio.jitter.darker", "ratio.plain.darker", "the same net without jitter",
            full_scale=_SIMMER, control_tuning=_JITTER, where=_PANTRY),
    _pantry("pantry_jitter_gain", "On Pantry-X, colour jitter makes a net recognise more of the dark pictures.", "higher", 0.03,
            "accuracy.jitter.darker", "accuracy.plain.darker", "the same net without jitter",
            metric="accuracy on pictures with the factor", full_scale=_SIMMER, control_tuning=_JITTER),
    _pantry("pantry_jitter_spill", "On Pantry-X, colour jitter raises the error ratio of odd shapes, which it does not touch.",
            "higher", 0.06, "ratio.jitter.shape", "ratio.plain.shape", "the same net without jitter",
            full_scale=_SIMMER,
            control_tuning=f"{_JITTER} The factor was chosen as the largest rise of the untouched ones in that pilot."),
    _pantry("pantry_crop", "On Pantry-X, random crops lower the error ratio of objects that the border cuts off.", "lower", 0.2,
            "ratio.crop.partial_view", "ratio.plain.partial_view", "the same net without crops",
            full_scale=_SIMMER, control_tuning=_CROP, where=_PANTRY),
    _pantry("pantry_crop_smaller", "On Pantry-X as on ImageNet, strong random crops raise the error ratio of small objects.",
            "higher", 0.05, "ratio.crop.smaller", "ratio.plain.smaller", "the same net without crops",
            full_scale=_SIMMER, control_tuning=_CROP, where=_PANTRY),
    _pantry("pantry_rarity", "A factor that is set in 1 % of the training pictures has a higher error ratio than in 50 %.", "higher",
            0.15, "rarity.mean.1", "rarity.mean.50", "the same four factors in 50 % of the training pictures",
            metric="error ratio, mean of four factors in a Latin square", full_scale="recipes verify imagenet_x --arm pantry",
            control_tuning=_LATIN, where="not varied in the paper"),
    _pantry("pantry_shared", "On Pantry-X, nets taught by labels, by captions and by neither share their worst factors.", "higher", 0.2,
            "shared.mean_rank_correlation", "shared.null_95", "95 % quantile of what shuffled factors give", arm="captions",
            metric="mean rank correlation of error ratios over pairs of nets",
            full_scale="recipes verify imagenet_x --arm captions", control_tuning=_TEACHERS,
            where="section 3.1 says so of models on ImageNet, in words; nothing on this data"),
    _pantry("pantry_captions_jitter", "On Pantry-X, in a short run, colour jitter costs a CLIP, whose captions name colours, accuracy.", "lower", 0.08,
            "average.jitter", "average.plain", "the same CLIP without jitter", arm="captions", metric="zero-shot accuracy",
            full_scale=_SIMMER, control_tuning=_CAPTIONS),
)  # fmt: skip
