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
# # The families: eighteen methods, one loop
#
# *Methods of self-supervised learning differ in a loss of a few lines. This chapter writes the losses side by side, trains each of them in the same loop on the same
# pictures, and removes from each the part that keeps it from collapsing.*
#
# Papers: the families are those of the Cookbook ({cite:t}`balestriero2023cookbook`, section 2); each method's paper is named where the method appears. Implementation:
# `recipes_lib/recipes/families/`, with the losses in `recipes_lib/objectives/`.
#
# You need first: {doc}`what_is_ssl`, which explains views, collapse and the probes.

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

notebook.start("families")

# %% [markdown]
# ## The question
#
# If two views of an image only have to agree, a network can give every image the same {term}`embedding`, and the loss is perfect. Every method that compares views has
# a *guard* against this {term}`collapse`. {numref}`fig-families-guards` shows what the guard is worth. Each panel is one method, trained with its guard and without,
# with everything else equal. The height is how far the embeddings of test pictures spread, in units of the intact method. For Barlow Twins it is in how many directions they spread
# ({term}`RankMe`).

# %% tags=["hide-input"]
import json
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from recipes_lib import plots
from recipes_lib.config import override
from recipes_lib.data import embedded
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.claims import GUARDS
from recipes_lib.systems import SYSTEMS

figures = json.loads(embedded.path("claims/families.json").read_text())["figures"]


# %% tags=["hide-input"]
def seeds_of(arm: str, *path: str) -> list[float]:
    """A number of an arm's stored reports, one per seed."""
    found = []
    for report in figures[arm].values():
        for key in path:
            report = report[key]
        found.append(report)
    return found


# %% mystnb={"figure": {"name": "fig-families-guards", "caption": "Spread of the embeddings of test pictures with and without each method's guard against collapse, the intact method being 1. One point per seed."}, "image": {"alt": "Nine panels, one for each method, with two bars each. Without its guard the spread is near 0 for SimCLR, VICReg, W-MSE, LeJEPA and I-JEPA, below a tenth for Barlow Twins and SwAV, and about a third for BYOL and SimSiam."}} tags=["hide-input"]
figure, axes = plots.panels(len(GUARDS), columns=5, height=2.0, sharey=True)
for ax, (method, guard) in zip(axes, GUARDS.items(), strict=True):
    intact = seeds_of(method, "diagnostics", guard.metric)
    broken = seeds_of(f"{method}_{guard.arm}", "diagnostics", guard.metric)
    unit = sum(intact) / len(intact)
    arms = {"with": [x / unit for x in intact], "without": [x / unit for x in broken]}
    plots.bars(ax, arms, ylabel="spread" if ax is axes[0] else "")
    ax.set_title(f"{SYSTEMS[method].title}\n{guard.what}", fontsize=9)
plt.show()

# %% [markdown]
# :::{claims} families
# :::

# %% [markdown]
# ## The methods in one picture
#
# All methods fit into {numref}`fig-families-loop`. Two views of an image go through a {term}`backbone` and a {term}`projector`, and the loss compares what comes out. Some
# methods put a {term}`predictor` behind one branch. Some take the targets from a {term}`teacher`, which is an {term}`EMA` of the network. Masked methods have one view, from
# which {term}`patches <patch>` are hidden. Their target is what was hidden, as pixels, words or embeddings.

# %% tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.data.load import load
from recipes_lib.data.loader import StepBatches
from recipes_lib.diagrams import Arrow, Box, Image
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.views.colour import IMAGENET_MEAN, IMAGENET_STD

toy = families.PRESETS["toy"]
data = load(toy.data, DATA_SEED)
batch = StepBatches(data.train, seed=0, batch_size=128)[0]
cut = engine.build(families.RECIPE, toy, steps=1).views(batch, step=0)["large"]
mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
first, second = (cut * std + mean).clamp(0, 1).unflatten(0, (2, -1))

# %% mystnb={"figure": {"name": "fig-families-loop", "caption": "The loop that all methods share. Dashed: only in some methods. Two bars across an arrow: no gradient."}, "image": {"alt": "Diagram. Two views of a picture of kitchen things. The first goes through backbone, projector and predictor to the loss. The second goes through the teacher's backbone and projector to the loss, and two bars across its arrow mark the stop-gradient. A dashed arrow leads from the backbone to the teacher."}} tags=["hide-input"]
nodes = {
    "one": Image(0, 0, first[3], "a view"),
    "two": Image(0, 1, second[3], "another view"),
    "student": Box(1, 0, "backbone,\nprojector"),
    "teacher": Box(1, 1, "teacher, or\nthe same again"),
    "predictor": Box(2, 0, "predictor,\nif any"),
    "loss": Box(3, 0.5, "loss"),
}
arrows = [("one", "student"), ("student", "predictor"), ("predictor", "loss")]
arrows += [("two", "teacher"), Arrow("teacher", "loss", "stop")]
arrows += [Arrow("student", "teacher", "follows", "EMA")]
_, ax = plt.subplots(figsize=(plots.WIDTH, 3.0))
diagrams.draw(ax, nodes, arrows)
plt.show()

# %% [markdown]
# ## The equations
#
# Let $z_i$ and $z_i'$ be the embeddings of the two views of image $i$ in a batch of $N$ images, $d$ their dimension, and $u(x) = x / \|x\|$.
#
# **Deep metric learning** ({term}`SimCLR`, {term}`DCL`, {term}`NNCLR`, {term}`MoCo`) picks an image's partner among candidates, with a {term}`temperature` $\tau$ ({term}`InfoNCE`):
#
# $$L_i = -\frac{u(z_i)^\top u(z_i')}{\tau} + \log \sum_{k} \exp \frac{u(z_i)^\top u(z_k)}{\tau}$$ (families-infonce)
#
# The methods differ in the candidates $k$. SimCLR takes all other views of the batch, DCL all but the partner. MoCo takes teacher embeddings, from a {term}`queue` or from the
# batch. NNCLR replaces $z_i$ by its nearest neighbour in a queue.
#
# **Self-distillation** ({term}`BYOL`, {term}`SimSiam`, {term}`DINO`) has no candidates. With a predictor $p$, and sg for the {term}`stop-gradient`,
#
# $$L_i = -u(p(z_i))^\top \mathrm{sg}\, u(z_i')$$ (families-byol)
#
# In BYOL $z'$ comes from the teacher, in SimSiam from the network itself. DINO turns embeddings into probabilities of {term}`prototypes <prototype>`, and its student minimises the
# cross-entropy with the teacher's, which is centred and sharpened.
#
# **Canonical correlation** ({term}`Barlow Twins`, {term}`VICReg`, {term}`SwAV`, {term}`W-MSE`) looks at the batch as a table with one row per image. VICReg adds a term for
# rows that should agree, one for columns that should vary, and one for pairs of columns that should not be correlated:
#
# $$L = \lambda \,\frac{1}{Nd}\sum_i \|z_i - z_i'\|^2 + \mu\, [v(Z) + v(Z')]/2 + \nu\, [c(Z) + c(Z')]$$ (families-vicreg)
#
# Barlow Twins asks that the correlations between the columns of $Z$ and of $Z'$ form the identity matrix. W-MSE computes {term}`whitening` and compares what it gives. SwAV
# balances prototypes with {term}`Sinkhorn`, as {doc}`msn` does.
#
# **Masked modelling** ({term}`MAE`, {term}`SimMIM`, {term}`BEiT`) predicts what was hidden at the patches $M$:
#
# $$L = \frac{1}{|M|} \sum_{j \in M} \ell(\hat x_j, x_j)$$ (families-masked)
#
# **What came after.** {term}`I-JEPA` puts the teacher's embeddings of hidden blocks in the place of $x_j$. {term}`LeJEPA` has no teacher, no predictor and no stop-gradient. It
# asks that all views of an image lie near the mean $\mu_i$ of its large views, and that in random directions $a$ the embeddings look like draws from a Gaussian:
#
# $$L = (1 - \lambda)\, \frac{1}{V} \sum_v \frac{1}{d}\|z_{iv} - \mu_i\|^2 + \lambda\, \mathrm{SIGReg}(Z)$$ (families-lejepa)
#
# The **pretext task** before all of these was rotation: turn the picture by 0, 90, 180 or 270 degrees and classify by how much.
#
# | symbol | in the code | shape | meaning |
# |---|---|---|---|
# | $z, z'$ | `first`, `second` | `[batch, dim]` | embeddings of the two views |
# | $\tau$ | `temperature` | number | what cosines are divided by |
# | $\lambda, \mu, \nu$ | `invariance_weight`, `variance_weight`, `covariance_weight` | numbers | weights of VICReg's terms; in LeJEPA $\lambda$ is `sigreg_weight` |
# | $v, c$ | `variance_hinge`, `squared_covariances` | numbers | VICReg's terms of one view |
# | $M$ | `masked` | `[batch, patches]` | the hidden patches |

# %% [markdown]
# ## By hand
#
# Four images, two views, three dimensions. The numbers are small enough to be checked with a pencil.

# %%
z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]]).double()
z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]]).double()
by_hand = {}

# %% [markdown]
# **InfoNCE** ({eq}`families-infonce`) as SimCLR has it. Each of the eight views has seven candidates, one of which is right. The view itself is no candidate.

# %%
u = F.normalize(torch.cat([z1, z2]), dim=1)  # [8, 3]
cosines = u @ u.T / 0.5
cosines.fill_diagonal_(-torch.inf)
partner = torch.arange(8).roll(4)  # views 0-3 belong to 4-7, and the other way round
by_hand["SimCLR"] = F.cross_entropy(cosines, partner)
print(f"SimCLR {by_hand['SimCLR']:.4f}")
print(f"with all views alike it would be log 7 = {torch.tensor(7.0).log():.4f}")

# %% [markdown]
# DCL leaves the partner out of the sum. The loss can then fall below 0.

# %%
without = cosines.clone()
without[torch.arange(8), partner] = -torch.inf
by_hand["DCL"] = (without.logsumexp(dim=1) - cosines[torch.arange(8), partner]).mean()
print(f"DCL {by_hand['DCL']:.4f}")

# %% [markdown]
# **Self-distillation** ({eq}`families-byol`) is a cosine. Here the identity stands in for the predictor.

# %%
cosine = F.cosine_similarity(z1, z2, dim=1)
by_hand["SimSiam"] = -cosine.mean()
by_hand["BYOL"] = 2 * (2 - 2 * cosine.mean())  # both directions, each 2 - 2 cos
print(f"SimSiam {by_hand['SimSiam']:.4f}, BYOL {by_hand['BYOL']:.4f}")

# %% [markdown]
# **VICReg** ({eq}`families-vicreg`) needs a mean, a standard deviation and a covariance of the columns.


# %%
def variance_and_covariance(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    missing = (1 - (z.var(dim=0) + 1e-4).sqrt()).clamp_min(0).mean()
    covariance = torch.cov(z.T)
    off = covariance - torch.diag(covariance.diagonal())
    return missing, off.square().sum() / z.shape[1]


(v1, c1), (v2, c2) = variance_and_covariance(z1), variance_and_covariance(z2)
invariance = (z1 - z2).square().mean()
by_hand["VICReg"] = 25 * invariance + 25 * (v1 + v2) / 2 + c1 + c2
print(f"invariance {invariance:.4f}, variance {(v1 + v2) / 2:.4f}")
print(f"covariance {c1 + c2:.4f}")

# %% [markdown]
# **Barlow Twins** correlates the columns of the two views. The matrix should be the identity.


# %%
def normalised(z: torch.Tensor) -> torch.Tensor:
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt()


n1, n2 = normalised(z1), normalised(z2)
correlation = n1.T @ n2 / len(z1)
difference = (correlation - torch.eye(3)).square()
on = difference.diagonal().sum()
by_hand["Barlow Twins"] = on + 0.0051 * (difference.sum() - on)
print(correlation.round(decimals=2).tolist())

# %% [markdown]
# **LeJEPA** ({eq}`families-lejepa`). If the values along a direction were draws from a Gaussian, their mean cosine at frequency $t$ would be $e^{-t^2/2}$ and their mean sine 0. SIGReg
# integrates the squared differences over $t$.


# %%
def epps_pulley(values: torch.Tensor) -> torch.Tensor:
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    gauss = (-(t**2) / 2).exp()
    waves = values[:, None] * t
    gap = (waves.cos().mean(0) - gauss) ** 2 + waves.sin().mean(0) ** 2
    return len(values) * torch.trapezoid(gap * gauss, t)


axes_only = torch.eye(3, dtype=torch.float64)  # three directions: the axes themselves
sigreg = torch.stack([epps_pulley(z @ a) for z in (z1, z2) for a in axes_only]).mean()
spread = (torch.stack([z1, z2]) - (z1 + z2) / 2).square().mean()
by_hand["LeJEPA"] = 0.95 * spread + 0.05 * sigreg
print(f"prediction {spread:.4f}, SIGReg {sigreg:.4f}")

# %% [markdown]
# **MAE** cuts a picture into patches, each a row of numbers, and compares the hidden rows with what the decoder drew. Each row is first brought to mean 0 and variance 1. A decoder that
# draws nothing but zeros gets a loss near 1, which is the variance of what it did not draw.

# %%
picture = torch.arange(48, dtype=torch.float64).reshape(1, 3, 4, 4) / 10
rows = picture.reshape(1, 3, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(1, 4, 12)
hidden = rows[:, [0, 2, 3]]  # three of the four patches: [1, 3, 12]
size = (hidden.var(-1, keepdim=True) + 1e-6).sqrt()
target = (hidden - hidden.mean(-1, keepdim=True)) / size
drawn = torch.zeros_like(target)
by_hand["MAE"] = (drawn - target).square().mean()
print(f"the first patch {rows[0, 0].tolist()}, loss {by_hand['MAE']:.4f}")

# %% [markdown]
# ## The same numbers
#
# The next two cells feed the same tensors to the library's losses and to those of the package lightly, which many readers know.

# %%
from recipes_lib.objectives import contrastive, distillation, gaussian, masked, redundancy

ours = {
    "SimCLR": contrastive.nt_xent(z1, z2, temperature=0.5),
    "DCL": contrastive.dcl_loss(z1, z2, temperature=0.5),
    "SimSiam": distillation.simsiam_loss(torch.stack([z1, z2]), torch.stack([z1, z2])),
    "BYOL": distillation.byol_loss(torch.stack([z1, z2]), torch.stack([z1, z2])),
    "VICReg": redundancy.vicreg_loss(z1, z2),
    "Barlow Twins": redundancy.barlow_twins_loss(z1, z2),
    "LeJEPA": gaussian.lejepa_loss(torch.stack([z1, z2]), axes_only, global_views=2),
    "MAE": masked.mae_loss(drawn, hidden),
}

# %% tags=["nbval-check-output"]
import lightly.loss as theirs

peers = {
    "SimCLR": theirs.NTXentLoss(temperature=0.5)(z1, z2),
    "DCL": theirs.DCLLoss(temperature=0.5)(z1, z2),
    "SimSiam": theirs.NegativeCosineSimilarity()(z1, z2),
    "VICReg": theirs.VICRegLoss()(z1, z2),
    "Barlow Twins": theirs.BarlowTwinsLoss(lambda_param=0.0051)(z1, z2),
}
for name, parts in ours.items():
    torch.testing.assert_close(parts["loss"], by_hand[name])
    if name in peers:
        torch.testing.assert_close(parts["loss"], peers[name])
print("by hand and library:", ", ".join(ours))
print("lightly too:", ", ".join(peers))

# %% [markdown]
# Three losses of lightly's have the same names as ours and are other functions:
#
# - Its NNCLR is built from `NNMemoryBankModule` and `NTXentLoss`. The nearest neighbours and the predictions then also push each other apart within their own view, which the paper's
#   loss does not do.
# - Its `BarlowTwinsLoss` on several processes normalises by each process's own batch. Ours uses the statistics of all processes, and two processes take the same step as one.
# - Its `DINOLoss` passes a gradient to the teacher unless the caller prevents it. Ours never does.
#
# Read the source:
# [contrastive.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/contrastive.py),
# [distillation.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/distillation.py),
# [redundancy.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/redundancy.py),
# [swapped.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/swapped.py),
# [gaussian.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/gaussian.py) and
# [masked.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/masked.py). Which method has which ingredient is one table: {doc}`/book/systems`.

# %% [markdown]
# ### Two families are one
#
# Deep metric learning pushes *rows* apart, canonical correlation pushes *columns* apart. {cite:t}`garrido2023duality` show that this is nearly the same thing. For every table $K$, the squared
# entries of $K K^\top$ (all pairs of images) have the same sum as those of $K^\top K$ (all pairs of dimensions). The two criteria penalise what is off the diagonal, so they differ by their
# diagonals alone, which are the norms of rows and of columns.

# %% tags=["nbval-check-output"]
from recipes_lib.objectives import unified

images, dims = z1 @ z1.T, z1.T @ z1
criteria = {
    "pairs of images": unified.sample_contrastive(z1),
    "pairs of dimensions": unified.dimension_contrastive(z1),
}
for name, parts in criteria.items():
    print(name, float(parts["loss"]), "+ norms", float(parts["norms"]))
assert images.square().sum() == dims.square().sum() == 85

# %% [markdown]
# ## Cook
#
# The next cell trains SimCLR for 300 steps, about 30 seconds on one core. Every other method of this chapter is the same command with another preset, such as `byol_toy`.

# %%
result = families.RECIPE.run(toy, Path(mkdtemp()) / "run")

# %% mystnb={"figure": {"name": "fig-families-toy", "caption": "k-NN accuracy on test pictures after the toy run, beside its yardsticks."}, "image": {"alt": "Bar chart of k-NN accuracy: SimCLR after 300 steps is above the untrained network and the raw pixels, and below the supervised network."}} tags=["hide-input"]
figure, axes = plots.panels(1, columns=1, height=2.6)
plots.scores(axes, result.report["scores"], method="SimCLR")
figure.suptitle(f"after {result.report['steps']} steps")
plt.show()

# %% [markdown]
# ## All families on one axis
#
# {numref}`fig-families-race` has every method by what its run costs. All methods that compare views, and rotation, share one convolutional network, one data set and 300 steps; all that
# compare views share one augmentation too. The methods that hide patches need a transformer, so they have their own panel with their own yardsticks, and SimCLR on that transformer as a
# bridge. MAE, SimMIM and BEiT, whose steps are cheap, have 1,000 steps. I-JEPA has 300 steps with smaller patches. Rows named *later* are longer runs of methods that hardly learn in 300 steps.
#
# The settings of each method were searched on pictures held out of the training set, with one run of 300 steps per setting. No test picture was seen in the search.

# %% tags=["hide-input"]
from recipes_lib.recipes.families.claims import LATER, ON_TRANSFORMER, WITH_VIEWS

relative = next(iter(figures["cost"].values()))["time"]
LINES = {"--": "random_init", ":": "raw_pixels", "-.": "supervised"}


def title(arm: str) -> str:
    """The method of an arm, with its longer run called later."""
    name, longer, _ = arm.removesuffix("_vit").partition("_long")
    return SYSTEMS[name].title + (", later" if longer else "")


# %% tags=["hide-input"]
def race(left, right, methods: tuple[str, ...], yardstick: str) -> None:
    """Rows of accuracies, the best on top, and the time of each run."""
    accuracy = {name: seeds_of(name, "scores", "knn", "method") for name in methods}
    names = sorted(methods, key=lambda name: sum(accuracy[name]))
    for row, name in enumerate(names):
        plain = name.removesuffix("_vit").removesuffix("_long")
        dots = {"linestyle": "none", **plots.style(0)}
        left.plot(accuracy[name], [row] * len(accuracy[name]), **dots)
        steps = seeds_of(name, "steps")[0]
        right.barh(row, steps * relative[plain], color=plots.PALETTE[0])
    left.set_yticks(range(len(names)), [title(name) for name in names])
    for dashes, key in LINES.items():
        found = seeds_of(yardstick, "scores", "knn", key)
        look = {"linestyle": dashes, "label": key.replace("_", " ")}
        left.axvline(sum(found) / len(found), color="#555555", **look)


# %% mystnb={"figure": {"name": "fig-families-race", "caption": "Left: k-NN accuracy on test pictures, one point per seed; the vertical lines are the yardsticks of the same network. Right: processor time of the run, in steps of SimCLR. Top: methods that compare views, and rotation, on the convolutional network. Bottom: methods that hide patches, and SimCLR, on the transformer."}, "image": {"alt": "Rows of points, one row per method, sorted by accuracy, beside bars of the time. On the convolutional network DCL and SimCLR are best and above the raw pixels, SimSiam, BYOL and DINO are last after 300 steps, DINO far below the untrained network, and stand with the others later. On the transformer SimCLR is first, then BEiT, MAE, I-JEPA and SimMIM, all above the untrained network and below the raw pixels."}} tags=["hide-input"]
later = tuple(f"{name}_long" for name in LATER)
parts = {"height_ratios": [17, 5], "width_ratios": [3, 1]}
size = (plots.WIDTH, 7.4)
figure, axes = plt.subplots(2, 2, figsize=size, layout="constrained", sharey="row", **parts)
race(*axes[0], (*WITH_VIEWS, *later), "simclr")
race(*axes[1], ON_TRANSFORMER, "simclr_vit")
axes[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
axes[1, 0].set(xlabel="k-NN accuracy")
axes[1, 1].set(xlabel="steps of SimCLR")
plt.show()

# %% [markdown]
# Do not read {numref}`fig-families-race` as a ranking. It says how far each method gets in some hundred steps on 6,000 pictures of 32 pixels. Published rankings on ImageNet have another order, and differ among
# themselves by the length of training.
#
# The untrained network is a strict yardstick here: its batch norms have statistics of training pictures, as those of a trained network have. With the statistics of a new network, 0 and 1, it would be about three points
# worse ({doc}`evaluation` measures it), and several methods would seem to have learned something.
#
# Three methods do not beat it in so short a run, and all three have neither negatives nor a term that spreads the embeddings. BYOL and SimSiam stand where the untrained network does after 300 steps, and DINO below it, in
# every setting that was tried for that length: for DINO numbers of prototypes, temperatures of the teacher, batch norm in the head, a teacher that follows faster, frozen prototypes, and a transformer. Its embeddings
# collapse at first, and `recipes doctor` says so of its run. All three learn with more steps: BYOL and SimSiam need 1,000 and are then as good as SimCLR was after 300, DINO needs 3,000, a third of the rate, batch norm in the head
# and a sharper teacher (claims `families.byol_learns_later`, `simsiam_learns_later` and `dino_learns_later`; presets `byol_simmer`, `simsiam_simmer`, `dino_simmer`). So a method that fails in a short run may need no repair but
# time. {numref}`fig-families-guards` has no panel for DINO, whose embeddings collapse in a short run even if it is intact.
#
# For the methods that hide patches, {term}`k-NN probe` and distance are the wrong judges, says the Cookbook: their features need to be fine-tuned. {numref}`fig-families-finetuned` does that, with four epochs
# of labels for each network, trained or not.

# %% mystnb={"figure": {"name": "fig-families-finetuned", "caption": "Accuracy on test pictures after four epochs of fine-tuning with labels, from the method's weights and from random weights. One point per seed."}, "image": {"alt": "Four panels, MAE, SimMIM, BEiT and I-JEPA, with two bars each: fine-tuning from the method's weights reaches a higher accuracy than from random weights."}} tags=["hide-input"]
from recipes_lib.recipes.families.claims import HIDING, UNTRAINED

figure, axes = plots.panels(len(HIDING), columns=4, height=2.3, sharey=True)
for ax, method in zip(axes, HIDING, strict=True):
    arms = {"pretrained": seeds_of(method, "scores", "finetune", "method")}
    arms["random"] = seeds_of(UNTRAINED[method], "scores", "finetune", "method")
    plots.bars(ax, arms, ylabel="accuracy" if ax is axes[0] else "")
    ax.set_title(SYSTEMS[method].title)
plt.show()

# %% [markdown]
# ## Knobs
#
# The learning rate matters as much as the loss. {numref}`fig-families-rates` shows what the search saw on the held-out pictures, for the methods of which more than one rate was tried. All runs of the search, with the other
# settings that were tried, are in `data/searches/families.json`.

# %% tags=["hide-input"]
search = json.loads(embedded.path("searches/families.json").read_text())


def rates_of(method: str, steps: int) -> dict[float, float]:
    """Held-out accuracy by learning rate, of runs that varied nothing else."""
    chosen = [row for row in search["runs"] if row["method"] == method]
    chosen = [row for row in chosen if row["steps"] == steps and not row["other"]]
    return {row["lr"]: row["knn"] for row in chosen}


# %% mystnb={"figure": {"name": "fig-families-rates", "caption": "k-NN accuracy on held-out pictures by learning rate, one line per number of steps, one run per point."}, "image": {"alt": "Small panels, one per method, with k-NN accuracy by learning rate. Most methods do best at 0.003 and worse at 0.01; SimCLR after 1000 steps is higher than after 300."}} tags=["hide-input"]
names = [name for name in families.METHODS if len(rates_of(name, 300)) > 1]
figure, axes = plots.panels(len(names), columns=5, height=1.6, sharey=True)
for ax, name in zip(axes, names, strict=True):
    for index, steps in enumerate((300, 1000)):
        points = sorted(rates_of(name, steps).items())
        look = {**plots.style(index), "markersize": 4, "label": f"{steps} steps"}
        if points:
            places = [(0.001, 0.003, 0.01).index(rate) for rate, _ in points]
            ax.plot(places, [accuracy for _, accuracy in points], **look)
    ax.set_title(SYSTEMS[name].title, fontsize=9)
    ax.set_xticks(range(3), [".001", ".003", ".01"])
axes[1].legend(fontsize=8, frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ## Break it
#
# Here is one of the broken pairs of {numref}`fig-families-guards`, live, for about 20 seconds: {term}`SimSiam` with and without its {term}`stop-gradient`. It is one argument.

# %%
brief = {"train.steps": 100, "eval.baselines": "none"}
simsiam = families.PRESETS["simsiam_toy"]
pair = {"intact": {}, "no stop-gradient": {"loss.stop_gradient": False}}
runs = {
    name: families.RECIPE.run(override(simsiam, brief | change), Path(mkdtemp()) / "run")
    for name, change in pair.items()
}

# %% mystnb={"figure": {"name": "fig-families-broken", "caption": "SimSiam's loss (left) and the spread of its embeddings (right) over training, with and without the stop-gradient."}, "image": {"alt": "Two panels over 100 steps. Without the stop-gradient the loss falls to minus 0.9 and the spread to 0.4; with it the loss falls to minus 0.6 and the spread stays near one."}} tags=["hide-input"]
figure, axes = plots.panels(2, columns=2, height=2.8)
curves = {}
for name, run in runs.items():
    rows = (run.folder / "metrics.jsonl").read_text().splitlines()
    curves[name] = [json.loads(row) for row in rows]
for ax, key, label in zip(axes, ("loss", "std"), ("loss", "spread"), strict=True):
    lines = {name: [row[key] for row in rows] for name, rows in curves.items()}
    plots.curve(ax, range(1, 101), lines, ylabel=label)
plt.show()

# %% [markdown]
# The loss of the broken run is the better one. The spread, which is logged at every step as `std`, gives it away. The command `recipes doctor RUN` looks at this number and at others for
# you. The next cell calls what it calls, for both runs:

# %%
from textwrap import fill

from recipes_lib.pretraining import doctor

for name, run in runs.items():
    findings = doctor.diagnose(families.RECIPE, run.folder)
    lines = [finding.line for finding in findings if finding.status == "found"]
    print(f"{name}:")
    for line in lines or ["nothing found"]:
        print(fill(line, 80, initial_indent="  ", subsequent_indent="    "))

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify families` on three seeds per arm, and is compared with margins fixed before. Each row of the figure is a claim. It holds where the mean lies
# in the shaded part and no seed points the other way.

# %% mystnb={"image": {"alt": "One row per claim, 37 of them, by the difference from the control in margins, three seeds each. All hold but three: after 300 steps, BYOL and SimSiam scatter around the untrained network, and DINO is more than four margins below it."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("families")

# %% [markdown]
# These verdicts rest on one renderer's pictures at 32 pixels, small networks and short runs. A method that beats the untrained network by more than another is not the better method at full scale. That a
# guard is needed here says that it is needed here, with these rates and lengths.

# %% [markdown]
# ## Scale it up
#
# Each method's paper run is a preset. The first command shows what SimCLR's will cost and starts nothing, the second trains it on a node of eight GPUs, the third trains BYOL on CIFAR-10 on a laptop, and the
# fourth trains it on a folder of your own pictures, without labels:
#
# ```sh
# recipes plan families --preset simclr_rn50_imagenet --gpus 8
# torchrun --nproc-per-node 8 -m recipes_lib run families \
#     --preset simclr_rn50_imagenet --data.root /data/imagenet --data.workers 10
# recipes run families --preset byol_laptop --data.root CIFAR
# recipes run families --preset byol_laptop --data.name imagenet \
#     --data.root MY_PICTURES --eval.probes None
# ```
#
# This is what the first command shows:

# %%
notebook.plan("families", "simclr_rn50_imagenet", gpus=8)

# %% [markdown]
# The hyper-parameters of some paper runs:

# %% tags=["hide-input"]
fields = {
    "model": ["arch", "hidden", "dim", "predictor_layers", "ema"],
    "optim": ["name", "lr", "weight_decay", "warmup_epochs"],
    "train": ["batch_size", "epochs"],
}
papers = ("simclr_rn50", "byol_rn50", "vicreg_rn50", "mae_vitb16")
shown = {name: families.PRESETS[f"{name}_imagenet"] for name in papers}
notebook.settings(shown, fields)

# %% [markdown]
# ## Exercises
#
# **1. Predict, then run** (5 min, easy). Give SimCLR eight equal embeddings. What is its loss? And DCL's? You are right if the first is $\log 7$.

# %% tags=["solution", "hide-cell"]
# Solution 1
same = torch.ones(4, 3, dtype=torch.float64)
simclr = contrastive.nt_xent(same, same, temperature=0.1)["loss"]
dcl = contrastive.dcl_loss(same, same, temperature=0.1)["loss"]
print(f"SimCLR {simclr:.4f} = log 7, DCL {dcl:.4f} = log 6")
torch.testing.assert_close(simclr, torch.tensor(7.0, dtype=torch.float64).log())

# %% [markdown]
# **2. Forgetting to gather** (10 min, medium). Two processes hold two images each, and each computes SimCLR's loss on its own images. Is the mean of the two losses that of one process with four images? You are right if
# you can say which candidates are missing.

# %% tags=["solution", "hide-cell"]
# Solution 2
whole = contrastive.nt_xent(z1, z2, temperature=0.5)["loss"]
halves = zip(z1.chunk(2), z2.chunk(2), strict=True)
parts = [contrastive.nt_xent(*half, temperature=0.5)["loss"] for half in halves]
print(f"one process {whole:.4f}, two that do not gather {sum(parts) / 2:.4f}")
print("each view lacks the four views of the other process as candidates")
assert whole > sum(parts) / 2

# %% [markdown]
# **3. Which guard is in the data?** (15 min, medium). MAE has no negatives, no teacher and no statistics of the batch. Why can it not collapse? Give its decoder a constant picture as output and compute the loss. You are
# right if the loss is far from 0.

# %% tags=["solution", "hide-cell"]
# Solution 3
constant = torch.full_like(drawn, float(drawn.mean()))
lost = masked.mae_loss(constant, hidden)["loss"]
print(f"the best constant answer has loss {lost:.3f}")
print("the target does not depend on the network")
assert lost > 0.9

# %% [markdown]
# **4. A small research question** (an hour, hard). The bars of {numref}`fig-families-guards` have one guard each. SimCLR's negatives, VICReg's variance term and LeJEPA's SIGReg all keep embeddings apart. Train SimSiam without
# stop-gradient but with `koleo_loss` on its embeddings. Does any spreading term do?

# %% [markdown]
# ## Close
#
# Others met these pitfalls:
#
# - A loss that is summed over processes by a plain `all_reduce` has the right value and the wrong gradient. This happened in several libraries:
#   [lightly issue 1977](https://github.com/lightly-ai/lightly/issues/1977), [lightly issue 1920](https://github.com/lightly-ai/lightly/issues/1920),
#   [vissl issue 230](https://github.com/facebookresearch/vissl/issues/230).
# - Sinkhorn's exponential overflows if prototypes are not normalised ([swav issue 67](https://github.com/facebookresearch/swav/issues/67)).
# - A loss that stays at exactly $\log K$ is DINO's uniform collapse ([dino issue 43](https://github.com/facebookresearch/dino/issues/43)).
# - A teacher that averages over more steps than the run has never arrives: fit the momentum to the length of the run.
#
# Read on:
#
# - {cite:t}`balestriero2023cookbook`, section 2, tells how the families grew out of older ideas.
# - {cite:t}`garrido2023duality` shows how far contrastive and non-contrastive losses are the same.
# - {cite:t}`chen2021simsiam` asks which parts of BYOL are needed, and is the clearest paper on collapse.
# - {cite:t}`he2022mae` shows why masking needs so high a ratio in pictures.
# - {cite:t}`balestriero2025lejepa` argues for one Gaussian in place of all guards.
#
# This chapter as a script: [families.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/families.py).
