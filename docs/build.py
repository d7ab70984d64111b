"""Write the documentation as HTML: ``python docs/build.py site``. Needs nothing beyond what Mickle installs."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from jinja2 import Environment
from markdown_it import MarkdownIt

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · Mickle</title><style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6877; --line: #dde2e9; --paper: #fff;
  --card: #f6f8fa; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b3; --line: #303845;
  --paper: #14181e; --card: #1c222a; --accent: #7cabff; } }
body { margin: 0 auto; max-width: 54rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; }
a { color: var(--accent); } img { max-width: 100%; } h1, h2 { line-height: 1.25; } h2 { margin-top: 2.4rem; }
code { font: .88em ui-monospace, monospace; background: var(--card); padding: .1em .3em; border-radius: 4px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; }
pre code { background: none; padding: 0; } nav { font-size: .9rem; margin-bottom: 1.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .88rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; }
</style></head><body><nav><a href="{{ root }}index.html">Mickle</a></nav>{{ body | safe }}</body></html>
"""


def build(target: Path) -> int:
    """Render every Markdown page (README too) below ``target``; returns how many. Broken local links are errors."""
    source = Path(__file__).parent
    renderer = MarkdownIt("commonmark").enable("table")
    template = Environment(autoescape=True).from_string(PAGE)
    pages = {path.relative_to(source): path for path in sorted(source.rglob("*.md"))}
    pages[Path("README.md")] = source.parent / "README.md"
    for place, path in pages.items():
        text = path.read_text(encoding="utf-8")
        check_links(text, path)
        body = re.sub(r'href="(?:\.\./|docs/)?([^":]+?)\.md', r'href="\1.html', renderer.render(text))
        out = target / place.with_suffix(".html")
        out.parent.mkdir(parents=True, exist_ok=True)
        title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), place.stem)
        out.write_text(template.render(title=title, body=body, root="../" * (len(place.parts) - 1)), encoding="utf-8")
    for folder in ("images", "results"):
        if (source / folder).is_dir():
            shutil.copytree(source / folder, target / folder, dirs_exist_ok=True)
    return len(pages)


def check_links(text: str, path: Path) -> None:
    """Every relative link must lead to a file that is there."""
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link and not (path.parent / link).exists():
            raise SystemExit(f"{path}: link to {link}, which is not there")


if __name__ == "__main__":
    print(f"{build(Path(sys.argv[1] if len(sys.argv) > 1 else 'site'))} pages written")
