# SPDX-License-Identifier: Apache-2.0
"""Lie operator: the code that only this chapter uses. Chapter: ``notebooks/lie_operator.py``."""
