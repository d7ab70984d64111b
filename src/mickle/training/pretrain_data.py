"""What a pretraining reads: pages split by side, their tokens, batches of them, and a quick held-out measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mickle.data.domains import Weights, domain_streams, read_weights
from mickle.data.heldout import LONGEST_HELDOUT, Split, least_share, page_count, read_pages, split, training_texts
from mickle.data.mixture import DomainMixture, Mixture
from mickle.data.packing import NOT_TRAINED, TokenStream, pack, stream_of
from mickle.data.pieces import pieces
from mickle.data.preview import coloured
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer, open_text_tokenizer, train_tokenizer
from mickle.errors import UsageError
from mickle.events import Emit, Progressed, Started, Warned
from mickle.training.objectives import Batch
from mickle.training.pretrain_objectives import PretrainObjective
from mickle.training.pretrain_plan import PretrainPlan, derived_share, derived_vocabulary

PREVIEW_BYTES = 4 << 20  # text that a dry run looks at
PREVIEW_TOKENS = 201  # of it that are shown
QUICK_TOKENS = 16_384  # tokens of held-out text that an evaluation during the run reads
QUICK_PAGE = 1 << 18  # characters of the longest page there
QUICK_MEASURE = f"the first {QUICK_TOKENS:,} tokens of held-out pages and their ends, in windows side by side"


@dataclass(frozen=True)
class TrainingText:
    """The training tokens: one stream, or one for each domain with the weights they are sampled by."""

    streams: dict[str, TokenStream]
    weights: Weights | None = None

    @property
    def tokens(self) -> int:
        """Training tokens in all."""
        return sum(map(len, self.streams.values()))

    def batches(self, plan: PretrainPlan, seed: int) -> Mixture | DomainMixture:
        """Batch i of a run, a pure function of (seed, i)."""
        if self.weights is None:
            return Mixture(self.streams[""], plan.batch_size, plan.sequence_length, seed)
        streams = tuple(self.streams[name] for name in self.weights.names)
        return DomainMixture(streams, self.weights.weights, plan.batch_size, plan.sequence_length, seed)

    def lines(self, plan: PretrainPlan) -> list[str]:
        """Weight and epochs of each domain, for a person."""
        if self.weights is None:
            return []
        read = plan.steps * plan.batch_tokens
        shares = zip(self.weights.names, self.weights.weights, strict=True)
        parts = [f"{name} {w:.3f} ({w * read / len(self.streams[name]):.1f} epochs)" for name, w in shares]
        return ["domains by weight: " + ", ".join(parts)]


@dataclass(frozen=True)
class TokenizerAsked:
    """Which tokenizer a training has: the given one (a file, or a folder with one), or one trained on its pages.

    size: of the model that it is trained for, from which its own follows where ``vocabulary_size`` is None.
    """

    given: Path | None
    size: str | int
    vocabulary_size: int | None
    objective: PretrainObjective

    def opened(self) -> TextTokenizer | None:
        """The given one; None where one is to be trained. UsageError where the objective cannot do with it."""
        if self.given is None:
            return None
        tokenizer = open_text_tokenizer(self.given)
        self.objective.check_tokenizer(tokenizer)
        return tokenizer

    def trained(self, texts: Iterable[str]) -> TextTokenizer:
        """One trained on ``texts``."""
        size = self.vocabulary_size or derived_vocabulary(self.size)
        return train_tokenizer(texts, size, or_fewer=self.vocabulary_size is None, mask=not self.objective.causal)


def kept_tokenizer(asked: TokenizerAsked, data: Path, share: float, folder: Path, emit: Emit) -> TextTokenizer:
    """The tokenizer, trained on the training pages of ``data``; kept in ``folder``, so that a restart has the same."""
    if (folder / "tokenizer_config.json").is_file():  # written last
        return open_text_tokenizer(folder)
    tokenizer = asked.opened()
    if tokenizer is None:
        emit(Started("training the tokenizer", 0, "pages"))
        tokenizer = asked.trained(text for batch in training_texts(data, share) for text in batch)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    return tokenizer


def look_at(asked: TokenizerAsked, data: Path, share: float) -> tuple[TextTokenizer, list[np.ndarray], float]:
    """For a dry run: a tokenizer, the first pages' tokens by it, and tokens per UTF-8 byte."""
    texts: list[str] = []
    for batch in training_texts(data, share):
        texts += batch
        if sum(map(len, texts)) > PREVIEW_BYTES:
            break
    tokenizer = asked.opened() or asked.trained(texts)
    documents = tokenizer.encode_documents(texts)
    tokenizer.unknown_line(documents, str(data))
    size = sum(len(text.encode("utf-8")) for text in texts)
    return tokenizer, documents, sum(map(len, documents)) / size


def read_text(
    data: Path, mixture: Path | None, folder: Path, tokenizer: TextTokenizer, sides: Split, share: float, emit: Emit
) -> TrainingText:
    """Tokenize the training pages into ``folder``; a killed call, made again, goes on."""
    if mixture is not None:
        weights = read_weights(mixture)
        text = TrainingText(domain_streams(data, share, tokenizer, folder, weights, emit), weights)
    else:
        emit(Started("tokenizing", sides.training_pages, "pages"))
        texts = training_texts(data, share)
        text = TrainingText(
            {"": pack(texts, tokenizer, folder, sides.training_bytes, lambda pages: emit(Progressed(pages)))}
        )
    tell_unknown(text.streams, tokenizer, data, emit)
    return text


def tell_unknown(streams: dict[str, TokenStream], tokenizer: TextTokenizer, data: Path, emit: Emit) -> None:
    """Warns of tokens that stand for text which the tokenizer does not know. UsageError where they are most of all."""
    if line := tokenizer.unknown_line([stream.tokens for stream in streams.values()], str(data)):
        emit(Warned(line))


def split_pages(data: Path, share: float | None) -> tuple[Split, float]:
    """Read all pages once and split them; the share that was used comes with it. Of few pages, one is held out where
    no share is given and the usual one leaves a side empty.

    Raises UsageError where a side is empty: no pages, one page, copies of one page, an unlucky or extreme share.
    """
    derived = share is None
    share = derived_share(page_count(data)) if share is None else share
    sides = split(read_pages(data), share)
    if derived and sides.distinct > 1 and not (sides.heldout and sides.training_pages):
        share = least_share(read_pages(data))
        sides = split(read_pages(data), share)
    without = "or set heldout_share to 0 to train without held-out pages"
    if sides.distinct == 0:
        raise UsageError("There is no page with text here.", where=str(data), todo="check what `curate` removed")
    if share > 0 and sides.distinct == 1:
        raise UsageError(
            "All pages hold the same text: none can be held out.",
            where=str(data),
            expected="two different pages at the least",
            todo=f"give more pages, {without}",
        )
    if share > 0 and not sides.heldout:
        raise UsageError(
            f"None of the {sides.distinct} pages is held out at a share of {share:g}.",
            where="heldout_share",
            expected="a share that holds out a page: pages are chosen by a hash of their text, "
            f"and none of more than {LONGEST_HELDOUT:,} characters is",
            todo=f"raise heldout_share, {without}",
        )
    if not sides.training_pages:
        raise UsageError(
            f"A share of {share:g} leaves none of the {sides.distinct} pages for training.",
            where="heldout_share",
            todo="lower heldout_share, or give more pages",
        )
    return sides, share


def count_line(split: Split, share: float) -> str:
    """How the pages were split, for a person."""
    copies = f", copies of others among them: {split.training_copies:,}" if split.training_copies else ""
    merged = f", copies merged into them: {split.merged:,}" if split.merged else ""
    return (
        f"pages: {split.training_pages:,} for training ({split.training_bytes / 1e6:.2f} MB){copies}; "
        f"{len(split.heldout):,} held out ({split.heldout_bytes / 1e6:.2f} MB, share {share:.3g}){merged}; "
        "texts on both sides: 0"
    )


def preview(
    document: np.ndarray, tokenizer: TextTokenizer, shown: Callable[[list[int]], tuple[list[int], list[bool]]]
) -> str:
    """The beginning of a document with its trained tokens coloured; ``shown``: ids, and which of them are trained."""
    ids = [int(token) for token in document[:PREVIEW_TOKENS]]
    return "first example; coloured tokens are trained:\n" + "".join(coloured(tokenizer, *shown(ids)))


def heldout_measure(
    pages: tuple[Page, ...], objective: PretrainObjective, tokenizer: TextTokenizer, plan: PretrainPlan
) -> Callable[[nn.Module], dict[str, float]]:
    """A quick measure for the run: the first held-out pages, in windows of one sequence without overlap.

    ``heldout_loss`` is nats per token, ends of documents included; ``heldout_bits_per_byte`` the same over UTF-8 bytes.
    Windows cut contexts short, so `mickle evaluate`, which slides, finds a little less. A masked model is measured at
    the objective's evaluation rate with the same masks every time, whatever rate it is trained at by then.
    """
    stream, size = _quick_stream(pages, tokenizer)
    rows = max(1, plan.batch_size // plan.accumulate)
    windows = _windows(stream, plan.sequence_length, rows)
    batches = [objective.fixed(batch, group * rows, tokenizer) for group, batch in enumerate(windows)]
    loss_of = objective.measured_loss()

    def measure(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        total = count = 0.0
        for batch in batches:
            loss, terms = loss_of(model, {name: tensor.to(device) for name, tensor in batch.items()})
            total, count = total + float(loss), count + int(terms)
        return objective.figures(total, count, size)

    return measure


def _windows(stream: TokenStream, length: int, rows: int) -> Iterator[Batch]:
    """Windows side by side, ``rows`` a batch; what lies past the stream's end is padding that is not trained."""
    starts = np.arange(0, len(stream), length)
    for first in range(0, len(starts), rows):
        some = starts[first : first + rows]
        batch = stream.windows(some, length)
        past_end = some[:, None] + np.arange(length) >= len(stream)
        batch["labels"][past_end] = NOT_TRAINED
        batch["documents"][past_end] = -1
        yield batch


def _quick_stream(heldout: tuple[Page, ...], tokenizer: TextTokenizer) -> tuple[TokenStream, int]:
    """The first held-out pages' tokens, some QUICK_TOKENS of them, and the UTF-8 bytes of their texts."""
    documents: list[Any] = []
    texts: list[str] = []
    for page in heldout:
        if sum(map(len, documents)) >= QUICK_TOKENS:
            break
        texts.append(next(pieces(page.text, QUICK_PAGE)))
        documents += tokenizer.encode_documents(texts[-1:])
    return stream_of(documents, tokenizer), sum(len(text.encode("utf-8")) for text in texts)
