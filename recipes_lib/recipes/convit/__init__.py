# SPDX-License-Identifier: Apache-2.0
"""ConViT: the code that only this chapter uses. Chapter: ``notebooks/convit.py``."""
