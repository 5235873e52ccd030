# SPDX-License-Identifier: Apache-2.0
"""Natural variation: how far accuracy falls when one factor of an image leaves its canonical value."""
