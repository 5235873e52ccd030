# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from recipes_lib.models.captioner import ToyCaptioner
from recipes_lib.models.sampling import Sampling

WORDS = ["-", "<", ">", "a", "red", "green", "blue", "square", "on", "black", "grey"]


class Words:
    """A tokenizer of whole words; padding is a word too, as it is in OpenAI's vocabulary."""

    padding, start, end, vocabulary, context = 0, 1, 2, len(WORDS), 10

    def encode(self, texts):
        rows = [[self.start, *map(WORDS.index, text.split()), self.end] for text in texts]
        return torch.tensor([row + [self.padding] * (self.context - len(row)) for row in rows])

    def decode(self, ids):
        return " ".join(WORDS[number] for number in ids)


def captioner(**sampling) -> ToyCaptioner:
    torch.manual_seed(0)
    settings = Sampling(**{"max_length": 9, **sampling})
    model = ToyCaptioner(Words(), image_size=16, width=32, heads=2, sampling=settings)
    for weight in model.parameters():  # so that an untrained network is not indifferent
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_a_token_does_not_see_the_later_ones_and_sees_its_image():
    model, images = captioner(), pictures(2)
    tokens = Words().encode(["a red square on black"] * 2)
    with torch.no_grad():
        grid = model.grid(model.prepare(images))
        before, after = model.logits(grid, tokens), model.logits(grid, tokens.index_fill(1, torch.tensor([4]), 6))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-2)
    assert not torch.allclose(before[0], before[1], atol=1e-2)


def test_the_loss_is_the_mean_over_tokens_up_to_the_end():
    model = captioner()
    images = model.prepare(pictures(2))
    tokens = Words().encode(["a - square", "-"])  # a word with padding's id counts
    logits = model.logits(model.grid(images), tokens)
    parts = [F.cross_entropy(logits[0, :4], tokens[0, 1:5], reduction="none")]
    parts += [F.cross_entropy(logits[1, :2], tokens[1, 1:3], reduction="none")]
    torch.testing.assert_close(model.loss(images, tokens), torch.cat(parts).mean())
    tokens[1, 3:] = 7
    torch.testing.assert_close(model.loss(images, tokens), torch.cat(parts).mean())


def test_gradients_are_those_of_finite_differences():
    model = captioner().double()
    tokens = Words().encode(["a red square", "blue on grey"])
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.loss(x, tokens), images, fast_mode=True)
    model.loss(images, tokens).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_token_by_token_gives_what_all_tokens_at_once_give():
    model, images = captioner(top_p=1e-9, repetition_penalty=1.0), pictures(5)
    with torch.no_grad():
        grid = model.grid(model.prepare(images))
        tokens = model._draw(grid, 3, torch.arange(5))
        best = model.logits(grid.repeat_interleave(3, 0), tokens[:, :-1])
    best[:, :, [Words.start, Words.padding]] = -torch.inf
    best[:, 0, Words.end] = -torch.inf  # min_length is 1
    over = (tokens[:, :-1] == Words.end).cumsum(1) > 0
    assert torch.equal(tokens[:, 1:][~over], best.argmax(2)[~over])
    assert len(tokens.unique(dim=0)) > 1


def test_every_token_has_a_draw_of_its_own(monkeypatch):
    model = captioner(min_length=4, max_length=4, top_p=1.0)
    draws = (1 - 2**-24) * torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    monkeypatch.setattr(Sampling, "draws", lambda self, seeds, count: draws)
    with torch.no_grad():
        tokens = model._draw(model.grid(model.prepare(pictures(1))), 3, torch.tensor([0]))[:, 1:]
    likeliest, second, fourth = tokens.tolist()
    assert second[0] == likeliest[0]
    assert second[1] != likeliest[1]
    assert fourth[:3] == likeliest[:3]
    assert fourth[3] != likeliest[3]


def test_captions_follow_from_an_images_seed_and_not_from_its_batch():
    model, images, seeds = captioner(), pictures(7), torch.arange(7) * 1000 - 3
    together = model.generate(images, 4, seeds)
    assert [len(texts) for texts in together] == [4] * 7
    alone = [model.generate(images[i : i + 1], 4, seeds[i : i + 1])[0] for i in range(7)]
    assert together == alone
    assert model.generate(images, 4, seeds + 1) != together
    assert len({text for texts in together for text in texts}) > 7


def test_more_captions_leave_the_earlier_ones_as_they_are():
    model, images, seeds = captioner(), pictures(3), torch.arange(3)
    assert [texts[:2] for texts in model.generate(images, 6, seeds)] == model.generate(images, 2, seeds)


def test_lengths_are_kept_and_only_words_are_drawn():
    lengths = set()
    for shortest, longest in ((0, 9), (3, 5), (9, 9)):
        model = captioner(min_length=shortest, max_length=longest, top_p=1.0)
        texts = [text.split() for row in model.generate(pictures(40), 5, torch.arange(40)) for text in row]
        lengths = {len(text) for text in texts}
        assert min(lengths) >= shortest
        assert max(lengths) <= longest
        assert not {"<", ">", "-"} & {word for text in texts for word in text}
    assert lengths == {9}


def test_generating_in_the_middle_of_training_changes_nothing():
    model = captioner().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.generate(pictures(3), 2, torch.arange(3))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pictures_of_any_size_and_mode_are_taken():
    model, images = captioner(), pictures(1)
    plain = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    assert model.generate([plain], 2, torch.tensor([5])) == model.generate(images, 2, torch.tensor([5]))
    others = [Image.new("L", (40, 20)), Image.new("RGBA", (5, 90)), Image.new("P", (16, 16))]
    assert len(model.generate(others, 2, torch.arange(3))) == 3
    assert model.generate([], 2, torch.arange(0)) == []


@pytest.mark.parametrize(
    ("images", "count", "seeds", "named"),
    [
        (pictures(2), 0, torch.arange(2), "count = 0"),
        (pictures(2), 1, torch.arange(3), r"2 images take int64 \[2\]"),
        (pictures(2), 1, torch.zeros(2), "float32"),
        (pictures(2).float(), 1, torch.arange(2), r"torch.float32 \[2, 3, 16, 16\]"),
        (pictures(2)[:, :, 1:], 1, torch.arange(2), r"\[2, 3, 15, 16\]; this captioner takes uint8 \[B, 3, 16, 16\]"),
    ],
)
def test_what_it_cannot_describe_is_refused(images, count, seeds, named):
    with pytest.raises(ValueError, match=named):
        captioner().generate(images, count, seeds)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"image_size": 20}, "image_size = 20"),
        ({"image_size": 16, "width": 30, "heads": 4}, "width = 30"),
        ({"image_size": 16, "sampling": Sampling(max_length=11)}, "max_length = 11 exceeds the context of 10"),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        ToyCaptioner(Words(), **arguments)


def test_it_learns_to_name_the_colours_it_sees():
    torch.manual_seed(0)
    model = ToyCaptioner(Words(), image_size=16, width=32, heads=2, sampling=Sampling(max_length=9, top_p=0.5))
    shades = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
    grounds = {"black": 0, "grey": 120}
    kinds = [(shade, ground) for shade in shades for ground in grounds]
    generator = torch.Generator().manual_seed(0)

    def batch(size: int):
        chosen = [kinds[i] for i in torch.randint(0, 6, (size,), generator=generator).tolist()]
        images = torch.empty(size, 3, 16, 16)
        for image, (shade, ground) in zip(images, chosen, strict=True):
            image.fill_(grounds[ground])
            x, y = torch.randint(0, 9, (2,), generator=generator).tolist()
            image[:, x : x + 7, y : y + 7] = torch.tensor(shades[shade], dtype=torch.float32)[:, None, None]
        return images.to(torch.uint8), [f"a {shade} square on {ground}" for shade, ground in chosen]

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        images, texts = batch(32)
        loss = model.loss(model.prepare(images), Words().encode(texts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, texts = batch(100)
    found = model.generate(images, 2, torch.arange(100))
    assert sum(text in answers for text, answers in zip(texts, found, strict=True)) >= 95
