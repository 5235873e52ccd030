# SPDX-License-Identifier: Apache-2.0
"""Masked Siamese Networks: the code that only this chapter uses. Chapter: ``notebooks/msn.py``."""
