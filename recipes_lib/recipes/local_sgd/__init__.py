# SPDX-License-Identifier: Apache-2.0
"""Local SGD and SlowMo: the code that only this chapter uses. Chapter: ``notebooks/local_sgd.py``."""
