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
# # Neural Attentive Circuits
#
# *A network of many small modules that share their weights. A code tells a module what to compute, and a signature whom to listen to. Modules that are not needed can be
# left out, and then they cost nothing.*
#
# Paper: {cite:t}`weiss2022neural`. Implementation: `recipes_lib/models/nac/`, a backbone that other recipes take too, and `recipes_lib/recipes/nac/`.
#
# You need first: {doc}`what_is_ssl`, some PyTorch, and attention. The training here is supervised.

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

notebook.start("nac")

# %% [markdown]
# ## The question
#
# A trained network usually runs whole, or not at all. Could it run in part, in a hurry with a few of its parts and with more of them when there is time? This needs parts that can work
# without each other. A *Neural Attentive Circuit* (NAC) is made of such parts: modules that exchange messages along a graph. Below, one of 16 modules learns digits for twelve
# hundred steps, about half a minute.

# %% tags=["hide-input"]
import json
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch

from recipes_lib import plots
from recipes_lib.config import override
from recipes_lib.recipes.nac import recipe as nac_recipe

toy = nac_recipe.PRESETS["toy"]
place = Path(mkdtemp())
data = nac_recipe.RECIPE.load(toy, print)

# %%
result = nac_recipe.RECIPE.run(toy, place / "toy")
report = result.report
print(report["scores"])
print({name: round(value, 2) for name, value in report["diagnostics"].items()})

# %% mystnb={"figure": {"name": "fig-nac-question", "caption": "The toy run. Left: test images. Middle: training accuracy, mean of 25 steps. Right: test accuracy if only so many modules run, those with the strongest links, without any further training."}, "image": {"alt": "Left: twelve small pictures of digits. Middle: training accuracy rises from a tenth over twelve hundred steps. Right: four points of test accuracy at 16, 8, 4 and 2 modules."}} tags=["hide-input"]
lines = (place / "toy" / "metrics.jsonl").read_text().splitlines()
steps = [json.loads(line) for line in lines]
figure, axes = plots.panels(3, columns=3, height=2.5)
plots.image_grid(axes[0], data.test.images[:12], columns=4)
recent = torch.tensor([line["accuracy"] for line in steps]).unfold(0, 25, 1).mean(1)
at = range(25, len(steps) + 1)
plots.curve(axes[1], at, {"circuit": recent.numpy()}, ylabel="training accuracy")
axes[1].set_xticks([0, 600, 1200])
numbers = report["diagnostics"]
kept = [numbers[f"kept_{share}"] for share in ("eighth", "quarter", "half")]
kept.append(report["scores"]["accuracy"]["method"])
axes[2].plot((2, 4, 8, 16), kept, **plots.style(0))
axes[2].set(xlabel="modules that run", ylabel="test accuracy", ylim=(0, 1))
plt.show()

# %% [markdown]
# The run is short, and its accuracy is far from what it would become. But the right panel already shows the idea: most modules can be switched off, and the rest go on
# working. Is that a property of the circuit, or of its training? And does a circuit keep the paper's other promises, to adapt from few labels and to stand damaged images?

# %% [markdown]
# :::{claims} nac
# :::

# %% [markdown]
# ## The method in one picture

# %% tags=["hide-input"]
from recipes_lib import diagrams
from recipes_lib.diagrams import Box, Image

draws = torch.Generator().manual_seed(0)
squares = torch.randn(8, 3, generator=draws)
squares = squares / squares.norm(dim=1, keepdim=True)
links = (squares @ squares.T - 1).exp()

# %% mystnb={"figure": {"name": "fig-nac-method", "caption": "A circuit. Codes tell modules what to compute, signatures whom to listen to. Modules read the image, exchange messages a few times, and are read by an output module."}, "image": {"alt": "Diagram. Signatures give the matrix of link probabilities. The image gives tokens. Tokens go into the read-in, then messages are exchanged along the links, then an output module reads. Codes go into all three."}} tags=["hide-input"]
nodes = {
    "image": Image(0, 0.4, data.test.images[0], "image"),
    "in": Box(1.2, 0.4, "read-in:\nmodules read\nthe patches"),
    "messages": Box(2.4, 0.4, "messages\nalong links,\nseveral times"),
    "out": Box(3.5, 0.4, "read-out"),
    "codes": Box(1.2, 1.9, "codes $c$"),
    "links": Image(2.4, 1.9, links.expand(3, 8, 8), "links $p$"),
    "signatures": Box(3.5, 1.9, "signatures $s$"),
}
ways = "image>in, in>messages, messages>out, codes>in, codes>messages, "
ways += "signatures>links, links>messages"
_, ax = plt.subplots(figsize=(plots.WIDTH, 3.4))
diagrams.draw(ax, nodes, [tuple(way.split(">")) for way in ways.split(", ")])
plt.show()

# %% [markdown]
# ## The equations
#
# A module $u$ has a state $h_u$, a code $c_u$ and a signature $s_u$. All linear maps of all modules share their weights. The code scales their inputs:
#
# $$y = W\, (x \odot \sigma(c_u)) + b, \qquad \sigma(c) = 1 + g \cdot \operatorname{LayerNorm}(M c)$$ (nac-code)
#
# Two modules are linked with a probability that falls with the angle between their signatures. $\varepsilon$ is the bandwidth:
#
# $$p_{uv} = \exp\left(-\frac{1 - \cos(s_u, s_v)}{\varepsilon}\right)$$ (nac-link)
#
# In training, the strength $C_{uv}$ of a link is a soft draw, one for each image, so that gradients reach the signatures. Afterwards it is $p_{uv}$. With uniform $U$ and temperature $\tau$:
#
# $$C_{uv} = \operatorname{sigmoid}\left(\frac{\operatorname{logit} p_{uv} + \operatorname{logit} U_{uv}}{\tau}\right)$$ (nac-draw)
#
# The attention of module $u$ to module $v$ is weighted by the link, so that modules without a link do not hear each other:
#
# $$a_{uv} = \frac{C_{uv}\, e^{q_u \cdot k_v / \sqrt d}}{\sum_{v'} C_{uv'}\, e^{q_u \cdot k_{v'} / \sqrt d}}$$ (nac-attention)
#
# | symbol | shape | in the code | meaning |
# |---|---|---|---|
# | $c$ | $[\text{modules}, d]$ | `circuit.codes` | what a module computes; also its first state; learned |
# | $s$ | $[\text{modules}, d_s]$ | `circuit.signatures` | whom it listens to; learned |
# | $\sigma$, $g$ | $[\text{modules}, \text{inputs}]$ | `scales`, `gain` | factors of the inputs, and how strong they are |
# | $p$, $C$ | $[\text{modules}, \text{modules}]$ | `log_links` | probability of a link, and its strength |
# | $\varepsilon$, $\tau$ | | `model.bandwidth`, `model.temperature` | reach of the links, and softness of the draws |
#
# Other chapters use $\tau$ for the temperature of a loss and $\sigma$ for the sigmoid ({doc}`/book/notation`).

# %% [markdown]
# ## By hand
#
# Four modules with signatures in the plane. Module 0 looks along the first axis, and module 3 the opposite way.

# %%
signatures = torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 0]]).double()
unit = signatures / signatures.norm(dim=1, keepdim=True)
cosine = unit @ unit.T
for bandwidth in (1.0, 0.5):
    p = ((cosine - 1) / bandwidth).exp()
    print(f"bandwidth {bandwidth}: links of module 0", p[0].numpy().round(3))

# %% [markdown]
# Opposite signatures still have a link of probability $e^{-2 / \varepsilon}$, which is 0.135 with the paper's bandwidth of 1. A sparse graph needs a smaller one. Now the attention of module 0, with three senders of probability
# 0.3, 0.6 and 0.9 and three draws:

# %%
p = torch.tensor([0.3, 0.6, 0.9]).double()
uniform = torch.tensor([0.2, 0.5, 0.8]).double()
C = ((p.logit() + uniform.logit()) / 0.5).sigmoid()
scores = torch.tensor([0.5, -0.25, 1.0]).double()
for name, strength in {"no links": torch.ones(3), "mean": p, "drawn": C}.items():
    weights = strength * scores.exp()
    print(f"{name:9}", (weights / weights.sum()).numpy().round(3))

# %% [markdown]
# A link of strength 0 removes its sender: the other senders' weights are then those of a network without it. So leaving a module out is the same as cutting all its links, with the difference that a module
# which is left out need not be computed.
#
# A code is the other half. Two modules with the same input and different codes give different outputs, though they share $W$:

# %%
generator = torch.Generator().manual_seed(1)
x, W = (torch.randn(size, generator=generator).double() for size in ((3,), (2, 3)))
M = torch.randn(3, 2, generator=generator).double()
codes = torch.randn(2, 2, generator=generator).double()
scaled = torch.nn.functional.layer_norm(codes @ M.T, (3,))
for gain in (0.0, 0.1, 1.0):
    y = (x * (1 + gain * scaled)) @ W.T
    rows = y.round(decimals=2).tolist()
    print(f"gain {gain}: module 0 {rows[0]}, module 1 {rows[1]}")

# %% [markdown]
# ## The same numbers
#
# The library computes links and draws in logarithms, where small probabilities do not vanish.

# %% tags=["nbval-check-output"]
from recipes_lib.models.nac import links as nac_links

found = nac_links.link_probabilities(signatures, bandwidth=0.5)
torch.testing.assert_close(found, ((cosine - 1) / 0.5).exp())
drawn = nac_links.draw_log_links(p.log(), uniform, temperature=0.5)
torch.testing.assert_close(drawn.exp(), C)
print("links and draws: the same")

# %% [markdown]
# A whole circuit, pruned in two ways: once by leaving 12 of 16 modules out, and once by silencing them.

# %%
from recipes_lib.models.nac.network import ARCHS, NeuralAttentiveCircuit
from recipes_lib.models.nac.tokens import ImageTokens


class Silenced(NeuralAttentiveCircuit):
    """Computes all modules and cuts the links to all but four."""

    def log_links(self, circuit):
        found = super().log_links(circuit)
        index = torch.arange(len(found))
        gone = (index >= 4) & (index < 16)  # number 16 is the output module
        alone = torch.eye(len(found), dtype=torch.bool)
        return found.masked_fill(gone & ~alone, -torch.inf)


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
tokens = ImageTokens(16, 4, 32, stem="patch")
whole = Silenced(ARCHS["nac_pico"], tokens).eval()
images = torch.randn(2, 3, 16, 16)
kept = torch.arange(4)
close = {"rtol": 1e-4, "atol": 1e-5}
with torch.no_grad():
    torch.testing.assert_close(whole(images, kept=kept), whole(images), **close)
print("four modules alone, and all with twelve silenced: the same")

# %% [markdown]
# Read the source: links are in
# [links.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/models/nac/links.py), codes in
# [modulation.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/models/nac/modulation.py), and the circuit in
# [network.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/recipes_lib/models/nac/network.py).
#
# ### Graphs
#
# The paper adds a *graph prior* to the loss: the mean square of the difference between the links and those of a wanted graph, after modules and nodes have been matched. Here signatures are pulled to two such graphs, without any images.

# %% tags=["hide-input"]
from recipes_lib.recipes.nac import priors

wanted = {
    "four clusters": priors.planted_partition(32, 4),
    "small world": priors.watts_strogatz(32, 8),
}
reached = {}
for name, target in wanted.items():
    generator = torch.Generator().manual_seed(0)
    made = priors.realise(32, 8, target, bandwidth=0.4, generator=generator, steps=200)
    reached[name] = nac_links.link_probabilities(made, bandwidth=0.4)

# %% mystnb={"figure": {"name": "fig-nac-graphs", "caption": "Link probabilities of 32 modules: two targets, and what signatures of eight dimensions reach at bandwidth 0.4."}, "image": {"alt": "Four square maps. The clusters appear as four bright blocks on the diagonal, the small world as a bright band along it. What signatures reach looks nearly the same as the targets."}} tags=["hide-input"]
figure, axes = plots.panels(4, columns=4, height=2.1)
maps = [each for name in wanted for each in (wanted[name], reached[name])]
titles = [text for name in wanted for text in (name, "reached")]
for ax, matrix, title in zip(axes, maps, titles, strict=True):
    ax.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    ax.set_title(title, fontsize="small")
    ax.set_xticks([], [])
    ax.set_yticks([], [])
plt.show()

# %% [markdown]
# With ten clusters and a bandwidth of 1, as in some of the paper's settings, such a target cannot be reached: unlike directions cannot be unlike enough. The recipe says so before it starts.

# %% tags=["nbval-check-output"]
from recipes_lib.errors import ConfigError

try:
    priors.check_reachable(priors.planted_partition(320, 10), bandwidth=1.0, groups=10)
except ConfigError as error:
    print(error)

# %% [markdown]
# ## Cook
#
# The toy above is too short to say anything about pruning: an undertrained network may even become better when modules are dropped. `recipes verify nac` trains longer. It
# takes scans of the digits 0 to 5, 8 x 8 pixels each, a circuit of 32 modules, and 2,500 steps (about a minute). Four networks do this:
#
# - **circuit**: with *module dropout*, which is ours and not the paper's: four of five steps run only a random number of random modules, from an eighth to all.
# - **no dropout**: the same circuit with all modules in every step.
# - **dense**: the same network without codes ($g = 0$) and without links ($p = 1$), with module dropout.
# - **Perceiver IO** {cite:p}`jaegle2022perceiver`, the paper's own yardstick: as many latents, layers and weights, with the same dropout of latents.

# %% tags=["hide-input"]
from recipes_lib.data import embedded

stored = json.loads(embedded.path("claims/nac.json").read_text())["figures"]


def seeds_of(arm: str, *path: str) -> list[float]:
    """One number of each seed's report."""
    found = []
    for report in stored[arm].values():
        for key in path:
            report = report[key]
        found.append(report)
    return found


# %% tags=["hide-input"]
arms = {
    "circuit": "circuit",
    "no dropout": "whole",
    "dense": "dense",
    "Perceiver IO": "perceiver",
}
for name, arm in arms.items():
    print(f"{name:13}", [round(value, 3) for value in seeds_of(arm, "accuracy")])

# %% [markdown]
# These are the accuracies of the whole networks, one per seed. All of them have learned the task, so that pruning can be judged.
#
# ### Fewer modules
#
# Which modules may go? *Greedy elimination* removes the module whose loss on validation scans hurts least, again and again. *Single removal* looks at the whole circuit only, of which removing one module changes next to nothing. *Links* ranks
# modules by the sum of their links, without any data. {numref}`fig-nac-pruned` compares them with random choices.

# %% tags=["hide-input"]
SIZES = ("4", "8", "16")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_size(ax: plt.Axes, arm: str, ranking: str, label: str, index: int) -> None:
    found = [mean(seeds_of(arm, "pruned", ranking, size)) for size in SIZES]
    found.append(mean(seeds_of(arm, "accuracy")))
    ax.plot(range(4), found, label=label, **plots.style(index))
    ax.set_xticks(range(4), [*SIZES, "32"])
    ax.set(xlabel="modules that run", ylabel="accuracy")


# %% mystnb={"figure": {"name": "fig-nac-pruned", "caption": "Test accuracy of pruned networks, mean over seeds. Left: the circuit, by ranking. Right: four networks, modules chosen at random."}, "image": {"alt": "Two panels of test accuracy over 4, 8, 16 and 32 modules. Left: one line per ranking. Right: one line per network."}} tags=["hide-input"]
figure, (left, right) = plots.panels(2, height=3.0)
rankings = {"greedy": "greedy", "links": "links", "single removal": "single"}
for index, (name, ranking) in enumerate({**rankings, "random": "random"}.items()):
    by_size(left, "circuit", ranking, name, index)
for index, (name, arm) in enumerate(arms.items()):
    by_size(right, arm, "random", name, index)
for ax in (left, right):
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# A pruned circuit runs only what is left. The next figure has the time that this saves beside the operations that it saves. Work outside the modules stays, and small tensors
# are not worth a kernel's start, so the measured gain is smaller.

# %% mystnb={"figure": {"name": "fig-nac-speed", "caption": "The circuit with 16, 8 and 4 of 32 modules, by greedy elimination: how many times fewer operations, and how many times faster on one core, 256 images at a time; one point per seed."}, "image": {"alt": "Bars in pairs for 16, 8 and 4 modules: operations counted, and speed measured, which grows more slowly."}} tags=["hide-input"]
figure, (ax,) = plots.panels(1, columns=1, height=2.7)
gains = {}
for size in reversed(SIZES):
    gains[f"{size},\ncounted"] = seeds_of("circuit", "operations", size)
    gains[f"{size},\nmeasured"] = seeds_of("circuit", "speed", size)
plots.bars(ax, gains, ylabel="times the whole")
plt.show()

# %% [markdown]
# ### Few labels, damaged images
#
# The trained networks now learn the digits 6 to 9 from one, five or ten scans of each. Either the new head alone moves, or codes and signatures too (of a Perceiver IO: its latents and
# queries), or everything. And the digits 0 to 5 are scored with damage that training did not show.

# %% mystnb={"figure": {"name": "fig-nac-transfer", "caption": "Left: accuracy on four new digits after adaptation to five scans of each. Middle: the same with one, five and ten scans, if everything moves, mean over seeds. Right: accuracy on damaged scans, mean over three kinds. One point per seed in the bars."}, "image": {"alt": "Left: bars of the circuit's accuracy if the head, codes and signatures, or all moves. Middle: lines of four networks over the number of scans. Right: bars of four networks on damaged scans."}} tags=["hide-input"]
figure, axes = plots.panels(3, columns=3, height=2.8)
moves = {"head": "head", "codes": "circuit", "all": "all"}
found = {name: seeds_of("circuit", "adapted", "5", key) for name, key in moves.items()}
plots.bars(axes[0], found, ylabel="accuracy on new digits")
for index, (name, arm) in enumerate(arms.items()):
    line = [mean(seeds_of(arm, "adapted", shots, "all")) for shots in ("1", "5", "10")]
    axes[1].plot(range(3), line, label=name, **plots.style(index))
axes[1].set_xticks(range(3), ["1", "5", "10"])
axes[1].set(xlabel="scans of each digit", ylabel="accuracy on new digits")
axes[1].legend(fontsize=7)
short = {"circuit": "circuit", "dense": "dense", "Perceiver": "perceiver"}
damaged = {name: seeds_of(arm, "damaged", "mean") for name, arm in short.items()}
plots.bars(axes[2], damaged, ylabel="accuracy on damaged scans")
plt.show()

# %% [markdown]
# ### Other kinds of data
#
# Nothing in a circuit knows of images but its tokens. With other tokens the same modules learn solids from points, which of four words hides in a string of bytes, and the value of expressions such as
# `[MAX 2 [MIN 7 5 ] 3 ]`. And a sentence can *generate* the codes and signatures: then each question about two digits has a circuit of its own.

# %% mystnb={"figure": {"name": "fig-nac-kinds", "caption": "Left: test accuracy on three other kinds of data; the lines are the share of the most frequent class. Right: how many bits the use of one module tells about a true factor, and what chance gives. One point per seed."}, "image": {"alt": "Left: bars in pairs, circuit and Perceiver IO, for points, letters and symbols, beside the marks of chance. Right: bars in pairs, told and chance, for the digit, the sentence and the left digit."}} tags=["hide-input"]
figure, (left, right) = plots.panels(2, height=3.0)
kinds = {"points": "clouds", "letters": "letters", "symbols": "symbols"}
found = {}
for place_of, (name, arm) in enumerate(kinds.items()):
    found[f"{name},\nNAC"] = seeds_of(arm, "circuit")
    found[f"{name},\nPIO"] = seeds_of(arm, "perceiver")
    chance = mean(seeds_of(arm, "chance"))
    left.plot([2 * place_of - 0.5, 2 * place_of + 1.5], [chance] * 2, color="#888888")
plots.bars(left, found, ylabel="accuracy")
factors = {"digit": ("circuit", "use")}
factors |= {name: ("questions", "use", name) for name in ("sentence", "left")}
told = {}
for name, path in factors.items():
    told[name] = seeds_of(*path, "bits")
    told[f"{name},\nchance"] = seeds_of(*path, "chance")
plots.bars(right, told, ylabel="bits")
for ax in (left, right):
    ax.tick_params(axis="x", labelsize=7)
plt.show()

# %% [markdown]
# ## Knobs
#
# The bandwidth decides how sparse a graph can be, and what a random start looks like.

# %% mystnb={"figure": {"name": "fig-nac-knobs", "caption": "Probabilities of the links between 32 random signatures of eight dimensions at three bandwidths. The dotted line is the least that opposite signatures can have."}, "image": {"alt": "Three histograms. At bandwidth 2 all probabilities lie above 0.4, at 1 most lie between 0.2 and 0.7, at 0.3 most lie below 0.2."}} tags=["hide-input"]
figure, axes = plots.panels(3, columns=3, height=2.3)
torch.manual_seed(0)
random = torch.randn(32, 8)
others = ~torch.eye(32, dtype=torch.bool)
for ax, bandwidth in zip(axes, (2.0, 1.0, 0.3), strict=True):
    p = nac_links.link_probabilities(random, bandwidth=bandwidth)[others]
    ax.hist(p.numpy(), bins=25, range=(0, 1), color=plots.PALETTE[0])
    ax.axvline(torch.tensor(-2 / bandwidth).exp(), color="#888888", linestyle=":")
    ax.set_title(f"bandwidth {bandwidth:g}", fontsize="medium")
    ax.set_xlabel("probability of a link")
plt.show()

# %% [markdown]
# In a live kernel you can train a circuit for 200 steps.

# %% tags=["remove-output", "hide-input"]
from ipywidgets import FloatLogSlider, FloatSlider, interact_manual


def try_out(bandwidth: float, dropout: float) -> None:
    changes = {"model.bandwidth": bandwidth, "model.module_dropout": dropout}
    changes |= {"train.steps": 200, "eval.baselines": "none"}
    run = nac_recipe.RECIPE.run(override(toy, changes), Path(mkdtemp()) / "run")
    print(run.report["scores"], run.report["diagnostics"])


interact_manual(
    try_out,
    bandwidth=FloatLogSlider(1.0, min=-1, max=1),
    dropout=FloatSlider(0.8, min=0.0, max=1.0),
)

# %% [markdown]
# ## Break it
#
# Take module dropout away from the toy, and keep all else. The cell takes about ten seconds, for a third of the toy's steps.

# %%
brief = {"train.steps": 400, "eval.baselines": "none"}
for dropout in (0.8, 0.0):
    changes = {**brief, "model.module_dropout": dropout}
    run = nac_recipe.RECIPE.run(override(toy, changes), place / f"dropout {dropout}")
    whole = run.report["scores"]["accuracy"]["method"]
    eighth = run.report["diagnostics"]["kept_eighth"]
    print(f"dropout {dropout}: all modules {whole:.2f}, an eighth of them {eighth:.2f}")

# %% [markdown]
# The diagnostic is the accuracy of the pruned network beside that of the whole one, after training. The loss in training does not show it.
#
# ### When something is wrong
#
# Masked training hides patches from a network, and a circuit reads all of them. It is refused:

# %% tags=["nbval-check-output"]
from recipes_lib.recipes.families import recipe as families

try:
    changes = {"model.arch": "nac_pico", "model.stem": "patch"}
    changes |= {"model.pool": "cls"}
    override(families.PRESETS["mae_toy"], changes).validate()
except ConfigError as error:
    print(error)

# %% [markdown]
# ## Verdicts
#
# What follows was computed by `recipes verify nac` on three seeds per arm, and is compared with margins fixed before. Each row of the figure is a claim. It holds where the mean lies in the shaded part and no seed points the
# other way.

# %% mystnb={"image": {"alt": "Fourteen claims, one for each row, by the difference from the control in margins, three seeds each. The same numbers stand in the table below the figure."}} tags=["nbval-check-output"]
from recipes_lib import claims

claims.verdicts("nac")

# %% [markdown]
# The promise of fewer modules holds: an eighth of them loses one to two points, with a ninth of the operations, and is about four times as fast. But this is not the circuit's doing alone. The dense network and the Perceiver IO, with the same dropout,
# can be pruned almost as far ({numref}`fig-nac-pruned`, right). Without module dropout the circuit loses ten points and more. The dropout is what matters most, and it is ours.
#
# Three claims do not hold. With few labels the circuit is ahead of the Perceiver IO on every seed, by four points on average, which is below the margin of five; against the dense network it has no lead at all. On damaged scans it is not better than the
# Perceiver IO. What codes and links add beyond a dense network with the same training is not visible here.
#
# Two of the rows need care. Six digits are an easy task, which may not need 32 modules. And the two claims on the use of modules compare it with permuted classes and sentences. The use depends on the input in an untrained circuit too, most of all where a sentence
# generates it; so they show that use carries information, and not that training put it there.
#
# These verdicts rest on circuits of 32 modules and 32 features, on scans of 8 x 8 pixels and drawn toys. The paper's own experiments, on ImageNet, Tiny-ImageNet-R, CIFAR, CUB and NLVR2, are not tested here. That is not to say that they do not reproduce.
#
# ### The paper's numbers beside ours
#
# The paper's numbers are percentage points, or times, of its abstract. Compare the direction of the difference between the two arms, not the numbers.

# %% tags=["hide-input"]
claims.against_paper("nac")

# %% [markdown]
# ## Scale it up
#
# ```sh
# recipes plan nac --preset tiny_imagenet --nodes 1 --gpus 8
# torchrun --nproc-per-node 8 -m recipes_lib run nac \
#     --preset tiny_imagenet --data.root tiny-imagenet-200
# torchrun --nproc-per-node 8 -m recipes_lib run nac \
#     --preset tiny_imagenet_perceiver --data.root tiny-imagenet-200
# recipes run families --preset simclr_toy --model.arch nac_pico \
#     --model.stem patch --model.patch-size 8
# recipes run nac --preset laptop --data.root CIFAR10
# ```
#
# The first command starts nothing and shows the cost. The fourth is {term}`SimCLR` on a circuit: `model.arch nac_*` is an option of every recipe with a choice of backbones. A circuit works outside the book
# too: `from recipes_lib.models.nac.network import NeuralAttentiveCircuit`. The loaders of `recipes_lib.recipes.nac.layouts` read CUB, NLVR2, ListOps, IMDb and ModelNet40 as their archives unpack.

# %%
notebook.plan("nac", "tiny_imagenet", gpus=8)

# %% [markdown]
# The hyper-parameters of the larger presets beside those of the toy:

# %% tags=["hide-input"]
fields = {
    "train": ["batch_size", "epochs", "steps"],
    "data": ["repeats"],
    "views": ["rand_augment", "erase"],
    "loss": ["label_smoothing", "mixup", "cutmix", "graph", "prior"],
    "optim": ["lr", "lr_start", "lr_final", "warmup_epochs", "weight_decay"],
    "model": ["arch", "bandwidth", "truncation", "drop_path", "module_dropout"],
}
larger = {name: nac_recipe.PRESETS[name] for name in ("tiny_imagenet", "imagenet")}
notebook.settings({"toy": toy, **larger}, fields)

# %% [markdown]
# Sizes, schedule and augmentation are those of the configs that the authors released. Patch size, the batch of the ImageNet preset and module dropout are ours, and the bandwidth of `tiny_imagenet` is smaller than theirs, so that its prior can be reached.
# Settings of the paper for CIFAR, CUB, NLVR2, ModelNet40, ListOps and texts were not found, so there are no presets for them.
#
# **Expected score.** The authors' repository reports 60.7 % on Tiny-ImageNet with a planted partition, and 19.4 % on Tiny-ImageNet-R. We have not run these presets.

# %% [markdown]
# ## Exercises
#
# **1. Predict, then run** (5 min, easy). All signatures are equal. What kind of network is left? You are right if the printed probabilities tell you.

# %% tags=["solution", "hide-cell"]
# Solution 1
equal = torch.ones(4, 2)
p = nac_links.link_probabilities(equal, bandwidth=1.0)
print("links:", p.unique().tolist(), "- plain attention of all modules to all")
assert torch.allclose(p, torch.ones(4, 4))

# %% [markdown]
# **2. Compute** (10 min, easy). Clusters should have links of probability 0.05 to each other. Which bandwidth is needed for two clusters, and which for ten? You are right if the numbers are 0.668 and 0.371.

# %% tags=["solution", "hide-cell"]
# Solution 2
from math import log

for groups in (2, 10):
    farthest = 1 + 1 / (groups - 1)  # mean distance of directions that avoid each other
    print(f"{groups} clusters: at most {farthest / -log(0.05):.3f}")

# %% [markdown]
# **3. Count** (15 min, medium). Which share of a circuit's operations grows with the square of the number of modules? Use `operations` of `recipes_lib.models.nac.network` on `nac_640` with 784 tokens, at all modules and at an eighth. You are right if an eighth has
# about a tenth of the operations.

# %% tags=["solution", "hide-cell"]
# Solution 3
from recipes_lib.models.nac.network import operations

shape = ARCHS["nac_640"]
counts = {n: operations(shape, n, tokens=784, token_width=448) for n in (640, 80)}
square = 2 * shape.depth * 2 * 640**2 * shape.heads * shape.head_width
print(f"an eighth of the modules: 1 / {counts[640] / counts[80]:.1f} of the operations;")
print(f"{square / counts[640]:.0%} of the whole grow with the square")

# %% [markdown]
# **4. Find the bug** (15 min, medium). Somebody prunes a network by setting the links of most modules to 0, and measures no gain in speed. Why not? And why does one module then give NaN, if its own link was cut too?

# %% tags=["solution", "hide-cell"]
# Solution 4
print("silenced modules are still computed; leave them out instead (circuit.prune)")
cut = torch.full((1, 3), -torch.inf)
print("a softmax over links of strength 0 alone:", cut.softmax(1).tolist())

# %% [markdown]
# **5. A small research question** (two hours, hard). Does the graph matter? Train the toy with `--loss.graph planted_partition --model.bandwidth 0.4 --loss.clusters 4` and with `erdos_renyi`, on a validation split (`--data.holdout 0.2`), and compare the
# accuracy at an eighth of the modules. You are on the right way if you can say whether the difference is larger than the spread of your seeds.

# %% [markdown]
# ## Close
#
# Others met these pitfalls:
#
# - Links drawn once per batch and not per image make all images agree on a graph, and the gradient noisy.
# - Drawn links in evaluation make the score random. Here their mean strength is used.
# - Ranking modules by removing each of them once measures next to nothing, since the others stand in for it.
# - A dense network that is trained with module dropout can be pruned too. Without this control every gain would seem to be the circuit's.
# - An undertrained network can become better when modules are dropped, which says nothing about pruning.
#
# Read on:
#
# - {cite:t}`weiss2022neural` is the paper.
# - {cite:t}`jaegle2022perceiver` is its yardstick, and the ancestor of its read-in.
# - {doc}`convit` builds another assumption into a backbone; {doc}`what_is_ssl` explains the yardsticks.
#
# This chapter as a script: [nac.py](https://github.com/ssl-cookbook/ssl-cookbook/blob/main/notebooks/nac.py).
