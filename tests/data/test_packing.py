"""The token stream and its windows, against examples small enough to write down."""

import numpy as np
import pytest

from mickle.data.packing import NOT_TRAINED, TokenStream, open_stream, pack, stream_of
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError

TEXTS = [f"page {i} says that {i} follows {i - 1}, and so on; " * (1 + i % 3) for i in range(40)]
TOKENIZER = train_tokenizer(TEXTS, 280)
MARK = TOKENIZER.end


def batches(texts, size):
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def test_a_window_by_hand_where_end_and_start_are_one_token():
    # Documents 9 1 2 | 9 3 | 9 4 5 6, with 9 the mark.
    stream = TokenStream(np.array([9, 1, 2, 9, 3, 9, 4, 5, 6], dtype=np.uint16), np.array([0, 3, 5]), end=9)
    window = stream.windows(np.array([1]), 6)
    assert window["input_ids"].tolist() == [[1, 2, 9, 3, 9, 4]]
    assert window["labels"].tolist() == [[2, 9, 3, 9, 4, 5]]
    assert window["documents"].tolist() == [[0, 0, 1, 1, 2, 2]]


def test_a_window_by_hand_where_start_is_a_token_of_its_own():
    # Documents 8 1 9 | 8 3 4 9 | 8 5 9: 8 opens, 9 closes; nothing predicts the 8.
    stream = TokenStream(np.array([8, 1, 9, 8, 3, 4, 9, 8, 5, 9], dtype=np.uint16), np.array([0, 3, 7]), end=9)
    window = stream.windows(np.array([0]), 8)
    assert window["labels"].tolist() == [[1, 9, NOT_TRAINED, 3, 4, 9, NOT_TRAINED, 5]]
    assert window["documents"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]


def test_the_ring_closes_at_a_document():
    stream = TokenStream(np.array([9, 1, 2, 9, 3], dtype=np.uint16), np.array([0, 3]), end=9)
    window = stream.windows(np.array([3]), 4)
    assert window["input_ids"].tolist() == [[9, 3, 9, 1]]
    assert window["labels"].tolist() == [[3, 9, 1, 2]]
    assert window["documents"].tolist() == [[0, 0, 1, 1]]


def test_nothing_is_lost_or_added(tmp_path):
    stream = pack(batches(TEXTS, 7), TOKENIZER, tmp_path / "stream")
    pieces = np.split(np.asarray(stream.tokens), stream.starts[1:])
    assert [TOKENIZER.decode(piece[1:]) for piece in pieces] == TEXTS
    assert all(piece[0] == MARK for piece in pieces)
    assert stream.tokens.dtype == np.uint16
    in_memory = stream_of(TOKENIZER.encode_documents(TEXTS), TOKENIZER)
    assert np.array_equal(in_memory.tokens, stream.tokens)
    assert np.array_equal(in_memory.starts, stream.starts)


@pytest.mark.parametrize("killed_after", [0, 1, 3, 5])
def test_a_killed_packing_goes_on_and_gives_the_same_stream(tmp_path, killed_after):
    whole = pack(batches(TEXTS, 7), TOKENIZER, tmp_path / "whole")

    def until_killed():
        for index, batch in enumerate(batches(TEXTS, 7)):
            if index == killed_after:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        pack(until_killed(), TOKENIZER, tmp_path / "killed")
    parts = sorted((tmp_path / "killed" / ".scratch").glob("part-*"))
    assert len(parts) == killed_after
    for part in parts[:1]:  # a bit that rots while the run lies there
        content = bytearray(part.read_bytes())
        content[content.index(b"tokens.npy") + 200] ^= 4
        part.write_bytes(content)
    again = pack(batches(TEXTS, 7), TOKENIZER, tmp_path / "killed")
    assert np.array_equal(again.tokens, whole.tokens)
    assert np.array_equal(again.starts, whole.starts)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "manifest.json",
        "starts.npy",
        "tokens.npy",
    ]


def test_a_finished_stream_is_not_made_again(tmp_path):
    pack(batches(TEXTS, 7), TOKENIZER, tmp_path)

    def untouched():
        raise AssertionError("texts were read again")
        yield

    assert len(pack(untouched(), TOKENIZER, tmp_path)) == len(open_stream(tmp_path, MARK))


@pytest.mark.parametrize("name", ["tokens.npy", "starts.npy", "manifest.json"])
def test_a_page_that_a_power_cut_left_zero_is_never_trained_on(tmp_path, name):
    whole = np.asarray(pack(batches(TEXTS, 7), TOKENIZER, tmp_path).tokens).copy()
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:128] + bytes(64) + content[192:])
    with pytest.raises(UsageError, match=r"corrupt|JSON"):
        open_stream(tmp_path, MARK)
    assert np.array_equal(pack(batches(TEXTS, 7), TOKENIZER, tmp_path).tokens, whole)
