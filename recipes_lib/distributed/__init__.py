# SPDX-License-Identifier: Apache-2.0
"""What several processes agree on: collectives that carry gradients, cross-rank batch norm, start and stop."""
