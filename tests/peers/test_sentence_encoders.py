# SPDX-License-Identifier: Apache-2.0
"""Parity of the sentence encoder with ``transformers`` and ``sentence_transformers``, published weights, atol 1e-5."""

import pytest
import torch
import torch.nn.functional as F

from recipes_lib.errors import DataError
from recipes_lib.models import minilm
from recipes_lib.models.sentence import load_encoder

TEXTS = ["a dog runs on the beach", "", "Üñí 犬 🐶 don't", "a plate of spaghetti, " * 12, "word " * 400, "x"]


@pytest.fixture
def ours(sentence_encoder):
    return sentence_encoder


def test_the_network_is_that_of_transformers(ours):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")
    folder = minilm._package_folder()
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=minilm.LONGEST, return_tensors="pt"
    )
    with torch.no_grad():
        vectors = theirs(**tokens).last_hidden_state
    weight = tokens["attention_mask"][:, :, None]
    expected = F.normalize((vectors * weight).sum(dim=1) / weight.sum(dim=1), dim=1)
    torch.testing.assert_close(ours.encode(TEXTS), expected, atol=1e-5, rtol=0)


def test_the_vectors_are_those_of_sentence_transformers_through_our_adapter_too(ours):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: pip install '.[dev]'")
    theirs = load_encoder(str(minilm._package_folder()))
    torch.testing.assert_close(ours.encode(TEXTS), theirs.encode(TEXTS).cpu(), atol=1e-5, rtol=0)
    assert theirs.encode([]).shape == (0, 384)


def test_a_folder_without_a_model_is_named(tmp_path):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: pip install '.[dev]'")
    with pytest.raises(DataError, match="No sentence encoder could be loaded") as caught:
        load_encoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
