# SPDX-License-Identifier: Apache-2.0
"""Local SGD and SlowMo against DDP over links of a set rate and delay: step time, bytes on the wire, time to accuracy.

``python benchmarks/local_sgd_link.py`` as root, on Linux; minutes. Gloo processes, one thread each, in network
namespaces joined by slow links (``links.py``); where those are not allowed the script says why and ends. In every round
the strategies are timed one after the other, each for whole periods; medians of the rounds. "bytes a step" is what
``traffic`` counts, "wire" what the kernel saw leave, headers included, mean over ranks.

The model: an all-reduce takes a + b * bytes, fitted to measured ones; a step c + all-reduce / period, with c a step that
averages nothing; DDP's step lies between the larger of c and the all-reduce (all of it overlapped) and their sum (nothing).
With delay, a grows in proportion to it, and b is that of the first delay: fitted without delay and at the first one, held
against the others, and then asked for delays that were not measured.

Time to accuracy: seconds of training, scoring left out, until the test digits are first classified at the target, looked
at wherever the ranks meet: DDP after every step, so the more often. ``--tune`` prints what the learning rates were chosen
by: the mean steps to the target on a validation split.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
from pathlib import Path

from links import Cost, Refused, fit, limit, run_ranks, star
from rich.console import Console
from rich.table import Table

NOTHING = "nothing averaged"


def step_range(cost: Cost, found: dict, name: str) -> tuple[float, float]:
    """The least and the most that a step of a rival should take, by the model."""
    alone, exchange = found["rivals"][NOTHING]["seconds"], cost.seconds(found["exchanged"])
    together = alone + exchange / found["rivals"][name]["period"]
    return (max(alone, exchange), together) if name == "ddp" else (together, together)


def show_steps(title: str, found: dict, cost: Cost) -> None:
    """Prints a row for each rival, in ratios to DDP's step."""
    table = Table(title=title)
    for column in ("strategy, period", "step / ddp's", "bytes a step", "wire / bytes", "modelled step / measured"):
        table.add_column(column, justify="right")
    ddp = found["rivals"]["ddp"]["seconds"]
    for name, row in found["rivals"].items():
        share = f"{row['wire'] / row['bytes']:.3f}" if row["bytes"] else f"{row['wire']:.0f} bytes"
        least, most = (seconds / row["seconds"] for seconds in step_range(cost, found, name))
        modelled = f"{least:.2f}" if least == most else f"{least:.2f} to {most:.2f}"
        table.add_row(name, f"{row['seconds'] / ddp:.3f}", f"{row['bytes']:,.0f}", share, modelled)
    Console(width=110).print(table)
    error = cost.error(found["sent"], found["reduce"])
    print(
        f"All-reduce: {cost.start * 1e3:.2f} ms + bytes at {8e-6 / cost.per_byte:,.0f} Mbit/s, wrong by {error:.0%} at most.\n"
    )


def show_modelled(found: dict, costs: dict[float, Cost], delays: list[float]) -> None:
    """Prints steps in ratios to DDP's at delays that were not measured."""
    table = Table(title="Modelled, not measured: step / ddp's, with ddp's exchange overlapped and not")
    table.add_column("strategy, period")
    for delay in delays:
        table.add_column(f"{delay:g} ms", justify="right")
    first = min(filter(None, costs))
    at = [costs[0].at_delay(costs[first], delay / first) for delay in delays]
    for name in found["rivals"]:
        if name not in ("ddp", NOTHING):
            ddp = [step_range(cost, found, "ddp") for cost in at]
            own = [step_range(cost, found, name)[0] for cost in at]
            cells = [
                f"{seconds / least:.3f}, {seconds / most:.3f}" for seconds, (least, most) in zip(own, ddp, strict=True)
            ]
            table.add_row(name, *cells)
    Console(width=110).print(table)


def show_races(title: str, races: dict[str, list]) -> None:
    """Prints a row for each arm: its seconds to the target as ratios to DDP's of the same seed."""
    table = Table(title=title)
    for column in ("arm", "seconds / ddp's, median", "each seed", "steps, median"):
        table.add_column(column, justify="right")
    for arm, found in races.items():
        ratios = [own[0] / control[0] for own, control in zip(found, races["ddp"], strict=True)]
        each = "  ".join(f"{ratio:.2f}" for ratio in ratios)
        table.add_row(arm, f"{statistics.median(ratios):.2f}", each, f"{statistics.median(own[1] for own in found):g}")
    Console(width=110).print(table)


def rank_main(options: argparse.Namespace) -> None:
    """What each rank does; rank 0 writes it down."""
    import local_sgd_ranks as ranks
    import torch

    from recipes_lib.distributed import collectives, world

    torch.set_num_threads(1)
    world.start("cpu")
    found: dict = {"steps": [], "races": {}}
    if options.tune:
        for arm, (sync, _) in ranks.ARMS.items():
            for lr in ranks.GRID:
                ends = [ranks.race(sync, lr, seed, target=options.target, validation=True)[1] for seed in (100, 101)]
                if collectives.is_main():
                    print(f"{arm}, lr {lr:g}: {ends} steps", flush=True)
    else:
        trainings = ranks.rivals(few=options.few)
        found["steps"] = [ranks.measure(trainings, megabits, options.rounds) for megabits in options.mbit]
        del trainings
        limit(options.race_mbit)
        for seed in range(options.seeds):
            for arm, (sync, lr) in ranks.ARMS.items():
                found["races"].setdefault(arm, []).append(ranks.race(sync, lr, seed, target=options.target))
    if collectives.is_main():
        options.rank.write_text(json.dumps(found))
    world.stop()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes, each behind a link of its own")
    parser.add_argument("--mbit", type=float, nargs="+", default=[100, 1000, 0], help="rates to measure; 0: no limit")
    parser.add_argument(
        "--delay", type=float, nargs="*", default=[5, 20], help="ms from rank to rank, at the first rate"
    )
    parser.add_argument("--modelled-delay", type=float, nargs="*", default=[1, 50, 100], help="ms, modelled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--race-mbit", type=float, default=100, help="rate of the race to the target accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of that race; 0: none")
    parser.add_argument("--target", type=float, default=0.95, help="test accuracy that ends the race")
    parser.add_argument("--tune", action="store_true", help="print the search of the learning rates, and end")
    parser.add_argument("--few", action="store_true", help="time the main strategies only")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    return parser


def on_links(workers: int, delay: float, *more: str) -> dict:
    """What the ranks measured on links of one delay. ``more``: further arguments of theirs, which win."""
    with tempfile.TemporaryDirectory() as folder, star(workers, delay=delay) as names:
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *more, "--rank", f"{folder}/found"]
        run_ranks(names, command)
        return json.loads(Path(folder, "found").read_text())


def compare(options: argparse.Namespace) -> None:
    """Measures, and prints the tables."""
    ranks = f"{options.workers} processes"
    found = on_links(options.workers, 0)
    costs = {}
    for megabits, steps in zip(options.mbit, found["steps"], strict=False):  # none where the rates are tuned
        cost = fit(steps["sent"], steps["reduce"])
        costs.setdefault(0.0, cost)
        show_steps(f"{ranks}, {f'{megabits:g} Mbit/s' if megabits else 'no limit'}", steps, cost)
    if found["races"]:
        show_races(f"To {options.target:.0%} of the test digits; {ranks}, {options.race_mbit:g} Mbit/s", found["races"])
    for delay in [] if options.tune else options.delay:
        rate = options.mbit[0]
        steps = on_links(options.workers, delay, "--few", "--mbit", f"{rate:g}", "--seeds", "0")["steps"][0]
        costs[delay] = fit(steps["sent"], steps["reduce"])
        show_steps(f"{ranks}, {rate:g} Mbit/s, {delay:g} ms", steps, costs[delay])
        first = options.delay[0]
        if delay != first:
            error = costs[0].at_delay(costs[first], delay / first).error(steps["sent"], steps["reduce"])
            print(f"From 0 and {first:g} ms, all-reduces at {delay:g} ms are foretold wrong by {error:.0%} at most.\n")
    if len(costs) > 1:
        show_modelled(found["steps"][0], costs, options.modelled_delay)


def main() -> None:
    """Makes the links and starts the ranks in them."""
    options = arguments().parse_args()
    if options.rank:
        return rank_main(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces go
    try:
        compare(options)
    except Refused as reason:
        print(f"Skipped: {reason}.")


if __name__ == "__main__":
    main()
