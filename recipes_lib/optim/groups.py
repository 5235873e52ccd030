# SPDX-License-Identifier: Apache-2.0
"""Parameter groups: which parameters get weight decay, another learning rate, or no update at first.

Each group has the key ``decays``: if it is True, :class:`recipes_lib.optim.build.Schedule` sets the weight decay of the
step, else 0. Three more keys may be absent. ``constant_lr``: if it is True, the learning rate is the peak at every
step, without warm-up and cosine. ``lr_scale``: a factor on the group's learning rate. ``frozen``: the share of the run,
from its start, in which the group's parameters do not move; the optimiser does not see their gradients, so its running
means start afterwards.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def decay_groups(module: nn.Module, *, without: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
    """The trainable parameters of ``module`` in two groups: weights, which decay, and biases and norms, which do not.

    Class tokens and position embeddings have three dimensions, so they decay, as in the released code.
    A group without parameters is left out.

    ``without``: parameters that another group has.

    Source: ``facebookresearch/msn``, ``src/msn_train.py``, ``init_opt`` (the rule: more than one dimension, no bias).
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    elsewhere = set(without)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter not in elsewhere:
            groups[parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [{"params": parameters, "decays": decays} for decays, parameters in groups.items() if parameters]
