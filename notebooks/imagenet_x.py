# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ImageNet-X: why a model fails
#
# *Accuracy says how often a model errs. Look at what is odd about the images on which it does, and you know what to mend, and what you broke
# while mending something else.*
#
# Paper: {cite:t}`idrissi2023imagenetx`. Implementation: `recipes_lib/recipes/imagenet_x/` and `recipes_lib/factors/`, the same code from this
# page to two thousand models.
# You need: nothing but a classifier's answers.

# %% tags=["hide-input"]
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and not importlib.util.find_spec(
    "recipes_lib"
):  # Colab has torch; add only the cookbook
    source = "ssl-cookbook @ git+https://github.com/ssl-cookbook/ssl-cookbook@v0.1.0"
    light = ["timm", "lightly", "tyro", "rich", "safetensors", "pyyaml", "dacite"]
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", source, *light])

from recipes_lib import notebook

notebook.start("imagenet_x")

# %% [markdown]
# ## The question
#
# Here is one mug, as a net meets mugs in training, and then with one thing odd about it at a time:

# %% mystnb={"image": {"alt": "Fifteen pictures of one mug: an ordinary one, and fourteen in each of which one factor is odd, such as its pose, background, colour, size, light or style."}} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch

from recipes_lib import diagrams, plots
from recipes_lib.data import embedded, pantry
from recipes_lib.recipes.imagenet_x import pantry_nets as nets
from recipes_lib.recipes.imagenet_x import pantry_run as imagenet_x_pantry
from recipes_lib.recipes.imagenet_x import pantry_study as study
from recipes_lib.recipes.imagenet_x import pantry_x
from recipes_lib.recipes.imagenet_x import real_study as factor_study
from recipes_lib.recipes.imagenet_x import recipe as imagenet_x

mug = int((pantry_x.scenes(24, 2, "test", {}).label == pantry.CLASSES.index("mug")).nonzero()[0])
figure, axes = plt.subplots(3, 5, figsize=(8, 5.2), layout="constrained")
for ax, name in zip(axes.flat, ["ordinary", *pantry_x.FACTORS], strict=True):
    shares = {} if name == "ordinary" else {name: 1.0}
    picture = pantry_x.scenes(24, 2, "test", shares).select(torch.tensor([mug]))
    plots.image_grid(ax, pantry.render(picture, 64), title=name)
plt.show()

# %% [markdown]
# Two nets with equal accuracy can differ on all of these. Which one would you put on a robot that works at night?
#
# ImageNet-X asked people. For each validation image of ImageNet an annotator saw three typical images of its class, ticked
# which of sixteen {term}`factors of variation <factor of variation>` set it apart (marks `multi`), and described it in words; the ticked factor whose
# name is nearest to these words in a word embedding is the mark `top`. On {term}`Pantry-X`, fourteen of the sixteen factors are *set*: we know what
# is odd, since we drew it. The other two are missing on Pantry-X: its classes have no subcategories, and its scenes show no
# people, so no person can block an object.

# %% [markdown]
# :::{claims} imagenet_x
# :::

# %% [markdown]
# On the Pantry, each seed is a training set, a test set and nets of its own, and the margins were fixed after one pilot on another seed.
# On the published annotations the error ratios are counted by *thirds*: three disjoint thirds of the images and of the published runs. The tables of
# all images and all runs had been read before those margins were fixed.

# %% [markdown]
# ## The method in one picture

# %% mystnb={"image": {"alt": "Diagram. Each image and three typical ones of its class go to people, who mark its factors. The image goes to a model, whose answer is right or wrong. Marks and answers are counted, and give an error ratio with an interval for each factor."}} tags=["hide-input"]
boxes = {
    "image": (0, 0.5),
    "3 typical ones\nof its class": (0, 1.3),
    "people:\n16 factors": (1.2, 1.0),
    "model": (1.2, 0),
    "marks": (2.3, 1.0),
    "right or\nwrong": (2.3, 0),
    "counts": (3.4, 0.5),
    "error ratio,\ninterval": (4.5, 0.5),
}
names = list(boxes)
arrows = [(0, 2), (1, 2), (0, 3), (2, 4), (3, 5), (4, 6), (5, 6), (6, 7)]
figure, ax = plt.subplots(figsize=(8, 2.6))
diagrams.flow(ax, boxes, [(names[start], names[end]) for start, end in arrows])
plt.show()

# %% [markdown]
# ## The equations
#
# Let $c_i \in \{0, 1\}$ say whether image $i$ of $N$ is classified rightly, and $M_{if}$ whether it has factor $f$. With accuracy $a$ over all images
# and $a_f$ over those with the factor,
#
# $$a = \frac{1}{N} \sum_i c_i, \qquad a_f = \frac{\sum_i M_{if}\, c_i}{\sum_i M_{if}}, \qquad e_f = \frac{1 - a_f}{1 - a}$$ (imagenet-x-ratio)
#
# The {term}`error ratio` $e_f$ is 1 where the factor makes no difference, and 2 where errors are twice as frequent. Where every image has one mark
# ($n_f$ images with factor $f$),
#
# $$\frac{1}{N} \sum_f n_f\, e_f = 1$$ (imagenet-x-identity)
#
# so **not all ratios can fall**: what a model gains on one factor must show as a rise on another. Keep this in mind.
#
# | symbol | in the code | meaning |
# |---|---|---|
# | $c$ | `factors.right(...)` | bool [models, images] |
# | $M$ | `annotations.marks["multi"]` | bool [images, factors] |
# | $a$, $a_f$, $e_f$ | `counts.average`, `.accuracy`, `.error_ratio` | [models], [models, factors] |

# %% [markdown]
# ## By hand
#
# Eight images. Factor A is on the first four, B on the next two; the last two have none.

# %% tags=["nbval-check-output"]
right = np.array([1, 0, 1, 1, 0, 1, 1, 0])
marked = np.array([[1, 0]] * 4 + [[0, 1]] * 2 + [[0, 0]] * 2)
a = right.mean()
a_f = right @ marked / marked.sum(axis=0)
print("a =", a, " a_f =", a_f.tolist(), " e_f =", ((1 - a_f) / (1 - a)).round(6).tolist())

# %% [markdown]
# How sure is that? Draw eight images with replacement, again and again, and look at the spread (the bootstrap):

# %%
generator = np.random.default_rng(0)
rows = generator.integers(8, size=(4000, 8))
with np.errstate(invalid="ignore", divide="ignore"):
    wrong = 1 - right[rows]
    drawn = (wrong * marked[rows, 0]).sum(1) / marked[rows, 0].sum(1) / wrong.mean(1)
print("95 % of the ratios of A lie in", np.nanquantile(drawn[np.isfinite(drawn)], [0.025, 0.975]).round(2).tolist())

# %% [markdown]
# From four images we have learned nothing about A. The rarest factors of ImageNet-X have about forty: no ratio without an interval.

# %% [markdown]
# ## The same numbers
#
# The library counts all models at once: right answers [models, images] times marks [images, factors] is one matrix product.

# %% tags=["nbval-check-output"]
from recipes_lib.factors.annotations import Annotations
from recipes_lib.factors.predictions import Predictions
from recipes_lib.factors.report import factor_report

files = np.array([f"{number}.png" for number in range(8)])
images = Annotations(files, np.zeros(8, np.int16), 2, ("A", "B"), {"multi": marked.astype(bool)})
answers = Predictions(("net",), (1 - right)[None].astype(np.int16))  # class 0 is right everywhere
table = factor_report(images, answers).tables["multi"]["class"]
np.testing.assert_allclose(table.counts.error_ratio[0], (1 - a_f) / (1 - a))
print(dict(zip("AB", table.counts.error_ratio[0].round(6).tolist(), strict=True)))

# %% [markdown]
# And the whole report, as the command line makes it. With `data.name` drawn, images and answers are drawn by chance with effects that are known, so
# you can see that they are found: "plain" nets err twice as often in the dark as elsewhere.

# %%
from pathlib import Path
from tempfile import mkdtemp

from IPython.utils.capture import capture_output

from recipes_lib.config import override

with capture_output():  # the run names its page, which lies in a temporary folder here
    drawn = imagenet_x.RECIPE.run(override(imagenet_x.PRESETS["toy"], {"data.name": "drawn"}), Path(mkdtemp()) / "run")
print(drawn.report["notes"][0])
print("tables:", ", ".join(sorted(path.stem for path in drawn.folder.glob("*.csv"))))
cell = drawn.report["models"]["plain-1"]["multi"]["class"]["darker"]
print(
    f"plain-1 on {cell['n']} dark images: accuracy {cell['accuracy']:.2f}, error ratio {cell['error_ratio']:.2f}",
    end=" ",
)
print(f"(95 % interval {cell['low']:.2f} to {cell['high']:.2f})")

# %% [markdown]
# ## Live on the Pantry
#
# In preset `toy`, four small nets learn twelve kitchen objects from the same 1,200 pictures, in which each factor is odd in 3 % of the images: one
# net without augmentation (`plain`), three through one augmentation each. They are tested on 1,200 others, in which each factor is odd in 12 %.

# %%
with capture_output():
    result = imagenet_x.RECIPE.run(imagenet_x.PRESETS["toy"], Path(mkdtemp()) / "run")
for name, shares in result.report["average"].items():
    dark = result.report["models"][name]["multi"]["class"]["darker"]["error_ratio"]
    print(f"{name:7} right on {shares['class']:.0%}, error ratio on dark pictures {dark:.2f}")

# %% [markdown]
# In the run folder there is a page with all of this, `index.html`. Here is one figure of it:

# %% mystnb={"image": {"alt": "Error ratios with intervals of four nets on Pantry-X for fourteen factors, sorted."}} tags=["hide-input"]
from recipes_lib.recipes.imagenet_x import pictures as imagenet_x_plots

config = imagenet_x.PRESETS["toy"]
shares = dict.fromkeys(pantry_x.FACTORS, config.nets.asked_share)
test = pantry_x.image_set(config.data.images, config.report.seed, "test", shares)
taught = {name: imagenet_x_pantry.reopen(result.folder, name) for name in nets.AUGMENTATIONS}
report = study.report({name: nets.answers(net, test) for name, net in taught.items()}, test)
figure, ax = plt.subplots(figsize=(6.8, 4.8), layout="constrained")
imagenet_x_plots.error_ratios(ax, report, report.tables["multi"]["class"])
plt.show()

# %% [markdown]
# ### One cooked earlier
#
# `recipes cook imagenet_x` (preset `simmer`) gave such nets five times the pictures and more than six times the steps. They
# err less; do they err on the same?

# %% mystnb={"image": {"alt": "Error ratio with interval of each of fourteen factors for the plain net after the toy's run and after the cooked one, sorted."}} tags=["hide-input"]
import json

cooked = json.loads((embedded.path("cooked/imagenet_x") / "report.json").read_text())
runs = {"toy": result.report, "cooked earlier": cooked}
cells = {name: run["models"]["plain"]["multi"]["class"] for name, run in runs.items()}
order = sorted(pantry_x.FACTORS, key=lambda name: cells["cooked earlier"][name]["error_ratio"])
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for index, (name, found) in enumerate(cells.items()):
    look, heights = plots.style(index), np.arange(len(order)) + 0.24 * (index - 0.5)
    ax.hlines(heights, [found[f]["low"] for f in order], [found[f]["high"] for f in order], color=look["color"])
    right = runs[name]["average"]["plain"]["class"]
    ratios = [found[f]["error_ratio"] for f in order]
    ax.plot(ratios, heights, linestyle="none", **look, markersize=5, label=f"{name}: {right:.0%} right")
ax.axvline(1, color=plots.BASELINE, linestyle="--", linewidth=1)
ax.set_yticks(range(len(order)), order)
ax.set(xlabel="error ratio of the plain net")
ax.legend(frameon=False, loc="lower right")
plt.show()

# %% tags=["hide-input"]
for name, shares in cooked["average"].items():
    dark = cooked["models"][name]["multi"]["class"]["darker"]["error_ratio"]
    print(f"{name:12} right on {shares['class']:.0%}, error ratio on dark pictures {dark:.2f}")
agreement = cooked["consistency"]["multi"]["class"]
print(f"mean rank correlation of their error ratios over all pairs: {agreement['mean_rank_correlation']:.2f}", end=", ")
print(f"p = {agreement['p']:.3f}")

# %% [markdown]
# More training does not even them out. Cut-off and small objects stay among the worst, with ratios that are higher than before, since the
# ordinary pictures are what the net has got right by now. Jitter has all but cured the dark. (The nets named `clip` learned from captions; more of them below.)
#
# On real images the story would end here: dark images have more errors, but are dark images perhaps also blurred ones? On the Pantry we ask again, with
# **the same pictures and the light turned on**:

# %%
from dataclasses import replace

factors = pantry.Factors(**test.factors)
dark = torch.from_numpy(pantry_x.annotations(test).marks["multi"][:, pantry_x.FACTORS.index("darker")])
those = factors.select(dark.nonzero()[:, 0])
for name, strength in (("dark", those.light_strength), ("lit", 1.0)):
    lit = pantry.fix(those, light_strength=strength)
    pictures = replace(test.select(dark.nonzero()[:, 0]), images=pantry.render(lit, pantry_x.SIZE))
    right = nets.answers(taught["plain"], pictures) == pictures.labels.numpy()
    print(f"{name:5} {len(right)} pictures, errors on {1 - right.mean():.0%}")

# %% [markdown]
# ## What real models fail on
#
# ImageNet-X's annotations are under CC BY-NC 4.0, so this book does not ship them. You can have them from the authors' own package:
#
# ```sh
# pip install --no-deps imagenet-x==0.0.7    # its folder imagenet_x/annotations is what --annotations takes
# ```
#
# What follows are aggregates, computed by `recipes verify imagenet_x` from the annotations, four models' predictions and tables that
# {cite:t}`idrissi2023imagenetx` published: one point per factor and model, of 46,110 images.

# %% mystnb={"image": {"alt": "Error ratios with intervals of DINO, ResNet-50, SimCLR and ViT for the sixteen factors of ImageNet-X. Texture and subcategory are about twice as hard as the average, pose and pattern are easier, for all four."}} tags=["hide-input"]
figures = json.loads(embedded.path("claims/imagenet_x.json").read_text())["figures"]
thirds, seeds = list(figures["real"].values()), list(figures["pantry"].values())
whole = thirds[0]["whole"]
order = sorted(factor_study.FACTORS, key=lambda name: np.mean([whole[model][name]["error_ratio"] for model in whole]))
figure, ax = plt.subplots(figsize=(6.8, 4.8), layout="constrained")
for index, model in enumerate(whole):
    cells, heights = [whole[model][name] for name in order], np.arange(len(order)) + 0.18 * (index - 1.5)
    look = plots.style(index)
    ax.hlines(heights, [c["low"] for c in cells], [c["high"] for c in cells], color=look["color"], linewidth=1)
    ax.plot([c["error_ratio"] for c in cells], heights, linestyle="none", **look, markersize=4, label=model)
ax.axvline(1, color=plots.BASELINE, linestyle="--", linewidth=1)
ax.set_yticks(range(len(order)), [f"{name} ({whole['ViT'][name]['n']:,})" for name in order])
ax.set(xlabel="error ratio, marks top (number of images)")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Supervised or not, convolution or attention: the order is nearly the same. A permutation null says how much of that chance would give:


# %% tags=["hide-input"]
def listed(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


for kind in ("top", "multi"):
    rows = [third["shared"][kind] for third in thirds]
    print(f"marks {kind}: mean rank correlation in each third", listed([row["mean_rank_correlation"] for row in rows]))
    print("   95 % of shuffles are below", listed([row["null_95"] for row in rows]))

# %% [markdown]
# ## Spill-over
#
# An augmentation is meant to help with what it varies. The authors trained ResNet-50s with crops (1,272 runs in their tables) and colour jitter (664
# runs) of every strength. What happens to the other factors is the {term}`spill-over`. By the names of the runs, those of one sweep have the same
# weight decay; by the paper, the strength of the jitter also sets how often images become grey or solarised.

# %% mystnb={"image": {"alt": "Four panels over the strength of an augmentation in published runs. With stronger crops the error ratio of small objects rises; their accuracy hardly moves, while the average rises. With stronger colour jitter the error ratio of dark images falls and that of odd poses rises slightly."}} tags=["hide-input"]


def show_sweep(axes: np.ndarray, name: str, shown: list[str], xlabel: str) -> None:
    x = [point["strength"] for point in thirds[0]["sweep"][name]["curve"]]
    for ax, key in zip(axes, ("ratio", "accuracy"), strict=True):
        lines = {f: [[p[key][f] for p in third["sweep"][name]["curve"]] for third in thirds] for f in shown}
        if key == "accuracy":
            lines["all images"] = [[p["average"] for p in third["sweep"][name]["curve"]] for third in thirds]
        plots.curve(ax, x, lines, xlabel=xlabel, ylabel={"ratio": "error ratio"}.get(key, key))
        ax.get_legend().remove()
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # of both panels


figure, axes = plt.subplots(2, 2, figsize=(8.8, 6), layout="constrained")
show_sweep(axes[0], "crop", ["smaller", "larger", "pose"], "smallest crop, % of the area (left: strong)")
show_sweep(axes[1], "colorjitter", ["darker", "color", "pose"], "colour jitter (right: strong)")
plt.show()

# %% [markdown]
# Read the left and the right panels together. On the left, strong crops seem to harm small objects. On the right, small objects are recognised
# about as well as before; all the *others* gained, and equation {eq}`imagenet-x-identity` does the rest. With colour jitter it is another
# matter: there the accuracy on odd poses falls with that on all images. A ratio ranks a model's weaknesses; whether you *lost* anything, accuracy says.
#
# The same on the Pantry, for three augmentations, one point per seed; in a second colour are the factors that the augmentation varies:

# %% mystnb={"image": {"alt": "Three panels, one an augmentation: colour jitter, crop and blur. Each shows for fourteen factors the change of the error ratio against the plain net, a point per seed; factors that the augmentation varies are in a second colour."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(9, 4), sharey=True, layout="constrained")
for ax, (name, own) in zip(axes, nets.TOUCHES.items(), strict=True):
    for height, factor in enumerate(pantry_x.FACTORS):
        look = plots.style(1 if factor in own else 0)
        points = [seed["change"][name][factor] for seed in seeds]
        ax.plot(points, [height] * len(points), linestyle="none", **look, markersize=4, alpha=0.6)
        ax.plot(np.mean(points), height, linestyle="none", **look, markersize=8)
    ax.axvline(0, color=plots.BASELINE, linestyle="--", linewidth=1)
    ax.set(title=name, xlabel="change of the ratio")
axes[0].set_yticks(range(len(pantry_x.FACTORS)), pantry_x.FACTORS)
plt.show()

# %% tags=["hide-input"]
print("mean of three seeds; change of the error ratio against the plain net, mean of the factors that ...")
print(f"{'net':8}{'accuracy':>10}{'... it varies':>16}{'... it does not':>18}")
for name in nets.AUGMENTATIONS:
    print(f"{name:8}{np.mean([seed['average'][name] for seed in seeds]):10.2f}", end="")
    for key, width in (("touched", 16), ("untouched", 18)) if name != "plain" else ():
        print(f"{np.mean([seed[key][name] for seed in seeds]):+{width}.2f}", end="")
    print()

# %% [markdown]
# Jitter and crops lower the ratios of the factors that they vary, as they should; blur does little to pictures of 32 pixels. What else moves is to be
# read with care, for two reasons. In three hundred steps an augmented net learns less, so its average is lower; and the more errors there are, the
# nearer all ratios come to 1, since none can exceed $1 / (1 - a)$. So what was hard gets a lower ratio, and what was easy a higher one, whatever was
# varied. Small objects are such a case: crops come with a *lower* ratio here, against what the published runs show.

# %% [markdown]
# ## Rarity
#
# Are these factors hard because they are rare in training? On the published annotations one can only compare factors with each other:

# %% tags=["hide-input"]
for kind in ("top", "multi"):
    rows = [third["rarity"][kind] for third in thirds]
    print(f"marks {kind}: rank correlation with the share in training, in each third", end=" ")
    print(listed([row["rank_correlation"] for row in rows]))
    print("   5 % of shuffles are below", listed([row["null_5"] for row in rows]))

# %% [markdown]
# But a rare factor may be hard for other reasons. On the Pantry we set the share ourselves. Four nets and four factors make a Latin square: each net
# meets one of the four in 1 %, one in 5 %, one in 20 %, one in 50 % of its training pictures. All are tested on the same pictures.

# %% mystnb={"image": {"alt": "Error ratio over the share of the training pictures, from 1 to 50 percent, one line each for dark, small, blocked and oddly posed objects."}} tags=["hide-input"]
levels = [f"{100 * share:g}" for share in study.SHARES]
lines = {name: [[seed["rarity"][name][level] for level in levels] for seed in seeds] for name in study.RARE}
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
plots.curve(ax, 100 * np.array(study.SHARES), lines, xlabel="share of the training pictures, %", ylabel="error ratio")
ax.set_xscale("log")
ax.set_xticks(100 * np.array(study.SHARES), levels)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The share is set by us, and the other three factors take turns at every share; so on the Pantry rarity *is* a cause. It is not the only one. Even
# when half of all training pictures show a small object, the error ratio of small objects stays above 1. And a card in front of the object makes so
# few further errors that its ratio hardly depends on how often the net has met one.

# %% [markdown]
# ## What taught the net
#
# The paper finds that supervised and self-supervised models fail on much the same things, and that the latter are slightly more robust to some
# factors, such as colour, dark images and texture. On the Pantry, we compare three nets that have little in common: a
# small convolutional one that learned from labels; the book's {doc}`clip`, from captions of the same pictures, which classifies by sentences; and
# {doc}`msn` as it was cooked for its chapter, from neither, on other pictures, which classifies by its nearest neighbours.

# %% mystnb={"image": {"alt": "Error ratio of each of fourteen factors on Pantry-X for nets taught by labels, by captions and by neither, a small point per seed and a large one for the mean."}} tags=["hide-input"]
by_teacher = list(figures["captions"].values())
names = {"labels": "labels", "captions": "captions (CLIP)", "msn": "neither (MSN)"}
worst = sorted(
    pantry_x.FACTORS, key=lambda f: np.mean([[seed["teacher"]["ratio"][n][f] for n in names] for seed in by_teacher])
)
figure, ax = plt.subplots(figsize=(6.8, 4.6), layout="constrained")
for index, (name, label) in enumerate(names.items()):
    look, heights = plots.style(index), np.arange(len(worst)) + 0.2 * (index - 1)
    ratios = np.array([[seed["teacher"]["ratio"][name][f] for f in worst] for seed in by_teacher])
    for row in ratios:
        ax.plot(row, heights, linestyle="none", **look, markersize=3, alpha=0.5)
    ax.plot(ratios.mean(axis=0), heights, linestyle="none", **look, markersize=7, label=label)
ax.axvline(1, color=plots.BASELINE, linestyle="--", linewidth=1)
ax.set_yticks(range(len(worst)), worst)
ax.set(xlabel="error ratio")
ax.legend(frameon=False)
plt.show()

# %% tags=["hide-input"]
for name, label in names.items():
    print(f"{label:16} accuracy, each seed:", listed([seed["teacher"]["average"][name] for seed in by_teacher]))
for word, key in (("their rank correlation", "mean_rank_correlation"), ("95 % of shuffles are below", "null_95")):
    print(f"{word}:", listed([seed["shared"][key] for seed in by_teacher]))
for name in nets.AUGMENTATIONS:
    print(f"accuracy of {name:7} with labels:", listed([seed["average"][name] for seed in seeds]), end="; ")
    print("with captions:", listed([seed["average"][name] for seed in by_teacher]))

# %% [markdown]
# Small objects, odd colours and the dark are hard for all three; odd shapes and further objects for none. Cut-off objects are among the worst for
# the net with labels and for CLIP, and less so for MSN, for which odd backgrounds are worse. So much of
# what a model fails on lies in the pictures, and not in what taught it. CLIP's ratios are nearer to 1, but CLIP errs most, and no ratio can exceed
# $1 / (1 - a)$: compare orders, not heights.
#
# Nor is an augmentation good or bad by itself. In these short runs jitter costs the net with labels about a tenth of its accuracy, and CLIP about a
# third. An explanation is at hand: captions name colours, and "an orange mug" is false of the mug that jitter has just made blue. Do not trust it. Of the
# CLIPs that were cooked earlier, with more pictures and four times the steps, the one with jitter is the *best*. What the short runs show is that
# jitter makes learning slower, and what looks like a law at 150 steps may be gone at 600. The number of 150 steps had been chosen on a pilot seed for the
# CLIP *without* jitter, which favours it; nothing was searched for the one with jitter.

# %% [markdown]
# ## Knobs
#
# In a live kernel: learn from pictures in which one factor is as frequent as you like, for 200 steps.

# %% tags=["remove-output", "hide-input"]
from ipywidgets import Dropdown, FloatSlider, interact_manual


def try_out(factor: str = "darker", share: float = 0.3) -> None:
    pictures = pantry_x.image_set(1500, 8, "train", study.usual_shares() | {factor: share})
    net = nets.with_labels(pictures, nets.PLAIN, 8, steps=200)
    found = study.report({"net": nets.answers(net, test)}, test)
    for name, ratio in zip(found.factors, found.tables["multi"]["class"].counts.error_ratio[0], strict=True):
        print(f"{name:16} {ratio:.2f}")


interact_manual(try_out, factor=Dropdown(options=pantry_x.FACTORS), share=FloatSlider(0.3, min=0, max=1, step=0.05))

# %% [markdown]
# ## Break it
#
# A report can be wrong because a prediction file is not what it seems. In the first file below, a class folder was missing when the ids were made, so
# that from one class on they are one too low; most answers look right, and the accuracy is merely worse. In the second an image is lost:

# %% tags=["nbval-check-output"]
from recipes_lib.errors import DataError
from recipes_lib.factors import predictions

labelled = pantry_x.annotations(test)
good, place = nets.answers(taught["plain"], test), Path(mkdtemp())
sure = np.ones(len(good), np.float32)
shifted = np.where(labelled.labels > 8, labelled.labels - 1, labelled.labels)
predictions.write(place / "shifted.csv", labelled.names, shifted, sure)
predictions.write(place / "short.csv", labelled.names[1:], good[1:], sure[1:])
for name in ("shifted.csv", "short.csv"):
    try:
        predictions.read([place / name], labelled)
    except DataError as error:
        print(str(error).replace(f"{place}/", ""))

# %% [markdown]
# Names may come in any order and with folders before them: images are joined by name. The official toolkit compares row by row, and needs its own order.

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify imagenet_x`, and is compared with margins fixed before. Each row of the figure is a claim. It holds
# where the mean lies in the shaded part and no point lies on the other side. On the published annotations the points are thirds; on the
# Pantry they are seeds.

# %% mystnb={"image": {"alt": "Fifteen claims, one for each row, by the difference from the control in margins, three thirds or seeds each. Twelve hold, most by two to four margins with little spread: models share their worst factors, crops and jitter change what they fail on, and rarer factors do more harm. Three do not hold: the rarity of annotated factors has thirds on both sides of the control, jitter spills over to odd shapes in one seed only, and small objects under crops lie five or more margins on the wrong side."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("imagenet_x")

# %% [markdown]
# Three do not hold. *Odd shapes under jitter*: in the pilot this was the largest rise of all factors that jitter does not touch, which is how it
# became a claim; with other seeds it is gone. Whoever looks at eleven changes finds a large one, and that is what new seeds are for. (In the
# three seeds here it is *larger* that rises each time. Now you know what to think of it.)
# *Small objects under crops*: with these nets it is the other way round than in the published runs, as the pilot had shown. *Rarity of the annotated
# factors*: the sign is as expected in every third, but of sixteen factors chance gives as much too often; the Pantry, where the share is set, can say more.
#
# What the others rest on: the published runs are of one architecture, and their tables had been read before the margins were fixed. Thirds of them are no
# new experiments, so that three of three says only that these tables are not noise. The Pantry's nets are small and learn for 300 steps, CLIPs for 150; of
# those with labels about half of all answers are wrong, of the CLIPs about two thirds. The
# strengths of the augmentations were not searched, and no search of the learning rate is on record.
#
# ### The paper's numbers beside ours
#
# Of the paper we read the submission's full text without its appendix. It has one figure of the kind that a claim here compares:

# %% tags=["hide-input"]
claims.against_paper("imagenet_x")

# %% [markdown]
# The figure is that of a ViT of 84 % accuracy, on all its images. Ours is the lowest of four models, on a third; the ViT whose predictions
# the package publishes is another one. Here are the ratios of that ViT on all images that count, for texture, occlusion and subcategory:

# %% tags=["hide-input"]
for name in ("texture", "object_blocking", "person_blocking", "subcategory"):
    print(f"{name:16} {whole['ViT'][name]['error_ratio']:.2f}")

# %% [markdown]
# Of augmentations the paper speaks in words. Beside them, the mean error ratios of the published runs at the weak and the strong end:

# %% tags=["hide-input"]
words = {
    "crop": {"better": ("pose", "partial_view", "pattern", "texture"), "worse": ("subcategory", "smaller")},
    "colorjitter": {"better": ("color", "darker", "brighter", "larger"), "worse": ("pose",)},
}
for sweep, weak, strong in (("crop", "high", "low"), ("colorjitter", "low", "high")):
    for word, chosen in words[sweep].items():
        for name in chosen:
            ends = [np.mean([third["sweep"][sweep][end]["ratio"][name] for third in thirds]) for end in (weak, strong)]
            same = (ends[1] < ends[0]) == (word == "better")
            said = "as in the runs" if same else "NOT as in the runs"
            print(f"{sweep:12} {name:13} {ends[0]:.2f} -> {ends[1]:.2f}   paper: {word}, {said}")

# %% [markdown]
# Where the two disagree, the ratio and the accuracy differ in direction: with strong crops the accuracy on odd textures rises, and the average
# rises more. Of background under crops the paper says both, that it gets better and that it gets worse, so it is left out. And the paper gives the sweeps a
# weight decay of 1e-5, where the names of the crop runs have 1e-4. On the Pantry, crops *lowered* the ratio of small objects, against the paper's finding.

# %% [markdown]
# ## Scale it up
#
# ```sh
# recipes run imagenet_x --preset simmer --out pantry      # Pantry-X with eight nets, four of them CLIPs; no data needed
# recipes run imagenet_x --preset score --model timm:vit_base_patch16_224 --data.root IMAGENET --out scored
# recipes run imagenet_x --preset report --predictions scored/*.csv other.csv --annotations imagenet_x/annotations \
#     --groups groups.csv --out report
# ```
#
# The second makes one CSV file of predictions for any timm or torchvision model, or any backbone of this book; it is batched and goes on where it was
# stopped. The third reads CSV files as the official toolkit takes them, and ends in tables, plots and `index.html`: by factor, by metaclass, and
# the hundred classes on which a model is worst. `groups.csv` names each model's
# architecture, paradigm and so on; groups are compared by the Alexander-Govern test, as in the paper, here adjusted for the number of tests.

# %% [markdown]
# ## Exercises
#
# **1. Predict, then run.** A model becomes perfect on dark images and stays as it was on all others. What happens to its other error ratios?

# %% tags=["solution", "hide-cell"]
before, dark_rows = np.array([0.3, 0.6]), 0.2  # errors without and with the factor, and the factor's share
for errors in (before, np.array([0.3, 0.0])):
    average = (1 - dark_rows) * errors[0] + dark_rows * errors[1]
    print("ratios without and with:", (errors / average).round(2).tolist())
print("Those of the others rise, though not one answer changed there: the average fell.")

# %% [markdown]
# **2. Check an identity.** Equation {eq}`imagenet-x-identity` needs one mark an image. Give each image of `test` the one mark that is rarest, and none other,
# leave out those without any, and check it.

# %% tags=["solution", "hide-cell"]
multi = pantry_x.annotations(test).marks["multi"]
first = np.where(multi, multi.sum(axis=0), len(multi) + 1).argmin(axis=1)
top = (first[:, None] == np.arange(multi.shape[1])) & multi
wrong = (good != test.labels.numpy())[top.any(axis=1)].astype(int)
top = top[top.any(axis=1)]
n = top.sum(axis=0)
print("1 =", round(float(n @ (wrong @ top / n / wrong.mean()) / n.sum()), 12))

# %% [markdown]
# **3. Find the bug.** Somebody counts every image without marks as correct "by definition". Which figures change, and which do not?

# %% tags=["solution", "hide-cell"]
print("The accuracies a_f stay: no such image has a factor. The average rises, so every error ratio rises with it.")

# %% [markdown]
# **4. A small research question.** Jitter and crops lower the ratios of different factors. Train a net through both at once
# (`dataclasses.replace` on one of `nets.AUGMENTATIONS`) and compare each factor's change with the sum of the two. You are on the way if you say
# beforehand which differences three seeds could show.

# %% [markdown]
# ## Close
#
# Pitfalls that others met:
#
# - the toolkit's predictions must come in its own row order; sorted by name they raise an error about labels that differ, which says nothing of order;
# - prototypes, the typical images that people compared with, were chosen by a model, and must not be scored: the stored ResNet-50 is right on all 3,000;
# - with `real_class`, images on whose label people could not agree count as wrong in the toolkit, which no model can help (`report.scope = decided` leaves them out);
# - with `metaclass`, 278 unrelated classes are one metaclass, "other";
# - the package says BSD in its metadata and CC BY-NC 4.0 in its licence file; take the stricter.
#
# Read on: {cite:t}`balestriero2023cookbook` for the map, and {doc}`sieve` for choosing data in place of models.
#
# This chapter as a script: [imagenet_x.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/imagenet_x.py).
