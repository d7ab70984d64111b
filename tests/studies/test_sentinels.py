"""A change that moves the numbers of a study fails here, until the study's version is raised."""

from dataclasses import replace
from pathlib import Path

import pytest
from sentinels import RECORD, SENTINELS, Sentinel, moved, record

from mickle import storage
from mickle.studies.declaration import open_study, page_names

CELLS = [(name, place) for name, sentinels in SENTINELS.items() for place in range(len(sentinels))]


def test_every_study_has_a_sentinel_that_is_recorded_for_its_version() -> None:
    recorded = storage.read_json(RECORD)
    assert set(SENTINELS) == set(recorded) == set(page_names())
    for name, sentinels in SENTINELS.items():
        study = open_study(name)
        todo = f"python tests/studies/sentinels.py {name}"
        assert recorded[name]["version"] == study.version, todo
        assert [cell["cell"] for cell in recorded[name]["cells"]] == [str(sentinel) for sentinel in sentinels], todo


@pytest.mark.parametrize(("name", "place"), CELLS)
def test_the_numbers_of_a_study_are_those_recorded_for_its_version(name: str, place: int) -> None:
    sentinel, recorded = SENTINELS[name][place], storage.read_json(RECORD)[name]["cells"][place]
    if (here := sentinel.versions()) != recorded["reads"]:
        pytest.skip(f"its text is read from {here}; recorded with {recorded['reads']}")
    changes = moved(sentinel, recorded["measured"], sentinel.measure(open_study(name)))
    assert not changes, (
        f"{name}, {sentinel}: {'; '.join(changes)}. If this is meant: raise the study's version, record it by "
        f"'python tests/studies/sentinels.py {name}', and run the study again or leave its result stale"
    )


def test_a_moved_number_is_told_and_not_recorded_under_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = SENTINELS["dropout_double_descent"][0]
    assert moved(sentinel, {**dict.fromkeys(sentinel.measures, 1.0)}, {**dict.fromkeys(sentinel.measures, 1.0)}) == []
    assert moved(replace(sentinel, measures=("loss",)), {"loss": [1.0, 2.0]}, {"loss": [1.0, 2.1]})
    assert moved(replace(sentinel, measures=("loss",)), {"loss": [1.0, 2.0]}, {"loss": [1.0]})

    path = tmp_path / "sentinels.json"
    monkeypatch.setattr("sentinels.RECORD", path)
    monkeypatch.setitem(SENTINELS, "dropout_double_descent", (sentinel,))
    record(["dropout_double_descent"])
    record(["dropout_double_descent"])  # the same numbers
    measure = Sentinel.measure
    monkeypatch.setattr(Sentinel, "measure", lambda self, study: {**measure(self, study), "near_threshold": 0.0})
    with pytest.raises(SystemExit, match="near_threshold: .* -> 0.0\nRaise the study's version first"):
        record(["dropout_double_descent"])
    recorded = storage.read_json(path)
    recorded["dropout_double_descent"]["version"] = 0  # as if it had been raised since
    storage.write_json(path, recorded)
    record(["dropout_double_descent"])
    assert storage.read_json(path)["dropout_double_descent"]["cells"][0]["measured"]["near_threshold"] == 0.0
