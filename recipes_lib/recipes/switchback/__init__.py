# SPDX-License-Identifier: Apache-2.0
"""SwitchBack and StableAdamW: all that belongs to this chapter alone. Chapter: ``notebooks/switchback.py``."""
