"""Loading, checking, splitting and writing a data set, on cases that can be checked by hand."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.data import dataset
from semid_lib.data.dataset import Histories
from semid_lib.data.folder import fingerprint, has_histories, write_folder
from semid_lib.data.readers import is_nothing
from semid_lib.workbench.text import has_controls, normal

ITEMS = [
    {"item_id": 10, "title": "Red lipstick", "brand": "Aurora", "categories": [["Make-up", "Lips"]], "price": 9.5},
    {"item_id": 7, "title": "Soap", "brand": None, "categories": ["Bath"], "colours": ["white"]},
    {"item_id": 42, "title": ""},
]


def write(folder: Path, **files: str | bytes) -> Path:
    """Files by name, with `__` for the dot: items__jsonl="..."."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def jsonl(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def lists(histories: Histories) -> list[list[int]]:
    return [history.tolist() for history in histories]


# --- load ---


def test_load_keeps_every_field_in_file_order(tmp_path):
    shop = dataset.load(write(tmp_path / "shop", items__jsonl=jsonl(*ITEMS)))
    assert (shop.name, shop.histories, shop.queries) == ("shop", None, None)
    assert shop.items["item_id"].dtype == np.int64
    assert shop.items.to_dict("list") == {
        "item_id": [10, 7, 42],
        "title": ["Red lipstick", "Soap", ""],
        "brand": ["Aurora", "", ""],
        "categories": [[["Make-up", "Lips"]], [["Bath"]], []],
        "price": [9.5, None, None],
        "colours": [None, ["white"], None],
    }
    found = {"n_items": 3, "empty_titles": 1, "empty_brands": 2, "items_without_categories": 1}
    assert {name: count for name, count in shop.counts.items() if count} == found
    assert dataset.leaf_categories(shop.items).tolist() == ["Lips", "Bath", ""]
    assert shop.item_ids.rows([42, "10"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match="position 1: item id 5 is not in the catalogue"):
        shop.item_ids.rows([10, 5])


def test_load_histories_times_and_queries(tmp_path):
    folder = write(
        tmp_path,
        items__jsonl="\ufeff" + jsonl(*ITEMS) + "\n\n",
        sequences__tsv="ann\t7 10 7 7\r\nbob\t\ncem\t10 10 10\n",
        timestamps__tsv="ann\t5 5 6 6\nbob\t\ncem\t1 2 3\n",
        queries_b__jsonl=jsonl({"query": "soap", "item_ids": [7], "split": "test"}),
        queries_a__jsonl=jsonl({"query": "red", "item_ids": [42, 10]}),
    )
    shop = dataset.load(folder)
    assert shop.histories.user_ids.tolist() == ["ann", "bob", "cem"]
    assert lists(shop.histories) == [[1, 0, 1, 1], [], [0, 0, 0]]
    assert shop.histories.times.tolist() == [5, 5, 6, 6, 1, 2, 3]
    assert shop.queries["query"].tolist() == ["red", "soap"]
    assert [rows.tolist() for rows in shop.queries["item_rows"]] == [[2, 0], [1]]
    assert shop.queries["source"].tolist() == ["queries_a", "queries_b"]
    assert shop.queries["split"].tolist() == [None, "test"]
    names = ("items_without_interactions", "empty_histories", "histories_under_3", "repeated_interactions")
    assert [shop.counts[name] for name in names] == [1, 1, 1, 4]


def test_histories_as_json_lines(tmp_path):
    lines = [
        {"user_id": "a\tb", "item_ids": [7, "10"], "timestamps": [5, 6]},
        {"user_id": 5, "item_ids": [], "timestamps": []},
    ]
    shop = dataset.load(write(tmp_path, items__jsonl=jsonl(*ITEMS), sequences__jsonl=jsonl(*lines)))
    assert shop.histories.user_ids.tolist() == ["a\tb", "5"]
    assert lists(shop.histories) == [[1, 0], []]
    assert shop.histories.times.tolist() == [5, 6]


def test_times_since_the_first_interaction(tmp_path):
    shop = write(tmp_path, items__jsonl=GOOD, sequences__tsv="ann\t1 1\nbob\t\ncem\t1 1 1\n")
    before = fingerprint(shop)
    (shop / "relative_time.tsv.gz").write_bytes(gzip.compress(b"ann\t0 5\nbob\t\ncem\t0 86400 86401\n"))
    assert fingerprint(shop) != before
    histories = dataset.load(shop).histories
    assert histories.times_are_relative and histories.times.tolist() == [0, 5, 0, 86400, 86401]
    split = dataset.leave_one_out(histories)
    assert split.train.times_are_relative and split.test.histories.times_are_relative
    assert (split.validation.later_day.tolist(), split.test.later_day.tolist()) == ([True], [False])
    assert dataset.same_time_share(histories) == 0
    with pytest.raises(ValueError, match=r"times count from each user's first interaction, expected Unix seconds"):
        dataset.time_split(histories)
    (shop / "timestamps.tsv").touch()
    with pytest.raises(ValueError, match=r"holds both timestamps\.tsv and relative_time\.tsv"):
        dataset.load(shop)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("1 2", "line 1: the first time is 1, expected 0: seconds since"),
        ("0 1400000000000", "line 1: time 1400000000000 is more than a century, expected seconds since"),
        ("0 -1", r"line 1: times \[0, -1\] go backwards"),
        ("0", "line 1: times are .*expected 2 integers"),
    ],
)
def test_bad_times_since_the_first_interaction(tmp_path, times, message):
    shop = write(tmp_path, items__jsonl=GOOD, sequences__tsv="ann\t1 1\n", relative_time__tsv=f"ann\t{times}\n")
    with pytest.raises(ValueError, match=rf"relative_time\.tsv, {message}"):
        dataset.load(shop)


def test_relative_times_need_their_sequences(tmp_path):
    with pytest.raises(ValueError, match=r"relative_time\.tsv but no sequences\.tsv"):
        dataset.load(write(tmp_path, items__jsonl=GOOD, relative_time__tsv="ann\t0\n"))


BAD_JSON_HISTORIES = [
    ({"item_ids": [1]}, r"the fields are \['item_ids'\], expected also 'user_id'"),
    ({"user_id": None, "item_ids": [1]}, "user_id is None, expected text"),
    ({"user_id": "bob", "item_ids": "1"}, "item_ids is '1', expected a list of item ids"),
    ({"user_id": "bob", "item_ids": [1]}, "timestamps in some lines only, expected them in all lines or in none"),
    ({"user_id": "bob", "item_ids": [1], "timestamps": [1.5]}, r"time 1\.5 is not a whole number"),
]


@pytest.mark.parametrize(("record", "message"), BAD_JSON_HISTORIES)
def test_bad_histories_as_json_lines(tmp_path, record, message):
    lines = jsonl({"user_id": "ann", "item_ids": [1], "timestamps": [1]}, record)
    with pytest.raises(ValueError, match=rf"sequences\.jsonl, line 2(: |, ){message}"):
        dataset.load(write(tmp_path, items__jsonl=GOOD, sequences__jsonl=lines))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "sequences.csv",
            "Sequences.tsv",
            "interactions.csv.gz",
            "orders.parquet",
            "timestamps.csv",
            "relative_time.csv",
            "query.jsonl",
        ),
        *("items.xlsx", "orders_2024.csv", "sequences (1).tsv"),
    ],
)
def test_a_file_that_looks_meant_is_not_ignored(tmp_path, name):
    write(tmp_path, items__jsonl=GOOD)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is not read, but looks like .*, expected .*import it"):
        dataset.load(tmp_path)


def test_other_files_are_left_alone(tmp_path):
    write(tmp_path, items__jsonl=GOOD, sequences__tsv="ann\t1\n")
    names = ["README.md", "notes.txt", "data_dictionary.csv", "orders_schema.json", "LICENSE.txt", ".DS_Store"]
    for name in [*names, "orders.csv", "products.csv", "judged_dev.jsonl", "sequences.md"]:
        (tmp_path / name).touch()
    assert dataset.load(tmp_path).counts["n_users"] == 1


def test_what_could_not_be_saved_after_training_is_refused_at_once(tmp_path):
    lines = jsonl({"item_id": 1, "title": "", "price": 3.5}, {"item_id": 2, "title": "", "price": "None"})
    with pytest.raises(ValueError, match=r"items\.jsonl: column 'price' is 3.5 in line 1 and 'None' in line 2"):
        dataset.load(write(tmp_path, items__jsonl=lines))


def test_words_for_nothing_and_spellings_of_text(tmp_path):
    records = [
        {"item_id": 1, "title": "Cafe\u0301", "brand": "NULL"},
        {"item_id": 2, "title": "nan", "brand": "Aurora"},
    ]
    shop = dataset.load(write(tmp_path, items__jsonl=jsonl(*records)))
    assert shop.items[["title", "brand"]].to_numpy().tolist() == [["Caf\u00e9", ""], ["", "Aurora"]]
    assert shop.counts["empty_titles"] == shop.counts["empty_brands"] == 1


# --- bad input ---

GOOD = jsonl({"item_id": 1, "title": "Soap"})

BAD_ITEMS = [  # fields of the second line; what is no table or JSON at all is tested with `readers`
    ('{"title": "x"}', r"items.jsonl, line 2: the fields are \['title'\], expected also 'item_id'"),
    ('{"item_id": 2}', r"items.jsonl, line 2: the fields are \['item_id'\], expected also 'title'"),
    ('{"item_id": 1.5, "title": ""}', r"line 2: item_id is 1\.5, expected an integer"),
    ('{"item_id": " ", "title": ""}', "line 2: item_id is ' ', expected an integer in int64 or text"),
    ('{"item_id": "a\\tb", "title": ""}', "line 2: item_id is .*, expected an integer or text without"),
    ('{"item_id": 2, "title": ""}\n' + GOOD, "line 3: item_id 1 occurs before, in items.jsonl, line 1"),
    ('{"item_id": 2, "title": 5}', "line 2: title is 5, expected a string"),
    ('{"item_id": 2, "title": "", "categories": "[a"}', "line 2: categories is .* neither JSON nor a Python literal"),
    ('{"item_id": 2, "title": "", "categories": [[]]}', r"line 2: categories is \[\[\]\], expected"),
]
BAD_CSV = [
    ("id,title\n1,Soap\n", r"items.csv has no column 'item_id', expected one of \['id', 'title'\]"),
    ('item_id,title\n1,"So\nap"\n1.0,Soap\n', r"items.csv, line 4: item_id 1 occurs before, in items.csv, line 2"),
    ("item_id,title\nNULL,a\n", "line 2: item_id is 'NULL', expected an integer in int64 or text"),
]
BAD_SEQUENCES = [
    ("ann\t1\nbob 1\n", r"sequences.tsv, line 2: the line is 'bob 1', expected a user id, a tab"),
    ("ann\t1\n\t1\n", "line 2: .*expected a user id"),
    ("ann\t1\nbob\t1_0\n", "line 2, position 0: item id '1_0' is not in the catalogue"),
    ("ann\t1\nbob\t1\nann\t1\n", "line 3: user 'ann' occurs before, in line 1"),
    ("ann\t1\nNULL\t1\n", "line 2: user 'NULL' is a word for a missing value"),
    ("", "sequences.tsv is empty"),
]
BAD_TIMES = [
    ("ann\t5 6\n", "timestamps.tsv, line 2: no more users, expected user 'bob' as in the sequences"),
    ("ann\t5 6\nbob\t7\ncem\t8\n", "timestamps.tsv, line 3: user 'cem', expected no more users as in the sequences"),
    ("ann\t1400000000 1400000001\nbob\t1400000000000\n", "line 2: .* Unix milliseconds, expected Unix seconds"),
    ("ann\t1400000000 1400000001\nbob\t1400000000000000000\n", "line 2: .* Unix nanoseconds, expected Unix seconds"),
    ("ann\t5 6\nbob\t7 8\n", r"line 2: times are \['7', '8'\], expected 1 integers, as many as items"),
    ("ann\t6 5\nbob\t7\n", r"line 1: times \[6, 5\] go backwards"),
    ("ann\t5 6.5\nbob\t7\n", r"line 1: time '6\.5' is not a whole number of seconds"),
]
BAD_QUERIES = [
    ({"item_ids": [1]}, "queries_x.jsonl, line 2: .*expected also 'query'"),
    ({"query": " ", "item_ids": [1]}, "line 2: query is ' ', expected some text"),
    ({"query": "a", "item_ids": []}, r"line 2: item_ids is \[\], expected at least one item id, each once"),
    ({"query": "a", "item_ids": [1, "1"]}, r"line 2: item_ids is \[1, '1'\], .*each once"),
    ({"query": "a", "item_ids": [1], "source": "b"}, "queries_x.jsonl has a field 'source'"),
]
TWO_USERS = {"items__jsonl": GOOD, "sequences__tsv": "ann\t1 1\nbob\t1\n"}
SOAP = jsonl({"query": "soap", "item_ids": [1]})
BAD_FILES = [
    *(({"items__jsonl": GOOD + line}, message) for line, message in BAD_ITEMS),
    *(({"items__csv": content}, message) for content, message in BAD_CSV),
    *(({"items__jsonl": GOOD, "sequences__tsv": content}, message) for content, message in BAD_SEQUENCES),
    *((TWO_USERS | {"timestamps__tsv": content}, message) for content, message in BAD_TIMES),
    *(({"items__jsonl": GOOD, "queries_x__jsonl": SOAP + jsonl(query)}, message) for query, message in BAD_QUERIES),
    ({"items__jsonl": ""}, r"items\.jsonl is empty, expected at least one record"),
    ({}, r"holds no items, looked for items.jsonl, .*items.parquet"),
    ({"items__jsonl": GOOD, "timestamps__tsv": "a\t1"}, r"has timestamps\.tsv but no sequences\.tsv: add it, or"),
    ({"items__jsonl": GOOD, "items__jsonl__gz": ""}, r"holds both items\.jsonl and items\.jsonl\.gz"),
    ({"items__jsonl__gz": gzip.compress(GOOD.encode())[:-12]}, r"items\.jsonl\.gz: truncated or corrupt gzip"),
]


@pytest.mark.parametrize(("files", "message"), BAD_FILES, ids=[message[-50:] for _, message in BAD_FILES])
def test_bad_files(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        dataset.load(write(tmp_path, **files))
    with pytest.raises(ValueError, match=r"nowhere is not a folder, expected .*items.parquet"):
        dataset.load(tmp_path / "nowhere")


# --- histories ---


def test_histories_behave_as_a_sequence():
    histories = Histories.from_lists([[4, 2], [], [7]], user_ids=["a", "b", "c"], times=[[1, 2], [], [0]])
    assert len(histories) == 3
    assert lists(histories) == [[4, 2], [], [7]]
    assert histories[-1].tolist() == [7]
    assert np.shares_memory(histories[0], histories.items)
    with pytest.raises(IndexError):
        histories[3]
    chosen = histories.select(np.array([False, True, True]))
    assert lists(chosen) == [[], [7]]
    assert chosen.user_ids.tolist() == ["b", "c"]
    assert chosen.times.tolist() == [0]
    assert lists(histories.select([2, 2, 0])) == [[7], [7], [4, 2]]
    assert lists(Histories.from_lists([])) == []


def test_times_that_do_not_fit():
    for times, message in (
        ([[9], [], [5, 4]], r"'b' are \[5, 4\], expected 2 in"),
        ([[9], [1], []], "'y' are .*, expected 0"),
    ):
        with pytest.raises(ValueError, match=f"times of user {message}"):
            Histories.from_lists([[1], [], [2, 3]], user_ids=["x", "y", "b"], times=times)


# --- split ---

FOUR = Histories.from_lists(
    [[1, 2, 3, 4], [5, 6], [7, 8, 9], []],
    times=[[10, 20, 50, 70], [20, 60], [40, 50, 80], []],
)


def test_leave_one_out_by_hand():
    split = dataset.leave_one_out(FOUR)
    assert lists(split.train) == [[1, 2], [5, 6], [7], []]
    assert split.train.times.tolist() == [10, 20, 20, 60, 40]
    assert split.train.user_ids.tolist() == FOUR.user_ids.tolist()
    assert lists(split.validation.histories) == [[1, 2], [7]]
    assert split.validation.targets.tolist() == [3, 8]
    assert lists(split.test.histories) == [[1, 2, 3], [7, 8]]
    assert split.test.targets.tolist() == [4, 9]
    assert split.validation.users.tolist() == split.test.users.tolist() == [0, 2]
    assert split.n_too_short == 2
    assert split.moments is None


def test_time_split_by_hand():
    # sorted times 10 20 20 40 50 50 60 70 80: the last 5 of 9 begin at 50, the last 2 at 70
    split = dataset.time_split(FOUR, validation_share=0.34, test_share=0.23)
    assert split.moments == (50, 70)
    assert lists(split.train) == [[1, 2], [5], [7], []]
    assert split.validation.users.tolist() == [0, 1, 2]
    assert split.validation.targets.tolist() == [3, 6, 8]
    assert lists(split.validation.histories) == [[1, 2], [5], [7]]
    assert split.test.users.tolist() == [0, 2]
    assert split.test.targets.tolist() == [4, 9]
    assert lists(split.test.histories) == [[1, 2, 3], [7, 8]]
    assert split.n_too_short == 1
    # the last 4 of 9 begin at the second 50: the first 50 goes with it
    assert dataset.time_split(FOUR, validation_share=0.22, test_share=0.22).moments == (50, 70)


BAD_SPLITS = [
    (None, (), "times is None"),
    *((FOUR.times, s, "expected positive, with a sum below 1") for s in ((0.0, 0.1), (0.1, 0.0), (0.5, 0.5))),
    (FOUR.times, (float("nan"), 0.1), "expected positive, with a sum below 1"),
    ([[1, 2]], (), "there are 2 interactions"),
    ([[5, 5, 5]], (), "start at times 5, 5 and 5: .*use leave_one_out"),
    ([[5, 5, 6]], (0.5, 0.3), "start at times 5, 5 and 6: expected increasing times"),
    ([[1], [2, 3]], (0.34, 0.34), "no user has interactions before time . and in the validation part"),
    ([[1, 2], [3]], (0.34, 0.34), "no user has interactions before time . and in the test part"),
]


@pytest.mark.parametrize(("times", "shares", "message"), BAD_SPLITS)
def test_a_time_split_that_cannot_be(times, shares, message):
    histories = Histories.from_lists([[1, 2, 3]]) if times is None else FOUR
    if isinstance(times, list):
        histories = Histories.from_lists([range(len(seconds)) for seconds in times], times=times)
    with pytest.raises(ValueError, match=message):
        dataset.time_split(histories, *shares)


def test_leave_one_out_needs_a_user_with_three_interactions():
    short = Histories.from_lists([[1], [2, 3], [4], []])
    with pytest.raises(ValueError, match=r"needs a user with 3 interactions, there are 4 users: 2 have 1 .*, 1 have 2"):
        dataset.leave_one_out(short)
    split = dataset.leave_one_out(short, allow_empty=True)
    assert lists(split.train) == lists(short)
    assert len(split.validation.targets) == len(split.test.targets) == 0


@given(st.integers(1, 150), st.data())
def test_seen_items_are_excluded_unless_validation_targets_repeat(n_users, drawn):
    repeats = drawn.draw(st.lists(st.booleans(), min_size=n_users, max_size=n_users))
    # validation targets repeat where they are drawn to; test targets always do, and must not matter
    split = dataset.leave_one_out(Histories.from_lists([[0, 1, 0 if again else 2, 1] for again in repeats]))
    assert dataset.repeat_share(split.validation) == pytest.approx(np.mean(repeats))
    assert dataset.repeat_share(split.test) == 1.0
    assert split.validation.exclude_seen == split.test.exclude_seen == (np.mean(repeats) < 0.01)


@given(st.lists(st.lists(st.integers(0, 20), max_size=6), min_size=1, max_size=8), st.data())
def test_time_split_never_looks_ahead(times, drawn):
    times = [sorted(seconds) for seconds in times]
    rows = [list(range(len(seconds))) for seconds in times]
    try:
        split = dataset.time_split(Histories.from_lists(rows, times=times), 0.2, 0.3)
    except ValueError:
        return
    first, second = split.moments
    assert all(time < first for time in split.train.times)
    for part, start, end in ((split.validation, first, second), (split.test, second, 99)):
        for history, user, target in zip(part.histories, part.users, part.targets, strict=True):
            assert start <= times[user][target] < end
            assert history.tolist() == list(range(target))
            assert all(time < start for time in times[user][:target])


def test_same_time_share_by_hand():
    histories = Histories.from_lists([[1, 2], [3, 4], [5], []], times=[[1, 1], [1, 2], [3], []])
    assert dataset.same_time_share(histories) == 0.5
    with pytest.raises(ValueError, match="times is None"):
        dataset.same_time_share(Histories.from_lists([[1, 2]]))
    with pytest.raises(ValueError, match="none of 1 users has two"):
        dataset.same_time_share(Histories.from_lists([[1]], times=[[1]]))


timed_users = st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=8).map(sorted), max_size=5)


@settings(max_examples=30)
@given(timed_users, st.integers(0, 5))
def test_shuffling_changes_nothing_but_the_order_within_a_time(users, seed):
    items, times = ([[pair[at] for pair in user] for user in users] for at in (1, 0))
    histories = Histories.from_lists(items, times=times)
    shuffled = dataset.shuffle_same_time(histories, seed)
    for name in ("user_ids", "offsets", "times"):
        assert getattr(shuffled, name) is getattr(histories, name)
    begin = histories.offsets
    for user in range(len(histories)):
        pairs = [zip(h.times[begin[user] :], h[user].tolist(), strict=False) for h in (shuffled, histories)]
        assert sorted(pairs[0]) == sorted(pairs[1])
    assert lists(dataset.shuffle_same_time(histories, seed)) == lists(shuffled)


def test_shuffling_gives_every_order_of_one_time_and_needs_times():
    histories = Histories.from_lists([[0, 1, 2]] * 600, times=[[5, 5, 9]] * 600)
    first = dataset.shuffle_same_time(histories, 0).items.reshape(600, 3)
    assert (first[:, 2] == 2).all()
    assert 250 < (first[:, 0] == 0).sum() < 350
    assert (dataset.shuffle_same_time(histories, 1).items.reshape(600, 3) != first).any()
    for function in (dataset.shuffle_same_time, lambda histories: dataset.same_time_order(histories, [1, 2])):
        with pytest.raises(ValueError, match="times is None"):
            function(Histories.from_lists([[0, 1]]))


def test_the_order_of_the_file_by_hand():
    histories = Histories.from_lists([[0, 1, 0], [2, 2, 1, 0], []], times=[[1, 1, 2], [3, 3, 3, 4], []])
    assert dataset.same_time_order(histories, [30, 20, 10]) == (1 / 3, 1.0)  # 0-1, 2-2, 2-1 | 1-0, 1-0
    same, other = dataset.same_time_order(Histories.from_lists([[0, 1]], times=[[1, 2]]), np.array(["a", "b"], object))
    assert np.isnan(same) and other == 1
    rng = np.random.default_rng(0)
    of_file = Histories.from_lists([np.sort(rng.permutation(50)[:6]) for _ in range(200)], times=[[7] * 6] * 200)
    assert dataset.same_time_order(of_file, range(50))[0] == 1
    assert 0.45 < dataset.same_time_order(dataset.shuffle_same_time(of_file), range(50))[0] < 0.55


# --- write ---


def test_write_folder_overwrites_only_when_told_and_keeps_files_of_others(tmp_path, monkeypatch):
    folder = write(tmp_path / "shop", README__md="ours", items__csv="old", queries_old__jsonl="old")
    (folder / "nowhere").symlink_to("gone")
    write(folder / "backup", items__csv="older")
    with pytest.raises(ValueError, match="shop is not empty"):
        write_folder(folder, ITEMS)
    write_folder(folder, ITEMS, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "backup", "items.jsonl.gz", "nowhere"]
    assert (folder / "backup" / "items.csv").read_text() == "older"
    with pytest.raises(ValueError, match=r"README.md is a file, expected a folder"):
        write_folder(folder / "README.md", ITEMS)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="cannot be replaced as a whole"):
        write_folder(".", iter(lambda: pytest.fail("items were read"), None), overwrite=True)


@pytest.mark.parametrize("name", ["sequences.tsv", "items.jsonl", "queries.jsonl"])
def test_a_folder_or_broken_link_in_place_of_a_file_is_named(tmp_path, name):
    write(tmp_path, items__jsonl=GOOD)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(ValueError, match=f"{name} is not a file"):
        dataset.load(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a file"):
        dataset.load(tmp_path)


@pytest.mark.parametrize("user_id", ["", 5, "NULL"])
def test_write_folder_refuses_bad_input_and_keeps_the_old_files(tmp_path, user_id):
    write_folder(tmp_path, ITEMS)
    before = dataset.load(tmp_path).fingerprint
    with pytest.raises(ValueError, match=r"line 2 cannot be written: user id .*expected text"):
        write_folder(tmp_path, ITEMS, [("ann", [7]), (user_id, [7])], overwrite=True)
    with pytest.raises(ValueError, match=r"items.jsonl.gz, line 1 cannot be written: .*not JSON serializable"):
        write_folder(tmp_path, [{"item_id": np.int64(1)}], overwrite=True)
    with pytest.raises(ValueError, match=r"no records for items.jsonl.gz"):
        write_folder(tmp_path, [], overwrite=True)
    assert dataset.load(tmp_path).fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["items.jsonl.gz"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KEPT = TEXT.map(lambda text: "" if is_nothing(text) else normal(text))
KINDS = [st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), TEXT]
INTEGER_IDS = st.integers(-(2**63), 2**63 - 1)
TEXT_IDS = st.text(max_size=5).filter(lambda text: not has_controls(text) and not is_nothing(text))


@settings(max_examples=25)
@given(
    ids=st.one_of(st.lists(ids, min_size=1, max_size=5, unique=True) for ids in (INTEGER_IDS, TEXT_IDS)),
    users=st.lists(TEXT.filter(lambda text: not is_nothing(text)), min_size=1, max_size=4, unique=True),
    drawn=st.data(),
)
def test_write_then_load_keeps_everything(tmp_path_factory, ids, users, drawn):
    folder, plain = tmp_path_factory.mktemp("gzipped"), tmp_path_factory.mktemp("plain")
    histories = [(user, drawn.draw(st.lists(st.sampled_from(ids), max_size=4))) for user in users]
    times = [(user, list(range(5, 5 + len(items)))) for user, items in histories]
    price = drawn.draw(st.sampled_from(KINDS))
    fields = {"title": KEPT, "categories": st.lists(st.lists(KEPT, min_size=1, max_size=2), max_size=2)}
    fields |= {"brand": KEPT, "price": st.none() | price, "prices": st.lists(price, max_size=2)}
    records = [{"item_id": item_id} | drawn.draw(st.fixed_dictionaries(fields)) for item_id in ids]
    write_folder(folder, records, histories, times, [{"query": "q", "item_ids": ids}])
    shop = dataset.load(folder)
    for record, (_, row) in zip(records, shop.items.iterrows(), strict=True):
        assert {name: row[name] for name in record} == record
    found = [shop.item_ids.at(rows).tolist() for rows in shop.histories]
    assert list(zip(shop.histories.user_ids, found, strict=True)) == histories
    assert shop.queries["item_rows"][0].tolist() == list(range(len(ids)))
    assert shop.histories.times.tolist() == [time for _, seconds in times for time in seconds]
    for path in folder.iterdir():
        (plain / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    assert dataset.load(plain).fingerprint == shop.fingerprint


def test_fingerprint_sees_content_and_names(tmp_path):
    files = [("queries__jsonl", "a"), ("queries__jsonl", "b"), ("queries2__jsonl", "a")]
    made = [{"items__jsonl": GOOD, name: jsonl({"query": query, "item_ids": [1]})} for name, query in files]
    folders = [write(tmp_path / str(at), **contents) for at, contents in enumerate(made)]
    assert len({fingerprint(one) for one in folders}) == 3
    assert not has_histories(folders[0])
