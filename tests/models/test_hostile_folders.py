"""Folders made to harm: each gets one typed error, runs nothing, fetches nothing, and takes little time and
memory.

Every case starts from a folder that opens, and changes one thing in it.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mickle import storage
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import NumericError, UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, open_tokenizer, save_model

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"
Change = Callable[[Path], object]
Bounded = Callable[[Callable[[], object]], str]


class Canary:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path / "canary"),)


def both(*changes: Change) -> Change:
    """One change after the other."""
    return lambda folder: [change(folder) for change in changes]


def config(**values: Any) -> Change:
    """Set fields of config.json."""

    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def content(name: str, data: bytes | str) -> Change:
    """Replace a file."""
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def header(change: Callable[[dict[str, Any]], object], tail: bytes = b"") -> Change:
    """Change the header of the weight file; its data stays as it is."""

    def apply(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        values = json.loads(data[8 : 8 + length])
        change(values)
        text = json.dumps(values).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :] + tail)

    return apply


def entry(**fields: Any) -> Change:
    """Change the entry of one tensor in the header."""
    return header(lambda values: values["model.norm.weight"].update(fields))


def raw_header(text: bytes) -> Change:
    """A weight file with this header and 64 bytes of data."""
    return content(WEIGHTS, len(text).to_bytes(8, "little") + text + bytes(64))


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the tensors of the weight file."""

    def apply(folder: Path) -> None:
        values = load_file(folder / WEIGHTS)
        change(values)
        save_file(values, folder / WEIGHTS, {"format": "pt"})

    return apply


def filled(value: float) -> Change:
    """Every weight of one tensor is this."""
    return tensors(lambda values: values["model.norm.weight"].fill_(value))


def index(shard: str, keep: bool = True, **more: Any) -> Change:
    """Turn the weight file into a shard of this name with an index."""

    def apply(folder: Path) -> None:
        names = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).rename(folder / SHARD)
        if not keep:
            (folder / SHARD).unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard) | more}))

    return apply


def sparse(name: str, size: int, start: bytes = b"") -> Change:
    """A file of this size with nothing on disk."""

    def apply(folder: Path) -> None:
        with open(folder / name, "wb") as stream:
            stream.write(start)
            stream.truncate(size)

    return apply


def link(name: str, target: str) -> Change:
    """Replace a file by a symbolic link."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return apply


def special(name: str) -> Change:
    """Replace a file by a pipe, which would block whoever opens it."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def pickled(name: str) -> Change:
    """Weights that run code when unpickled."""

    def apply(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Canary(folder)))

    return apply


def code(folder: Path) -> None:
    """A module of the folder's own, and a config that asks for it."""
    (folder / "modeling_evil.py").write_text(f"import os; os.mkdir({str(folder / 'canary')!r})\n")
    config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, model_type="evil")(folder)


def sealed(change: Change) -> Change:
    """Change something after the manifest was written."""

    def apply(folder: Path) -> None:
        storage.seal(folder, kind="model")
        change(folder)

    return apply


def manifest(**files: Any) -> Change:
    """A manifest that names these files."""
    return content("manifest.json", json.dumps({"kind": "model", "format": 1, "files": files}))


def flip(folder: Path) -> None:
    """One bit of one weight."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-20] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def gpt2(**values: Any) -> Change:
    """A folder that is opened through transformers, with these settings."""

    def apply(folder: Path) -> None:
        shutil.copytree(folder.parent / "gpt2", folder, dirs_exist_ok=True)
        config(**values)(folder)

    return apply


def _duplicate(folder: Path) -> None:
    one = '"a": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}'
    raw_header(f"{{{one}, {one}}}".encode())(folder)


def _overlap(values: dict[str, Any]) -> None:
    start = values["model.embed_tokens.weight"]["data_offsets"][0]
    values["model.norm.weight"]["data_offsets"] = [start, start + 128]


DEEP = "[" * 100_000 + "]" * 100_000
CASES: dict[str, Change] = {
    # The weight file.
    "pickle renamed to safetensors": pickled(WEIGHTS),
    "pickled weights only": pickled("pytorch_model.bin"),
    "pickled checkpoint only": pickled("model.pt"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "empty weights": content(WEIGHTS, b""),
    "seven bytes of weights": content(WEIGHTS, b"1234567"),
    "header of 2^63": content(WEIGHTS, struct.pack("<Q", 2**63) + b"{}" * 20),
    "header of 2^64 - 1": content(WEIGHTS, struct.pack("<Q", 2**64 - 1) + b"{}" * 20),
    "header longer than the file": content(WEIGHTS, struct.pack("<Q", 1000) + b"{}" * 20),
    "header larger than any": sparse(WEIGHTS, 1 << 32, struct.pack("<Q", 1 << 31)),
    "header is no JSON": raw_header(b"{model}"),
    "header is an array": raw_header(b"[1, 2]"),
    "header is not UTF-8": raw_header(b'{"\xff\xfe": 1}'),
    "header nested 100,000 deep": raw_header(b'{"a":' * 100_000),
    "header with a number of 10,000 digits": raw_header(b'{"a": ' + b"9" * 10_000 + b"}"),
    "header with NaN": raw_header(b'{"a": NaN}'),
    "one name twice": _duplicate,
    "overlapping tensors": header(_overlap),
    "hole between tensors": header(lambda values: values.pop("model.norm.weight")),
    "a zip behind the tensors": header(lambda values: None, tail=b"PK\x03\x04" + bytes(30)),
    "data cut off": lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100),
    "unknown dtype": entry(dtype="OBJECT"),
    "dtype is a list": entry(dtype=["F32"]),
    "shape product overflows": entry(shape=[2**40, 2**40]),
    "shape that wraps around to the right size": entry(shape=[2**62, 2**2, 32]),
    "negative shape": entry(shape=[-32, -1]),
    "shape of fractions": entry(shape=[32.0]),
    "shape of truth values": entry(shape=[True] * 32),
    "shape of 100,000 dimensions": entry(shape=[1] * 100_000),
    "negative offsets": entry(data_offsets=[-128, 0]),
    "offsets reversed": entry(data_offsets=[128, 0]),
    "three offsets": entry(data_offsets=[0, 64, 128]),
    "offsets past the end": entry(data_offsets=[2**40, 2**40 + 128]),
    "an unknown field": entry(code="import os"),
    "a tensor's name of a megabyte": header(lambda v: v.update({"x" * 2**20: v.pop("model.norm.weight")})),
    "filled with NaN": filled(float("nan")),
    "filled with infinity": filled(float("inf")),
    "a tensor is missing": tensors(lambda values: values.pop("model.norm.weight")),
    "a tensor too many": tensors(lambda values: values.update(evil=torch.zeros(2))),
    "a tensor of another shape": tensors(lambda v: v.update({"model.norm.weight": torch.ones(1, 32)})),
    "a tensor of whole numbers": tensors(lambda v: v.update({"model.norm.weight": torch.ones(32).int()})),
    "weights are a folder": both(lambda folder: (folder / WEIGHTS).unlink(), lambda folder: (folder / WEIGHTS).mkdir()),
    "weights are a pipe": special(WEIGHTS),
    "weights are a link to outside": link(WEIGHTS, "../good/model.safetensors"),
    "weights are a link to a device": link(WEIGHTS, "/dev/zero"),
    "weights are a link to nothing": link(WEIGHTS, "nothing"),
    # The index of shards.
    "index leads out of the folder": index("../../etc/passwd"),
    "index leads to an absolute path": index("/etc/passwd"),
    "index leads to a neighbour": index("../good/model.safetensors"),
    "index names a pickled shard": index("model.bin"),
    "index names a hidden file": index(".model.safetensors"),
    "index names a number": index(SHARD, evil=3),
    "shard missing": index(SHARD, keep=False),
    "index names a tensor that is nowhere": index(SHARD, **{"model.evil": SHARD}),
    "index lacks a shard's tensor": index(SHARD, **{"model.norm.weight": "model-2.safetensors"}),
    "index is a list": both(index(SHARD), content(INDEX, "[]")),
    "index nested 100,000 deep": both(index(SHARD), content(INDEX, DEEP)),
    "index of 2 GB": both(index(SHARD), sparse(INDEX, 1 << 31)),
    # The configuration.
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "empty config": content(CONFIG, ""),
    "truncated config": content(CONFIG, '{"model_type": "lla'),
    "config is a list": content(CONFIG, "[]"),
    "config is not UTF-8": content(CONFIG, b"\xff\xfe\x00"),
    "config nested 100,000 deep": content(CONFIG, DEEP),
    "config nested 100 deep": config(extra=json.loads("[" * 100 + "]" * 100)),
    "config with a number of 10,000 digits": content(CONFIG, '{"model_type": "llama", "a": ' + "9" * 10_000 + "}"),
    "config of 2 GB": sparse(CONFIG, 1 << 31, b'{"model_type": "'),
    "config is a pipe": special(CONFIG),
    "config is a link to outside": link(CONFIG, "/etc/passwd"),
    "no model type": config(model_type=None),
    "unknown model type": config(model_type="no_such_model"),
    "code of its own": code,
    "code of its own inside a part": config(text_config={"auto_map": {"AutoConfig": "evil.Config"}}),
    "attention fetched from a hub": config(_attn_implementation="kernels-community/evil"),
    "an adapter": content("adapter_config.json", '{"base_model_name_or_path": "/etc"}'),
    "quantized": config(quantization_config={"quant_method": "bitsandbytes"}),
    "a billion layers": config(num_hidden_layers=10**9),
    "a billion layers as a float": config(num_hidden_layers=1e9),
    "more layers than tensors": config(num_hidden_layers=1999),
    "a width of a billion": config(hidden_size=10**9),
    "a width of 2^70": config(hidden_size=2**70),
    "a width too large for its weights": config(hidden_size=2**20, intermediate_size=2**20),
    "a vocabulary of a trillion": config(vocab_size=10**12),
    "no heads": config(num_attention_heads=0, num_key_value_heads=None, head_dim=None),
    "negative heads": config(num_attention_heads=-4),
    "heads that do not divide": config(num_key_value_heads=3),
    "a width of text": config(hidden_size="32"),
    "layers of text": config(num_hidden_layers="two"),
    "rotary settings that are a number": config(rope_parameters=7),
    "rotary base of text": config(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
    "a vocabulary that is true": config(vocab_size=True),
    "an epsilon that is a list": config(rms_norm_eps=[]),
    "a SmolLM3 with the wrong list of layers": config(model_type="smollm3", no_rope_layers=[1] * 9),
    "our own type without its fields": config(model_type="mickle_decoder"),
    # Folders that go through transformers.
    "GPT-2 of a billion layers": gpt2(n_layer=10**9),
    "GPT-2 of more layers than tensors": gpt2(n_layer=1999),
    "GPT-2 of absurd width": gpt2(n_embd=2**24, n_inner=2**24),
    "GPT-2 of a width of text": gpt2(n_embd="wide"),
    "GPT-2 with the weights of a Llama": config(model_type="gpt2", n_embd=32, n_layer=2, n_head=4),
    "an image model": config(model_type="vit"),
    "GPT-2 with code of its own": gpt2(auto_map={"AutoModelForCausalLM": "evil.Evil"}),
    # The manifest.
    "a file cut after sealing": sealed(lambda folder: os.truncate(folder / WEIGHTS, 1000)),
    "a bit flipped after sealing": sealed(flip),
    "a file lost after sealing": sealed(lambda folder: (folder / "generation_config.json").unlink()),
    "manifest leads out of the folder": manifest(**{"../good/config.json": {"bytes": 1, "xxh3": "0"}}),
    "manifest of nonsense": content("manifest.json", '{"files": 3}'),
    "manifest nested 100,000 deep": content("manifest.json", DEEP),
    "manifest is a pipe": lambda folder: os.mkfifo(folder / "manifest.json"),
    # No folder at all.
    "nothing there": shutil.rmtree,
    "an empty folder": both(shutil.rmtree, Path.mkdir),
    "a file": both(shutil.rmtree, lambda folder: folder.write_text("model")),
}
MERGES = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
TOKENIZER_CASES: dict[str, Change] = {
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "a tokenizer of 4 GB, as 1e8 merges need": sparse("tokenizer.json", 1 << 32, b'{"model": {"merges": ["'),
    "two million merges": content("tokenizer.json", '{"model": {"merges": [' + "0," * 2_100_000 + "0]}}"),
    "merges of unknown tokens": content("tokenizer.json", json.dumps({"model": MERGES | {"merges": ["x y"]}})),
    "a vocabulary that is a number": content("tokenizer.json", json.dumps({"model": MERGES | {"vocab": 7}})),
    "a tokenizer nested 100,000 deep": content("tokenizer.json", DEEP),
    "a tokenizer that is no JSON": content("tokenizer.json", "vocab"),
    "a tokenizer without a model": content("tokenizer.json", '{"version": "1.0"}'),
    "a tokenizer of unknown kind": content("tokenizer.json", '{"model": {"type": "Evil"}}'),
    "a pickled tokenizer": lambda folder: (folder / "tokenizer.json").write_bytes(pickle.dumps(Canary(folder))),
    "a tokenizer that is a pipe": special("tokenizer.json"),
    "a tokenizer that is a link to outside": link("tokenizer.json", "../good/tokenizer.json"),
    "a chat template of a megabyte": content("chat_template.jinja", "{{ x }}" * 150_000),
    "a chat template of a megabyte in the settings": content(
        "tokenizer_config.json", json.dumps({"chat_template": "{{ x }}" * 150_000})
    ),
    "tokenizer code of its own": content("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
    "tokenizer settings that are a list": content("tokenizer_config.json", "[]"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders that open: ours, and one that goes through transformers (whose import is not what is
    measured).
    """
    place = tmp_path_factory.mktemp("hostile")
    tokenizer = train_tokenizer(["the cat sat on the mat " * 9], 270, or_fewer=True)
    save_model(Decoder(DecoderConfig(tokenizer.size, 32, 2, 4, 2, 8, 48, 64)), place / "good", tokenizer)
    settings = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(settings).save_pretrained(place / "gpt2")
    for name in ("good", "gpt2"):
        open_model(place / name)
    open_tokenizer(place / "good")
    return place


@pytest.fixture
def folder(home: Path) -> Iterator[Path]:
    """A copy of the sound folder, beside it."""
    place = home / "bad"
    shutil.copytree(home / "good", place)
    yield place
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks up a name or connects ends the process, even where the failure would be swallowed."""

    def refuse(*arguments: Any, **_: Any) -> None:
        os._exit(99)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_refused(name: str, folder: Path, bounded: Bounded) -> None:
    CASES[name](folder)
    bounded(lambda: open_model(folder))
    assert not (folder / "canary").exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", TOKENIZER_CASES)
def test_a_hostile_tokenizer_is_refused(name: str, folder: Path, bounded: Bounded) -> None:
    TOKENIZER_CASES[name](folder)
    bounded(lambda: open_tokenizer(folder))
    assert not (folder / "canary").exists()


def test_random_values_in_a_config_give_a_model_that_runs_or_a_typed_error(folder: Path) -> None:
    """400 configs, each with one or two fields replaced by what does not belong there."""
    junk = [None, 0, -1, 1, 3, 60, 2**24, 2**63, 0.5, 1e9, 1e-9, 1e308, True, False, "", "x", "relu", [], [1], [[]]]
    junk += [{}, {"a": 1}, {"rope_type": "yarn"}, ["none", "rotary"], "rotary", "t5"]
    chance = random.Random(0)
    kinds: list[dict[str, Any]] = [{}, {"position": "t5"}, {"experts": 3}, {"causal": False}]
    for kind in kinds:
        save_model(Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, **kind)), folder)
        sound = json.loads((folder / CONFIG).read_text())
        for _ in range(100):
            names = chance.sample(sorted(sound), chance.choice([1, 1, 2]))
            changed = {**sound, **{name: chance.choice(junk) for name in names}}
            (folder / CONFIG).write_text(json.dumps(changed))
            with contextlib.suppress(UsageError, NumericError):
                assert open_model(folder)(torch.tensor([[1, 2, 3]])).shape == (1, 3, 60), changed


def test_links_of_the_hugging_face_cache_are_followed_and_no_others(home: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in (home / "good").iterdir():
        shutil.copy(path, blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash-of-{path.name}")
    assert torch.isfinite(open_model(snapshot)(torch.tensor([[1, 2]]))).all()
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(home / "good" / WEIGHTS)
    with pytest.raises(UsageError, match="link to outside"):
        open_model(snapshot)
