# SPDX-License-Identifier: Apache-2.0
"""Prior Matching for Siamese Networks: all that belongs to this chapter alone. Chapter: ``notebooks/pmsn.py``."""
