# SPDX-License-Identifier: Apache-2.0
"""T-CNN: the code that only this chapter uses. Chapter: ``notebooks/tcnn.py``."""
