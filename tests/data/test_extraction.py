"""Main text: by pages whose text is known, by trafilatura's answer, and by pages made to break it."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_articles import articles

from mickle.data import extraction
from mickle.data.extraction import Extraction, main_text, tidy
from mickle.data.extraction_names import said_of
from mickle.studies.blocks import truth
from mickle.studies.templates import HELDOUT, TUNING, wrap

REFERENCE = Extraction(method="trafilatura")
METHODS = (Extraction(), REFERENCE)


def sentences(first: int, count: int) -> str:
    return " ".join(f"Sentence number {i} of the true text speaks of rivers." for i in range(first, first + count))


PAGE = f"""<!doctype html><html><head><title>Rivers - Site</title><style>p {{}}</style>
<script>var evil = 1;</script></head>
<body><nav><ul><li><a href="/">Start page</a></li><li><a href="/x">Other page</a></li></ul></nav>
<div class="cookie-bar"><p>We use cookies, as everybody does nowadays, to make this site better for all of us.</p></div>
<div class="main-content"><h1>Rivers</h1><p>3 likes</p><p>{sentences(0, 5)}</p>
<p>Written out: see https://rivers.example/a?b=c, or ask. {sentences(5, 3)}</p>
<h2>Boats</h2><p>{sentences(10, 6)}</p>
<ul><li>a barge with a long and heavy load</li><li>a ferry that crosses twice a day</li></ul>
<pre>a = 1
if a:
    b = 2</pre>
<table><tr><th>River</th><th>Length</th></tr><tr><td>Rhine</td><td>1233 km</td></tr></table>
<p>{sentences(20, 6)}</p><p><a href="/all">Read more...</a></p></div>
<div id="comments"><h3>Comments</h3>
<p>What a wonderful article, I have read it to my whole family at dinner tonight.</p></div>
<aside><h3>Related articles</h3><ul><li><a href="/b">Ten bridges</a></li></ul></aside>
<footer><p>Copyright of somebody, all rights reserved, in every country of the world and beyond.</p></footer>
</body></html>"""
FOREIGN = (
    "Start page",
    "Other page",
    "cookies",
    "3 likes",
    "Read more",
    "wonderful",
    "Ten bridges",
    "Copyright",
    "evil",
)


def grams(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return Counter(zip(*(words[i:] for i in range(4)), strict=False))


def f_score(text: str, wanted: str) -> float:
    """Harmonic mean of precision and recall of the multiset of 4-grams of words."""
    one, other = grams(text), grams(wanted)
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


def test_f_score_by_example() -> None:
    assert f_score("a b c d e", "a b c d e") == 1
    assert f_score("a b c d", "a b c d e f") == pytest.approx(2 * 1 / (1 + 3))
    assert f_score("", "a b c d") == 0


def test_menu_notice_counter_comments_related_and_footer_are_gone() -> None:
    text = main_text(PAGE)
    assert [word for word in FOREIGN if word in text] == []


def test_main_text_is_whole_and_in_order() -> None:
    assert main_text(PAGE) == "\n\n".join(
        (
            "Rivers",
            sentences(0, 5),
            "Written out: see, or ask. " + sentences(5, 3),
            "Boats",
            sentences(10, 6),
            "- a barge with a long and heavy load\n- a ferry that crosses twice a day",
            "a = 1\nif a:\n    b = 2",
            "River | Length\nRhine | 1233 km",
            sentences(20, 6),
        )
    )


@pytest.mark.parametrize("method", ["fast", "trafilatura"])
def test_tables_code_and_addresses_as_asked(method: str) -> None:
    asked = {"method": method}
    text = main_text(PAGE, Extraction(**asked))
    assert "1233" in text
    assert "if a:\n    b = 2" in text
    assert "https://" not in text
    assert "1233" not in main_text(PAGE, Extraction(**asked, tables=False))
    assert "b = 2" not in main_text(PAGE, Extraction(**asked, code=False))
    assert "see https://rivers.example/a?b=c, or" in main_text(PAGE, Extraction(**asked, addresses=True))


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ("sidebar", True),
        ("main-navigation left", True),
        ("post commentList", True),
        ("shareBar x", True),
        ("css-5ad3f", False),  # made by a build tool
        ("adapter", False),
        ("body-with-sidebar-left", False),
        ("article-body pagination-first", False),  # another name says the contrary
        ("article-comments", True),
        ("", False),
    ],
)
def test_hints_by_example(names: str, hint: bool) -> None:
    assert (said_of(names)[0] == "furniture") == hint


def test_names_do_not_speak_against_what_holds_the_title() -> None:
    page = f'<body><div class="sidebar"><h1>Rivers</h1><p>{sentences(0, 9)}</p></div></body>'
    assert main_text(page) == "Rivers\n\n" + sentences(0, 9)


def test_a_line_break_stays_and_two_make_a_paragraph() -> None:
    page = f"<body><div>{sentences(0, 3)}<br>{sentences(3, 3)}<br><br>\n{sentences(6, 3)}</div></body>"
    assert main_text(page) == f"{sentences(0, 3)}\n{sentences(3, 3)}\n\n{sentences(6, 3)}"


def test_a_long_paragraph_stands_twice_at_most() -> None:
    page = "<body>" + f"<p>{sentences(0, 4)}</p>" * 5 + f"<p>{sentences(4, 4)}</p></body>"
    assert main_text(page) == "\n\n".join((sentences(0, 4), sentences(0, 4), sentences(4, 4)))


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("3 likes", False),
        ("Posted on 3 May by Ann Example, who lives here", False),
        ("Leave a reply below, and we will read it in time.", False),
        ("We and our partners ask you to let us keep cookies on this device, as everybody does, for years.", False),
        ("Copyright 2020 by somebody. All rights reserved everywhere.", False),
        ("He read more than she did, by the river.", True),
        ("Three people like it.", True),
        ("Shared rivers need shared rules, say those who share them.", True),
    ],
)
def test_phrases_between_paragraphs_by_example(line: str, stays: bool) -> None:
    page = f"<body><h1>Rivers</h1><p>{sentences(0, 5)}</p><p>{line}</p><p>{sentences(5, 5)}</p></body>"
    assert (line in main_text(page)) == stays


def test_a_section_of_something_else_is_left_out_up_to_the_next_heading() -> None:
    page = (
        f"<body><h1>Rivers</h1><p>{sentences(0, 20)}</p><h2>Related stories</h2><p>{sentences(50, 3)}</p>"
        f"<h3>More</h3><p>{sentences(60, 3)}</p><h2>Boats</h2><p>{sentences(20, 20)}</p></body>"
    )
    assert main_text(page) == f"Rivers\n\n{sentences(0, 20)}\n\nBoats\n\n{sentences(20, 20)}"


def test_a_section_that_is_most_of_the_page_is_its_text() -> None:
    page = f"<body><h1>Comments on rivers</h1><p>{sentences(0, 20)}</p></body>"
    assert main_text(page).endswith(sentences(0, 20))


def test_headings_that_are_links_are_teasers_unless_much_text_follows() -> None:
    linked = '<h2><a href="/{0}">A headline about number {0}</a></h2><p>{1}</p>'
    teasers = "".join(linked.format(i, sentences(100 + 5 * i, 4)) for i in range(3))
    page = f"<body><div><h1>Rivers</h1><p>{sentences(0, 20)}</p>{teasers}</div></body>"
    assert main_text(page) == f"Rivers\n\n{sentences(0, 20)}"
    posts = "".join(linked.format(i, sentences(100 + 50 * i, 40)) for i in range(3))
    assert main_text(f"<body><div>{posts}</div></body>").count("headline") == 3


def test_link_lists_are_no_text() -> None:
    links = "".join(f'<li><a href="/{i}">A link with quite a long name, number {i}</a></li>' for i in range(90))
    assert main_text(f"<body><ul>{links}</ul></body>") == ""


def test_a_doubtful_page_is_trafilaturas() -> None:
    hidden = f'<body><div class="sidebar"><p>{sentences(0, 9)}</p></div><div><p>{sentences(90, 2)}</p></div></body>'
    assert extraction.fast(hidden, Extraction()) == (extraction.reference(hidden, Extraction()), True)
    assert extraction.reference(hidden, Extraction())
    assert not extraction.fast(PAGE, Extraction())[1]


def test_the_reference_does_not_depend_on_pages_before() -> None:
    first = main_text(PAGE, REFERENCE)
    assert [main_text(PAGE, REFERENCE) for _ in range(5)] == [first] * 5
    assert first


@cache
def scores(method: Extraction, families: tuple[str, ...]) -> dict[str, float]:
    """Mean F over six pages of each family."""
    found = {}
    for number, family in enumerate(families):
        pages = [(wrap(b, i, family), truth(b)) for i, b in enumerate(articles(6, seed=number))]
        found[family] = sum(f_score(main_text(page, method), wanted) for page, wanted in pages) / len(pages)
    return found


@pytest.mark.parametrize("family", TUNING + HELDOUT)
def test_fast_finds_the_text_of_every_family(family: str) -> None:
    assert scores(METHODS[0], TUNING + HELDOUT)[family] > 0.8


def test_fast_is_as_good_as_the_reference_on_families_held_out() -> None:
    fast, reference = (sum(scores(method, HELDOUT).values()) / len(HELDOUT) for method in METHODS)
    assert reference > 0.8
    assert fast > max(reference - 0.01, 0.9)


def test_both_methods_agree_on_plain_articles() -> None:
    families = ("portal", "weblog", "manual", "helpdesk", "handbook")
    for number, family in enumerate(families):
        for seed, blocks in enumerate(articles(4, seed=10 + number, technical=0.0)):
            page = wrap(blocks, seed, family)
            assert f_score(*(main_text(page, method) for method in METHODS)) > 0.85, (family, seed)


SENTENCE = f"<p>{sentences(0, 3)}</p>"
HOSTILE = {
    "empty": "",
    "spaces": " \n" * 1000,
    "a nul": "\0",
    "nuls": "\0".join(SENTENCE),
    "lone surrogates": "<p>\ud800" + "\udfff" * 1000,
    "only scripts": "<script>var a = '<p>text</p>';</script>" * 1000,
    "a million open tags": "<div>" * 1_000_000 + SENTENCE,
    "open inline tags": "<a href=x><b><i>x" * 20_000,
    "tables inside tables": "<table><tr><td>" * 60 + SENTENCE * 500,
    "frames": "<frameset><frame src=x>" * 1000,
    "broken entities": "<p>&amp &#x; &#99999999999; &nope; & " * 5000,
    "open comment": "<!--" + SENTENCE * 100,
    "attributes": "<div " + "a=b " * 100_000 + ">" + SENTENCE,
    "class": '<div class="' + "nav-x " * 100_000 + '">' + SENTENCE,
    "classes": "".join(f'<div class="c{i} nav-{i}">x</div>' for i in range(20_000)),
    "one long line": "<p>" + "word " * 2_000_000,
    "line breaks": "abc<br>" * 100_000,
    "headings": "<h2><a href=x>Related</a></h2>" * 30_000,
    "addresses": "<p>" + "http://" * 100_000 + "." * 100_000,
    "lists": "<ul><li>x</ul>" * 20_000,
    "brackets": "<p>" + "<" * 300_000,
    "declared otherwise": '<?xml version="1.0" encoding="utf-16"?><html>' + SENTENCE,
    "no html": "just text, of no length",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_give_a_text(name: str) -> None:
    text = main_text(HOSTILE[name])
    assert text == tidy(text)


@pytest.mark.parametrize("name", ["nuls", "attributes", "declared otherwise"])
def test_what_is_around_it_does_not_hide_a_sentence(name: str) -> None:
    assert main_text(HOSTILE[name]) == sentences(0, 3)


# fmt: off
TAGS = st.sampled_from((
    "<p>", "</p>", "<div>", "</div>", "<a>", '<a href="/x">', "</a>", "<ul>", "</ul>", "<li>", "<table>", "</table>",
    "<tr>", "<td>", "</td>", "<h1>", "<h2>", "</h1>", "<pre>", "</pre>", "<br>", "<article>", "</article>", "<main>",
    "<nav>", "<b>", "<script>", "</script>", "</body>", "</html>", '<div class="nav">', "<!--", "-->", "<", ">",
    "&amp;", "&#0;", "\0", "\ud800", sentences(0, 2)))
# fmt: on


@given(st.lists(st.one_of(TAGS, st.text(max_size=8)), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_soup_of_tags_gives_a_tidy_text(pieces: list[str]) -> None:
    text = main_text("".join(pieces))
    assert text == tidy(text)


@given(st.integers(0, len(PAGE)))
@settings(max_examples=60, deadline=None)
def test_a_page_cut_short_gives_the_beginning_of_its_text(end: int) -> None:
    whole, part = grams(main_text(PAGE)), grams(main_text(PAGE[:end]))
    assert (part - whole).total() <= 8  # the word that was cut, and what only the missing part gave away


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_bytes_of_any_kind_are_no_danger(content: bytes) -> None:
    assert isinstance(main_text(content.decode("latin-1")), str)
    assert isinstance(main_text(content.decode("utf-8", "surrogateescape")), str)


@pytest.mark.parametrize("family", HELDOUT)
def test_main_text_put_into_a_page_again_is_found_again(family: str) -> None:
    blocks = next(articles(1, seed=5, technical=0.0))
    text = main_text(wrap(blocks, 1, family))
    page = "<body>" + "".join(
        f"<p>{piece}</p>" for piece in text.replace("&", "&amp;").replace("<", "&lt;").split("\n\n")
    )
    assert f_score(main_text(page), text) > 0.9


@given(st.text())
def test_tidying_twice_changes_nothing_more(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)


def test_tidy_by_example() -> None:
    assert tidy("\ufeffa \r\nb\x00\r\n\r\n\r\n\r\nc\u00a0d\n") == "a\nb\n\nc d"
    assert tidy("e\u0301") == "\u00e9"


def test_lines_of_code_that_are_an_element_each_stay_lines() -> None:
    prose = " ".join(f"Sentence number {i} of the page speaks of matrices and vectors at length." for i in range(4))
    lines = ["int a = 1;", "  if (a)", "    b = 2;"]
    code = "".join(f'<div class="line"><span>{line}</span></div>' for line in lines)
    around = f'<p>{prose}</p><div class="fragment">{code}</div><p>{prose}</p>'
    page = f'<html><body><div class="contents">{around}</div></body></html>'
    assert "\n".join(lines) in main_text(page)
    assert "if (a)" not in main_text(page, Extraction(code=False))


def paragraphs(first: int, count: int) -> str:
    """Paragraphs of three sentences each, which speak of numbers from ten times ``first`` on."""
    return "".join(f"<p>{sentences(10 * i, 3)}</p>" for i in range(first, first + count))


MENU = "<ul>" + "".join(f'<li><a href="/{i}">Menu entry {i}</a></li>' for i in range(12)) + "</ul>"
BODY = paragraphs(1, 3)
INSIDE = ("number 10 ", "number 20 ", "number 30 ")
WORDY = (
    "<ul>" + "<li>This department offers courses for beginners and for masters of the river alike</li>" * 30 + "</ul>"
)
TABLE = "<table><tr><th>River</th><th>Mouth</th></tr><tr><td>Rhine</td><td>Sea</td></tr></table>"
PLACES = {
    "standfirst before the frame": f"""<header><h1>On boats</h1><p class="teaser-text">What a boat may carry depends
        on the water under it, says the ferryman.</p></header>{MENU}<div class="article-body">{BODY}</div>""",
    "noscript": f"<noscript><div>{BODY}</div></noscript>",
    "beside a request": f"<noscript>{MENU} Please switch JavaScript on, in your browser.</noscript>{BODY}",
    "open noscript": f"<article><noscript><img src=x>{BODY}</article>",
    "open nav": f"<nav>{MENU}<div>{BODY}</div>",
    "aside": f"{MENU}<aside>{BODY}</aside>",
    "beside a wordy menu": f"<div>{WORDY}</div><main>{BODY}</main>",
    "after an early end": f"<article>{paragraphs(1, 1)}</body></html>{paragraphs(2, 2)}</article>",
    "after an end before the beginning": f"</html><body>{BODY}",
    "table first": f"<article><h1>On boats</h1><div>{TABLE}</div>{BODY}</article>",
    "row of links beside": f"""<div><div class="card"><p><a href="/1">One</a></p><p><a href="/2">Two</a></p></div>
        <h1>On boats</h1>{BODY}</div>""",
    "a title that leads to its own page": f'<div><h2><a href="/boats">On boats</a></h2>{BODY}</div>',
    "section of a document": f'<section id="share-of-the-sea"><h2>On boats</h2>{BODY}</section>',
    "old section": f'<div class="section" id="skip-stones"><h2>On boats</h2>{BODY}</div>',
    "its heading's words": f'<div id="price-list"><h2>Price list</h2>{BODY}</div><p>{sentences(90, 9)}</p>',
    **{
        f"{n} {tag} deep": f"<{tag}>" * n + BODY + f"</{tag}>" * n for n in (260, 1500, 5000) for tag in ("div", "font")
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_text_is_found_wherever_it_stands(name: str) -> None:
    text = main_text(f"<html><body>{PLACES[name]}</body></html>")
    assert [sentence for sentence in INSIDE if sentence not in text] == []
    assert "Menu entry" not in text
    wanted = {"standfirst before the frame": "On boats\n\nWhat a boat", "table first": "River | Mouth\nRhine | Sea"}
    assert wanted.get(name, "") in text


LISTED = "for oar in boat:\n    if oar.dry:\n        oar.dip()\n"


@pytest.mark.parametrize(
    "listing",
    [
        f'<div class="language-py box"><div><pre class="prism-code">{LISTED}</pre></div></div>',
        f'<div class="code-toolbar"><pre>{LISTED}</pre><div class="toolbar">Copy</div></div>',
        f'<div class="price-widget"><pre><code>{LISTED}</code></pre></div>',
        "<pre>" + LISTED.replace("\n", "<br>") + "</pre>",
        "<pre>" + "".join(f"<div>{line}</div>" for line in LISTED.splitlines()) + "</pre>",
        "<pre><code><ol>" + "".join(f"<li>{line}</li>" for line in LISTED.splitlines()) + "</ol></code></pre>",
        "<pre>" + "".join(f'<span class="code-line">{line}</span>' for line in LISTED.splitlines()) + "</pre>",
        "<pre>" + "\n".join(f'<span class="line">{line}</span>' for line in LISTED.splitlines()) + "</pre>",
        "<pre>" + "<br>".join(f'<span class="line">{line}</span>' for line in LISTED.splitlines()) + "<br></pre>",
        "<pre>" + "".join(f'<span style="display: block">{line}</span>' for line in LISTED.splitlines()) + "</pre>",
    ],
)
def test_code_keeps_its_lines_however_they_are_marked(listing: str) -> None:
    text = main_text(f"<body><article>{paragraphs(1, 1)}{listing}{paragraphs(2, 1)}</article></body>")
    assert text == f"{sentences(10, 3)}\n\n{LISTED.strip()}\n\n{sentences(20, 3)}"


def test_empty_lines_of_code_stay() -> None:
    for empty in ("a<br><br>b", "<div>a</div><div></div><div>b</div>", "<p>a\n</p><p>\n</p><p>b</p>"):
        assert "a\n\nb" in main_text(f"<body>{BODY}<pre>{empty}</pre>{BODY}</body>")


def test_lines_of_a_cell_are_words_apart() -> None:
    table = (
        "<table><tr><td>Boat<br>Oar</td><td><p>1</p><p>2</p></td></tr><tr><td>Sail</td><td><ul><li>3<li>4</ul></table>"
    )
    assert "Boat Oar | 1 2\nSail | 3 4" in main_text(f"<body>{BODY}{table}{BODY}</body>")


@pytest.mark.parametrize(
    "heading", ["Related crafts", "More on boats", "Reviews in history", "Search and rescue", "Contents of a hold"]
)
def test_a_heading_that_only_begins_like_another_sites_opens_a_section_of_the_text(heading: str) -> None:
    page = f"<body><h1>Boats</h1>{paragraphs(1, 6)}<h2>{heading}</h2>{paragraphs(7, 1)}<h2>Oars</h2>{paragraphs(8, 6)}"
    assert f"{heading}\n\n{sentences(70, 3)}" in main_text(page)


@pytest.mark.parametrize(
    "line",
    [
        "By dusk the boat was dry.",
        "Share the oar.",
        "Powered by water, the mill never stops.",
        "Log in the water, said he.",
        "3 views of the sea hang there.",
        "Subscribe the letter with your name.",
        "她说：“等一等。”",
    ],
)
def test_a_sentence_is_no_label_whatever_it_begins_with(line: str) -> None:
    assert line in main_text(f"<body><article>{paragraphs(1, 1)}<p>{line}</p>{paragraphs(2, 1)}</article></body>")


@pytest.mark.parametrize(
    "lines",
    [
        ["陶工每年春天到河边挖土。", "泥土要在水里泡一个冬天。", "搅拌的人不能说话。", "秋天在集市上卖碗。"],
        ["陶工が今朝、窯に火を入れた。", "碗は秋の市で売られる。", "村の人々は煙を見る。"],
        ["도공은 봄마다 강가에서 흙을 판다.", "흙은 겨울을 물속에서 난다.", "가을에는 장에서 그릇을 판다."],
        ["कुम्हार हर वसंत में मिट्टी खोदता है।", "मिट्टी सर्दी भर पानी में रहती है।", "पतझड़ में कटोरे बिकते हैं।"],
        ["هل رأيت النهر في الربيع؟", "يحفر الخزاف الطين كل ربيع.", "تباع الأوعية في الخريف."],
        ["ช่างปั้นหม้อขุดดินทุกฤดูใบไม้ผลิ", "ดินต้องแช่น้ำหนึ่งฤดูหนาว", "เธอขายชามในตลาดฤดูใบไม้ร่วง"],
        ["རྫ་མཁན་གྱིས་ལོ་རེའི་དཔྱིད་ཀར་ས་བརྐོ།", "ཐབ་དེ་མོའི་སྤོ་བོས་བརྩིགས།", "སྟོན་ཁར་ཁྲོམ་དུ་ཕོར་པ་འཚོང་།"],
        ["She said: “Wait.”", "(Bowls are sold in autumn.)", "«Nobody stirs the glaze!»"],
    ],
)
def test_short_sentences_of_any_script_are_a_text(lines: list[str]) -> None:
    page = "<body><article>" + "".join(f"<p>{line}</p>" for line in lines) + "</article></body>"
    assert main_text(page) == "\n\n".join(lines)


def test_readings_beside_characters_are_no_text() -> None:
    page = (
        "<body><p>" + "<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp></ruby>字を学ぶ子どもは毎日書く。" * 3 + "</p></body>"
    )
    assert main_text(page) == "漢字を学ぶ子どもは毎日書く。" * 3


TEX = '<math><semantics><mi>p</mi><annotation encoding="application/x-tex">p=2r</annotation></semantics></math>'


@pytest.mark.parametrize(
    "formula",
    [
        TEX,
        '<math alttext="p=2r"><mi>p</mi></math>',
        "<math><mi>p</mi><mo>=</mo><mn>2</mn><mi>r</mi></math>",
        f'<span class="katex"><span class="katex-mathml">{TEX}</span><span aria-hidden="true">p=2r</span></span>',
        f'<span class="mwe"><span class="mwe-a11y" style="display: none;">{TEX}</span><img alt="p=2r"></span>',
        '<script type="math/tex">p=2r</script>',
        '<script type="math/asciimath">p=2r</script>',
        '<script type="math/katex">p=2r</script>',
        '<script type="math/mml"><math><mi>p</mi><mo>=</mo><mn>2</mn><mi>r</mi></math></script>',
        '<img class="latex" alt="p=2r" src="p.png">',
        '<span class="katex"><span class="katex-html" aria-hidden="true"><b>p</b><b>=2r</b></span></span>',
        '<span class="MathJax_Preview">p</span><span class="MathJax"><math><mi>p</mi></math></span>'
        '<script type="math/tex; mode=display">p=2r</script>',
    ],
)
def test_a_formula_stands_in_its_sentence_once(formula: str) -> None:
    page = f"<body><article>{BODY}<p>A rim measures {formula}, which every potter knows.</p>{BODY}</article></body>"
    assert "A rim measures p=2r, which every potter knows." in main_text(page)


FRACTION = "<mfrac><mi>a</mi><mi>b</mi></mfrac>"
NEXT = "<mrow><mi>i</mi><mo>+</mo><mn>1</mn></mrow>"


@pytest.mark.parametrize(
    ("formula", "line"),
    [
        ("<mi>v</mi><mo>=</mo>" + FRACTION, "v=a/b"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>12</mn></mfrac>", "(a+b)/12"),
        (f"<msub><mi>x</mi>{NEXT}</msub><msup><mi>y</mi><mn>2</mn></msup>", "x_(i+1)y^2"),
        ("<msqrt><mn>2</mn><mi>r</mi></msqrt>", "\u221a2r"),
        (f"<munderover><mo>\u2211</mo>{NEXT}<mi>n</mi></munderover>", "\u2211_(i+1)^n"),
        ("<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr><mtr><mtd>c</mtd></mtr></mtable>", "a, b; c"),
        ("<mrow>" * 300 + FRACTION + "</mrow>" * 300, "ab"),
    ],
)
def test_mathml_without_tex_is_written_in_a_line(formula: str, line: str) -> None:
    page = f"<body><article>{BODY}<p>The rule is <math>{formula}</math>, she says.</p>{BODY}</article></body>"
    assert f"The rule is {line}, she says." in main_text(page)


LINES = "for bowl in kiln:\n    lift(bowl)\n    count += 1"
NUMBERED = "\n".join(f'<span class="lineno">{number:3} </span>{line}' for number, line in enumerate(LINES.split("\n")))


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ('<td class="linenos"><div class="linenodiv"><pre><span></span>1\n2\n3</pre></div></td>', LINES),
        ('<td class="gutter"><pre><span class="line">1</span><br><span class="line">2</span></pre></td>', LINES),
        ('<td class="rouge-gutter gl"><pre class="lineno">1\n2\n3\n</pre></td>', LINES),
        ("", NUMBERED),
        ("", LINES + '<span class="line-numbers-rows"><span></span></span>'),
    ],
)
def test_line_numbers_beside_code_are_no_text(numbers: str, code: str) -> None:
    listing = f"<table><tr>{numbers}<td><div><pre>{code}</pre></div></td></tr></table>"
    page = f"<body><article>{BODY}{listing}{BODY}</article></body>"
    text = main_text(page)
    assert f"\n\n{LINES}\n\n" in text
    assert not re.search(r"^[\d\s]+$", text, re.MULTILINE)
