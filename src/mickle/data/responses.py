"""A page out of what a crawler stored: head and body of a response, the body without its codings.

Crawlers store bodies as they came or as they decoded them, and the head as it came. So a coding is undone where the
body has it, and a name that the body does not bear out is passed over. HTTP: RFC 9110 and 9112.
"""

from __future__ import annotations

import io
import re
import zlib

LONGEST_HEAD = 1 << 16
SNIFFED = 1445  # bytes by which browsers tell text from what is none
GZIP = b"\x1f\x8b\x08"
EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(r"\r?\n[ \t]+")
_CHUNK = re.compile(rb"[ \t]{0,8}([0-9A-Fa-f]{1,8})[ \t]{0,8}(?:;[^\n]{0,1000})?\r?\n")
_CHARSET = re.compile(r"charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([^\s\"';,]{1,60})", re.IGNORECASE)
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def head_and_body(content: bytes) -> tuple[str, dict[str, str], bytes]:
    """The first line, the fields by their names in lower case (those of one name joined), and what follows them."""
    end = EMPTY_LINE.search(content, 0, LONGEST_HEAD)
    head = content[: end.start()] if end else content[:LONGEST_HEAD]
    first, *lines = _FOLD.sub(" ", head.decode("latin-1")).split("\n")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    return first.strip(), fields, content[end.end() :] if end else b""


def type_and_charset(content_type: str) -> tuple[str, str]:
    """What a Content-Type says, each "" where it says nothing."""
    found = _CHARSET.search(content_type)
    return re.split("[;,]", content_type)[0].strip().lower(), found.group(1) if found else ""


def decoded_body(content: bytes, transfer: str, coding: str, most: int) -> bytes | None:
    """A body without the codings that it has, a byte more than ``most`` where it is larger; None where it is no text.

    transfer, coding: the fields Transfer-Encoding and Content-Encoding.
    """
    chunks, whole = joined(content)
    body = chunks if chunks and (whole or "chunked" in transfer.lower()) else content
    for name in reversed(coding.lower().split(",")):
        body = _undone(name.strip(), body, most)
    body = _undone("gzip", body, most)
    if not coding or len(body) > most or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return body
    return None if _BINARY.search(body[:SNIFFED]) else body


def joined(content: bytes) -> tuple[bytes, bool]:
    """The chunks of a chunked body as one, and whether its end is there; nothing where it is not chunked throughout."""
    pieces: list[bytes] = []
    at = 0
    while size := _CHUNK.match(content, at):
        length = int(size.group(1), 16)
        if length == 0:
            return b"".join(pieces), True
        pieces.append(content[size.end() : size.end() + length])
        at = size.end() + length
        if at >= len(content):
            return b"".join(pieces), False
        at += 2 if content[at : at + 2] == b"\r\n" else 1
    return b"", False


def _undone(name: str, body: bytes, most: int) -> bytes:
    """The body without one coding, or as it is where it does not have it."""
    undone = None
    if body.startswith(GZIP):
        undone = _inflated(body, most, 31)
    elif name == "deflate":
        undone = _inflated(body, most, 15) or _inflated(body, most, -15)
    elif name in ("br", "zstd"):
        undone = _streamed(name, body, most)
    return body if undone is None else undone


def _inflated(body: bytes, most: int, wbits: int) -> bytes | None:
    """gzip (31; several members too), zlib (15) or deflate alone (-15); of a cut one what is there."""
    inflated = b""
    try:
        while len(inflated) <= most:
            decoder = zlib.decompressobj(wbits)
            inflated += decoder.decompress(body, most + 1 - len(inflated))
            body = decoder.unused_data
            if wbits != 31 or not body.startswith(GZIP):
                break
    except zlib.error:
        return None
    return inflated


def _streamed(name: str, body: bytes, most: int) -> bytes | None:
    from fastwarc.stream_io import BrotliReader, ZstdReader

    content = io.BytesIO(body)
    try:
        stream = BrotliReader(content) if name == "br" else ZstdReader(content)
        return bytes(stream.read(most + 1))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # FastWARC panics, outside Exception, on some hostile bytes
        return None
