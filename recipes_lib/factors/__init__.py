# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X's mathematics: error ratios of a model by factor of variation, their intervals, and the reports made of them."""
