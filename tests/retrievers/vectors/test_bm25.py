import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import bm25s
import pytest

from augment.errors import DataError
from retrievers.vectors.bm25 import Bm25Config, Bm25Index
from retrievers.vectors.words import analyser

#: Of two to nine words, so that the normalisation by length has something to do.
TEXTS = {
    "1:1": "red stripe above white stripe",
    "1:4": "white stripe",
    "1:6": "red stripe and white stripe and blue stripe and star",
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


def indexed(texts=TEXTS, *config):
    index = Bm25Index(*config)
    index.add(list(texts), list(texts.values()), "words")
    return index


def search(index, text, k):
    return index.run(["q"], [text], k, "words").to_run()["q"]


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (2.0, 1.0), (1.2, 0.0)])
def test_equal_to_lucenes_formula(k1, b):
    index = indexed(TEXTS, Bm25Config(k1, b, "none"))
    want = slow(TEXTS, "red star white", k1, b)
    found = search(index, "red star white", 10)
    assert {hit.did: pytest.approx(hit.score, abs=2e-6) for hit in found} == want
    # Equal texts tie; the tie goes by id in descending order.
    dids = [hit.did for hit in found]
    assert dids == sorted(sorted(want, reverse=True), key=lambda did: -round(want[did], 6))
    assert dids.index("1:2") + 1 == dids.index("1:10")
    assert [hit.did for hit in search(index, "red star white", 1)] == dids[:1]
    if b:
        other = slow(TEXTS, "red star white", k1, 0)
        assert max(abs(other[did] - want[did]) for did in want) > 0.01


def test_unknown_words_find_nothing_and_empty_queries_are_refused():
    index = indexed()
    assert search(index, "zebra", 5) == []
    assert search(index, "the of", 5) == []
    found = index.search(["zebra", "red"], 2)
    assert found.rows[0].tolist() == [-1, -1]
    assert (found.rows[1] >= 0).all()
    with pytest.raises(DataError, match="query is empty"):
        index.search(["red", "  "], 5)


def test_a_text_for_each_id():
    with pytest.raises(DataError, match="1 ids for 0 texts; give one id for each"):
        Bm25Index().add(["1:1"], [], "words")


#: Texts that hold a word as it is searched for, and as somebody else writes it.
SPELLINGS = {
    "Hindi, with vowel signs": ("लाल झंडा", "झंडा"),
    "Hindi, with a joiner": ("क्‍ष", "क्ष"),
    "Bengali": ("লাল পতাকা", "পতাকা"),
    "Turkish capitals": ("İSTANBUL", "istanbul"),
    "decomposed": ("café", "café"),
    "composed": ("café", "CAFÉ"),
    "full width": ("\uff33\uff34\uff21\uff32", "star"),
    "sharp s": ("Straße", "STRASSE"),
    "ligature": ("ﬁeld", "field"),
    "soft hyphen": ("tri­colour", "tricolour"),
    "a digit alone": ("3 stars", "3"),
    "a digit and a keycap": ("3️⃣", "3"),
    "Arabic digits and vowels": ("عَلَم ٣", "٣"),
    "one ideograph": ("星", "星"),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_words_of_any_script_and_spelling_meet(kind):
    text, query = SPELLINGS[kind]
    index = indexed({"1:1": text, "1:2": "?", "1:3": "other words", "1:4": "stanbul caf s t 33"})
    assert [hit.did for hit in search(index, query, 4)] == ["1:1"]


def test_words_of_ascii_letters_are_those_of_bm25s():
    text = "The country's flag: RED, white-and-blue (a 'Tricolour'), of x or an e.g. B5 NATO"
    (want,) = bm25s.tokenize([text], stopwords="en", return_ids=False, show_progress=False)
    assert " ".join(want) == "country flag red white blue tricolour b5 nato"
    assert analyser("english")(text) == want


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("german", "Die Fahne über der Stadt", ["fahne", "stadt"]),
        ("turkish", "İstanbul için bayrak", ["istanbul", "bayrak"]),
        ("english", "Die Fahne", ["die", "fahne"]),
        ("none", "the flag of a", ["the", "flag", "of"]),
    ],
)
def test_stop_words_are_those_of_a_language(language, text, words):
    assert analyser(language)(text) == words


def test_the_analyser_is_named_in_the_fingerprint(monkeypatch):
    before = {Bm25Config(stopwords=language).fingerprint for language in ("english", "none")}
    monkeypatch.setattr("retrievers.vectors.bm25.VERSION", "words 2")
    assert len(before | {Bm25Config().fingerprint}) == 3


def test_jax_is_asked_for_no_device_where_it_is_installed(tmp_path):
    """It would take three quarters of a GPU's memory: bm25s asks as it is imported."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").touch()
    (tmp_path / "jax/lax.py").write_text("def top_k(*_): raise SystemExit('a device')")
    code = "import jax.lax\nimport retrievers.vectors.bm25\nprint(jax.lax.top_k)"
    for lines in (code, code.partition("\n")[2].partition("\n")[0]):  # JAX at work already, or not
        subprocess.run([sys.executable, "-c", lines], check=True, cwd=Path.cwd(),
                       env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"})  # fmt: skip
