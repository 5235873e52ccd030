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
# # Troubleshooting: what went wrong
#
# *A run without labels can go wrong and look well. This chapter makes twelve faults on purpose. For each it shows the symptom, the number that finds it, and the cure. Then it counts how often
# these numbers are wrong.*
#
# The map of the field: {cite:t}`balestriero2023cookbook`, sections 2.6.2 and 3. Implementation: `recipes_lib/recipes/troubleshooting/`; the checks are `recipes doctor`, in
# `recipes_lib/evaluation/diagnosis.py`.
#
# You need first: {needs}`troubleshooting`. The methods {term}`SimCLR`, {term}`VICReg`, {term}`SimSiam`, {term}`BYOL` and {term}`SwAV` are explained there, and {term}`RankMe`, {term}`spread` and the
# {term}`k-NN probe` in {doc}`what_is_ssl`.

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

notebook.start("troubleshooting")

# %% [markdown]
# ## The question
#
# Two networks are trained with the loss of {term}`SimSiam`, which asks for a high cosine between two views of a picture. One of the two has a fault. The next cell trains both for 60 steps on
# pictures of 16 pixels, about 6 seconds, and {numref}`fig-trouble-which` shows their losses. Which network would you keep?

# %%
import json
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from recipes_lib import plots
from recipes_lib.recipes.troubleshooting import pathologies, study
from recipes_lib.recipes.troubleshooting import recipe as trouble
from recipes_lib.recipes.troubleshooting.pathologies import PATHOLOGIES, produce

place = Path(mkdtemp())
brief = {"train.steps": 60, "train.checkpoint_every": 60}
guess = {}
for name, broken in {"network A": False, "network B": True}.items():
    out, _ = produce("no_stop_gradient", place / "guess", broken=broken, also=brief)
    guess[name] = study.rows(out)

# %% mystnb={"figure": {"name": "fig-trouble-which", "caption": "Left: the loss of two networks, of which one has a fault. Right: how well their features tell classes apart."}, "image": {"alt": "Two panels over 60 training steps. Left, the losses of networks A and B. Right, the k-NN accuracy of both, measured every ten steps."}} tags=["hide-input"]
figure, axes = plots.panels(2, columns=2, height=2.8)
labels = {"loss": "loss", "watch_knn": "k-NN accuracy"}
for ax, (key, label) in zip(axes, labels.items(), strict=True):
    at, _ = study.series(guess["network A"], key)
    arms = {name: study.series(rows, key)[1] for name, rows in guess.items()}
    plots.curve(ax, at, arms, ylabel=label)
plt.show()

# %% [markdown]
# Network B is the one with the fault: it lacks the {term}`stop-gradient`, so both branches may move towards each other. A supervised run with a fault usually has a bad loss. Here the loss is what the network can
# make small in two ways, by learning and by {term}`collapse`, and the fault opens the second way. So a loss can never clear a run. Something else has to be measured.

# %% [markdown]
# :::{claims} troubleshooting
# :::

# %% [markdown]
# ## What the doctor looks at
#
# Every run of this book leaves a folder. `recipes doctor RUN` reads it, computes a dozen numbers and compares each with a threshold. It changes nothing in the folder, and it works on unfinished runs too.

# %% mystnb={"figure": {"name": "fig-trouble-doctor", "caption": "What the doctor takes from a run folder. The steps on two processes are computed only if they are asked for, by --ranks 2."}, "image": {"alt": "Diagram. A run folder holds metrics, timing, config, weights and the name of its images. From the metrics come loss, gradient norm and learning rate; from timing the waiting; from weights and images spread, RankMe, k-NN and copies; from the config the teacher's memory and the batch; and from its first step the comparison of two processes. All numbers go to thresholds, and from there to findings."}} tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.diagrams import Box

nodes = {
    "metrics": Box(0, 0, "metrics.jsonl,\ntiming.jsonl"),
    "weights": Box(0, 1, "weights\nand images"),
    "config": Box(0, 2, "config.yaml"),
    "log": Box(1, 0, "finite? spikes?\nrate? waiting?"),
    "features": Box(1, 1, "spread, RankMe,\nk-NN, copies"),
    "sizes": Box(1, 2, "teacher's memory,\nbatch, two ranks"),
    "thresholds": Box(2, 1, "thresholds"),
    "findings": Box(3, 1, "healthy,\nfound or\nunknown"),
}
arrows = [("metrics", "log"), ("weights", "features"), ("config", "sizes")]
arrows += [(name, "thresholds") for name in ("log", "features", "sizes")]
_, ax = plt.subplots(figsize=(plots.WIDTH, 3.0))
diagrams.draw(ax, nodes, [*arrows, ("thresholds", "findings")])
plt.show()

# %% [markdown]
# ## The equations
#
# Six numbers find most of what goes wrong. Let $z_i \in \mathbb{R}^D$ be the embedding of picture $i$, $u_i = z_i / \lVert z_i \rVert$, and $\sigma_d$ the standard deviation of its $d$-th number over $N$ pictures. The
# {term}`spread` is 1 for even directions and 0 for a single one:
#
# $$s = \sqrt{D}\; \frac{1}{D} \sum_{d=1}^{D} \sigma_d(u)$$ (trouble-spread)
#
# {term}`RankMe` is the number of directions that embeddings use, from their singular values $\lambda_k$:
#
# $$r = \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \frac{\lambda_k}{\sum_j \lambda_j}$$ (trouble-rank)
#
# A loss lies if it falls while the k-NN accuracy $a$ loses half of what the untrained network has, $a_0$, above chance, $1/C$ for $C$ classes:
#
# $$a < \frac{1}{C} + \frac12 \Bigl(a_0 - \frac{1}{C}\Bigr)$$ (trouble-lie)
#
# A {term}`teacher` with momentum $m$ remembers $1 / (1 - m)$ steps. It is too slow for a run of $S$ steps if it remembers more than the whole of it, and it copies the network if it remembers fewer than one and a half:
#
# $$\frac{1}{1 - m} > S \quad\text{or}\quad \frac{1}{1 - m} < 1.5$$ (trouble-memory)
#
# The input is slow if steps of $t$ seconds wait $w$ seconds for pictures, $w / t > 0.3$. And the gradient $g_2$ that two processes compute together has to be the gradient $g_1$ of one process with all pictures, up to rounding:
#
# $$\frac{\lVert g_2 - g_1 \rVert}{\lVert g_1 \rVert} \le 0.01$$ (trouble-apart)
#
# | symbol | in the code | shape | meaning |
# |---|---|---|---|
# | $z, u$ | `embeddings`, `unit` | `[N, D]` | embeddings, and the same on the unit sphere |
# | $s$, $r$ | `full_collapse`, `dimensional_collapse` | numbers | spread and RankMe |
# | $a, a_0, C$ | `knn`, `untrained`, `classes` | numbers | k-NN accuracies, number of classes |
# | $m, S$ | `momentum`, `steps` | numbers | momentum of the teacher, length of the run |
# | $g_1, g_2$ | `two_processes` | `[weights]` | gradient of one process, and of two |

# %% [markdown]
# ## By hand
#
# **Three clouds.** Here are three sets of 200 embeddings with 8 numbers: one that points everywhere, one in which all are nearly the same, and one that lies along a line.

# %%
draw = torch.Generator().manual_seed(0)
noise = torch.randn(200, 8, generator=draw, dtype=torch.float64)
along = torch.randn(200, 1, generator=draw, dtype=torch.float64)
direction = torch.randn(1, 8, generator=draw, dtype=torch.float64)
clouds = {
    "everywhere": noise,
    "one point": direction + 0.01 * noise,
    "one line": along * direction + 0.002 * noise,
}
by_hand = {}
for name, embeddings in clouds.items():
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    spread = 8**0.5 * unit.std(dim=0, correction=0).mean()
    values = torch.linalg.svdvals(embeddings)
    shares = values / values.sum()
    rank = torch.exp(-(shares * shares.log()).sum())
    by_hand[name] = (float(spread), float(rank))
    print(f"{name:<10}  spread {spread:.2f}  RankMe {rank:.2f} of 8")

# %% [markdown]
# The spread finds the point and misses the line, where half of the embeddings look one way and half the other. RankMe finds the line. Neither replaces the other.
#
# **A gather without gradient.** Two processes hold two pictures each. SimCLR compares each view with those of *all* pictures, so each process gathers the other's embeddings. A plain gather
# copies numbers, and the copies have no gradient. The next cell computes the loss of one process with four pictures, and the mean of two processes that hold each other's embeddings for constants.

# %%
from recipes_lib.objectives.contrastive import nt_xent

z = torch.randn(2, 4, 6, generator=draw, dtype=torch.float64)  # [views, pictures, D]


def loss_of_rank(views: torch.Tensor, rank: int, *, detach: bool) -> torch.Tensor:
    """The loss of the two pictures of a rank, against those of both ranks."""
    mine = slice(2 * rank, 2 * rank + 2)
    everyone = views.detach().clone() if detach else views.clone()
    everyone[:, mine] = views[:, mine]
    unit = torch.nn.functional.normalize(everyone, dim=2).flatten(0, 1)
    logits = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf)
    rows = torch.tensor([2 * rank, 2 * rank + 1, 4 + 2 * rank, 5 + 2 * rank])
    return torch.nn.functional.cross_entropy(logits[rows], (rows + 4) % 8)


# %%
found = {}
for detach in (False, True):
    views = z.clone().requires_grad_()
    loss = sum(loss_of_rank(views, rank, detach=detach) for rank in (0, 1)) / 2
    loss.backward()
    found[detach] = (loss.item(), views.grad)
    kind = "constants" if detach else "gradient "
    print(f"gathered with {kind}: loss {loss:.6f}, gradient {views.grad.norm():.4f}")

# %% [markdown]
# The loss is the same to the last digit. The gradient is another one: the pull of each process on the other's pictures is missing.

# %% [markdown]
# ## The same numbers
#
# The library's functions on the same clouds, the library's loss on the same views, and the checks that turn a number into a finding.

# %% tags=["nbval-check-output"]
from recipes_lib.evaluation import diagnosis
from recipes_lib.evaluation.hypersphere import normalized_std
from recipes_lib.evaluation.spectrum import rankme

for name, embeddings in clouds.items():
    ours = torch.tensor([normalized_std(embeddings), rankme(embeddings)])
    torch.testing.assert_close(ours, torch.tensor(by_hand[name]), atol=1e-3, rtol=1e-3)
whole = z.clone().requires_grad_()
loss = nt_xent(*whole, temperature=0.1)["loss"]
loss.backward()
torch.testing.assert_close(loss.item(), found[True][0])
torch.testing.assert_close(whole.grad, found[False][1])
apart = float((found[True][1] - whole.grad).norm() / whole.grad.norm())
finding = diagnosis.two_processes(loss=0.0, gradient=apart)
print("the same numbers;", finding.check, "is", finding.status)

# %% [markdown]
# Read the source: all checks and their thresholds, each with its reason, are in
# [diagnosis.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/evaluation/diagnosis.py); what they are given is in
# [doctor.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/pretraining/doctor.py); the faults are in
# [pathologies.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/recipes/troubleshooting/pathologies.py).

# %% [markdown]
# ## Cook
#
# Preset {term}`toy` trains three methods for 150 steps, with and without what keeps them from collapsing, and asks the doctor about all six runs. It takes about 35 seconds.

# %%
toy = trouble.PRESETS["toy"]
result = trouble.RECIPE.run(toy, place / "toy")

# %% [markdown]
# The runs were watched: `--eval.watch std rankme knn --eval.watch-every 15` measures the features of the same training pictures every 15 steps and writes the numbers beside the loss.
# {numref}`fig-trouble-curves` shows them. Each row is a method, and each column a number.

# %% mystnb={"figure": {"name": "fig-trouble-curves", "caption": "Three methods with their guard against collapse (healthy) and without it (broken): loss, spread of the embeddings, RankMe of the features, and k-NN accuracy over training."}, "image": {"alt": "A grid of twelve panels over 150 training steps. Rows: SimCLR with and without negatives, VICReg with and without its variance term, SimSiam with and without stop-gradient. Columns: loss, spread, RankMe, k-NN accuracy. Each panel has a healthy and a broken run."}} tags=["hide-input"]
FAULTS = {"no_negatives": "SimCLR", "no_variance": "VICReg"}
FAULTS |= {"no_stop_gradient": "SimSiam"}
CURVES = {"loss": "loss", "spread": "watch_std_embedding"}
CURVES |= {"RankMe": "watch_rankme", "k-NN": "watch_knn"}
figure, axes = plots.panels(12, columns=4, height=1.9)
left = iter(axes)
for fault, method in FAULTS.items():
    runs = {kind: study.rows(place / "toy" / f"{fault}-{kind}") for kind in study.KINDS}
    for name, key in CURVES.items():
        ax = next(left)
        at, _ = study.series(runs["healthy"], key)
        arms = {kind: study.series(rows, key)[1] for kind, rows in runs.items()}
        plots.curve(ax, at, arms, ylabel="", xlabel="")
        ax.set_title(f"{method}: {name}", fontsize=10)
        ax.set_xticks((1, 75, 150))
        if ax is not axes[0]:
            ax.get_legend().remove()
plt.show()

# %% [markdown]
# Read the columns from left to right. The loss of a broken run looks at least as well as that of a healthy one. Spread, RankMe or k-NN tells them apart, and not always the same of the three. That is why the doctor looks at all.

# %% [markdown]
# ### How to read the doctor's output
#
# Here is what it says of SimCLR without negatives. On the command line this is `recipes doctor RUN`, or `--json` for a program; the exit code is 0 if nothing was found and 4 otherwise.

# %%
from recipes_lib.pretraining import doctor
from recipes_lib.recipes.families import recipe as families

for finding in doctor.diagnose(families.RECIPE, place / "toy" / "no_negatives-broken"):
    print(finding.line)

# %% [markdown]
# Each line is one check: its status, its name, the measured number with the threshold, and if something was found, what to do. *Unknown* means that the run does not hold what the check needs, and the line says what that is.
# It is no clean bill of health. Start with the topmost line that says *found*, because one fault often causes several findings: a collapse to a point has few dimensions as well, and its loss lies.

# %% [markdown]
# ## Break it
#
# The chapter is about breaking, so this section goes on with it. The table has all faults, and the cells below make those that are not yet made.
#
# | symptom | check | cure |
# |---|---|---|
# | the loss is at its lowest after a few steps; all embeddings are alike | `full_collapse`: spread | bring back negatives, variance term or stop-gradient |
# | the loss falls; pictures differ in few directions | `dimensional_collapse`: RankMe | bring back variance or covariance term |
# | the loss falls; k-NN falls below the untrained network | `lying_loss`: k-NN beside the loss | detach the target; choose by a probe |
# | the run ends with NaN | `divergence` | lower the rate, warm up for longer, clip |
# | targets stay near those of random weights | `teacher`: 1 / (1 - EMA) against the steps | fit the EMA to the run |
# | targets jump with every step | `teacher`: memory below 1.5 steps | raise the EMA |
# | little is learned; the rate still rises at the end | `learning_rate` | shorten the warm-up |
# | there are many more prototypes than pictures in a batch | `few_images`: batch against prototypes | larger batch, fewer prototypes, a queue |
# | the network's processor is idle | `slow_input`: share of the time spent waiting | smaller files, more `--data.workers` |
# | the test score is too good | `leaky_labels`: test pictures among the training pictures | hold others out |
# | a run on eight devices is worse than on one | `two_processes`: `--ranks 2` | a gather with gradient, statistics over all processes |


# %%
def told(name: str, *, broken: bool = True, also: dict | None = None) -> None:
    """Makes a run with or without a fault, and prints what the fault's check says."""
    _, findings = produce(name, place / "more", broken=broken, also=also)
    check = PATHOLOGIES[name].check
    finding = next(finding for finding in findings if finding.check == check)
    print(f"{'broken' if broken else 'healthy':<8} {finding.line}")


# %% [markdown]
# ### NaN
#
# {term}`VICReg` gets plain SGD with a learning rate of 30, no warm-up and no clipping. The first step throws the weights far out, the second squares what came of it, and the numbers end.

# %%
told("nan")

# %% [markdown]
# The run stops at once and says at which step. A run that goes on with NaN costs days, so the training loop checks loss and gradient of every step.

# %% [markdown]
# ### A teacher that lags, and one that copies
#
# The momentum of {term}`BYOL`'s paper, 0.996, remembers 250 steps. That is little of a long run, and more than all of one of 60 steps.

# %%
half = {**brief, "train.batch_size": 32}
told("slow_teacher", also=half)
told("copied_teacher", also=half)
told("slow_teacher", also=half, broken=False)

# %% [markdown]
# ### A run within its warm-up, and a batch that is too small
#
# A warm-up is often given in epochs. Ten epochs of ImageNet, with 128 pictures per step, are 100,000 steps, and most runs of this book have a few hundred. And {term}`Sinkhorn` must use all prototypes equally often, so a batch of 64 pictures with 2,048
# {term}`prototypes <prototype>` leaves most of them a share of a picture.

# %%
few = {"train.steps": 12, "train.checkpoint_every": 12}
for broken in (True, False):
    told("endless_warmup", also=few, broken=broken)
for broken in (True, False):
    told("few_images", also={"train.steps": 3}, broken=broken)

# %% [markdown]
# ### Slow input
#
# The same pictures lie in files of 384 pixels (broken) and in memory (healthy). Every step decodes 32 files in the process that trains, and the network is tiny.

# %%
for broken in (True, False):
    told("slow_input", broken=broken)

# %% mystnb={"figure": {"name": "fig-trouble-input", "caption": "Seconds per step, and how many of them went into waiting for pictures, from files and from memory."}, "image": {"alt": "Two stacked bars of seconds per step, split into waiting and the rest. Waiting takes most of the bar of the files."}} tags=["hide-input"]
waiting, rest = [], []
for kind in study.KINDS:
    file = place / "more" / f"slow_input-{kind}" / "timing.jsonl"
    spent = json.loads(file.read_text().splitlines()[-1])
    waiting.append(spent["data_seconds"] / spent["steps"])
    rest.append(spent["seconds"] / spent["steps"] - waiting[-1])
figure, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
places = ("files", "memory")
ax.barh(places, waiting, color=plots.PALETTE[1], label="waiting")
ax.barh(places, rest, left=waiting, color=plots.PALETTE[0], label="the rest")
ax.set(xlabel="seconds per step")
ax.legend()
plt.show()

# %% [markdown]
# On a GPU the same happens with ordinary photographs, because the network is a hundred times faster and the files are not. The remedy is `--data.workers`, which reads ahead in other processes, or a copy of the data in the size that is used.

# %% [markdown]
# ### Leaky labels
#
# A quarter of the test folder is replaced by files of the training folder. Nobody notices, because the score gets better.

# %%
for broken in (True, False):
    told("leaky_labels", broken=broken)
    kind = "broken" if broken else "healthy"
    report = place / "more" / f"leaky_labels-{kind}" / "report.json"
    score = json.loads(report.read_text())["scores"]["knn"]["method"]
    print(f"         nearest-neighbour accuracy on the test folder: {score:.3f}\n")

# %% [markdown]
# ### Two processes
#
# `recipes doctor RUN --ranks 2` takes the first step of a run on one process and on two, and compares the gradients. The next cell, about 15 seconds, does so for SimCLR with a gather that has no gradient, and for
# SimCLR whose batch norms see the pictures of their own process alone.

# %%
told("plain_gather")
told("local_batch_norm")
told("plain_gather", broken=False)

# %% [markdown]
# Both faults leave the loss curve as it should be and make the run a little worse with every device that is added.

# %% [markdown]
# ## Knobs: how far can the numbers be trusted?
#
# A check has a threshold, and a threshold makes two kinds of error: it misses faults, and it raises false alarms. `recipes verify troubleshooting` has counted both. It trained nine methods of {doc}`families`, each
# intact and without its guard, at steps, batch sizes and learning rates drawn at random, on pictures of a size for which no threshold was chosen. {numref}`fig-trouble-census` shows the runs of all three seeds.

# %%
from recipes_lib.data import embedded

stored = json.loads(embedded.path("claims/troubleshooting.json").read_text())
census = list(stored["figures"]["census"].values())
counted = [run for seed in census for run in seed["runs"]]
for kind in ("intact", "broken"):
    some = [run for run in counted if run["broken"] == (kind == "broken")]
    raised = sum(bool(run["alarms"]) for run in some)
    print(f"{kind:<7} {raised} of {len(some)} runs with an alarm")

# %% mystnb={"figure": {"name": "fig-trouble-census", "caption": "Runs with their guard and without it, a row per method. Left: the worst of spread, RankMe and k-NN, each divided by its threshold; below 1 is an alarm. Right: the share of its first value by which the loss fell."}, "image": {"alt": "Two panels with a row per method and a point per run, intact and broken. Left, on a logarithmic axis, the worst number divided by its threshold, with a line at 1. Right, the fall of the loss."}} tags=["hide-input"]
methods = list(dict.fromkeys(run["method"] for run in counted))
figure, axes = plots.panels(2, columns=2, height=3.6, sharey=True)
for kind, index in {"intact": 0, "broken": 1}.items():
    some = [run for run in counted if run["broken"] == (kind == "broken")]
    at = [methods.index(run["method"]) + 0.2 * (2 * index - 1) for run in some]
    look = {**plots.style(index), "linestyle": "none", "markersize": 5, "alpha": 0.8}
    worst = [min(run["health"].values(), default=0.01) for run in some]
    axes[0].plot(worst, at, label=kind, **look)
    axes[1].plot([run["loss_fell"] for run in some], at, **look)
axes[0].axvline(1, color=plots.BASELINE, linestyle="--")
axes[0].set(xscale="log", xlabel="worst number / threshold")
axes[1].set(xlabel="fall of the loss")
axes[0].set_yticks(range(len(methods)), methods)
axes[0].legend()
plt.show()

# %% mystnb={"figure": {"name": "fig-trouble-auc", "caption": "How well each number ranks broken runs as worse than intact ones (AUC; 0.5 is guessing), one point per seed. The doctor takes the worst of the three in the middle."}, "image": {"alt": "Bars of AUC for the doctor, spread, RankMe, k-NN and the loss, with one point per seed and a line at 0.5."}} tags=["hide-input"]
NAMES = {"doctor": "doctor", "full_collapse": "spread"}
NAMES |= {"dimensional_collapse": "RankMe", "lying_loss": "k-NN", "loss": "loss"}
figure, ax = plt.subplots(figsize=(plots.WIDTH, 2.8), layout="constrained")
heights = {name: [seed["auc"][key] for seed in census] for key, name in NAMES.items()}
plots.bars(ax, heights, ylabel="AUC", levels={"guessing": 0.5})
plt.show()

# %% [markdown]
# The loss gets every advantage in this comparison: it may point in either direction, and its threshold is chosen afterwards on the very runs that it judges. Still the doctor's numbers rank the runs almost without error. Its thresholds were
# chosen on these nine methods, with other pictures and other settings. So the figures say how they carry over to other settings, and not to a tenth method.

# %% [markdown]
# ### What the doctor cannot see
#
# - A method that learns too little. A weak augmentation or a wrong temperature gives features above all thresholds and below what was possible. {doc}`knobs` is about that, and needs labels or a good substitute.
# - A collapse of a method whose untrained network is already narrow: all thresholds on features are shares of what the untrained network has.
# - A run of fewer than 50 steps. Untrained projectors give all pictures nearly the same embedding too.
# - Copies that are not equal to the last bit, such as a resized or recompressed test picture among the training pictures.
# - A choice that was made on the test pictures. No file says so.
# - Faults on more than two processes, on other devices or in half precision: two processes on a CPU take the step here.

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify troubleshooting` on three seeds, with runs of 200 steps, and is compared with margins fixed before.

# %% mystnb={"image": {"alt": "One row per claim, by the difference from the control in margins, three seeds each."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("troubleshooting")

# %% [markdown]
# Two claims do not hold, and both are about faults that the doctor reads off the config. BYOL with the slow teacher ends above the run beside it: a teacher of nearly random weights is a fixed target, and predicting a fixed target teaches
# something too in 200 steps. SwAV with far too many prototypes ends where the healthy run ends. So these two findings say that a run is not what its paper describes; whether that does harm, a probe has to say. And in one of
# the three stored runs of SimSiam without stop-gradient, k-NN stays just above the threshold of `lying_loss`.
#
# The other verdicts say that each fault shows in its number on small networks with small pictures. They do not say that the thresholds fit a run on ImageNet. There, keep the numbers and set the thresholds from a run that you trust.

# %% [markdown]
# ## Scale it up
#
# The doctor reads run folders of any size, while they train. The flags of the second line write the label-free numbers beside the loss:
#
# ```sh
# recipes plan families --preset simclr_rn50_imagenet --gpus 8
# torchrun --nproc-per-node 8 -m recipes_lib run families \
#     --preset simclr_rn50_imagenet --data.root /data/imagenet \
#     --eval.watch std rankme knn --out runs/simclr
# recipes doctor runs/simclr
# recipes doctor runs/simclr --ranks 2 --json
# ```

# %%
notebook.plan("families", "simclr_rn50_imagenet", gpus=8)

# %% [markdown]
# Settings that depend on the length and the size of a run, here and in the paper. Each of them is a fault of this chapter if it is carried over unchanged:

# %% tags=["hide-input"]
here = PATHOLOGIES["slow_teacher"].config(place, broken=False)
fields = {
    "model": ["ema", "ema_final"],
    "optim": ["name", "lr", "warmup_epochs", "clip"],
    "data": ["workers"],
    "train": ["batch_size", "steps", "epochs"],
}
shown = {"here": here, "paper": families.PRESETS["byol_rn50_imagenet"]}
notebook.settings(shown, fields)

# %% [markdown]
# ## Exercises
#
# **1. Fit the teacher** (5 min, easy). A run has 2,000 steps, and its teacher should remember a twentieth of it. What momentum is that? You are right if the check says *healthy* for your number.

# %% tags=["solution", "hide-cell"]
# Solution 1
momentum = 1 - 1 / (0.05 * 2000)
finding = diagnosis.teacher(momentum, moved=1.0, steps=2000, done=2000)
print(f"{momentum:.2f}:", finding.line)
assert finding.status == "healthy"

# %% [markdown]
# **2. The line that the spread misses** (10 min, easy). Which of the checks finds the cloud *one line*? Predict the status of both collapse checks, then call them with the numbers of the cloud. Say that the untrained network
# had a spread of 1 and a RankMe of 8. You are right if one of them finds it.

# %% tags=["solution", "hide-cell"]
# Solution 2
spread, rank = by_hand["one line"]
verdicts = [
    diagnosis.full_collapse(spread, spread, 1.0, steps=100),
    diagnosis.dimensional_collapse(rank, rank, 8.0, ceiling=8, steps=100),
]
print(*(finding.line for finding in verdicts), sep="\n")
assert [finding.status for finding in verdicts] == ["healthy", "found"]

# %% [markdown]
# **3. Break a method of your choice** (15 min, medium). Take any method of {doc}`families`, remove what it needs, train 60 steps and find the fault. You are right if the doctor says *found* for your run and not for the intact one. The
# solution takes {term}`Sinkhorn` from {term}`SwAV`.

# %% tags=["solution", "hide-cell"]
# Solution 3
from recipes_lib.config import override

changes = {**pathologies.SMALL, **half, "model.prototypes": 64}
swav = override(families.PRESETS["swav_toy"], changes)
outcome = {}
for iterations in (3, 0):
    out = place / f"swav-{iterations}"
    families.RECIPE.run(override(swav, {"loss.sinkhorn_iterations": iterations}), out)
    findings = doctor.diagnose(families.RECIPE, out)
    outcome[iterations] = [each.check for each in findings if each.status == "found"]
    print(f"{iterations} iterations:", outcome[iterations] or "nothing found")
assert outcome[0]
assert not outcome[3]

# %% [markdown]
# **4. A spike** (10 min, medium). A gradient norm of 1 jumps to 30 at step 80 and returns. What does the doctor say, and what if the norm is 30 in every second step? You are right if it finds the first and not the
# second. Why is that reasonable?

# %% tags=["solution", "hide-cell"]
# Solution 4
once = [30.0 if step == 80 else 1.0 for step in range(120)]
print(diagnosis.gradient_spikes(once).line)
rough = [30.0 if step % 2 else 1.0 for step in range(120)]
print(diagnosis.gradient_spikes(rough).line)
assert diagnosis.gradient_spikes(once).status == "found"

# %% [markdown]
# **5. A small research question** (an hour, hard). Is there a loss that clears a run? {term}`LeJEPA`'s authors say that theirs follows accuracy. Train `lejepa_toy` with several values of `--loss.sigreg-weight` by `recipes sweep`, and compare the
# order of the losses with the order of the k-NN accuracies. What happens at weight 0?

# %% [markdown]
# ## Close
#
# Others met these pitfalls:
#
# - A loss that is summed over processes by a plain `all_reduce` has the right value and the wrong gradient. This happened in several libraries:
#   [lightly issue 1977](https://github.com/lightly-ai/lightly/issues/1977), [lightly issue 1920](https://github.com/lightly-ai/lightly/issues/1920),
#   [vissl issue 230](https://github.com/facebookresearch/vissl/issues/230).
# - SimSiam's loss that reaches -1 within an epoch is a collapse ([simsiam issue 29](https://github.com/facebookresearch/simsiam/issues/29)).
# - DINO's loss that stays at exactly $\log K$ is one too ([dino issue 43](https://github.com/facebookresearch/dino/issues/43)).
# - Sinkhorn's exponential overflows if prototypes are not normalised, and the loss is NaN ([swav issue 67](https://github.com/facebookresearch/swav/issues/67)).
# - A queue that is overwritten before the backward pass raises an error about an in-place operation; clone it for the loss, or write afterwards.
#
# Read on:
#
# - {cite:t}`balestriero2023cookbook` has the measures of collapse in section 2.6.2, and the distributed pitfalls in section 3.8.1.
# - {cite:t}`chen2021simsiam` shows the collapse without stop-gradient, with the spread as its number.
# - {cite:t}`garrido2023rankme` introduces RankMe, and says what it is not good for.
# - {cite:t}`grill2020byol` asks what the teacher is for.
# - {cite:t}`bardes2022vicreg` makes the guard against collapse a visible term of the loss.
#
# This chapter as a script: [troubleshooting.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/troubleshooting.py).
