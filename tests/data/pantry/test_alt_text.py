# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import replace

import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.data.pantry.alt_text import ALIGNED, CLEAN, KINDS, Mix, alt_texts, pool
from recipes_lib.data.pantry.captions import captions
from recipes_lib.data.pantry.junk import MEDIA
from recipes_lib.errors import ConfigError

MIX = Mix(medium=0.0)


def classes_in(text: str) -> set[str]:
    return set(pantry.CLASSES) & set(text.split())


def shown(factors: pantry.Factors, row: int) -> set[str]:
    extra = factors.extra_label[row, : int(factors.objects[row]) - 1].tolist()
    return {pantry.CLASSES[label] for label in [int(factors.label[row]), *extra]}


def test_shares_of_kinds_are_the_mix():
    _, kinds, _ = alt_texts(pantry.sample_factors(6000, 0), 0, MIX)
    shares = torch.bincount(kinds, minlength=len(KINDS)) / 6000
    torch.testing.assert_close(shares, torch.tensor(MIX.shares()), atol=0.02, rtol=0)


@pytest.mark.parametrize("scenes", ["natural", "controlled"])
def test_each_kind_says_what_its_name_says(scenes):
    factors = pantry.sample_factors(1500, 0, scenes)
    texts, kinds, words = alt_texts(factors, 0, MIX)
    for row, (text, kind, word) in enumerate(zip(texts, kinds.tolist(), words, strict=True)):
        seen, name = shown(factors, row), pantry.CLASSES[factors.label[row]]
        match KINDS[kind]:
            case "caption":
                assert name in classes_in(text) <= seen
                assert word in ("", name)
            case "unusual":
                assert not classes_in(text)
                assert word in ("", name)
            case "wrong_pair":
                assert not classes_in(text) & seen
                assert word == ""
            case "spurious_text":
                assert word in classes_in(text)
                assert not classes_in(text) & seen
            case "file_name":
                assert re.search(r"\d", text)
                assert re.search(r"\.(jpe?g|png|gif|webp)$", text.lower())
                assert word == ""
            case "boilerplate":
                assert not classes_in(text)
                assert word == ""


def test_true_captions_are_those_of_the_factors():
    factors = pantry.sample_factors(50, 0)
    texts, kinds, words = alt_texts(factors, 3, CLEAN)
    assert texts == captions(factors, 3)
    assert words == [""] * 50
    assert set(kinds.tolist()) == {0}


def test_an_alt_text_depends_on_seed_and_position_alone():
    factors = pantry.sample_factors(90, 0)
    texts, kinds, words = alt_texts(factors, 1, Mix())
    part = alt_texts(factors.select(torch.arange(31, 77)), 1, Mix(), start=31)
    assert part[0] == texts[31:77]
    assert part[1].tolist() == kinds[31:77].tolist()
    assert part[2] == words[31:77]
    assert alt_texts(factors, 2, Mix())[0] != texts


def test_wording_and_medium_do_not_tell_true_from_wrong():
    _, kinds, _ = alt_texts(pantry.sample_factors(6000, 0), 0, MIX)
    texts, _, _ = alt_texts(pantry.sample_factors(6000, 0), 0, replace(MIX, medium=0.3))
    bare = alt_texts(pantry.sample_factors(6000, 0), 0, MIX)[0]
    wrong = [text for text, kind in zip(bare, kinds.tolist(), strict=True) if KINDS[kind] == "wrong_pair"]
    odd = sum(not classes_in(text) for text in wrong) / len(wrong)
    assert odd == pytest.approx(MIX.unusual / (MIX.caption + MIX.unusual), abs=0.05)
    for kind in range(len(KINDS)):
        rows = (kinds == kind).nonzero()[:, 0].tolist()
        assert sum(texts[row] != bare[row] for row in rows) / len(rows) == pytest.approx(0.3, abs=0.07)
    changed = [(text, plain) for text, plain in zip(texts, bare, strict=True) if text != plain]
    assert all(text in [medium.format(plain) for medium in MEDIA] for text, plain in changed)


def test_a_share_of_true_pairs_is_stamped_with_its_own_word():
    factors = pantry.sample_factors(4000, 0)
    _, kinds, words = alt_texts(factors, 0, Mix(stamped=0.4))
    true = [row for row, kind in enumerate(kinds.tolist()) if KINDS[kind] in ALIGNED]
    assert sum(words[row] != "" for row in true) / len(true) == pytest.approx(0.4, abs=0.04)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (Mix(caption=0.5), r"mix: the shares of caption, .* sum to 1\.2\. Make them sum to 1"),
        (Mix(stamped=1.5), r"mix\.stamped = 1\.5 is not allowed: use a value in \[0, 1\]"),
        (Mix(caption=-0.1, unusual=0.55), r"mix\.caption = -0\.1 is not allowed"),
        (Mix(caption=float("nan")), r"mix\.caption = nan is not allowed"),
    ],
)
def test_shares_that_cannot_be_are_refused(mix, message):
    with pytest.raises(ConfigError, match=message):
        alt_texts(pantry.sample_factors(2, 0), 0, mix)


def test_a_pool_has_its_words_in_its_pictures(recipes_cache):
    pairs = pool(60, size=32, seed=2, mix=Mix())
    plain = pantry.dataset(60, size=32, seed=2)
    changed = (pairs.images != plain.images).flatten(1).any(1)
    assert changed.tolist() == pairs.factors["stamped"].bool().tolist()
    assert 3 < int(changed.sum()) < 30
    assert torch.equal(pairs.labels, plain.labels)
    assert set(plain.factors) < set(pairs.factors)


def test_a_larger_pool_begins_with_the_smaller_one(recipes_cache):
    small, large = pool(20, size=16, seed=2, mix=Mix()), pool(30, size=16, seed=2, mix=Mix())
    assert small.texts == large.texts[:20]
    assert small.uids == large.uids[:20]
    assert torch.equal(small.images, large.images[:20])


def test_uids_are_32_hexadecimal_digits_of_seed_split_and_position(recipes_cache):
    sets = [pool(20, size=16, seed=seed, mix=Mix(), split=split) for seed in (0, 1) for split in ("train", "test")]
    uids = [uid for pairs in sets for uid in pairs.uids]
    assert len(set(uids)) == 80
    assert all(re.fullmatch("[0-9a-f]{32}", uid) for uid in uids)
    assert pool(20, size=16, seed=0, mix=CLEAN).uids == sets[0].uids
