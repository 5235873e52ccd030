# SPDX-License-Identifier: Apache-2.0
"""Neural Attentive Circuits: modules that share weights, and differ by a code and by a signature.

- :mod:`links`: how likely each pair of modules is linked, given their signatures; draws of the links;
- :mod:`modulation`: linear layers whose input a module's code scales;
- :mod:`layers`: read-in from tokens, propagators, read-out;
- :mod:`circuit`: where codes and signatures come from: parameters, or a text;
- :mod:`tokens`: images, point clouds, and sequences of symbols or bytes as tokens;
- :mod:`network`: the whole network, as a backbone.

Source: Weiss, Rahaman et al., "Neural Attentive Circuits", NeurIPS 2022, arXiv 2210.08031.
"""
