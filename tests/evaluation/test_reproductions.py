"""Verdicts by hand, and whether the published figures can be at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.evaluation import report
from semid_lib.evaluation.report import System

SYSTEMS, CLOSE_WITHIN = report.load_systems()
FIGURES = {"shop": {"recall@10": 0.5, "ndcg@10": 0.25}}
PAPER = System("Paper", "its page", "No code.", "excluded", FIGURES, ours=["mine"])


def row(metric, value, half=0.1, method="mine", **facts):
    ends = [value - half, value + half]
    return {"key": f"next_item/shop/{method}/{metric}", "value": value, "ci95": ends, **facts}


def table(systems, rows, close_within=2.0):
    return report.reproductions_table(systems, close_within, lambda data, scale: rows).replace("\xa0", " ")


def lines_of(systems, rows):
    """Of the first table: the cells of each line below the headings."""
    lines = table(systems, rows).split("\n\n")[1].splitlines()[2:]
    return [[each.strip() for each in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize(
    ("published", "spread", "expected"),
    [
        (0.4, 0.05, "reproduced"),
        (0.6, 0.0, "reproduced"),  # the end of the interval belongs to it
        (0.69, 0.05, "close"),
        (0.31, 0.05, "close"),
        (0.71, 0.05, "differs"),
        (0.29, 0.05, "differs"),
        (0.61, 0.0, "differs"),
    ],
)
def test_a_verdict_by_hand(published, spread, expected):
    assert report.verdict(published, row("mrr", 0.5, spread=spread), close_within=2.0) == expected


def test_without_a_row_nothing_is_said_and_without_seeds_nothing_is_close():
    assert report.verdict(0.5, None, 2.0) == "not measured yet"
    assert report.verdict(0.61, row("mrr", 0.5), 1000.0) == "differs"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.2), st.floats(0, 5), st.floats(0, 5))
def test_more_tolerance_never_turns_a_verdict_to_the_worse(published, value, spread, narrow, wide):
    narrow, wide = sorted((narrow, wide))
    ours = row("mrr", value, spread=spread)
    strict, mild = (report.verdict(published, ours, tolerance) for tolerance in (narrow, wide))
    assert report.VERDICTS.index(mild) <= report.VERDICTS.index(strict)
    low, high = ours["ci95"]
    assert (strict == "reproduced") == (low <= published <= high)


def test_the_table_by_hand():
    lines = table([PAPER], [row("recall@10", 0.55), row("ndcg@10", 0.4, spread=0.03)]).splitlines()
    assert lines == [
        "**shop**",
        "",
        "|  | seen items | verdict | Recall@10 | NDCG@10 |",
        "| --- | --- | --- | ---: | ---: |",
        "| Paper | excluded |  | .5000 | .2500 |",
        "| *ours: mine* | excluded | close | .5500 ± .1000 | .4000 ± .1000 (.0300) |",
        "",
        "- **Paper** (its page): No code.",
    ]


@pytest.mark.parametrize(
    ("seen_items", "expected"),
    [
        ("excluded", [("excluded", "reproduced")]),
        ("allowed", [("allowed", "**differs**")]),
        ("not stated", [("excluded", "reproduced"), ("allowed", "**differs**")]),
    ],
)
def test_a_verdict_is_of_rows_of_the_same_protocol(seen_items, expected):
    rows = [row("recall@10", 0.55), row("recall@10", 0.2, method="mine_seen_allowed")]
    figures = {"shop": {"recall@10": 0.5}}
    system = System("Paper", "s", "p", seen_items, figures, ours=["mine"], why={"shop": "it is small"})
    theirs, *ours = lines_of([system], rows)
    assert theirs == ["Paper", seen_items, "", ".5000"]
    assert [(seen, verdict) for _, seen, verdict, _ in ours] == expected
    assert [cell[:5] for *_, cell in ours] == [{"excluded": ".5500", "allowed": ".2000"}[seen] for seen, _ in expected]


def test_where_a_source_is_silent_both_rows_have_a_line_measured_or_not():
    system = System("Paper", "s", "p", "not stated", {"shop": {"recall@10": 0.5}}, ours=["mine"])
    ours = lines_of([system], [row("recall@10", 0.55)])[1:]
    assert [line[1:] for line in ours] == [
        ["excluded", "reproduced", ".5500 ± .1000"],
        ["allowed", "not measured yet", ""],
    ]


def test_another_word_on_seen_items_is_refused():
    with pytest.raises(ValueError, match=r"Paper has seen_items 'maybe', expected one of .*'not stated'"):
        System("Paper", "s", "p", "maybe", FIGURES)


def test_several_of_our_methods_may_compare_with_a_system():
    rows = [row("recall@10", 0.5), row("recall@10", 0.7, method="tiger_long")]
    system = System("Paper", "s", "p", "excluded", {"shop": {"recall@10": 0.7}}, ours=["mine", "tiger_long"])
    with pytest.raises(ValueError, match="say why"):
        table([system], rows)
    system = System(**{**vars(system), "why": {"shop": "it is small"}})
    assert [line[0] for line in lines_of([system], rows)[1:]] == ["*ours: mine*", "*ours: TIGER, trained for longer*"]


def test_our_own_methods_end_the_table_with_each_protocol():
    methods = ("timeline_slist", "item_knn", "popularity", "item_knn_seen_allowed")
    other = System("Other", "s", "p", "allowed", {"shop": {"recall@10": 0.5}})
    lines = lines_of([other], [row("recall@10", 0.5, method=method) for method in methods])
    assert [line[:3] for line in lines] == [
        ["Other", "allowed", "not built here"],
        ["*ours: item-kNN*", "excluded", ""],
        ["*ours: timeline + SLIST*", "excluded", ""],
        ["*ours: item-kNN*", "allowed", ""],
    ]


def test_a_data_set_has_a_table_of_its_own_with_the_metrics_that_are_published_for_it():
    figures = {"shop": {"recall@10": 0.5}, "toys": {"recall@5": 0.25}}
    found = table([System("Other", "s", "p", "allowed", figures)], [])
    assert "**shop**\n\n|  | seen items | verdict | Recall@10 |\n" in found
    assert "**toys**\n\n|  | seen items | verdict | Recall@5 |\n" in found


def test_a_system_without_rows_is_not_measured_yet_and_one_without_ours_not_built():
    assert lines_of([PAPER], []) == [["Paper", "excluded", "not measured yet", ".5000", ".2500"]]
    other = System("Other", "s", "p", "excluded", {"shop": {"recall@5": 0.5}})
    lines = lines_of([PAPER, other], [row("recall@10", 0.55)])
    assert lines[1] == ["*ours: mine*", "excluded", "reproduced", "", ".5500 ± .1000", ""]  # of what is measured
    assert lines[2] == ["Other", "excluded", "not built here", ".5000", "", ""]


def test_who_differs_says_why():
    rows = [row("recall@10", 0.5), row("ndcg@10", 0.5)]
    with pytest.raises(ValueError, match="Paper on shop differs from our rows: say why"):
        table([PAPER], rows)
    said = System(**{**vars(PAPER), "why": {"shop": "it is another shop"}})
    assert "- **Paper** (its page): No code. On shop, ours differs because it is another shop." in table([said], rows)
    assert "because" not in table([said], [row("recall@10", 0.5)])


def test_rows_are_asked_for_by_data_and_scale():
    asked = []
    figures = {"beauty": {"recall@5": 0.1}, "toys": {"recall@5": 0.1}}
    system = System("Paper", "s", "p", "allowed", figures, scale="full")
    report.reproductions_table([system], 2.0, lambda data, scale: asked.append((data, scale)) or [])
    assert set(asked) == {(data, scale) for data in figures for scale in ("full", "laptop")}


@pytest.mark.parametrize("figures", [{"hit@10": 0.5}, {"recall@10": 5.0}, {"recall@10": -0.1}])
def test_figures_that_cannot_be_are_refused(figures):
    with pytest.raises(ValueError, match=r"of Paper on shop is|Paper on shop has"):
        System("Paper", "s", "p", "allowed", {"shop": figures})


@pytest.mark.parametrize("text", ["[]", "systems: []", "close_within: 2\nsystems: [{name: a}]", "systems: [1]"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, text):
    (tmp_path / "other.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.yml is not a list of systems"):
        report.load_systems(tmp_path / "other.yml")


# --- the file of the book ---


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_published_figures_are_possible_together(system):
    """What NDCG gains between 5 and 10 is what Recall gains there, discounted by ranks 6 to 10; the same up to 5."""
    rounding = 0.0001
    for figures in system.figures.values():
        recalls = [figures[f"recall@{k}"] for k in (5, 10, 100, 1000) if f"recall@{k}" in figures]
        assert recalls == sorted(recalls)
        if {"recall@5", "recall@10", "ndcg@5", "ndcg@10"} <= figures.keys():
            gained = figures["recall@10"] - figures["recall@5"]
            worth = figures["ndcg@10"] - figures["ndcg@5"]
            assert gained / np.log2(11) - rounding <= worth <= gained / np.log2(7) + rounding
            assert figures["recall@5"] / np.log2(6) - rounding <= figures["ndcg@5"] <= figures["recall@5"]


def test_what_the_book_cites_stands_in_its_bibliography():
    book = report.FILE.parent
    keys = (book / "references.bib").read_text(encoding="utf-8")
    cited = [system.source.split("`")[1] for system in SYSTEMS if "`" in system.source]
    assert len(cited) >= 5
    assert all(f"{{{key}," in keys for key in cited)
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)


def test_the_table_is_written_between_its_marks_and_stays(monkeypatch):
    page = "before\n<!-- reproductions -->\nold\n<!-- end reproductions -->\nafter\n"
    monkeypatch.setattr(report, "load_systems", lambda: ([PAPER], 2.0))
    rendered = report.render(page, lambda *_: None)
    assert rendered.startswith("before\n<!-- reproductions -->\n**shop**\n")
    assert rendered.endswith("No code.\n<!-- end reproductions -->\nafter\n")
    assert "old" not in rendered
    assert report.render(rendered, lambda *_: None) == rendered
