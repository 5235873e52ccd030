# SPDX-License-Identifier: Apache-2.0
"""Before a run on many GPUs: what it will cost. :mod:`recipes_lib.launch.plan` says so, and starts nothing."""
