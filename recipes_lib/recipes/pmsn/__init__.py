# SPDX-License-Identifier: Apache-2.0
"""Prior Matching for Siamese Networks: the code that only this chapter uses. Chapter: ``notebooks/pmsn.py``."""
