"""A file of gzip members as one stream, read on behind what is damaged; what expands too far is damaged too."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

from mickle.data.responses import GZIP

READ = 1 << 16
PROBE = 1 << 12  # compressed bytes that show what a member opens with
RATIO = 200  # decompressed to compressed bytes; more is an attack or worthless
RATIO_FROM = 1 << 20  # members smaller than this, decompressed, may have any ratio


class Break(Exception):
    """The compressed stream cannot be followed here."""

    def __init__(self, reason: str, value: float) -> None:
        super().__init__(reason)
        self.reason, self.value = reason, value


class Members:
    """A file of gzip members as one stream of chunks; raises :class:`Break` where a member is cut, corrupt or
    a bomb.
    """

    def __init__(self, read: Callable[[int], bytes], opening: re.Pattern[bytes], ratio: float = RATIO) -> None:
        self.read, self.opening, self.ratio = read, opening, ratio
        self.pending = b""  # compressed bytes read and not yet used
        self._begin()

    def _begin(self) -> None:
        self.decoder = zlib.decompressobj(wbits=31)
        self.taken = self.given = 0
        self.history = b""  # the end of what this member took: a damaged one may have swallowed the next

    def chunk(self) -> bytes:
        """Some decompressed bytes, at most ``READ``; none at the end of the file."""
        while True:
            if self.decoder.eof:
                self.pending = self.decoder.unused_data
                self._begin()
            source = self.pending or self.read(READ)
            if not source:
                if self.taken:
                    self.pending = self.history[1:]
                    raise Break("compressed data is cut off", self.taken)
                return b""
            fresh = self.taken == 0
            if fresh and not source.strip(b"\0"):
                self.pending = b""  # padding between members
                continue
            try:
                result = self.decoder.decompress(source, READ)
            except zlib.error:
                self.pending = (self.history + source)[1:]
                raise Break("compressed data is corrupt", self.given) from None
            self.pending = self.decoder.unconsumed_tail
            used = len(source) - len(self.pending) - len(self.decoder.unused_data)
            self.taken += used
            self.history = (self.history + source[:used])[-2 * READ :]
            self.given += len(result)
            if self.given > RATIO_FROM and self.given > self.ratio * self.taken:
                raise Break("compressed data expands too far", self.given / self.taken)
            if result:
                return result

    def recover(self) -> bool:
        """Goes to the next place where a gzip member begins with its ``opening``; false if there is none."""
        if self.decoder.eof:
            self.pending = self.decoder.unused_data
        window, at = self.pending, 0
        while True:
            at = window.find(GZIP, at)
            if at < 0 or len(window) - at < PROBE:
                more = self.read(READ)
                if not more and at < 0:
                    return False
                window, at = window[at if at >= 0 else max(0, len(window) - 2) :] + more, 0
                if more:
                    continue
                at = window.find(GZIP)
            if self._opens(window[at : at + PROBE]):
                self.pending = window[at:]
                self._begin()
                return True
            at += 1

    def _opens(self, compressed: bytes) -> bool:
        try:
            return self.opening.match(zlib.decompressobj(wbits=31).decompress(compressed, 64)) is not None
        except zlib.error:
            return False
