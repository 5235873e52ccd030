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
# # Transformed CNNs: a convolution learns to look further
#
# *A trained convolution is written as self-attention that computes exactly the same. Then it is fine-tuned, and each head may decide to look
# beyond its pixel of the kernel.*
#
# Papers: {cite:t}`dascoli2021transformed`; {cite:t}`cordonnier2020relationship` for the construction. Implementation:
# `recipes_lib/models/gated_convolution.py` and `recast.py`, which take any network of PyTorch.
#
# You need first: some PyTorch, and what a convolution and self-attention are. {doc}`convit` trains the same attention from the start; this
# chapter can be read without it.

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

notebook.start("tcnn")

# %% [markdown]
# ## The question
#
# A convolution sees a few neighbours of each pixel. Self-attention sees all pixels, but it takes long to train, because it has to learn first that
# neighbours matter. Trained convolutional networks (CNNs) are everywhere. Could attention start where a CNN has stopped?
#
# For this, an attention layer must first compute what the convolution computed. Below, a convolution that finds edges is written as attention
# in three ways: one head for each pixel of its kernel, and each head attends to the pixel at its own offset.

# %% tags=["hide-input"]
import math
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from recipes_lib import plots
from recipes_lib.models import gpsa
from recipes_lib.models.gated_convolution import GatedConvolution, off_centre_mass

# %% tags=["hide-input"]
digit = torch.tensor(load_digits().images[3] / 16)[None, None]  # [1, 1, 8, 8]
edges = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
edges.weight.data = torch.tensor([[0.0, -1, -2], [1, 0, -1], [2, 1, 0]]).double()[None, None]
wanted = edges(digit).detach()


# %% tags=["hide-input"]
def heads_on(rows: int, border: int, alpha: float) -> torch.Tensor:
    """Each head's attention to positions, times its number in the kernel."""
    layer = GatedConvolution(edges, gate="near", locality_strength=alpha)
    side = rows + 2 * border
    keys = gpsa.grid_positions(side, side, start=-border).double()
    codes = gpsa.relative_codes(gpsa.grid_positions(rows, rows).double(), keys)
    attention = gpsa.position_attention(layer.v_pos, codes)  # [9, queries, keys]
    values = F.pad(digit, (border,) * 4).flatten()
    return (edges.weight.flatten()[:, None] * (attention @ values)).sum(0).detach()


ways = {"soft attention": (1, 1.0), "sharp, keys in the image": (0, 40.0), "sharp, border of zeros": (1, 40.0)}
errors = {name: heads_on(8, *how).view(8, 8) - wanted[0, 0] for name, how in ways.items()}

# %% mystnb={"figure": {"name": "fig-tcnn-failure", "caption": "A convolution that finds edges, and how far three ways to write it as attention are from it. Blue and red are errors, white is none."}, "image": {"alt": "Five small images. A digit three in grey; its edges after the convolution; errors of three kinds of attention in blue and red. Soft attention is wrong everywhere, sharp attention to the image's own pixels is wrong along the border, and sharp attention with a border of zeros is white: no error."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 5, figsize=(plots.WIDTH, 2.2), layout="constrained")
shown = {"digit": digit[0, 0], "convolution": wanted[0, 0]} | errors
for ax, (name, image) in zip(axes, shown.items(), strict=True):
    grey = name == "digit"
    ax.imshow(image, cmap="gray" if grey else "RdBu", vmin=0 if grey else -4, vmax=1 if grey else 4)
    ax.set_title(name.replace(", ", ",\n"), fontsize="small")
    ax.set_axis_off()
plt.show()

# %% tags=["nbval-check-output"]
for name, error in errors.items():
    inside = error[1:-1, 1:-1].abs().max()
    print(f"{name:24} largest error inside {inside:.3f}, anywhere {error.abs().max():.3f}")

# %% [markdown]
# Soft attention, with which ConViT starts, is not the convolution at all. Sharp attention fails at the border. There a head whose offset lies outside the image must
# attend to *something*, and takes the nearest pixel, where the convolution takes a zero. Only the third way is the convolution
# ({numref}`fig-tcnn-failure`). The rest of this chapter builds on it: what such a layer can learn, what it costs, and when it pays.

# %% [markdown]
# :::{claims} tcnn
# :::

# %% [markdown]
# ## The method in one picture

# %% mystnb={"figure": {"name": "fig-tcnn-method", "caption": "A recast layer. Each of the nine heads mixes two attention maps by its gate; the heads' matrices are the kernel of the convolution. Position attention does not look at the image, content attention does not look at positions."}, "image": {"alt": "Diagram. A feature map goes to queries and keys, which give the content attention A. The positions of the pixels give the position attention P. The gate g mixes both to T, which is g P plus 1 minus g times A. T times the feature map, times the kernel's weights, gives the output, summed over nine heads."}} tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.diagrams import Box, Image

nodes = {
    "maps": Image(0, 1.2, digit[0].expand(3, 8, 8).float(), "feature map"),
    "content": Box(1, 0.6, "content\nattention $A^h$"),
    "position": Box(1, 1.8, "position\nattention $P^h$"),
    "mix": Box(2, 1.2, "$T^h = g_h P^h$\n$+ (1 - g_h) A^h$"),
    "sum": Box(3, 1.2, "$\\sum_h W_h\\, T^h X$"),
    "out": Box(4, 1.2, "batch norm,\nReLU, ..."),
}
ways = "maps>content, content>mix, position>mix, mix>sum, sum>out"
figure, ax = plt.subplots(figsize=(plots.WIDTH, 2.6))
diagrams.draw(ax, nodes, [tuple(way.split(">")) for way in ways.split(", ")])
plt.show()

# %% [markdown]
# ## The equations
#
# A convolution with a kernel of $K \times K$ pixels, $K$ odd, has at each pixel $h$ of its kernel a matrix $W_h$ and an offset $\Delta_h$ from the centre:
#
# $$y_i = b + \sum_{h=1}^{K^2} W_h\, x_{i + \Delta_h}, \qquad x_j = 0 \text{ outside the image}$$ (tcnn-convolution)
#
# The recast layer has $K^2$ heads. Head $h$ has the same matrix $W_h$, and an attention map $T^h$ takes the place of the fixed offset:
#
# $$y_i = b + \sum_{h=1}^{K^2} W_h \sum_j T^h_{ij}\, x_j, \qquad T^h = g_h\, P^h + (1 - g_h)\, A^h$$ (tcnn-layer)
#
# $P$ attends to positions. Its logits are linear in the relative position $\delta = (\delta_x, \delta_y)$ of key $j$ and query $i$ and in its squared length. The keys include the
# border of zeros:
#
# $$P^h_{ij} = \operatorname{softmax}_j\big(v_h \cdot (\delta_x, \delta_y, \lVert\delta\rVert^2)\big), \qquad v_h = \alpha\, (2 \Delta_{h,x},\, 2 \Delta_{h,y},\, -1) \text{ at the start}$$ (tcnn-position)
#
# With this start the logits are $-\alpha \lVert \delta - \Delta_h \rVert^2$ plus a number that cancels. The larger $\alpha$ is, the more $P^h$ is a one at $\delta = \Delta_h$. $A$ attends to content, over
# the image's own pixels, with new queries and keys of $d$ numbers:
#
# $$A^h_{ij} = \operatorname{softmax}_j\big(x_i^\top Q_h^\top K_h\, x_j / \sqrt d\big)$$ (tcnn-content)
#
# | symbol | shape | in the code | meaning |
# |---|---|---|---|
# | $W_h$, $b$ | $[C_\text{out}, C]$, $[C_\text{out}]$ | `weight[:, :, row, column]`, `bias` | the convolution's own weights |
# | $\Delta_h$ | $[2]$ | | offset of head $h$ in the kernel |
# | $v_h$ | $[3]$ | `v_pos` | position logits' weights |
# | $\alpha$ | | `locality_strength` | how sharp $P$ is at the start |
# | $g_h$ | $[]$, 0 to 1 | `gates()` | gate: 1 is the convolution, 0 is content alone |
# | $Q_h$, $K_h$ | $[d, C]$ | `query`, `key` | queries and keys, random at the start |
#
# $K$ is elsewhere a number of prototypes, and $A$, $P$, $T$ have other meanings in other chapters ({doc}`/book/notation`).

# %% [markdown]
# ## By hand
#
# An image of nine pixels, and a kernel that is not symmetric: with a symmetric one you would not notice that rows and columns are swapped.

# %% tags=["nbval-check-output"]
x = torch.arange(1.0, 10).view(3, 3).double()
w = torch.arange(1, 10).view(3, 3).double() / 10
conv = 0.5 + F.conv2d(x[None, None], w[None, None], padding=1)[0, 0]
print(conv)

# %% [markdown]
# The heads stand in the order of the kernel's pixels, row by row. `offset` holds $\Delta_h$ as (x, y), `far` the distance of each of the 25 keys, border included, from where
# each head should look.

# %% tags=["nbval-check-output"]
along = torch.arange(-1, 2)
offset = torch.cartesian_prod(along, along).flip(1).double()  # [9, 2], (x, y)
query = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flip(1).double()  # [9, 2]
key = torch.cartesian_prod(torch.arange(-1, 4), torch.arange(-1, 4)).flip(1).double()  # [25, 2]
delta = key[None] - query[:, None]  # [9 queries, 25 keys, 2]
far = (delta[None] - offset[:, None, None]).square().sum(-1)  # [9 heads, 9 queries, 25 keys]
print("head 2 looks to the upper right:", offset[2].tolist())
for alpha in (1, 40):
    attention = (-alpha * far).softmax(dim=-1)
    print(f"alpha {alpha:2}: share on that pixel, from the centre: {attention[2, 4].max():.4f}")

# %% [markdown]
# Sum what the heads see, with the kernel's numbers as weights. Keys outside the image have the value 0.

# %% tags=["nbval-check-output"]
values = F.pad(x, (1, 1, 1, 1)).flatten()  # [25]
P = (-40 * far).softmax(dim=-1)
by_hand = 0.5 + (w.flatten()[:, None] * (P @ values)).sum(0).view(3, 3)
print("the convolution to 1e-13:", torch.allclose(by_hand, conv, rtol=0, atol=1e-13))

inside = values != 0
P_wrong = (-40 * far[:, :, inside]).softmax(dim=-1)
print("keys in the image alone:", 0.5 + (w.flatten()[:, None] * (P_wrong @ values[inside])).sum(0))

# %% [markdown]
# The attention is the convolution, and it is not without the border. The logits need no table of distances. They are linear in three numbers of the relative position, with the weights $v_h$
# of {eq}`tcnn-position`:

# %% tags=["nbval-check-output"]
code = torch.cat([delta, delta.square().sum(-1, keepdim=True)], dim=-1)  # [9, 25, 3]
v = 40 * torch.cat([2 * offset, -torch.ones(9, 1)], dim=1)  # [9, 3]
logits = torch.einsum("hc,qkc->hqk", v, code)
print("the same attention:", torch.allclose(logits.softmax(-1), P, rtol=0, atol=1e-15))

# %% [markdown]
# Now open the gates. While queries and keys are zero, content attention is the same for all nine pixels of the image. A gate of $\operatorname{sigmoid}(1)$, ConViT's value, moves a quarter of the
# attention there:

# %% tags=["nbval-check-output"]
A = torch.ones(9, 9, 9).double() / 9  # [heads, queries, the image's own pixels]
g = torch.tensor(1.0).double().sigmoid()
T = (1 - g) * A + g * P[:, :, inside]
mixed = 0.5 + (w.flatten()[:, None] * (T @ x.flatten())).sum(0).view(3, 3)
print(f"gate {g:.3f}")
print(mixed)

# %% [markdown]
# ## The same numbers
#
# The library's layer takes the convolution and its start.

# %% tags=["nbval-check-output"]
plain = nn.Conv2d(1, 1, 3, padding=1).double()
plain.weight.data, plain.bias.data = w[None, None], torch.tensor([0.5]).double()
layer = GatedConvolution(plain, locality_strength=40)
torch.testing.assert_close(layer(x[None, None])[0, 0], by_hand, rtol=0, atol=1e-13)
torch.testing.assert_close(layer.v_pos.detach(), v)

opened = GatedConvolution(plain, gate="near", gate_logit=1.0, locality_strength=40)
opened.query.weight.data.zero_()
torch.testing.assert_close(opened(x[None, None])[0, 0], mixed, rtol=0, atol=1e-12)
print("by hand and by the library: the same numbers")

# %% [markdown]
# Read the source:
# [gated_convolution.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/models/gated_convolution.py). It is a little faster than the equations: $P$ is computed once for all images of a
# batch, as a product of attention along rows and along columns; both maps are summed before they meet the values; and in evaluation, heads that are still pixels of the
# convolution are computed by the convolution.

# %% [markdown]
# ### A whole network
#
# `recast` takes any network and the name of a part, here the last stage of a ResNet. Batch norms and convolutions of 1x1 stay. `survey` says of every convolution
# whether it can be recast, and why not.

# %% tags=["nbval-check-output"]
from recipes_lib.models.recast import check_identity, fold, recast, survey
from recipes_lib.models.resnet import ResNet

torch.manual_seed(0)
resnet = ResNet("resnet18", stem="cifar").eval()
for found in survey(resnet, "layer4"):
    print(found)

# %% tags=["nbval-check-output"]
twin = recast(resnet, "layer4")
pictures = torch.randn(4, 3, 32, 32)
for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    found = check_identity(resnet.to(dtype), twin.to(dtype), pictures.to(dtype))
    worst = max(difference.largest for difference in found.values())
    print(f"{dtype!s:14} every layer and the output within {allowed:.0e}:", worst < allowed)

# %% [markdown]
# The way back is exact too, since the layer's weight *is* the kernel. `fold` makes convolutions of layers whose gates hardly opened.

# %% tags=["nbval-check-output"]
back = fold(twin)
same = all(torch.equal(back.state_dict()[name], value) for name, value in resnet.state_dict().items())
print("folded back, every weight is the same:", same)

# %% [markdown]
# ## Two knobs, and each stops a gradient
#
# How sharp must the attention be, and how closed the gate? The share of a head's attention that is off its own pixel, on a grid without borders, is
# $1 - \big(\sum_{n \in \mathbb{Z}} e^{-\alpha n^2}\big)^{-2}$, about $4 e^{-\alpha}$ for large $\alpha$. The left panel of {numref}`fig-tcnn-knobs` has this curve and measurements. So
# $\alpha = 20$ is exact in float32, and 40 in float64. But attention that is one-hot to the last digit does not change with $v$: the gradient is gone.
#
# The right panel shows the gradient of the gate. ConViT's gate is a sigmoid of a parameter $\lambda$. In float32 the sigmoid of 17 *is* 1, its gradient is exactly 0, and the layer
# remains a convolution however long it is trained. A gate that is its own parameter, kept within 0 and 1, is exactly 1 *and* has a gradient.

# %% tags=["hide-input"]
torch.manual_seed(0)
some = nn.Conv2d(8, 8, 3, padding=1)
maps, target = torch.randn(4, 8, 7, 7), torch.randn(4, 8, 7, 7)


def gate_gradient(logit: float | None) -> float:
    """Norm of the gradient of a squared error by the gates' parameters; None: the linear gate."""
    torch.manual_seed(1)
    layer = GatedConvolution(some, gate="linear" if logit is None else "near")
    if logit is not None:
        layer.gate.data.fill_(logit)
    (layer(maps) - target).square().mean().backward()
    return layer.gate.grad.norm().item()


# %% tags=["hide-input"]
strengths, logits = (1, 2, 3, 5, 10, 15, 20, 30), (1, 2, 4, 6, 8, 10, 12, 14, 16, 17, 18, 20)
stray = {}
for alpha in strengths:
    layer = GatedConvolution(some.double(), gate="near", locality_strength=alpha)
    stray[alpha] = layer.stray_attention(reach=20).max().item()
some.float()
gradients = {logit: gate_gradient(logit) for logit in logits}
linear = gate_gradient(None)

# %% mystnb={"figure": {"name": "fig-tcnn-knobs", "caption": "Left: the share of position attention off the head's own pixel, measured (points), by the closed form (line) and by its shortcut (dashed). Right: the gradient of the gates' parameters in float32; at 17 and beyond it is exactly 0 and cannot be drawn on this axis."}, "image": {"alt": "Two panels with logarithmic axes. Left: attention off the own pixel falls along a straight line from 0.7 at strength 1 to 1e-13 at 30; points lie on the line, the dashed shortcut is above it at small strengths. Right: the sigmoid gate's gradient falls by a factor of e for each unit of its parameter and ends at 16; the linear gate's gradient is a dashed level far above."}} tags=["hide-input"]
figure, (left, right) = plots.panels(2, height=2.9)
fine = torch.linspace(1, 30, 100).tolist()
left.plot(fine, [off_centre_mass(a) for a in fine], label="closed form", color=plots.PALETTE[0])
left.plot(fine, [4 * math.exp(-a) for a in fine], "--", label="4 exp(-alpha)", color=plots.BASELINE)
left.plot(list(stray), list(stray.values()), "o", label="measured", color=plots.PALETTE[1])
left.set(yscale="log", xlabel="locality strength", ylabel="attention off the own pixel")
left.legend()
alive = {logit: value for logit, value in gradients.items() if value > 0}
right.plot(list(alive), list(alive.values()), label="sigmoid", **plots.style(0))
right.axhline(linear, linestyle="--", color=plots.BASELINE, label="linear gate at 1")
right.set(yscale="log", xlabel="gate's parameter", ylabel="gradient's norm", xlim=(0, 21))
right.legend()
plt.show()

# %% tags=["nbval-check-output"]
gone = [logit for logit, value in gradients.items() if value == 0]
print("the sigmoid's gradient is exactly 0 at:", gone)
print("the linear gate, at exactly 1, has a gradient:", linear > 1e-3)

# %% [markdown]
# The library offers three gates. *Linear* starts as exactly the convolution. *Near* is a sigmoid at 10 with $\alpha = 10$: the layer differs by about a ten-thousandth, and $v$ can learn as well. *Saturated*
# serves to test the identity, and is refused for training.

# %% tags=["nbval-check-output"]
for wrong in ({"gate": "near", "gate_logit": 20.0}, {"locality_strength": 10.0}):
    try:
        recast(some, **wrong)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## What it costs
#
# A convolution's work grows with the number $N$ of pixels. The attention maps of nine heads grow with $N^2$. The paper therefore recasts the last stage alone, whose maps have 7x7 pixels. Below, both layers do a forward and backward
# pass over maps of growing size.

# %%
sides, seconds = (7, 10, 14, 20, 28), {"convolution": [], "attention": []}
kernel = nn.Conv2d(64, 64, 3, padding=1)
for side in sides:
    maps = torch.randn(2, 64, side, side)
    for name, layer in {"convolution": kernel, "attention": GatedConvolution(kernel)}.items():
        times = []
        for _ in range(4):
            start = time.process_time()
            layer(maps).square().sum().backward()
            times.append(time.process_time() - start)
        seconds[name].append(min(times))

# %% mystnb={"figure": {"name": "fig-tcnn-cost", "caption": "Seconds of one forward and backward pass of a layer with 64 channels and two images; the fastest of four. Both axes are logarithmic."}, "image": {"alt": "Time over the number of pixels on logarithmic axes, for the convolution and the attention. The attention's line is above and steeper; the distance grows from a few times at 7x7 pixels to tens of times at 28x28."}} tags=["hide-input"]
figure, (ax,) = plots.panels(1, height=2.9)
pixels = [side**2 for side in sides]
plots.curve(ax, pixels, seconds, xlabel="pixels of the feature map", ylabel="seconds")
ax.set(xscale="log", yscale="log")
ax.set_xticks(pixels, [f"{side}x{side}" for side in sides])
ax.minorticks_off()
plt.show()

# %% [markdown]
# The distance depends on the number of channels. With many channels, as in the last stage of a ResNet-50, most of the work is the product with the kernel, which both layers have:
# `benchmarks/tcnn.py` measures it. A map that is too large is refused with the memory it would take.
