"""Domains of pages, their streams, and the file of weights; and a sentence for each thing that is wrong with them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.domains import NAMELESS, Grouping, Weights, domain_sizes, domain_streams, read_weights, write_weights
from mickle.data.heldout import is_heldout, write_pages
from mickle.data.packing import pack
from mickle.data.records import Page
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.events import Progressed, Started, ignore


def page(domain, number, language="en"):
    return Page(f"https://{domain}/{number}", domain, language, f"{domain} says {'word ' * (number % 5)}{number}")


PAGES = [page(d, i, "de" if i % 3 else "en") for i in range(12) for d in ("b.org", "a.net", "c.org", "")]


@pytest.fixture
def data(tmp_path):
    write_pages(PAGES, tmp_path / "pages.parquet")
    return tmp_path / "pages.parquet"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([p.text for p in PAGES], 270, or_fewer=True)


def test_a_pages_domain():
    grouping = Grouping("domain", {"a": ("a.*",), "org": ("*.org", "b*"), "rest": ("*",)})
    assert [grouping.name(page(d, 0)) for d in ("a.net", "b.org", "", "x")] == ["a", "org", "rest", "rest"]
    assert Grouping().name(page("b.org", 0)) == "b.org"
    assert Grouping().name(page("", 0)) == NAMELESS
    assert Grouping("language").name(page("b.org", 0, "de")) == "de"


def test_sizes_count_training_pages_only(data):
    sizes = domain_sizes(data, 0.2, Grouping())
    assert list(sizes) == [NAMELESS, "a.net", "b.org", "c.org"]
    mine = [p for p in PAGES if p.domain == "a.net" and not is_heldout(p.text, 0.2)]
    assert sizes["a.net"].pages == len(mine) < 12
    assert sizes["a.net"].bytes == sum(len(p.text.encode()) for p in mine)


def test_streams_hold_each_domains_documents_in_order(data, tokenizer, tmp_path):
    events = []
    streams = domain_streams(data, 0.2, tokenizer, tmp_path / "s", Grouping("language"), events.append)
    assert list(streams) == ["de", "en"]
    for language, stream in streams.items():
        texts = [p.text for p in PAGES if p.language == language and not is_heldout(p.text, 0.2)]
        alone = pack([texts], tokenizer, tmp_path / language)
        assert np.array_equal(stream.tokens, alone.tokens)
        assert np.array_equal(stream.starts, alone.starts)
        assert stream.end == alone.end
    assert sum(isinstance(e, Started) for e in events) == 1
    assert max(e.done for e in events if isinstance(e, Progressed)) == sum(len(s.starts) for s in streams.values())
    assert not (tmp_path / "s" / "whole").exists()


def test_streams_are_made_once_and_a_killed_call_goes_on(data, tokenizer, tmp_path):
    class Killed(BaseException):
        pass

    def cut(event):
        if isinstance(event, Progressed):
            raise Killed

    with pytest.raises(Killed):
        domain_streams(data, 0.0, tokenizer, tmp_path / "s", Grouping(), cut)
    first = domain_streams(data, 0.0, tokenizer, tmp_path / "s", Grouping(), ignore)
    whole = domain_streams(data, 0.0, tokenizer, tmp_path / "t", Grouping(), ignore)
    data.unlink()
    again = domain_streams(data, 0.0, tokenizer, tmp_path / "s", Grouping(), ignore)
    for name in whole:
        assert np.array_equal(first[name].tokens, whole[name].tokens)
        assert np.array_equal(again[name].tokens, whole[name].tokens)


def test_with_weights_their_grouping_counts_and_their_names_must_fit(data, tokenizer, tmp_path):
    grouping = Grouping("domain", {"org": ("*.org",), "rest": ("*",)})
    weights = Weights(("org", "rest"), (0.3, 0.7), grouping)
    assert list(domain_streams(data, 0.0, tokenizer, tmp_path / "s", weights, ignore)) == ["org", "rest"]
    for names, said, near in (
        (("orgs", "rest"), "The weights name a domain that the pages do not have: 'orgs'", "did you mean 'org'?"),
        (("org",), "The pages have a domain that the weights do not name: 'rest'", "a share of 0 leaves"),
    ):
        wrong = Weights(names, (1 / len(names),) * len(names), grouping)
        with pytest.raises(UsageError) as caught:
            domain_streams(data, 0.0, tokenizer, tmp_path / "w", wrong, ignore)
        assert said in str(caught.value)
        assert near in str(caught.value)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, st.floats(0, 1), min_size=1, max_size=6))
def test_weights_survive_their_file(tmp_path_factory, shares):
    total = sum(shares.values())
    if total < 1e-6:
        return
    names = tuple(sorted(shares))
    given_weights = Weights(
        names, tuple(shares[n] / total for n in names), Grouping("language", {"x": ("*.org", "[a]*")})
    )
    file = tmp_path_factory.mktemp("w") / "weights.yaml"
    write_weights(file, given_weights)
    found = read_weights(file)
    assert found.grouping == given_weights.grouping
    assert found.names == names
    assert found.weights == pytest.approx(given_weights.weights, abs=1e-12)


def test_other_programs_files(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({"train_domain_weights": {"b": 3, "a": 1}, "eval_domain_weights": {}}))
    assert read_weights(tmp_path / "w.json").as_dict() == {"a": 0.25, "b": 0.75}
    (tmp_path / "w.yaml").write_text("web: 0.7\nbooks: 3e-1\n")
    assert read_weights(tmp_path / "w.yaml").as_dict() == pytest.approx({"books": 0.3, "web": 0.7})
    (tmp_path / "w.yaml").write_text("web: 0.7003\nbooks: 0.3\n")
    assert sum(read_weights(tmp_path / "w.yaml").weights) == pytest.approx(1, abs=1e-12)


def test_the_order_of_a_files_lines_is_nothing(tmp_path):
    (tmp_path / "one.yaml").write_text("b: 0.2\na: 0.5\nc: 0.3\n")
    (tmp_path / "other.yaml").write_text("c: 0.3\nb: 0.2\na: 0.5\n")
    assert read_weights(tmp_path / "one.yaml") == read_weights(tmp_path / "other.yaml")
    assert read_weights(tmp_path / "one.yaml").names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 0.5\nb: 0.4\n", "The weights sum to 0.9."),
        ("a: 1.2\nb: -0.2\n", "The weight of the domain 'b' is -0.2."),
        ("a: 0.5\nb: .nan\n", "The weight of the domain 'b' is nan."),
        ("a: 0.5\nb: much\n", "The weight of the domain 'b' is 'much'."),
        ("a: 0.5\nb: true\n", "The weight of the domain 'b' is True."),
        ("a: 0\n", "The weights sum to 0."),
        ("- 1\n", "This file holds no domain weights."),
        ("", "This file holds no domain weights."),
        ("weights: {a: 1}\nby: colour\n", "The weights' grouping cannot be read."),
        ("weights: {a: 1}\ngroups: {a: '*'}\n", "The weights' grouping cannot be read."),
        ("train_domain_weights: {}\n", "This file holds no domain weights."),
    ],
)
def test_files_that_cannot_be_weights(tmp_path, content, said):
    (tmp_path / "w.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        read_weights(tmp_path / "w.yaml")
    assert said in str(caught.value)
    assert str(tmp_path / "w.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("pages", "grouping", "said"),
    [
        ([page("a", i) for i in range(5)], Grouping(), "All pages are of one domain ('a')"),
        ([page("a", i) for i in range(5)] + [page("b", 0)], Grouping(), "The domain 'b' has one page for training."),
        ([page("a", i) for i in range(5)] + [page("b", 0), page("c", 0)], Grouping(), "so have 1 others of 3."),
        ([page("ab"[i % 2], i) for i in range(6)], Grouping("domain", {"x": ("z*",)}), "No page belongs to"),
    ],
)  # fmt: skip
def test_pages_that_cannot_be_weighed(tmp_path, pages, grouping, said):
    write_pages(pages, tmp_path / "p.parquet")
    with pytest.raises(UsageError) as caught:
        domain_sizes(tmp_path / "p.parquet", 0.0, grouping)
    assert said in str(caught.value)
