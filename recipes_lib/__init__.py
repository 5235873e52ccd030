# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning recipes: one implementation for the notebook, the laptop and the cluster."""

__version__ = "0.1.0"
