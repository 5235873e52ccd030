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
# # ConViT: a transformer that starts as a convolution
#
# *A Vision Transformer has to learn that neighbouring pixels belong together, and needs many images for it. Give its first layers this knowledge as a
# starting point instead of a law, and a gate with which each head may leave it.*
#
# Paper: {cite:t}`dascoli2021convit`. Implementation: `recipes_lib/models/gpsa.py` and `convit.py`, a backbone that other recipes take too;
# the classifier that is trained here is `recipes_lib/recipes/convit/`.
#
# You need first: {doc}`what_is_ssl`, some PyTorch, and what self-attention in a {term}`ViT` is. The training here is supervised.

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

notebook.start("convit")

# %% [markdown]
# ## The question
#
# A convolution looks at neighbours and at nothing else. Self-attention looks wherever it learns to look. Which of them learns more from few images? Below is a
# task that only neighbours tell: patterns of black and white pixels, in which pixels next to each other along one axis are mostly equal, or mostly opposite.
# There are four classes, two axes times two signs. A single pixel says nothing about the class, nor does the number of white ones.

# %% tags=["hide-input"]
import json
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from recipes_lib import plots
from recipes_lib.config import override
from recipes_lib.recipes.convit import recipe as convit_recipe

toy = convit_recipe.PRESETS["toy"]
place = Path(mkdtemp())
data = convit_recipe.RECIPE.load(toy, print)


def lines_of(folder: Path) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# %% [markdown]
# Two networks of the same width and depth train on a thousand of these patterns, for a hundred steps (about half a minute together). Each pixel is a {term}`patch`.
# One network is a plain Vision Transformer. The other is a ConViT, whose first two of three blocks start as a convolution.

# %%
short = override(toy, {"train.steps": 100, "eval.baselines": "none"})
for name, layers in {"ViT": 0, "ConViT": 2}.items():
    config = override(short, {"model.gpsa_layers": layers})
    convit_recipe.RECIPE.run(config, place / name)

# %% mystnb={"figure": {"name": "fig-convit-question", "caption": "Left: two patterns of each of the four classes. Right: training accuracy of two networks of equal size; a quarter is chance."}, "image": {"alt": "Left: eight patterns of black and white pixels. Right: training accuracy over 100 steps. The ConViT rises far above the Vision Transformer, which stays nearer to chance."}} tags=["hide-input"]
figure, (left, right) = plots.panels(2, height=2.8)
order = data.train.labels[:8].argsort()
plots.image_grid(left, data.train.images[:8][order], columns=4, title="two of each class")
accuracy = {name: [line["accuracy"] for line in lines_of(place / name)] for name in ("ConViT", "ViT")}
smooth = {name: torch.tensor(values).unfold(0, 5, 1).mean(1).numpy() for name, values in accuracy.items()}
levels = {"chance": 0.25}
plots.curve(right, range(5, 101), smooth, ylabel="training accuracy", levels=levels)
plt.show()

# %% [markdown]
# Both networks can look at neighbours. The ConViT begins there ({numref}`fig-convit-question`). The Vision Transformer first has to find out, from the labels alone,
# which of its 64 patches are neighbours. How does a layer begin as a convolution without being bound to it?

# %% [markdown]
# :::{claims} convit
# :::

# %% [markdown]
# ## The method in one picture

# %% mystnb={"figure": {"name": "fig-convit-method", "caption": "One head of gated positional self-attention. The gate mixes two attentions, one to content and one to relative positions, and the values are averaged with the mixture."}, "image": {"alt": "Diagram. Patches give values, and by queries and keys the attention to content. The grid gives relative positions, and these the attention to positions, a blob beside the query. A gate mixes both attentions; the mixture averages the values, which gives the output."}} tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.diagrams import Box, Image

there = torch.arange(7).float()
blob = torch.exp(-((there[:, None] - 3) ** 2) - (there - 4) ** 2)
spots = torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) ** 4
pattern = data.train.images[0]
nodes = {
    "values": Box(1.2, 0, "values $V$"),
    "patches": Image(0, 0.8, pattern, "patches $x$"),
    "content": Image(1.2, 0.9, spots.expand(3, 7, 7), "$A$: to content"),
    "grid": Box(0, 2.2, "grid of the\npatches"),
    "position": Image(1.2, 2.2, (blob / blob.max()).expand(3, 7, 7), "$P$: to positions"),
    "gate": Box(2.4, 1.5, "gate $s$:\n$T = (1 - s)\\,A + s\\,P$"),
    "output": Box(3.4, 0.8, "output $T\\,V$"),
}
ways = "patches>values, patches>content, grid>position, content>gate, "
ways += "position>gate, gate>output, values>output"
_, ax = plt.subplots(figsize=(plots.WIDTH, 3.6))
diagrams.draw(ax, nodes, [tuple(way.split(">")) for way in ways.split(", ")])
plt.show()

# %% [markdown]
# ## The equations
#
# Patch $i$ is the query and patch $j$ the key. What a head knows of their places is the relative code, in units of one patch:
#
# $$r_{ij} = (\delta_x,\ \delta_y,\ \delta_x^2 + \delta_y^2), \qquad \delta_x = \text{column}_j - \text{column}_i, \quad \delta_y = \text{row}_j - \text{row}_i$$ (convit-code)
#
# The attention to positions needs three learned numbers per head, and no image:
#
# $$P_{ij} = \operatorname{softmax}_j\,(v_{pos} \cdot r_{ij})$$ (convit-position)
#
# At the start each head $h$ gets an offset $\Delta_h$ of its own:
#
# $$v_{pos} = \alpha\,(2 \Delta_x,\ 2 \Delta_y,\ -1) \qquad\text{so that}\qquad v_{pos} \cdot r_{ij} = -\alpha\, \lVert \delta - \Delta_h \rVert^2 + \text{constant}$$ (convit-local)
#
# This is a Gaussian around the patch that lies $\Delta_h$ from the query, with variance $1 / (2 \alpha)$ in each direction. A $3 \times 3$ convolution has nine
# offsets, and nine heads have one each. The gate mixes this attention with the usual one, $A = \operatorname{softmax}(Q K^\top / \sqrt{d})$:
#
# $$T = (1 - s)\, A + s\, P, \qquad s = \operatorname{sigmoid}(\lambda)$$ (convit-gate)
#
# How far a head looks is the mean distance to what it attends to, its *non-locality*:
#
# $$\frac{1}{N} \sum_{i,j} T_{ij}\, \lVert \delta_{ij} \rVert$$ (convit-distance)
#
# | symbol | shape | in the code | meaning |
# |---|---|---|---|
# | $r$ | $[N, N, 3]$ | `relative_codes` | relative positions |
# | $v_{pos}$ | $[\text{heads}, 3]$ | `pos_proj.weight` | what a head makes of them; learned |
# | $\Delta_h$ | $[\text{heads}, 2]$ | | where head $h$ looks at the start |
# | $\alpha$ | | `model.locality_strength` | how sharply it looks there at the start |
# | $\lambda$, $s$ | $[\text{heads}]$ | `gating_param`, `gate` | gate before and after the sigmoid; learned |
# | $A$, $P$, $T$ | $[\text{heads}, N, N]$ | `attention_map` is $T$ | attention to content, to positions, and both |
#
# In most chapters $T$ is a temperature and $r$ a share of the patches ({doc}`/book/notation`). A whole network has layers of this kind (*gated positional self-attention*,
# GPSA) in all blocks but the last two. There the {term}`class token` enters. It has no place on the grid, so it could not enter earlier.

# %% [markdown]
# ## By hand
#
# Nine patches in three rows, numbered row by row. These are the relative codes of all patches as the patch in the centre, number 4, sees them.

# %%
side = 3
row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
delta_x = column[None] - column[:, None]  # [query, key]
delta_y = row[None] - row[:, None]
codes = torch.stack([delta_x, delta_y, delta_x**2 + delta_y**2], dim=-1).double()
for name, part in zip(("delta_x", "delta_y", "squared distance"), codes[4].T, strict=True):
    print(f"{name:16}", part.view(side, side).int().tolist())

# %% [markdown]
# Nine heads get the nine offsets of a $3 \times 3$ convolution, by {eq}`convit-local`. Head 4 has the offset $(0, 0)$: it looks at the query itself.

# %%
alpha = 1.0
offsets = torch.tensor([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)])  # (x, y) of each head
v_pos = alpha * torch.cat([2 * offsets, -torch.ones(9, 1)], dim=1).double()
P = (codes @ v_pos.T).softmax(dim=1).permute(2, 0, 1)  # [head, query, key]
print("head 4 from the centre, row by row:")
print(P[4, 4].view(side, side).numpy().round(3))

# %% [markdown]
# Neighbours get 0.122 and corners 0.045, in the ratio $e^{-1}$ of a Gaussian at distances 1 and $\sqrt 2$. With a larger $\alpha$ the head looks at one patch only, as a weight of
# a convolution does. At the border there is a difference from a convolution, which sees zeros outside the image:

# %%
print("head 0 looks up and to the left; from the first patch, where nothing lies there:")
print(P[0, 0].view(side, side).numpy().round(3))
print("all rows of P sum to 1:", torch.allclose(P.sum(-1), torch.ones(9, 9).double()))

# %% [markdown]
# The probability has to go somewhere, and goes to the nearest patch. The next figure shows all nine heads on a larger grid, as the patch in the centre sees them.

# %% mystnb={"figure": {"name": "fig-convit-heads", "caption": "Attention of nine heads to positions, seen from the centre of a grid of seven by seven patches, at two strengths. White is the largest."}, "image": {"alt": "Two groups of nine small maps. In each map a white blob lies beside the centre, at another one of the nine offsets of a three by three convolution. At strength 1 the blobs cover several patches, at strength 4 hardly more than one."}} tags=["hide-input"]
from recipes_lib.models.gpsa import grid_positions, local_position_weights, position_attention, relative_codes

positions = grid_positions(7, 7)
figure, axes = plots.panels(2, height=2.9)
row_major = [3 * x + y for y in range(3) for x in range(3)]  # heads in the order of their offsets on the page
for ax, strength in zip(axes, (1.0, 4.0), strict=True):
    maps = position_attention(local_position_weights(9, strength), relative_codes(positions, positions))
    centre = maps[row_major, 24].view(9, 1, 7, 7)
    title = f"strength {strength:g}"
    plots.image_grid(ax, centre / centre.amax(), columns=3, title=title)
plt.show()

# %% [markdown]
# Now the content. Queries and keys come from the patches, as in every transformer, and the gate mixes the two attentions. Here one head has $d = 4$ numbers per patch, and
# $\lambda = 1$.

# %%
draws = torch.Generator().manual_seed(0)
query, key, value = torch.randn(3, 9, 4, generator=draws).double()  # [9 patches, 4] each
A = (query @ key.T / 4**0.5).softmax(dim=-1)
s = torch.tensor(1.0).double().sigmoid()
T = (1 - s) * A + s * P[8]
print(f"gate {s:.3f}; rows of T sum to 1: {torch.allclose(T.sum(-1), torch.ones(9).double())}")
print("largest attention of the centre to content, to positions, mixed:")
print([f"patch {row[4].argmax()}: {row[4].max():.2f}" for row in (A, P[8], T)])

# %% [markdown]
# Why mix two softmaxes, and not add the logits and take one softmax? Suppose that a query finds just what it looks for, with a logit of 5, in the farthest corner.

# %%
wanted = torch.zeros(9).double()
wanted[8] = 5.0  # the last patch, as seen from the first
at_home = (codes @ v_pos[4]).double()[0]  # head 4 looks at the query itself
mixed = (1 - s) * wanted.softmax(0)[8] + s * at_home.softmax(0)[8]
added = (wanted + at_home).softmax(0)[8]
print(f"attention to the farthest patch: mixed {mixed:.3f}, logits added {added:.3f}")
print(f"the same on a grid of 14 x 14, where its position logit is {-2 * 13**2}")

# %% [markdown]
# On this tiny grid the added logits still let some attention through. On a grid of the paper's size the position logit of the far corner is so low that no content can outweigh it.
# With the mixture, the share of the content does not depend on the distance.
#
# Two identities make the layer fast. The first: the mixture need not be formed. The second: the position logit is a sum of one term in $\delta_x$ and one in
# $\delta_y$, so the softmax over a grid is the product of a softmax over columns and one over rows.

# %% tags=["nbval-check-output"]
split = (1 - s) * (A @ value) + s * (P[8] @ value)
print("mixing the outputs is mixing the attentions:", torch.allclose(T @ value, split))
line = torch.arange(3.0).double()
step = line - line[:, None]  # delta along one axis, [query, key]
over_columns = (v_pos[8, 0] * step + v_pos[8, 2] * step**2).softmax(-1)
over_rows = (v_pos[8, 1] * step + v_pos[8, 2] * step**2).softmax(-1)
product = torch.einsum("ij,kl->ikjl", over_rows, over_columns).reshape(9, 9)
print("P is a product over rows and columns:", torch.allclose(product, P[8]))

# %% [markdown]
# So the content half can use the same fused kernel as any transformer, and the position half takes $2 \cdot 14$ products per number in place of $14^2$ on the paper's grid.
#
# The distance last. On a grid of two by two, attention that is the same to all patches lies at distances 0, 1, 1 and $\sqrt 2$, which is 0.85 on average.


# %% tags=["nbval-check-output"]
def distance_by_hand(attention: torch.Tensor, side: int) -> float:
    row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
    far = torch.hypot(*(1.0 * (part[None] - part[:, None]) for part in (column, row)))
    return (attention * far).sum(-1).mean().item()


for side in (2, 14):
    uniform = torch.full((side**2, side**2), 1 / side**2)
    print(f"{side} x {side} patches, attention to all alike: {distance_by_hand(uniform, side):.3f}")

# %% [markdown]
# ## The same numbers
#
# The library's functions give what the cells above gave.

# %% tags=["nbval-check-output"]
positions = grid_positions(3, 3).double()
torch.testing.assert_close(relative_codes(positions, positions), codes)
torch.testing.assert_close(local_position_weights(9, alpha).double(), v_pos)
torch.testing.assert_close(position_attention(v_pos, codes), P)
print("codes, v_pos and P of nine heads: the same")

# %% [markdown]
# `GPSA` is the whole layer. Here it is held to the equations, written out for all heads, with random weights and gates.

# %% tags=["nbval-check-output"]
from recipes_lib.models.gpsa import GPSA

torch.manual_seed(0)
layer = GPSA(36, 9).double()
with torch.no_grad():
    for weight in (layer.qk.weight, layer.v.weight, layer.gating_param):
        weight.normal_()
x = torch.randn(2, 9, 36).double()  # two images of nine patches
q, k = layer.qk(x).view(2, 9, 2, 9, 4).unbind(2)  # [image, patch, head, 4]
content = torch.einsum("bihd,bjhd->bhij", q, k).div(2).softmax(-1)
gate = layer.gating_param.sigmoid()[:, None, None]
whole = (1 - gate) * content + gate * P
mixed = torch.einsum("bhij,bjhd->bihd", whole, layer.v(x).view(2, 9, 9, 4))
torch.testing.assert_close(layer(x, grid=(3, 3)), layer.proj(mixed.flatten(2)))
torch.testing.assert_close(layer.attention_map(x, (3, 3)), whole)
print("GPSA, output and attention: the same")

# %% [markdown]
# With the gate open the layer is a convolution of the patches, up to the border. With the gate closed it is plain self-attention, and queries and keys alone decide.
# An untrained ConViT on the paper's grid shows how far each of its blocks looks, and the library's measure also reads a plain Vision Transformer:

# %% tags=["nbval-check-output"]
from recipes_lib.evaluation.locality import non_localities, uniform_non_locality
from recipes_lib.models.convit import ConViTConfig, build

torch.manual_seed(0)
images = torch.rand(4, 3, 14, 14)
far = {}
for name, layers in {"ConViT": 2, "ViT": 0}.items():
    network = build(ConViTConfig(arch="convit_pico", patch_size=1, gpsa_layers=layers), image_size=14)
    far[name] = non_localities(network, [images]).mean(1)  # over the heads
    print(f"{name:7}", [f"block {block}: {value:.1f}" for block, value in enumerate(far[name], 1)])
print(f"attention to all alike: {uniform_non_locality((14, 14)):.1f}")

# %% [markdown]
# The blocks with GPSA begin near, but not as near as their positions alone: the gate leaves a good quarter of the attention to the content, which at the start looks everywhere.
# All other blocks begin near the value of attention to all alike.
#
# Read the source: the layer is `recipes_lib.models.gpsa.GPSA` in
# [gpsa.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/models/gpsa.py), the network `recipes_lib.models.convit.ConViT` in
# [convit.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/models/convit.py), and {eq}`convit-distance` is
# `recipes_lib.evaluation.locality.non_locality` in
# [locality.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/evaluation/locality.py).
