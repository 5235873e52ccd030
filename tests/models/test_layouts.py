# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from recipes_lib.errors import RunError
from recipes_lib.models import layouts, vit
from recipes_lib.models.heads import ProjectionHead


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = vit.VisionTransformer(vit.Shape(8, 2, 2), image_size=16, patch_size=4, stem="patch")
    return {key: torch.randn_like(value) for key, value in model.state_dict().items()}


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert set(got) == set(want)
    for key, value in want.items():
        assert torch.equal(got[key], value), key


def older_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The card's table, written out for two blocks of width 8."""
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for i in (0, 1):
        ours, layer = f"blocks.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            qkv = state[f"{ours}.attn.qkv.{kind}"]
            theirs |= {
                f"{layer}.layernorm_before.{kind}": state[f"{ours}.norm1.{kind}"],
                f"{layer}.layernorm_after.{kind}": state[f"{ours}.norm2.{kind}"],
                f"{layer}.attention.attention.query.{kind}": qkv[0:8],
                f"{layer}.attention.attention.key.{kind}": qkv[8:16],
                f"{layer}.attention.attention.value.{kind}": qkv[16:24],
                f"{layer}.attention.output.dense.{kind}": state[f"{ours}.attn.proj.{kind}"],
                f"{layer}.intermediate.dense.{kind}": state[f"{ours}.mlp.fc1.{kind}"],
                f"{layer}.output.dense.{kind}": state[f"{ours}.mlp.fc2.{kind}"],
            }
    return theirs


def newer_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        "encoder.layer.": "layers.",
        "attention.output.dense": "attention.o_proj",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    theirs = {}
    for key, value in older_layout(state).items():
        for before, after in renames.items():
            key = key.replace(before, after)
        theirs[key] = value
    return theirs


def test_to_hf_follows_the_cards_table(state):
    same(layouts.to_hf(state), older_layout(state))


@pytest.mark.parametrize("layout", [older_layout, newer_layout])
def test_both_layouts_of_vitmsn_come_back_under_our_keys(state, layout):
    same(layouts.from_hf(layout(state)), state)


def test_a_classifier_on_top_is_left_behind(state):
    classified = {f"vit.{key}": value for key, value in older_layout(state).items()}
    same(layouts.from_hf(classified | {"classifier.weight": torch.zeros(2, 8)}), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_official_checkpoint_gives_backbone_head_and_prototypes(state, prefix):
    head = ProjectionHead(8, 6, 4).state_dict()
    encoder = {prefix + key: value for key, value in state.items()}
    encoder |= {f"{prefix}fc.{key}": value for key, value in head.items()}
    prototypes = torch.randn(5, 4)
    official = layouts.from_official({"target_encoder": encoder, "prototypes": prototypes, "epoch": 800})
    same(official.backbone, state)
    ProjectionHead(8, 6, 4).load_state_dict(official.head)
    assert torch.equal(official.prototypes, prototypes)


def test_a_checkpoint_without_target_encoder_is_refused_with_what_it_has():
    with pytest.raises(RunError, match=r"no target_encoder.*It has: encoder, opt"):
        layouts.from_official({"encoder": {}, "opt": {}})


def test_missing_and_left_over_keys_are_named(state):
    theirs = newer_layout(state)
    del theirs["layers.1.mlp.fc2.bias"]
    theirs["pooler.dense.weight"] = torch.zeros(1)
    with pytest.raises(
        RunError, match=r"missing 1 \(layers\.1\.mlp\.fc2\.bias\); left over 1 \(pooler\.dense\.weight\)"
    ):
        layouts.from_hf(theirs)
    del state["norm.bias"]
    with pytest.raises(RunError, match=r"missing 1 \(norm\.bias\)"):
        layouts.to_hf(state)
    with pytest.raises(RunError, match=r"target_encoder do not fit: missing 1 \(norm\.bias\)"):
        layouts.from_official({"target_encoder": state})


def test_long_lists_of_keys_are_cut_with_their_number():
    assert layouts.listed("abc") == "a, b, c"
    assert layouts.listed((str(i) for i in range(11)), limit=3) == "0, 1, 2 and 8 more"
