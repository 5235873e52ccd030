# SPDX-License-Identifier: Apache-2.0
"""Small tasks of four modalities, drawn by our own code: digits in patches, point clouds, expressions, bytes.

Every sample depends only on ``(seed, split, index)``.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.recipes.nac.samples import Clouds, Sequences, text_bytes

Split = Literal["train", "validation", "test"]
SHAPES = ("sphere", "cube", "octahedron", "cylinder")
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "]"
WORDS = ("mug", "pan", "jar", "pot")
"""The words that a string of letters may contain; which one is its class."""
_NESTED = 0.35  # probability that an argument is an expression
_MOST_ARGUMENTS, _DEEPEST = 4, 3
_DRAWS = 256  # more than the largest expression takes: 21 operators of 2 numbers, 84 arguments of at most 2


def sample_keys(seed: int, split: Split, count: int) -> Tensor:
    """The keys from which the first ``count`` samples of a split are drawn: int64 [count]."""
    number = ("train", "validation", "test").index(split)
    return randomness.sample_keys(seed, number, torch.arange(count))


def clouds(count: int, points: int, *, seed: int, split: Split, noise: float = 0.05) -> Clouds:
    """Points on the surfaces of four solids of about equal size, turned at random, with noise.

    The classes are ``SHAPES``, equally often. Points are uniform on a sphere; on the other solids they are the
    projections of such points onto the surface, along the radius.
    """
    keys = sample_keys(seed, split, count)
    labels = torch.arange(count) % len(SHAPES)
    direction = randomness.normal(keys, "cloud directions", 3 * points).view(count, points, 3)
    x, y, z = direction.unbind(-1)
    reach = torch.stack(
        [
            direction.norm(dim=-1),
            direction.abs().amax(-1) / 0.8,
            direction.abs().sum(-1) / 1.3,
            torch.maximum(z.abs(), (x * x + y * y).sqrt()) / 0.85,
        ]
    )  # [shapes, count, points]: a direction divided by it lies on the surface
    surface = direction / reach[labels, torch.arange(count)][..., None]
    turned = surface @ _rotations(randomness.normal(keys, "cloud turns", 4))
    jitter = randomness.normal(keys, "cloud noise", 3 * points).view(count, points, 3)
    return Clouds(turned + noise * jitter, labels, SHAPES)


def _rotations(q: Tensor) -> Tensor:
    """Rotations from quaternions of any length.  [N, 4] -> [N, 3, 3]"""
    a, b, c, d = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def expressions(count: int, *, seed: int, split: Split, length: int = 50) -> list[tuple[str, int]]:
    """ListOps-like expressions and their values, such as ``[MAX 2 [MIN 7 5 ] 3 ]``, which is 5.

    An operator has 2 to 4 arguments, each a digit or an expression, at most 3 deep; MED is the median, rounded down, and
    SM the sum modulo 10. An expression has at most ``length`` symbols.

    Raises: ``ValueError`` for a length that no expression fits in.
    """
    if length < 4:
        raise ValueError(f"length = {length}; the shortest expression, an operator of two digits, has 4 symbols.")
    keys = sample_keys(seed, split, count)
    found: dict[int, tuple[str, int]] = {}
    attempt = 0
    while len(found) < count:
        left = torch.tensor([index for index in range(count) if index not in found])
        for index, row in zip(
            left.tolist(), randomness.uniform(keys[left], f"expression {attempt}", _DRAWS).tolist(), strict=True
        ):
            words, value = _expression(iter(row), depth=1)
            if len(words) <= length:
                found[index] = (" ".join(words), value)
        attempt += 1
    return [found[index] for index in range(count)]


def _expression(draws: Iterator[float], depth: int) -> tuple[list[str], int]:
    operator = OPERATORS[int(next(draws) * len(OPERATORS))]
    words, values = [operator], []
    for _ in range(2 + int(next(draws) * (_MOST_ARGUMENTS - 1))):
        if depth < _DEEPEST and next(draws) < _NESTED:
            inner, value = _expression(draws, depth + 1)
        else:
            value = int(next(draws) * 10)
            inner = [str(value)]
        words += inner
        values.append(value)
    return [*words, CLOSE], evaluate(operator, values)


def evaluate(operator: str, values: list[int]) -> int:
    """The value of an operator of ListOps.

    >>> [evaluate(operator, [7, 2, 8, 9]) for operator in ("[MIN", "[MAX", "[MED", "[SM")]
    [2, 9, 7, 6]
    """
    match operator:
        case "[MIN":
            return min(values)
        case "[MAX":
            return max(values)
        case "[MED":
            middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
            return sum(middle) // len(middle)
        case "[SM":
            return sum(values) % 10
    raise ValueError(f"{operator} is none of ListOps' operators: {', '.join(OPERATORS)}")


def symbols(count: int, *, seed: int, split: Split, length: int = 50) -> Sequences:
    """:func:`expressions` as sequences of symbols, of which there are 15: digits, operators and the closing bracket."""
    ids = {symbol: number for number, symbol in enumerate((*map(str, range(10)), *OPERATORS, CLOSE))}
    drawn = expressions(count, seed=seed, split=split, length=length)
    sequences = tuple(torch.tensor([ids[word] for word in words.split()], dtype=torch.uint8) for words, _ in drawn)
    return Sequences(sequences, torch.tensor([value for _, value in drawn]), len(ids), tuple(map(str, range(10))))


def letters(count: int, *, seed: int, split: Split, length: int = 20) -> Sequences:
    """Strings of ``length`` random lower-case letters as bytes; one of ``WORDS`` stands somewhere in each.

    The class is the word. The classes are equally frequent.
    """
    keys = sample_keys(seed, split, count)
    drawn = (randomness.uniform(keys, "letters", length) * 26).long()
    places = (randomness.uniform(keys, "place", 1)[:, 0] * (length - 2)).long().tolist()
    labels = torch.arange(count) % len(WORDS)
    texts = []
    for row, place, label in zip(drawn.tolist(), places, labels.tolist(), strict=True):
        text = "".join(chr(ord("a") + letter) for letter in row)
        texts.append(text_bytes(text[:place] + WORDS[label] + text[place + 3 :], length))
    return Sequences(tuple(texts), labels, 256, WORDS)
