# SPDX-License-Identifier: Apache-2.0
"""Writes a study's results: one HTML page, figures as PNG files, and tables as CSV files."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes_lib import plots
from recipes_lib.evaluation import page as layout
from recipes_lib.evaluation.csv_tables import Rows, nested_rows
from recipes_lib.evaluation.page import Picture
from recipes_lib.factors.gaps import CANONICAL, title
from recipes_lib.recipes.natural_variation import measure
from recipes_lib.recipes.natural_variation.sources import Source

_HOW = (
    "A gap is a model's canonical accuracy less its accuracy with a factor varied, on the same instances; classes count "
    "equally, and intervals come from resampling instances. A star marks p < .05 after Holm's correction over all models and "
    "factors. The worst case counts an instance only if it is right for every value that was drawn. Question: Ibrahim et al., "
    "The Robustness Limits of SoTA Vision Models to Natural Variation, TMLR 2023, arXiv 2210.13604."
)
_SHOWN = 6  # instances on the contact sheet


def write(plain: Mapping[str, Any], source: Source, out: Path) -> Path:
    """Writes tables, figures and ``index.html`` into the folder ``out``; returns the page. ``plain``: all results."""
    with rc_context(plots.STYLE):
        shown = [_contact_sheet(source), _gaps(plain)]
        if "diversity" in plain:
            shown.append(_diversity(plain))
        if "transfer" in plain or "twins" in plain:
            shown.append(_transfer(plain))
    return layout.write(out, _page(plain, shown), tables(plain), shown)


def tables(plain: Mapping[str, Any]) -> dict[str, Rows]:
    """The rows of each CSV file, by its name."""
    models = plain["models"]
    found: dict[str, Rows] = {
        "models": nested_rows(
            {
                name: {key: value for key, value in row.items() if not isinstance(value, (dict, list))}
                for name, row in models.items()
            },
            ("model",),
        ),
        "gaps": nested_rows({name: row["gaps"] for name, row in models.items()}, ("model", "varied")),
    }
    pairs = {name: row["interactions"] for name, row in models.items() if row["interactions"]}
    if pairs:
        found["interactions"] = nested_rows(pairs, ("model", "pair"))
    if "diversity" in plain:
        found["diversity"] = nested_rows(plain["diversity"], ("model", "factor", "percent_of_instances"))
    for name in ("transfer", "twins"):
        if name in plain:
            draws = {
                model: {
                    factor: {str(place): draw for place, draw in enumerate(row["draws"])}
                    for factor, row in rows.items()
                }
                for model, rows in plain[name].items()
            }
            found[name] = nested_rows(draws, ("model", "factor", "draw"))
    return found


def gaps(ax: Axes, plain: Mapping[str, Any], *, pairs: bool = False) -> Axes:
    """Draws each single factor's gap, or each pair's, with its interval; the largest mean gap is on top."""
    models = plain["models"]
    names = [name for name in next(iter(models.values()))["gaps"] if ("+" in name) == pairs]
    cells = {
        key: np.array([[row["gaps"][name][key] for name in names] for row in models.values()])
        for key in ("gap", "low", "high")
    }
    order = np.argsort(cells["gap"].mean(axis=0), kind="stable")
    layout.intervals(ax, list(models), cells["gap"][:, order], cells["low"][:, order], cells["high"][:, order], none=0)
    if len(models) > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)  # gaps reach into every corner
    stars = [any(row["gaps"][names[place]]["holm"] < 0.05 for row in models.values()) for place in order]
    labels = [f"{'* ' if star else ''}{layout.shown(names[place])}" for place, star in zip(order, stars, strict=True)]
    return layout.named_rows(ax, labels, xlabel="gap: canonical accuracy less varied accuracy")


def diversity(ax: Axes, plain: Mapping[str, Any], factor: str) -> Axes:
    """Draws accuracy on varied test images by the share of training instances that were seen varying."""
    for place, (model, rows) in enumerate(plain["diversity"].items()):
        cells = rows[factor]
        shares = [int(share) for share in cells]
        look = plots.style(place % len(plots.PALETTE))
        ax.plot(shares, [cell["varied"] for cell in cells.values()], **look, markersize=5, label=layout.shown(model))
        ax.plot(shares, [cell["canonical"] for cell in cells.values()], color=look["color"], linestyle=":", linewidth=1)
    ax.set_xlabel("training instances seen varying (%)")
    ax.set_ylabel("accuracy")
    ax.set_title(layout.shown(factor))
    return ax


def transfer(ax: Axes, plain: Mapping[str, Any], factor: str) -> Axes:
    """Draws every draw's accuracy on classes seen varying and on others, of the first model in which they were measured."""
    columns: dict[str, list[float]] = {}
    if "transfer" in plain:
        draws = next(iter(plain["transfer"].values()))[factor]["draws"]
        columns |= {
            "seen varying": [draw["seen"] for draw in draws],
            "not seen varying": [draw["unseen"] for draw in draws],
        }
        columns["the same, before"] = [draw["unseen_before"] for draw in draws]
    if "twins" in plain:
        draws = next(iter(plain["twins"].values()))[factor]["draws"]
        columns["not seen, twin was"] = [draw["with_twin"] for draw in draws]
        columns["neither was seen"] = [draw["without"] for draw in draws]
    for place, values in enumerate(columns.values()):
        look = plots.style(place)
        ax.plot(values, np.full(len(values), -place), linestyle="none", **look, markersize=4, alpha=0.7)
        ax.plot([np.mean(values)], [-place], marker="|", markersize=18, color=look["color"])
    ax.set_yticks([-place for place in range(len(columns))], list(columns))
    ax.set_ylim(-len(columns) + 0.4, 0.6)
    ax.set_xlabel(f"accuracy, {layout.shown(factor)} varied (points: draws; bar: mean)")
    return ax


def _contact_sheet(source: Source) -> Picture:
    """Some test instances, one a column: the canonical view on top, then one varied image per factor."""
    first = source.shots("test", CANONICAL)
    chosen = measure.instances_of(first)[0]
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(_SHOWN, len(chosen))).long()]
    views = [view for view in (CANONICAL, *((factor,) for factor in source.factors)) if source.has(view)]
    rows = []
    for view in views:
        shots = source.shots("test", view)
        places = torch.stack([(shots.instances == instance).nonzero()[0, 0] for instance in chosen])
        rows.append(source.images(shots.select(places)))
    figure = Figure(figsize=(plots.WIDTH, plots.WIDTH * len(views) / (len(chosen) + 1.5)), layout="constrained")
    ax, side = figure.add_subplot(), rows[0].shape[-1]
    plots.image_grid(ax, torch.cat(rows).permute(0, 2, 3, 1).numpy(), columns=len(chosen))
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks(
        [(side + 1) * (place + 0.5) for place in range(len(views))], [layout.shown(title(view)) for view in views]
    )
    ax.spines[:].set_visible(False)
    figure.set_facecolor("white")
    alt = f"{len(chosen)} test instances, one a column. Rows: {', '.join(title(view) for view in views)}."
    return layout.picture(
        "images", figure, alt, "Test instances: the canonical view, then one factor varied at a time."
    )


def _gaps(plain: Mapping[str, Any]) -> Picture:
    names = list(next(iter(plain["models"].values()))["gaps"])
    singles, pairs = (sum(("+" in name) == both for name in names) for both in (False, True))
    figure, first = layout.by_row(singles + pairs + (3 if pairs else 0))
    if pairs:
        first.remove()
        first, second = figure.subplots(2, 1, height_ratios=[singles, pairs], sharex=True)
        gaps(second, plain, pairs=True)
        if second.get_legend():
            second.get_legend().remove()
    gaps(first, plain)
    listed = "; ".join(
        f"{model}: " + ", ".join(f"{name} {row['gaps'][name]['gap']:.2f}" for name in row["ranking"])
        for model, row in list(plain["models"].items())[: layout.MOST_ARMS]
    )
    alt = f"Gap of each factor with its interval, the largest first. {listed}."
    return layout.picture(
        "gaps", figure, alt, "Gaps by factor. Lines are intervals; a star: some model's gap is significant."
    )


def _diversity(plain: Mapping[str, Any]) -> Picture:
    factors = list(next(iter(plain["diversity"].values())))
    figure, axes = plots.panels(len(factors), sharey=True)
    for ax, factor in zip(axes, factors, strict=False):
        diversity(ax, plain, factor)
    axes[0].legend()
    model, rows = next(iter(plain["diversity"].items()))
    listed = "; ".join(
        f"{factor}: " + ", ".join(f"{share} % {cell['varied']:.2f}" for share, cell in rows[factor].items())
        for factor in factors
    )
    caption = (
        "Accuracy on varied test images by the share of training instances seen varying; dotted: on canonical images."
    )
    return layout.picture("diversity", figure, f"Accuracy of {model} by share of varying instances. {listed}.", caption)


def _transfer(plain: Mapping[str, Any]) -> Picture:
    rows = next(iter((plain.get("transfer") or plain["twins"]).values()))
    figure, axes = plots.panels(len(rows), columns=1, height=2.4)
    for ax, factor in zip(axes, rows, strict=False):
        transfer(ax, plain, factor)
    listed = "; ".join(
        f"{factor} {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items() if isinstance(value, float))
        for name in ("transfer", "twins")
        if name in plain
        for factor, row in next(iter(plain[name].values())).items()
    )
    return layout.picture(
        "transfer", figure, f"Means over draws. {listed}.", "Accuracy by whether a class was seen varying."
    )


def _page(plain: Mapping[str, Any], shown: Sequence[Picture]) -> str:
    source = plain["source"]
    said = (
        f"Models: {len(plain['models'])}. Classes: {source['classes']}, instances: {source['train_instances']} for training, "
        f"{source['test_instances']} for testing. Chance: {1 / source['classes']:.3f}."
    )
    parts = [
        "<h1>How far does accuracy fall when one factor varies?</h1>",
        f"<p>{html.escape(said)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in plain["notes"]) + "</ul>",
        "<h2>Gaps</h2>",
        _models(plain),
        *(layout.figure(picture) for picture in shown[:2]),
        *_pairs(plain),
    ]
    if "agreement" in plain:
        own = plain["agreement"]
        parts.append(
            f"<p>Mean rank correlation of the gaps over all pairs of models: {own['mean_rank_correlation']:.3f} (p = "
            f"{own['p']:.2g} if factors were shuffled).</p>"
        )
    if len(shown) > 2:
        parts += ["<h2>What has to be seen in training</h2>", *(layout.figure(picture) for picture in shown[2:])]
    parts.append(f"<p class='aside'>{_HOW}</p>")
    return layout.document("Natural variation", parts)


def _models(plain: Mapping[str, Any]) -> str:
    factors = [name for name in next(iter(plain["models"].values()))["gaps"] if "+" not in name]
    rows = []
    for name, row in plain["models"].items():
        cells = [(row["gaps"][factor]["gap"], row["gaps"][factor]["holm"] < 0.05) for factor in factors]
        said = [f"{'*' if star else ''}{gap:.3f}" for gap, star in cells]
        rows.append((name, layout.figured(row["canonical"], 3), *said))
    worst = [
        (name, *(layout.figured(row["gaps"][factor]["worst_case"], 3) for factor in factors))
        for name, row in plain["models"].items()
    ]
    note = "<p class='aside'>Worst case: right for every value that was drawn.</p>"
    return layout.table(("model", "canonical", *factors), rows) + note + layout.table(("model", *factors), worst)


def _pairs(plain: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, pair, layout.figured(row["gaps"][pair]["gap"], 3), f"{cell['accuracy']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]",
         f"{cell['logit']:.2f}")
        for name, row in plain["models"].items()
        for pair, cell in sorted(row["interactions"].items(), key=lambda item: -item[1]["logit"])
    ]  # fmt: skip
    if not rows:
        return []
    note = (
        "<p class='aside'>Interaction: gap of the pair less both single gaps; above 0 is worse than additive. On the scale of "
        "log odds the floor of accuracy does not bound it.</p>"
    )
    return ["<h2>Pairs</h2>", note, layout.table(("model", "pair", "gap", "interaction", "in log odds"), rows)]
