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
# # What self-supervised learning is
#
# *A network can learn what pictures show from the pictures alone, if the task is made of the pictures and cannot be solved by a trick.
# This chapter makes such a task, watches it fail, repairs it, and explains the measures that all other chapters use.*
#
# The map of the field: {cite:t}`balestriero2023cookbook`. Implementation: `recipes_lib/recipes/what_is_ssl/`, which trains one of the methods
# of {doc}`families`.
#
# You need first: Python and the basics of PyTorch. This is the book's first chapter. {doc}`/book/pantry` shows where its pictures come from.

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

notebook.start("what_is_ssl")

# %% [markdown]
# (ssl-pretext)=
# ## The question
#
# A network learns to name objects from pictures with labels: somebody looked at each picture and wrote down what it shows. Pictures are
# plentiful, and labels are not. What can be learned from pictures that nobody has labelled?
#
# {term}`Self-supervised learning <self-supervised learning>` trains on a task whose answers come with the data. Such a task is called a
# {term}`pretext task`. Nobody wants its answers, which are known anyway. What is kept is the network, and above all its {term}`features`: the
# vector of numbers that the network computes from a picture. The *downstream task* is what the features are used for afterwards, such as naming
# objects from a handful of labels.

# %% tags=["hide-input"]
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import normalize

from recipes_lib import plots
from recipes_lib.data import pantry
from recipes_lib.data.load import load
from recipes_lib.data.loader import StepBatches
from recipes_lib.evaluation.features import extract
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.what_is_ssl import diagram, study
from recipes_lib.recipes.what_is_ssl import recipe as opening

# %% mystnb={"figure": {"name": "fig-ssl-origins", "caption": "Six kinds of pretext task. The network gets what stands left of the arrow, and has to find what stands right of it."}, "image": {"alt": "Six small drawings with pictures of kitchen objects. Restoring information: from a grey mug to the mug in its colours. Order in time: two pictures of a moving mug are put in order. Spatial context: a mug lying on its side is turned upright. Grouping: a mixed sheet of two pans and two carrots is sorted. Generating: a noisy picture becomes a clear one. Several views: two crops, and the answer yes, they are one picture."}} tags=["hide-input"]
scenes = pantry.sample_factors(240, seed=0)
mug = pantry.fix(scenes.select([0]), objects=1, occluder=0, style="photo", roll=0.0)
places = [pantry.fix(mug, position=(across, 0.0)) for across in (-0.5, 0.5)]
frames = torch.cat([pantry.render(place, 64) for place in places])
numbers = [pantry.CLASSES.index(kind) for kind in ("pan", "carrot")]
rows = torch.cat([(scenes.label == number).nonzero()[:2, 0] for number in numbers])
others = pantry.render(scenes.select(rows), 64)
mug_image = pantry.render(mug, 64)[0]

figure, ax = plt.subplots(figsize=(plots.WIDTH, diagram.ORIGINS_HEIGHT))
diagram.origins(ax, mug_image, frames, others)
plt.show()

# %% [markdown]
# The Cookbook {cite:p}`balestriero2023cookbook` traces the idea back to six kinds of task ({numref}`fig-ssl-origins`):
#
# - *Restoring information*: remove the colours or cut a hole, and ask for what is missing.
# - *Order in time*: ask which frame of a video came first.
# - *Spatial context*: ask how a picture was turned {cite:p}`gidaris2018rotation`, or how its tiles fit together.
# - *Grouping*: sort the pictures into clusters, and predict each picture's cluster.
# - *Generating*: compress a picture or drown it in noise, and ask for a likely picture again.
# - *Several views*: change a picture in two ways, and ask which results belong together.
#
# Whoever tells how a mug was turned must know how mugs stand. That is the hope behind all six. The danger is the same for all, too: a
# network finds the *cheapest* way to solve its task, and the cheapest way may need no knowledge of mugs. Most methods of this book use several
# views, so the next section looks for the cheapest way there.

# %% [markdown]
# (ssl-views)=
# ## Two views, and an answer that is too easy
#
# A {term}`view` of a picture is a random crop of it, perhaps mirrored, with its colours changed at random. Both views of a picture show the same
# object, but not the same pixels.

# %% tags=["hide-input"]
toy = opening.PRESETS["toy"]
config = study.config_of("simclr", toy)
data = load(config.data, DATA_SEED)
how = {"image_size": config.data.image_size, "normalize": config.views.normalize}

# %% mystnb={"figure": {"name": "fig-ssl-views", "caption": "Eight pictures of a batch (first row) and two views of each (second and third row)."}, "image": {"alt": "Three rows of eight small pictures of kitchen objects. Below each picture stand two versions of it that are cropped, mirrored and recoloured differently."}}
from recipes_lib.views.colour import IMAGENET_MEAN, IMAGENET_STD

method = engine.build(families.RECIPE, config, steps=1)
batches = StepBatches(data.train, seed=0, batch_size=config.train.batch_size)
batch = batches[0]
views = method.views(batch, step=0)["large"].unflatten(0, (2, -1))

# views are normalised by mean and standard deviation; undo it to see them
mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
rows = [batch.images / 255, *(view * std + mean for view in views)]
figure, ax = plt.subplots(figsize=(7, 2.8))
sheet = torch.cat([row[:8] for row in rows]).clamp(0, 1)
plots.image_grid(ax, sheet, columns=8, title="pictures, first views, second views")
plt.show()

# %% [markdown]
# A *batch* is the pictures of one training step. The network has two parts. The {term}`backbone` turns a view into features. A small {term}`head` behind it, also called {term}`projector`, turns features into
# an {term}`embedding` $z$, which the loss compares. After training the head is thrown away.
#
# How alike two embeddings are is measured by the cosine of the angle between them: 1 if they point in the same direction, 0 if they stand at right
# angles. Let $z_i$ and $z_i'$ be the embeddings of the two views of picture $i$, of $B$ in a batch. The obvious loss asks that they agree:
#
# $$L_\text{agree} = 1 - \frac{1}{B} \sum_{i=1}^{B} \cos(z_i, z_i')$$ (ssl-agree)
#
# Is the task solved well when this loss is low? Watch a second number, the *spread* of the embeddings. Scale each embedding to length 1, take the
# standard deviation over the batch of each of the $d$ coordinates, and average:
#
# $$\text{spread} = \frac{\sqrt d}{d} \sum_{j=1}^{d} \operatorname{std}_i\big(\hat z_{ij}\big), \qquad \hat z = z / \lVert z \rVert$$ (ssl-spread)
#
# The factor $\sqrt d$ makes it about 1 when directions are random. It is 0 when all embeddings are the same.
#
# The next cells train the network for 40 steps (about five seconds). The library builds it (`engine.build`) and cuts the two views of each picture
# (`method.views`); the loss is ours.


# %%
def agreement_eq1(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return 1 - (normalize(first, dim=1) * normalize(second, dim=1)).sum(dim=1).mean()


def spread_eq2(z: torch.Tensor) -> float:
    unit = normalize(z.double(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(z.shape[1]))


# %%
def train(loss_of, steps: int = 40) -> dict[str, list[float]]:
    method = engine.build(families.RECIPE, config, steps=steps)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    told = {"loss": [], "spread": []}
    for step in range(steps):
        first, second = method.embeddings(method.views(batches[step], step))
        loss = loss_of(first, second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told["loss"].append(loss.item())
        told["spread"].append(spread_eq2(first.detach()))
    return told


# %% mystnb={"figure": {"name": "fig-ssl-collapse", "caption": "Training for agreement alone: the loss of {eq}`ssl-agree` and the spread of {eq}`ssl-spread`."}, "image": {"alt": "Two curves over 40 optimiser steps. The loss falls to nearly zero, which is perfect. The spread of the embeddings falls to nearly zero as well: all pictures get the same embedding."}}
alone = train(agreement_eq1)

figure, axes = plots.panels(2, height=2.4)
steps = range(1, len(alone["loss"]) + 1)
plots.curve(axes[0], steps, {"agreement": alone["loss"]}, ylabel="loss")
plots.curve(axes[1], steps, {"agreement": alone["spread"]}, ylabel="spread")
for ax in axes:
    ax.set_ylim(bottom=0)
plt.show()

# %% tags=["nbval-check-output"]
print("the loss is nearly perfect:", alone["loss"][-1] < 0.05)
print("all embeddings are nearly the same:", alone["spread"][-1] < 0.1)

# %% [markdown]
# The loss is nearly perfect, and the network has learned nothing ({numref}`fig-ssl-collapse`). It found the cheapest answer: give *every* picture the same
# embedding. The two views of a mug then agree, and so do a mug and a carrot. This failure is called {term}`collapse`, and the loss cannot tell it from
# success. Methods differ above all in what they do against it.

# %% [markdown]
# (ssl-simclr)=
# ## A first repair: other pictures push back
#
# {term}`SimCLR` {cite:p}`chen2020simclr` turns agreement into a choice. Each view has to find its partner among *all* other views of the batch. The
# other pictures' views are called {term}`negatives`. With $B$ pictures there are $2B$ views; $j$ is the partner of view $i$. The {term}`temperature` $\tau$ decides how
# much the most similar candidates count:
#
# $$L_i = -\log \frac{\exp(\cos(z_i, z_j)/\tau)}{\sum_{k \ne i} \exp(\cos(z_i, z_k)/\tau)}$$ (ssl-ntxent)
#
# The loss of the batch is the mean over its views. If all embeddings are the same, every candidate is equally likely, and the loss is $\log(2B - 1)$:
# the collapsed answer is no longer a good one. A batch of two pictures is small enough to compute by hand. Below, the rows of `first` and `second`
# are the embeddings of the first and the second views.

# %%
first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
second = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)
tau = 0.5


def ntxent_eq3(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    z = normalize(torch.cat([first, second]), dim=1)
    exponentials = (z @ z.T / tau).exp()
    losses = []
    for i in range(len(z)):
        j = (i + len(first)) % len(z)
        candidates = sum(exponentials[i, k] for k in range(len(z)) if k != i)
        losses.append(-(exponentials[i, j] / candidates).log())
    return torch.stack(losses).mean()


z = torch.cat([first, second])
print("cosines of all views (rows and columns: first views, second views):")
print((z @ z.T).numpy().round(2))
print(f"SimCLR's loss: {ntxent_eq3(first, second):.4f}")

# %% [markdown]
# The library's function returns the same number, and so does the package lightly, which many people know. From here on only the library is used:
# `recipes_lib.objectives.contrastive.nt_xent` in
# [contrastive.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/objectives/contrastive.py).

# %% tags=["nbval-check-output"]
from lightly.loss import NTXentLoss

from recipes_lib.objectives.contrastive import nt_xent

ours = nt_xent(first, second, temperature=tau)["loss"]
theirs = NTXentLoss(temperature=tau)(first, second)
torch.testing.assert_close(ours, ntxent_eq3(first, second))
torch.testing.assert_close(ours, theirs)
print(f"by hand, library and lightly: {ours:.4f}")

# %% [markdown]
# Now the same training with this loss:

# %% mystnb={"figure": {"name": "fig-ssl-repair", "caption": "The spread of the embeddings with and without negatives."}, "image": {"alt": "Two curves of the spread over 40 steps. With agreement alone it falls to nearly zero; with SimCLR's loss it rises to nearly one."}}
pushed = train(lambda *z: nt_xent(*z, temperature=config.loss.temperature)["loss"])

figure, (ax,) = plots.panels(1, height=2.4)
arms = {"SimCLR": pushed["spread"], "agreement alone": alone["spread"]}
plots.curve(ax, steps, arms, ylabel="spread")
ax.set_ylim(bottom=0)
plt.show()

# %% [markdown]
# (ssl-families)=
# ## Four families, and what came after
#
# With negatives the spread stays near 1 ({numref}`fig-ssl-repair`). They are one cure among several. The Cookbook sorts the methods into four families by what they ask for. {numref}`fig-ssl-families` has a sketch of
# each, and the table below says what keeps each method from collapsing.

# %% mystnb={"figure": {"name": "fig-ssl-families", "caption": "Four families (top) and later methods (bottom). An arrow leads from a family to methods that use its idea. The mark sg is a stop-gradient: no gradient flows back along that arrow. The dashed arrow means that the teacher's weights follow the student's."}, "image": {"alt": "Four boxes with sketches. Deep metric learning: two dots attract each other and three others are pushed away. Self-distillation: a student has to predict the output of a teacher, through which no gradient flows and whose weights follow the student's. Canonical correlation: a matrix with a dark diagonal. Masked modelling: a picture with holes and the whole picture. Below: CLIP comes of the first family; MSN, PAWS and PMSN of the other three; LeJEPA of canonical correlation; I-JEPA of self-distillation and masked modelling."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(plots.WIDTH, diagram.FAMILIES_HEIGHT))
diagram.families(ax, mug_image)
plt.show()

# %% [markdown]
# - *Deep metric learning* compares pictures with each other, as SimCLR does.
# - In *self-distillation* the network predicts the output of another version of itself: of a {term}`teacher`, whose weights are a moving average of its own
#   ({term}`EMA`), or of itself behind a {term}`stop-gradient`.
# - *Canonical correlation* looks at the coordinates of the embeddings over a batch: each must vary, and no two may say the same.
# - *Masked modelling* hides {term}`patches <patch>`, small squares of the picture, and asks for them. Every picture has an answer of its own.
#
# | method | idea | what keeps it from collapsing | in this book |
# |---|---|---|---|
# | {term}`SimCLR`, {term}`MoCo` {cite:p}`he2020moco` | find the own partner among others | negatives | this chapter, {doc}`families` |
# | {term}`CLIP` | the two views are a picture and its caption | negatives | {doc}`clip` |
# | {term}`BYOL` {cite:p}`grill2020byol`, {term}`SimSiam` {cite:p}`chen2021simsiam` | predict the other view's embedding | a stop-gradient, and a small network (the {term}`predictor`) in one branch only | {doc}`families` |
# | {term}`DINO` | predict a teacher's choice among outputs | no output may be favoured, and the teacher's choice is made nearly certain | {doc}`families` |
# | {term}`VICReg`, {term}`Barlow Twins` {cite:p}`zbontar2021barlow` | agree, with uncorrelated coordinates | a penalty on the batch's statistics | {doc}`families` |
# | {term}`SwAV` | predict the other view's cluster | clusters of equal size | {doc}`families`, {doc}`pmsn` |
# | {term}`MAE` {cite:p}`he2022mae`, {term}`SimMIM` {cite:p}`xie2022simmim`, {term}`BEiT` {cite:p}`bao2022beit` | fill in hidden patches | what is hidden differs from picture to picture | {doc}`families` |
# | {term}`MSN`, PMSN | a view with holes chooses the same cluster | targets made nearly certain, and a rule for the sizes of clusters | {doc}`msn`, {doc}`pmsn` |
# | {term}`PAWS` | resemble the same labelled pictures | the labels, and targets made nearly certain | {doc}`paws` |
# | {term}`I-JEPA` {cite:p}`assran2023ijepa` | predict the embeddings of hidden blocks | a teacher and a stop-gradient | {doc}`families` |
# | {term}`LeJEPA` {cite:p}`balestriero2025lejepa` | agree, with embeddings spread like a Gaussian | a term that compares them with a Gaussian | {doc}`families` |

# %% [markdown]
# (ssl-probes)=
# ## How one knows what was learned
#
# The loss cannot tell success from collapse, so something else must. A {term}`probe` looks at {term}`frozen features`: training is over, the network no
# longer changes, and a simple classifier on top of it is told the labels of some pictures. If the classifier does well on *other* pictures, the features
# hold what the labels name. The share of those test pictures that it gets right is its *accuracy*.
#
# The probes of this book need one small example. Six training pictures, three mugs and three bowls, have features that are directions in a
# plane, given as angles. Four test pictures wait for an answer.

# %%
plane = normalize(torch.tensor([[1, -1, 0], [1, 1, -2]]).double(), dim=1)


def features_at(*degrees: float) -> torch.Tensor:
    """Directions in a plane as vectors of three numbers, which sum to 0."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1) @ plane


train_angles, test_angles = (0, 20, 55, 80, 100, 120), (10, 45, 62, 95)
known, asked = features_at(*train_angles), features_at(*test_angles)
known_labels = torch.tensor([0, 0, 0, 1, 1, 1])  # 0: mug, 1: bowl
asked_labels = torch.tensor([0, 0, 1, 1])


# %% mystnb={"figure": {"name": "fig-ssl-angles", "caption": "The example: features as directions in degrees, and the line that a linear classifier draws at 67.5 degrees. The test bowl at 62 degrees lies on the side of the mugs."}, "image": {"alt": "Points on an arc. Training mugs at 0, 20 and 55 degrees, training bowls at 80, 100 and 120 degrees, and on a smaller arc the test pictures as hollow marks. A dashed line at 67.5 degrees separates mugs and bowls; the test bowl at 62 degrees is on the side of the mugs."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(5, 2.7))
for angles, labels, radius, more in (
    (train_angles, known_labels, 1.0, {}),
    (test_angles, asked_labels, 0.75, {"mfc": "white"}),
):
    for angle, label in zip(angles, labels.tolist(), strict=True):
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        ax.plot(radius * x, radius * y, ls="", **{**plots.style(label), **more})
        place = (radius + 0.1) * x, (radius + 0.1) * y
        ax.text(*place, str(angle), ha="center", va="center", fontsize=9)
for label, name in enumerate(("mug", "bowl")):
    ax.plot([], [], ls="", label=f"training {name}", **plots.style(label))
    ax.plot([], [], ls="", label=f"test {name}", **plots.style(label), mfc="white")
edge = math.radians(67.5)
x, y = 1.2 * math.cos(edge), 1.2 * math.sin(edge)
ax.plot([0, x], [0, y], "--", color=plots.BASELINE)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
ax.set(aspect="equal", xlim=(-0.65, 1.25), ylim=(-0.08, 1.2))
ax.set_axis_off()
plt.show()

# %% [markdown]
# (ssl-knn)=
# ### k nearest neighbours (k-NN)
#
# The $k$ training pictures with the nearest features vote for their classes. A neighbour with cosine $s$ has the weight $\exp(s/T)$, so a small $T$ lets the
# nearest decide. Nothing is trained.

# %% tags=["nbval-check-output"]
from recipes_lib.evaluation.knn import weighted_knn

k, T = 3, 0.07
right = 0
for feature, label in zip(asked, asked_labels, strict=True):
    cosines = known @ feature
    nearest = cosines.topk(k).indices
    votes = [0.0, 0.0]
    for place in nearest:
        votes[known_labels[place]] += math.exp(cosines[place] / T)
    right += votes.index(max(votes)) == label
by_hand = right / len(asked)
library = weighted_knn(known, known_labels, asked, asked_labels, k=k, temperature=T)
print(f"k-NN by hand {by_hand}, library {library}")
assert by_hand == library

# %% [markdown]
# The picture at 62 degrees gets the wrong answer: two of its three neighbours are bowls, but the mug at 55 degrees is so near that it outweighs
# both.
#
# (ssl-linear)=
# ### Linear probe
#
# A linear classifier is trained on all labelled training pictures. In the plane it draws one straight line ({numref}`fig-ssl-angles`). By hand, put it
# half-way between the mug and the bowl that are nearest to each other, at $(55 + 80) / 2 = 67.5$ degrees.

# %% tags=["nbval-check-output"]
from recipes_lib.evaluation.linear import linear_probe

guesses = torch.tensor(test_angles) > 67.5
by_hand = float((guesses == asked_labels.bool()).double().mean())
library = linear_probe(known, known_labels, asked, asked_labels, seed=0)
print(f"linear probe by hand {by_hand}, library {library}")
assert by_hand == library

# %% [markdown]
# (ssl-lowshot)=
# ### Low-shot probe
#
# A {term}`logistic regression`, which is a linear classifier too, sees a handful of labelled pictures per class. Which pictures carry the labels is a matter of
# luck, so the probe is repeated for several choices, and the mean and the standard deviation are reported. With one mug and one bowl, the line lies
# half-way between the two.

# %% tags=["nbval-check-output"]
from recipes_lib.evaluation.lowshot import low_shot

choices = [[1, 4], [2, 4], [0, 3]]  # numbers of a labelled mug and a labelled bowl
by_hand = []
for mug_row, bowl_row in choices:
    boundary = (train_angles[mug_row] + train_angles[bowl_row]) / 2
    guesses = torch.tensor(test_angles) > boundary
    by_hand.append(float((guesses == asked_labels.bool()).double().mean()))
rows = [torch.tensor(choice) for choice in choices]
library = low_shot(known, known_labels, asked, asked_labels, choices=rows)
print(f"low-shot by hand {by_hand}, library {list(library.scores)}")
print(f"mean {library.mean:.3f}, standard deviation {library.std:.3f}")
assert by_hand == list(library.scores)

# %% [markdown]
# (ssl-finetune)=
# ### Fine-tuning, zero-shot and retrieval
#
# *Fine-tuning* trains the whole network further on the labelled pictures, so it measures how good a start the features are. *{term}`Zero-shot classification
# <zero-shot classification>`* needs no labelled picture: a network that also reads text gives each picture the class whose sentence is nearest.
# *{term}`Retrieval <retrieval>`* asks whether the right partner, such as a caption, is among the nearest few.
#
# (ssl-auc)=
# ### AUC
#
# Some methods give a *score* in place of a class, such as how mug-like a picture is. The {term}`AUC` asks how often a mug scores above another object: 0.5 is chance,
# and 1 is perfect. It is a count over pairs:

# %% tags=["nbval-check-output"]
from recipes_lib.recipes.sieve.separation import auc

scores = torch.tensor([0.9, 0.6, 0.4, 0.5, 0.2])
is_mug = torch.tensor([True, True, True, False, False])
pairs = [(m > o) for m in scores[is_mug] for o in scores[~is_mug]]
by_hand = float(torch.stack(pairs).double().mean())
print(f"AUC by hand {by_hand:.3f}, library {auc(scores.numpy(), is_mug.numpy()):.3f}")
assert math.isclose(by_hand, auc(scores.numpy(), is_mug.numpy()))

# %% [markdown]
# (ssl-bootstrap)=
# ### How sure is a score?
#
# Two kinds of luck are in every score. The first is in the test pictures. The {term}`bootstrap` draws as many pictures again from the test set, with
# replacement, and scores them, a thousand times. The middle 95 % of these scores are an interval. Wilson's formula gives nearly the same interval for an accuracy:

# %% tags=["nbval-check-output"]
import numpy as np

from recipes_lib.factors.inference import wilson

answers = np.arange(500) < 280  # 280 of 500 test pictures are right: accuracy .56
draws = np.random.default_rng(0).choice(answers, size=(1000, 500)).mean(axis=1)
low, high = np.quantile(draws, [0.025, 0.975])
formula = [float(end) for end in wilson(np.array(280), np.array(500))]
print(f"bootstrap {low:.3f} to {high:.3f}; Wilson {formula[0]:.3f} to {formula[1]:.3f}")
assert np.allclose([low, high], formula, atol=0.01)

# %% [markdown]
# (ssl-seeds)=
# The second kind of luck is in training: its first weights, the order of the pictures and their views are drawn by a random number generator, which
# starts from a {term}`seed`. Another seed gives another score, and the *spread over seeds* says how much. A difference smaller than that is no
# difference. The claims of this book therefore rest on three to five seeds, each beside its own {term}`control arm`, and on a margin that was fixed
# before the runs.
#
# (ssl-yardsticks)=
# ### What a score must beat
#
# A score means little alone. Every chapter shows three more, measured with the same probe on the same pictures:
#
# - *raw pixels*: the picture's own pixels as features. What does not beat them is not worth training.
# - *random init*: the same network with its first, random weights. It is better than chance ({term}`random-init features`), so the
#   difference from it is what was learned.
# - *supervised*: the same network trained with all labels, for as many steps. It shows how much room is left.
#
# All words are there now to say what this chapter puts to the test, before the runs that decide it:

# %% [markdown]
# :::{claims} what_is_ssl
# :::

# %% [markdown]
# (ssl-first)=
# ## A first result, in ten seconds
#
# Everything is at hand now. The next cell trains SimCLR for 80 steps on 3,000 pictures without labels, about ten seconds of one core, and then scores it beside
# its yardsticks by k-NN.

# %%
from tempfile import mkdtemp

result = families.RECIPE.run(config, Path(mkdtemp()) / "run")

# %% mystnb={"figure": {"name": "fig-ssl-first", "caption": "k-NN accuracy on 500 test pictures of 12 classes after ten seconds of training, and the yardsticks. The thin lines are intervals of 95 %."}, "image": {"alt": "Four bars of k-NN accuracy. SimCLR after 80 steps is well above the untrained network. It is still a little below raw pixels and the supervised network."}} tags=["hide-input"]
found = result.report["scores"]
figure, axes = plots.panels(1, height=3.2)
plots.scores(axes, found, method="SimCLR")
for place, score in enumerate(found["knn"].values()):
    ends = wilson(np.array(round(score * len(data.test))), np.array(len(data.test)))
    axes[0].plot([place, place], ends, color=plots.BASELINE, linewidth=1.2)
axes[0].axhline(1 / 12, color=plots.BASELINE, linestyle=":", linewidth=1.2)
where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
axes[0].annotate("chance", (0.99, 1 / 12), **where)
plt.show()

# %% tags=["nbval-check-output"]
knn = found["knn"]
print("better than the untrained network:", knn["method"] > knn["random_init"] + 0.05)

# %% [markdown]
# Ten seconds without a label moved the features well above where they started ({numref}`fig-ssl-first`). They have not passed the pixels yet; without that bar
# one might celebrate too early. The claim `what_is_ssl.beats_pixels` asks again after 300 steps. {numref}`fig-ssl-before` and {numref}`fig-ssl-after` show what
# changed for five pictures. By chance, 4 of the 45 neighbours would be of the query's class.

# %% tags=["hide-input"]
names = ("mug", "bottle", "pan", "kettle", "carrot")
kinds = [data.test.class_names.index(name) for name in names]
queries = torch.tensor([(data.test.labels == kind).nonzero()[2, 0] for kind in kinds])


def show_neighbours(method, title: str) -> None:
    rows = {
        name: normalize(extract(method.eval().backbone, images, **how).final, dim=1)
        for name, images in {"train": data.train, "test": data.test}.items()
    }
    nearest = (rows["test"][queries] @ rows["train"].T).topk(9).indices
    tiles = []
    for query, row in zip(queries, nearest, strict=True):
        tiles += [data.test.images[query][None], data.train.images[row]]
    _, ax = plt.subplots(figsize=(6, 3.1))
    plots.image_grid(ax, torch.cat(tiles), columns=10, title=title)
    plt.show()
    same = (data.train.labels[nearest] == data.test.labels[queries][:, None]).sum()
    print(f"{int(same)} of {nearest.numel()} neighbours are of the query's class")


# %% mystnb={"figure": {"name": "fig-ssl-before", "caption": "Before training: five queries (first column) and their nearest training pictures by the features of the untrained network."}, "image": {"alt": "Five rows of ten small pictures; the first of each row is a query: a striped mug, a bottle, a dark pan, a red kettle and a carrot. Neighbours mostly share the tones of object and table, whatever they show; three of the carrot's are carrots."}} tags=["hide-input"]
untrained = engine.build(families.RECIPE, config, steps=1)
show_neighbours(untrained, "before: query, then its nearest neighbours")

# %% mystnb={"figure": {"name": "fig-ssl-after", "caption": "After 80 steps of SimCLR: the same queries, and their nearest training pictures."}, "image": {"alt": "The same five queries. Nearly all neighbours of the carrot are carrots now, on checked cloth of several colours. Those of the striped mug are mugs, bowls and bottles with stripes, and the pan's include other pans."}} tags=["hide-input"]
_, trained = engine.reopen(families.RECIPE, result.folder)
show_neighbours(trained, "after: query, then its nearest neighbours")

# %% [markdown]
# What did it learn? The carrot found carrots. The striped mug found stripes: they survive a crop and a change of colours, so they answer the question *are these
# one picture?* as well as the mug does. The views decide what can be learned.

# %% [markdown]
# ## A lower loss is not a better model
#
# In supervised learning a lower loss on new pictures usually means a better model. Here it does not. {numref}`fig-ssl-loss` compares three networks that differ in one thing
# each, trained for 300 steps with three seeds. *SimCLR* is the method above. *Agreement alone* has no negatives. *Easy views* is SimCLR again, but the views
# are nearly the whole picture in its own colours, so that a view finds its partner by its colours.

# %% tags=["hide-input"]
from recipes_lib.data import embedded

file = embedded.path("claims/what_is_ssl.json")
stored = json.loads(file.read_text())["figures"]["networks"].values()
titles = {"simclr": "SimCLR", "agreement": "agreement alone"}
titles |= {"easy_views": "easy views"}
keys = {"agreement": "agreement of views", "spread": "spread"}
keys |= {"loss": "loss", "knn": "k-NN accuracy"}

# %% mystnb={"figure": {"name": "fig-ssl-loss", "caption": "Three networks after 300 steps, on test pictures: the mean cosine of two views, the spread of the embeddings, the network's own loss, and k-NN accuracy. One point per seed. The loss of agreement alone is another one, so its place is empty."}, "image": {"alt": "Four panels of bars for SimCLR, agreement alone and easy views. Agreement alone has the best agreement of views, a spread of zero and the worst k-NN accuracy. Easy views have a much lower loss than SimCLR and a much lower k-NN accuracy."}} tags=["hide-input"]
figure, axes = plots.panels(4, columns=4, height=2.9)
for ax, (key, label) in zip(axes, keys.items(), strict=True):
    told = {n: [run["diagnostics"][n][key] for run in stored] for n in titles}
    if key == "loss":
        told["agreement"] = [math.nan]  # another loss: its place stays empty
    plots.bars(ax, {titles[name]: seeds for name, seeds in told.items()}, ylabel="")
    ax.set_title(label)
    for tick in ax.get_xticklabels():
        tick.set(rotation=40, ha="right", rotation_mode="anchor")
plt.show()

# %% tags=["hide-input"]
print("k-NN accuracy, mean over seeds")
arms = ("random_init", "raw_pixels", "supervised")
means = {arm: [run["scores"]["knn"][arm] for run in stored] for arm in arms}
means |= {titles[n]: [run["diagnostics"][n]["knn"] for run in stored] for n in titles}
for name, seeds in means.items():
    print(f"{name.replace('_', ' '):<16}{sum(seeds) / len(seeds):.3f}")

# %% [markdown]
# Both look better than SimCLR by the number that they were trained for: agreement alone has the views that agree best, and easy views have the lower loss. Both
# have the worse features: easy views are no better than the untrained network, and agreement alone is below it. The spread finds only one of them. The easier the task, the less has to be learned. That is why the chapters watch a measure of
# collapse during training *and* use probes after it.

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify what_is_ssl` on three seeds, and is compared with margins that were fixed before. Each row of the figure is a
# claim. It holds where the mean lies in the shaded part and no seed points the other way.

# %% mystnb={"image": {"alt": "Five claims, one for each row, by the difference from the control in margins, three seeds each. All hold, with every seed right of the control: each lies about two margins from it."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("what_is_ssl")

# %% [markdown]
# These verdicts rest on small pictures of one renderer, a network of four convolutional layers and minutes of one core. They show that a mechanism exists. They do not rank
# methods, and they do not say how SimCLR compares with pixels on photographs.
#
# ## Run it
#
# The first command repeats the three networks of this chapter at 80 steps, the second runs SimCLR alone, and the third prints what the paper's SimCLR on ImageNet
# would cost:
#
# ```sh
# recipes run what_is_ssl --preset toy
# recipes run families --preset simclr_toy
# recipes plan families --preset simclr_rn50_imagenet --gpus 8
# ```

# %% [markdown]
# ## What the rest of the book answers
#
# - How do the families compare on the same pictures, in one training loop? {doc}`families`.
# - How can a network learn without negatives, and with holes in its pictures? {doc}`msn`.
# - What do a handful of labels add? {doc}`paws`.
# - What does a method assume about the classes when it spreads pictures evenly? {doc}`pmsn`.
# - What if the second view is a sentence? {doc}`clip`. Which sentences deserve to be learned from? {doc}`sieve`.
# - How do many machines train one network without talking all the time? {doc}`local_sgd`. And in eight bits? {doc}`switchback`.
# - On which pictures does a trained network fail, and why? {doc}`imagenet_x`.
# - Which claims held, and which did not? {doc}`/book/ledger`.
#
# {doc}`/book/start` has three ways through the book.

# %% [markdown]
# ## Exercises
#
# **1. By head** (5 min, easy). What is SimCLR's loss on a batch of 128 pictures when all embeddings are the same? Does the temperature matter? You are right if
# the library prints your number twice.

# %% tags=["solution", "hide-cell"]
# Solution 1
same = torch.ones(128, 8, dtype=torch.float64)
for temperature in (0.1, 1.0):
    print(f"{nt_xent(same, same, temperature=temperature)['loss']:.4f}")
print(f"log(2 * 128 - 1) = {math.log(255):.4f}: all candidates are equally likely")
assert math.isclose(nt_xent(same, same)["loss"], math.log(255))

# %% [markdown]
# **2. Predict, then run** (10 min, easy). The k-NN vote above got the picture at 62 degrees wrong. Is it right at the temperature $T = 1$? Why? You are right if the
# printed accuracy is yours.

# %% tags=["solution", "hide-cell"]
# Solution 2
flat = weighted_knn(known, known_labels, asked, asked_labels, k=3, temperature=1.0)
print(f"accuracy {flat}: the three votes are nearly equal, and two of them are bowls")
assert flat == 1.0

# %% [markdown]
# **3. Find the blind spot** (15 min, medium). Embeddings may lie on one line and yet have a high spread. Build 100 embeddings of 16 numbers that take two values
# only and have a spread of 1. What would you measure to find this out?

# %% tags=["solution", "hide-cell"]
# Solution 3
two = torch.ones(100, 16)
two[::2] *= -1
print(f"spread {spread_eq2(two):.2f}, rank {int(torch.linalg.matrix_rank(two))}")
print("the rank tells: this is a collapse to one dimension, not to one point")
assert spread_eq2(two) > 0.99

# %% [markdown]
# **4. A test that flatters** (10 min, medium). Someone reports the k-NN accuracy on the *training* pictures, with $k = 1$. What do they get, whatever the features? You are
# right if the library agrees for random features.

# %% tags=["solution", "hide-cell"]
# Solution 4
noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
anything = torch.arange(50) % 5
print(weighted_knn(noise, anything, noise, anything, k=1), "each picture finds itself")
assert weighted_knn(noise, anything, noise, anything, k=1) == 1.0

# %% [markdown]
# **5. A small research question** (an hour, hard). Which part of the views matters most here: the crop, the mirror, the jitter or the grey pictures? Run
# `recipes run families --preset simclr_toy` with one of `--views.jitter 0`, `--views.grayscale 0`, `--views.flip 0` and `--views.global-scale 0.8 1`, with three seeds
# each (`--train.seed`). You are on the right way if some change lowers the loss *and* k-NN.

# %% [markdown]
# ## Close
#
# Read on:
#
# - {cite:t}`balestriero2023cookbook` is the map that this book follows. Its section 2 has the families, and section 3.7 the probes.
# - {cite:t}`chen2020simclr` is SimCLR. It shows which augmentations matter, and why the projector is thrown away.
# - {cite:t}`chen2021simsiam` asks what prevents collapse when there are no negatives. Its measure of collapse is this chapter's spread.
# - {cite:t}`gidaris2018rotation` is the plainest pretext task: four classes, one for each quarter turn.
# - {cite:t}`wu2018instance` introduced the weighted k-NN vote that all chapters use.
#
# This chapter as a script: [what_is_ssl.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/what_is_ssl.py).
