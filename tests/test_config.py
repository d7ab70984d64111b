from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from mickle.config import inputs, load, to_yaml, validate
from mickle.errors import UsageError


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_reads_what_it_writes(toy: ModuleType, tmp_path: Path) -> None:
    config = toy.Write(words=["é", "x: y"], method=toy.Fancy(gamma=0.25), learning_rate=3e-4)
    assert load(toy.Write, _file(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("seed: 1\nlerning_rate: 0.1\n", 2, "did you mean 'learning_rate'"),
        ("seed: 1\n\nlearning_rate: -1\n", 3, "greater than 0, got -1"),
        ("method:\n  kind: fancy\n  gama: 1\n", 3, "did you mean 'gamma'"),
        ("method:\n  kind: fancy\n  gamma: 2\n", 3, "method.gamma"),
        ("method:\n  kind: fanzy\n", 1, "fanzy"),
        ("words:\n  - a\n  - [b]\n", 3, "words.1"),
        ("seed: .nan\n", 1, "seed"),
        ("learning_rate: .inf\n", 1, "learning_rate"),
        ("seed: 1\nseed: 2\n", 2, "stands twice"),
        ("? [seed, out]\n: 1\n", 1, "must be plain text"),
        ("seed: [1\n", 2, "not valid YAML"),
        ("words: &a [x]\nnote: *a\n", 2, "aliases"),
        ("seed: !!python/object/apply:os.system ['true']\n", 1, "not valid YAML"),
    ],
)
def test_errors_name_the_line(toy: ModuleType, tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(toy.Write, _file(tmp_path, text))
    assert f"settings.yaml:{line}" in caught.value.where
    assert says in caught.value.what
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "words"])
def test_a_settings_file_must_be_a_mapping(toy: ModuleType, tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="mapping"):
        load(toy.Write, _file(tmp_path, text))


def test_missing_binary_and_huge_files(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such settings file"):
        load(toy.Write, tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(toy.Write, binary)
    with pytest.raises(UsageError, match="bytes"):
        load(toy.Write, _file(tmp_path, "#" * (2 << 20)))
    with pytest.raises(UsageError, match="YAML"):
        load(toy.Write, _file(tmp_path, "[" * 100_000))


def test_a_union_without_kind_means_its_default(toy: ModuleType) -> None:
    assert validate(toy.Write, {"method": {"rate": 0.5}}).method == toy.Plain(rate=0.5)
    with pytest.raises(UsageError, match="gamma"):
        validate(toy.Write, {"method": {"gamma": 0.5}})


def test_every_problem_is_counted(toy: ModuleType) -> None:
    with pytest.raises(UsageError, match="and 1 more"):
        validate(toy.Write, {"seed": -1, "learning_rate": 0})


def test_settings_are_frozen(toy: ModuleType) -> None:
    with pytest.raises(ValidationError):
        toy.Write().seed = 3


def test_inputs_are_found(toy: ModuleType) -> None:
    assert list(inputs(toy.Count(data=Path("x")))) == [("data", Path("x"))]
    assert list(inputs(toy.Write())) == []


def test_the_tag_of_a_union_is_not_part_of_a_fields_name(toy: ModuleType) -> None:
    """Without a file, too: from flags and from Python."""
    with pytest.raises(UsageError, match=r"^method\.gamma: "):
        validate(toy.Write, {"words": ["a"], "method": {"kind": "fancy", "gamma": "much"}})
