"""What a decoder remembers of the tokens it has read, so that generation reads each token once."""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of the tokens seen so far, so that generation reads each token once. Made by
    `new_cache()`.
    """

    def __init__(self) -> None:
        self.length = 0
        self.documents: Tensor | None = None  # [B, S]; None: one document a row
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, G, T, K] to what `layer` holds and return all of it: [B, G, S, K]."""
        if layer in self._layers:
            before = self._layers[layer]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        self._layers[layer] = keys, values
        return keys, values

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, G, S, K] that each layer holds."""
        return [self._layers[number] for number in sorted(self._layers)]

    def fill(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Begin with these keys and values [B, G, S, K] of each layer, as if S tokens had been read."""
        for number, (keys, values) in enumerate(pairs):
            self.extend(number, keys, values)
        rows, _, tokens, _ = pairs[0][0].shape
        self.extend_documents(None, rows, tokens, pairs[0][0].device)

    def extend_documents(self, documents: Tensor | None, rows: int, new: int, device: torch.device) -> Tensor | None:
        """Append the document ids [B, T] of `new` tokens and return all: [B, S], or None for one document a
        row.

        Tokens that come without ids go on with the last document of their row.
        """
        before = self.documents
        if documents is None and before is not None:
            documents = before[:, -1:].expand(-1, new)
        if documents is not None and before is None:
            before = torch.zeros(rows, self.length, dtype=documents.dtype, device=device)
        if documents is not None and before is not None:
            self.documents = torch.cat([before, documents], dim=1)
        self.length += new
        return self.documents
