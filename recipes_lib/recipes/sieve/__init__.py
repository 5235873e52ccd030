# SPDX-License-Identifier: Apache-2.0
"""Sieve: all that belongs to this chapter alone. Chapter: ``notebooks/sieve.py``."""
