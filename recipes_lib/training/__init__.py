# SPDX-License-Identifier: Apache-2.0
"""The training loop, its checkpoints and log, the run folder, and stages of runs that train no backbone."""
