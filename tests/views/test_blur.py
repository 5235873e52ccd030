# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torchvision.transforms.v2 import functional as peer

from recipes_lib.views.blur import gaussian_blur, kernel_radius

SIGMA = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 3.0])


# 120 is computed in tiles, 8 is smaller than the widest kernel
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (8, 8), (120, 100)])
def test_blur_is_torchvisions_with_a_kernel_of_3_sigma(height, width):
    images = torch.rand(6, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = [
        peer.gaussian_blur(image, [2 * int(kernel_radius(s, side)) + 1 for side in (width, height)], [float(s)] * 2)
        for image, s in zip(images, SIGMA, strict=True)
    ]
    torch.testing.assert_close(gaussian_blur(images, SIGMA), torch.stack(expected), atol=3e-6, rtol=0)


def test_a_kernel_reaches_3_sigma_or_as_far_as_the_mirror():
    assert kernel_radius(torch.tensor([0.1, 1.0, 2.0]), 32).tolist() == [1, 3, 6]
    assert kernel_radius(torch.tensor([2.0, 9.0]), 5).tolist() == [4, 4]


def test_blur_keeps_the_mean_of_a_flat_image():
    torch.testing.assert_close(gaussian_blur(torch.full((6, 3, 16, 16), 0.3), SIGMA), torch.full((6, 3, 16, 16), 0.3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blur_on_the_gpu_is_that_of_the_cpu():
    images = torch.rand(6, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    ours = gaussian_blur(images.cuda(), SIGMA).cpu()
    torch.testing.assert_close(ours, gaussian_blur(images, SIGMA), atol=1e-5, rtol=0)
