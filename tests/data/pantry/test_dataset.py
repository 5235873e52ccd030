# SPDX-License-Identifier: Apache-2.0
import hashlib
import multiprocessing
import os
import subprocess
import sys
import warnings

import pytest
import torch

from recipes_lib.data import cache, pantry
from recipes_lib.data.images import ImageSet

pytestmark = pytest.mark.usefixtures("recipes_cache")


def draw(count: int = 12, **changes):
    return pantry.dataset(count, **({"size": 16, "seed": 0} | changes))


@pytest.fixture
def rendered(monkeypatch) -> list[int]:
    """Sizes of the sets that were really rendered."""
    calls = []

    def counting(factors, size):
        calls.append(len(factors))
        return pantry.render(factors, size)

    monkeypatch.setitem(pantry.dataset.__globals__, "render", counting)
    return calls


def only_file():
    (path,) = cache.folder().iterdir()
    return path


def test_a_data_set_has_pictures_classes_and_factors():
    images = draw()
    assert images.images.shape == (12, 3, 16, 16)
    assert images.class_names == pantry.CLASSES
    assert torch.equal(images.labels, images.factors["label"])
    assert images.labels.bincount().tolist() == [1] * 12
    assert set(images.factors) == set(pantry.sample_factors(1, 0).to_dict())


def test_a_larger_set_begins_with_the_smaller_one():
    assert torch.equal(draw(20).images[:12], draw(12).images)


def test_splits_and_scenes_show_other_pictures():
    train = draw().images
    assert not (draw(split="test").images == train).flatten(1).all(1).any()
    assert not (draw(scenes="controlled").images == train).flatten(1).all(1).any()


def test_the_second_call_reads_what_the_first_one_rendered(rendered):
    first, second = draw(), draw()
    assert rendered == [12]
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("change", [{"size": 17}, {"seed": 1}, {"split": "test"}, {"scenes": "controlled"}])
def test_other_arguments_are_rendered_anew(rendered, change):
    draw()
    draw(**change)
    assert len(rendered) == 2


def test_another_version_of_the_renderer_is_rendered_anew(rendered, monkeypatch):
    draw()
    monkeypatch.setitem(pantry.dataset.__globals__, "VERSION", -1)
    draw()
    assert len(rendered) == 2


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "empty", "not a file of ours", "another set"])
def test_a_damaged_cache_is_rendered_again_and_says_so_in_one_line(rendered, damage):
    expected = draw().images
    path = only_file()
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            content = content[:-100]
        case "a flipped bit":
            content[-5] ^= 1
        case "empty":
            content = b""
        case "not a file of ours":
            content = b"hello" * 100
        case "another set":
            draw(seed=1)
            content = next(p for p in cache.folder().iterdir() if p != path).read_bytes()
    path.write_bytes(content)
    rendered.clear()
    with pytest.warns(UserWarning, match=r"are damaged \(.*\); rendering them again\.$") as caught:
        assert torch.equal(draw().images, expected)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert str(path) in str(caught[0].message)
    assert rendered == [12]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw().images, expected)  # it was mended on disk too


def test_a_failed_write_leaves_nothing_behind(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.warns(UserWarning, match="were not cached in .*No space left on device"):
        assert len(draw()) == 12
    assert list(cache.folder().iterdir()) == []


def test_a_cache_that_is_no_folder_is_done_without(tmp_path, monkeypatch):
    place = tmp_path / "file"
    place.write_text("")
    monkeypatch.setenv("RECIPES_CACHE", str(place))
    with pytest.warns(UserWarning, match="set RECIPES_CACHE"):
        assert len(draw()) == 12


def test_the_cache_lies_in_the_users_own_folder_unless_the_environment_names_another(monkeypatch):
    assert str(cache.folder()) == os.environ["RECIPES_CACHE"]
    monkeypatch.delenv("RECIPES_CACHE")
    assert cache.folder().parts[-2:] == (".cache", "ssl-cookbook")


def test_a_user_without_a_home_directory_has_a_temporary_cache_and_is_told(monkeypatch):
    monkeypatch.delenv("RECIPES_CACHE")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", no_home)
    with pytest.warns(UserWarning, match=r"There is no home directory: pictures are cached in .*; set RECIPES_CACHE"):
        place = cache.folder()
    assert place.name == f"ssl-cookbook-{os.getuid()}"


def _write(start, results) -> None:
    start.wait()
    tensors = cache.cached(lambda: {"images": torch.arange(100_000)}, {"set": 1})
    results.put(int(tensors["images"].sum()))


def test_processes_that_write_the_same_set_at_once_do_each_other_no_harm():
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.SimpleQueue()
    writers = [context.Process(target=_write, args=(start, results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    assert [results.get() for _ in writers] == [100_000 * 99_999 // 2] * 4
    for writer in writers:
        writer.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.cached(lambda: pytest.fail("rendered again"), {"set": 1})
    assert len(list(cache.folder().iterdir())) == 1


def test_another_process_draws_the_same_pictures():
    code = (
        "import hashlib; from recipes_lib.data import pantry;"
        "images = pantry.render(pantry.sample_factors(6, 0), 16);"
        "print(hashlib.sha256(images.numpy().tobytes()).hexdigest())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = pantry.render(pantry.sample_factors(6, 0), 16)
    assert shown == hashlib.sha256(here.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"), [({"size": 7}, "size = 7"), ({"count": 0}, "count = 0"), ({"split": "val"}, "split = 'val'")]
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw(**change)


def test_the_true_masks_of_images_are_those_of_their_factors_in_any_order():
    images = pantry.dataset(14, size=16, seed=0)
    masks = pantry.true_masks(images)
    assert masks.shape == (14, 16, 16)
    assert torch.equal(masks, pantry.masks(pantry.Factors(**images.factors), 16))
    some = images.select(torch.tensor([5, 2]))
    assert torch.equal(pantry.true_masks(some), masks[[5, 2]])
    middle = masks[:, 6:10, 6:10].flatten(1)
    assert (
        (middle == 1 + images.labels[:, None]).any(dim=1)
    ).double().mean() > 0.9  # the main object is near the centre


def test_images_of_another_data_set_have_no_masks():
    images = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match="these images have no masks"):
        pantry.true_masks(images)
