# SPDX-License-Identifier: Apache-2.0
"""The knobs of self-supervised learning: the code that only this chapter uses. Chapter: ``notebooks/knobs.py``."""
