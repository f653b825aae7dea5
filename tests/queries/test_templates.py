"""Queries by templates: what they may contain, in any script, and that they can be reproduced."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.queries.item_facts import facts_of, words
from semid_lib.queries.synthesis import synthesize
from semid_lib.queries.templates import KINDS, item_queries

NAILS, HAIR = [["Beauty", "Nails", "Nail Polishes"]], [["Beauty", "Hair Care", "Shampoos & Rinses"]]
OIL = "<p>With argan oil. Made for <i>curly hair</i>.</p><script>steal()</script>"
FIELDS = ["title", "brand", "categories", "description"]
ITEMS = pd.DataFrame(
    [
        (10, "OPI Red Shatter Crackle Nail Polish, 0.5 oz", "OPI", NAILS, ""),
        (11, "Tent", "", [], ""),
        (12, "", "Nobody", [], ""),
        (13, "<b>Dry Hair</b> Shampoo for Dry Hair &amp; Skin", "Unknown", HAIR, OIL),
    ],
    columns=["item_id", *FIELDS],
)

texts = st.text(max_size=60)
brands = st.sampled_from(["", "Unknown", "L'Oréal Paris"]) | texts
items = st.tuples(texts, brands, st.lists(st.lists(texts, max_size=3), max_size=2), texts)
weights = st.dictionaries(st.sampled_from(KINDS), st.integers(1, 3))


def of(n=8, seed=0, items=ITEMS):
    return synthesize(items, n, seed=seed)


def test_the_table():
    found = of()
    assert list(found) == ["item", "query", "kind", "source"]
    assert found["item"].dtype == np.int64 and found["item"].is_monotonic_increasing
    assert set(found["item"]) == {0, 1, 3}  # the third has a brand only
    assert set(found["kind"]) <= set(KINDS)
    assert set(found["source"]) == {"templates"}
    assert found.groupby("item").size().max() == 8
    assert not found.duplicated(["item", "query"]).any()
    assert (found["query"] == found["query"].str.lower()).all()
    empty = of(items=pd.DataFrame({"title": ["", "★"]}))
    assert (len(empty), empty["item"].dtype) == (0, np.int64)


def test_every_kind_keeps_its_promise():
    by_kind: dict[str, set] = {kind: set() for kind in KINDS}
    for seed in range(40):
        for query, kind in item_queries(str(seed), 9, *ITEMS.loc[0, FIELDS]):
            by_kind[kind].add(query)
    title = words(ITEMS["title"][0])
    for query in by_kind["fragment"]:
        parts = words(query)
        assert any(title[at : at + len(parts)] == parts for at in range(len(title))), query
    for query in by_kind["words"]:
        positions = [title.index(word) for word in words(query)]
        assert positions == sorted(positions), query
    assert "opi nail polish" in by_kind["brand_type"]
    assert all(query.startswith("opi ") for query in by_kind["brand_words"])
    assert all("polish" in query or "oz" in query for query in by_kind["attribute_type"])
    assert not any(query.endswith("0.5") for query in by_kind["fragment"])  # not half an amount


def test_needs_come_from_title_and_description_without_markup():
    found = [query for seed in range(40) for query, _ in item_queries(str(seed), 8, *ITEMS.loc[3, FIELDS])]
    assert any("for dry hair" in query for query in found)
    assert any("curly hair" in query for query in found)
    assert not any(bad in words(query) for query in found for bad in ("b", "amp", "steal", "unknown", "p"))
    assert facts_of("Sony", "Sony").types == []
    assert not any(facts_of("Red pen", brand).brand for brand in ("Unknown", "n/a", ""))


@pytest.mark.parametrize(
    ("title", "letters"),
    [("Camping lantern", "cl"), ("ка\u0301менный чайник सिरेमिक", "ч")],  # words with marks stay as they are
)
def test_typos_stay_close_to_the_title(title, letters):
    typos = {query for seed in range(30) for query, kind in item_queries(str(seed), 9, title) if kind == "typo"}
    known = set(title.lower().split())
    assert typos
    for query in typos:
        wrong = [word for word in query.split() if word not in known]
        assert 1 <= len(wrong) <= 2
        assert all(min(abs(len(word) - len(right)) for right in known) <= 1 for word in wrong)
        assert all(word[0] in letters for word in wrong)


@settings(max_examples=60)
@given(items, st.integers(1, 10), st.integers(0, 5), weights)
def test_any_item_gives_clean_queries(item, n, seed, weights):
    found = item_queries(str(seed), n, *item, weights=weights)
    assert found == item_queries(str(seed), n + 5, *item, weights=weights)[:n]  # fewer are the first of more
    assert len({query for query, _ in found}) == len(found) <= n
    for query, kind in found:
        assert kind in KINDS
        assert query == " ".join(query.split())
        assert any(map(str.isalnum, query))
        assert not set(query) & set('<>"\n★™')


@given(st.text(max_size=40))
def test_words_are_whole_lower_case_and_stable(text):
    found = words(text)
    assert all(any(map(str.isalnum, word)) and not any(map(str.isspace, word)) for word in found)
    assert words(" ".join(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 oz.", ["8", "oz"]),
        ("0.5-Fluid Ounce", ["0.5", "fluid", "ounce"]),
        ("e.l.f. Brush", ["elf", "brush"]),
        ("Burt's Bees®", ["burt's", "bees"]),
        ("'quoted'", ["quoted"]),
        ("SPF 30+", ["spf", "30"]),
        ("Crème—été", ["crème", "été"]),
        ("मेकअप की किताब", ["मेकअप", "की", "किताब"]),
        ("黑色 gel", ["黑", "色", "gel"]),
        ("น้ำใส", ["น้ํ", "า", "ใ", "ส"]),  # NFKC separates the last vowel, the tone mark stays
        ("𠮷野家 moistur\u00adizer", ["𠮷", "野", "家", "moisturizer"]),
        ("★ ™ !", []),
    ],
)
def test_words_by_hand(text, expected):
    assert words(text) == expected


UNSPACED = [
    ("无线蓝牙耳机 降噪 长续航", "小米", [["电子", "耳机"]]),
    ("コーヒーカップ 北欧風 食器", "", [["キッチン", "カップ"]]),
    ("กาน้ำชาเซรามิก", "น้ำใส", [["ครัว", "กาน้ำ"]]),
]
SPACED = [
    ("블루투스 이어폰 무선", "삼성", []),
    ("कॉफ़ी मग सिरेमिक लाल", "", [["रसोई", "मग"]]),
    ("Беспроводные наушники для бега", "Sony", [["Электроника", "Наушники"]]),
    ("OPI 指甲油 红色", "OPI", [["美妆", "指甲油"]]),
]


@pytest.mark.parametrize("item", [*UNSPACED, *SPACED])
def test_other_scripts_get_queries_of_their_own_words(item):
    title, brand, categories = item
    text = unicodedata.normalize("NFKC", " ".join([title, brand, *(name for path in categories for name in path)]))
    characters = set(regex.findall(r"\X", text))
    found = [pair for seed in range(20) for pair in item_queries(str(seed), 9, title, brand, categories)]
    assert len({kind for _, kind in found}) >= 3
    for query, kind in found:
        assert kind not in ("need", "question")
        assert kind == "typo" or set(words(query)) <= set(words(text)), query
        if item in UNSPACED:
            assert kind != "typo"
            assert set(regex.findall(r"\X", query)) <= characters, query
            assert kind != "fragment" or query in unicodedata.normalize("NFKC", title).replace(" ", "")


def test_queries_depend_on_the_seed_and_the_item_only():
    alone = of(items=ITEMS.iloc[[3]].reset_index(drop=True))
    assert alone["query"].tolist() == of()[lambda table: table["item"] == 3]["query"].tolist()
    by_row = ITEMS.drop(columns="item_id")  # rows name the streams: adding items at the end changes nothing
    more = of(items=pd.concat([by_row, by_row], ignore_index=True))
    assert more[more["item"] < 4]["query"].tolist() == of(items=by_row)["query"].tolist()
    assert of(seed=0)["query"].tolist() != of(seed=1)["query"].tolist()


def test_missing_fields_are_empty_and_other_values_are_refused():
    missing = {"title": ["Red gel pen", None], "brand": [np.nan, "OPI"], "categories": [None, np.nan]}
    assert set(of(items=pd.DataFrame(missing))["item"]) == {0}
    for value in (b"Pen", 7, {"en": "Pen"}):
        with pytest.raises(ValueError, match=r"item row 1: title is .*, expected a string or null"):
            of(items=pd.DataFrame({"title": ["Red gel pen", value]}))


def test_the_demo_shop_has_queries_of_real_length_in_the_wanted_shares(demo_items):
    demo = demo_items.head(100)
    found = synthesize(demo, 8)
    assert len(found) == 8 * len(demo)
    n_words = found["query"].map(lambda query: len(words(query)))
    assert 3 <= n_words.median() <= 5
    assert n_words.quantile(0.99) <= 11
    assert found["kind"].value_counts(normalize=True).min() > 0.08  # nine kinds, evenly
    counts = synthesize(demo, 6, weights={"need": 3, "typo": 2, "fragment": 0})["kind"].value_counts()
    assert "fragment" not in counts
    assert 2.4 < counts["need"] / counts["words"] < 3.6
    assert 1.6 < counts["typo"] / counts["words"] < 2.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_per_item": 0}, "n_per_item is 0"),
        ({"items": pd.DataFrame({"name": ["x"]})}, "expected a title"),
        ({"weights": {"poem": 2}}, "poem"),
        ({"weights": {"need": -1}}, "'need': -1"),
        ({"weights": {"need": 0.5}}, "whole numbers"),
        ({"weights": dict.fromkeys(KINDS, 0)}, "not all 0"),
    ],
)
def test_synthesize_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        synthesize(**{"items": ITEMS, "n_per_item": 1} | changes)
