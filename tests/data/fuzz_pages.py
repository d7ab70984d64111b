"""Mutated WARC files and HTML pages through reading, extraction and every stage for one page, in one process.

    python tests/data/fuzz_pages.py --seconds 300

Ends with an error at the first exception, at a page that takes over ten seconds, or past 2 GiB of memory; the counts of
each file must add up to what was read from it.
"""

from __future__ import annotations

import argparse
import gzip
import random
import resource
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import small_web as web
from mutations import mutated

from mickle.data.pages import RawPage
from mickle.data.refine import refine_page
from mickle.data.rules import WEB, Rules
from mickle.data.sources import Warc
from mickle.data.tally import Tally
from mickle.data.warc import write_warc

RULES = Rules(stages=list(WEB))
MOST_MEMORY = 2 << 30
TAGS = [tag.encode() for tag in (
    "<div>", "</div>", "<table><tr><td>", "<p", "<!--", "-->", "<![CDATA[", "<script>", "</script>", "<pre>",
    "<a href='", "&#x0;", "&#xD800;", "<svg><style>", "<template>", "<select><option>", "<li><ul>", "\x00",
)]  # fmt: skip


def fuzz_warc(whole: bytes, folder: Path, draw: random.Random) -> int:
    """One mutated file; returns how many records came out of it."""
    path = folder / "fuzz.warc"
    path.write_bytes(mutated(whole, draw, TAGS))
    tally, count = Tally(WEB), 0
    for item in Warc(path=path).read([path], 1 << 20, lambda read: None):
        count += 1
        outcomes = refine_page(item, RULES) if isinstance(item, RawPage) else [item]
        for outcome in outcomes:
            tally.add(outcome)
    if tally.records != count:
        raise AssertionError(f"{count} records read, {tally.records} counted")
    return count


def fuzz_html(pages: list[bytes], draw: random.Random) -> int:
    """One mutated page, as HTML or text, of any claimed encoding."""
    content = mutated(draw.choice(pages), draw, TAGS)
    charset = draw.choice(["", "utf-8", "utf-16", "shift_jis", "nonsense", "cp1252"])
    refine_page(RawPage("https://a.org/", "a.org", draw.choice(["html", "html", "text"]), content, charset), RULES)
    return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY + (4 << 30), MOST_MEMORY + (4 << 30)))
    draw = random.Random(options.seed)
    done = {"files": 0, "records": 0, "pages": 0}
    with TemporaryDirectory() as place:
        folder = Path(place)
        made = folder / "whole.warc.gz"
        write_warc(made, [(url, content) for url, content, _ in web.pages(6)])

        compressed = made.read_bytes()
        plain = gzip.decompress(compressed)
        pages = [content for _, content, _ in web.pages(6)]
        fuzz_html(pages, random.Random(0))
        ends = time.monotonic() + options.seconds
        while time.monotonic() < ends:
            signal.alarm(10)
            if draw.random() < 0.2:
                done["records"] += fuzz_warc(draw.choice([compressed, plain]), folder, draw)
                done["files"] += 1
            else:
                done["pages"] += fuzz_html(pages, draw)
            signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MOST_MEMORY:
        raise AssertionError(f"{peak / 1e9:.2f} GB of memory")
    print(done, f"peak {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
