# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X's mathematics: error ratios of models by factor of variation, their intervals and tests, and reports."""
