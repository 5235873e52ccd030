# SPDX-License-Identifier: Apache-2.0
"""BARACK: group robustness with few group labels."""
