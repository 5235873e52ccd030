# SPDX-License-Identifier: Apache-2.0
"""Sieve: the code that only this chapter uses. Chapter: ``notebooks/sieve.py``."""
