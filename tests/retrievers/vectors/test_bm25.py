import math
from collections import Counter

import pytest

from augment.errors import DataError
from retrievers.vectors.bm25 import Bm25Config, Bm25Index

TEXTS = {
    "1:1": "red stripe above white stripe",
    "1:2": "white star on a red field",
    "1:3": "Red, RED and red again",
    "1:10": "white star on a red field",
    "1:5": "?!",
}


def slow(texts, query, k1, b):
    """Lucene's BM25 from its formula."""
    documents = {did: text.lower().replace(",", "").split() for did, text in texts.items()}
    documents = {
        did: [word for word in words if word.isalpha() and len(word) > 1]
        for did, words in documents.items()
    }
    documents = {did: words for did, words in documents.items() if words}
    mean = sum(map(len, documents.values())) / len(documents)
    scores = {}
    for did, words in documents.items():
        counts = Counter(words)
        for term in query.split():
            holding = sum(term in other for other in documents.values())
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            tf = counts[term] / (counts[term] + k1 * (1 - b + b * len(words) / mean))
            scores[did] = scores.get(did, 0.0) + idf * tf
    return {did: score for did, score in scores.items() if score > 0}


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (2.0, 1.0)])
def test_equal_to_lucenes_formula(k1, b):
    index = Bm25Index(list(TEXTS), list(TEXTS.values()), Bm25Config(k1, b, "none"))
    want = slow(TEXTS, "red star white", k1, b)
    found = index.search("red star white", 10)
    assert {hit.did: pytest.approx(hit.score, abs=2e-6) for hit in found} == want
    # Equal texts tie; the tie goes by id in descending order.
    assert [hit.did for hit in found][:2] == ["1:2", "1:10"]
    assert [hit.did for hit in index.search("red star white", 1)] == ["1:2"]


def test_unknown_words_find_nothing_and_empty_queries_are_refused():
    index = Bm25Index(list(TEXTS), list(TEXTS.values()))
    assert index.search("zebra", 5) == []
    assert index.search("the of", 5) == []
    with pytest.raises(DataError, match="query is empty"):
        index.search("  ", 5)
    with pytest.raises(ValueError, match="at least 1"):
        index.search("red", 0)


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [
        (["1:1"], [], "one text for each id"),
        (["1:1", "1:1"], ["red", "white"], "stands twice"),
        (["1:1", "1:2"], ["", "?"], "has a word to index"),
    ],
)
def test_unusable_texts_are_refused(ids, texts, message):
    with pytest.raises(DataError, match=message):
        Bm25Index(ids, texts)


def test_parameters_have_bounds():
    with pytest.raises(DataError, match="b=2"):
        Bm25Config(b=2)
