"""Words found by an index, against reading every text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.serving.http.word_index import WordIndex, shared_words
from semid_lib.workbench.text import words

LETTERS = st.text(alphabet="ab \u00e9-", max_size=8)
HAN = "\u624b\u673a\u58f3"
HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"


@settings(max_examples=40)
@given(st.lists(LETTERS, max_size=12), LETTERS)
def test_a_text_is_found_by_words_and_beginnings_of_words(texts, query):
    expected = [
        row
        for row, text in enumerate(texts)
        if words(query) and all(any(held.startswith(word) for held in words(text)) for word in words(query))
    ]
    assert sorted(WordIndex(texts).find(query, limit=99)) == expected


@settings(max_examples=40)
@given(
    st.lists(st.text(HAN, max_size=8), max_size=8),
    st.text(HAN, min_size=1, max_size=5),
)
def test_scripts_without_spaces_are_found_anywhere(texts, query):
    expected = [row for row, text in enumerate(texts) if query in text]
    assert sorted(WordIndex(texts).find(query, limit=99)) == expected


def test_every_word_counts_and_the_middle_of_a_word_does_not():
    index = WordIndex(["item in row 3", "item in row 13", "item in row 31", "row, an item"])
    assert index.find("ROW item 3", limit=5) == [0, 2]
    assert index.find("em", limit=5) == index.find("zebra", limit=5) == index.find(" - ", limit=5) == []
    assert index.find("row", limit=5) == [3, 0, 1, 2] and index.find("row", limit=2) == [3, 0]


def test_unicode_forms_of_a_word_are_one():
    index = WordIndex(["Caf\u00e9 cup", "Cafe\u0301 mug", "L&amp;S lamp", "\uff21\uff22\uff23 tee", f"{HINDI} book"])
    found = {"Caf\u00e9": [0, 1], "cafe\u0301": [0, 1], "L&S": [2], "abc": [3], HINDI[:3]: [4]}
    assert {query: index.find(query, limit=5) for query in found} == found
    assert index.find("cafe", limit=5) == []  # accents make a difference
    assert index.find(HINDI[2:], limit=5) == []  # a vowel sign does not end a word


def test_forms_of_a_word_are_akin_if_they_share_four_letters():
    index = WordIndex(["Rain Jacket", "The tea pots", "\u84dd\u8272\u624b\u673a\u58f3"])
    assert all(word in index for word in ("jackets", "jack", "rain", "tea", "pots", "\u624b\u673a\u888b"))
    assert not any(word in index for word in ("jac", "teas", "pot", "zebra", "\u888b\u5b50"))
    assert shared_words(["jackets", "tea", "rainy", "the"], "Rain Jacket for teas") == ["jackets", "rainy"]


@pytest.mark.parametrize("ask", [lambda index: "jackets" in index, lambda index: index.find("r", limit=8)])
def test_what_begins_a_word_of_all_texts_is_found_at_the_first(ask):
    """Ranking all of 100,000 texts takes a tenth of a second, in which other requests wait."""
    steps = []
    for n in (2000, 20_000):
        index, count = WordIndex(["rain jacket"] * n), []
        index._database.set_progress_handler(lambda count=count: count.append(1), 10)
        assert ask(index)
        steps.append(len(count))
    assert steps[1] < 2 * steps[0] + 20  # of SQLite's machine; in order they would be ten times as many
