"""Documents of a batch laid out as rows of their own, for models that cannot keep them apart inside a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Every document of a batch `documents` [B, T] as a row of its own, [N, L], padded on the right.

    rows, columns: where each token stands in the batch. mask: which are tokens and no padding. All [N, L].
    """

    documents: Tensor
    rows: Tensor
    columns: Tensor
    mask: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Values [B, T] in the new layout, 0 (or False) for padding."""
        return values[self.rows, self.columns] * self.mask

    def back(self, found: Tensor, positions: Tensor | None) -> Tensor:
        """What was found for every token, [N, L, D], or for those at `positions`, [m, D], as they stand in the batch:
        [B, T, D] or [n, D]. Tokens of no document, which no row holds, get 0.
        """
        if positions is None:
            put = found.new_zeros(*self.documents.shape, found.shape[-1])
            return put.index_put((self.rows[self.mask], self.columns[self.mask]), found[self.mask])
        # Documents follow each other row by row, so the chosen tokens of all keep their order.
        text = self.documents[positions] >= 0  # [n]
        return found.new_zeros(len(text), found.shape[-1]).index_put((text.nonzero().squeeze(1),), found)


def rows_apart(documents: Tensor) -> Rows:
    """The layout of the documents [B, T]; ids below 0 are padding."""
    runs = []
    for row, ids in enumerate(documents.tolist()):
        starts = [0] + [t for t in range(1, len(ids)) if ids[t] != ids[t - 1]]
        runs += [(row, start, end) for start, end in zip(starts, [*starts[1:], len(ids)]) if ids[start] >= 0]
    longest = max((end - start for _, start, end in runs), default=0)
    rows = torch.tensor([[row] * longest for row, _, _ in runs], dtype=torch.long)
    columns = torch.tensor(
        [[*range(start, end), *[-1] * (longest - end + start)] for _, start, end in runs], dtype=torch.long
    )
    rows, columns = rows.to(documents.device), columns.to(documents.device)
    return Rows(documents, rows, columns.clamp(min=0), columns >= 0)
