# SPDX-License-Identifier: Apache-2.0
"""What self-supervised learning is: the code that only this chapter uses. Chapter: ``notebooks/what_is_ssl.py``."""
