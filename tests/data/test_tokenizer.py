# SPDX-License-Identifier: Apache-2.0
import csv
import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes_lib.data import tokenizer as module
from recipes_lib.data.tokenizer import Tokenizer
from recipes_lib.errors import DataError

pytest.importorskip("tokenizers", reason="needs the extra text")

CAPTIONS = [
    "a red mug on a wooden table",
    "a blue mug beside a striped bowl",
    "a photo of a green bowl",
    "the Blue bottle, on a marble table",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return module.train(CAPTIONS, vocabulary=310, context=16)


# rows


def test_a_row_is_start_ids_end_and_padding(tokenizer):
    row = tokenizer.encode(["a red mug"])[0]
    assert row.dtype == torch.int64
    assert row.shape == (16,)
    count = int((row == tokenizer.end).int().argmax())
    assert row[0] == tokenizer.start == 1
    assert tokenizer.end == 2
    assert (row[1:count] >= 3).all()
    assert (row[count + 1 :] == tokenizer.padding).all()


def test_an_empty_text_is_start_and_end(tokenizer):
    for text in ("", "   ", "\n\t"):
        assert tokenizer.encode([text])[0, :3].tolist() == [1, 2, 0]


def test_no_texts_make_no_rows(tokenizer):
    assert tokenizer.encode([]).shape == (0, 16)


def test_a_long_text_is_cut_and_keeps_its_end(tokenizer):
    long = "a red mug on a table " * 500  # 10 kB
    rows = tokenizer.encode([long, "a mug"])
    assert rows[0, -1] == tokenizer.end
    assert (rows[0] == tokenizer.end).sum() == 1
    assert (rows[0] != tokenizer.padding).all()


def test_a_text_that_just_fits_is_not_cut(tokenizer):
    words = [text for count in range(1, 40) if (text := "a " * count)]
    fits = [text for text in words if tokenizer.decode(tokenizer.encode([text])[0]) == text.strip()]
    assert tokenizer.encode([fits[-1]])[0, -1] == tokenizer.end
    assert tokenizer.decode(tokenizer.encode([words[len(fits)]])[0]) == fits[-1].strip()


def test_every_id_is_below_the_vocabulary(tokenizer):
    assert tokenizer.vocabulary == 310
    rows = tokenizer.encode([*CAPTIONS, "\x00\x7f ÿ 漢字 🫖"])
    assert rows.max() < tokenizer.vocabulary
    assert tokenizer.encode(["漢字"]).max() < tokenizer.vocabulary


def test_one_text_outside_a_list_is_refused(tokenizer):
    with pytest.raises(TypeError, match="put it in a list"):
        tokenizer.encode("a mug")


# texts


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_lower_cased_without_extra_spaces(tokenizer, text):
    wide = dataclasses.replace(tokenizer, context=400)
    normal = tokenizer.pieces.bpe.normalizer.normalize_str(text)
    assert wide.decode(wide.encode([text])[0]) == normal.strip()


def test_letters_case_and_spaces_do_not_count(tokenizer):
    plain, loud = tokenizer.encode(["a red mug", "  A  Red\nMUG "])
    assert plain.tolist() == loud.tolist()
    assert tokenizer.decode(loud) == "a red mug"


def test_emoji_and_other_scripts_come_back(tokenizer):
    for text in ("🫖 ☕", "чашка", "mug ✓"):
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_a_lone_surrogate_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode(["mug \ud83e"])[0]) == "mug ?"


def test_no_text_can_spell_a_special_token(tokenizer):
    for text in ("<end>", "<|endoftext|>", "<end_of_text>", "[PAD]", "</s>"):
        row = tokenizer.encode([text])[0]
        assert (row == tokenizer.end).sum() == 1
        assert (row == tokenizer.start).sum() == 1


def test_a_word_has_one_form_first_and_later(tokenizer):
    first, later = tokenizer.encode(["mug", "mug mug"])
    assert later[1] == later[2] == first[1]


def test_decode_stops_at_the_first_end_and_needs_none(tokenizer):
    row = tokenizer.encode(["a red mug"])[0].tolist()
    end = row.index(tokenizer.end)
    assert tokenizer.decode(row[1:end]) == "a red mug"
    assert tokenizer.decode([*row[: end + 1], *row[1:end]]) == "a red mug"


# training


def test_frequent_words_become_one_piece(tokenizer):
    assert len(tokenizer.pieces.encode(["mug"])[0]) == 1
    assert len(tokenizer.pieces.encode(["xylophone"])[0]) > 3


def test_training_gives_the_same_vocabulary_in_every_process_and_order(tokenizer):
    program = (
        "import json, sys; from recipes_lib.data.tokenizer import train;"
        "print(json.dumps(train(json.load(sys.stdin)[::-1], 310, 16).pieces.state(), sort_keys=True))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(CAPTIONS), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == json.dumps(tokenizer.pieces.state(), sort_keys=True)


def test_few_texts_fill_fewer_ids_than_allowed():
    assert module.train(["mug"], vocabulary=5000, context=8).vocabulary < 300


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocabulary = 258 has no room"):
        module.train(CAPTIONS, vocabulary=258, context=8)


def test_a_context_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="context = 2 tokens leave none"):
        module.train(CAPTIONS, vocabulary=300, context=2)


# files


def test_a_saved_tokenizer_comes_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = module.load(tmp_path / "tokenizer.json")
    assert (again.vocabulary, again.context, again.start, again.end) == (310, 16, 1, 2)
    assert again.encode(CAPTIONS).tolist() == tokenizer.encode(CAPTIONS).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_tokenizer_can_be_sent_to_another_process(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(CAPTIONS).tolist() == tokenizer.encode(CAPTIONS).tolist()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read: No such file"):
        module.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"context": 16, "pieces": {"model": 3}}', "\x00"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer of ours, or is damaged"):
        module.load(path)


@pytest.mark.parametrize(
    ("package", "call"),
    [("tokenizers", lambda: module.train([], 300, 8)), ("open_clip.tokenizer", module.clip_vocabulary)],
)
def test_an_absent_package_is_named_with_what_to_install(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"needs the package \w+: pip install 'ssl-cookbook\[text\]'"):
        call()


# real texts


@pytest.mark.parametrize(
    ("table", "columns"),
    [("wiki_alttext64/texts.csv", ["alt_text", "caption"]), ("emoji32/captions.csv", ["emoji", "caption"])],
)
def test_real_texts_come_back_but_for_case_and_spaces(recipes_data, table, columns):
    with (recipes_data / table).open(encoding="utf-8", newline="") as file:
        texts = [cell for row in csv.DictReader(file) for cell in map(row.get, columns)]
    assert len(texts) > 200
    tokenizer = module.train(texts, vocabulary=2000, context=400)
    assert tokenizer.vocabulary == 2000
    for text, row in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(row) == tokenizer.pieces.bpe.normalizer.normalize_str(text)
