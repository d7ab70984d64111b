"""Removal of pages by their address alone: lists of sites, words in the address, sources mixed in elsewhere.

Source: "The RefinedWeb Dataset for Falcon LLM", arXiv 2306.01116, section 3.1 and appendix on URL filtering. No text
of a page is looked at, so that a topic is not lost with the words it needs. Asked in this order, the first that
fails is the reason:

1. *curated source*: the site is mixed into corpora from a cleaner copy (Wikipedia, arXiv, ...).
2. *blocked site*: the host or a domain above it is on a list; *blocked address*: this very page is.
3. *hard word*: one such word stands alone in the address (between characters that are no letters or digits).
4. *soft words*: more than ``soft_words_allowed`` different ones stand alone in it.
5. *strict word*: one stands anywhere in a word of it, or is several whole words: in "essex/campus" is no "sexcam".

Departures from datatrove 0.10.1, which the paper's authors wrote after it: both sides are in lower case (there a
capital letter in an address hides a word), ``%70`` is read as the letter it stands for, letters of every alphabet are
letters, a strict word does not begin in one word and end in another, and a list's entry holds for all hosts below it,
so that no list of public suffixes is needed.

The paper's list has 4.6 million sites and is not ours to ship: give it, or a category of the UT1 lists, as
``blocked``. Sites are kept as 64-bit hashes, 8 bytes each: 37 MB for 4.6 million, with one wrong removal in 10^12
pages. The lists here are a small beginning, in English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import Field

from mickle.config import Config, Input
from mickle.data.records import Failure
from mickle.errors import UsageError
from mickle.untrusted.values import bounded_lines

LONGEST_LINE = 8192  # bytes of a list file's line; longer ones are no addresses
LONGEST_HOST = 253  # characters, by the standard of names; of longer ones the end
LONGEST_URL = 4096  # characters looked at for words
START = 4  # letters by which strict words are looked up

CURATED = [
    "wikipedia.org", "wiktionary.org", "wikibooks.org", "wikinews.org", "wikiquote.org", "wikisource.org",
    "wikiversity.org", "wikivoyage.org", "wikimedia.org", "wikidata.org",
    "arxiv.org", "ncbi.nlm.nih.gov", "pubmed.ncbi.nlm.nih.gov", "philpapers.org",
    "stackoverflow.com", "stackexchange.com", "serverfault.com", "superuser.com", "askubuntu.com", "mathoverflow.net",
    "reddit.com", "news.ycombinator.com", "github.com", "gutenberg.org", "archiveofourown.org",
    "courtlistener.com", "patents.google.com", "uspto.gov", "europarl.europa.eu", "opensubtitles.org",
]  # fmt: skip
BLOCKED = (
    "pornhub.com", "xvideos.com", "xnxx.com", "xhamster.com", "redtube.com", "youporn.com", "chaturbate.com",
    "bet365.com", "pokerstars.com", "888casino.com",
)  # fmt: skip
# Only such as stand in no innocent word: Essex campuses, TJ Maxx videos and an olive's expert are not meant.
STRICT = ("pornhub", "pornstar", "pornvideo", "freeporn", "xxxvideo", "xhamster", "adultfriend", "onlinecasino",
          "casinobonus")  # fmt: skip
HARD = ("sexcam", "sexcams", "livesex", "freesex", "xxvideo", "xxvideos",
        "porn", "porno", "xxx", "hentai", "milf", "milfs", "blowjob", "creampie", "cumshot", "gangbang", "handjob",
        "camgirl", "camgirls", "escorts", "fetish", "upskirt")  # fmt: skip
SOFT = ("sex", "sexy", "adult", "nude", "nudes", "naked", "cam", "cams", "webcam", "escort", "babes", "dating",
        "hookup", "casino", "poker", "betting", "gambling")  # fmt: skip


class Urls(Config):
    """Addresses whose pages are not wanted. A list's file has one entry a line; lines that begin with # are notes."""

    blocked: list[Input] = Field([], description="files of sites (all below them too) and addresses to remove")
    strict_words: list[Input] = Field([], description="files of words that remove an address anywhere in it")
    hard_words: list[Input] = Field([], description="files of words that remove an address where they stand alone")
    soft_words: list[Input] = Field([], description="files of words of which an address may have but few")
    soft_words_allowed: int = Field(1, ge=0, description="how many different soft words an address may have")
    curated: list[str] = Field(
        CURATED, description="sites (with all below them) left out of a crawl because a cleaner copy of them is used"
    )
    defaults: bool = Field(True, description="add the small built-in lists (adult and gambling, English)")


class UrlFilter:
    """The lists of ``settings`` read once; :class:`UsageError` where a file of them cannot be read."""

    def __init__(self, settings: Urls) -> None:
        built_in = settings.defaults
        self.curated = frozenset(map(_entry, settings.curated))
        self.blocked = _Hashes(_entry(e) for e in _entries(settings.blocked, BLOCKED if built_in else ()))
        self.hard = frozenset(_letters(w) for w in _entries(settings.hard_words, HARD if built_in else ())) - {""}
        self.soft = frozenset(_letters(w) for w in _entries(settings.soft_words, SOFT if built_in else ())) - {""}
        self.strict = frozenset(_letters(w) for w in _entries(settings.strict_words, STRICT if built_in else ())) - {""}
        self.strict_by_start: dict[str, list[str]] = {}
        for word in sorted(self.strict):
            self.strict_by_start.setdefault(word[:START], []).append(word)
        self.start_sizes = sorted(set(map(len, self.strict_by_start)))
        self.soft_words_allowed = settings.soft_words_allowed

    def check(self, url: str) -> Failure | None:
        """Why the page of ``url`` is removed by its address; None where it is kept. Never raises."""
        sites = list(_sites(_host(url)))
        if not self.curated.isdisjoint(sites):
            return Failure("curated source", 1.0, 0.0)
        if any(site in self.blocked for site in sites):
            return Failure("blocked site", 1.0, 0.0)
        if url_key(url).lower() in self.blocked:
            return Failure("blocked address", 1.0, 0.0)
        return self._check_words(unquote(url[:LONGEST_URL], errors="replace").lower())

    def _check_words(self, url: str) -> Failure | None:
        words = _NO_LETTERS.split(url)
        if hard := len(self.hard.intersection(words)):
            return Failure("hard word", hard, 0.0)
        if (soft := len(self.soft.intersection(words))) > self.soft_words_allowed:
            return Failure("soft words", soft, self.soft_words_allowed)
        return (
            Failure("strict word", 1.0, 0.0) if any(_stands(word, words) for word in self._strict_in(words)) else None
        )

    def _strict_in(self, words: Sequence[str]) -> list[str]:
        """The strict words whose letters follow each other in ``words``: by as many questions as there are fewer of,
        words or letters.
        """
        letters, known = "".join(words), self.strict_by_start
        if len(known) > len(letters):
            places = {letters[i : i + size] for size in self.start_sizes for i in range(len(letters))}
            known = {start: known[start] for start in places if start in known}
        return [word for start, longer in known.items() if start in letters for word in longer if word in letters]


def _stands(word: str, words: Sequence[str]) -> bool:
    """Whether ``word`` stands inside one of ``words`` or is some of them joined."""
    return any(word in one for one in words) or any(
        _begin(words[first : first + len(word)], word) for first in range(len(words))
    )


def _begin(words: Sequence[str], joined: str) -> bool:
    """Whether some of ``words``, from the first on, are ``joined``."""
    for word in words:
        if not joined or not joined.startswith(word):
            break
        joined = joined[len(word) :]
    return not joined


def url_filter(settings: Urls) -> UrlFilter:
    """The filter of ``settings``, built once in a process."""
    return _built(settings.model_dump_json())


@lru_cache(4)
def _built(settings: str) -> UrlFilter:
    return UrlFilter(Urls.model_validate_json(settings))


def url_key(url: str) -> str:
    """What two addresses of one page have in common: host and path with its query.

    Left out are http or https, user, ``www.``, the scheme's own port, fragment and slashes at the path's end; the
    host is in lower case and ASCII. An address that cannot be read is its own key. Never raises.
    """
    parts = _split(url)
    if parts is None or not (host := _host(url)):
        return url.strip()
    scheme = parts.scheme.lower()
    while host.startswith("www.") and "." in host[4:]:
        host = host[4:]
    try:
        port = parts.port
    except ValueError:  # no number, or one that is too great
        return url.strip()
    if port is not None and port != {"http": 80, "https": 443, "": 80}.get(scheme):
        host += f":{port}"
    prefix = "" if scheme in ("", "http", "https") else f"{scheme}://"
    path, query = _PATH_END.sub("", parts.path), parts.query.strip()
    return prefix + host + path + (f"?{query}" if query else "")


_PATH_END = re.compile(r"[\s/]+$")
_HOST_EDGES = re.compile(r"^[\s.]+|[\s.]+$")
_MORE_THAN_A_HOST = re.compile(r"[^A-Za-z0-9._-]")
_NO_LETTERS = re.compile(r"[\W_]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|//")


def _letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return _NO_LETTERS.sub("", text).lower()


def _split(url: str) -> SplitResult | None:
    """Parts of an address with or without a scheme; None where brackets or characters are against the rules."""
    url = url.strip()
    try:
        return urlsplit(url if _SCHEME.match(url) else "//" + url)
    except ValueError:
        return None


def _host(url: str) -> str:
    """Host in lower case, without a last dot, international names in ASCII; empty where there is none."""
    parts = _split(url)
    host = (parts.hostname or "") if parts else ""
    if ":" in host:  # IPv6
        return f"[{host}]"
    host = _HOST_EDGES.sub("", host.lower())
    if not host.isascii():
        with suppress(UnicodeError):  # an empty or too long label
            host = _HOST_EDGES.sub("", host.encode("idna").decode("ascii"))  # some signs become a digit and a dot
    return host


def _sites(host: str) -> Iterator[str]:
    """The host and every domain above it, from the most general."""
    labels = host[-LONGEST_HOST:].split(".")
    for start in reversed(range(len(labels))):
        yield ".".join(labels[start:])


def _entry(line: str) -> str:
    """An entry of ``blocked`` as it is looked up: a host, or the key of an address."""
    line = line.strip()
    if line.isascii() and not _MORE_THAN_A_HOST.search(line):
        return line.lower().strip(".")  # what nearly every line is
    parts = _split(line)
    if parts is not None and parts.path in ("", "/") and not parts.query:
        return _host(line)
    return url_key(line).lower()


def _entries(files: Iterable[Path], built_in: Iterable[str]) -> Iterator[str]:
    yield from built_in
    for path in files:
        yield from read_list(path)


def read_list(path: Path) -> Iterator[str]:
    """Entries of a list file, one a line, without notes (# at the beginning) and empty lines.

    :class:`UsageError` naming the line where it is not UTF-8 text.
    """
    expected = "UTF-8 text with one entry a line"
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(bounded_lines(file, LONGEST_LINE), start=1):
                where = f"{path}:{number}"
                if raw is None:
                    raise UsageError(f"a line of more than {LONGEST_LINE} bytes", where=where, expected=expected)
                if b"\0" in raw:
                    raise UsageError("a list that is not text", where=where, expected=expected)
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    raise UsageError("a list that is not UTF-8", where=where, expected=expected) from None
                if line and not line.startswith("#"):
                    yield line
    except OSError as error:
        raise UsageError(
            f"cannot read the list: {error.strerror}", where=str(path), expected="a text file", todo="check the path"
        ) from None


class _Hashes:
    """A set of texts as sorted 64-bit hashes: 8 bytes each, wrong once in 2^64 / size questions."""

    def __init__(self, texts: Iterable[str]) -> None:
        import numpy as np

        self.sorted = np.fromiter((_hash(text) for text in texts if text), np.uint64)
        self.sorted.sort()

    def __contains__(self, text: str) -> bool:
        key = self.sorted.dtype.type(_hash(text))  # of a Python integer NumPy would copy the whole set, each time
        place = int(self.sorted.searchsorted(key))
        return place < self.sorted.size and bool(self.sorted[place] == key)


def _hash(text: str) -> int:
    import xxhash

    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))
