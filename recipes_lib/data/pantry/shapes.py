# SPDX-License-Identifier: Apache-2.0
"""Twelve kitchen objects as signed distance functions, which return how far a point is from the object's surface.

An object stands on the plane y = 0 around the y axis and is about 2 units wide. ``x, y, z`` are float tensors of one
shape (one point per ray); ``s`` holds the instance's four shape parameters in [0, 1], each of that shape too. Every
function returns two distances, to the body and to the trim (handle, lid, stem), which may have another colour; the
object is the union of both. Some distances are lower bounds, which suffice for sphere tracing.

Only +, -, *, /, sqrt, abs, min and max are used. They are rounded in the same way in vectorised and in scalar code, so
that no bit of an image depends on the images that it is rendered with.

Source: Hart, "Sphere tracing", The Visual Computer 1996 (the method and its primitives).
"""

from collections.abc import Callable

from torch import Tensor

# x, y, z: point; r: distance from the y axis; a, b, c, d: shape parameters
Shape = tuple[Tensor, Tensor, Tensor, Tensor]
Distances = tuple[Tensor, Tensor]

_FAR = 10.0


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x).add_(y * y).sqrt_()


def _disc(
    r: Tensor, y: Tensor, radius: Tensor | float, low: Tensor | float, high: Tensor | float, edge: float
) -> Tensor:
    """The distance to an upright cylinder between heights ``low`` and ``high`` with rounded edges."""
    middle, half = (high + low) / 2, (high - low) / 2
    out_r, out_y = r - (radius - edge), (y - middle).abs_().sub_(half - edge)
    inside = out_r.maximum(out_y).clamp_max_(0)
    return _length(out_r.clamp_min_(0), out_y.clamp_min_(0)).add_(inside).sub_(edge)


def _sphere(r: Tensor, y: Tensor, radius: Tensor | float, height: Tensor | float) -> Tensor:
    return _length(r, y - height).sub_(radius)


def _rod(x: Tensor, y: Tensor, z: Tensor, start: tuple, end: tuple, radius: float, taper: float = 0.0) -> Tensor:
    """The distance to a capsule from ``start`` to ``end``, whose radius shrinks by ``taper`` on the way."""
    spans = [e - b for b, e in zip(start, end, strict=True)]
    offsets = [p - b for p, b in zip((x, y, z), start, strict=True)]
    bent = [(p, span) for p, span in zip(offsets, spans, strict=True) if isinstance(span, Tensor) or span]
    along = bent[0][0] * bent[0][1]
    for p, span in bent[1:]:
        along.add_(p * span)
    share = along.div_(sum(span * span for span in spans)).clamp_(0, 1)
    for p, span in bent:
        p.sub_(share * span)
    x, y, z = offsets
    gap = x.mul_(x).add_(y.mul_(y)).add_(z.mul_(z)).sqrt_()
    return gap.sub_(radius - taper * share) if taper else gap.sub_(radius)


def _ring(u: Tensor, v: Tensor, w: Tensor, radius: Tensor | float, thickness: float) -> Tensor:
    """The distance to a torus that lies in the u-v plane."""
    return _length(_length(u, v).sub_(radius), w).sub_(thickness)


def _join(p: Tensor, q: Tensor, width: float) -> Tensor:
    """The distance to the union of two objects, with the seam between them filled over ``width``."""
    fill = (width - (p - q).abs_()).clamp_min_(0)
    return p.minimum(q).sub_(fill.mul_(fill).mul_(0.25 / width))


def mug(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a mug, straight or tapered, and to its handle."""
    a, b, c, d = s
    r = _length(x, z)
    height = 1.15 + 0.45 * b
    radius = 0.52 + 0.16 * a + (c - 0.5) * 0.32 * (y / height - 0.5)
    cup = _disc(r, y, radius, 0.0, height, 0.05)
    cup = cup.maximum(-((r - (radius - 0.08)).maximum(0.1 - y))) * 0.97
    handle = _ring((x - radius) * (1.05 - 0.25 * d), (y - 0.5 * height) * 0.95, z, 0.3, 0.085) * 0.95
    return cup, handle.maximum(radius - 0.04 - r)


def bowl(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a bowl and to its foot."""
    a, b, _, d = s
    r = _length(x, z)
    radius, height = 0.84 + 0.2 * a, 0.55 + 0.25 * b
    shell = (_sphere(r, y, radius, radius + 0.08).abs() - 0.045).maximum(y - 0.08 - height)
    return shell, _disc(r, y, 0.3 + 0.12 * d, 0.0, 0.16, 0.03)


def plate(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a plate and to its rim."""
    a, b, c, _ = s
    r = _length(x, z)
    radius, flat = 0.9 + 0.12 * a, 0.52 + 0.14 * b
    rise = 0.3 + 0.25 * c
    level = 0.06 + (r - flat).clamp_min(0) * rise
    dish = (((y - level).abs()) * 0.88 - 0.035).maximum(r - radius)
    rim = _length(r - radius, y - 0.06 - (radius - flat) * rise) - 0.045
    return dish, rim


def bottle(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a bottle and to its cap."""
    a, b, c, d = s
    r = _length(x, z)
    shoulder = 1.1 + 0.3 * b
    body = _disc(r, y, 0.34 + 0.12 * a, 0.0, shoulder, 0.14)
    neck = _disc(r, y, 0.12 + 0.03 * c, 0.4, 1.75 + 0.1 * d, 0.02)
    return _join(body, neck, 0.3), _disc(r, y, 0.16 + 0.03 * c, 1.7 + 0.1 * d, 1.92 + 0.1 * d, 0.03)


def jar(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a jar and to its lid."""
    a, b, c, d = s
    r = _length(x, z)
    height = 1.0 + 0.35 * b
    radius = 0.55 + 0.15 * a
    body = _disc(r, y, radius, 0.0, height, 0.16)
    neck = _disc(r, y, radius - 0.13, 0.5, height + 0.1, 0.02)
    lid = _disc(r, y, radius - 0.06 + 0.05 * c, height + 0.06, height + 0.24 + 0.1 * d, 0.04)
    return body.minimum(neck), lid


def pot(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a pot with its lid, and to its knob and handles."""
    a, b, c, d = s
    r = _length(x, z)
    radius, height = 0.66 + 0.1 * a, 0.62 + 0.3 * b
    body = _disc(r, y, radius, 0.0, height, 0.07)
    dome = 1.2 - 0.3 * c
    drop = (dome * dome - radius * radius).sqrt()  # the lid is a cap of a large sphere, as wide as the pot
    lid = _sphere(r, y, dome, height - drop).maximum(height - 0.05 - y)
    knob = _sphere(r, y, 0.09 + 0.03 * d, height + dome - drop + 0.08)
    grip = _ring((x.abs() - radius) * 0.9, z, (y - height + 0.18), 0.17, 0.05)
    return body.minimum(lid), knob.minimum(grip.maximum(radius - 0.02 - r))


def pan(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a pan and to its long handle."""
    a, b, c, d = s
    r = _length(x + 0.4, z)
    height = 0.2 + 0.14 * b
    radius = 0.54 + 0.08 * a + 0.35 * (y - height)
    dish = _disc(r, y, radius, 0.0, height, 0.03)
    dish = dish.maximum(-((r - (radius - 0.06)).maximum(0.06 - y))) * 0.93
    handle = _rod(x, y, z * (0.75 + 0.3 * c), (0.13, height - 0.07, 0.0), (1.05, height + 0.05 + 0.16 * d, 0.0), 0.07)
    return dish, handle


def kettle(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a kettle with its spout, and to its knob and handle."""
    a, b, c, d = s
    r = _length(x, z)
    radius = 0.62 + 0.08 * a
    middle = 0.42 + 0.12 * b
    tall = _length(r, (y - middle) * 1.25) - radius  # flattened sphere with its bottom cut off
    body = (tall * 0.8).maximum(-y)
    spout = _rod(x, y, z, (0.45, middle - 0.05, 0.0), (0.94 + 0.1 * c, middle + 0.5, 0.0), 0.16, 0.08)
    body = _join(body, spout, 0.12)
    top = middle + radius * 0.8
    knob = _sphere(r, y, 0.09, top + 0.05)
    arch = _ring(x, (y - middle - 0.25) * (0.92 - 0.14 * d), z, 0.54, 0.06)
    return body, knob.minimum(arch.maximum((middle + 0.25 - y) * 0.9))


def goblet(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to the cup of a goblet, and to its stem and foot."""
    a, b, c, d = s
    r = _length(x, z)
    radius = 0.42 + 0.12 * a
    middle = 1.12 + 0.15 * b + 0.3 * radius
    wide = r * (1.0 + 0.12 * c)
    cup = (_length(wide, (y - middle) * 0.72) - radius).abs() * 0.9 - 0.035
    cup = cup.maximum(y - (middle + 0.3 + 0.15 * d))
    stem = _disc(r, y, 0.06, 0.02, middle - radius * 1.3, 0.02)
    foot = _disc(r, y, 0.36 + 0.08 * a, 0.0, 0.07, 0.03)
    base = _join(foot, stem, 0.14)
    return cup, base


def spoon(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a spoon and to its tip, which half of the spoons have."""
    a, b, c, d = s
    long, wide = 0.36 + 0.08 * a, 0.24 + 0.07 * b
    u, v, w = (x + 0.62) / long, (y - 0.2) / 0.18, z / wide
    shell = ((u * u + v * v + w * w).sqrt() - 1.0).abs() * 0.15 - 0.025
    shell = shell.maximum((y - 0.19) * 0.9)
    handle = _rod(x, y * 1.25, z, (-0.28, 0.22, 0.0), (1.0, 0.2 + 0.1 * c, 0.0), 0.062, -0.035) * 0.8
    tip = _rod(x, y * 1.5, z, (0.72, 0.24 + 0.1 * c, 0.0), (0.98, 0.24 + 0.12 * c, 0.0), 0.1) * 0.65
    return shell.minimum(handle), tip + (d > 0.5).to(tip.dtype) * _FAR  # half of the spoons end in a tip


def apple(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to an apple and to its stem."""
    a, b, c, d = s
    r = _length(x, z)
    up = y - 0.66
    core = 0.28 + 0.08 * a
    lean = r * (1.0 - (0.1 + 0.16 * b) * up)  # narrower towards the bottom
    flesh = (_length(lean - core, up * (1.0 + 0.12 * c - 0.06)) - 0.58) * 0.82
    stem = _rod(x, y, z, (0.0, 0.95, 0.0), (0.06 + 0.12 * d, 1.42, 0.03), 0.045)
    return flesh, stem


def carrot(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """The distances to a carrot and to its leaves."""
    a, b, c, d = s
    thick = 0.2 + 0.09 * a
    share = ((x + 0.6) / 1.55).clamp(0, 1)
    bend = (b - 0.5) * 0.3 * share * share
    radius = thick * (1.0 - share * (0.72 + 0.2 * c))
    side = z - bend
    over = (x - 0.95).maximum(-0.6 - x).clamp_min(0)
    root = ((over * over + (y - thick) * (y - thick) + side * side).sqrt() - radius) * 0.9
    fan = 0.16 + 0.16 * d
    leaf = _rod(x, y, z.abs(), (-0.6, thick, 0.02), (-1.1, thick + 0.12, fan), 0.035, -0.045)
    middle = _rod(x, y, z, (-0.6, thick, 0.0), (-1.18, thick + 0.2, 0.0), 0.035, -0.045)
    return root, leaf.minimum(middle)


SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor, Shape], Distances]] = {
    "mug": mug,
    "bowl": bowl,
    "plate": plate,
    "bottle": bottle,
    "jar": jar,
    "pot": pot,
    "pan": pan,
    "kettle": kettle,
    "goblet": goblet,
    "spoon": spoon,
    "apple": apple,
    "carrot": carrot,
}
"""The classes and their distance functions, in the order of the labels."""

BOUNDS: dict[str, tuple[float, float, float, float, float]] = {
    "mug": (-0.78, 1.2, 0.78, 0.0, 1.62),
    "bowl": (-1.1, 1.1, 1.1, 0.0, 0.95),
    "plate": (-1.08, 1.08, 1.08, 0.0, 0.42),
    "bottle": (-0.48, 0.48, 0.48, 0.0, 2.04),
    "jar": (-0.72, 0.72, 0.72, 0.0, 1.72),
    "pot": (-1.02, 1.02, 0.8, 0.0, 1.55),
    "pan": (-1.06, 1.14, 0.66, 0.0, 0.62),
    "kettle": (-0.76, 1.16, 0.74, 0.0, 1.55),
    "goblet": (-0.6, 0.6, 0.6, 0.0, 2.02),
    "spoon": (-1.1, 1.12, 0.34, 0.0, 0.4),
    "apple": (-1.02, 1.02, 1.02, 0.0, 1.5),
    "carrot": (-1.28, 1.02, 0.5, 0.0, 0.62),
}
"""Bounding box of all instances of a class: least x, largest x, largest |z|, least y, largest y. A test checks it."""

ALONG: dict[str, str] = {"plate": "r", "pan": "r", "bowl": "r", "spoon": "x", "carrot": "x"}
"""The coordinate along which a pattern repeats: the distance r from the axis, x, or (for other classes) the height."""
