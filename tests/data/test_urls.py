"""Addresses: each test of the filter on addresses whose fate is known, list files good and bad, and page keys."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mickle.data.urls import UrlFilter, Urls, read_list, url_filter, url_key
from mickle.errors import UsageError


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def lists(tmp_path: Path) -> Urls:
    """Small lists of our own in place of the built-in ones."""
    blocked = written(
        tmp_path / "blocked", "# sites", "Bad.example", "deep.sub.example", "", "http://www.fine.example/Bad/Page/",
        "fine.example/bad?q=1", "10.0.0.1", "bücher.example", "0.0.0.0.example.",
    )  # fmt: skip
    return Urls(
        defaults=False,
        curated=["Curated.example"],
        blocked=[blocked],
        strict_words=[written(tmp_path / "strict", "Very-Bad", "verse", "veranda", "é1")],
        hard_words=[written(tmp_path / "hard", "Awful", "straße")],
        soft_words=[written(tmp_path / "soft", "meh", "BAH", "hum")],
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://fine.example/", None),
        ("http://curated.example/x", "curated source"),
        ("http://en.m.CURATED.example", "curated source"),
        ("http://uncurated.example/x", None),
        ("https://bad.example/x", "blocked site"),
        ("HTTP://A.B.BAD.EXAMPLE:8080/x", "blocked site"),
        ("http://user:secret@bad.example./", "blocked site"),
        ("bad.example/x", "blocked site"),
        ("http://notbad.example/", None),
        ("http://bad.example.fine.example/", None),
        ("http://sub.example/", None),
        ("http://x.deep.sub.example/", "blocked site"),
        ("http://10.0.0.1:80/", "blocked site"),
        ("http://bücher.example/", "blocked site"),
        ("http://xn--bcher-kva.example/", "blocked site"),
        ("https://fine.example/bad/page#top", "blocked address"),
        ("https://fine.example/BAD/PAGE", "blocked address"),
        ("https://fine.example/bad/page/other", None),
        ("http://fine.example:80/bad?q=1", "blocked address"),
        ("http://fine.example/bad?q=2", None),
        ("http://fine.example/so-awful_thing", "hard word"),
        ("http://fine.example/AWFUL.html", "hard word"),
        ("http://fine.example/awfully", None),
        ("http://fine.example/stra%C3%9Fe", "hard word"),
        ("http://fine.example/%61wful", "hard word"),
        ("http://fine.example/a%20awful%20b", "hard word"),
        ("http://fine.example/meh", None),
        ("http://fine.example/meh/meh", None),
        ("http://fine.example/meh?hum", "soft words"),
        ("http://fine.example/v.e/r-y_BAD", "strict word"),
        ("http://universe.example/", "strict word"),
        ("http://universal.example/", None),
        ("http://fine.example/é/1", "strict word"),
        ("http://fine.example/conver-sed", None),  # "verse" begins and ends inside words
        ("http://fine.example/ver-sed", None),
        ("http://fine.example/con/verse", "strict word"),
        ("http://fine.example/con/ver-se", "strict word"),
    ],
)
def test_what_becomes_of_an_address(lists: Urls, url: str, reason: str | None) -> None:
    failure = UrlFilter(lists).check(url)
    assert (failure and failure.reason) == reason
    assert failure is None or failure.value > failure.limit


AWKWARD = [
    "", " ", "http://", "http://[::1", "http://[::1]:80/x", "http://a.example:99999/", "http://a.example:x/", "//", "?",
    "#", "http://" + "a." * 200_000 + "example/", "http://" + "é" * 300 + ".example/",
    "http://a.example/" + "x" * 10**6,
    "http://a.example/\ud800", "\0", "mailto:me@a.example", "http://%zz/%", "http://℀.example/", "http://.../",
    "data:,x",
]  # fmt: skip


@pytest.mark.parametrize("url", AWKWARD)
def test_awkward_addresses_have_an_answer(url: str) -> None:
    assert UrlFilter(Urls()).check(url) is None
    assert isinstance(url_key(url), str)


@example("⒈")  # which IDNA makes "1."
@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=40) | st.from_regex(r"[a-z]{0,5}:?/{0,2}[\w.@:\[\]%-]{0,20}[/?#&=\w%. -]{0,20}", fullmatch=True)
)
def test_a_key_is_its_own_key_and_nothing_raises(url: str) -> None:
    assert UrlFilter(Urls(defaults=False)).check(url) in (None, ("curated source", 1.0, 0.0))
    key = url_key(url)
    assert url_key(key) == key


@pytest.mark.parametrize(
    "same",
    [
        ["http://a.example/x", "https://a.example/x/", "HTTP://WWW.A.EXAMPLE:80/x", "https://u:p@a.example:443/x#part",
         "//a.example./x", "a.example/x", " http://a.example/x \n"],
        ["http://a.example", "http://www.a.example/", "a.example/#x", "http://a.example/?"],
        ["http://a.example/x?q=A", "https://www.a.example/x/?q=A#y"],
        ["http://bücher.example/", "http://xn--bcher-kva.example"],
        ["http://a.example:8080/"],
        ["http://a.example/X"],
        ["http://a.example/x?q=a"],
        ["http://b.a.example/x"],
        ["http://www.example/", "https://www.example"],  # a site whose name is www, not a host of "example"
        ["ftp://a.example/x"],
        ["http://a.example:443/x"],
        ["http://[::1]/x", "http://[::1]:80/x"],
    ],
)  # fmt: skip
def test_keys_join_the_addresses_of_one_page_alone(same: list[str]) -> None:
    others = [
        "http://a.example/y", "http://c.example/", "http://a.example/x?q=B", "http://a.example:8081/", "http://[::2]/x",
        "http://example/",
    ]  # fmt: skip
    assert len({url_key(url) for url in same}) == 1
    assert url_key(same[0]) not in {url_key(url) for url in others}


def test_keys_tell_all_groups_apart() -> None:
    urls = ["http://a.example/x", "http://a.example", "http://a.example/x?q=A", "http://a.example:8080/",
            "http://a.example/X", "http://a.example/x?q=a", "http://b.a.example/x",
            "ftp://a.example/x", "http://a.example:443/x"]  # fmt: skip
    assert len({url_key(url) for url in urls}) == len(urls)


@pytest.mark.parametrize(
    "path",
    ["essex/campus-map", "essex-campus", "middlesexcampus", "sussex-cameras", "olives-expert", "olivesexpress",
     "tjmaxx/videos", "tjmaxxvideos", "scunthorpe", "penistone", "cockermouth", "analysis", "assassin",
     "freesexhibition", "dickens", "adulthood", "essex/adult-education"],
)  # fmt: skip
def test_innocent_words_that_hold_others_are_kept(path: str) -> None:
    for url in (f"http://www.example.org/{path}", f"http://{path.replace('/', '-')}.example.org/"):
        assert UrlFilter(Urls()).check(url) is None


def test_built_in_lists_are_used_unless_refused() -> None:
    bad = [
        "http://www.pornhub.com/",
        "http://a.example/xxx",
        "http://a.example/adult-dating",
        "http://a.example/free-porn-x",
    ]
    found = [UrlFilter(Urls()).check(url) for url in bad]
    assert [failure and failure.reason for failure in found] == [
        "blocked site", "hard word", "soft words", "hard word",
    ]  # fmt: skip
    assert [UrlFilter(Urls(defaults=False)).check(url) for url in bad] == [None] * 4
    for url in ("http://essex.gov.example/", "http://a.example/cocks-and-hens", "http://pornic.example/", "http://a.example/sex-education",
                "http://scunthorpe.example/", "http://a.example/teen-soccer-girls"):  # fmt: skip
        assert UrlFilter(Urls()).check(url) is None
    assert UrlFilter(Urls()).check("https://en.wikipedia.org/wiki/River") == ("curated source", 1.0, 0.0)
    assert UrlFilter(Urls(curated=[])).check("https://en.wikipedia.org/wiki/River") is None


def test_a_filter_is_built_once_for_equal_settings() -> None:
    assert url_filter(Urls(curated=["a.example"])) is url_filter(Urls(curated=["a.example"]))
    assert url_filter(Urls(curated=["b.example"])).check("http://a.example/") is None


def test_list_files_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes("\ufeffone\r\n\n# note\n  two  \n#\nthrée".encode())
    assert list(read_list(path)) == ["one", "two", "thrée"]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"good\nb\xe9d\n", 2, "not UTF-8"),
        (b"good\nfine\n\x7fELF\0\0", 3, "not text"),
        (b"x" * 100_000, 1, "more than 8192 bytes"),
    ],
)
def test_a_bad_list_is_named_with_its_line(tmp_path: Path, content: bytes, line: int, what: str) -> None:
    path = tmp_path / "list"
    path.write_bytes(content)
    for field in ("blocked", "strict_words", "hard_words", "soft_words"):
        with pytest.raises(UsageError, match=what) as caught:
            UrlFilter(Urls.model_validate({field: [path]}))
        assert caught.value.where == f"{path}:{line}"


@pytest.mark.parametrize("name", ["", "none"])
def test_a_missing_list_and_a_folder_are_usage_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot read the list") as caught:
        UrlFilter(Urls(blocked=[tmp_path / name]))
    assert str(tmp_path / name) in caught.value.where


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.text("ab(", max_size=6), max_size=30), path=st.text("ab(", max_size=12))
def test_strict_words_are_found_as_by_looking_for_each(tmp_path_factory, words: list[str], path: str) -> None:
    file = written(tmp_path_factory.mktemp("lists") / "strict", *words)
    found = UrlFilter(Urls(defaults=False, strict_words=[file])).check("http://x.x/" + path)
    letters = [re.sub(r"\(", "", word) for word in words]
    parts = ["http", "x", "x", *path.split("(")]
    runs = {"".join(parts[first:last]) for first in range(len(parts)) for last in range(first + 1, len(parts) + 1)}
    expected = any(word in runs or any(word in part for part in parts) for word in letters if word)
    assert (found is not None) == expected


def test_decisions_are_those_of_datatrove_where_letters_are_small(tmp_path: Path) -> None:
    theirs = pytest.importorskip("datatrove.pipeline.filters.url_filter")
    data = pytest.importorskip("datatrove.data")
    pytest.importorskip("ahocorasick")
    pytest.importorskip("fasteners")
    extract = pytest.importorskip("tldextract").TLDExtract(suffix_list_urls=(), cache_dir=None)
    drawn = random.Random(3)
    sites = [f"{a}.{b}" for a in ("one", "two", "three", "bad", "worse") for b in ("com", "co.uk", "org")]
    pieces = ["meh", "bah", "awful", "awfully", "very", "verybad", "x1", "page", "index.html", "a%20b", "q=1"]
    lists = {
        "domains": [site for site in sites if site.startswith(("bad", "worse"))] + ["sub.one.com"],
        "urls": ["http://two.org/page", "https://two.org/x1/meh"],
        "strict": ["verybad", "onex"],
        "hard": ["awful"],
        "soft": ["meh", "bah", "very"],
    }
    check = theirs.URLFilter(
        extra_domains=lists["domains"], extra_urls=lists["urls"], banned_words=lists["hard"],
        banned_subwords=lists["strict"], soft_banned_words=lists["soft"], use_integrated_lists=False,
    )  # fmt: skip
    check.tldextractor = extract
    files = {name: [written(tmp_path / name, *lines)] for name, lines in lists.items()}
    ours = UrlFilter(
        Urls(
            defaults=False, curated=[], blocked=[*files["domains"], *files["urls"]], strict_words=files["strict"],
            hard_words=files["hard"], soft_words=files["soft"],
        )
    )  # fmt: skip
    reasons = {"domain": "blocked site", "subdomain": "blocked site", "url": "blocked address",
               "hard_blacklisted": "hard word", "soft_blacklisted": "soft words",
               "blacklisted_subword": "strict word"}  # fmt: skip
    seen = set()
    for _ in range(1500):
        host = drawn.choice(["", "", "www.", "sub."]) + drawn.choice(sites)
        path = drawn.choice("/-_.").join(drawn.choices(pieces, k=drawn.choice([0, 1, 2, 3])))
        url = drawn.choice(["http", "https"]) + f"://{host}/{path}"
        expected = check.filter(data.Document(text="", id="", metadata={"url": url}))
        failure = ours.check(url)
        if failure and failure.reason == "blocked address" and url not in lists["urls"]:
            continue  # the same page under another spelling
        assert (failure.reason if failure else True) == (reasons[expected[1]] if expected is not True else True), url
        seen.add(failure and failure.reason)
    assert len(seen) >= 5
