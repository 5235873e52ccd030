# SPDX-License-Identifier: Apache-2.0
"""How one knows what was learned: the code that only this chapter uses. Chapter: ``notebooks/evaluation.py``."""
