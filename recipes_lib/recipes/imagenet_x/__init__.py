# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X: all that belongs to this chapter alone. Chapter: ``notebooks/imagenet_x.py``."""
