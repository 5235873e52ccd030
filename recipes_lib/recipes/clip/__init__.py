# SPDX-License-Identifier: Apache-2.0
"""CLIP: the code that only this chapter uses. Chapter: ``notebooks/clip.py``."""
