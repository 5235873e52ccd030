# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.evaluation.retrieval import recall


def draw(seed: int, images: int = 20, texts: int = 60, dim: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    owner = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=g)])
    f = torch.randn(images, dim, generator=g)
    return f, f[owner] + 1.5 * torch.randn(texts, dim, generator=g), owner


def by_hand(images: Tensor, texts: Tensor, owner: Tensor, k: int) -> tuple[float, float]:
    cosines = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    found = [i in owner[row.argsort(descending=True)[:k]] for i, row in enumerate(cosines)]
    back = [owner[j] in row.argsort(descending=True)[:k] for j, row in enumerate(cosines.T)]
    return sum(found) / len(found), sum(back) / len(back)


def test_a_case_done_by_hand():
    # image 0 has texts 0 and 1, image 1 has text 2; text 1 lies nearer to image 1
    images = torch.eye(2)
    texts = torch.tensor([[2.0, 1.0], [1.0, 3.0], [1.0, 2.0]])
    # image 0: text 0 first. image 1: text 1 (cosine .95) before its own (.89). Text 1 finds image 1, not its own.
    scores = recall(images, texts, torch.tensor([0, 0, 1]), ks=(1, 2))
    assert scores == pytest.approx({"tr1": 1 / 2, "tr2": 1.0, "ir1": 2 / 3, "ir2": 1.0})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_counts_what_sorting_finds(seed, k):
    inputs = draw(seed)
    scores = recall(*inputs, ks=(k,))
    assert (scores[f"tr{k}"], scores[f"ir{k}"]) == pytest.approx(by_hand(*inputs, k))


def test_recall_grows_with_k_and_ends_at_one():
    scores = recall(*draw(0), ks=(1, 5, 10, 60))
    for kind in ("tr", "ir"):
        assert scores[f"{kind}1"] < scores[f"{kind}5"] < scores[f"{kind}10"] < scores[f"{kind}60"] == 1


def test_several_ks_at_once_are_each_alone():
    together = recall(*draw(1), ks=(10, 1, 5))
    for k in (1, 5, 10):
        for name, value in recall(*draw(1), ks=(k,)).items():
            assert together[name] == value


def test_chunks_and_lengths_and_order_do_not_count():
    images, texts, owner = draw(2)
    want = recall(images, texts, owner)
    assert recall(images, texts, owner, chunk=7) == pytest.approx(want)
    assert recall(images * 3, texts * 0.1, owner) == pytest.approx(want)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert recall(images, texts[order], owner[order]) == pytest.approx(want)


def test_a_collapsed_net_is_at_chance():
    images, texts = torch.ones(8, 4), torch.ones(8, 4)
    scores = recall(images, texts, torch.arange(8), ks=(1, 5, 8))
    assert scores == pytest.approx({"tr1": 1 / 8, "tr5": 5 / 8, "tr8": 1, "ir1": 1 / 8, "ir5": 5 / 8, "ir8": 1})


def chance_of(image: int, cosines: list[int], owner: list[int], k: int) -> float:
    """By enumeration of every order of the texts that sorting by cosine allows."""
    orders = [
        order
        for order in itertools.permutations(range(len(cosines)))
        if all(cosines[a] >= cosines[b] for a, b in itertools.pairwise(order))
    ]
    return sum(any(owner[text] == image for text in order[:k]) for order in orders) / len(orders)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_tied_candidates_count_by_their_chance_of_coming_first(k):
    # text 0 lies nearest to image 0 but belongs to image 1; the other five are equal, and 1 and 2 belong to image 0
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], *[[1.0, 1.0, 0]] * 5])
    owner = [1, 0, 0, 1, 1, 2]
    ranks = [[2, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]  # by cosine, for each image
    want = sum(chance_of(image, ranks[image], owner, k) for image in range(3)) / 3
    assert recall(images, texts, torch.tensor(owner), ks=(k,))[f"tr{k}"] == pytest.approx(want)


def test_equal_captions_of_two_images_share_the_first_place():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 1.0, 0], [1.0, 1.0, 0], [0, 0, 1.0]])
    scores = recall(images, texts, torch.tensor([0, 1, 2]), ks=(1, 2))
    assert scores == pytest.approx({"tr1": 2 / 3, "tr2": 1.0, "ir1": 2 / 3, "ir2": 1.0})


def test_rounding_makes_no_winner_among_equal_candidates():
    g = torch.Generator().manual_seed(0)
    texts = torch.randn(1, 384, generator=g).expand(64, -1) * (1 + torch.rand(64, 1, generator=g))
    scores = recall(torch.randn(64, 384, generator=g), texts, torch.arange(64), ks=(1,))
    assert scores["tr1"] == pytest.approx(1 / 64)


def test_half_precision_is_raised():
    images, texts, owner = draw(3)
    halves = images.bfloat16(), texts.bfloat16()
    assert recall(*halves, owner) == recall(halves[0].float(), halves[1].float(), owner)


@pytest.mark.parametrize(
    ("owner", "ks", "message"),
    [
        ([0, 1, 2, 3], (1,), r"text 3 belongs to image 3, but there are 3 images"),
        ([0, 1, -1, 2], (1,), r"text 2 belongs to image -1"),
        ([0, 0, 2, 2], (1,), r"image 1 has no text \(1 images have none\)"),
        ([0, 1, 2], (1,), r"owner \[3\] do not fit"),
        ([0, 1, 2, 2], (0, 5), r"ks = \(0, 5\)"),
        ([0, 1, 2, 2], (), r"ks = \(\)"),
    ],
)
def test_bad_input_is_named(owner, ks, message):
    with pytest.raises(ValueError, match=message):
        recall(torch.eye(3), torch.ones(4, 3), torch.tensor(owner), ks=ks)


def test_embeddings_that_are_not_finite_are_named():
    texts = torch.ones(4, 3)
    texts[2, 1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"texts\[2\] holds NaN or Inf"):
        recall(torch.eye(3), texts, torch.tensor([0, 1, 2, 2]))
