"""The proof that an exported model is the one it was made from: both are run on the same tokens and compared.

What transformers makes of the source's folder as it came, and of a folder that is written, must be what Mickle makes
of it (`refuse_other_reading`).

Both are computed in float32, so that what differs is what was stored. With the source's logits z and the export's z',
both with their mean over the vocabulary taken off (adding a number to all logits changes nothing), over all tokens::

    typical = (root mean square of z - z') / s,    largest = max |z - z'| / s,    s = root mean square of z

`typical` must stay within the bound of the type (`BOUNDS`), `largest` within ten times that; of two models that have
nothing to do with each other `typical` is near 1.4. Each linear layer is compared by itself too, on the input that it
has in the source: of the output that differs most, (root mean square of the difference) / (that of all) must stay
within the bound, so that a fault has a name; or each of its weights within what its type may round (`ROUNDED`): an
outlier makes the steps of its block coarse, and then the logits alone decide. Where nothing was rounded the greedy text
must be the same; else the share of equal tokens is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.events import Emit, Warned
from mickle.models.folder_check import read_config
from mickle.models.linear_layers import dense_weight, linear_layers
from mickle.models.lora import LoraLinear

# By type of the stored weights, `typical` at most. A weight is off by 2^-25, 2^-12, 2^-9 of itself at most, or by 1/254
# or 1/16 of its block's largest: the bounds leave room for what many layers make of it, and are far from 1.4.
BOUNDS = {
    "float32": 2e-5,
    "float16": 0.01,
    "bfloat16": 0.05,
    "F32": 2e-5,
    "F16": 0.01,
    "BF16": 0.05,
    "Q8_0": 0.05,
    "Q6_K": 0.2,
    "Q4_K_M": 0.7,
    "Q4_0": 0.7,
}
# How far one weight may be rounded: a share of it (of its block's largest: half a step, the step's own rounding in 16
# bits, and where a code is missing at one end a whole step), and a number for those below the smallest normal one.
ROUNDED = {
    "float32": (2.0**-24, 0.0),
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 1e-38),
    "Q8_0": (1 / 254 + 2.0**-11, 2.0**-18),
    "Q6_K": (1 / 32, 2.0**-18),
    "Q4_K_M": (1 / 6, 2.0**-18),
    "Q4_0": (1 / 8 + 2.0**-10, 2.0**-18),
}
ROUNDED |= {"F32": ROUNDED["float32"], "F16": ROUNDED["float16"], "BF16": ROUNDED["bfloat16"]}
BLOCKED = {"Q8_0": (32,), "Q6_K": (256, 32), "Q4_K_M": (256, 32), "Q4_0": (32,)}  # where rows are no multiple, the next
LARGEST = 10  # how many bounds a single logit may be off
EXACT = ("float32", "F32")
READ_ALIKE = 1e-4  # `typical` of two readings of one folder in float32, at most: only sums are in another order


@dataclass(frozen=True)
class Proof:
    """What was measured. `same_text`: prompts of equal greedy text; `same_tokens`: share of equal first choices."""

    type: str
    bound: float
    largest: float
    typical: float
    off_layer: float
    layer: str
    prompts: int
    same_text: int
    same_tokens: float

    def line(self) -> str:
        """The proof in a sentence."""
        text = f"; the same greedy text on {self.same_text} of {self.prompts} prompts" if self.prompts else ""
        return (
            f"proven: logits differ by {self.typical:.2g} of their spread (bound {self.bound:g}), the most by "
            f"{self.largest:.2g}; {100 * self.same_tokens:.1f} % of first choices equal{text}"
        )


def prove(
    source: nn.Module,
    exported: nn.Module,
    prompts: Sequence[Sequence[int]],
    kind: str,
    bound: float | None,
    tokens: int,
) -> Proof:
    """Run both models on the prompts (token ids) and, causal ones, on `tokens` greedy tokens after each.

    kind: a key of `BOUNDS`. Raises UsageError that names the layer, or the measure, that is beyond the bound.
    """
    bound = BOUNDS[kind] if bound is None else bound
    source, exported = source.float().eval(), exported.float().eval()
    refuse_other_layers(source, exported)
    causal = source.causal
    texts = [list(prompt) for prompt in prompts]
    continued = _greedy(source, texts, tokens) if causal else [[] for _ in texts]
    others = _greedy(exported, texts, tokens) if causal else continued
    off = layer_differences(source, exported, texts)
    layer = max(off, key=off.__getitem__, default="")
    off_layer = off.get(layer, 0.0)
    suspect = sorted((name for name, by in off.items() if by > bound), key=lambda name: -off[name])
    wrong = next((name for name in suspect if not only_rounded(source, exported, name, kind)), None)
    if wrong is not None:
        raise UsageError(
            f"layer {wrong!r} of the export computes something else: off by {off[wrong]:.3g} of its output's size",
            expected=f"at most {bound:g}, or weights that {kind} rounds so",
            todo="report this with the command; nothing was written (--bound sets another bound)",
        )
    typical, largest, equal = _compare(source, exported, [a + b for a, b in zip(texts, continued, strict=True)])
    same = sum(one == other for one, other in zip(continued, others, strict=True))
    proof = Proof(
        kind, bound, largest, typical, off_layer, layer, len(texts) if causal else 0, same if causal else 0, equal
    )
    if not (typical <= bound and largest <= LARGEST * bound):
        raise UsageError(
            f"logits of the export are off by {typical:.3g} of their spread, the most by {largest:.3g}",
            where=f"worst layer by itself: {layer!r}, {off_layer:.2g}",
            expected=f"at most {bound:g}, the most {LARGEST * bound:g}, for weights in {kind}",
            todo="choose a finer type; or, if that is wanted, set --bound",
        )
    if kind in EXACT and causal and same < len(texts):
        raise UsageError(
            f"the export writes another greedy text on {len(texts) - same} of {len(texts)} prompts",
            where=f"largest logit difference {largest:.3g}",
            todo="report this with the command; nothing was written",
        )
    return proof


def refuse_other_reading(
    folder: Path, prompts: Sequence[Sequence[int]], emit: Emit, ends: Sequence[int] | None = None
) -> None:
    """UsageError where transformers makes another model of a folder as it stands than Mickle does, so that two of
    Mickle's own copies cannot have lost the same; or where its `generate` writes other tokens, or ends texts at others
    than ``ends``.

    Types that only Mickle knows, and folders in few bits, are not compared; what transformers does not open is told.
    """
    from mickle.models.folder import open_model
    from mickle.models.transformers_bridge import MODEL_TYPE, read_by_transformers

    config = read_config(folder)
    if config["model_type"] == MODEL_TYPE or "quantization_config" in config:
        return
    try:
        read = read_by_transformers(folder, prompts, tokens=4)
    except UsageError as error:
        emit(Warned(f"not compared with transformers, which does not open {folder}: {error.what}"))
        return
    model = open_model(folder).float()
    with torch.no_grad():
        ours = [model(_row(model, text))[0] for text in prompts]
    typical, _, _ = _difference(zip(read.logits, ours, strict=True))
    if not typical <= READ_ALIKE:
        raise UsageError(
            f"transformers reads another model: its logits are off by {typical:.3g} of their spread from Mickle's",
            where=str(folder),
            expected=f"at most {READ_ALIKE:g}",
            todo="report this with the folder's config.json; nothing was written",
        )
    for text, written in zip(prompts, read.written, strict=True):
        if not _likeliest(model, text, written):
            raise UsageError(
                f"transformers' generate writes {written} after {list(text)}, which is not likeliest to Mickle",
                where=str(folder),
                todo="report this with the folder's config.json; nothing was written",
            )
    if model.causal and ends is not None and set(read.ends) != set(ends):
        raise UsageError(f"transformers' generate ends texts at {read.ends}", where=str(folder), expected=str(ends))


def refuse_other_layers(source: nn.Module, exported: nn.Module) -> None:
    """Both must have the same linear layers by name, and the export's must be plain."""
    one, other = linear_layers(source), linear_layers(exported)
    if one.keys() != other.keys():
        name = sorted(one.keys() ^ other.keys())[0]
        raise UsageError(f"the export has other layers: {name[:120]!r} is on one side only")


@torch.no_grad()
def only_rounded(source: nn.Module, exported: nn.Module, name: str, kind: str) -> bool:
    """Whether no weight of a layer is further off than its type rounds at most: by a share of itself, or of the largest
    of the numbers that share a scale. A weight with an adapter beside it is that of both.
    """
    share, least = ROUNDED[kind]
    layer, other = (linear_layers(model)[name] for model in (source, exported))
    before, after = dense_weight(layer).float(), dense_weight(other).float()
    if isinstance(layer, LoraLinear):
        before = before + layer.delta()
    size = before.abs()
    block = next((block for block in BLOCKED.get(kind, ()) if not size.shape[1] % block), 1)
    size = size.unflatten(1, (-1, block)).amax(2).repeat_interleave(block, 1)
    return bool(((after - before).abs() <= share * size + least).all())


@torch.no_grad()
def layer_differences(source: nn.Module, exported: nn.Module, texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """By how much each linear layer differs on the inputs that it has in the source.

    Root mean square over the tokens of the output that differs most, in units of the root mean square of all outputs.
    """
    differences: dict[str, float] = {}
    others = linear_layers(exported)

    def watch(name: str) -> Any:
        def compare(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if output.numel():
                off = (others[name](arguments[0]) - output).flatten(0, -2).square().mean(0).max().sqrt()  # of [N, out]
                off = off / output.square().mean().sqrt().clamp(min=1e-12)
                differences[name] = max(differences.get(name, 0.0), float(off.nan_to_num(torch.inf)))

        return compare

    with ExitStack() as hooks:
        for name, layer in linear_layers(source).items():
            hooks.enter_context(layer.register_forward_hook(watch(name)))
        for text in texts:
            source(_row(source, text))
    return differences


@torch.no_grad()
def _compare(source: nn.Module, exported: nn.Module, texts: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """`_difference` of what both make of the texts."""
    return _difference(tuple(model(_row(model, text))[0].float() for model in (source, exported)) for text in texts)


def _difference(pairs: Iterable[tuple[Tensor, ...]]) -> tuple[float, float, float]:
    """Typical and largest difference of pairs of logits [T, V], and the share of equal first choices."""
    largest = squares = size = 0.0
    equal = count = numbers = 0
    for one, other in pairs:
        equal += int((one.argmax(-1) == other.argmax(-1)).sum())
        one, other = (z - z.mean(-1, keepdim=True) for z in (one, other))
        off = (one - other).nan_to_num(torch.inf)
        largest = max(largest, float(off.abs().max()))
        squares, size = squares + float(off.square().sum()), size + float(one.square().sum())
        count, numbers = count + len(one), numbers + one.numel()
    spread = max((size / max(numbers, 1)) ** 0.5, 1e-12)
    return (squares / max(numbers, 1)) ** 0.5 / spread, largest / spread, equal / max(count, 1)


def _greedy(model: nn.Module, texts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """The likeliest continuation of each text, one text at a time, so that batching rounds nothing differently."""
    from mickle.sampling.text import generate

    return [
        generate(model, [text], max_tokens=tokens, decode=lambda ids: "", temperature=0.0)[0].tokens for text in texts
    ]


@torch.no_grad()
def _likeliest(model: nn.Module, text: Sequence[int], written: Sequence[int]) -> bool:
    """Whether each token written after a text is the likeliest one, or as likely as far as rounding tells."""
    if not written:
        return True
    scores = model(_row(model, [*text, *written]))[0, len(text) - 1 : -1].float()  # [N, V]
    chosen = scores.gather(1, torch.tensor([list(written)], device=scores.device).T)[:, 0]
    return bool((scores.amax(1) - chosen <= LARGEST * READ_ALIKE * scores.std(1)).all())


def _row(model: nn.Module, text: Sequence[int]) -> Tensor:
    return torch.tensor([list(text)], device=next(model.parameters()).device)
