# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X: the code that only this chapter uses. Chapter: ``notebooks/imagenet_x.py``."""
