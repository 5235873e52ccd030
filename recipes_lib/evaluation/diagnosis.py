# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a run, told from numbers: one function per check, numbers in, a finding out.

Each function says what it measured, the threshold, and what to do. The thresholds stand here once, each with its reason.
:mod:`recipes_lib.pretraining.doctor` takes the numbers from a run folder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

Status = Literal["healthy", "found", "unknown"]
"""``unknown``: the run does not hold what the check needs, and the text says what that is."""

FEW_STEPS = 50
"""Fewer steps cannot tell a collapse: an untrained projector gives all images nearly the same embedding too (the
families' convolutional network: a spread of 0.06), and healthy toy runs are above 0.3 after 50 steps."""
NO_SPREAD = 0.1
"""Spread of embeddings below which they have collapsed. An even spread is 1. Healthy runs of the families had 0.5 to 1,
DINO 0.17 after 150 steps and 0.3 later; those without their collapse guard 0.006 to 0.16."""
LITTLE_SPREAD = 0.2
"""Spread below which embeddings have collapsed if the features have also lost half of the untrained network's RankMe:
DINO kept three quarters of it, and those without their collapse guard a fifth to two fifths."""
KEPT_RANK = 0.5
"""Share of the untrained network's RankMe that tells the two apart."""
LOST_SPREAD = 0.25
"""Share of the untrained network's spread of features below which features have collapsed too. Features after a ReLU lie
in a cone, whose width depends on the network, so that no absolute number tells."""
ONE_DIRECTION = 2.0
"""RankMe of embeddings below which one direction holds nearly all of them."""
LOST_RANK = 0.3
"""Share of the untrained network's RankMe below which features have lost their dimensions. Healthy runs had 0.3 to 1."""
FEW_DIMENSIONS = 0.15
"""Share of min(N, D) below which RankMe must lie too: an untrained network that uses few dimensions has few to lose."""
LOSS_FELL = 0.01
"""Share of its first value by which a loss must have fallen to count as falling, above the noise of batches."""
LOST_KNN = 0.5
"""Share of what the untrained network has above chance that k-NN must keep. At the beginning of training k-NN may fall
below the untrained network; runs without their collapse guard kept a fifth."""
STANDARD_ERRORS = 2.0
"""Standard errors by which k-NN must have fallen too, so that few images raise no false alarm."""
SPIKE = 10.0
"""Times the running median of the gradient's norm that counts as a spike. Norms of healthy toy runs stayed below 5."""
SPIKE_WINDOW = 50
"""Number of earlier steps of the running median. The first steps, where norms fall fast, are looked at from there on."""
SLOW_TEACHER = 1.0
"""Share of the run that the teacher's memory, 1 / (1 - momentum) steps, may take. A teacher whose memory is longer still has
most of its random weights at the end. That is not what its paper describes; in runs of BYOL of 200 and 300 steps it did
no harm, and a memory of a third of the run was the best of four (chapters on troubleshooting and on the knobs)."""
FAST_TEACHER = 1.5
"""Steps of memory below which the teacher copies the student. BYOL's toy learns with a memory of 2 steps."""
STILL_TEACHER = 0.01
"""Share of the student's way that a teacher must have gone too. A teacher that stands still has random targets."""
WAITING = 0.3
"""Share of the time spent waiting for images, above which a faster input would pay: more workers, smaller files."""
FEW_IMAGES = 0.25
"""Images of a micro-batch per prototype, below which the assignments are mostly noise. SwAV's toy learns with half."""
LEAKED = 0.001
"""Share of the test images that are training images too. A few exact duplicates are in many public data sets."""
APART = 0.01
"""Relative difference between two processes' gradient and one's. Rounding of float32 gave 1e-7 to
3e-3 over the toys of the menu; a test holds that a collective without gradient and batch statistics per device exceed it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    """Name of the check."""
    status: Status
    text: str
    """One line: what was measured and, if something was found, what it means and what to do."""
    number: float | None = None
    """The measured number; None if there is none."""
    threshold: float | None = None
    """The number from which on (or up to which) something is found."""

    @property
    def line(self) -> str:
        """The finding as one line of text."""
        return f"{self.status:<8} {self.check}: {self.text}"


def unknown(check: str, why: str) -> Finding:
    """A check that could not be made, and why."""
    return Finding(check=check, status="unknown", text=why)


def _told(check: str, bad: bool, number: float, threshold: float, text: str, cure: str) -> Finding:
    return Finding(
        check=check,
        status="found" if bad else "healthy",
        text=f"{text} {cure}" if bad else text,
        number=number,
        threshold=threshold,
    )


def full_collapse(
    embedding: float | None, features: float, untrained: float, *, kept_rank: float = 1.0, steps: int
) -> Finding:
    """Whether all images have nearly the same embedding, or the same features.

    ``embedding`` and ``features``: std of the normalised rows times sqrt(D) (:func:`hypersphere.normalized_std`);
    ``embedding`` None for a method without a projector. ``untrained``: that of the untrained network's features.
    ``kept_rank``: RankMe of the features divided by that of the untrained network's.
    """
    name = "full_collapse"
    if steps < FEW_STEPS:
        return unknown(name, f"{steps} steps cannot tell; {FEW_STEPS} can.")
    cure = "All images look alike to the network: look for what keeps them apart (stop-gradient, variance term, negatives)."
    limit = LOST_SPREAD * untrained
    text = f"the features' spread is {features:.3g} (found below {limit:.3g}, a quarter of the untrained network's)."
    if embedding is None or features < limit:
        return _told(name, features < limit, features, limit, text, cure)
    limit = LITTLE_SPREAD if kept_rank < KEPT_RANK else NO_SPREAD
    text = f"the embeddings' spread is {embedding:.3g} (found below {limit:g}; 1 is even)."
    return _told(name, embedding < limit, embedding, limit, text, cure)


def dimensional_collapse(
    embedding: float | None, features: float, untrained: float, *, ceiling: int, steps: int
) -> Finding:
    """Whether the embeddings lie on a line, or the features have lost most of the untrained network's dimensions.

    ``embedding``, ``features`` and ``untrained``: RankMe (:func:`spectrum.rankme`), of which ``ceiling`` = min(N, D) is
    the most that the features can have.
    """
    name = "dimensional_collapse"
    if steps < FEW_STEPS:
        return unknown(name, f"{steps} steps cannot tell; {FEW_STEPS} can.")
    cure = "Few dimensions vary: look at the covariance term, the projector, the augmentation and the learning rate."
    limit = min(LOST_RANK * untrained, FEW_DIMENSIONS * ceiling)
    text = (
        f"RankMe of the features is {features:.3g} of {ceiling} (found below {limit:.3g}; untrained: {untrained:.3g})."
    )
    if embedding is None or features < limit:
        return _told(name, features < limit, features, limit, text, cure)
    if embedding < ONE_DIRECTION:
        text = f"RankMe of the embeddings is {embedding:.3g} (found below {ONE_DIRECTION:g}: one direction)."
        return _told(name, True, embedding, ONE_DIRECTION, text, cure)
    return _told(name, False, features, limit, text, cure)


def lying_loss(
    losses: Sequence[float], knn: float, untrained: float, *, classes: int, images: int, collapsed: bool = False
) -> Finding:
    """Whether the loss falls while the features get worse than those of the untrained network.

    ``losses`` of all steps in order; ``knn`` and ``untrained``: k-NN accuracies in [0, 1] on ``images`` images of
    ``classes`` classes. ``collapsed``: whether the embeddings have no spread, which makes any falling loss a lie.
    """
    name = "lying_loss"
    if len(losses) < FEW_STEPS:
        return unknown(name, f"{len(losses)} steps cannot tell; {FEW_STEPS} can.")
    part = max(5, len(losses) // 10)
    first, last = fmean(losses[:part]), fmean(losses[-part:])
    fell = last < first - LOSS_FELL * abs(first)
    chance = 1 / classes
    noise = STANDARD_ERRORS * math.sqrt(2 * untrained * (1 - untrained) / images)
    limit = min(chance + LOST_KNN * (untrained - chance), untrained - noise)
    text = f"the loss went from {first:.3g} to {last:.3g}, and k-NN from {untrained:.3g} (untrained) to {knn:.3g} (found below {limit:.3g})."
    if collapsed:
        text += " The embeddings have collapsed."
    bad = fell and (knn < limit or collapsed)
    cure = "The loss is no measure of the features here: stop, and look at the other findings first."
    return _told(name, bad, knn, limit, text, cure)


def divergence(losses: Sequence[float | None], *, failed: bool, finite_weights: bool) -> Finding:
    """Whether the run ended in NaN or Inf. ``losses``: one per step, None where it was not finite."""
    lost = sum(loss is None or not math.isfinite(loss) for loss in losses)
    cure = "Lower the learning rate, warm up for longer, or clip: --optim.lr, --optim.warmup-epochs, --optim.clip 1."
    if failed and not lost and finite_weights:
        text = "the run failed, and its last complete step was finite."
        return _told("divergence", True, 1, 0, text, "If it diverged, its last line says at which step. " + cure)
    text = f"{lost} of {len(losses)} steps have a loss that is not finite"
    text += "." if finite_weights else ", and the weights hold NaN or Inf."
    return _told("divergence", lost > 0 or not finite_weights, lost, 0, text, cure)


def gradient_spikes(norms: Sequence[float]) -> Finding:
    """Whether the gradient's norm jumps far above its running median. ``norms``: one per step, in order."""
    name = "gradient_spikes"
    if len(norms) <= SPIKE_WINDOW:
        return unknown(name, f"{len(norms)} steps have no running median; {SPIKE_WINDOW + 1} have.")
    ratios = []
    for step in range(SPIKE_WINDOW, len(norms)):
        usual = median(norms[step - SPIKE_WINDOW : step])
        ratios.append(norms[step] / usual if usual > 0 else math.inf if norms[step] > 0 else 0.0)
    worst = max(ratios)
    step, many = SPIKE_WINDOW + ratios.index(worst), sum(ratio > SPIKE for ratio in ratios)
    text = f"the largest gradient is {worst:.3g} times the median of the {SPIKE_WINDOW} steps before it (found above {SPIKE:g})"
    text += f", at step {step}; {many} such steps." if many else "."
    return _told(name, many > 0, worst, SPIKE, text, "Lower --optim.lr, or clip with --optim.clip 1.")


def learning_rate(rates: Sequence[float], *, done: bool) -> Finding:
    """Whether the learning rate was 0 all the time, or was still rising at the end of a finished run."""
    name = "learning_rate"
    if not rates:
        return unknown(name, "no step was logged.")
    highest = max(rates)
    if highest <= 0:
        return _told(name, True, 0, 0, "the learning rate is 0 at all steps.", "Set --optim.lr.")
    rose = 1 + max(i for i, rate in enumerate(rates) if rate == highest)  # steps until its last peak
    share = rose / len(rates)
    rising = len(rates) > 1 and rates[-1] == highest > rates[0] and rates[-1] > rates[-2]
    text = f"the learning rate peaked at {highest:.3g} at step {rose - 1} of {len(rates)}"
    if rising and not done:
        return Finding(check=name, status="healthy", number=share, threshold=1.0, text=f"{text}: still in the warm-up.")
    cure = "The run ended in its warm-up: shorten --optim.warmup-epochs, or train for longer."
    return _told(name, rising, share, 1.0, text + ".", cure)


def teacher(momentum: float, moved: float, *, steps: int, done: int) -> Finding:
    """Whether the teacher's memory fits the run, and the teacher moved at all.

    ``momentum`` of the moving average at the first of ``steps`` steps, of which ``done`` are done; ``moved``: how far
    the teacher is from its initial weights, in units of how far the student is.
    """
    name = "teacher"
    memory = math.inf if momentum >= 1 else 1 / (1 - momentum)
    share = memory / steps
    text = f"the teacher's memory, 1 / (1 - {momentum:g}), is {memory:.3g} steps, {share:.2g} of the run"
    if memory < FAST_TEACHER:
        text += f" (found below {FAST_TEACHER:g} steps)."
        return _told(name, True, memory, FAST_TEACHER, text, "It copies the student: raise the EMA, such as 0.9.")
    if share > SLOW_TEACHER:
        fit = 1 - 1 / max(2.0, 0.05 * steps)
        text += f" (found above {SLOW_TEACHER:g})."
        return _told(name, True, share, SLOW_TEACHER, text, f"It is too slow for this run: try {fit:.2g}.")
    if done >= memory and moved < STILL_TEACHER:
        text = f"the teacher went {moved:.2g} of the student's way (found below {STILL_TEACHER:g})."
        return _told(name, True, moved, STILL_TEACHER, text, "It stands still: call its update in after_step.")
    return _told(name, False, share, SLOW_TEACHER, f"{text}; it went {moved:.2g} of the student's way.", "")


def slow_input(seconds: float, waiting: float) -> Finding:
    """Whether steps wait for images. ``waiting`` of all ``seconds`` of the steps."""
    share = waiting / seconds if seconds > 0 else 0.0
    text = f"{share:.1%} of the time went into waiting for images (found above {WAITING:.0%})."
    cure = "Add --data.workers, or make the files smaller."
    return _told("slow_input", share > WAITING, share, WAITING, text, cure)


def leaky_labels(duplicates: int, tested: int) -> Finding:
    """Whether test images are training images. ``duplicates`` of ``tested`` test images are, to the last bit."""
    share = duplicates / tested
    text = f"{duplicates} of {tested} test images are training images too (found above {LEAKED:.1%})."
    cure = "Scores on them are too high: remove them from the training images, or hold others out (--data.holdout)."
    return _told("leaky_labels", share > LEAKED, share, LEAKED, text, cure)


def few_images(batch: int, prototypes: int) -> Finding:
    """Whether a micro-batch, over all processes, has images enough for Sinkhorn to use all prototypes equally often.

    ``prototypes``: their number, less the images in a queue; 0 for a loss without Sinkhorn.
    """
    limit = FEW_IMAGES * prototypes
    text = f"{batch} images are in a micro-batch, and Sinkhorn spreads them over {prototypes} prototypes"
    text += f" (found below {limit:g} images)."
    if not prototypes:
        text = f"{batch} images are in a micro-batch, and the loss needs no more."
    cure = "Raise --train.batch-size, lower --train.accumulate, use fewer prototypes, or a queue."
    return _told("few_images", batch < limit, batch, limit, text, cure)


def two_processes(loss: float, gradient: float) -> Finding:
    """Whether two processes compute what one computes on the whole batch.

    ``loss`` and ``gradient``: the relative differences between the mean of two processes' and one's.
    """
    worse = gradient if gradient != gradient else max(loss, gradient)  # NaN is no number to compare
    text = f"the gradient of two processes differs by {gradient:.2g} from that of one, the loss by {loss:.2g} (found above {APART:g})."
    cure = "Either a collective carries no gradient, or batch statistics are per device."
    return _told("two_processes", not worse <= APART, worse, APART, text, cure)
