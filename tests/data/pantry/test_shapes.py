# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data.pantry.marching import Points, normals
from recipes_lib.data.pantry.painting import surface_of
from recipes_lib.data.pantry.shapes import ALONG, BOUNDS, SHAPES


def cloud(name: str, count: int, margin: float) -> tuple[Points, tuple[torch.Tensor, ...]]:
    """Random points in a class's box widened by ``margin``, of random instances."""
    g = torch.Generator().manual_seed(0)
    left, right, deep, low, high = BOUNDS[name]
    unit = torch.rand(3, count, generator=g)
    sides = ((left, right), (low, high), (-deep, deep))
    point = Points(*(a - margin + (b - a + 2 * margin) * u for (a, b), u in zip(sides, unit, strict=True)))
    return point, tuple(torch.rand(4, count, generator=g))


@pytest.mark.parametrize("name", SHAPES)
def test_an_object_fills_part_of_its_box_and_stays_inside(name):
    points, instance = cloud(name, 30_000, margin=0.5)
    inside = surface_of(name)(points, instance) < 0
    left, right, deep, low, high = BOUNDS[name]
    x, y, z = points
    # what a foot's rounding adds below the table is never seen; a hundredth sideways is less than a pixel
    boxed = (x >= left - 0.01) & (x <= right) & (y >= low - 0.04) & (y <= high) & (z.abs() <= deep + 0.02)
    assert inside.sum() > 50
    assert not (inside & ~boxed).any()


@pytest.mark.parametrize("name", SHAPES)
def test_no_step_is_longer_than_the_distance_allows(name):
    # a function that never changes faster than the point moves cannot lead a ray through a surface
    points, instance = cloud(name, 30_000, margin=1.0)
    g = torch.Generator().manual_seed(1)
    step = 0.01 * torch.nn.functional.normalize(torch.randn(3, len(points.x), generator=g), dim=0)
    surface = surface_of(name)
    here = surface(points, instance)
    change = (surface(Points(*(p + s for p, s in zip(points, step, strict=True))), instance) - here).abs() / 0.01
    outside = change[here > 0]
    assert outside.max() < 1.4  # strongly bent parts exceed 1 a little, and a ray then turns back by itself
    assert (outside > 1.05).float().mean() < 0.01


def test_normals_of_a_sphere_point_away_from_its_centre():
    g = torch.Generator().manual_seed(0)
    point = Points(*torch.nn.functional.normalize(torch.randn(3, 50, generator=g), dim=0))

    def sphere(p: Points, instance: tuple) -> torch.Tensor:
        return p.dot(p).sqrt() - 1

    for found, expected in zip(normals(sphere, (), point, sphere(point, ())), point, strict=True):
        torch.testing.assert_close(found, expected, atol=3e-3, rtol=0)


def test_patterns_follow_shapes_that_exist():
    assert set(ALONG) <= set(SHAPES) == set(BOUNDS)
