"""Text of a page's bytes as browsers read them: the WHATWG's Encoding Standard, and HTML's choice of a charset.

A byte order mark decides; then the server's charset; then what the page declares in ``<meta>`` or ``<?xml``; then UTF-8
where the bytes are UTF-8 but for a few; then windows-1252. Bytes that do not fit become U+FFFD, one by one. Labels
mean what browsers mean by them: ``iso-8859-1`` is windows-1252, ``shift_jis`` is Microsoft's, and ``utf-16`` in a
``<meta>``, which could not be read if it were true, is UTF-8.

Departures, where a browser shows what nobody wrote: bytes that are UTF-8 throughout are never another charset; one that
most of what lies beyond ASCII does not fit is passed over; a ``<meta>`` counts in the first 64 kB, but in no comment,
script or style; undeclared text of other than Latin letters is guessed; HZ and ISO-2022-KR are read.
"""

from __future__ import annotations

import codecs
import re

HEAD = 1 << 16  # bytes in which a page may declare its charset, or by which it is guessed
STRAY = 3  # so few characters are no reason to doubt what is declared
FALLBACK = "cp1252"

# By Python's name of a label's codec the decoder that browsers take; what is not here they do not know.
_AS_IN_PYTHON = (
    "utf-8 cp866 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-10 iso8859-13 "
    "iso8859-14 iso8859-15 iso8859-16 koi8-r koi8-u mac-roman mac-cyrillic cp874 cp1250 cp1251 cp1252 cp1253 cp1254 "
    "cp1255 cp1256 cp1257 cp1258 gb18030 big5hkscs euc_jp iso2022_jp cp932 cp949 utf-16-le utf-16-be hz iso2022_kr"
)
DECODERS = {name: name for name in _AS_IN_PYTHON.split()} | {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949",
    "utf-16": "utf-16-le",
}  # fmt: skip
# Labels of the standard that Python does not know, beside one that it does; x- in front is left out before.
_OTHER_LABELS = {
    "cp874": "dos-874 windows-874",
    "cp949": "windows-949",
    "cp932": "windows-31j",
    "koi8-r": "koi koi8",
    "koi8-u": "koi8-ru",
    "mac-roman": "mac csmacintosh",
    "mac-cyrillic": "mac-ukrainian",
    "cp1252": "user-defined",
    "iso8859-7": "sun_eu_greek",
    "iso8859-8": "visual logical",
    "iso8859-15": "csisolatin9",
    "gbk": "csgb2312 gb_2312 gb_2312-80",
    "big5": "cn-big5",
    "euc_jp": "cseucpkdfmtjapanese",
    "euc_kr": "cseuckr csksc56011987 iso-ir-149 ks_c_5601-1989 ksc_5601",
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8",
    "utf-16": "unicode csunicode ucs-2 iso-10646-ucs-2",
    "utf-16-le": "unicodefeff",
    "utf-16-be": "unicodefffe",
}
LABELS = {label: known for known, labels in _OTHER_LABELS.items() for label in labels.split()}
_ISO = re.compile(r"^(?:cs)?iso-?8859-?(\d+)(?:-?[ei])?$")  # iso88592, csiso88596e, iso-8859-8-i
# Where the standard's tables of two bytes have other signs than Python's.
OTHER_SIGNS = {
    "euc_jp": str.maketrans("〜‖−¢£¬", "～∥－￠￡￢"),
    "big5hkscs": str.maketrans("•､", "‧﹑"),
}
_SHIFT = re.compile(rb"\x1b(\$[@B]|\([BJI])([^\x1b]*)")
_HIGH = bytes(byte | 0x80 if 0x21 <= byte < 0x7F else byte for byte in range(256))

_DECLARATION = re.compile(
    rb"<!--.*?(?:-->|\Z)|<(script|style|title|textarea)\b.*?(?:</\1\b|\Z)|<meta[\s/]([^>]{0,1000})",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(rb"([^\s=/\"'<>]{1,40})\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_IN_CONTENT = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s\"';]+)", re.IGNORECASE)
_XML = re.compile(rb"\s{0,100}<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([^\"'>]{1,60})[\"']", re.IGNORECASE)
_KANA = re.compile("[ぁ-ヿ]")
_RUN = re.compile(rb"[\x80-\xff]{3,}")


def decode(content: bytes, charset: str = "", html: bool = False) -> str:
    """Text of bytes: ``charset`` is what was said beside them, ``html`` whether they may declare one themselves.

    Never raises.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if content.startswith(mark):
            return content[len(mark) :].decode(name, "replace")
    text = content.decode("utf-8", "replace")
    errors, signs = _errors_and_signs(text, content)
    if errors == 0 and signs > STRAY:
        return text
    for decoder in filter(None, (decoder_of(charset), declared(content[:HEAD]) if html else "")):
        if decoder.startswith("utf-16") and b"\0" not in content:
            continue  # no text in Latin letters, nor any markup: its bytes would become Chinese signs
        read = decoded(content, decoder)
        wrong, right = _errors_and_signs(read, content)
        if wrong <= max(STRAY, right):
            return read
    return text if errors <= signs else decoded(content, _guess(content[:HEAD]))


def decoder_of(label: str) -> str:
    """The decoder that browsers take for a label, by Python's name; "" where they know none."""
    name = label.strip().lower()
    while name.startswith("x-"):
        name = name[2:]
    name = LABELS.get(name, _ISO.sub(r"iso8859-\1", name))
    try:
        return DECODERS.get(codecs.lookup(name).name, "")
    except (LookupError, ValueError):  # a NUL in a name is a ValueError
        return ""


def declared(head: bytes) -> str:
    """The decoder that a page's own ``<?xml`` or first ``<meta>`` with a known charset asks for; "" without one."""
    labels = [found.group(1) for found in [_XML.match(head)] if found]
    labels += [_label(found.group(2)) for found in _DECLARATION.finditer(head) if found.group(2)]
    for label in labels:
        if decoder := decoder_of(label.decode("latin-1")):
            return "utf-8" if decoder.startswith("utf-16") else decoder
    return ""


def _label(attributes: bytes) -> bytes:
    """The charset of a ``<meta>``, whose attributes are given: its own, or that of a content type."""
    values: dict[bytes, bytes] = {}
    for name, *quoted in _ATTRIBUTE.findall(attributes):
        values.setdefault(name.lower(), b"".join(quoted))
    if b"charset" in values:
        return values[b"charset"]
    is_type = values.get(b"http-equiv", b"").strip().lower() == b"content-type"
    found = _IN_CONTENT.search(values.get(b"content", b"")) if is_type else None
    return found.group(1) if found else b""


def decoded(content: bytes, decoder: str) -> str:
    """Bytes by one of :data:`DECODERS`; what does not fit is U+FFFD."""
    if decoder == "iso2022_jp":
        content, decoder = _SHIFT.sub(_as_euc, content), "euc_jp"
    return content.decode(decoder, "browsers").translate(OTHER_SIGNS.get(decoder, {}))


def _errors_and_signs(text: str, content: bytes) -> tuple[int, int]:
    """How many bytes did not fit, and how many characters beyond ASCII did."""
    if text.isascii():
        return 0, 0
    strange = text.count("\ufffd")
    there = content.count("\ufffd".encode())  # in the text itself
    return strange - there, len(text) - len(text.encode("ascii", "ignore")) - strange + there


def _guess(head: bytes) -> str:
    """The decoder of what is no UTF-8. Kana tell Japanese, which charset_normalizer takes for Chinese or Korean. Latin
    letters beyond ASCII stand alone or in twos, those of others in words.
    """
    for japanese in ("euc_jp", "cp932"):
        read = decoded(head, japanese)
        wrong, signs = _errors_and_signs(read, head)
        if wrong <= STRAY and len(_KANA.findall(read)) > max(STRAY, signs // 5):
            return japanese
    high = len(head) - len(head.decode("ascii", "ignore"))
    if 2 * sum(map(len, _RUN.findall(head))) <= high:
        return FALLBACK
    from charset_normalizer import from_bytes

    for end in range(len(head), len(head) - (4 if len(head) == HEAD else 1), -1):  # a sign may be cut in two
        if best := from_bytes(head[:end], threshold=0.3).best():
            return decoder_of(best.encoding) or FALLBACK
    return FALLBACK


def _as_euc(shifted: re.Match[bytes]) -> bytes:
    """What follows an escape sequence of ISO-2022-JP, as EUC-JP."""
    mode, signs = shifted.groups()
    if mode in (b"(B", b"(J"):
        return bytes(signs)
    high = bytes(signs).translate(_HIGH)
    return re.sub(rb"([\xa1-\xdf])", b"\x8e\\1", high) if mode == b"(I" else high


def _as_browsers(error: UnicodeError) -> tuple[str, int]:
    """What the standard's tables have where Python's have nothing; else U+FFFD for a byte."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    first, *rest = error.object[error.start : error.start + 2]
    if error.encoding == "charmap" and first < 0xA0:
        return chr(first), error.start + 1
    if error.encoding == "gb18030" and first == 0x80:
        return "€", error.start + 1
    if error.encoding == "big5hkscs" and (first, *rest) == (0xA3, 0xE1):
        return "€", error.start + 2
    if error.encoding == "euc_jp" and rest and (sign := _of_microsoft(first - 0xA0, rest[0] - 0xA0)):
        return sign, error.start + 2
    return "\ufffd", error.start + 1


def _of_microsoft(row: int, cell: int) -> str:
    """A sign of JIS X 0208 by row and cell from 1, with NEC's and IBM's beside the standard's; "" where none is."""
    if row not in (13, *range(89, 93)) or not 1 <= cell <= 94:
        return ""
    lead = (row - 1) // 2 + (0x81 if row < 63 else 0xC1)
    trail = cell + 0x9E if row % 2 == 0 else cell + (0x3F if cell < 64 else 0x40)
    return bytes([lead, trail]).decode("cp932", "ignore")


codecs.register_error("browsers", _as_browsers)
