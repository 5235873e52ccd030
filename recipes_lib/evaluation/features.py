# SPDX-License-Identifier: Apache-2.0
"""Frozen features: each image once through a backbone in evaluation mode, without augmentation."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.loader import each, outlive_signals
from recipes_lib.errors import DataError
from recipes_lib.views.multicrop import Normalize, Resize, eval_box, eval_view


@dataclass(frozen=True)
class Features:
    """What a backbone says of N images, on the CPU."""

    final: Tensor
    """float32 [N, D]: after the last normalisation, as k-NN compares them."""
    before_norm: Tensor
    """float32 [N, D]: before it, as MSN's linear and low-shot protocols read them."""
    embedding: Tensor | None = None
    """float32 [N, d]: what the method's head makes of ``final``, where its own classifier compares that."""

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
    """The features of all images of ``dataset``, computed where ``backbone`` lies.

    ``embed`` takes the final features [B, D] of a chunk to embeddings [B, d], which are kept too. ``backbone`` has ``before_norm(images) -> [B, D]`` and ``norm``. ``workers`` open image files; a set in memory
    needs none. The backbone comes back in the mode (training or evaluation) it was in.

    Raises: ``DataError`` naming an image file that cannot be read.
    """
    device = next(backbone.parameters()).device
    mode = backbone.training
    backbone.eval()
    before, final, embedded = [], [], []
    try:
        with torch.no_grad(), closing(read_chunks(dataset, image_size, batch_size, workers, resize)) as chunks:
            for images in chunks:
                rows = backbone.before_norm(eval_view(images.to(device), image_size, normalize, resize))
                before.append(rows.float().cpu())
                features = backbone.norm(rows)
                final.append(features.float().cpu())
                if embed:
                    embedded.append(embed(features).float().cpu())
    finally:
        backbone.train(mode)
    return Features(torch.cat(final), torch.cat(before), torch.cat(embedded) if embed else None)


def read_chunks(
    dataset: ImageSet | ImageFiles, image_size: int, batch_size: int, workers: int = 0, resize: Resize = "bilinear"
) -> Iterator[Tensor]:
    """The images in order, uint8 [<= batch_size, 3, H, W]; files are resized and cropped to ``image_size``, as
    :func:`recipes_lib.views.multicrop.eval_box` says.

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
    """Each file's centre, uint8 [3, size, size]; or the ``DataError`` of a file that cannot be read."""

    def __init__(self, files: ImageFiles, size: int, resize: Resize) -> None:
        self.files, self.size, self.resize = files, size, resize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            image = self.files.open(index)
        except DataError as error:
            return error  # raised in a worker, its one line would come back wrapped in a traceback
        height, width, top, left = eval_box(image.height, image.width, self.size, self.resize)
        image = TF.resize(image, [height, width], InterpolationMode(self.resize))
        return TF.pil_to_tensor(TF.crop(image, top, left, self.size, self.size))


def _collate(items: list[Tensor | DataError]) -> Tensor | DataError:
    return next((item for item in items if isinstance(item, DataError)), None) or torch.stack(items)
