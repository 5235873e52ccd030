# SPDX-License-Identifier: Apache-2.0
"""BLIP of transformers through our drawing of tokens: a tiny one with random weights, saved and loaded."""

import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from recipes_lib.errors import DataError
from recipes_lib.models.blip import HFBlipCaptioner
from recipes_lib.models.sampling import Sampling

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "picture", "of", "red", "green", "blue", "mug", "##s", "on", "table", "[DEC]"]
PROMPT = torch.tensor([15, 5, 6, 7])  # [DEC] a picture of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("blip")
    (place / "vocab.txt").write_text("\n".join(WORDS))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = {"bos_token_id": 15, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": 16, "encoder_hidden_size": 32, "max_position_embeddings": 32, **shape, **names}
    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})
    model = transformers.BlipForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(place)
    tokenizer = transformers.BertTokenizer(str(place / "vocab.txt"))
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(place)
    return place


@pytest.fixture
def captioner(folder):
    return lambda **sampling: HFBlipCaptioner(str(folder), sampling=Sampling(**sampling))


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 40, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def pixels(captioner, images):
    return captioner.processor.image_processor(images=list(images), return_tensors="pt").pixel_values


@pytest.mark.parametrize(("shortest", "penalty"), [(1, 1.1), (8, 1.0), (1, 3.0)])
def test_the_likeliest_tokens_are_those_of_blips_own_generate(captioner, shortest, penalty):
    ours = captioner(top_p=1e-9, min_length=shortest, repetition_penalty=penalty)
    images = pictures(6)
    assert torch.equal(ours.prompt, PROMPT)
    theirs = ours.model.generate(
        pixels(ours, images),
        input_ids=torch.tensor([[2, 5, 6, 7, 3]] * 6),
        do_sample=False,
        num_beams=1,
        min_length=4 + shortest,
        max_length=20,
        repetition_penalty=penalty,
    )
    assert len(theirs.unique(dim=0)) > 1
    texts = [text.strip() for text in ours.processor.batch_decode(theirs[:, 4:], skip_special_tokens=True)]
    assert ours.generate(images, 2, torch.arange(6)) == [[text] * 2 for text in texts]


def test_first_tokens_have_the_frequencies_of_the_nucleus(captioner):
    ours = captioner(top_p=0.9, max_length=1)
    with torch.no_grad():
        seen = ours.model.vision_model(pixel_values=pixels(ours, pictures(1))).last_hidden_state
        tokens = ours._draw(seen.repeat_interleave(4000, 0), ours.sampling.draws(torch.tensor([7]), 4000))
        logits = ours.model.text_decoder(PROMPT[None], encoder_hidden_states=seen, is_decoder=True).logits[:, -1]
    logits = transformers.RepetitionPenaltyLogitsProcessor(1.1)(PROMPT[None], logits)
    logits[:, 3] = -torch.inf  # one token there must be
    expected = transformers.TopPLogitsWarper(0.9)(PROMPT[None], logits).softmax(1)[0]
    assert tokens.shape == (4000, 5)
    frequency = torch.bincount(tokens[:, 4], minlength=16) / 4000
    torch.testing.assert_close(frequency, expected, atol=0.03, rtol=0)
    assert torch.equal(frequency > 0, expected > 0)


def test_every_token_has_a_draw_of_its_own(captioner):
    ours = captioner(min_length=4, max_length=4)
    with torch.no_grad():
        seen = ours.model.vision_model(pixel_values=pixels(ours, pictures(1))).last_hidden_state
        draws = 0.99 * torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
        likeliest, second, fourth = ours._draw(seen.expand(3, -1, -1), draws)[:, 4:].tolist()
    assert second[0] == likeliest[0]
    assert second[1] != likeliest[1]
    assert fourth[:3] == likeliest[:3]
    assert fourth[3] != likeliest[3]


def test_captions_follow_from_an_images_seed_and_not_from_its_batch(captioner):
    ours, images, seeds = captioner(), pictures(4), torch.tensor([5, -9, 0, 2**40])
    together = ours.generate(images, 3, seeds)
    assert [len(texts) for texts in together] == [3] * 4
    assert [ours.generate(images[i : i + 1], 3, seeds[i : i + 1])[0] for i in range(4)] == together
    assert [texts[:3] for texts in ours.generate(images, 8, seeds)] == together
    assert ours.generate(images, 3, seeds + 1) != together
    assert torch.equal(ours.prompt, PROMPT)


def test_pictures_and_tensors_give_the_same(captioner):
    ours, images, seeds = captioner(), pictures(2), torch.arange(2)
    plain = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    assert ours.generate(plain, 2, seeds) == ours.generate(images, 2, seeds)
    assert len(ours.generate([Image.new("RGBA", (9, 70)), Image.new("L", (64, 64))], 2, seeds)) == 2
    assert ours.generate([], 2, torch.arange(0)) == []


def test_what_cannot_be_drawn_is_refused(captioner):
    with pytest.raises(ValueError, match="count = 0"):
        captioner().generate(pictures(1), 0, torch.arange(1))
    with pytest.raises(ValueError, match=r"2 images take int64 \[2\]"):
        captioner().generate(pictures(2), 1, torch.arange(1))
    with pytest.raises(ValueError, match=r"max_length = 29 and a prompt of 4 tokens exceed the 32 positions"):
        captioner(max_length=29)


def test_weights_that_lack_a_layer_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 of BLIP's, text_decoder\.bert\.encoder\.layer\.1\.crossattention"):
        HFBlipCaptioner(str(tmp_path))


def test_absent_weights_are_named_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="No BLIP could be loaded from") as caught:
        HFBlipCaptioner(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match="needs the package transformers"):
        HFBlipCaptioner(str(tmp_path))
