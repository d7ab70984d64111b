"""The journal: small, checked before it is believed, and worth the tuned model."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import classifier, decoder, distance, points, train
from torch import nn

from mickle.errors import UsageError
from mickle.training import journal as module
from mickle.training.closure import Closure
from mickle.training.journal import (
    Journal,
    MezoRun,
    cut,
    decode,
    describe,
    encode,
    journal_of,
    merge,
    read_journal,
    write_journal,
)
from mickle.training.mezo import MeZO
from mickle.training.mezo_rate import find_rate
from mickle.training.mezo_rule import MezoRule
from mickle.training.objectives import classification
from mickle.training.optimizers import Schedule
from mickle.training.replay import fingerprint, replay, undo, verify

VARIANTS: list[dict[str, Any]] = [
    {},
    {"draws": "gaussian"},
    {"variant": "momentum", "probes": 2, "weight_decay": 0.1},
    {"variant": "adam", "weight_decay": 0.1},
    {"variant": "fzoo", "probes": 3},
]


def tuned(steps: int = 30, start: nn.Module | None = None, seed: int = 2, **given: Any) -> tuple[nn.Module, Journal]:
    kept: list[MeZO] = []

    def build(model: nn.Module) -> MeZO:
        kept.append(MeZO(model.named_parameters(), lr=0.02, seed=seed, base=fingerprint(model), **given))
        return kept[0]

    constant = Schedule(kind="constant", warmup=0.0)  # so that a shorter run is the beginning of a longer one
    model, _ = train(optimizer=build, steps=steps, model=start, schedule=constant)
    return model, journal_of(kept[0], fingerprint(model))


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_replay(given: dict[str, Any], tmp_path: Path) -> None:
    model, journal = tuned(**given)
    write_journal(journal, tmp_path / "run.mezo")
    read = read_journal(tmp_path / "run.mezo")
    assert read == journal
    exact, net = classifier(), classifier()
    replay(exact, read, exact=True)
    assert distance(exact, model) == 0.0
    assert verify(exact, read) == "tuned"
    replay(net, read)
    assert 0 < distance(net, model) < 2e-5
    assert distance(net, classifier()) > 1e-2
    undo(model, read)
    assert distance(model, classifier()) < 2e-5


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_every_step_on_the_way(given: dict[str, Any]) -> None:
    """Step 12 of 30: from the base, from the cut journal, and back from the end."""
    there, _ = tuned(steps=12, **given)
    end, journal = tuned(**given)
    for reach in (lambda m: replay(m, journal, 12), lambda m: replay(m, cut(journal, 12))):
        model = classifier()
        reach(model)
        assert distance(model, there) < 2e-5
    exact = classifier()
    replay(exact, journal, 0, exact=True)
    assert distance(exact, classifier()) == 0.0
    undo(end, journal, 12)
    forth = classifier()
    replay(forth, journal, 12)
    assert distance(end, forth) < 2e-5


def test_twenty_thousand_steps_fit_in_a_tenth_of_a_megabyte() -> None:
    """Oracle 7, with a rate that moves in every step and the tensors of a large model."""
    codes = tuple(range(0x3C00, 0x3C00 + 1000)) * 20
    tensors = tuple(
        module.TrainedTensor(f"model.layers.{i}.mlp.down_proj.weight", (4096, 4096), "float32", False)
        for i in range(200)
    )
    rates = tuple(0x3A83 - i // 40 for i in range(20_000))
    run = MezoRun("0" * 32, "f" * 32, MezoRule(), tensors, 24, rates, codes)
    data = encode(Journal((run,)))
    assert len(data) < 100_000
    assert decode(data).runs[0] == run


def test_runs_that_follow_each_other() -> None:
    model, first = tuned(steps=10)
    model, second = tuned(steps=10, start=model, seed=5)
    both = merge(first, second)
    assert both.steps == 20
    assert decode(encode(both)) == both
    exact = classifier()
    replay(exact, both, exact=True)
    assert distance(exact, model) == 0.0
    undo(model, both)
    assert distance(model, classifier()) < 2e-5
    assert len(cut(both, 10).runs) == 1
    assert cut(both, 15).steps == 15
    with pytest.raises(UsageError, match="did not begin where the first ended"):
        merge(second, first)


def test_measuring_a_rate_is_part_of_the_journal() -> None:
    model = classifier()
    optimizer = MeZO(model.named_parameters(), lr=0.0, base=fingerprint(model))
    rate = find_rate(optimizer, lambda i: Closure(model, classification, points(i), step=i), directions=5)
    optimizer.param_groups[0]["lr"] = rate.rate
    for step in range(5):
        optimizer.step(Closure(model, classification, points(step), step=step))
    journal = decode(encode(journal_of(optimizer)))
    assert journal.runs[0].measured == 5
    exact = classifier()
    replay(exact, journal, exact=True)
    assert distance(exact, model) == 0.0


def test_another_base_is_refused_before_it_is_touched() -> None:
    _, journal = tuned(steps=3)
    other = classifier()
    with torch.no_grad():
        other[0].bias[0] += 1e-6
    before = fingerprint(other)
    for attempt in (lambda: replay(other, journal), lambda: undo(other, journal), lambda: verify(other, journal)):
        with pytest.raises(UsageError, match=r"another base|not where the journal ends|neither") as caught:
            attempt()
        assert "fingerprint" in str(caught.value)
    assert fingerprint(other) == before
    with pytest.raises(UsageError, match=r"another base"):
        replay(decoder(), journal)


def test_tensors_must_be_there_as_they_were() -> None:
    _, journal = tuned(steps=2)
    unknown = Journal(
        tuple(
            MezoRun("", *(getattr(r, f) for f in ("tuned", "rule", "tensors", "measured", "rates", "projections")))
            for r in journal.runs
        )
    )
    with pytest.raises(UsageError, match=r"tensor '0.weight' is float32 \[9, 4\]"):
        replay(nn.Sequential(nn.Linear(4, 9)), unknown)
    with pytest.raises(UsageError, match="is absent"):
        replay(nn.Linear(4, 8), unknown)
    with pytest.raises(UsageError, match="no step 3"):
        replay(classifier(), journal, 3)


def test_fingerprint_sees_names_types_and_bytes() -> None:
    one = nn.Linear(3, 2)
    same = nn.Linear(3, 2)
    same.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(same.double()) != fingerprint(one)
    assert fingerprint(nn.Sequential(one)) != fingerprint(one)


def test_description() -> None:
    _, journal = tuned(steps=3, variant="momentum")
    said = describe(journal)
    assert "3 steps on 4 tensors (67 weights), momentum, rademacher, 1 probe, eps 0.001, seed 2" in said


def rewritten(data: bytes, change: Any) -> bytes:
    """The journal with a changed header and a right checksum."""
    length = struct.unpack_from("<4sHI", data)[2]
    header = json.loads(zlib.decompress(data[10 : 10 + length]))
    change(header)
    packed = zlib.compress(json.dumps(header).encode())
    text = struct.pack("<4sHI", b"MEZO", 1, len(packed)) + packed + data[10 + length : -8]
    return text + xxhash.xxh3_64_digest(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.update(generator="mt19937"), "generator 'mt19937'"),
        (lambda h: h.update(runs=[]), "no runs"),
        (lambda h: h.pop("runs"), "lacks generator or runs"),
        (lambda h: h["runs"][0].update(steps=10**12), "number of steps"),
        (lambda h: h["runs"][0].update(steps=2**31, pieces=1), "bytes of steps"),
        (lambda h: h["runs"][0].update(steps=2), "not of as many steps"),
        (lambda h: h["runs"][0].update(steps=True), "number of steps"),
        (lambda h: h["runs"][0].update(measured=10**9), "measured"),
        (lambda h: h["runs"][0].update(base="x" * 100), "fingerprint"),
        (lambda h: h["runs"][0].update(extra=1), "has the fields"),
        (lambda h: h["runs"][0]["rule"].update(eps=-1.0), "eps: .* got -1"),
        (lambda h: h["runs"][0]["rule"].update(probes=10**9), "probes: .* got 1000000000"),
        (lambda h: h["runs"][0]["rule"].update(variant=3), "variant: .* got 3"),
        (lambda h: h["runs"][0]["rule"].update(betas=[0.9]), "betas.1: .*required"),
        (lambda h: h["runs"][0]["rule"].pop("seed"), "has the fields"),
        (
            lambda h: h["runs"][0]["rule"].update(variant="adam", betas=[1 - 1e-12, 0.9]),
            "remembers more than 7,000 steps",
        ),
        (lambda h: h["runs"][0].update(added=[[]] * 1_000_000), "too many values"),
        (lambda h: h["runs"][0].update(tensors=[]), "trains no tensor"),
        (lambda h: h["runs"][0]["tensors"].append(h["runs"][0]["tensors"][0]), "names a tensor twice"),
        (lambda h: h["runs"][0]["tensors"][0].__setitem__(1, [2**40, 2**40]), "no possible shape"),
        (lambda h: h["runs"][0]["tensors"][0].__setitem__(1, [-1]), "no possible shape"),
        (lambda h: h["runs"][0]["tensors"][0].__setitem__(2, "int8"), "no possible shape"),
        (lambda h: h["runs"][0]["tensors"].__setitem__(0, "w"), "no name, shape"),
    ],
)
def test_hostile_headers(change: Any, said: str) -> None:
    _, journal = tuned(steps=3)
    with pytest.raises(UsageError, match=said):
        decode(rewritten(encode(journal), change))


def test_hostile_files(tmp_path: Path) -> None:
    _, journal = tuned(steps=3)
    data = encode(journal)
    path = tmp_path / "j.mezo"
    newer = data[:4] + b"\x02\x00" + data[6:]
    bomb = zlib.compress(b" " * (32 << 20))
    text = struct.pack("<4sHI", b"MEZO", 1, len(bomb)) + bomb
    cases = {
        b"": "not a journal",
        b"PK\x03\x04" + data[4:]: "not a journal",
        data[:-1]: "checksum",
        data[:20]: "checksum",
        data + b"\x00": "checksum",
        newer: "newer Mickle",
        text + xxhash.xxh3_64_digest(text): "too large or cut",
    }
    for content, said in cases.items():
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said) as caught:
            read_journal(path)
        assert str(path) in str(caught.value)
    with pytest.raises(UsageError, match="no such file"):
        read_journal(tmp_path / "none.mezo")


DATA = encode(tuned(steps=3)[1])


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, len(DATA) - 1), value=st.integers(0, 255), seal=st.booleans())
def test_one_changed_byte_is_refused_or_harmless(place: int, value: int, seal: bool) -> None:
    changed = bytearray(DATA)
    changed[place] = value
    if seal:
        changed[-8:] = xxhash.xxh3_64_digest(bytes(changed[:-8]))
    try:
        decode(bytes(changed))
    except UsageError:
        return
    assert seal or bytes(changed) == DATA
