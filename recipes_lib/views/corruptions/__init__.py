# SPDX-License-Identifier: Apache-2.0
"""The fifteen common corruptions of ImageNet-C, at five severities, for batches of images of any size.

The strengths are the published ones (:mod:`recipes_lib.views.corruptions.parameters`), the code is ours. Random numbers
derive from the seed, the image's index in its data set, the corruption and the severity, so an image is corrupted in
the same way in every batch and on every device.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019, arXiv 1903.12261.
Differs: ``frost`` draws its frost by rule (:mod:`recipes_lib.views.corruptions.frost`). ``motion_blur`` and ``snow``
compute what ImageMagick computes for the authors. The published images of ImageNet-C were then stored as JPEG files.
"""

from recipes_lib.views.corruptions.by_name import corrupt
from recipes_lib.views.corruptions.parameters import Published, for_side

__all__ = ["Published", "corrupt", "for_side"]
