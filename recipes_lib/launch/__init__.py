# SPDX-License-Identifier: Apache-2.0
"""Many runs, or runs on many GPUs: :mod:`recipes_lib.launch.plan` computes what a run will cost, and starts nothing;
:mod:`recipes_lib.launch.sweep` makes a run for every combination of some fields' values."""
