"""What learns beside adapters: rows of the tables of tokens, and whole layers.

A mark that a model was not made with (a chat template's, say) has rows that nothing was learnt into; of a frozen model
they can learn alone, as PEFT's `trainable_token_indices`. Layers that are no adapter's (norms, the output matrix) learn
whole as its `modules_to_save`. Both are kept as they are and not as a difference, so that merging is putting them in.
Where an output matrix is the embedding, its rows are the same rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mickle.errors import UsageError
from mickle.models.language import LanguageModel
from mickle.models.linear_layers import features, folder_layer_name, is_linear


class TrainedRows(nn.Module):
    """A table of tokens, an embedding or an output matrix [V, D], that is frozen but for the `rows` of some `tokens`.

    tokens: ascending. rows: [n, D], perhaps of another table too.
    """

    def __init__(self, base_layer: nn.Module, tokens: Sequence[int], rows: nn.Parameter) -> None:
        super().__init__()
        self.base_layer, self.rows = base_layer, rows
        self.register_buffer("tokens", torch.tensor(tokens, device=rows.device), persistent=False)
        if is_linear(base_layer):
            self.in_features, self.out_features = features(base_layer)
        self._whole: tuple[Any, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The table with its rows put in. Where nothing learns it is made once."""
        table = self.base_layer.weight
        if torch.is_grad_enabled():
            self._whole = None
            return table.index_copy(0, self.tokens, self.rows.to(table.dtype))
        state = (id(self.rows), self.rows._version, id(table), table._version, table.dtype)
        if self._whole is None or self._whole[0] != state:
            self._whole = state, table.index_copy(0, self.tokens, self.rows.to(table.dtype))
        return self._whole[1]

    @property
    def bias(self) -> Any:
        """The table's bias, or None."""
        return getattr(self.base_layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """What the table gives with its rows put in."""
        result: Tensor = functional_call(self.base_layer, {"weight": self.weight}, (x,))
        return result


def tables(model: LanguageModel) -> list[str]:
    """The folder names of a model's embedding of tokens, and of an output matrix that is not the same weight."""
    embedding = next(
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Embedding) and len(m.weight) == model.vocab_size
    )
    head = model.output_layer
    own = head is not None and head.weight is not embedding[1].weight
    names = [embedding[0], *(name for name, module in model.named_modules() if own and module is head)]
    return [folder_layer_name(model, name) for name in names]


def train_rows(model: nn.Module, chosen: Mapping[str, Sequence[int]]) -> None:
    """Let rows of tables learn, in float32. chosen: folder name of a table -> the tokens.

    UsageError for a table or token that the model has not.
    """
    for name, tokens in chosen.items():
        table: Any = dict(_layers(model)).get(name)
        weight = table.weight if isinstance(table, nn.Embedding) or (table and is_linear(table)) else None
        if weight is None or weight.ndim != 2 or not tokens or not 0 <= min(tokens) <= max(tokens) < len(weight):
            size = "no table" if weight is None else f"a table of {len(weight):,} rows"
            raise UsageError(f"{name[:120]!r} is {size}; tokens {list(tokens)[:5]} cannot learn there")
        ordered = sorted(set(tokens))
        rows = nn.Parameter(weight.detach()[ordered].to(torch.promote_types(torch.float32, weight.dtype)))
        alike = [(own, module) for own, module in model.named_modules() if getattr(module, "weight", None) is weight]
        for own, module in alike:
            model.set_submodule(own, TrainedRows(module, ordered, rows))


def trained_rows(model: nn.Module) -> dict[str, TrainedRows]:
    """The tables with trained rows by folder name; of those that share them the first."""
    found: dict[str, TrainedRows] = {}
    for name, module in model.named_modules():
        if isinstance(module, TrainedRows) and not any(module.rows is other.rows for other in found.values()):
            found[folder_layer_name(model, name)] = module
    return found


@torch.no_grad()
def put_rows_in(model: nn.Module) -> None:
    """Make tables with trained rows plain ones, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, TrainedRows):
            table: Any = module.base_layer
            table.weight[module.tokens] = module.rows.to(table.weight.dtype)
            model.set_submodule(name, table)


def train_whole(model: nn.Module, names: Sequence[str]) -> None:
    """Let layers learn whole. names: folder names, or their ends. UsageError for one that the model has not, that has
    adapters or is stored in few bits, and for one whose weights another layer shares.
    """
    for name in names:
        found = [(own, layer) for own, layer in _layers(model) if own == name or own.endswith(f".{name}")]
        if not found:
            ends = sorted({own.rpartition(".")[2] for own, layer in _layers(model) if not list(layer.children())})
            raise UsageError(f"no layer is called {name[:100]!r}", where="modules_to_save", expected=", ".join(ends))
        for own, layer in found:
            _refuse_frozen(model, own, layer)
            layer.requires_grad_(True)
            layer.learns_whole = True


def trained_whole(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that learn whole, by folder name."""
    return {name: layer for name, layer in _layers(model) if getattr(layer, "learns_whole", False) is True}


def _refuse_frozen(model: nn.Module, name: str, layer: nn.Module) -> None:
    inside = {id(parameter) for parameter in layer.parameters()}
    others = set(model.modules()) - set(layer.modules())
    why = "" if inside else "has no weights of its own"
    if any(hasattr(m, "lora_A") or hasattr(m, "stored_bytes") for m in layer.modules()):
        why = "has adapters, or is stored in few bits; leave it out of targets"
    elif any(id(p) in inside for module in others for p in module.parameters(recurse=False)):
        why = "shares its weights with another layer; name tokens (trained_tokens), or tune all weights"
    if why:
        raise UsageError(f"{name[:120]!r} {why}", where="modules_to_save")


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((folder_layer_name(model, name), layer) for name, layer in model.named_modules() if name)
