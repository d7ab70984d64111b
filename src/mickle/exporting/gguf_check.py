"""A GGUF file of a Llama read back: its weights in our decoder, its vocabulary as a tokenizer, for the proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.errors import UsageError

if TYPE_CHECKING:
    from mickle.exporting.gguf_tokens import Vocabulary
    from mickle.exporting.source import Source
    from mickle.models.decoder import Decoder

# Texts in which ways of cutting differ: numbers, contractions, spaces at ends, other scripts and numerals.
AWKWARD = (
    "It's 12345 o'clock,  isn't it?\r\n\r\n\tYES  ",
    "x=3.14e-10; y[0]='a' ... #!/usr/bin/env\n\n\n",
    "naïve Ⅷ ½ ٣٤ 数字123 été 🙂🙂  <|endoftext|>",
)


def open_gguf(folder: Path) -> Decoder:
    """The decoder of a folder's file, in float32 and evaluation mode; shape and weights are the file's alone."""
    import torch

    from mickle.exporting.gguf_file import FILE, SHAPE, as_read, file_names, gguf_package
    from mickle.models.decoder import Decoder
    from mickle.models.shape import DecoderConfig

    gguf = gguf_package()
    reader = gguf.GGUFReader(folder / FILE)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    sizes = {ours: reader.fields[f"llama.{theirs}"].contents() for theirs, ours in SHAPE.items()}
    config = DecoderConfig(**sizes, tied="output.weight" not in tensors)
    with torch.device("meta"):
        model = Decoder(config)
    state = {}
    for ours, theirs in file_names(model).items():
        if theirs not in tensors:
            raise UsageError(f"the file lacks tensor {theirs!r}", where=str(folder / FILE))
        found = tensors.pop(theirs)
        numbers = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).copy())
        state[ours] = as_read(ours, numbers, config, back=True)
    if tensors:
        raise UsageError(f"the file has an unknown tensor {next(iter(tensors))!r}", where=str(folder / FILE))
    model.load_state_dict(state, assign=True)
    return model.eval()


def read_back(folder: Path) -> Vocabulary:
    """The vocabulary that a folder's file holds."""
    from mickle.exporting.gguf_file import FILE, gguf_package
    from mickle.exporting.gguf_tokens import MARKS, Vocabulary

    fields = gguf_package().GGUFReader(folder / FILE).fields

    def value(name: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    marks = {name: value(f"ggml.{long}_token_id") for name, long in MARKS.items()}
    return Vocabulary(
        tokens=value("ggml.tokens"),
        kinds=value("ggml.token_type"),
        merges=value("ggml.merges", []),
        pre=value("ggml.pre"),
        begins=value("ggml.add_bos_token"),
        ends=value("ggml.add_eos_token"),
        marks={name: number for name, number in marks.items() if number is not None},
        template=value("chat_template", ""),
        note="",
    )


def refuse_other_vocabulary(source: Source, folder: Path, prompts: Sequence[str]) -> None:
    """The file's vocabulary, read as its name for the cutting says, must give the source's tokens; its marks and chat
    template must be the source's.
    """
    from mickle.exporting.gguf_tokens import DEFAULT, rebuilt
    from mickle.exporting.source import chat_template, token_settings
    from mickle.models.folder import open_tokenizer

    assert source.tokenizer_home is not None  # the file could not have been written
    words, before = read_back(folder), open_tokenizer(source.tokenizer_home)
    if words.template != chat_template(source):
        raise UsageError("the file holds another chat template", where=str(folder))
    ids = token_settings(source)
    for name, number in words.marks.items():
        wanted = ids.get(f"{name}_token_id")
        if number not in (wanted if isinstance(wanted, list) else [wanted]):
            raise UsageError(f"the file's {name} is token {number}", expected=str(wanted))
    if words.pre == DEFAULT:
        return  # no reader's way is known; the user is told
    after = rebuilt(words)
    for text in (*prompts, *AWKWARD):
        one, other = (t.encode(text, add_special_tokens=False).ids for t in (before, after))
        if one != other:
            raise UsageError(
                f"a reader of the file would cut a text differently under {words.pre!r}", where=f"text {text[:60]!r}"
            )
