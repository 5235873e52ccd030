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
# # Evaluation: how one knows what was learned
#
# *A loss does not say what a network has learned, so something else has to. This chapter puts the measures in use side by side, with labels and without, and asks each of them one question: does it put networks
# into the right order?*
#
# Papers: the map is the Cookbook ({cite:t}`balestriero2023cookbook`, section 3); each measure has a paper of its own, named where it appears. Implementation: `recipes_lib/recipes/evaluation/`; the measures are in
# `recipes_lib/evaluation/`, and the networks are those of {doc}`families`.
#
# You need first: {needs}`evaluation`. {ref}`The probes <ssl-probes>` are explained by hand in the opening chapter.

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

notebook.start("evaluation")

# %% [markdown]
# ## The question
#
# You have trained ten networks and want to keep the best one. There are no labels, or too few. {term}`RankMe` {cite:p}`garrido2023rankme` needs none: it counts in how many directions the {term}`features` vary.
# {numref}`fig-evaluation-question` shows it for ten methods of self-supervised learning, for the same network before training, and for random numbers in place of features. The other axis is the accuracy of nearest
# neighbours with all labels, which we would like to predict.

# %% tags=["hide-input"]
import json
from pathlib import Path
from statistics import mean
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from recipes_lib import plots
from recipes_lib.data import embedded, pantry
from recipes_lib.recipes.evaluation import claims as chapter
from recipes_lib.recipes.evaluation import ranking, traps, zoo
from recipes_lib.recipes.evaluation import recipe as evaluation
from recipes_lib.systems import SYSTEMS

# %% tags=["hide-input"]
stored = json.loads(embedded.path("claims/evaluation.json").read_text())
figures = stored["figures"]
NAMES = {"rankme": "RankMe", "alpha_req": "alpha-ReQ", "lidar": "LiDAR"}
NAMES |= {"std": "spread", "knn": "k-NN"}
NAMES |= {"lowshot": "low-shot", "linear": "linear probe", "mlp": "MLP probe"}
METHODS = {name: SYSTEMS[name].title for name in chapter.ACROSS}
METHODS |= {"untrained": "untrained"}


# %% tags=["hide-input"]


def tables(arm: str) -> list[dict]:
    """The networks of an arm: for each seed, name -> metric -> value."""
    return [run["rows"] for run in figures[arm].values()]


def over_seeds(arm: str, metric: str) -> dict[str, float]:
    """The mean over seeds of a metric, for each network of an arm."""
    found = tables(arm)
    return {name: mean(rows[name][metric] for rows in found) for name in found[0]}


# %% mystnb={"figure": {"name": "fig-evaluation-question", "caption": "RankMe and k-NN accuracy of ten methods after 150 steps, of the network before training, and of Gaussian noise in place of features; at the right, the methods alone. Mean of three seeds; chance is one in twelve."}, "image": {"alt": "Two scatter plots of k-NN accuracy over RankMe. Left: ten dots for methods, a square for the untrained network, and a triangle at chance level for Gaussian noise. Right: the ten dots alone, each with the name of its method."}} tags=["hide-input"]
rank, accuracy = (over_seeds("across", metric) for metric in ("rankme", "knn"))
noise = mean(run["noise"]["rankme"] for run in figures["mistakes"].values())
figure, axes = plots.panels(2, columns=2, height=3.3)
for ax in axes:
    known = [[of[name] for name in chapter.ACROSS] for of in (rank, accuracy)]
    ax.plot(*known, linestyle="none", **plots.style(0), label="ten methods")
    ax.set(xlabel="RankMe of the features", ylabel="k-NN accuracy")
others = {"untrained": (rank["untrained"], accuracy["untrained"])}
others |= {"Gaussian noise": (noise, 1 / 12)}
for index, (name, (x, y)) in enumerate(others.items(), start=1):
    axes[0].plot(x, y, linestyle="none", **plots.style(index), label=name)
axes[0].legend()
axes[1].margins(x=0.25)
for name in chapter.ACROSS:
    at, look = (rank[name], accuracy[name]), {"textcoords": "offset points"}
    axes[1].annotate(METHODS[name], at, (4, 4), size=9, **look)
plt.show()

# %% [markdown]
# Somebody who keeps what has the highest RankMe keeps the point farthest to the right. The rest of the chapter asks when such a choice can be trusted.

# %% [markdown]
# :::{claims} evaluation
# :::

# %% [markdown]
# ## The measures in one picture

# %% mystnb={"figure": {"name": "fig-evaluation-map", "caption": "What is measured of a trained network. The backbone is frozen, but for fine-tuning."}, "image": {"alt": "Diagram. An image goes through the backbone, which gives features and tokens. From the features, arrows lead to three boxes: probes with labels, metrics without labels, and fine-tuning; from the tokens an arrow leads to the dense probe."}} tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.diagrams import Box, Image

scene = pantry.fix(pantry.sample_factors(1, seed=4), occluder=0, style="photo")
nodes = {
    "image": Image(0, 1.5, pantry.render(scene, 64)[0], "an image"),
    "backbone": Box(1, 1.5, "backbone"),
    "features": Box(2, 1, "features: one\nper image"),
    "tokens": Box(2, 3, "tokens: one\nper place"),
    "labels": Box(3, 0, "with labels: k-NN,\nlinear, MLP, low-shot"),
    "free": Box(3, 1, "without: spectrum,\nsphere, rotations"),
    "tune": Box(3, 2, "fine-tuning: the\nbackbone learns on"),
    "dense": Box(3, 3, "dense probe: a label\nfor each place"),
}
arrows = [("image", "backbone"), ("backbone", "features"), ("backbone", "tokens")]
arrows += [("features", name) for name in ("labels", "free", "tune")]
arrows += [("tokens", "dense")]
_, ax = plt.subplots(figsize=(plots.WIDTH, 3.4))
diagrams.draw(ax, nodes, arrows)
plt.show()

# %% [markdown]
# ## The equations
#
# *With labels.* A {term}`k-NN probe` trains nothing. A {term}`linear probe` trains one layer, and an MLP probe two, on {term}`frozen features`; several learning rates are trained at once, and the best one is chosen on
# held-out training images. A {term}`low-shot probe` sees five labels per class. Fine-tuning goes on training the whole network.
#
# *Without labels, from a spectrum.* Let $F$ have a row of $D$ features for each of $N$ images, and let $s_k$ be its singular values. RankMe is the exponential of the entropy of their shares:
#
# $$\operatorname{RankMe}(F) = \exp\Big(-\sum_k p_k \log p_k\Big), \qquad p_k = \frac{s_k}{\sum_j s_j} + \epsilon$$ (evaluation-rankme)
#
# It is $D$ if all directions are used alike, and 1 if there is only one. {term}`alpha-ReQ` {cite:p}`agrawal2022alphareq` fits a power law to the eigenvalues $\lambda_i$ of the features' covariance, the largest first:
#
# $$\lambda_i \propto i^{-\alpha}$$ (evaluation-alpha)
#
# Exponents near 1 are taken for good. {term}`LiDAR` {cite:p}`thilak2024lidar` computes {eq}`evaluation-rankme` from other shares: those of the eigenvalues of
#
# $$W^{-1/2}\, B\, W^{-1/2}$$ (evaluation-lidar)
#
# where $B$ is the covariance between images and $W$ that between the {term}`views <view>` of an image. What differs between the views of one image is noise, and counts less.
#
# *Without labels, on the sphere* {cite:p}`wang2020alignment`. Scale each row to length 1. With $u, u'$ for two views of an image, and $u_i, u_j$ for two images:
#
# $$\text{alignment} = \operatorname{mean} \lVert u - u' \rVert^2, \qquad \text{uniformity} = \log \operatorname{mean}_{i<j} e^{-2 \lVert u_i - u_j \rVert^2}$$ (evaluation-sphere)
#
# For both, lower is said to be better. The *rotation probe* asks a linear classifier by how much an image was turned {cite:p}`gidaris2018rotation`; those labels are free.
#
# *Does a measure rank rightly?* Let $r_i$ and $t_i$ be the ranks of network $i$ by the measure and by k-NN accuracy. Spearman's {term}`rank correlation` is their correlation:
#
# $$\rho = \frac{\operatorname{cov}(r, t)}{\operatorname{std}(r) \operatorname{std}(t)}$$ (evaluation-spearman)
#
# Measures of which less is better are turned first. So 1 always means the right order, 0 no relation, and $-1$ the wrong order.
#
# | symbol | in the code | shape | meaning |
# |---|---|---|---|
# | $F$ | `features` | `[N, D]` | features of $N$ images |
# | $s_k, p_k$ | `values`, `shares` | `[min(N, D)]` | singular values and their shares |
# | $\lambda_i, \alpha$ | `spectrum`, `alpha_req` | `[D]`, number | eigenvalues and exponent |
# | $B, W$ | `between`, `within` | `[D, D]` | covariance between images, and between views |
# | $\rho$ | `ranking.correlation` | number | rank correlation with k-NN |

# %% [markdown]
# ## By hand
#
# Four images with two features each. The first feature is large, the second small.

# %%
features = torch.tensor([[4, 1], [4, -1], [-4, 1], [-4, -1]]).double()
values = torch.linalg.svdvals(features)
shares = values / values.sum() + 1e-7
rankme_eq1 = float((-(shares * shares.log()).sum()).exp())
print("singular values", values.tolist(), "shares", shares.round(decimals=3).tolist())
print(f"RankMe {rankme_eq1:.3f} of at most 2")

# %% [markdown]
# The shares are 0.8 and 0.2, so RankMe lies between one direction and two. The eigenvalues of the covariance are the squares, divided by the number of images: 16 and 1. A power law that passes through both has
# $2^{-\alpha} = 1/16$:

# %%
spectrum = values.square() / len(features)
alpha_eq2 = float((spectrum[0] / spectrum[1]).log() / torch.tensor(2.0).double().log())
print("eigenvalues", spectrum.tolist(), f"alpha {alpha_eq2:.1f}")

# %% [markdown]
# For LiDAR, each image gets two views. In the next cell the views of an image differ in the second feature alone.

# %%
shift = torch.tensor([0.0, 2.0], dtype=torch.float64)
pairs = torch.stack([features + shift, features - shift], dim=1)  # [images, views, 2]
images = pairs.mean(dim=1)
between = images.T @ images / 3  # their mean is 0
apart = (pairs - images[:, None]).flatten(0, 1)
within = apart.T @ apart / 4 + 1e-4 * torch.eye(2, dtype=torch.float64)
ratios = between.diagonal() / within.diagonal()  # both matrices are diagonal here
shares = ratios / ratios.sum() + 1e-7
lidar_eq3 = float((-(shares * shares.log()).sum()).exp())
print("between", between.diagonal().tolist(), "within", within.diagonal().tolist())
print(f"LiDAR {lidar_eq3:.4f}")

# %% [markdown]
# LiDAR is nearly 1: the second feature, which RankMe counted, says nothing of the image. On the sphere, the same views and images:

# %%
unit = torch.nn.functional.normalize(pairs, dim=2)
alignment_eq4 = float((unit[:, 0] - unit[:, 1]).square().sum(dim=1).mean())
flat = torch.nn.functional.normalize(features, dim=1)
distances = torch.pdist(flat).square()
uniformity_eq4 = float((-2 * distances).exp().mean().log())
print(f"alignment {alignment_eq4:.3f}, uniformity {uniformity_eq4:.3f}")

# %% [markdown]
# Last, five networks in the order of their accuracy, and two measures. The first confuses two neighbours; the second puts the worst network on top.

# %%
knn = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7])
measures = {"two swapped": [1, 3, 2, 4, 5], "worst on top": [5, 1, 2, 3, 4]}


def spearman_eq5(measure: list[int]) -> float:
    ranks = torch.tensor(measure, dtype=torch.float64).argsort().argsort().double()
    wanted = knn.argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks, wanted]))[0, 1])


by_hand = {name: spearman_eq5(measure) for name, measure in measures.items()}
print({name: round(value, 2) for name, value in by_hand.items()})

# %% [markdown]
# ## The same numbers
#
# The library's functions on the same input:

# %% tags=["nbval-check-output"]
from recipes_lib.evaluation.hypersphere import alignment, uniformity
from recipes_lib.evaluation.spectrum import alpha_req, lidar, rankme

assert abs(rankme(features) - rankme_eq1) < 1e-9
assert abs(alpha_req(features) - alpha_eq2) < 1e-9
assert abs(lidar(pairs) - lidar_eq3) < 1e-9
assert abs(alignment(pairs[:, 0], pairs[:, 1]) - alignment_eq4) < 1e-9
assert abs(uniformity(features) - uniformity_eq4) < 1e-9
for name, measure in measures.items():
    both = zip(knn.tolist(), measure, strict=True)
    table = {str(i): {"knn": k, "rankme": m} for i, (k, m) in enumerate(both)}
    assert abs(ranking.correlation(table, "rankme") - by_hand[name]) < 1e-9
print("the same six numbers")

# %% [markdown]
# Read the source: [spectrum.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/evaluation/spectrum.py),
# [hypersphere.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/evaluation/hypersphere.py),
# [trained_heads.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/evaluation/trained_heads.py) and
# [dense.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/evaluation/dense.py).

# %% [markdown]
# ## Cook
#
# Preset {term}`toy` of this chapter trains SimCLR and VICReg for 60 steps each on 3,000 pictures of the {doc}`/book/pantry`, and measures both and the untrained network in every way but fine-tuning. It takes about 35
# seconds on one core.

# %%
result = evaluation.RECIPE.run(evaluation.PRESETS["toy"], Path(mkdtemp()) / "run")

# %% mystnb={"figure": {"name": "fig-evaluation-toy", "caption": "Two networks after 60 steps and the untrained one, by all accuracies (first row) and by four numbers that need no labels."}, "image": {"alt": "Eight panels of three bars each, for SimCLR, VICReg and the untrained network. First row: k-NN, low-shot, linear and MLP accuracy. Second row: RankMe, LiDAR, alignment and rotation accuracy."}} tags=["hide-input"]
columns = {"method": "SimCLR", "vicreg": "VICReg", "random_init": "untrained"}
found = result.report["scores"] | result.report["label_free"]
shown = ("knn", "lowshot", "linear", "mlp", "rankme", "lidar", "alignment", "rotation")
figure, axes = plots.panels(len(shown), columns=4, height=2.5)
for ax, metric in zip(axes, shown, strict=True):
    bars = {columns[name]: [value] for name, value in found[metric].items()}
    plots.bars(ax, bars, ylabel="")
    ax.set_title(NAMES.get(metric, metric))
    for tick in ax.get_xticklabels():
        tick.set(rotation=40, ha="right", rotation_mode="anchor")
plt.show()

# %% [markdown]
# Read the two rows of {numref}`fig-evaluation-toy` separately, and ask of each panel which network it would choose. Three networks are too few to judge a measure by. What follows was computed by
# `recipes verify evaluation` with more of them.

# %% [markdown]
# ## Knobs: within one method
#
# The first use of a measure without labels is to tune a method. Nine runs of SimCLR, of VICReg and of LeJEPA differ in the learning rate and in one setting of the loss: the {term}`temperature`, the weight of the
# covariance term, and the weight of SIGReg. Each run has 150 steps. {numref}`fig-evaluation-scatter` shows RankMe, and the loss on test pictures.

# %% mystnb={"figure": {"name": "fig-evaluation-scatter", "caption": "Nine runs of each method and seed: k-NN accuracy over RankMe (first row) and over the loss on test pictures (second row). A marker per seed. The losses of a method are all computed with its preset's settings."}, "image": {"alt": "Six scatter plots in two rows, one column for each of SimCLR, VICReg and LeJEPA. First row: k-NN accuracy over RankMe. Second row: k-NN accuracy over the loss. Each panel has 27 points in three looks, one look per seed."}} tags=["hide-input"]
figure, axes = plots.panels(6, columns=3, height=2.5)
for place, (metric, label) in enumerate({"rankme": "RankMe", "loss": "loss"}.items()):
    row_of = axes[3 * place : 3 * place + 3]
    for ax, (method, title) in zip(row_of, chapter.TITLES.items(), strict=True):
        for index, rows in enumerate(tables(method)):
            xs, ys = ([row[key] for row in rows.values()] for key in (metric, "knn"))
            ax.plot(xs, ys, linestyle="none", **plots.style(index), markersize=5)
        ax.set(xlabel=label, title="" if place else title)
    row_of[0].set_ylabel("k-NN accuracy")
plt.show()

# %% [markdown]
# {numref}`fig-evaluation-within` has the rank correlation of every measure with k-NN accuracy. The bar is an interval of 95 %: the runs of each seed are drawn again with replacement ({term}`bootstrap`), and the mean
# correlation of the three seeds is computed each time. Nine runs give wide intervals, so a measure is only said to rank rightly or wrongly where the interval stays clear of 0.

# %% tags=["hide-input"]
ORDER = (*ranking.LABEL_FREE, "loss", *ranking.ACCURACIES)


def draw_intervals(ax, found: list[dict], metrics: tuple[str, ...]) -> None:
    """A row for each metric: the seeds' mean rank correlation, and its interval."""
    for place, metric in enumerate(metrics):
        middle, low, high = ranking.interval(found, metric)
        with_labels = metric in ranking.ACCURACIES
        look = plots.style(2 if with_labels else 0)
        ax.plot([low, high], [place, place], color=look["color"], linewidth=2)
        ax.plot(middle, place, linestyle="none", **look)
    ax.axvline(0, color=plots.BASELINE, linewidth=1)
    names = [NAMES.get(metric, metric) for metric in metrics]
    ax.set_yticks(range(len(metrics)), names)
    ax.set(xlim=(-1.05, 1.05), ylim=(len(metrics) - 0.5, -0.5))


# %% mystnb={"figure": {"name": "fig-evaluation-within", "caption": "Rank correlation with k-NN accuracy over nine runs, mean of three seeds, with 95 % intervals. 1 is the right order. Green: accuracies, which need labels."}, "image": {"alt": "Three panels, for SimCLR, VICReg and LeJEPA. Each has eleven rows, seven measures without labels, the loss, and three accuracies, each with a point and a bar for the rank correlation between -1 and 1."}} tags=["hide-input"]
figure, axes = plots.panels(3, columns=3, height=3.6, sharey=True)
for ax, (method, title) in zip(axes, chapter.TITLES.items(), strict=True):
    draw_intervals(ax, tables(method), ORDER)
    ax.set(title=title, xlabel="rank correlation")
plt.show()

# %% [markdown]
# *Labels.* The green rows say how far two measures with labels agree with each other. No measure without labels can be expected to do better.
#
# *Without labels.* RankMe puts the runs of SimCLR and of VICReg nearly into the right order, and says nothing of LeJEPA's. LiDAR, uniformity and the spread order LeJEPA's runs the wrong way: SIGReg pushes features towards a Gaussian, and these
# three measure how far that went. So a measure that resembles what the loss asks for says how well the loss was minimised, not how good the features are. The rotation probe is the best guide for SimCLR, and among the best for VICReg.
#
# *The loss.* LeJEPA's authors argue that its loss tells how good a run is {cite:p}`balestriero2025lejepa`. In these nine runs a lower loss of LeJEPA does not go with better features; a lower loss of VICReg does. The runs are short, and the weight of
# SIGReg is one of the two settings that differ. The authors' runs are long and large, so this does not refute them.

# %% [markdown]
# ## Knobs: between methods
#
# The second use is to choose between methods. {numref}`fig-evaluation-across` has the same correlations over ten methods, and once more with the untrained network among them. Losses are not comparable there, since
# each method has its own.

# %% mystnb={"figure": {"name": "fig-evaluation-across", "caption": "Rank correlation with k-NN accuracy, mean of three seeds, with 95 % intervals. Left: over ten methods. Right: with the untrained network as an eleventh."}, "image": {"alt": "Two panels with ten rows each: seven measures without labels and three accuracies, each with a point and a bar for the rank correlation. Left: ten methods. Right: ten methods and the untrained network."}} tags=["hide-input"]
metrics = (*ranking.LABEL_FREE, *ranking.ACCURACIES)
trained = [{name: rows[name] for name in chapter.ACROSS} for rows in tables("across")]
more = (*chapter.ACROSS, "untrained")
every = [{name: rows[name] for name in more} for rows in tables("across")]
shown = {"ten methods": trained, "and the untrained network": every}
figure, axes = plots.panels(2, columns=2, height=3.4, sharey=True)
for ax, (title, found) in zip(axes, shown.items(), strict=True):
    draw_intervals(ax, found, metrics)
    ax.set(title=title, xlabel="rank correlation")
plt.show()

# %% [markdown]
# Between methods, RankMe, alignment and the rotation probe give a fair order, and LiDAR and the spread do not. Probes with labels agree with k-NN, even one with five labels per class.
#
# A measure may be led astray by a single network. {numref}`fig-evaluation-astray` shows two: the untrained network, which no loss has asked to give up a direction, and the network that was trained to recognise rotations, which has
# practised the rotation probe.

# %% mystnb={"figure": {"name": "fig-evaluation-astray", "caption": "Share of the other trained networks that a network leaves behind, by several measures. One point per seed; the bar is their mean."}, "image": {"alt": "Two panels of bars from 0 to 1. Left: the untrained network by k-NN, linear probe, RankMe, LiDAR and uniformity. Right: the network trained on rotations by k-NN, linear probe, RankMe and the rotation probe."}} tags=["hide-input"]
by = ("knn", "linear", "rankme", "lidar", "uniformity")
panels = {"the untrained network": ("beaten", by)}
by = ("knn", "linear", "rankme", "rotation")
panels |= {"trained on rotations": ("beaten_by_rotation", by)}
figure, axes = plots.panels(2, columns=2, height=2.8, sharey=True)
for ax, (title, (key, names)) in zip(axes, panels.items(), strict=True):
    seeds = {n: [run[key][n] for run in figures["across"].values()] for n in names}
    bars = {NAMES.get(name, name): values for name, values in seeds.items()}
    plots.bars(ax, bars, ylabel="share left behind" if ax is axes[0] else "")
    ax.set(title=title, ylim=(0, 1.05))
plt.show()

# %% [markdown]
# **Fine-tuning** asks another question: how good a start are these weights? {numref}`fig-evaluation-finetuning` has four methods and the untrained network, frozen and fine-tuned on all labels.

# %% mystnb={"figure": {"name": "fig-evaluation-finetuning", "caption": "Accuracy of five networks on test pictures: k-NN and a linear probe of frozen features, and fine-tuning for five passes over the labelled pictures. One point per seed."}, "image": {"alt": "Three panels of bars, for k-NN, linear probe and fine-tuning, each with SimCLR, LeJEPA, BYOL, DINO and the untrained network."}} tags=["hide-input"]
kinds = {"knn": "k-NN", "linear": "linear probe", "finetune": "fine-tuned"}
figure, axes = plots.panels(3, columns=3, height=2.8, sharey=True)
for ax, (kind, title) in zip(axes, kinds.items(), strict=True):
    found = tables("finetuning")
    by_name = {METHODS[n]: [rows[n][kind] for rows in found] for n in chapter.FINETUNED}
    plots.bars(ax, by_name, ylabel="accuracy" if ax is axes[0] else "")
    ax.set_title(title)
    for tick in ax.get_xticklabels():
        tick.set(rotation=40, ha="right", rotation_mode="anchor")
plt.show()

# %% [markdown]
# Fine-tuning brings the methods close together. It also shows something that no probe of frozen features can: the untrained network, trained on all 6,000 labels in the same way, ends above all four. These methods were pretrained for 150
# steps on the very pictures whose labels follow, and one rate of fine-tuning serves all networks. Pretraining pays where labels are few, or pictures many. The frozen networks say nothing of this.

# %% [markdown]
# ## Break it: five ways to a wrong number
#
# Each of these mistakes has been made in earnest. {numref}`fig-evaluation-mistakes` shows what four of them do to the k-NN accuracy of SimCLR.

# %% mystnb={"figure": {"name": "fig-evaluation-mistakes", "caption": "k-NN accuracy on test pictures, three seeds. First: how features are compared. Second: which view of a picture is seen. Third: at which side in pixels a network is evaluated that was trained at 32. Fourth: the untrained network with two kinds of batch statistics."}, "image": {"alt": "Four panels of k-NN accuracy. First: bars for cosine, inner product and distance. Second: bars for the whole picture and a random view. Third: a line over the side from 16 to 64 pixels. Fourth: bars for an untrained network with initial and with estimated statistics."}} tags=["hide-input"]
runs = list(figures["mistakes"].values())
ways = {"cosine": "cosine", "product": "inner product", "distance": "distance"}
seen = {"cosine": "whole picture", "augmented": "random view"}
kept = {"initial": "initial", "estimated": "estimated"}
bars = []
for names in (ways, seen):
    bars.append({title: [r["knn"][k] for r in runs] for k, title in names.items()})
bars += [{title: [r[k]["knn"] for r in runs] for k, title in kept.items()}]
figure, axes = plots.panels(4, columns=2, height=2.5, sharey=True)
for ax, arms in zip((axes[0], axes[1], axes[3]), bars, strict=True):
    plots.bars(ax, arms, ylabel="")
for index, run in enumerate(runs):
    at_sides = run["knn"]["sides"]
    axes[2].plot(list(map(int, at_sides)), at_sides.values(), **plots.style(index))
axes[2].set(xlabel="side in pixels")
titles = ("comparison", "view", "resolution", "untrained")
for ax, title in zip(axes, titles, strict=True):
    ax.set_title(title)
    ax.set_ylabel("k-NN accuracy" if ax in axes[::2] else "")
plt.show()

# %% [markdown]
# **Features of any length.** k-NN takes the cosine. If the normalisation is forgotten, the inner product prefers long features, whatever they show, and the accuracy falls nearly to chance. The distance is as good as the cosine here.
#
# **The wrong view.** Training's random crops are meant to hide things. At evaluation the network should see the whole picture, at the resolution that it knows: a smaller or larger picture costs accuracy.
#
# **An untrained baseline that was never warmed up.** {term}`Batch normalisation <batch normalisation>` uses running statistics in evaluation mode. In a new network they are 0 and 1, whatever the activations are. Estimate them on
# training pictures before you compare anything with an untrained network, as the next cell does. No weight changes. The baseline `random_init`, which the figures of all chapters show, is prepared in this way.

# %%
config = evaluation.PRESETS["toy"].of_network("simclr")
splits = zoo.data(config)
fresh = zoo.untrained(config).backbone  # with statistics of training pictures
first = fresh.layers[0][1].running_mean[:4]
print("running mean of four channels:", [round(value, 3) for value in first.tolist()])
estimated = zoo.features(config, fresh, splits)[0].final
for layer in fresh.layers:
    layer[1].reset_running_stats()
initial = zoo.features(config, fresh, splits)[0].final
print(f"RankMe with initial statistics {rankme(initial):.1f}")
print(f"RankMe with estimated ones     {rankme(estimated):.1f}")

# %% [markdown]
# **RankMe of noise.** The next cell measures Gaussian noise in the shape of these features. By RankMe, spread and uniformity it is nearly perfect.

# %%
for name, value in traps.of_noise(*estimated.shape, seed=0).items():
    print(f"{NAMES.get(name, name):<12}{value:8.2f}")

# %% [markdown]
# **Tuning on the test set.** k-NN has a number of neighbours and a temperature, features may be centred or standardised first, and together that makes 96 settings. Take a small test set and report the best of the 96 on
# it. How much of the reported number is luck? {numref}`fig-evaluation-optimism` draws hundreds of small test sets and compares the reported accuracy with that on all other test pictures. The second line chooses
# on as many pictures that were held out of training, and looks at the test set once.

# %% mystnb={"figure": {"name": "fig-evaluation-optimism", "caption": "Reported accuracy less true accuracy, by the size of the set on which the setting was chosen; mean of 400 draws, and of three seeds with their range."}, "image": {"alt": "Two lines over the size of the small set, from 50 to 400 pictures: the gap between reported and true accuracy for a setting chosen on the test set and for one chosen on held-out training pictures."}} tags=["hide-input"]
lines = {"on_test": "chosen on the test set", "held_out": "chosen on held-out pictures"}
sizes = list(runs[0]["optimism"])
gaps = {}
for key, title in lines.items():
    gaps[title] = {int(n): [run["optimism"][n][key] for run in runs] for n in sizes}
told = {"xlabel": "size of the set", "ylabel": "reported less true accuracy"}
plots.responses({"": gaps}, **told, columns=1)
plt.show()

# %% [markdown]
# The live networks are enough to try it. The cell takes SimCLR of this chapter's run, chooses among the settings in both ways, and needs no training.

# %%
from recipes_lib.recipes.evaluation import study

simclr = zoo.train(config, result.folder / "simclr")  # it is there, and only read
bank, asked = (part.final for part in zoo.features(config, simclr.backbone, splits))
live = study.optimism(bank, splits.train.labels, asked, splits.test.labels, seed=0)
for size, gap in live.items():
    shown = {name.replace("_", " "): round(value, 4) for name, value in gap.items()}
    print(f"{size} pictures: reported less true accuracy {shown}")

# %% [markdown]
# ## A label for each place
#
# All measures so far see one vector per picture. A {term}`ViT` also has a token for each {term}`patch`, and for tasks such as segmentation these are what counts. The pictures of the {doc}`/book/pantry` are drawn from known
# scenes, so the true mask of each is known: what is seen at each pixel. {numref}`fig-evaluation-masks` has six of them.

# %% mystnb={"figure": {"name": "fig-evaluation-masks", "caption": "Six pictures (first row), their true masks (second row, one colour per class), and the labels of 16 tokens: the class that covers most of each cell (third row)."}, "image": {"alt": "Three rows of six small pictures. First row: kitchen objects. Second row: their silhouettes in plain colours on white. Third row: the same as coarse squares of eight by eight pixels."}} tags=["hide-input"]
from recipes_lib.evaluation import dense

some = splits.test.select(torch.arange(6))
masks = pantry.true_masks(some)
labels = dense.token_labels(masks, grid=4)
draw = torch.Generator().manual_seed(1)
colours = torch.rand(1 + len(pantry.CLASSES), 3, generator=draw)
colours[0] = 1.0
coarse = labels.view(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
rows = [some.images / 255, *(colours[m].permute(0, 3, 1, 2) for m in (masks, coarse))]
figure, ax = plt.subplots(figsize=(6, 3))
plots.image_grid(ax, torch.cat(rows), columns=6)
plt.show()

# %% [markdown]
# A {term}`dense probe` is a linear map of each token. Most tokens show the table, so the share of right tokens says little: a probe that always answers *table* gets most of them. The {term}`intersection over union` (IoU) divides,
# for each class, the tokens that were guessed rightly by those that were guessed or true, and averages over classes. Five tokens by hand, with classes 0 and 1:

# %% tags=["nbval-check-output"]
true, guessed = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 0, 0])
by_class = [4 / 5, 0 / 1]  # class 0: four right of five guessed; class 1: none of one
print("share of right tokens", 4 / 5, " mean IoU", sum(by_class) / 2)
assert abs(dense.mean_iou(guessed, true) - 0.4) < 1e-7

# %% [markdown]
# {numref}`fig-evaluation-dense` compares one transformer trained in two ways. SimCLR has to recognise a picture among others, {term}`MAE` to fill in hidden patches. Beside them stand the transformer before training, the
# pixels of each patch, and the *place* of the patch alone, because objects stand in the middle.

# %% mystnb={"figure": {"name": "fig-evaluation-dense", "caption": "Left: the dense probe, mean intersection over union on test pictures. Right: k-NN accuracy of the mean token, for whole pictures. One point per seed. Processor time is about equal for SimCLR and MAE."}, "image": {"alt": "Two panels of bars. Left: mean intersection over union of MAE, SimCLR, the untrained transformer, pixels of patches, and the place alone. Right: k-NN accuracy of MAE, SimCLR and the untrained transformer."}} tags=["hide-input"]
names = {"mae": "MAE", "simclr": "SimCLR", "untrained": "untrained", "pixels": "pixels"}
names |= {"place": "place alone"}
figure, axes = plots.panels(2, columns=2, height=2.8)
labels_of = {"mean_iou": "mean IoU", "knn": "k-NN accuracy"}
for ax, (metric, label) in zip(axes, labels_of.items(), strict=True):
    rows = tables("dense_probes")
    known = {name: title for name, title in names.items() if metric in rows[0][name]}
    found = {title: [row[n][metric] for row in rows] for n, title in known.items()}
    plots.bars(ax, found, ylabel=label)
plt.show()

# %% [markdown]
# The two panels ask about the same weights, and their orders differ: MAE is better for places, and SimCLR for whole pictures. "The better network" has no meaning without the task.

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify evaluation` on three seeds, and is compared with margins that were fixed before. Each row of the figure is a claim. It holds where the mean lies in the shaded part and no
# seed points the other way. For the claims about rankings the margin is a correlation of 0.5.

# %% mystnb={"image": {"alt": "One row per claim, by the difference from the control in margins, three seeds each."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("evaluation")

# %% [markdown]
# Five claims do not hold: RankMe, LiDAR and the loss as guides within LeJEPA, the loss within SimCLR, and LiDAR between methods. These networks are small and were trained for a minute; their order may be another after a longer run, and so may the order that a measure gives them. And all accuracies here are those of one data set: a network that is best for the
# Pantry's classes may not be so for yours.

# %% [markdown]
# ## Scale it up
#
# Every probe of this chapter is a name in `eval.probes`, for every recipe that trains a backbone, while it runs or afterwards. The first line says what a run would cost and starts nothing. The second scores a finished run again, the
# third writes label-free numbers while a run trains:
#
# ```sh
# recipes plan families --preset simclr_rn50_imagenet --gpus 8
# recipes evaluate RUN --probe knn linear_sweep mlp lowshot rankme lidar
# recipes run families --preset simclr_laptop --eval.watch rankme std knn
# recipes run evaluation --preset toy --train.methods simclr byol dino
# ```

# %%
notebook.plan("families", "simclr_rn50_imagenet", gpus=8)

# %% [markdown]
# The settings of the runs in this chapter, beside the paper's:

# %% tags=["hide-input"]
from recipes_lib.recipes.families import recipe as families

fields = {
    "data": ["name", "image_size"],
    "model": ["arch", "projector_layers", "hidden", "dim"],
    "optim": ["name", "lr", "weight_decay"],
    "train": ["batch_size", "steps", "epochs"],
    "eval": ["neighbours", "neighbour_temperature", "labels_per_class"],
}
settings = {"here": zoo.trained_config("simclr", 1)}
settings |= {"paper": families.PRESETS["simclr_rn50_imagenet"]}
notebook.settings(settings, fields)

# %% [markdown]
# ## Exercises
#
# **1. A blind spot of RankMe** (5 min, easy). Add the vector $(100, 100, \dots)$ to all features of the untrained network. What happens to RankMe, and what to alpha-ReQ? Predict, then run. You are right if one of them falls to nearly
# 1 and the other does not change.

# %% tags=["solution", "hide-cell"]
# Solution 1
moved = estimated.double() + 100
print(f"RankMe {rankme(estimated):.1f} and {rankme(moved):.2f}: it does not centre")
print(f"alpha-ReQ {alpha_req(estimated):.3f} and {alpha_req(moved):.3f}: it does")
assert rankme(moved) < 2

# %% [markdown]
# **2. How few pictures?** (10 min, easy). RankMe cannot exceed the number of pictures. Compute it for the first 64, 256 and 1,024 pictures of `estimated`. You are right if it rises, and the library warns once.

# %% tags=["solution", "hide-cell"]
# Solution 2
import warnings

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    by_count = {count: rankme(estimated[:count]) for count in (64, 256, 1024)}
print({n: round(value, 1) for n, value in by_count.items()}, "warnings:", len(told))
assert list(by_count.values()) == sorted(by_count.values())
assert len(told) == 1

# %% [markdown]
# **3. The luck of one hundred pictures** (15 min, medium). All of 50 settings have a true accuracy of one half. Which accuracy does the best of them reach on 100 test pictures? Simulate it with `traps.optimism`. You are right if it lies
# about eleven points above one half.

# %% tags=["solution", "hide-cell"]
# Solution 3
draw = torch.Generator().manual_seed(0)
coins = [torch.rand(50, 2000, generator=draw) < 0.5 for _ in range(2)]
luck = traps.optimism(*coins, size=100, draws=100, seed=0)
print({name.replace("_", " "): round(value, 3) for name, value in luck.items()})
assert 0.08 < luck["on_test"] < 0.14
assert abs(luck["held_out"]) < 0.02

# %% [markdown]
# **4. A small research question** (an hour, hard). Which measure without labels picks the best of BYOL's settings? Sweep its momentum and learning rate (`recipes sweep families --preset byol_toy --model.ema 0.3 0.5 0.9 --optim.lr 1e-3 3e-3
# 1e-2 --eval.probes knn rankme lidar alignment`) and compare the orders. BYOL can collapse: what does alignment say of a collapsed run?

# %% [markdown]
# ## Close
#
# Others met these pitfalls:
#
# - A score without the untrained network beside it. Features of random weights are far above chance.
# - A learning rate of the linear probe that suits one method's features. Methods differ in the scale of their features, so give every network the same choice of rates, and choose on held-out pictures.
# - The best epoch by test accuracy, reported as the result.
# - k-NN alone for masked modelling. Its features need a trained head, or fine-tuning, to show what they hold.
# - RankMe compared between networks of different widths, or on different numbers of pictures.
#
# Read on:
#
# - {cite:t}`garrido2023rankme` introduces RankMe, and says what it may and may not compare.
# - {cite:t}`agrawal2022alphareq` reads the decay of the spectrum.
# - {cite:t}`thilak2024lidar` separates what varies between pictures from what varies between views.
# - {cite:t}`wang2020alignment` has alignment and uniformity, and why a contrastive loss asks for both.
# - {cite:t}`oquab2024dinov2` trains linear heads with many learning rates at once.
#
# This chapter as a script: [evaluation.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/evaluation.py).
