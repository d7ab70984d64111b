"""Charsets as browsers choose and read them: values by the Encoding Standard and the HTML standard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mickle.data import charsets
from mickle.data.charsets import declared, decode, decoder_of

UMLAUTS = "Die Töpferin gräbt ihren Ton, wo der Bach das Ufer löst, läßt ihn über Winter stehen. "
FRENCH = "À côté de l’été, un “œuf” à 3 € : ça va ?"
RUSSIAN = "Река течёт мимо старого города, и никто не помнит зимы холоднее этой. " * 3
JAPANESE = "川は古い町のそばを流れ、①番の髙い橋を渡る～"


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("naïve café".encode(), ""),
        ("naïve café".encode("latin-1"), ""),
        ("naïve café".encode("latin-1"), "iso-8859-1"),
        ("naïve café".encode("utf-16"), ""),
        (b"\xef\xbb\xbf" + "naïve café".encode(), "latin-1"),
        ("naïve café".encode(), "no-such-charset"),
        ("naïve café".encode(), "hex"),  # a codec, but not of text
        ("naïve café".encode(), "utf-7"),
        ("naïve café".encode(), "us-ascii\0"),
        ("naïve café".encode(), "utf-16"),
        ("naïve café".encode("utf-16-le"), "utf-16"),
    ],
)
def test_encodings(content: bytes, charset: str) -> None:
    assert decode(content, charset) == "naïve café"


LABELS = {
    "cp1252": ["ISO-8859-1", "us-ascii", "latin1", " x-cp1252\n"],
    "cp1254": ["iso88599", "latin5"],
    "cp874": ["tis-620"],
    "cp932": ["Shift_JIS", "x-sjis", "windows-31j", "ms_kanji"],
    "euc_jp": ["x-euc-jp"],
    "gb18030": ["gb2312", "x-gbk"],
    "cp949": ["ks_c_5601-1987", "euc-kr"],
    "big5hkscs": ["big5-hkscs", "x-x-big5"],
    "koi8-u": ["koi8-ru"],
    "koi8-r": ["koi8_r"],
    "iso8859-8": ["logical", "iso-8859-8-i"],
    "iso8859-6": ["csiso88596e"],
    "mac-cyrillic": ["x-mac-ukrainian"],
    "utf-8": ["unicode-1-1-utf-8"],
    "utf-16-le": ["ucs-2"],
    "utf-16-be": ["unicodefffe"],
    "": ["utf-7", "utf-32", "cp437", "idna", "unicode_escape", ""],
}


@pytest.mark.parametrize("decoder", LABELS)
def test_a_label_means_what_browsers_mean_by_it(decoder: str) -> None:
    assert {decoder_of(label) for label in LABELS[decoder]} == {decoder}


@pytest.mark.parametrize(
    ("head", "decoder"),
    [
        ('<meta charset="utf-16">', "utf-8"),
        ("<META charset = koi8-r />", "koi8-r"),
        ('<meta content="text/html;charset=big5" http-equiv=Content-Type>', "big5hkscs"),
        ('<?xml version="1.0" encoding="euc-kr"?><html>', "cp949"),
        ('<meta charset="nonsense"><meta charset="tis-620">', "cp874"),
        ('<!-- <meta charset=koi8-r> --><script>"<meta charset=koi8-r>"</script><meta charset=gbk>', "gb18030"),
        ('<meta name="description" content="how to set charset=koi8-r">', ""),
        ("<title>About <meta charset=koi8-r></title>", ""),
        ("<!-- never closed <meta charset=koi8-r>", ""),
        ("x" * 5000 + "<meta charset=koi8-r>", "koi8-r"),
    ],
)
def test_a_page_declares_its_charset_in_markup_alone(head: str, decoder: str) -> None:
    assert declared(head.encode()) == decoder


@pytest.mark.parametrize("charset", ["", "utf-8", "iso-8859-1", "utf-16"])
@pytest.mark.parametrize("wrong", [b"\xff", b"\x96", b"\xc3"])
def test_a_few_bad_bytes_cost_only_themselves(wrong: bytes, charset: str) -> None:
    """iso-8859-1, as many servers say, is believed only of bytes that are not UTF-8 throughout."""
    half = (UMLAUTS * 3).encode()
    if charset == "iso-8859-1":
        assert decode(half, charset) == UMLAUTS * 3
    else:
        assert decode(half + wrong + half, charset) == UMLAUTS * 3 + "\ufffd" + UMLAUTS * 3
        assert decode(half[:-60], charset, html=True).startswith(UMLAUTS * 2)


@pytest.mark.parametrize(
    ("text", "codec", "label"),
    [
        (RUSSIAN, "cp1251", "windows-1251"),
        (RUSSIAN, "koi8-r", "koi8-r"),
        (FRENCH, "cp1252", "latin1"),
        ("Žofia’s “cliché”", "cp1250", "windows-1250"),
        (JAPANESE, "cp932", "x-sjis"),
        ("한국어 똠방각하", "cp949", "euc-kr"),
        ("河流经过古老的城镇", "gb18030", "gb2312"),
        ("河流經過", "big5", "big5"),
        ("日本語のメール", "iso2022_jp", "iso-2022-jp"),
    ],
)
def test_what_is_declared_is_read_with_one_byte_that_does_not_fit(text: str, codec: str, label: str) -> None:
    page = f'<html><meta charset="{label}"><p>{text}</p>'
    assert decode(page.encode(codec), html=True) == page
    assert decode(page.encode(codec) + b"\xff", html=True).startswith(page)


def test_signs_that_browsers_know_beyond_pythons_tables() -> None:
    assert decode(b"\xad\xa1\xa1\xc1\x8e\xb6\xfc\xe2", "euc-jp") == "①～ｶ髙"
    assert decode(b"\x1b$B-!!A\x1b(Babc\x1b(I6\x1b(J ok", "iso-2022-jp") == "①～abcｶ ok"
    assert decode(b"\x80\xd6\xd0", "gb2312") == "€中"
    assert decode(b"\xa3\xe1\xa1\x45", "big5") == "€‧"
    assert decode(b"\x81 \xe9", "iso-8859-1") == "\x81 é"


@pytest.mark.parametrize("text", [FRENCH, "à côté", "Hyvää yötä, sää on öinen", "El niño comió ¿qué?", "þæö Íslandi"])
def test_undeclared_western_text_is_windows_1252(text: str) -> None:
    assert decode(text.encode("cp1252")) == text


@pytest.mark.parametrize("codec", ["cp1251", "koi8-r"])
def test_undeclared_text_of_other_letters_is_guessed(codec: str) -> None:
    assert decode(RUSSIAN.encode(codec)) == RUSSIAN


@pytest.mark.parametrize("codec", ["euc_jp", "cp932", "gb18030", "big5", "cp949", "cp1253"])
def test_undeclared_text_of_other_signs_is_guessed_wherever_its_head_ends(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {
        "gb18030": "河流经过古老的城镇，没有人记得比这更冷的冬天。北京是中华人民共和国的首都。",
        "big5": "河流經過古老的城鎮，沒有人記得比這更冷的冬天。臺北是中華民國的首都，也是最大的城市之一。",
        "cp949": "강은 오래된 마을을 지나 흐르고 아무도 더 추운 겨울을 기억하지 못한다. 서울은 수도이다.",
        "cp1253": "Το ποτάμι περνά από την παλιά πόλη και κανείς δεν θυμάται πιο κρύο χειμώνα.",
    }.get(codec, "東京は日本の首都であり、世界最大の都市圏を形成している。コンピュータの手順に従ってください。")
    monkeypatch.setattr(charsets, "HEAD", 301)
    for some in (text, "<p>" + text * 9, "<h1>" + text * 9):
        assert decode(some.encode(codec)) == some


def test_japanese_is_guessed_with_a_byte_that_does_not_fit() -> None:
    text = "東京は日本の首都であり、世界最大の都市圏を形成している。"
    assert decode(text.encode("euc_jp") + b"\xff") == text + "\ufffd"


def test_text_is_not_asked_what_it_quotes_and_keeps_its_own_replacement_characters() -> None:
    text = 'A café page began with <meta charset="windows-1252"> \ufffd\ufffd\ufffd\ufffd\ufffd.'
    assert decode(text.encode()) == text
    assert decode(text.encode(), "utf-8") == text


@given(st.binary(max_size=300), st.text(max_size=12), st.booleans())
def test_decoding_never_fails(content: bytes, charset: str, html: bool) -> None:
    for label in (charset, "iso-2022-jp", "euc-jp", "big5", "gbk", "hz", "iso-2022-kr", "windows-1255", "utf-16be"):
        assert isinstance(decode(content, label, html), str)


@pytest.mark.parametrize("evil", [b"<!--", b"<script ", b"<meta ", b"<meta a='", b"<title>", b"<?xml ", b"\x1b$B"])
def test_a_head_of_open_markup_is_read_once(evil: bytes) -> None:
    assert isinstance(decode(evil * (1 << 16), "iso-2022-jp", html=True), str)
