"""Synthetic queries: what templates may write, what the filters drop, and what a split promises."""

import os
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pandas as pd
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import killed

from semid_lib.data import dataset
from semid_lib.queries import synthesis, templates
from semid_lib.queries.endpoint import Endpoint
from semid_lib.queries.synthesis import CELLS, filter_queries, query_key, split_queries, synthesize
from semid_lib.queries.templates import KINDS, item_queries, words
from semid_lib.workbench import store

ITEMS = pd.DataFrame(
    {
        "item_id": [10, 11, 12, 13],
        "title": [
            "OPI Red Shatter Crackle Nail Polish, 0.5 oz",
            "Tent",
            "",
            "<b>Dry Hair</b> Shampoo for Dry Hair &amp; Skin",
        ],
        "brand": ["OPI", "", "Nobody", "Unknown"],
        "categories": [[["Beauty", "Nails", "Nail Polishes"]], [], [], [["Beauty", "Hair Care", "Shampoos & Rinses"]]],
        "description": ["", "", "", "<p>With argan oil. Made for <i>curly hair</i>.</p><script>steal()</script>"],
    }
)

texts = st.text(max_size=60)
fields = st.tuples(
    texts,
    st.sampled_from(["", "Unknown", "L'Oréal Paris"]) | texts,
    st.lists(st.lists(texts, max_size=3), max_size=2),
    texts,
)


def of(n=8, seed=0, items=ITEMS):
    return synthesize(items, n, seed=seed)


# --- templates ---


def test_the_table():
    found = of()
    assert list(found) == ["item", "query", "kind", "source"]
    assert found["item"].dtype == np.int64
    assert found["item"].is_monotonic_increasing
    assert set(found["item"]) == {0, 1, 3}  # the third has no text but a brand
    assert set(found["kind"]) <= set(KINDS)
    assert set(found["source"]) == {"templates"}
    assert found.groupby("item").size().max() == 8
    assert not found.duplicated(["item", "query"]).any()
    assert (found["query"] == found["query"].str.lower()).all()


def test_an_item_without_text_alone_gives_an_empty_table():
    found = of(items=pd.DataFrame({"title": ["", "★"]}))
    assert len(found) == 0
    assert found["item"].dtype == np.int64


def test_every_kind_says_what_it_promises():
    by_kind: dict[str, set] = {kind: set() for kind in KINDS}
    for seed in range(40):
        for query, kind in item_queries(str(seed), 9, *ITEMS.loc[0, ["title", "brand", "categories", "description"]]):
            by_kind[kind].add(query)
    title = words(ITEMS["title"][0])
    for query in by_kind["fragment"]:
        parts = words(query)
        assert any(title[i : i + len(parts)] == parts for i in range(len(title))), query
    for query in by_kind["words"]:
        positions = [title.index(word) for word in words(query)]
        assert positions == sorted(positions), query
    assert "opi nail polish" in by_kind["brand_type"]
    assert all(query.startswith("opi ") for query in by_kind["brand_words"])
    assert all("polish" in query or "oz" in query for query in by_kind["attribute_type"])
    assert not any(query.endswith("0.5") for query in by_kind["fragment"])  # not half an amount


def test_needs_come_from_title_and_description_without_markup():
    found = [query for seed in range(40) for query in of(seed=seed)[lambda table: table["item"] == 3]["query"]]
    assert any("for dry hair" in query for query in found)
    assert any("curly hair" in query for query in found)
    assert not any(bad in words(query) for query in found for bad in ("b", "amp", "steal", "unknown", "p"))


def test_typos_stay_close_to_the_title():
    typos = {q for seed in range(60) for q, kind in item_queries(str(seed), 9, "Camping lantern") if kind == "typo"}
    assert typos
    known = {"camping", "lantern"}
    for query in typos:
        wrong = [word for word in query.split() if word not in known]
        assert 1 <= len(wrong) <= 2
        assert all(min(abs(len(word) - len(right)) for right in known) <= 1 for word in wrong)
        assert all(word[0] in "cl" for word in wrong)


@settings(max_examples=150)
@given(fields, st.integers(1, 12), st.integers(0, 5))
def test_any_item_gives_clean_queries(item, n, seed):
    found = item_queries(str(seed), n, *item)
    assert found == item_queries(str(seed), n, *item)
    assert len(found) <= n
    assert len({query for query, _ in found}) == len(found)
    assert found[:n] == item_queries(str(seed), n + 5, *item)[:n]  # fewer queries are the first of more
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
        ("★ ™ !", []),
    ],
)
def test_words_by_hand(text, expected):
    assert words(text) == expected


ELSEWHERE = [
    ("无线蓝牙耳机 降噪 长续航", "小米", [["电子", "耳机"]]),
    ("コーヒーカップ 北欧風 食器", "", [["キッチン", "カップ"]]),
    ("กระเป๋าเดินทาง สีแดง", "", []),
    ("กาน้ำชาเซรามิก", "น้ำใส", [["ครัว", "กาน้ำ"]]),
    ("블루투스 이어폰 무선", "삼성", []),
    ("कॉफ़ी मग सिरेमिक लाल", "", [["रसोई", "मग"]]),
    ("Беспроводные наушники для бега", "Sony", [["Электроника", "Наушники"]]),
    ("سماعات لاسلكية سوداء", "", []),
    ("OPI 指甲油 红色", "OPI", [["美妆", "指甲油"]]),
]


@pytest.mark.parametrize("item", ELSEWHERE)
def test_no_english_is_written_around_other_scripts(item):
    title, brand, categories = item
    own = set(words(" ".join([title, brand, *(name for path in categories for name in path)])))
    found = [pair for seed in range(20) for pair in item_queries(str(seed), 9, title, brand, categories)]
    assert len({kind for _, kind in found}) >= 3
    for query, kind in found:
        assert kind not in ("need", "question")
        assert kind == "typo" or set(words(query)) <= own, query


@pytest.mark.parametrize("item", ELSEWHERE[:4])
def test_scripts_without_spaces_have_whole_characters_in_their_order(item):
    title, brand, categories = item
    text = " ".join([title, brand, *(name for path in categories for name in path)])
    characters = set(regex.findall(r"\X", unicodedata.normalize("NFKC", text)))
    for seed in range(20):
        for query, kind in item_queries(str(seed), 9, title, brand, categories):
            assert kind != "typo"
            assert set(regex.findall(r"\X", query)) <= characters, query
            assert kind != "fragment" or query in unicodedata.normalize("NFKC", title).replace(" ", "")


def test_typos_leave_words_with_marks_alone():
    title = "ка\u0301менный чайник सिरेमिक"  # the first letter has no composed form
    typos = [q for seed in range(40) for q, kind in item_queries(str(seed), 9, title) if kind == "typo"]
    changed = {word for query in typos for word in query.split()} - set(title.split())
    assert changed
    assert all(word.startswith("ч") for word in changed)


def test_words_of_scripts_without_spaces():
    assert words("น้ำใส") == ["น้ํ", "า", "ใ", "ส"]  # NFKC parts the last vowel, the tone mark stays
    assert words("無線イヤホン", n_characters=2) == ["無線", "イヤ", "ホン"]
    assert words("𠮷野家 moistur\u00adizer") == ["𠮷", "野", "家", "moisturizer"]


def test_text_ids_name_the_same_streams_in_every_process():
    code = """import pandas as pd
from semid_lib.queries.synthesis import synthesize
items = pd.DataFrame({"item_id": ["SKU-ä", "B00"], "title": ["Two-person camping tent", "Red gel pen, fine"]})
print(synthesize(items, 4)["query"].tolist())"""
    runs = {
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    items = pd.DataFrame({"item_id": ["B00", "SKU-ä"], "title": ["Red gel pen, fine", "Two-person camping tent"]})
    found = synthesize(items, 4)  # in another order: the id names the stream, not the row
    assert runs == {f"{[*found['query'][found['item'] == 1], *found['query'][found['item'] == 0]]}\n"}


def test_missing_fields_are_empty_and_other_values_are_refused():
    missing = {"title": ["Red gel pen", None], "brand": [np.nan, "OPI"], "categories": [None, np.nan]}
    assert set(of(items=pd.DataFrame(missing))["item"]) == {0}
    for value in (b"Pen", 7, {"en": "Pen"}):
        with pytest.raises(ValueError, match=r"item row 1: title is .*, expected text"):
            of(items=pd.DataFrame({"title": ["Red gel pen", value]}))


@pytest.mark.parametrize("title", ["$5 & up: 2 for $8 pens", "☕💛 Café mug 👩🏽‍🍳", "pen\u200b \u202egel\u202c"])
def test_any_title_gives_queries_that_a_file_can_hold(title, tmp_path):
    found = of(items=pd.DataFrame({"item_id": ["A-1"], "title": [title]}))
    assert len(found)
    found.to_parquet(tmp_path / "queries.parquet")
    assert pd.read_parquet(tmp_path / "queries.parquet")["query"].tolist() == found["query"].tolist()


def test_an_item_does_not_know_of_the_others():
    alone = of(items=ITEMS.iloc[[3]].reset_index(drop=True))
    among = of()[lambda table: table["item"] == 3]
    assert alone["query"].tolist() == among["query"].tolist()
    by_row = ITEMS.drop(columns="item_id")  # without ids, rows name the streams: adding at the end changes nothing
    more = of(items=pd.concat([by_row, by_row], ignore_index=True))
    assert more[more["item"] < 4]["query"].tolist() == of(items=by_row)["query"].tolist()


def test_seeds_differ():
    assert of(seed=0)["query"].tolist() == of(seed=0)["query"].tolist()
    assert of(seed=0)["query"].tolist() != of(seed=1)["query"].tolist()


def test_a_bare_title_is_enough():
    found = of(items=pd.DataFrame({"title": ["Two-person camping tent with storm guys"]}))
    assert len(found) == 8


def test_one_word_gives_a_few_and_no_nonsense():
    found = of(items=pd.DataFrame({"title": ["Moroccanoil"]}))
    assert 3 <= len(found) <= 8
    assert (found["query"].str.len() >= 9).all()


def test_the_demo_shop_is_fast_and_of_real_length():
    items = dataset.load("demo").items
    started = time.perf_counter()
    found = synthesize(items, 8)
    assert len(found) / (time.perf_counter() - started) > 3000  # 30,000 on a core of its own
    assert len(found) == 8 * len(items)
    n_words = found["query"].map(lambda query: len(words(query)))
    assert 3 <= n_words.median() <= 5
    assert n_words.quantile(0.99) <= 11
    assert found["kind"].value_counts(normalize=True).min() > 0.08  # nine kinds, evenly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_per_item": 0}, "n_per_item is 0"),
        ({"n_per_item": 1, "source": "guesses"}, "source is 'guesses'"),
    ],
)
def test_synthesize_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthesize(ITEMS, **arguments)


def test_synthesize_needs_titles():
    with pytest.raises(ValueError, match="expected a title"):
        synthesize(pd.DataFrame({"name": ["x"]}), 1)


# --- filters ---


def table(*rows):
    return pd.DataFrame(rows, columns=["item", "query"])


@given(st.lists(st.sampled_from(["red", "Gel,", "dry-hair", "PEN", "l'oreal"]), min_size=1, max_size=5), st.randoms())
def test_a_key_knows_no_case_order_or_punctuation(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert query_key(" ".join(parts)) == query_key("  ".join(part.upper() for part in shuffled) + "!")


def test_a_key_knows_its_words():
    assert query_key("red pen") != query_key("red pens")
    assert query_key("pen pen") != query_key("pen")


def test_title_leaks_by_hand():
    titles = ["OPI Red Shatter Crackle Nail Polish", "Tent", "", "Gel pen"]
    asked = table(
        (0, "opi red shatter crackle nail polish"),  # the title
        (0, "nail polish, red shatter crackle"),  # five of its six words
        (0, "where can i buy red shatter crackle nail polish"),  # with something around it
        (0, "red nail polish"),
        (0, "opi red nail polish"),  # four of six
        (1, "tent"),
        (1, "tent for two"),
        (2, "anything at all"),
        (3, "pen gel"),
        (3, "red gel pen"),
    )
    leaks = synthesis.leaks_title(asked, titles)
    assert leaks.tolist() == [True, True, True, False, False, True, False, False, True, False]


def test_length_by_hand():
    asked = table((0, "pen"), (0, "red pen"), (0, "a b c d"), (0, ""))
    assert synthesis.wrong_length(asked, 2, 3).tolist() == [True, False, True, True]


def test_repeated_is_within_an_item_and_ambiguous_between_them():
    asked = table((0, "red pen"), (0, "Pen, red!"), (1, "red pen"), (1, "blue pen"))
    assert synthesis.repeated(asked).tolist() == [False, True, False, False]
    assert synthesis.ambiguous(asked).tolist() == [True, True, True, False]


def test_round_trip_ranks_are_those_of_a_full_sort(monkeypatch):
    monkeypatch.setattr(synthesis, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    item_vectors = rng.normal(size=(50, 5)).astype(np.float32)
    query_vectors = rng.normal(size=(30, 5)).astype(np.float32) * 3
    rows = rng.integers(50, size=30)
    unit = item_vectors / np.linalg.norm(item_vectors, axis=1, keepdims=True)
    order = np.argsort(-(query_vectors @ unit.T), axis=1)
    expected = 1 + np.argmax(order == rows[:, None], axis=1)
    np.testing.assert_array_equal(synthesis.round_trip_ranks(rows, query_vectors, item_vectors), expected)


def test_equal_items_do_not_push_each_other_down():
    vectors = np.tile(np.float32([0.3, 0.7, 0.1]), (40, 1))
    assert (synthesis.round_trip_ranks(np.arange(40), vectors, vectors) == 1).all()


def test_a_zero_vector_is_no_division_by_zero():
    assert synthesis.round_trip_ranks([0], np.zeros((1, 2)), np.eye(2)).tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "asked", "items", "message"),
    [
        ([0, 1], np.eye(3)[:1], np.eye(3), r"expected \(2, dim\)"),
        ([0], np.eye(2)[:1], np.eye(3), "expected"),
        ([3], np.eye(3)[:1], np.eye(3), "expected 0 to 2"),
        ([-1], np.eye(3)[:1], np.eye(3), "expected 0 to 2"),
        ([0], np.array([[np.nan, 0, 0]]), np.eye(3), "not finite"),
    ],
)
def test_round_trip_refuses(rows, asked, items, message):
    with pytest.raises(ValueError, match=message):
        synthesis.round_trip_ranks(rows, asked, items)


def filtered(**options):
    asked = table(
        (0, "pen"),  # too short
        (0, "red pen"),
        (0, "Pen, red"),  # repeated
        (0, "fine red gel pen"),  # the title
        (1, "red pen"),  # as of item 0
        (1, "blue ink"),
    )
    asked.index = [10, 11, 12, 13, 14, 15]
    return filter_queries(asked, ["Fine red gel pen", "Blue ink pen for school"], **options)


def test_the_report_adds_up():
    kept, report = filtered()
    assert kept.index.tolist() == [11, 14, 15]
    assert report["filter"].tolist() == ["length", "repeated", "title", "ambiguous"]
    assert report["found"].tolist() == [1, 1, 1, 2]
    assert report["dropped"].tolist() == [1, 1, 1, 0]
    assert report["left"].tolist() == [5, 4, 3, 3]
    assert report["examples"].tolist() == ["pen", "Pen, red", "fine red gel pen", "red pen | red pen"]


def test_ambiguous_queries_go_on_request():
    kept, report = filtered(drop_ambiguous=True)
    assert kept["query"].tolist() == ["blue ink"]
    assert report["dropped"].tolist() == [1, 1, 1, 2]


def test_the_round_trip_comes_last_and_keeps_vectors_with_their_queries():
    vectors = np.eye(2)[[1, 0, 0, 0, 0, 1]]  # the first is lost and too short anyway; the fifth finds the wrong item
    kept, report = filtered(query_vectors=vectors, item_vectors=np.eye(2), k=1)
    assert kept.index.tolist() == [11, 15]
    assert report.iloc[-1].tolist() == ["round trip", 1, 1, 2, "red pen"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_vectors": np.eye(2)}, "only one of"),
        ({"query_vectors": np.eye(2), "item_vectors": np.eye(2)}, "2 query vectors, expected 6"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_filter_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        filtered(**options)


def test_nothing_to_filter():
    kept, report = filter_queries(of(items=pd.DataFrame({"title": [""]})), [""])
    assert len(kept) == 0
    assert report["left"].tolist() == [0, 0, 0, 0]


@settings(max_examples=30)
@given(st.integers(0, 1000), st.booleans())
def test_what_is_kept_stays_kept(seed, drop_ambiguous):
    asked = synthesize(ITEMS, 9, seed=seed)
    once, report = filter_queries(asked, ITEMS["title"], drop_ambiguous=drop_ambiguous)
    assert report["dropped"].sum() == len(asked) - len(once)
    twice, again = filter_queries(once, ITEMS["title"], drop_ambiguous=drop_ambiguous)
    pd.testing.assert_frame_equal(once, twice)
    assert again["dropped"].sum() == 0


# --- split ---


@pytest.fixture(scope="module")
def asked():
    return synthesize(dataset.load("demo").items.head(300), 9)


@pytest.mark.parametrize("seed", range(3))
def test_a_split_keeps_its_promises(asked, seed):
    train, test, kinds, n_dropped = split_queries(asked, 0.2, seed)
    assert len(train) + len(test) + n_dropped == len(asked)
    assert not set(train.index) & set(test.index)
    assert not set(train["query"].map(query_key)) & set(test["query"].map(query_key))
    assert len(kinds) == 2
    assert not set(kinds) & set(train["kind"])
    assert set(test["cell"]) == set(CELLS)
    new_item = ~test["item"].isin(train["item"])
    new_kind = test["kind"].isin(kinds)
    assert (test["cell"] == [CELLS[2 * i + k] for i, k in zip(new_item, new_kind, strict=True)]).all()
    assert abs(test[new_item]["item"].nunique() / 300 - 0.2) < 0.02
    pd.testing.assert_frame_equal(train, asked.loc[train.index])  # nothing but the rows changes


def test_a_split_is_drawn_from_its_seed(asked):
    first, again, other = (split_queries(asked, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.test, again.test)
    assert set(first.test.index) != set(other.test.index)


def test_kinds_can_be_named_or_none(asked):
    assert split_queries(asked, held_out_kinds=["need", "typo"]).held_out_kinds == ("need", "typo")
    assert set(split_queries(asked, held_out_kinds=[]).test["cell"]) == {CELLS[0], CELLS[2]}


def test_a_single_kind_is_not_held_out(asked):
    split = split_queries(asked[asked["kind"] == "need"])
    assert split.held_out_kinds == ()
    assert set(split.test["cell"]) <= {CELLS[0], CELLS[2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 0.0}, "test_share is 0.0"),
        ({"test_share": 1.0}, "test_share is 1.0"),
        ({"held_out_kinds": ["poem"]}, "poem"),
        ({"held_out_kinds": list(KINDS)}, "give 0 to train on"),
    ],
)
def test_split_refuses(asked, options, message):
    with pytest.raises(ValueError, match=message):
        split_queries(asked, **options)


def test_all_in_the_same_words_cannot_be_split():
    same = pd.DataFrame({"item": range(20), "query": "pen", "kind": "words"})
    with pytest.raises(ValueError, match="0 to test on"):
        split_queries(same)


def test_brands_that_are_none():
    for brand in ("Unknown", "n/a", ""):
        assert not templates._facts("Red pen", brand, [], "").brand


# --- weights ---


def test_equal_weights_are_the_default():
    pd.testing.assert_frame_equal(of(), synthesize(ITEMS, 8, weights=dict.fromkeys(KINDS, 1)))


def test_weights_are_turns_in_a_round():
    weights = {"need": 3, "typo": 2, "fragment": 0}
    items = dataset.load("demo").items.head(400)
    counts = synthesize(items, 6, weights=weights)["kind"].value_counts()
    assert "fragment" not in counts
    assert 2.4 < counts["need"] / counts["words"] < 3.6
    assert 1.6 < counts["typo"] / counts["words"] < 2.4


@settings(max_examples=30)
@given(fields, st.integers(1, 10), st.dictionaries(st.sampled_from(KINDS), st.integers(1, 3)))
def test_fewer_queries_are_the_first_of_more_with_weights_too(item, n, weights):
    found = item_queries("a", n, *item, weights=weights)
    assert found == item_queries("a", n + 4, *item, weights=weights)[:n]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"poem": 2}, "poem"),
        ({"need": -1}, "'need': -1"),
        ({"need": 0.5}, "whole numbers"),
        (dict.fromkeys(KINDS, 0), "all weights are 0"),
    ],
)
def test_weights_refuse(weights, message):
    with pytest.raises(ValueError, match=message):
        synthesize(ITEMS, 4, weights=weights)


def test_a_language_model_takes_no_weights():
    with pytest.raises(ValueError, match="for templates only"):
        synthesize(ITEMS, 4, source=Endpoint("http://127.0.0.1:9/v1", "any"), weights={"need": 2})


# --- the artefact ---


@pytest.fixture
def shelf(tmp_path):
    return store.Store("demo", "smoke", "a" * 64, root=tmp_path)


def made(seed=0):
    asked = synthesize(dataset.load("demo").items.head(50), 6, seed=seed)
    train, test, _, _ = split_queries(asked)
    return train, test, *(np.random.default_rng(seed).normal(size=(len(part), 4)) for part in (train, test))


def saved(shelf, seed=0):
    parts = made(seed)
    synthesis.save_queries(shelf, *parts, embedder="none")
    return parts


def test_saved_queries_come_back(shelf):
    train, test, train_vectors, test_vectors = saved(shelf)
    back = synthesis.load_queries(shelf)
    pd.testing.assert_frame_equal(back.train, train.reset_index(drop=True))
    pd.testing.assert_frame_equal(back.test, test.reset_index(drop=True), check_dtype=False)
    assert back.train_vectors.dtype == np.float32
    np.testing.assert_allclose(back.train_vectors, train_vectors, atol=2e-3)
    np.testing.assert_allclose(back.test_vectors, test_vectors, atol=2e-3)
    assert shelf.load("synthetic_queries").facts["embedder"] == "none"


def test_an_empty_test_can_be_saved(shelf):
    train, test, train_vectors, test_vectors = saved(shelf)
    synthesis.save_queries(shelf, train, test[:0], train_vectors, test_vectors[:0])
    assert len(synthesis.load_queries(shelf).test) == 0


@pytest.mark.parametrize("seed", range(40))
def test_two_items_can_be_split(seed):
    asked = pd.DataFrame({"item": [0, 1], "query": ["red pen", "blue tent"], "kind": "words"})
    split = split_queries(asked, test_share=0.6, seed=seed, held_out_kinds=[])
    assert (len(split.train), len(split.test)) == (1, 1)
    assert split.test["cell"].tolist() == ["unseen item, seen kind"]


def test_a_killed_writer_leaves_the_old_queries_or_the_new(shelf):
    old, new = saved(shelf), made(seed=1)
    asked = {tuple(parts[0]["query"]): parts for parts in (old, new)}
    for attempt in range(20):
        finished = killed(lambda: synthesis.save_queries(shelf, *new), 0.002 * attempt)
        found = synthesis.load_queries(shelf)
        parts = asked[tuple(found.train["query"])]
        np.testing.assert_allclose(found.train_vectors, parts[2], atol=2e-3)
        np.testing.assert_allclose(found.test_vectors, parts[3], atol=2e-3)
        assert parts is new or not finished


def test_queries_of_an_older_version_are_refused(shelf):
    shelf.save("synthetic_queries", {"train_vectors": np.eye(2)})
    with pytest.raises(ValueError, match="holds no texts: run the chapter"):
        synthesis.load_queries(shelf)


def test_queries_of_other_data_are_refused(shelf, tmp_path):
    with pytest.raises(FileNotFoundError, match="synthetic_queries"):
        synthesis.load_queries(shelf)
    saved(shelf)
    with pytest.raises(ValueError, match="other data"):
        synthesis.load_queries(store.Store("demo", "smoke", "b" * 64, root=tmp_path))


def test_a_vector_for_every_query(shelf):
    train, test, train_vectors, test_vectors = saved(shelf)
    with pytest.raises(ValueError, match="vectors, expected as many"):
        synthesis.save_queries(shelf, train, test, train_vectors[1:], test_vectors)
