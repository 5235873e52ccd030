# SPDX-License-Identifier: Apache-2.0
"""The circuit generator: it gives every module a code (what it computes) and a signature (whom it listens to).

Symbols: U modules, O output modules (the last ones of a circuit), T tokens of a text.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Circuit:
    """The codes and signatures of all modules: U ordinary ones, then the output modules.

    Raises: ``ValueError`` if codes and signatures are not of equally many modules.
    """

    codes: Tensor
    """[U + O, code_dim], or [B, U + O, code_dim] if each sample has a circuit of its own."""
    signatures: Tensor
    """[U + O, signature_dim] or [B, U + O, signature_dim]."""
    outputs: int
    """O."""

    def __post_init__(self) -> None:
        if self.codes.shape[:-1] != self.signatures.shape[:-1]:
            raise ValueError(
                f"codes {list(self.codes.shape)} and signatures {list(self.signatures.shape)} are not of the same modules."
            )

    @property
    def modules(self) -> int:
        """U, the number of modules without the output modules."""
        return self.codes.shape[-2] - self.outputs

    def kept(self, modules: Tensor) -> "Circuit":
        """The circuit without all but these modules (int64 [n], distinct, n >= 1); the output modules stay.

        Raises: ``ValueError`` if ``modules`` is empty, names a module twice, or one that there is not.
        """
        check_kept(modules, self.modules)
        outputs = torch.arange(self.modules, self.modules + self.outputs)
        every = torch.cat([modules, outputs.to(modules.device)]).to(self.codes.device)
        return Circuit(self.codes.index_select(-2, every), self.signatures.index_select(-2, every), self.outputs)


def check_kept(modules: Tensor, count: int) -> None:
    """Raises ``ValueError`` unless ``modules`` (int64 [n]) are one or more distinct modules of ``count``."""
    if modules.dim() != 1 or not len(modules):
        raise ValueError(
            f"the modules to keep have shape {list(modules.shape)}; name at least 1 of the {count} modules."
        )
    numbers, times = modules.unique(return_counts=True)
    if int(numbers[0]) < 0 or int(numbers[-1]) >= count:
        wrong = int(numbers[0]) if int(numbers[0]) < 0 else int(numbers[-1])
        raise ValueError(
            f"module {wrong} cannot be kept: modules are 0 to {count - 1}, and output modules always stay."
        )
    if int(times.max()) > 1:
        raise ValueError(f"module {int(numbers[times.argmax()])} is named twice among the modules to keep.")


class LearnedCircuit(nn.Module):
    """Codes and signatures are parameters, standard normal at first: one circuit for all samples.

    ``codes``: [U + O, code_dim]; ``signatures``: [U + O, signature_dim].
    """

    def __init__(self, modules: int, outputs: int, code_dim: int, signature_dim: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.codes = nn.Parameter(torch.randn(modules + outputs, code_dim))
        self.signatures = nn.Parameter(torch.randn(modules + outputs, signature_dim))

    @property
    def modules(self) -> int:
        """U, the number of modules without the output modules."""
        return len(self.codes) - self.outputs

    def forward(self) -> Circuit:
        """The circuit."""
        # copies: parts of a parameter require a gradient even under no_grad, which stops torch's count of operations
        return Circuit(self.codes.clone(), self.signatures.clone(), self.outputs)

    @torch.no_grad()
    def prune(self, modules: Tensor) -> None:
        """Removes all but these modules for good; the output modules stay.

        Raises: ``ValueError`` as :meth:`Circuit.kept`.
        """
        left = self().kept(modules)
        self.codes, self.signatures = nn.Parameter(left.codes.clone()), nn.Parameter(left.signatures.clone())


class TextCircuit(nn.Module):
    """Codes and signatures read from a text: one circuit per sample.

    Two sets of learned queries, one query per module in each, attend to the encoded text, one for codes and one for
    signatures. A module's code is its query plus what the query reads; its signature is made the same way.

    Shapes: text [B, T, text_dim], ``hidden`` bool [B, T] (tokens that do not exist) -> a circuit of [B, U + O, ...].
    Source: the paper's conditional circuits, on NLVR2. Its details are not released; queries, norms and the residual
    are ours.
    """

    def __init__(self, modules: int, outputs: int, code_dim: int, signature_dim: int, text_dim: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.norm = nn.LayerNorm(text_dim)
        self.codes, self.signatures = (
            _TextQueries(modules + outputs, dim, text_dim) for dim in (code_dim, signature_dim)
        )

    @property
    def modules(self) -> int:
        """U, the number of modules without the output modules."""
        return len(self.codes.queries) - self.outputs

    def forward(self, text: Tensor, hidden: Tensor | None = None) -> Circuit:
        """The circuits of the texts."""
        text = self.norm(text)
        return Circuit(self.codes(text, hidden), self.signatures(text, hidden), self.outputs)

    @torch.no_grad()
    def prune(self, modules: Tensor) -> None:
        """Removes all but these modules for good; the output modules stay.

        Raises: ``ValueError`` as :meth:`Circuit.kept`.
        """
        left = Circuit(self.codes.queries, self.signatures.queries, self.outputs).kept(modules)
        self.codes.queries = nn.Parameter(left.codes.clone())
        self.signatures.queries = nn.Parameter(left.signatures.clone())


class _TextQueries(nn.Module):
    """Learned vectors, each moved by what it attends to in a text.  [B, T, text_dim] -> [B, count, dim]"""

    def __init__(self, count: int, dim: int, text_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, dim))
        self.query, self.key = nn.Linear(dim, text_dim, bias=False), nn.Linear(text_dim, text_dim, bias=False)
        self.value = nn.Linear(text_dim, dim)

    def forward(self, text: Tensor, hidden: Tensor | None) -> Tensor:
        query = self.query(self.queries).expand(len(text), -1, -1)
        seen = None if hidden is None else ~hidden[:, None]  # [B, 1, T]
        read = F.scaled_dot_product_attention(query, self.key(text), text, attn_mask=seen)  # [B, count, text_dim]
        return self.queries + self.value(read)
