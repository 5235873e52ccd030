# SPDX-License-Identifier: Apache-2.0
"""What the ImageNet-X chapter puts to the test.

On the published annotations (arm ``real``) the metrics of a claim are counted by thirds and not by seeds: three disjoint
thirds of the images, and of the runs of each published sweep. Before the margins were fixed, the tables of all images and
all runs had been read: pose .69 to .77 and texture 2.04 to 2.39 over the four models; smaller 1.26 to 1.53 along the crop
sweep; along the jitter sweep darker 1.46 to 1.29, and pose .78 to .81. Rank correlations had not been computed. So these
verdicts say that the ratios do not hang on a few images or runs; they are no forecasts that came true.

On Pantry-X (arm ``pantry``) each seed is a training set, a test set and networks of its own. Margins were fixed after one pilot, with seed
100, which is not among the seeds that decide. In it jitter took the ratio of dark pictures from 1.32 to 1.02, the accuracy on
them from .41 to .49, and the ratio of odd shapes, which it does not touch, from .84 to .97; crops took the ratio of cut-off objects from
1.79 to 1.37 and, against the paper, that of small ones from 1.67 to 1.49; over the four factors of the Latin square the
ratio was 1.42 at 1 % of the training pictures and 1.10 at 50 %.

What taught a network (arm ``captions``) has seeds of the same kind, and a pilot with seed 100: error ratios of networks by labels, by
captions and the cooked MSN had rank correlations of .85, .78 and .68; jitter took CLIP's accuracy from .38 to .20.
"""

from functools import partial

from recipes_lib.claim import Chapter, Measurement, higher, lower

_REPORT = (
    "recipes run imagenet_x --preset report --predictions ViT.csv ResNet50.csv DINO.csv SimCLR.csv "
    "--annotations imagenet_x/annotations"
)
"""Whole validation set; ratios, rank correlations and what shuffled factors give stand in its report."""
_PUBLISHED_RUNS = "RECIPES_DATA=FOLDER recipes verify imagenet_x --arm real"
_SIMMER = "recipes run imagenet_x --preset simmer"
"""With 2.5 times the pictures, and 2.7 or, for CLIPs, 4 times the steps; its report has networks with and without augmentation."""
_RATIO = "error ratio: errors where the factor is present, over errors on average"

_READ = (
    "Nothing was searched for either: the predictions are published, and the control is no run. The ratios of all images had been "
    "read before the margin was fixed; the thirds are parts of the same images."
)
_CHANCE = (
    "Nothing was searched for either: the predictions are published, and the control shuffles the same numbers 1,000 times. No "
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
    "Both networks start alike and see the same pictures in the same order, for 300 steps at a learning rate of 3e-3; no "
    "search of it is on record. They differ in {difference}. On the pilot seed 100 alone, and for all networks at once, 300 steps were taken after 400 and 800, "
    "and dark pictures were given dusk beside a weak light. The strength of the augmentation was not searched."
)
_JITTER = _PILOT.format(difference="the jitter of brightness, contrast, saturation and hue")
_CROP = _PILOT.format(difference="the random crop, of 20 to 100 % of the area and of aspect ratios from 3:4 to 4:3")
_LATIN = (
    "All four networks have the same start, 300 steps and learning rate, and pictures that differ in the four factors alone. "
    "Each factor is rare in one network and frequent in another, and each network has one factor at each share, so that both numbers "
    "are means over the same four factors and the same four networks. The steps were chosen on the pilot seed 100, for all networks at once."
)
_TEACHERS = (
    "The control shuffles the same numbers 1,000 times. Steps were chosen on the pilot seed 100, by accuracy and for each kind of network alone: 300 "
    "with labels (of 300, 400, 800), 150 with captions (of 150, 300); MSN is the cooked one of its chapter. MSN and SimCLR trained "
    "on these pictures were tried on that seed, and left out since they found only 16 to 28 %."
)
_CAPTIONS = (
    "Both CLIPs start alike and see the same pairs in the same order, with the settings of the toy CLIP; they differ in the jitter alone. The "
    "150 steps were chosen on the pilot seed 100 for the CLIP without jitter (.38 right, .33 after 300), which favours the control; nothing was searched "
    "for the one with jitter. The cooked networks, with 600 steps, show the opposite order."
)
_SWEEPS = "section 3.3.2 and Figure 6: the direction alone, in words; ours is from the published runs"
_PANTRY = "section 3.3.2 says so of ImageNet, in words; nothing on this data"

# Claims on the published annotations are counted by thirds of the images, those on Pantry-X by seeds.
_real_higher, _real_lower = (
    partial(claim, metric=_RATIO, setting="on the published annotations", unit="third") for claim in (higher, lower)
)
_pantry_higher, _pantry_lower = (
    partial(claim, metric=_RATIO, paper={"value": None, "where": "not in the paper as read"})
    for claim in (higher, lower)
)

_PANTRY_STUDY = "recipes_lib.recipes.imagenet_x.pantry_study"

CHAPTER = Chapter(
    name="imagenet_x",
    measurements={
        # networks by augmentation and by a factor's rarity in training, on Pantry-X
        "pantry": Measurement(f"{_PANTRY_STUDY}:measure", fingerprint=f"{_PANTRY_STUDY}:fingerprint"),
        # CLIPs by augmentation on Pantry-X, and what they share with a network with labels and with MSN
        "captions": Measurement(
            f"{_PANTRY_STUDY}:measure_captions", fingerprint=f"{_PANTRY_STUDY}:fingerprint_captions"
        ),
        # four models on a third of ImageNet-X, and a third of the runs of two published sweeps
        "real": Measurement("recipes_lib.recipes.imagenet_x.real_study:measure", needs_data=True),
    },
    headline=(
        "imagenet_x.shared",
        "imagenet_x.texture_harder",
        "imagenet_x.crop_smaller",
        "imagenet_x.pantry_jitter",
        "imagenet_x.pantry_rarity",
    ),
    claims=(
        _real_higher(
            "imagenet_x.shared",
            "A ViT, a ResNet-50, DINO and SimCLR share their worst factors.",
            ours=("real", "shared.top.mean_rank_correlation"),
            control=("real", "shared.top.null_95"),
            by=0.2,
            metric="mean rank correlation of error ratios over pairs of models",
            control_arm="95 % quantile of what shuffled factors give",
            control_tuning=_CHANCE,
            paper={
                "value": None,
                "where": "section 3.1: the hard and the easy factors of all models, in words; ours is from four published models",
                "read": "full text",
            },
            full_scale=_REPORT,
        ),
        _real_lower(
            "imagenet_x.pose_easier",
            "None of the four errs more on odd poses than on average.",
            ours=("real", "extreme.pose"),
            control=("real", "extreme.one"),
            by=0.1,
            control_arm="1: errors as on average",
            control_tuning=_READ,
            paper={
                "value": None,
                "where": "section 3.1: pose is among the easy factors, in words; ours is the highest ratio of four published models",
                "read": "full text",
            },
            full_scale=_REPORT,
        ),
        _real_higher(
            "imagenet_x.texture_harder",
            "Each of the four errs more on odd textures than on average.",
            ours=("real", "extreme.texture"),
            control=("real", "extreme.one"),
            by=0.5,
            control_arm="1: errors as on average",
            control_tuning=_READ,
            paper={
                "value": "2.02 to 2.11",
                "where": "section 3.2.1: texture, occlusion and subcategory of a ViT of 84 % accuracy, all images, another ViT than "
                "here; ours is the lowest ratio of four published models on a third of the images",
                "read": "full text",
            },
            full_scale=_REPORT,
        ),
        _real_higher(
            "imagenet_x.crop_smaller",
            "Strong random crops come with a higher error ratio of small objects.",
            ours=("real", "sweep.crop.low.ratio.smaller"),
            control=("real", "sweep.crop.high.ratio.smaller"),
            by=0.12,
            control_arm="published runs with hardly any crop",
            control_tuning=_CROP_ENDS,
            paper={"value": None, "where": _SWEEPS, "read": "full text"},
            full_scale=_PUBLISHED_RUNS,
        ),
        _real_lower(
            "imagenet_x.jitter_darker",
            "Strong colour jitter comes with a lower error ratio of dark images.",
            ours=("real", "sweep.colorjitter.high.ratio.darker"),
            control=("real", "sweep.colorjitter.low.ratio.darker"),
            by=0.08,
            control_arm="published runs with hardly any jitter",
            control_tuning=_JITTER_ENDS,
            paper={"value": None, "where": _SWEEPS, "read": "full text"},
            full_scale=_PUBLISHED_RUNS,
        ),
        _real_higher(
            "imagenet_x.jitter_pose",
            "Strong colour jitter comes with a higher error ratio of odd poses, which it does not touch.",
            ours=("real", "sweep.colorjitter.high.ratio.pose"),
            control=("real", "sweep.colorjitter.low.ratio.pose"),
            by=0.015,
            control_arm="published runs with hardly any jitter",
            control_tuning=_JITTER_ENDS,
            paper={"value": None, "where": _SWEEPS, "read": "full text"},
            full_scale=_PUBLISHED_RUNS,
        ),
        _real_lower(
            "imagenet_x.rarity_real",
            "Factors that are rarer among annotated training images have higher error ratios.",
            ours=("real", "rarity.top.rank_correlation"),
            control=("real", "rarity.top.null_5"),
            by=0.1,
            metric="rank correlation of a factor's share in training and its mean error ratio",
            control_arm="5 % quantile of what shuffled factors give",
            control_tuning=_CHANCE,
            paper={
                "value": None,
                "where": "no such figure in the text as read; ours is from its published data",
                "read": "full text",
            },
            full_scale=_REPORT,
        ),
        _pantry_lower(
            "imagenet_x.pantry_jitter",
            "On Pantry-X, colour jitter lowers the error ratio of dark pictures.",
            ours=("pantry", "ratio.jitter.darker"),
            control=("pantry", "ratio.plain.darker"),
            by=0.12,
            control_arm="the same network without jitter",
            control_tuning=_JITTER,
            paper={"value": None, "where": _PANTRY},
            full_scale=_SIMMER,
        ),
        _pantry_higher(
            "imagenet_x.pantry_jitter_gain",
            "On Pantry-X, colour jitter makes a network recognise more of the dark pictures.",
            ours=("pantry", "accuracy.jitter.darker"),
            control=("pantry", "accuracy.plain.darker"),
            by=0.03,
            metric="accuracy on pictures with the factor",
            control_arm="the same network without jitter",
            control_tuning=_JITTER,
            full_scale=_SIMMER,
        ),
        _pantry_higher(
            "imagenet_x.pantry_jitter_spill",
            "On Pantry-X, colour jitter raises the error ratio of odd shapes, which it does not touch.",
            ours=("pantry", "ratio.jitter.shape"),
            control=("pantry", "ratio.plain.shape"),
            by=0.06,
            control_arm="the same network without jitter",
            control_tuning=f"{_JITTER} The factor was chosen as the largest rise of the untouched ones in that pilot.",
            full_scale=_SIMMER,
        ),
        _pantry_lower(
            "imagenet_x.pantry_crop",
            "On Pantry-X, random crops lower the error ratio of objects that the border cuts off.",
            ours=("pantry", "ratio.crop.partial_view"),
            control=("pantry", "ratio.plain.partial_view"),
            by=0.2,
            control_arm="the same network without crops",
            control_tuning=_CROP,
            paper={"value": None, "where": _PANTRY},
            full_scale=_SIMMER,
        ),
        _pantry_higher(
            "imagenet_x.pantry_crop_smaller",
            "On Pantry-X as on ImageNet, strong random crops raise the error ratio of small objects.",
            ours=("pantry", "ratio.crop.smaller"),
            control=("pantry", "ratio.plain.smaller"),
            by=0.05,
            control_arm="the same network without crops",
            control_tuning=_CROP,
            paper={"value": None, "where": _PANTRY},
            full_scale=_SIMMER,
        ),
        _pantry_higher(
            "imagenet_x.pantry_rarity",
            "A factor that is set in 1 % of the training pictures has a higher error ratio than in 50 %.",
            ours=("pantry", "rarity.mean.1"),
            control=("pantry", "rarity.mean.50"),
            by=0.15,
            metric="error ratio, mean of four factors in a Latin square",
            control_arm="the same four factors in 50 % of the training pictures",
            control_tuning=_LATIN,
            paper={"value": None, "where": "not varied in the paper"},
            full_scale="recipes verify imagenet_x --arm pantry",
        ),
        _pantry_higher(
            "imagenet_x.pantry_shared",
            "On Pantry-X, networks taught by labels, by captions and by neither share their worst factors.",
            ours=("captions", "shared.mean_rank_correlation"),
            control=("captions", "shared.null_95"),
            by=0.2,
            metric="mean rank correlation of error ratios over pairs of networks",
            control_arm="95 % quantile of what shuffled factors give",
            control_tuning=_TEACHERS,
            paper={"value": None, "where": "section 3.1 says so of models on ImageNet, in words; nothing on this data"},
            full_scale="recipes verify imagenet_x --arm captions",
        ),
        _pantry_lower(
            "imagenet_x.pantry_captions_jitter",
            "On Pantry-X, in a short run, colour jitter costs a CLIP, whose captions name colours, accuracy.",
            ours=("captions", "average.jitter"),
            control=("captions", "average.plain"),
            by=0.08,
            metric="zero-shot accuracy",
            control_arm="the same CLIP without jitter",
            control_tuning=_CAPTIONS,
            full_scale=_SIMMER,
        ),
    ),
)
