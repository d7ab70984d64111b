"""Model folders of some thousand weights and examples that they can learn, for the tests of tuning."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer, train_tokenizer
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import save_model

ANIMALS = ("cat", "dog", "owl", "hen", "fox", "cow")
TEXTS = [f"The {a} sees the {b}, then {number} more." for a in ANIMALS for b in ANIMALS for number in (1, 2)]
LENGTH = 64


def tokenizer(mask: bool = False) -> TextTokenizer:
    """A byte-level tokenizer of some 280 tokens."""
    return train_tokenizer(TEXTS, 280, or_fewer=True, mask=mask)


def decoder_folder(folder: Path, causal: bool = True, spare: int = 0) -> Path:
    """Ours: a Llama, or a EuroBERT where it sees both sides. spare: rows of its tables that no token has."""
    marks = tokenizer(mask=not causal)
    shape = DecoderConfig(marks.size + spare, 16, 2, 2, 2, 8, 32, LENGTH, causal=causal, initial_std=0.2)
    save_model(Decoder(shape, seed=3), folder, marks)
    return folder


def chat_folder(
    folder: Path, after: str = "\n", dtype: Any = None, special: bool = True, length: int = LENGTH, **shape: Any
) -> Path:
    """Ours with a template whose turns end with a mark that no file names as an end; ``after``: what follows it;
    ``special``: whether the tokenizer calls it so.
    """
    marks = train_tokenizer(TEXTS, 280, or_fewer=True)
    marks.tokenizer.add_special_tokens(["<|im_start|>"])
    marks.tokenizer.add_tokens([AddedToken("<|im_end|>", special=special, normalized=False)])
    settings = DecoderConfig(marks.size, 16, 2, 2, 2, 8, 32, length, initial_std=0.2, **shape)
    save_model(Decoder(settings, seed=3).to(dtype), folder, marks)
    turn = "<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>AFTER{% endgeneration %}"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}" + turn.replace("AFTER", after) + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    return folder


def gpt2_folder(folder: Path) -> Path:
    """A GPT-2 of transformers, with Conv1D layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    marks = tokenizer()
    config = GPT2Config(
        vocab_size=marks.size, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, initializer_range=0.2, bos_token_id=marks.start, eos_token_id=marks.end,
    )  # fmt: skip
    return _save(GPT2LMHeadModel, config, marks, folder)


def bert_folder(folder: Path) -> Path:
    """A BERT of transformers, with a byte-level vocabulary."""
    from transformers import BertConfig, BertForMaskedLM

    marks = tokenizer(mask=True)
    config = BertConfig(
        vocab_size=marks.size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    return _save(BertForMaskedLM, config, marks, folder)


def _save(kind: Any, config: Any, marks: TextTokenizer, folder: Path) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(3)
        kind(config).save_pretrained(folder)
    marks.save(folder)
    return folder


def chat(number: int) -> dict[str, Any]:
    """A conversation whose answer follows from its question."""
    first = ANIMALS[number % 6]
    question = f"Who comes after the {first} in row {number}?"
    turns = [("user", question), ("assistant", f"the {ANIMALS[(number + 1) % 6]}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def chats(path: Path, count: int = 40) -> Path:
    """A file of conversations."""
    return write_rows(path, map(chat, range(count)))


def labelled(path: Path) -> Path:
    """Rows whose label follows from one word of the text."""
    rows = ({"text": text, "kind": "few" if "then 1" in text else "many"} for text in TEXTS)
    return write_rows(path, rows)


def texts(path: Path) -> Path:
    """A file of plain text."""
    return write_rows(path, ({"text": text} for text in TEXTS))


def general(path: Path) -> Path:
    """Pages that no example is like."""
    pages = [Page(f"p{i}", "", "", f"Page {i} of the book tells of a river and its {i} old mills.") for i in range(8)]
    write_pages(pages, path)
    return path
