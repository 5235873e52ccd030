# SPDX-License-Identifier: Apache-2.0
"""Plans of runs on many GPUs: :mod:`recipes_lib.launch.plan` computes what a run will cost, and starts nothing."""
