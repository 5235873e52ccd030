# SPDX-License-Identifier: Apache-2.0
"""SwitchBack and StableAdamW: the code that only this chapter uses. Chapter: ``notebooks/switchback.py``."""
