"""The RefinedWeb study: corpora are what their names say, arms are pairs, the declaration is fair, a cell runs."""

import math

import numpy as np
import pytest
import torch

from mickle.data.packing import TokenStream
from mickle.studies import crawl_corpora, refinedweb
from mickle.studies.crawl_scores import STAGES
from mickle.studies.declaration import Cell, open_study

TINY = {
    **refinedweb.QUICK,
    "pages": 150,
    "vocabulary": 300,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "ffn_width": 32,
    "length": 32,
    "rows": 2,
    "steps": 3,
    "windows": 3,
}
PACKAGES = tuple(TINY["packages"])


def cell(arm, seed=3):
    return Cell(arm, "default", {}, seed, TINY)


@pytest.fixture(scope="module")
def corpora():
    return crawl_corpora.corpora_of(TINY["pages"], 3, PACKAGES)


def test_each_corpus_is_the_one_before_with_less_in_it(corpora):
    size = {arm: sum(map(len, texts)) for arm, texts in corpora.texts.items()}
    assert size["refined"] < size["filtered"] < size["raw"] < size["wet"]
    longest = max(map(len, corpora.texts["raw"]))
    assert size["refined"] <= size["raw-subset"] <= size["refined"] + longest
    assert set(corpora.texts["raw-subset"]) <= set(corpora.texts["raw"])
    whole = {" ".join(text.split()) for text in corpora.texts["filtered"]}
    assert any(" ".join(text.split()) in whole for text in corpora.texts["refined"])


def test_only_wet_has_other_languages_and_menus(corpora):
    joined = {arm: "\n".join(texts) for arm, texts in corpora.texts.items()}
    for arm, text in joined.items():
        assert ("учитель" in text) == (arm == "wet"), arm
    assert "Legal notice" in joined["wet"]


def test_curated_holds_no_junk_and_each_passage_once(corpora):
    text = "\n".join(corpora.texts["curated"])
    assert "offer is only valid" not in text
    paragraphs = text.split("\n\n")
    long = [p for p in paragraphs if len(p.split()) >= 90]
    assert long and len(set(long)) == len(long)


def test_real_documents_are_part_of_their_corpus(corpora):
    for arm, texts in corpora.real.items():
        assert set(texts) <= set(corpora.texts[arm])
    assert len(corpora.real["raw"]) < len(corpora.texts["raw"])


def test_windows_cut_every_epoch_whole_and_are_shared_by_arms():
    places = refinedweb.window_places(1000, 10, 250, seed=4)
    for epoch in (places[:100], places[100:200]):
        assert len({int(p) for p in epoch}) == 100
        assert len({int(p) % 10 for p in epoch}) == 1
    assert len(places) == 250
    assert np.array_equal(places, refinedweb.window_places(1000, 10, 250, seed=4))
    assert not np.array_equal(places, refinedweb.window_places(1000, 10, 250, seed=5))
    assert len(refinedweb.window_places(5, 10, 7, seed=0)) == 7, "a corpus smaller than a window"


class Known(torch.nn.Module):
    """A model whose scores are a function of the tokens."""

    def __init__(self):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids, documents=None, positions=None, head=None):
        scores = self.scores(ids)
        return scores if head is None else head(scores[positions], None)


class Uniform(Known):
    """Knows nothing: every token is equally likely, and the last one a hair more."""

    def scores(self, ids):
        scores = torch.zeros(*ids.shape, 8)
        scores[..., 7] = 1e-6
        return scores


class Cycle(Known):
    """Says that the next token is one more, up to 7, then 0."""

    def scores(self, ids):
        return 50.0 * torch.nn.functional.one_hot((ids + 1) % 8, 8).float()


def cycle(tokens):
    return TokenStream(np.arange(tokens, dtype=np.uint16) % 8, np.array([0]), end=99)


def test_bits_per_byte_and_error_in_closed_form():
    measured = refinedweb.evaluate(Uniform(), cycle(8 * 20 + 1), size=2 * (8 * 20 + 1), length=8)
    assert measured["bits_per_byte"] == pytest.approx(3 / 2, rel=1e-4)  # 3 bits a token of two bytes
    assert measured["error"] == 7 / 8
    perfect = refinedweb.evaluate(Cycle(), cycle(161), size=161, length=8)
    assert perfect["error"] == 0
    assert perfect["bits_per_byte"] < 1e-9


def test_memorised_counts_windows_that_are_continued_to_their_end():
    stream = cycle(400)
    assert refinedweb.memorised(Cycle(), stream, 10, seed=0) == 10.5 / 11
    assert refinedweb.memorised(Uniform(), stream, 10, seed=0) == 0.5 / 11


def test_arms_start_from_equal_weights():
    one, other = (refinedweb.decoder(cell(arm), 300) for arm in ("refined", "raw"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    another = refinedweb.decoder(cell("raw", seed=4), 300)
    assert not torch.equal(one.embed_tokens.weight, another.embed_tokens.weight)


def test_one_cell_measures_what_is_declared(tmp_path):
    table = {arm: refinedweb.run_cell(cell(arm), tmp_path) for arm in ("refined", "curated")}
    assert table["curated"] == refinedweb.run_cell(cell("curated"), tmp_path), "a cell is a function of its declaration"
    assert table["refined"]["budget"] == table["curated"]["budget"] == 3 * 2 * 32
    for arm in table.values():
        assert all(math.isfinite(value) for value in arm.values())
    derived = refinedweb.allow_margin(table)
    assert derived["refined"]["error_allowed"] == table["refined"]["error"]
    assert derived["curated"]["error_allowed"] == pytest.approx(1.02 * table["curated"]["error"])
    measures = {comparison.measure for comparison in refinedweb.study.comparisons}
    assert measures <= set(derived["refined"]) and measures <= set(derived["curated"])


def test_held_out_documents_are_of_other_modules_and_another_package():
    stream, size = crawl_corpora.held_out(PACKAGES, PACKAGES, 300)
    other, other_size = crawl_corpora.held_out(("numpy",), PACKAGES, 300)
    assert size > 20_000 and other_size > 50_000
    assert len(stream) < size, "a token is more than a byte"
    tokenizer = crawl_corpora.tokenizer_of(PACKAGES, 300)
    assert "numpy" not in tokenizer.decode(stream.tokens).lower()[:100_000]
    assert "array" in tokenizer.decode(other.tokens)


def test_the_funnel_of_a_stored_result(corpora):
    runs = [
        {"phase": "reported", "failure": "", "cell": {"arm": arm}, "measured": dict(corpora.scores)}
        for arm in ("refined", "raw")
    ]
    table = refinedweb.funnel({"runs": runs})
    assert all(f"| {stage} |" in table for stage in STAGES)


def test_the_declaration_is_found_and_sound():
    study = open_study("refinedweb")
    assert (study.headline.method, study.headline.baseline) == ("refined", "raw")
    assert set(study.scales) == {"quick", "full", "gpu"}
    assert study.scales["full"].seeds >= 5
    margin = next(c for c in study.comparisons if c.baseline == "curated")
    assert margin.measure == "error_allowed"
    assert margin.paper_effect == pytest.approx(1 / 1.02)
