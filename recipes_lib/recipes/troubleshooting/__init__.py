# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in training without labels: the code that only this chapter uses. Chapter: ``notebooks/troubleshooting.py``."""
