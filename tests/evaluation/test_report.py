"""Rows to tables between two marks, the same however often it is done."""

import json
import re

import pytest

from semid_lib.cli import main
from semid_lib.data.folder import open_store, write_folder
from semid_lib.evaluation import report
from semid_lib.evaluation.rows import LABELS

RUN = {
    "data": "shop",
    "scale": "smoke",
    "commit": "a" * 40,
    "dirty": False,
    "hardware": "a laptop",
    "fingerprint": "f",
}


def row(method, metric, value, **origin):
    key = f"next_item/shop/{method}/{metric}"
    return {"key": key, "value": value, "ci95": [value - 0.1, value + 0.1], "n": 1234, **RUN, **origin}


ROWS = [
    *(row("item_knn", "recall@10", 0.5), row("item_knn", "mrr", 0.25), row("mine", "recall@10", 0.75)),
    row("mine_seen_allowed", "recall@10", 0.625),
]
PAGE = """# Results
<!-- rows: next_item/shop/smoke -->
old
<!-- end rows -->
between
<!-- rows: next_item/shop/smoke -->
<!-- end rows -->
after
"""


def test_a_table_by_hand():
    lines = report.markdown_table(ROWS, "next_item").replace("\xa0", " ").splitlines()
    assert lines[:5] == [
        "| | item-kNN | mine |",
        "| --- | ---: | ---: |",
        "| Recall@10 | .5000 ± .1000 | .7500 ± .1000 |",
        "| MRR | .2500 ± .1000 |  |",
        "| Recall@10, seen items allowed |  | .6250 ± .1000 |",
    ]
    assert lines[5] == ""
    for fact in ("1,234 users of shop", "`SCALE=smoke`", f"`{'a' * 10}`", "a laptop"):
        assert fact in lines[6]
    assert "uncommitted" not in lines[6]
    assert "uncommitted" in report.markdown_table([row("mine", "mrr", 0.5, dirty=True)], "next_item")
    with pytest.raises(ValueError, match="starts with 'ids'"):
        report.markdown_table(ROWS, "ids")


def test_the_spread_over_seeds_stands_beside_the_interval():
    rows = [row("mine", "mrr", 0.5, spread=0.0123, seeds=[0, 1, 2]), row("item_knn", "mrr", 0.25)]
    lines = report.markdown_table(rows, "next_item").replace("\xa0", " ").splitlines()
    assert lines[2] == "| MRR | .5000 ± .1000 (.0123) | .2500 ± .1000 |"
    assert "(in brackets the standard deviation over 3 seeds)" in lines[4]
    assert "seeds" not in report.markdown_table(ROWS, "next_item")


def test_other_topics_and_rows_without_interval_stay_out():
    others = [
        {**row("mine", "mrr", 0.5), "key": "beam/shop/mine/mrr"},
        {"key": "next_item/shop/mine/seconds", "value": 3.0, **RUN},
    ]
    assert report.markdown_table(ROWS + others, "next_item") == report.markdown_table(ROWS, "next_item")


def test_a_part_of_a_topic_makes_a_table_of_its_own():
    rows = [
        row(method, "recall@10", value) | {"key": f"search/shop/{method}/recall@10"}
        for method, value in {"own_hybrid": 0.25, "own_dense_and_bm25": 0.5, "synthetic_hybrid": 0.75}.items()
    ]
    lines = report.markdown_table(rows, "search:own").replace("\xa0", " ").splitlines()
    assert lines[0] == "| | hybrid ranker | dense + BM25 |"
    assert lines[2].startswith("| Recall@10 | .2500") and ".5000" in lines[2] and ".7500" not in lines[2]
    assert "queries of shop" in lines[-1]
    page = "<!-- rows: search:own/shop/smoke -->\nold\n<!-- end rows -->\n"
    assert "old" not in report.render(page, lambda *run: rows)
    with pytest.raises(ValueError, match="search"):
        report.markdown_table(rows, "search:others")


def test_only_the_metrics_that_a_place_names_are_shown():
    rows = [
        row(method, metric, 0.25) for method in ("mine", "mine_refit") for metric in ("recall@10", "mrr", "ndcg@10")
    ]
    page = "<!-- rows: next_item/shop/smoke mrr recall@10 -->\nold\n<!-- end rows -->\n"
    lines = report.render(page, lambda *run: rows).splitlines()
    assert lines[:2] == [page.splitlines()[0], "| | MRR | Recall@10 |"]
    assert [line.split("|")[1].strip() for line in lines[3:5]] == ["mine", "mine, trained on validation items too"]
    plain = [{"key": f"beam/shop/50/{figure}", "value": 2.0, **RUN} for figure in ("recall@10", "ms_a_user")]
    assert report.markdown_table(plain, "beam", ["ms_a_user"]).splitlines()[0] == "| | ms a user |"
    with pytest.raises(ValueError, match=r"no row of 'next_item' has the metric 'mmr', expected .*'mrr'"):
        report.markdown_table(rows, "next_item", ["mrr", "mmr"])


def test_only_the_methods_that_a_place_names_are_shown():
    rows = [row(name, metric, 0.25) for name in ("item_knn", "mine", "mine_refit") for metric in ("recall@10", "mrr")]
    page = "<!-- rows: next_item/shop/smoke mrr of mine item_knn -->\nold\n<!-- end rows -->\n"
    lines = report.render(page, lambda *run: rows).splitlines()
    assert lines[:2] == [page.splitlines()[0], "| | MRR |"]
    assert [line.split("|")[1].strip() for line in lines[3:] if "|" in line] == ["item-kNN", "mine"]
    with pytest.raises(ValueError, match=r"no row of 'next_item' has the method 'yours', expected .*'mine'"):
        report.markdown_table(rows, "next_item", ["mrr"], ["mine", "yours"])


# --- differences ---


def difference(ours, theirs, metric, value, **facts):
    return row(theirs, metric, value) | {"key": f"{ours}_ahead_of/shop/{theirs}/{metric}", **facts}


AHEAD = [
    difference("timeline", "item_knn", "recall@10", 0.25),
    difference("timeline", "item_knn", "recall@1", -0.5),
    difference("timeline", "item_knn", "later_day_recall@10", 0.125, n=567),
    difference("timeline_slist", "slist", "recall@10", 0.5, spread=0.01, seeds=[0, 1]),
]


def test_all_pairs_and_all_metrics_stand_in_the_table_of_differences():
    page = "<!-- rows: ahead_of/shop/smoke -->\nold\n<!-- end rows -->\n"
    rendered = report.render(page, lambda *run: [*ROWS, *AHEAD]).replace("\xa0", " ")
    whole, later = [part.splitlines() for part in rendered.split("\n\n")[::2]]
    assert whole[1:] == [
        "| | Recall@10 | Recall@1 |",
        "| --- | ---: | ---: |",
        "| timeline model − item-kNN | .2500 ± .1000 | −.5000 ± .1000 |",
        "| (timeline + SLIST) − SLIST | .5000 ± .1000 (.0100) |  |",
    ]
    assert later == [
        "| | Recall@10, later day |",
        "| --- | ---: |",
        "| timeline model − item-kNN | .1250 ± .1000 |",
    ]
    assert "*1,234 users of shop" in rendered and "*567 users of shop" in rendered
    with pytest.raises(ValueError, match="ahead_of"):
        report.markdown_table(ROWS, "ahead_of")


@pytest.mark.parametrize("topic", ["ahead_of", "timeline_ahead_of", "same_day_ahead_of_item_knn"])
def test_a_table_of_differences_cannot_leave_out_metrics(topic):
    with pytest.raises(ValueError, match=f"a table of '{topic}' shows all metrics"):
        report.markdown_table(AHEAD, topic, ["recall@10"])


def test_no_place_for_differences_names_metrics():
    marks = [mark for page in report._PAGES for mark in re.findall(r"<!-- rows: .*?-->", page.read_text("utf-8"))]
    of_differences = [mark for mark in marks if "ahead_of" in mark]
    assert of_differences
    assert all(re.fullmatch(r"<!-- rows: \w+/\w+/\w+ -->", mark) for mark in of_differences)


def test_columns_of_a_later_day_stand_where_a_place_names_them():
    rows = [row("mine", "recall@10", 0.5), row("mine", "later_day_recall@10", 0.25) | {"n": 1000}]
    lines = report.markdown_table(rows, "next_item", ["recall@10", "later_day_recall@10"]).splitlines()
    assert lines[0] == "| | Recall@10 | Recall@10, later day |"
    assert "(1,000 of them with a target on a later day)" in lines[-1]


def test_every_label_of_a_figure_names_a_row_of_a_table():
    rows = [row(method, "mrr", 0.5) for method in LABELS]
    lines = report.markdown_table(rows, "next_item", ["mrr"]).splitlines()
    names = [line.split("|")[1].strip() for line in lines[2 : 2 + len(LABELS)]]
    assert [name.replace("timeline model", "timeline") for name in names] == list(LABELS.values())


def test_what_had_to_be_reached_stands_beside_what_was():
    rows = [
        {"key": "serving/shop/cold_start_s", "value": 2.5, "must": "< 5", "wish": "< 1", **RUN},
        {"key": "serving/shop/batch_users_per_s", "value": 1595.3, "must": ">= 1000", "wish": None, **RUN},
    ]
    lines = report.markdown_table(rows, "serving").splitlines()
    assert lines[0] == "| | measured | asked for | wished for |"
    assert lines[2:4] == ["| cold start s | 2.5 | < 5 | < 1 |", "| batch users per s | 1,595 | >= 1000 |  |"]
    assert RUN["commit"][:10] in lines[-1]
    assert report.markdown_table(rows[1:], "serving").splitlines()[0] == "| | measured | asked for |"


def test_what_has_no_interval_stands_in_the_order_that_is_asked_for():
    values = {"small": -0.25, "large": 1234.5}
    rows = [{"key": f"bench/shop/mine/{name}", "value": value, **RUN} for name, value in values.items()]
    lines = report.markdown_table(rows, "bench", ["large", "small"]).splitlines()
    assert lines[0] == "| | large | small |"
    assert lines[2] == "| mine | 1,234 | −.25 |"
    assert report.markdown_table(rows, "bench").splitlines()[0] == "| | small | large |"


@pytest.mark.parametrize(
    "difference",
    [
        {"commit": "b" * 40},
        {"scale": "full"},
        {"hardware": "a GPU"},
        {"data": "b"},
        {"dirty": True},
        {"fingerprint": "g"},
    ],
)
def test_rows_of_two_runs_are_refused(difference):
    with pytest.raises(ValueError, match="2 runs"):
        report.markdown_table([*ROWS, row("other", "mrr", 0.5, **difference)], "next_item")


def test_rendering_replaces_what_stands_between_the_marks_and_nothing_else():
    asked = []

    def rows_of(data, scale):
        asked.append((data, scale))
        return ROWS

    page = report.render(PAGE, rows_of)
    table = report.markdown_table(ROWS, "next_item")
    assert page.count(table) == 2
    assert page.replace(table, "") == PAGE.replace("old\n", "")
    assert asked == [("shop", "smoke")] * 2
    assert report.render(page, rows_of) == page


def test_a_place_without_its_end_swallows_no_text():
    page = "<!-- rows: next_item/shop/smoke -->\n## Prose\n" + PAGE
    rendered = report.render(page, lambda *_: ROWS)
    assert "## Prose" in rendered
    assert "# Results" in rendered


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The only page, README.md; folders of results and artefacts beside it."""
    file = tmp_path / "README.md"
    file.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(report, "_PAGES", (file,))
    monkeypatch.setattr(report, "_RESULTS", tmp_path / "results")
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    return file


@pytest.fixture
def shop_folder(tmp_path):
    write_folder(tmp_path / "shop", [{"item_id": 1, "title": "Pen"}])
    return str(tmp_path / "shop")


def test_rows_that_fit_no_table_are_not_published(shop_folder, tmp_path, page):
    (tmp_path / "results").mkdir()
    published = tmp_path / "results" / "shop-smoke.json"
    published.write_text("[]", encoding="utf-8")
    open_store(shop_folder, "smoke").record("02", [{"key": "semantic_ids/rate", "value": 1}])
    with pytest.raises(ValueError, match="no row"):
        report.publish(shop_folder, "smoke")
    assert published.read_text(encoding="utf-8") == "[]" and page.read_text(encoding="utf-8") == PAGE


def test_publish_then_check(shop_folder, tmp_path, page, capsys):
    page.write_text(PAGE + "So <!-- row: next_item/shop/smoke/item_knn/mrr -->old<!-- end row -->.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no rows for .*shop at smoke"):
        report.publish(shop_folder, "smoke")
    measured = {"value": 0.5, "ci95": [0.4, 0.6], "n": 9}
    shelf = open_store(shop_folder, "smoke")
    shelf.record("07", [{"key": "next_item/item_knn/mrr", **measured}])
    failed = shelf.path("executed") / "08_other.failed.ipynb"
    failed.parent.mkdir()
    failed.touch()
    assert main(["results", "publish", "--data", shop_folder, "--scale", "smoke"]) == 1
    assert "08_other.failed.ipynb is of a run that did not succeed" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    failed.unlink()
    assert main(["results", "publish", "--data", shop_folder, "--scale", "smoke"]) == 0
    assert "| MRR | .5000 ± .1000 |" in page.read_text(encoding="utf-8").replace("\xa0", " ")
    assert "-->.5000<!-- end row -->." in page.read_text(encoding="utf-8")
    assert report.stale_pages() == []
    assert main(["results", "check"]) == 0

    published = tmp_path / "results" / "shop-smoke.json"
    rows = json.loads(published.read_text(encoding="utf-8"))
    published.write_text(json.dumps([{**rows[0], "value": 0.6}]), encoding="utf-8")
    assert report.stale_pages() == ["README.md"]
    assert main(["results", "check"]) == 1
    assert "README.md" in capsys.readouterr().err


def test_no_published_table_differs_from_its_rows():
    assert report.stale_pages() == []


def test_publishing_one_run_leaves_the_tables_of_others(shop_folder, page):
    page.write_text(PAGE.replace("next_item/shop/smoke", "next_item/other/full", 1), encoding="utf-8")
    measured = {"value": 0.5, "ci95": [0.4, 0.6], "n": 9}
    open_store(shop_folder, "smoke").record("07", [{"key": "next_item/item_knn/mrr", **measured}])
    report.publish(shop_folder, "smoke")
    text = page.read_text(encoding="utf-8")
    assert "old\n<!-- end rows -->" in text  # the other run was never published
    assert text.count("| MRR |") == 1


# --- figures in sentences ---

SENTENCE = (
    "It took <!-- row: training/shop/smoke/mine/seconds as minutes -->old<!-- end row --> minutes\n"
    "for <!-- row: next_item/shop/smoke/mine/mrr -->.1<!-- end row --> of MRR,\n"
    "with <!-- row: next_item/shop/smoke/mine/mrr as n --><!-- end row --> users.\n"
)


def test_figures_in_a_sentence_are_written_in_the_form_that_is_asked_for():
    rows = [*ROWS, row("mine", "mrr", 0.25), {"key": "training/shop/mine/seconds", "value": 4174.2, **RUN}]
    page = report.render(SENTENCE + PAGE, lambda *run: rows)
    text = re.sub("<!--.*?-->", "", page).split("# Results")[0]
    assert text == "It took 70 minutes\nfor .2500 of MRR,\nwith 1,234 users.\n"
    assert report.render(page, lambda *_: rows) == page
    assert report.render(SENTENCE, lambda *_: None) == SENTENCE  # another run


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ("a <!-- row: next_item/shop/smoke/yours/mrr -->1<!-- end row -->", "'next_item/shop/yours/mrr'"),
        ("a <!-- row: next_item/shop/smoke/mine/mrr as words -->1<!-- end row -->", "'words', expected one of minutes"),
        ("a <!-- row: next_item/shop/smoke/mine/mrr -->1", "no other end"),
        ("a <!-- row: next_item/shop/smoke/mine/mrr -->1\nand <!-- row: x -->2<!-- end row -->", "no other end"),
        ("a 1<!-- end row -->", "no other end"),
        ("<!-- row: next_item/shop/smoke/mine/mrr -->1<!-- end row -->", "begins a line"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_refused(mark, complaint):
    with pytest.raises(ValueError, match=complaint):
        report.render(mark, lambda *_: [*ROWS, row("mine", "mrr", 0.25)])
