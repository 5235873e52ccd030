# SPDX-License-Identifier: Apache-2.0
"""Local SGD and SlowMo: all that belongs to this chapter alone. Chapter: ``notebooks/local_sgd.py``."""
