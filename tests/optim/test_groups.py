# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn

from recipes_lib.optim.groups import decay_groups


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4), requires_grad=False)
        self.relative_bias = nn.Parameter(torch.zeros(3, 3))
        self.conv = nn.Conv2d(3, 4, 2)
        self.norm = nn.BatchNorm2d(4)


def test_weights_and_tokens_decay_biases_and_norms_do_not_frozen_ones_are_left_out():
    net = Encoder()
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = {group["decays"]: {names[p] for p in group["params"]} for group in decay_groups(net)}
    assert found == {
        True: {"cls_token", "conv.weight"},
        False: {"relative_bias", "conv.bias", "norm.weight", "norm.bias"},
    }


def test_an_empty_group_is_left_out():
    assert [group["decays"] for group in decay_groups(nn.LayerNorm(3))] == [False]


def test_parameters_that_another_group_has_are_left_out():
    net = Encoder()
    elsewhere = (net.cls_token, net.conv.bias)
    found = [group["params"] for group in decay_groups(net, without=elsewhere)]
    assert found == [[net.conv.weight], [net.relative_bias, net.norm.weight, net.norm.bias]]
