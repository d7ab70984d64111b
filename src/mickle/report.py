"""One self-contained HTML page from finished folders: what was asked, what was made, what it cost, how to repeat it.

The page needs no network, no script and under 500 kB; whatever pages or models wrote is escaped.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from urllib.parse import quote

from mickle import storage, verbs
from mickle.figures import panels_of
from mickle.results import Finding, Table
from mickle.step import Step
from mickle.storage import Manifest

LARGEST = 500_000  # bytes of the page
Folders = dict[str, Path]  # whole folders by the names of the steps that made them


def write_report(target: Path, title: str, folders: Folders, command: str = "") -> Path:
    """Write the page for ``folders`` (step name -> whole folder) to ``target``, unless it is of these already."""
    if stamp(target) != stamp(folders):
        storage.write_text(target, render(title, folders, command))
    return target


def stamp(of: Path | Folders) -> str:
    """A word for the folders a page was made from: of a page already written, or of folders."""
    if isinstance(of, dict):
        names = json.dumps([(name, str(path)) for name, path in of.items()])
        return hashlib.sha256(names.encode()).hexdigest()[:16]
    if not of.is_file():
        return ""
    found = re.search(r'name="mickle-stamp" content="([0-9a-f]+)"', of.read_text(encoding="utf-8")[:2000])
    return found[1] if found else ""


def render(title: str, folders: Folders, command: str = "") -> str:
    """The page as text."""
    import jinja2

    manifests = {name: storage.open_folder(path) for name, path in folders.items()}
    sections = [
        _maker(manifests[name]).section(path, manifests[name].meta.get("summary", {})) for name, path in folders.items()
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mickle", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["images"] = lambda svg: list(map(_image, panels_of(svg)))
    return environment.get_template("report.html").render(
        title=title,
        stamp=stamp(folders),
        command=command,
        findings=_findings(folders, manifests),
        sections=sections,
        steps=_steps(folders, manifests),
        settings={name: _settings(path) for name, path in folders.items()},
        machine=next((m.meta.get("machine", {}) for m in manifests.values()), {}),
        created=max((m.meta.get("created", "") for m in manifests.values()), default=""),
    )


def _image(svg: str) -> str:
    """A picture's address; as an image an SVG can run nothing and fetch nothing, whoever wrote it."""
    return "data:image/svg+xml," + quote(svg, safe=" ='():/,;")


def _findings(folders: Folders, manifests: dict[str, Manifest]) -> list[Finding]:
    """What each folder has to say first, then time and memory of all."""
    found = [
        finding
        for name in folders
        for finding in _maker(manifests[name]).findings(manifests[name].meta.get("summary", {}))
    ]
    seconds = sum(m.meta.get("seconds", 0.0) for m in manifests.values())
    peak = max((m.meta.get("peak_memory_bytes", 0) for m in manifests.values()), default=0)
    found.append(Finding(_duration(seconds), "from pages to this report" if len(folders) > 1 else "time taken"))
    found.append(Finding(f"{peak / 1e9:.2f} GB", "peak memory"))
    return found


def _maker(manifest: Manifest) -> type[Step]:
    return verbs.made_by(manifest.meta.get("identity", {}))


def _steps(folders: Folders, manifests: dict[str, Manifest]) -> Table:
    rows = []
    for name, path in folders.items():
        meta = manifests[name].meta
        forecast = meta.get("summary", {}).get("forecast") or {}
        rows.append(
            (
                name,
                str(meta.get("identity", {}).get("verb", "")),
                path.name,
                _duration(meta.get("seconds", 0.0)),
                _duration(forecast["seconds"]) if forecast.get("seconds") else "–",
                f"{meta.get('peak_memory_bytes', 0) / 1e9:.2f} GB",
                f"{forecast['memory_bytes'] / 1e9:.2f} GB" if forecast.get("memory_bytes") else "–",
                f"{sum(file.bytes for file in manifests[name].files.values()) / 1e6:.1f} MB",
                manifests[name].digest[:12],
            )
        )
    headings = ("step", "verb", "folder", "took", "forecast", "memory", "forecast", "size", "content")
    return Table(headings, rows, frozenset({3, 4, 5, 6, 7}))


def _settings(folder: Path) -> str:
    path = folder / "settings.yaml"
    return path.read_text(encoding="utf-8")[:8000] if path.is_file() else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
