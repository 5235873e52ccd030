# SPDX-License-Identifier: Apache-2.0
"""Pools of image-text pairs on disk: shards, uids, score files, and the selection of pairs."""
