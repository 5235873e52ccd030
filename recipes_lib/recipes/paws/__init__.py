# SPDX-License-Identifier: Apache-2.0
"""PAWS: all that belongs to this chapter alone. Chapter: ``notebooks/paws.py``."""
