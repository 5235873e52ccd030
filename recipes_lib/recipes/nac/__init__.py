# SPDX-License-Identifier: Apache-2.0
"""Neural Attentive Circuits: priors on their graph, pruning, adaptation to few labels, what modules are used for."""
