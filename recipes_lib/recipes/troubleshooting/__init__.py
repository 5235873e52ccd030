# SPDX-License-Identifier: Apache-2.0
"""Troubleshooting: the code that only this chapter uses. Chapter: ``notebooks/troubleshooting.py``."""
