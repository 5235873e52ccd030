# SPDX-License-Identifier: Apache-2.0
"""Extracts frozen features: each image passes once through the backbone in evaluation mode, without augmentation."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from recipes_lib import randomness
from recipes_lib.config.views import kernel
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.loader import each, outlive_signals
from recipes_lib.errors import DataError
from recipes_lib.views.multicrop import Normalize, Resize, eval_box, eval_view


@dataclass(frozen=True)
class Features:
    """The features of N images, on the CPU."""

    final: Tensor
    """float32 [N, D]: features after the last normalisation, for k-NN."""
    before_norm: Tensor
    """float32 [N, D]: features before the last normalisation, for MSN's linear and low-shot protocols."""
    embedding: Tensor | None = None
    """float32 [N, d]: the output of the method's head for ``final``, if the method's own classifier compares that."""

    def __len__(self) -> int:
        return len(self.final)

    def select(self, indices: Tensor) -> "Features":
        """The features at ``indices`` (int64 [n])."""
        embedding = None if self.embedding is None else self.embedding[indices]
        return replace(self, final=self.final[indices], before_norm=self.before_norm[indices], embedding=embedding)


def extract(
    backbone: nn.Module,
    dataset: ImageSet | ImageFiles,
    *,
    image_size: int,
    normalize: Normalize,
    resize: Resize = "bilinear",
    batch_size: int = 256,
    workers: int = 0,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """Extracts the features of all images of ``dataset`` on the device of ``backbone``.

    ``backbone`` has ``before_norm(images) -> [B, D]`` and ``norm``. ``embed``, if given, maps the final features [B, D]
    of a chunk to embeddings [B, d]. ``workers`` is the number of processes that open image files; images in memory need
    none. Afterwards the backbone is in the mode (training or evaluation) in which it was before.

    Raises: ``DataError`` naming an image file that cannot be read.
    """
    device = next(backbone.parameters()).device
    before, final, embedded = [], [], []
    chunks = read_chunks(dataset, image_size, batch_size, workers, resize)
    with torch.no_grad(), evaluating(backbone), closing(chunks):
        for images in chunks:
            rows = backbone.before_norm(eval_view(images.to(device), image_size, normalize, resize))  # [B, D]
            before.append(rows.float().cpu())
            features = backbone.norm(rows)
            final.append(features.float().cpu())
            if embed:
                embedded.append(embed(features).float().cpu())
    return Features(torch.cat(final), torch.cat(before), torch.cat(embedded) if embed else None)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the context ``module`` is in evaluation mode; afterwards each part is in the mode in which it was before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def some(images: ImageSet | ImageFiles, most: int) -> ImageSet | ImageFiles:
    """At most ``most`` images, drawn without regard to their order, the same at every call; all if there are fewer."""
    return images if len(images) <= most else images.select(sample(len(images), most))


def sample(count: int, most: int) -> Tensor:
    """The indices of the images that :func:`some` takes of ``count``: int64, sorted."""
    return randomness.permutation(0, 0, count)[:most].sort().values


def read_chunks(
    dataset: ImageSet | ImageFiles, image_size: int, batch_size: int, workers: int = 0, resize: Resize = "bilinear"
) -> Iterator[Tensor]:
    """Yields the images in order, uint8 [<= batch_size, 3, H, W].

    Images from files are resized and cropped to ``image_size`` by :func:`recipes_lib.views.multicrop.eval_box`.

    Raises: ``DataError`` naming an image file that cannot be read.
    """
    if isinstance(dataset, ImageSet):
        yield from dataset.images.split(batch_size)
        return
    files = _Cropped(dataset, image_size, resize)
    loader = DataLoader(files, batch_size, num_workers=workers, collate_fn=_collate, worker_init_fn=outlive_signals)
    with closing(each(loader)) as source:
        for images in source:
            if isinstance(images, DataError):
                raise images
            yield images


class _Cropped(Dataset):
    """The central crop of each file, uint8 [3, size, size], or the ``DataError`` of a file that cannot be read."""

    def __init__(self, files: ImageFiles, size: int, resize: Resize) -> None:
        self.files, self.size, self.resize = files, size, resize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            image = self.files.open(index)
        except DataError as error:
            return error  # if a worker raised it, its one line would arrive inside a traceback
        height, width, top, left = eval_box(image.height, image.width, self.size, self.resize)
        image = TF.resize(image, [height, width], InterpolationMode(kernel(self.resize)))
        return TF.pil_to_tensor(TF.crop(image, top, left, self.size, self.size))


def _collate(items: list[Tensor | DataError]) -> Tensor | DataError:
    return next((item for item in items if isinstance(item, DataError)), None) or torch.stack(items)
