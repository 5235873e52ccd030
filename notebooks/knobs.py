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
# # Knobs: what each setting does
#
# *A method of self-supervised learning has a loss of three lines and a few dozen settings. This chapter turns the settings one at a time, with three seeds each, and compares what happens with the
# advice that is usually given.*
#
# Paper: the advice is that of the Cookbook ({cite:t}`balestriero2023cookbook`, section 3). Implementation: `recipes_lib/recipes/knobs/`; the runs are those of {doc}`families`, started by
# `recipes sweep` or `recipes verify`.
#
# You need first: {needs}`knobs`. The methods {term}`SimCLR`, {term}`VICReg`, {term}`BYOL`, {term}`SwAV` and {term}`MAE` are explained there.

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

notebook.start("knobs")

# %% [markdown]
# ## The question
#
# Somebody trains SimCLR, gets features that are no better than raw pixels, and concludes that SimCLR does not work. {numref}`fig-knobs-range` shows how easily that happens. Every point is SimCLR on the
# same pictures, with the same network and as many images seen. The points of a row differ in one setting. The lines are the {term}`yardsticks <random-init features>`: what the same network knows before
# training, and what the pixels tell without any network.

# %% tags=["hide-input"]
import json
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from recipes_lib import plots
from recipes_lib.config import override
from recipes_lib.data import embedded
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.knobs import claims as arms_of
from recipes_lib.recipes.knobs import recipe as knobs

stored = json.loads(embedded.path("claims/knobs.json").read_text())
figures = stored["figures"]
NAMES = {"random_init": "random init", "raw_pixels": "raw pixels"}


# %% tags=["hide-input"]
def knn(arm: str) -> list[float]:
    """The k-NN accuracies of an arm, one per seed."""
    return [run["scores"]["knn"]["method"] for run in figures[arm].values()]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def yardsticks(arm: str) -> dict[str, float]:
    """What the arm's network knows before training, and what the pixels tell."""
    rows = [run["scores"]["knn"] for run in figures[arm].values()]
    return {name: mean([row[key] for row in rows]) for key, name in NAMES.items()}


# %% tags=["hide-input"]
ROWS = {
    "augmentation": [*arms_of.AUGMENTATIONS],
    "projector": ["simclr", *(f"projector_{n}" for n in (0, 1, 3))],
    "width": ["simclr", "hidden_64", "hidden_1024", "dim_16", "dim_256"],
    "batch size": [f"batch_{n}_root" for n in arms_of.SIZES] + ["simclr"],
    "temperature": ["simclr", *(f"temperature_{t}" for t in (0.05, 0.1, 0.5, 1.0))],
    "learning rate": ["simclr", *(f"rate_{r:g}" for r in (3e-4, 1e-3, 0.01, 0.03))],
    "weight decay": ["simclr", *(f"decay_{d}" for d in (0, 0.5, 5))],
}

# %% mystnb={"figure": {"name": "fig-knobs-range", "caption": "k-NN accuracy of SimCLR on test pictures, mean of three seeds per point. The points of a row differ in one setting; the star is the setting of the preset."}, "image": {"alt": "Seven rows of points, one row per knob, by k-NN accuracy, with vertical lines at the untrained network and at raw pixels. Each row spreads over a different width."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(plots.WIDTH, 3.2), layout="constrained")
for row, arms in enumerate(ROWS.values()):
    look = plots.style(row)
    at = [mean(knn(arm)) for arm in arms]
    ax.plot(at, [row] * len(at), "o", color=look["color"], alpha=0.7)
ax.plot([mean(knn("simclr"))] * len(ROWS), range(len(ROWS)), "k*", markersize=11)
for name, level in yardsticks("simclr").items():
    ax.axvline(level, color=plots.BASELINE, linestyle="--", linewidth=1)
    ax.annotate(f" {name}", (level, -0.7), fontsize=9)
ax.set_yticks(range(len(ROWS)), list(ROWS))
ax.set(xlabel="k-NN accuracy", ylim=(len(ROWS) - 0.5, -1.1))
plt.show()

# %% [markdown]
# :::{claims} knobs
# :::

# %% [markdown]
# Each claim is a piece of the Cookbook's advice. Its margin was fixed before the runs that decide it.

# %% [markdown]
# ## The knobs in one picture

# %% tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.data.load import load
from recipes_lib.data.loader import StepBatches
from recipes_lib.diagrams import Arrow, Box, Image
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.views.colour import IMAGENET_MEAN, IMAGENET_STD

toy = knobs.PRESETS["toy"]
data = load(toy.data, DATA_SEED)
batch = StepBatches(data.train, seed=0, batch_size=64)[0]


def views_with(changes: dict) -> torch.Tensor:
    """The two views of each image of the batch: [2, 64, 3, side, side]."""
    config = override(toy, changes)
    cut = engine.build(families.RECIPE, config, steps=1).views(batch, step=0)
    centre, spread = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (cut["large"] * spread + centre).clamp(0, 1).unflatten(0, (2, -1))


# %% mystnb={"figure": {"name": "fig-knobs-where", "caption": "Where the knobs of this chapter sit. Dashed: only in methods with a teacher."}, "image": {"alt": "Diagram. A picture becomes two views by the augmentations. Both go through backbone and projector to the loss, one of them through a predictor, if there is one. A dashed arrow leads from the backbone to a teacher. Below the loss stands the optimiser with rate, decay and batch size."}} tags=["hide-input"]
first, second = views_with({})
nodes = {
    "image": Image(0, 0.5, batch.images[3], "an image"),
    "one": Image(1, 0, first[3], "a view:\ncrop, colours"),
    "two": Image(1, 1, second[3], "another view"),
    "student": Box(2, 0, "backbone\nand projector:\nlayers, width"),
    "teacher": Box(2, 1, "the same, or\na teacher:\nmomentum"),
    "predictor": Box(3, 0, "predictor,\nif any:\nlayers"),
    "loss": Box(4, 0.5, "loss:\ntemperature,\nbatch size"),
}
arrows = [("image", "one"), ("image", "two"), ("one", "student"), ("two", "teacher")]
arrows += [("student", "predictor"), ("predictor", "loss"), ("teacher", "loss")]
arrows += [Arrow("student", "teacher", "follows", "EMA")]
_, ax = plt.subplots(figsize=(plots.WIDTH, 3.2))
diagrams.draw(ax, nodes, arrows)
plt.show()

# %% [markdown]
# ## The equations
#
# Four knobs have a formula behind them.
#
# **Temperature.** SimCLR's loss ({eq}`families-infonce`) pulls a view towards its partner and pushes it away from every other candidate $k$. How hard it pushes is the derivative with respect to the
# cosine $c_k$:
#
# $$\frac{\partial L}{\partial c_k} = \frac{p_k}{\tau}, \qquad p_k = \frac{e^{c_k/\tau}}{\sum_j e^{c_j/\tau}}$$ (knobs-push)
#
# A low {term}`temperature` $\tau$ puts all of the push on the most similar candidate, a high one spreads it evenly.
#
# **Batch size and learning rate.** Let $\eta_0$ be a rate that works at $B_0$ images per step. Two rules say what to use at $B$:
#
# $$\eta_\text{linear} = \eta_0\, \frac{B}{B_0}, \qquad \eta_\text{root} = \eta_0 \sqrt{\frac{B}{B_0}}$$ (knobs-rules)
#
# **EMA.** A {term}`teacher` with momentum $m$ forgets half of a change of the network after
#
# $$h = \frac{\log 1/2}{\log m}$$ (knobs-half)
#
# steps. **Weight decay.** AdamW multiplies each weight by $1 - \eta_t \lambda$ in step $t$, so that after a run of $S$ steps, without any gradient, there is left
#
# $$\prod_{t=1}^{S} (1 - \eta_t \lambda) \approx e^{-\lambda \sum_t \eta_t}$$ (knobs-decay)
#
# | symbol | in the code | shape | meaning |
# |---|---|---|---|
# | $\tau$ | `loss.temperature` | number | what cosines are divided by |
# | $c_k, p_k$ | `cosines`, `push` | `[candidates]` | cosine with a candidate, and its share of the push |
# | $B, \eta$ | `train.batch_size`, `optim.lr` | numbers | images per step, summed over processes, and learning rate |
# | $m$ | `model.ema` | number | momentum of the teacher |
# | $\lambda$ | `optim.weight_decay` | number | weight decay |

# %% [markdown]
# ## By hand
#
# **Temperature.** A view has a partner with cosine 0.9 and three negatives: a very similar one, a middling one and an unlike one. The table shows how the push is shared among the three negatives.

# %%
cosines = torch.tensor([0.9, 0.8, 0.3, -0.4], dtype=torch.float64)
for tau in (0.05, 0.1, 0.2, 1.0):
    push = (cosines / tau).softmax(dim=0)[1:]  # without the partner
    shares = (push / push.sum()).round(decimals=3).tolist()
    print(f"temperature {tau:<4} shares of the push {shares}")

# %% [markdown]
# At 0.05 the similar negative gets everything, and if it is a picture of the same class, that is bad advice for the network. At 1.0 even the unlike one is pushed, although it is far away already.
#
# **Batch size.** For plain SGD the linear rule is natural: half as many steps, each twice as long. Adam divides each step by the size of the gradient. Where the gradient is mostly noise, that size falls
# as $1/\sqrt B$, so a larger batch already takes larger useful steps. The next cell lets Adam walk along a constant slope under heavy noise. It sees 65,536 samples in all, whatever the batch size, and
# uses each of the rules.


# %%
def walked(batch_size: int, rate: float, samples: int = 65_536) -> float:
    """How far Adam gets along a slope of 1 under noise of 30 per sample."""
    place = torch.zeros(512, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([place], lr=rate)
    draw = torch.Generator().manual_seed(0)
    for _ in range(samples // batch_size):
        noise = torch.randn(512, generator=draw, dtype=torch.float64)
        place.grad = 1 + 30 * noise / batch_size**0.5
        adam.step()
    return -float(place.detach().mean())


reached = {"constant": [], "root": [], "linear": []}
for size in (64, 128, 256, 512):
    ratio = size / 128
    rates = {"constant": 1e-3, "root": 1e-3 * ratio**0.5, "linear": 1e-3 * ratio}
    for rule, rate in rates.items():
        reached[rule].append(walked(size, rate))
for rule, distances in reached.items():
    print(f"{rule:<9}", [round(distance, 3) for distance in distances])

# %% [markdown]
# Each row has four batch sizes, from 64 to 512. Under the root rule the distances are nearly equal, and they begin to fall where the batch is so large that little noise is left. The argument is about noise,
# so it is one for small batches.
#
# **EMA.** The half-life of {eq}`knobs-half` for momenta that papers use:

# %%
log_half = torch.tensor(0.5).log()
momenta = (0.9, 0.99, 0.996, 0.999)
half_lives = {m: float(log_half / torch.tensor(m).log()) for m in momenta}
for momentum, steps in half_lives.items():
    share = steps / arms_of.STEPS
    print(f"momentum {momentum:<6} half-life {steps:4.0f} steps, {share:.0%} of a run")

# %% [markdown]
# A momentum that was chosen for 100,000 steps averages over more than a short run has. Fit it to the length of the run.
#
# **Weight decay.** What is left of a weight after a run with a given decay ({eq}`knobs-decay`), with the cosine of the learning rate:

# %%
from recipes_lib.optim.schedules import cosine

rates = [cosine(step, 3e-3, 0.0, 300) for step in range(300)]
kept = {}
for decay in (0.05, 0.5, 5.0):
    kept[decay] = torch.tensor([1 - rate * decay for rate in rates]).prod()
    print(f"weight decay {decay:<4} leaves {float(kept[decay]):.1%} of a weight")

# %% [markdown]
# ## The same numbers
#
# The library's loss and its gradient on eight random views, beside {eq}`knobs-push`, and torch's AdamW beside {eq}`knobs-decay`.

# %% tags=["nbval-check-output"]
from recipes_lib.objectives.contrastive import nt_xent

draw = torch.Generator().manual_seed(0)
views = torch.randn(8, 5, generator=draw, dtype=torch.float64, requires_grad=True)
nt_xent(views[:4], views[4:], temperature=0.2)["loss"].backward()

leaf = views.detach().clone().requires_grad_()
unit = torch.nn.functional.normalize(leaf, dim=1)
table = unit @ unit.T  # [8, 8] cosines
with torch.no_grad():
    push = (table / 0.2).fill_diagonal_(-torch.inf).softmax(dim=1)
    push[torch.arange(8), torch.arange(8).roll(4)] -= 1  # the partner is pulled
table.backward(push / 0.2 / 8)  # the mean over eight views
torch.testing.assert_close(leaf.grad, views.grad)
print("the same gradient")

# %% tags=["nbval-check-output"]
weight = torch.ones(1, requires_grad=True)
adamw = torch.optim.AdamW([weight], weight_decay=0.5)
for rate in rates:
    adamw.param_groups[0]["lr"] = rate
    weight.grad = torch.zeros(1)
    adamw.step()
torch.testing.assert_close(weight.detach()[0], kept[0.5])
print("the same shrinking")

# %% [markdown]
# Read the source: the loss is `recipes_lib.objectives.contrastive.nt_xent` in
# [contrastive.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/contrastive.py), the schedules are in
# [schedules.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/optim/schedules.py), and the sweep is in
# [sweep.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/launch/sweep.py).

# %% [markdown]
# ## Cook
#
# Preset {term}`toy` of this chapter trains SimCLR for 100 steps, about 20 seconds on one core, and probes the network at every layer: at the features of the {term}`backbone`, inside the {term}`projector`,
# and at the {term}`embedding` that the loss compares.

# %%
result = knobs.RECIPE.run(toy, Path(mkdtemp()) / "run")

# %% mystnb={"figure": {"name": "fig-knobs-toy", "caption": "k-NN accuracy after 100 steps. Left: the features beside their yardsticks. Right: the same network at each layer."}, "image": {"alt": "Two bar charts of k-NN accuracy. Left: SimCLR, the untrained network, raw pixels and the supervised network. Right: features, hidden layer and embedding of the same network."}} tags=["hide-input"]
figure, axes = plots.panels(2, columns=2, height=2.8, sharey=True)
plots.scores(axes[:1], result.report["scores"], method="SimCLR")
at_layers = {name: [value] for name, value in result.report["diagnostics"].items()}
plots.bars(axes[1], {name.replace("_", " "): v for name, v in at_layers.items()}, ylabel="")
axes[1].set_title("at each layer")
plt.show()

# %% [markdown]
# ## Knobs
#
# What follows was computed by `recipes verify knobs`: 300 steps with 128 pictures each, unless the knob changes these, on 6,000 pictures of the {doc}`/book/pantry`. Every bar and every mark is the mean of
# three seeds. You can make such a table and figure for any recipe and any fields:
#
# ```sh
# recipes sweep families --preset simclr_toy --loss.temperature 0.05 0.1 0.2 0.5 1 \
#     --optim.lr 1e-3 3e-3 --train.seed 0 1 2 --eval.baselines none
# ```

# %% [markdown]
# ### Augmentations
#
# *Advice: crops and changes of colour matter most; random crops with grey views are the cheapest useful set.* {term}`Views <view>` say what the features should ignore. Without crops, two views share their
# layout. Without colour changes, they share their colours, and matching colours is an easy way out. {numref}`fig-knobs-views` shows what the arms see.

# %% mystnb={"figure": {"name": "fig-knobs-views", "caption": "Two views of eight pictures each, with all augmentations and with one of them removed."}, "image": {"alt": "Four pairs of rows of small pictures: with all augmentations, without crops, without colour changes, and with crops and grey views alone."}} tags=["hide-input"]
some = ("simclr", "no_crop", "no_colour", "crop_grayscale")
figure, axes = plots.panels(4, columns=2, height=1.5)
for ax, arm in zip(axes, some, strict=True):
    pairs = views_with(arms_of.AUGMENTATIONS[arm])[:, :8].flatten(0, 1)
    plots.image_grid(ax, pairs, columns=8, title=arm.replace("_", " "))
plt.show()

# %% mystnb={"figure": {"name": "fig-knobs-augmentations", "caption": "k-NN accuracy of SimCLR with changed augmentations, one point per seed."}, "image": {"alt": "Bars of k-NN accuracy for ten sets of augmentations, with one point per seed and lines for the untrained network and raw pixels."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(plots.WIDTH, 3.4), layout="constrained")
heights = {arm.replace("_", " "): knn(arm) for arm in arms_of.AUGMENTATIONS}
plots.bars(ax, heights, ylabel="k-NN accuracy", levels=yardsticks("simclr"))
ax.tick_params(axis="x", rotation=60)
plt.show()

# %% [markdown]
# Crops and colours both matter, as advised, and each of jitter and grey views is needed: with grey views as the only change of colour, hardly more is learned than with none. So the cheapest set fails here. Twice the
# jitter is as bad as none, and a mirror image makes no difference. The Pantry is not ImageNet: an augmentation says what does not matter in a picture, and that differs from one set of pictures to another.

# %% [markdown]
# ### Projector, and where to probe
#
# *Advice: use a projector of two or three layers, throw it away afterwards, and do not assume that a very wide one is needed.* The projector absorbs what the loss asks for beyond the class.


# %% mystnb={"figure": {"name": "fig-knobs-projector", "caption": "k-NN accuracy by the projector's layers (left; 0 is none), by the width of its hidden layer (middle) and of its output (right). Means of three seeds with their range."}, "image": {"alt": "Three panels of k-NN accuracy: by number of projector layers for SimCLR, by hidden width, and by output dimension for SimCLR and VICReg."}} tags=["hide-input"]
def row_of(settings: dict[float, str]) -> dict[float, list[float]]:
    """The accuracies of arms by the value of their knob."""
    return {value: knn(arm) for value, arm in sorted(settings.items())}


layers = {2: "simclr"} | {n: f"projector_{n}" for n in (0, 1, 3)}
hidden = {256: "simclr", 64: "hidden_64", 1024: "hidden_1024"}
dims = {64: "simclr", 16: "dim_16", 256: "dim_256"}
vicreg = {d: f"vicreg_dim_{d}" for d in (16, 64, 256)}
panels = {
    "layers": {"SimCLR": row_of(layers)},
    "hidden width": {"SimCLR": row_of(hidden)},
    "output width": {"SimCLR": row_of(dims), "VICReg": row_of(vicreg)},
}
how = {"xlabel": "", "ylabel": "k-NN accuracy", "columns": 3}
plots.responses(panels, levels=yardsticks("simclr"), **how)
plt.show()

# %% mystnb={"figure": {"name": "fig-knobs-layers", "caption": "k-NN accuracy of one SimCLR at each layer, one point per seed. The projector begins behind the features."}, "image": {"alt": "Bars of k-NN accuracy at the features, at the projector's hidden layer and at the embedding, with one point per seed."}} tags=["hide-input"]
probed = [run["knn"] for run in figures["layers"].values()]
figure, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
heights = {name.replace("_", " "): [run[name] for run in probed] for name in probed[0]}
plots.bars(ax, heights, ylabel="k-NN accuracy", levels=yardsticks("simclr"))
plt.show()

# %% [markdown]
# Both methods are better with a projector than without. One layer is enough for SimCLR, and more do not help. VICReg loses with every step to a narrower output, so the advice that a wide output is not needed does not hold for
# it here; its loss weights and rate are those chosen at 256 dimensions, and the Cookbook says that they must be tuned anew.
#
# The last figure answers where to probe: after these short runs, features and embeddings tell the classes apart about equally well. That the features before the projector are much better does not show at this scale. The gain of a
# projector lies in what it does to the features, not in what it loses.

# %% [markdown]
# ### Batch size and learning rate
#
# *Advice: small batches work, if the learning rate falls with the square root of the batch size.* All runs of {numref}`fig-knobs-batch` see the same number of pictures, so smaller batches take more steps.

# %% mystnb={"figure": {"name": "fig-knobs-batch", "caption": "k-NN accuracy by images per step, for as many images in all, with two rules for the learning rate. Means of three seeds with their range."}, "image": {"alt": "Two lines of k-NN accuracy over the batch size from 32 to 512 on a logarithmic axis, one for the linear rule and one for the square-root rule. They meet at 128."}} tags=["hide-input"]
rules = {
    name: row_of({128: "simclr"} | {n: f"batch_{n}_{key}" for n in arms_of.SIZES})
    for name, key in {"linear": "linear", "square root": "root"}.items()
}
plots.responses({"": rules}, xlabel="images per step", ylabel="k-NN accuracy")
plt.show()

# %% [markdown]
# Both pieces of advice hold. Small batches are better here, not only as good, because as many pictures in smaller batches mean more steps; and among the small batches the rate by the root rule is the better one. With large batches
# there are too few steps left, under either rule.

# %% [markdown]
# ### Temperature, learning rate and weight decay
#
# *Advice: temperatures from 0.1 to 0.5; a learning rate that is searched; some weight decay.*

# %% mystnb={"figure": {"name": "fig-knobs-optim", "caption": "k-NN accuracy of SimCLR by temperature, by peak learning rate and by weight decay. Means of three seeds with their range."}, "image": {"alt": "Three panels of k-NN accuracy of SimCLR: by temperature from 0.05 to 1, by learning rate from 0.0003 to 0.03, and by weight decay from 0 to 5."}} tags=["hide-input"]
temperature = {0.2: "simclr"} | {t: f"temperature_{t}" for t in (0.05, 0.1, 0.5, 1.0)}
rate = {3e-3: "simclr"} | {r: f"rate_{r:g}" for r in (3e-4, 1e-3, 1e-2, 3e-2)}
decay = {0.05: "simclr"} | {d: f"decay_{d:g}" for d in (0.0, 0.5, 5.0)}
panels = {
    "temperature": {"SimCLR": row_of(temperature)},
    "learning rate": {"SimCLR": row_of(rate)},
    "weight decay": {"SimCLR": row_of(decay)},
}
plots.responses(panels, levels=yardsticks("simclr"), **how)
plt.show()

# %% [markdown]
# A temperature of 1 is clearly worse. One of 0.05 costs nothing, although it is outside of the range in use. The learning rate may be wrong by a factor of three in either direction before much is lost. Weight decay makes no
# difference to SimCLR over two decades: {eq}`knobs-decay` says that the smaller of these values change the weights of so short a run by a few percent.

# %% [markdown]
# ### Teacher and predictor
#
# *Advice: BYOL needs its predictor, though a linear one will do; it needs a teacher that lags behind; without weight decay it is unstable.* BYOL has no negatives, so these parts are its guard against
# {term}`collapse`. Its runs have 300 steps too, with the network and the rate of its preset.

# %% mystnb={"figure": {"name": "fig-knobs-byol", "caption": "k-NN accuracy of BYOL by the teacher's momentum (the preset's rises from 0.5 to 0.9, the others stay), by the layers of the predictor, and by weight decay. Means of three seeds with their range."}, "image": {"alt": "Three panels of k-NN accuracy of BYOL: by momentum from 0 to 0.99, by predictor layers from 0 to 2, and with and without weight decay."}} tags=["hide-input"]
momentum = {"0": "byol_ema_0", "0.5 to 0.9": "byol"}
momentum |= {m: f"byol_ema_{m}" for m in ("0.9", "0.99")}
predictor = {0: "byol_predictor_0", 1: "byol_predictor_1", 2: "byol"}
panels = {
    "momentum": {"BYOL": {m: knn(arm) for m, arm in momentum.items()}},
    "predictor layers": {"BYOL": row_of(predictor)},
    "weight decay": {"BYOL": row_of({0: "byol_decay_0", 0.05: "byol"})},
}
plots.responses(panels, levels=yardsticks("simclr"), **how)
plt.show()

# %% [markdown]
# Without the predictor, BYOL falls far below its untrained network. Here a linear predictor saves nothing; the Cookbook's remark that it catches up speaks of tens of epochs. The teacher helps a little: a copy of the network in
# its place gives runs that differ widely from seed to seed. The slowest teacher that was tried is the best, better than the one of our own preset, which was chosen on another split with fewer values. Without weight decay nothing
# becomes unstable in runs of 300 steps.

# %% [markdown]
# ### Masking, and small views
#
# *Advice: masked autoencoders hide most of the picture, because little is learned by guessing one patch from its neighbours; small views are cheap comparisons.* MAE runs on the transformer of {doc}`families`,
# which has yardsticks of its own, for 1,200 steps, because its steps are short. SwAV with small views ({term}`multi-crop`) gets fewer steps, so that both arms take about as long.

# %% mystnb={"figure": {"name": "fig-knobs-mask", "caption": "Left: k-NN accuracy of MAE by the share of hidden patches. Right: SwAV with two large views, and with four small ones beside them, for about as much time."}, "image": {"alt": "Left, k-NN accuracy of MAE by mask ratio from 0.25 to 0.9. Right, bars of SwAV with and without small views, one point per seed."}} tags=["hide-input"]
figure, axes = plots.panels(2, columns=2, height=2.8)
ratios = (0.25, 0.5, 0.75, 0.9)
by_seed = list(zip(*(knn(f"mae_{r}") for r in ratios), strict=True))
how = {"xlabel": "share of hidden patches", "ylabel": "k-NN accuracy"}
plots.curve(axes[0], ratios, {"MAE": by_seed}, levels=yardsticks("mae_0.75"), **how)
pair = {"two large": knn("swav"), "and four small": knn("swav_small_views")}
plots.bars(axes[1], pair, ylabel="", levels=yardsticks("simclr"))
plt.show()

# %% [markdown]
# The best share of hidden patches lies at three quarters, as in MAE's paper, and at nine tenths too little of these small pictures is left. Small views do great harm here, where each is 16 pixels wide and shows down to a tenth of a picture of 32:
# the crops have little in common with the picture, and there are fewer steps. This is the clearest case of advice that needs its scale.

# %% [markdown]
# ### Turn them yourself
#
# In a live kernel, choose a setting and train 60 steps.

# %% tags=["remove-output", "hide-input"]
from ipywidgets import Dropdown, FloatLogSlider, interact_manual

brief = {"train.steps": 60, "eval.baselines": "none"}


def try_out(temperature=0.2, rate=3e-3, projector=2) -> None:
    changes = {"loss.temperature": temperature, "optim.lr": rate}
    changes |= {"model.projector_layers": projector}
    tried = knobs.RECIPE.run(override(toy, brief | changes), Path(mkdtemp()) / "run")
    print(tried.report["diagnostics"])


interact_manual(
    try_out,
    temperature=FloatLogSlider(0.2, min=-1.5, max=0.0),
    rate=FloatLogSlider(3e-3, min=-4.0, max=-1.0),
    projector=Dropdown(options=[0, 1, 2, 3], value=2),
)

# %% [markdown]
# ## Break it
#
# Which number tells that a knob is wrong? Not the loss. The next cell, about 15 seconds, trains the toy once more without crops and compares the two losses.

# %%
whole = override(toy, arms_of.AUGMENTATIONS["no_crop"] | {"eval.baselines": "none"})
broken = knobs.RECIPE.run(whole, Path(mkdtemp()) / "run")


# %% mystnb={"figure": {"name": "fig-knobs-broken", "caption": "SimCLR's loss over training with crops and without (left), and the k-NN accuracy of both after it (right)."}, "image": {"alt": "Left: the loss without crops is lower than with crops from the first steps on. Right: bars of the k-NN accuracy of both runs."}} tags=["hide-input"]
def losses(run) -> list[float]:
    lines = (run.folder / "trained" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


both = {"with crops": result, "without crops": broken}
figure, axes = plots.panels(2, columns=2, height=2.8)
curves = {name: losses(run) for name, run in both.items()}
plots.curve(axes[0], range(1, toy.train.steps + 1), curves, ylabel="loss")
found = {name: [run.report["diagnostics"]["features"]] for name, run in both.items()}
plots.bars(axes[1], found, ylabel="k-NN accuracy")
plt.show()

# %% [markdown]
# Without crops the task is easier, so the loss is lower. A knob that changes the task cannot be chosen by the loss. Choose it by a probe on pictures held out for that purpose, as `recipes sweep` lets you
# do, and never by the test pictures on which you report. `recipes doctor RUN` names what it finds wrong with a run; see {doc}`/book/start`.

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify knobs` on three seeds per arm, and is compared with margins fixed before. Each row of the figure is a piece of advice. It holds where the mean lies in the
# shaded part and no seed points the other way.

# %% mystnb={"image": {"alt": "One row per piece of advice, by the difference from the control in margins, three seeds each."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("knobs")

# %% [markdown]
# Advice that does not hold here is not refuted. It was given for ImageNet, for larger networks and far longer runs. Seven of the eighteen verdicts are negative, and each has a suspect that another run could test: for the cheap set of
# augmentations, other pictures; for the layer to probe, the linear predictor and weight decay, longer runs; for the narrow embedding, weights that are tuned anew; for the cold temperature and the small views, larger pictures. What these
# verdicts show is that a setting is advice for a task, and that three seeds and a margin are a cheap way to find out whether it is advice for yours.

# %% [markdown]
# ## Scale it up
#
# The same knobs at full scale are flags of the same commands. The first line shows what a run costs and starts nothing; the second compares two temperatures on a folder of your own pictures; the third is one
# arm of the Cookbook's batch-size study on eight GPUs, where the root rule gives $0.075 \sqrt{256} = 1.2$:
#
# ```sh
# recipes plan families --preset simclr_rn50_imagenet --gpus 8
# recipes sweep families --preset simclr_laptop --data.name imagenet \
#     --data.root MY_PICTURES --loss.temperature 0.1 0.2 --train.seed 0 1 2
# torchrun --nproc-per-node 8 -m recipes_lib run families \
#     --preset simclr_rn50_imagenet --data.root /data/imagenet \
#     --train.batch-size 256 --optim.lr 1.2
# ```

# %%
notebook.plan("families", "simclr_rn50_imagenet", gpus=8)

# %% [markdown]
# The settings of the runs in this chapter, beside the paper's:

# %% tags=["hide-input"]
fields = {
    "views": ["global_scale", "jitter", "brightness", "grayscale", "blur"],
    "model": ["arch", "projector_layers", "hidden", "dim"],
    "loss": ["temperature"],
    "optim": ["name", "lr", "weight_decay", "warmup_epochs"],
    "train": ["batch_size", "steps", "epochs"],
}
shown = {"here": knobs.PRESETS["simmer"], "paper": families.PRESETS["simclr_rn50_imagenet"]}
notebook.settings(shown, fields)

# %% [markdown]
# ## Exercises
#
# **1. Two rules** (5 min, easy). SimCLR's paper run has 4,096 images per step and rate 4.8. What rate does each rule give for 256 images? You are right if one is four times the other.

# %% tags=["solution", "hide-cell"]
# Solution 1
ratio = 256 / 4096
print(f"linear {4.8 * ratio:.2f}, root {4.8 * ratio**0.5:.2f}")
assert abs(4.8 * ratio**0.5 / (4.8 * ratio) - 4) < 1e-9

# %% [markdown]
# **2. Fit the teacher to the run** (5 min, easy). A teacher should forget half of a change within a thirtieth of the run. Which momentum does this for 300 steps, and which for 300,000? You are right if the
# first is below 0.95 and the second above 0.9999.

# %% tags=["solution", "hide-cell"]
# Solution 2
fitted = {steps: 0.5 ** (30 / steps) for steps in (300, 300_000)}
print({steps: round(momentum, 5) for steps, momentum in fitted.items()})
assert fitted[300] < 0.95 < 0.9999 < fitted[300_000]

# %% [markdown]
# **3. Hard negatives** (10 min, medium). At which temperature does the most similar negative of the first cell get 90 % of the push? Find it by bisection. You are right if it lies between 0.1 and 0.3.

# %% tags=["solution", "hide-cell"]
# Solution 3
low, high = 0.05, 1.0
for _ in range(40):
    middle = (low + high) / 2
    share = (cosines[1:] / middle).softmax(dim=0)[0]
    low, high = (middle, high) if share > 0.9 else (low, middle)
print(f"temperature {middle:.3f}")
assert 0.1 < middle < 0.3

# %% [markdown]
# **4. A small research question** (an hour, hard). The knobs were turned one at a time. Sweep temperature and batch size together (`recipes sweep families --preset simclr_toy --loss.temperature 0.1 0.2 0.5
# --train.batch-size 32 128 512`). Are the lines of its figure parallel? If they are not, the best value of one knob depends on the other, and a search along one of them at a time can miss the best pair.

# %% [markdown]
# ## Close
#
# Others met these pitfalls:
#
# - A learning rate that is scaled by the batch size in two places is scaled twice. Here `optim.lr` is used as given.
# - `train.batch_size` counts all processes together. Many codes count one GPU's images, and a rule that is given the wrong one is off by the number of GPUs.
# - The printed form of the root rule in the Cookbook, base rate times $\sqrt B / 256$, does not meet the linear rule anywhere near the batch sizes in use. SimCLR's appendix has $0.075 \sqrt B$, which meets
#   $0.3\, B / 256$ at 4,096.
# - Weight decay on biases and norms, or none at all through a wrong parameter group, is a knob that nobody turned on purpose.
#
# Read on:
#
# - {cite:t}`balestriero2023cookbook`, section 3, is where the advice comes from.
# - {cite:t}`chen2020simclr` has the first thorough study of augmentations, projector, batch size and temperature.
# - {cite:t}`grill2020byol` and {cite:t}`chen2021simsiam` ask what teacher and predictor are for.
# - {cite:t}`he2022mae` studies the share of hidden patches.
# - {cite:t}`caron2020swav` introduces small views and what they cost.
#
# This chapter as a script: [knobs.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/knobs.py).
