# SPDX-License-Identifier: Apache-2.0
"""PAWS: the code that only this chapter uses. Chapter: ``notebooks/paws.py``."""
