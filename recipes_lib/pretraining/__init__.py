# SPDX-License-Identifier: Apache-2.0
"""The engine of every recipe that pretrains a backbone: data, training, probes, report, resume and export."""
