# SPDX-License-Identifier: Apache-2.0
"""CLIP: all that belongs to this chapter alone. Chapter: ``notebooks/clip.py``."""
