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
# # SwitchBack: eight bits where they suffice
#
# *Two of the three matrix products of a linear layer can be made in 8-bit integers; the third cannot. And an optimiser whose memory of the
# gradients is stale takes steps that are too long: StableAdamW shortens them.*
#
# Paper: {cite:t}`wortsman2023stable`. Implementation: `recipes_lib/lowbit`, `recipes_lib/optim/stable_adamw.py` and `recipes_lib/recipes/switchback.py`,
# the same code from this page to a cluster. You need: {doc}`clip`, whose two towers are trained here, and some PyTorch.

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

notebook.start(chapter="switchback", seconds=90, threads=1)

# %% [markdown]
# ## The question
#
# Most of a large model's time goes into the matrix products of its linear layers. Many processors multiply 8-bit integers faster than
# floats. Which products bear that? And why do large models' losses jump up from time to time, and what can be done about it?

# %% [markdown]
# :::{admonition} What this chapter puts to the test
# :class: important
# Each claim was written down with its margin before the runs that decide it, has a control arm, and three seeds; the verdicts come at the end, and
# from there go to the {doc}`/book/ledger`.
#
# - `switchback.accuracy`: with SwitchBack in both towers, captions find their pictures as with full precision.
# - `switchback.int8_worse`: with the third product in 8 bits too, they find less.
# - `switchback.dw_error`: the third product suffers more from 8 bits than the first.
# - `switchback.fp8_fails`, `switchback.fp8_scaled`: in 8-bit floats with one scale a matrix they find less, unless each block starts as the identity.
# - `switchback.stable`, `switchback.clipping`: after a jump of the gradients StableAdamW's loss peaks lower than AdamW's, and than with clipping.
# - `switchback.low_beta2`: StableAdamW is no worse there than AdamW with a shorter memory.
# - `switchback.lag`: loss spikes follow spikes of the optimiser's RMS by 1 to 8 steps, more often than by chance.
# :::

# %% [markdown]
# ## The method in one picture

# %% mystnb={"image": {"alt": "Diagram. Forward: the input X and the weight W are rounded to 8 bits and multiplied to the output Y. Backward: the output's gradient G, rounded, times the same rounded W gives the gradient of X; G and X as they are give the gradient of W, in 16 bits."}} tags=["hide-input"]
import matplotlib.pyplot as plt

from recipes_lib import plots

boxes = {
    "gradient of W,\n16 bits": (0, 1.2),
    "gradient G\nof Y": (1.4, 2.4),
    "weight W": (1.4, 1.2),
    "input X": (1.4, 0),
    "8 bits,\nby row": (2.8, 2.4),
    "8 bits,\none scale": (2.8, 1.2),
    "8 bits,\nby row ": (2.8, 0),
    "gradient of X": (4.2, 1.8),
    "output Y": (4.2, 0.6),
}
names_of = list(boxes)
arrows = [(1, 0), (3, 0), (1, 4), (2, 5), (3, 6), (4, 7), (5, 7), (5, 8), (6, 8)]
figure, ax = plt.subplots(figsize=(8, 3.6))
plots.flow(ax, boxes, [(names_of[start], names_of[end]) for start, end in arrows])
plt.show()

# %% [markdown]
# ## The equations
#
# For a layer with input $X \in \mathbb{R}^{n \times d}$ ($n$ tokens), weight $W \in \mathbb{R}^{m \times d}$ and output gradient $G \in \mathbb{R}^{n \times m}$:
#
# $$Y = X W^\top, \qquad \dot X = G W, \qquad \dot W = G^\top X$$ (linear-products)
#
# Round to 127 steps a side: $Q(x) = \mathrm{round}(127\, x / s)$ with $s$ the largest magnitude of the row (of $X$ and $G$) or of the whole matrix (of $W$).
# SwitchBack makes the first two products from integers and *switches back* for the third:
#
# $$\begin{aligned} Y &= \frac{s_X s_W}{127^2}\, Q(X)\, Q(W)^\top \\ \dot X &= \frac{s_G s_W}{127^2}\, Q(G)\, Q(W) \\ \dot W &= G^\top X \end{aligned}$$ (switchback)
#
# | symbol | in the code | shape | meaning |
# |---|---|---|---|
# | $Q(X)$, $s_X$ | `quantize.rows(x)` | int8 `[n, d]`, `[n, 1]` | each row by its own largest magnitude |
# | $Q(W)$, $s_W$ | `quantize.tensor(weight)` | int8 `[m, d]`, `[1, 1]` | one scale, so the transpose has the same integers |
#
# The sums of $Y$ and $\dot X$ are as long as the layer is wide; those of $\dot W$ have a term for every token of the batch.

# %% [markdown]
# ## By hand

# %%
import torch
from torch import Tensor

X = torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.1, -0.3]], dtype=torch.float64)
W = torch.tensor([[0.2, -0.4, 0.1], [0.05, 0.3, -0.25]], dtype=torch.float64)
G = torch.tensor([[1.0, -0.5], [0.03, 0.7]], dtype=torch.float64)


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    return (127 * x / scale).round()


s_x, s_g = (x.abs().amax(dim=1, keepdim=True) for x in (X, G))
s_w = W.abs().max()
y = rounded(X, s_x) @ rounded(W, s_w).T * (s_x * s_w / 127**2)
dx = rounded(G, s_g) @ rounded(W, s_w) * (s_g * s_w / 127**2)
print("integers of X\n", rounded(X, s_x), "\nY from integers\n", y, "\nY\n", X @ W.T, sep="")

# %% [markdown]
# ## The same numbers

# %% tags=["nbval-check-output"]
from torch import nn

from recipes_lib.lowbit import SwitchBackLinear

layer = SwitchBackLinear(3, 2, bias=False)
layer.weight = nn.Parameter(W.float())
x = X.float().requires_grad_()
found = layer(x)
found.backward(G.float())
torch.testing.assert_close(found.double(), y, rtol=1e-6, atol=1e-6)
torch.testing.assert_close(x.grad.double(), dx, rtol=1e-6, atol=1e-6)
assert torch.equal(layer.weight.grad, G.float().T @ X.float())  # bit for bit what nn.Linear gives
print("the library gives the same products, and the weight's gradient of nn.Linear")

# %% [markdown]
# One line puts such layers into any model; weights, optimiser and state dict stay what they are:

# %%
import timm

from recipes_lib import lowbit

model = timm.create_model("vit_tiny_patch16_224")
print(
    lowbit.convert(model, "switchback"),
    "layers replaced; kept:",
    [n for n, m in model.named_modules() if type(m) is nn.Linear],
)

# %% [markdown]
# ## Why the third product is left alone
#
# Each rounding adds an error of about the same size, and a sum of more terms adds up more of them. With rounding noise that is even over a step, the
# error's variance is $a \sum y_i^2 + b \sum x_i^2 + n a b$, where $a = (s_x/127)^2/12$ and $b$ likewise. It grows a little faster than the length
# $n$, for the largest of more numbers is larger:

# %% mystnb={"image": {"alt": "Log-log plot: variance of the error of an 8-bit inner product over its length, from 64 to 32,768, measured for Gaussian and for heavy-tailed numbers."}} tags=["hide-input"]
from recipes_lib.recipes import noise_study

figure, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for index, (numbers, label) in enumerate({"gaussian": "Gaussian", "student": "heavy tails"}.items()):
    grown = noise_study.growth(numbers, "row_row", 0)
    lengths = [int(length) for length in grown["variance"]]
    ax.loglog(lengths, list(grown["variance"].values()), **plots.style(index), label=label)
    worst = max(abs(ratio - 1) for ratio in grown["theory_ratio"].values())
    print(f"{label:12} measured over theory: off by at most {worst:.0%}; grows like length ** {grown['slope']:.2f}")
ax.set(xlabel="length of the sum", ylabel="variance of the error")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# A sum of random signs grows with its length too, so that alone would not hurt. What hurts is that in $\dot W$ all tokens of a column share one scale,
# while losses weigh few tokens heavily. In $Y$ and $\dot X$ each token has a scale of its own. Relative errors of a layer of width 384, where the tokens'
# gradients are uneven; three seeds:

# %% mystnb={"image": {"alt": "Relative errors of the output, the input's gradient and the weight's gradient over the number of tokens, for SwitchBack and for all products in 8 bits; a point a seed."}} tags=["hide-input"]
import json

from recipes_lib.data import embedded

figures = json.loads(embedded.path("claims/switchback.json").read_text())["figures"]
runs = [run["layers"]["uneven"] for run in figures["noise"].values()]
_, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for ax, kind in zip(axes, ("switchback", "int8"), strict=True):
    errors = {name: [[run[n][name][kind] for n in run] for run in runs] for name in ("y", "dx", "dw")}
    plots.curve(ax, [int(n) for n in runs[0]], errors, xlabel="tokens", ylabel="relative error")
    ax.set_title(kind)
plt.show()

# %% [markdown]
# ## Cook
#
# Preset `toy`: {doc}`clip`'s two towers with a small Vision Transformer for the pictures, SwitchBack in the blocks of both, StableAdamW. At these widths
# integers save no time, since rounding costs more than the products gain. Here we ask whether it learns.

# %%
from pathlib import Path
from tempfile import mkdtemp

from recipes_lib.config import override
from recipes_lib.recipes import switchback

toy = switchback.PRESETS["toy"]
result = switchback.run(toy, Path(mkdtemp()) / "run")


# %% mystnb={"image": {"alt": "Bar charts of zero-shot accuracy and of retrieval at 1 and 5 in both directions, after training and before it."}} tags=["hide-input"]
def show_scores(report: dict, title: str) -> None:
    figure, axes = plt.subplots(1, len(report["scores"]), figsize=(9, 2.6), sharey=True, layout="constrained")
    plots.scores(axes, report["scores"], method="SwitchBack")
    axes[0].set(ylabel="share that is right")
    figure.suptitle(title)
    plt.show()


show_scores(result.report, f"after {result.report['steps']} steps, on pairs never seen")

# %% [markdown]
# ### One cooked earlier
#
# `recipes cook switchback` ran preset `simmer`: four times the pictures, ten times the steps.

# %% mystnb={"image": {"alt": "Bar charts of zero-shot accuracy and of retrieval for the cooked run, after training and before it."}} tags=["hide-input"]
cooked = embedded.path("cooked/switchback")
show_scores(json.loads((cooked / "report.json").read_text()), "cooked earlier, on pairs never seen")

# %% [markdown]
# ## Arms
#
# `recipes verify switchback` trained the same towers from the same weights on the same batches, 300 steps, three seeds an arm, with other products. `int8`
# makes all three in integers; `fp8` rounds to 8-bit floats, one scale a matrix; `layer-scale` multiplies each branch of a block by a learned vector that
# starts at zero, so that every block starts as the identity.

# %% mystnb={"image": {"alt": "Bars with a point a seed: IR at 5 for float32, bfloat16, SwitchBack, all products in 8-bit integers, 8-bit floats, and 8-bit floats and float32 with layer-scale."}} tags=["hide-input"]
labels = {
    "full": "float32",
    "bf16": "bfloat16",
    "switchback": "SwitchBack",
    "int8": "int8",
    "fp8": "fp8",
    "full_scaled": "float32,\nlayer-scale",
    "fp8_scaled": "fp8,\nlayer-scale",
}
heights = {label: [run["scores"]["ir5"]["method"] for run in figures[arm].values()] for arm, label in labels.items()}
figure, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
plots.bars(ax, heights, ylabel="IR@5")
plt.show()

# %% [markdown]
# No arm in eight bits stands out: at this scale rounding costs nothing that three seeds could show, in integers or in floats, with or without the third
# product. What does cost, whatever the products, is layer-scale: blocks that start as the identity have learned less after so few steps.

# %% [markdown]
# ### Eight-bit floats
#
# An 8-bit float has a grid that is fine near zero and coarse far from it. E4M3 (four bits for the exponent, three for the digits) reaches 448, E5M2 57,344. The
# library rounds to these grids and multiplies in 16 or 32 bits, so the arithmetic can be studied on any machine.

# %% mystnb={"image": {"alt": "Two rows of ticks on a logarithmic axis: the positive numbers of the formats E4M3 and E5M2."}} tags=["hide-input"]
from recipes_lib.lowbit import fp8

figure, ax = plt.subplots(figsize=(8, 1.6), layout="constrained")
for index, fmt in enumerate(("e4m3", "e5m2")):
    points = torch.logspace(-5, 5, 20_000, dtype=torch.float64)
    grid = fp8.round_to(points, fmt).unique()
    ax.plot(grid, torch.full_like(grid, index), "|", color=plots.style(index)["color"], markersize=14)
ax.set(xscale="log", yticks=[0, 1], yticklabels=["E4M3", "E5M2"], ylim=(-0.6, 1.6))
plt.show()
print("0.3, 1.1, 17 and 465 in E4M3:", fp8.round_to(torch.tensor([0.3, 1.1, 17.0, 465.0]), "e4m3").tolist())

# %% [markdown]
# With one scale a matrix, one large feature pushes all others into the coarse end. So it matters how large features become on their way through the blocks. With
# zero layer-scale they start where the embedding left them. Mean magnitude at each block's output, in twelve blocks before any training:

# %% mystnb={"image": {"alt": "Mean magnitude of the features over blocks 1 to 11 of an untrained Vision Transformer: it rises as usual, and stays level with zero layer-scale."}} tags=["hide-input"]
from recipes_lib.analysis.magnitudes import magnitudes, named
from recipes_lib.models import vit

pictures = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
sizes = {}
for label, scaled in {"as usual": False, "zero layer-scale": True}.items():
    torch.manual_seed(0)
    fresh = vit.build(vit.ViTConfig(arch="vit_tiny", layer_scale=scaled), image_size=224)
    with torch.no_grad():
        found = magnitudes(named(fresh, "blocks.*"), lambda net=fresh: net(pictures))
    sizes[label] = list(found.values())
figure, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
plots.curve(ax, range(1, 12), sizes, xlabel="block", ylabel="mean |feature|")
plt.show()

# %% [markdown]
# ## StableAdamW
#
# AdamW divides the mean gradient $v$ by the root of the mean square $u$. With $\beta_2 = 0.999$, $u$ remembers a thousand steps: when gradients suddenly grow, it is
# too small, and the step too long. StableAdamW measures that for each tensor, and divides the learning rate by it:
#
# $$\mathrm{RMS} = \sqrt{\mathrm{mean}\big(g^2 / \max(u, \epsilon^2)\big)}, \qquad \eta = \frac{\gamma}{\max(1, \mathrm{RMS})}, \qquad
# \theta \leftarrow (1 - \eta \lambda)\, \theta - \eta\, \frac{v}{\sqrt{u} + \epsilon}$$ (stable-adamw)

# %%
theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
gradients = [torch.tensor(g, dtype=torch.float64) for g in ([0.1, -0.2, 0.3], [0.1, 0.1, 0.1], [5.0, -4.0, 3.0])]
lr, decay, beta1, beta2, eps = 0.01, 0.1, 0.9, 0.99, 1e-6
by_hand, v, u = theta.clone(), 0, 0
for t, g in enumerate(gradients, start=1):
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (beta1, beta2))
    v, u = b1 * v + (1 - b1) * g, b2 * u + (1 - b2) * g**2
    rms = (g**2 / u.clamp_min(eps**2)).mean().sqrt()
    eta = lr / max(1.0, float(rms))
    by_hand = (1 - eta * decay) * by_hand - eta * v / (u.sqrt() + eps)
    print(f"step {t}: RMS {rms:.3f}, learning rate {eta:.5f}")

# %% tags=["nbval-check-output"]
from recipes_lib.optim import StableAdamW

weight = nn.Parameter(theta.clone())
optimizer = StableAdamW([weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
for g in gradients:
    weight.grad = g
    optimizer.step()
torch.testing.assert_close(weight.data, by_hand, rtol=0, atol=1e-15)
print("the library takes the same steps")

# %% [markdown]
# A cause made by hand: a small network learns with its loss multiplied by 0.001, and after 150 steps by 1. Nothing else changes, and what is drawn is the loss
# without the factor, so whatever rises, rises through the optimiser.

# %% mystnb={"image": {"alt": "Loss over steps on a logarithmic axis around the jump at step 150, for AdamW, AdamW with clipping, AdamW with beta2 0.95, and StableAdamW."}} tags=["hide-input"]
from recipes_lib.recipes import spike_study as study

scales = [study.BEFORE] * study.CHANGE + [1.0] * (study.STEPS - study.CHANGE)
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for index, (arm, label) in enumerate(
    {"adamw": "AdamW", "clip_1": "clipping", "beta2_95": "beta2 0.95", "stable_adamw": "StableAdamW"}.items()
):
    series = study.train(study.ARMS[arm], study.LRS["middle"], scales, seed=0)
    ax.semilogy(series.losses, color=plots.style(index)["color"], label=label)
ax.set(xlabel="step", ylabel="loss", xlim=(100, study.STEPS))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Clipping cannot help: a gradient multiplied by a number gives Adam the same step. A shorter memory helps about as much as StableAdamW does. And "stable" is not
# "unmoved": its loss rises too, and is higher at the end. Mean peak and end over the three seeds, by learning rate:

# %% tags=["hide-input"]
rows = {}
for rate in study.LRS:
    for arm in study.ARMS:
        runs = [run["one_jump"][rate][arm] for run in figures["spikes"].values()]
        rows[rate, arm] = [sum(run[key] for run in runs) / len(runs) for key in ("before", "peak", "end", "rms")]
print(f"{'lr':7}{'arm':15}{'before':>9}{'peak':>9}{'end':>9}{'RMS':>7}")
for (rate, arm), (before, peak, end, largest) in rows.items():
    print(f"{study.LRS[rate]:<7}{arm:15}{before:9.4f}{peak:9.4f}{end:9.4f}{largest:7.1f}")

# %% [markdown]
# ### Does a loss spike follow an RMS spike?
#
# With five jumps at random times one can ask it: how many loss spikes come 1 to 8 steps after the first layer's RMS passed 2.3, and how many would by chance?
# The jumps are ours, so the lag is built in: this shows what a stale $u$ does, not how often it happens. Eight other tasks, tried before on another seed, had
# no spikes that the optimiser made; the code says which.

# %% tags=["hide-input"]
print(f"{'arm':15}{'spikes':>8}{'followed':>10}{'chance':>9}   (sums and means over three seeds)")
for arm in study.SWEEP:
    runs = [run["several_jumps"][arm] for run in figures["spikes"].values()]
    spikes, followed = (sum(run[key] for run in runs) for key in ("spikes", "followed"))
    print(f"{arm:15}{spikes:8d}{followed:10d}{sum(run['chance'] for run in runs) / len(runs):9.2f}")

# %% [markdown]
# ## Knobs
#
# In a live kernel: train the towers for 30 steps with other products, or make the jump larger.

# %% tags=["remove-output", "hide-input"]
from ipywidgets import Dropdown, FloatLogSlider, interact_manual


def try_out(linear: str = "switchback", optimizer: str = "stable_adamw", lr: float = 3e-3) -> None:
    changes = {"model.linear": linear, "optim.name": optimizer, "optim.lr": lr}
    changes |= {"train.steps": 30, "eval.baselines": "none"}
    print(switchback.run(override(toy, changes), Path(mkdtemp()) / "run").report["scores"])


interact_manual(
    try_out,
    linear=Dropdown(options=["full", "switchback", "switchback_m", "switchback_q", "int8", "fp8", "fp8_switchback"]),
    optimizer=Dropdown(options=["adamw", "stable_adamw"]),
    lr=FloatLogSlider(3e-3, min=-4, max=-1),
)

# %% [markdown]
# ## Break it
#
# Rounding hides what is not a number: a NaN would become some integer. So the layer looks first.

# %% tags=["nbval-check-output"]
try:
    layer(torch.tensor([[1.0, float("nan"), 0.0]]))
except FloatingPointError as error:
    print(error)

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify switchback` on three seeds an arm, and is compared with margins fixed before.

# %%
from recipes_lib import claims
from recipes_lib.claims import check

verdicts = claims.stored("switchback")

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.accuracy"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.accuracy"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.int8_worse"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.int8_worse"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.dw_error"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.dw_error"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.fp8_fails"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.fp8_fails"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.fp8_scaled"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.fp8_scaled"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.stable"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.stable"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.clipping"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.clipping"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.low_beta2"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.low_beta2"])

# %% tags=["nbval-check-output"]
check.show(verdicts["switchback.lag"])

# %% tags=["hide-input"]
check.table(verdicts["switchback.lag"])

# %% [markdown]
# What these verdicts rest on: towers of two blocks, 64 features wide, and a few thousand tokens a batch. The paper's effect is one of large models: its
# tokens are many and its features wide, which is where the third product drowns and where integers save time. The spikes are made by hand.

# %% [markdown]
# ## Scale it up
#
# ```sh
# recipes plan switchback --preset vith14_laion2b --nodes 16 --gpus 8        # memory, operations, bytes, GPU-hours; starts nothing
# torchrun --nproc-per-node 8 -m recipes_lib run switchback --preset vitb32_laion2b --data.root SHARDS --eval.imagenet IMAGENET --data.workers 10
# torchrun --nproc-per-node 8 -m recipes_lib run msn --preset vits16_imagenet --data.root IMAGENET --model.linear switchback --optim.name stable_adamw
# recipes run switchback --preset laptop --data.root SHARDS --data.test-root HELD_OUT --eval.probes retrieval
# ```
#
# `model.linear`, `model.layer_scale` and `optim.name` are options of every recipe with a transformer, as the second command shows. The layers work outside the book
# too: `from recipes_lib.lowbit import SwitchBackLinear, convert`. What the large presets ask of 128 GPUs, `recipes plan` counts on tensors that hold no
# numbers:

# %%
from recipes_lib.launch import plan

for name in ("vitb32_laion2b", "vitl14_laion2b", "vith14_laion2b"):
    cost = plan.plan("switchback", switchback.PRESETS[name], world=128)
    print(
        f"{name}: {cost.parameters / 1e6:.0f} million parameters, {cost.flops_per_image / 1e9:.0f} GFLOP an image and step, "
        f"{cost.low_bit_share:.0%} of it in SwitchBack layers; {cost.memory['total'] / 1e9:.0f} GB a GPU"
    )

# %% tags=["hide-input"]
fields = {
    "train": ["batch_size", "steps"],
    "views": ["patch_dropout"],
    "optim": ["name", "lr", "warmup_steps", "weight_decay", "betas", "eps"],
    "model": ["arch", "patch_size", "text_width", "text_layers", "dim", "linear", "layer_scale"],
}
large = {name: switchback.PRESETS[f"{name}_laion2b"] for name in ("vitb32", "vith14")}
print(notebook.settings({"toy": toy, **large}, fields))

# %% [markdown]
# Learning rate, weight decay, betas and epsilon are the defaults of the authors' public optimiser. Batch, steps, warm-up and the share of patches dropped could not be
# checked against the paper. We have not run these presets, and no GPU: the CUDA kernels were only run in Triton's interpreter. On a CPU, a SwitchBack layer takes
# less time than `nn.Linear` in float32 at the widths that were measured, 768 and 1,280; the ratios are in `benchmarks/README.md`.

# %% [markdown]
# ## Exercises
#
# **1. Predict, then run.** A row of $X$ is multiplied by 8. By how much does its row of $Y$ change, with rounding and all?

# %% tags=["solution", "hide-cell"]
scaled = X.float().clone()
scaled[0] *= 8
assert torch.equal(layer(scaled)[0], 8 * layer(X.float())[0])
print("by exactly 8: the row has a scale of its own, and its integers stay the same")

# %% [markdown]
# **2. One scale a matrix.** Let one token of $X$ be a hundred times as large as the others. What do the other tokens' integers look like with one scale for all of
# $X$, and with a scale a row?

# %% tags=["solution", "hide-cell"]
from recipes_lib.lowbit import quantize

uneven = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
uneven[0] *= 100
for way in (quantize.tensor, quantize.rows):
    print(way.__name__, way(uneven).values[1:].abs().max().item(), "is the largest integer of the other tokens")

# %% [markdown]
# **3. Find the bug.** Somebody computes $s$ in half precision, "since the products are coarse anyway". Why does the output's error grow, and for which rows?

# %% tags=["solution", "hide-cell"]
print(
    "every number of a row is multiplied by the same wrong scale, so the errors do not average out over the sum:\n"
    "the whole row is off by up to 2 ** -11 of itself; here scales are float32"
)

# %% [markdown]
# **4. A small research question.** From which number of tokens a batch does the weight's gradient in 8 bits cost accuracy? Train the towers with `--model.linear int8` and
# larger batches, at equally many steps. You are on the way if you can say what part of the loss is due to rounding and what part to the batch.

# %% [markdown]
# ## Close
#
# Pitfalls that others met:
#
# - bitsandbytes had SwitchBack layers up to version 0.49.2 and dropped them; open_clip's option for them imports what is gone;
# - scaled by $127 / s$ or divided by $s / 127$: the order decides ties;
# - torch's fused optimisers change weights past autograd's version counter, so a layer that keeps its weight's integers from step to step trains with stale
#   ones; here they are made anew in every call, as the benchmark counts it;
# - the authors' public code of StableAdamW decays weights with the unclipped learning rate, two other libraries with the clipped one, as here by default.
#
# Read on: {doc}`clip`, and {cite:t}`balestriero2023cookbook` for the map.
#
# This chapter as a script: [switchback.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/switchback.py).
