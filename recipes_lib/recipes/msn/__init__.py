# SPDX-License-Identifier: Apache-2.0
"""Masked Siamese Networks: all that belongs to this chapter alone. Chapter: ``notebooks/msn.py``."""
