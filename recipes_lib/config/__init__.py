# SPDX-License-Identifier: Apache-2.0
"""The config groups that all recipes share, and the functions that write a config to a file and read it back.

A recipe's ``Config`` is a frozen dataclass with one field per group (``data``, ``views``, ``model``, ``loss``,
``optim``, ``sync``, ``train``, ``eval``) and a ``validate()`` that collects all faults before it raises. Defaults are
the full-scale values; presets change some of them with ``dataclasses.replace``. Nothing here imports torch.
"""

from recipes_lib.config.data import DRAWN, MOST_WORKERS, DataConfig
from recipes_lib.config.evaluation import (
    CLASS_PROBES,
    CORRUPTIONS,
    LABEL_FREE_PROBES,
    PROBES,
    SEVERITIES,
    ClassProbe,
    Corruption,
    EvalConfig,
    LabelFreeProbe,
)
from recipes_lib.config.training import OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.tree import dotted, from_dict, override, refuse_unordered, to_dict, to_yaml
from recipes_lib.config.views import ViewsConfig

__all__ = [
    "CLASS_PROBES",
    "CORRUPTIONS",
    "DRAWN",
    "LABEL_FREE_PROBES",
    "MOST_WORKERS",
    "PROBES",
    "SEVERITIES",
    "ClassProbe",
    "Corruption",
    "DataConfig",
    "EvalConfig",
    "LabelFreeProbe",
    "OptimConfig",
    "SyncConfig",
    "TrainConfig",
    "ViewsConfig",
    "dotted",
    "from_dict",
    "override",
    "refuse_unordered",
    "to_dict",
    "to_yaml",
]
