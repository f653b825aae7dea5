"""What chapters 05, 06, 07, 10 and 11 compute and draw through the library."""

import doctest
from functools import partial
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from semid_lib.data import dataset
from semid_lib.data.folder import write_folder
from semid_lib.decoding import beam_search, scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.evaluation import evaluate, figures, figures_models
from semid_lib.evaluation.rows import LABELS, in_brackets, metric_name, shown
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item import recipes
from semid_lib.next_item.recipes import Trained
from semid_lib.queries.synthesis import load_queries, save_queries
from semid_lib.studies import decoding_study, next_item_study, search_study
from semid_lib.workbench import scale
from semid_lib.workbench.store import Store
from semid_lib.workbench.training import Epoch

matplotlib.use("Agg")


@pytest.mark.parametrize("module", [next_item_study, search_study])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def query_evaluation(recall: list[float]) -> evaluate.QueryEvaluation:
    n = len(recall)
    per_query = pd.DataFrame({"recall@10": recall, "mrr": recall, "validity_rate": np.ones(n)})
    return evaluate.QueryEvaluation(per_query, np.ones(n), np.zeros((n, 10), dtype=np.int64), 0.1, np.full(3, 0.002))


# --- search ---


def test_new_over_old_by_hand():
    is_new, is_hidden = np.array([False, False, True, True]), np.array([False, False, False, True])
    tests = {"dense": query_evaluation([1, 0, 0.5, 0]), "LLM": query_evaluation([0, 0, 1, 1])}
    table = search_study.new_over_old(tests, is_new, is_hidden)
    assert table.loc["dense"].tolist() == [0.5, 0.5, 0.0, 0.5]
    assert list(table) == ["old items (n = 2)", "new, title known (n = 1)", "new, hidden (n = 1)", "new / old"]
    assert np.isnan(table.loc["LLM", "new / old"])  # nothing old was found
    assert "new, hidden" not in " ".join(search_study.new_over_old(tests, is_new, np.zeros(4, bool)))


@pytest.fixture
def artefacts(shop, tmp_path) -> Store:
    """What chapters 01, 02 and 04 write for the shop; ten items have no training queries."""
    made = Store("shop", "smoke", "", tmp_path)
    made.save("embeddings", {"vectors": 2 * shop.vectors}, embedder="an encoder")
    arrays = {"codes": shop.ids.codes, "disambiguation_code": shop.ids.disambiguation_code}
    arrays |= {f"rqvae_{name}": arrays[name] for name in arrays} | {"rqvae_unique_codes": shop.ids.codes}
    made.save("semantic_ids", arrays, codebook_size=4)
    queries = shop.items[["title"]].rename(columns={"title": "query"}).assign(item=range(40), kind="a_need")
    cells = np.where(queries["item"] < 30, "seen item", "unseen item")
    save_queries(made, queries[:30], queries.assign(cell=cells), shop.vectors[:30], shop.vectors)
    return made


@pytest.mark.parametrize("n_train", [30, 2])
def test_a_study_hides_items_and_holds_back_queries(artefacts, shop, n_train, monkeypatch):
    saved = load_queries(artefacts)
    few = saved._replace(train=saved.train[:n_train], train_vectors=saved.train_vectors[:n_train])
    monkeypatch.setattr(search_study.synthesis, "load_queries", lambda _: few)
    study = search_study.load(SimpleNamespace(items=shop.items), artefacts, scale.get("smoke"), seed=0)
    assert set(study.new_items) == set(range(30, 40)) and set(study.hidden) < set(study.new_items)
    assert 0 < study.held_back.sum() < n_train and study.held_back[study.looks].all()
    np.testing.assert_allclose(study.item_vectors, shop.vectors, atol=1e-6)
    texts = study.known_texts()
    assert len(study.hidden) == 5 and [texts[row] for row in study.hidden] == [""] * 5 and texts[0]
    assert len(study.sample) == 40 and len(study.prompts) == 20


def test_tables_of_methods_on_their_queries(monkeypatch):
    both = {"dense": query_evaluation([1.0, 0.0]), "hybrid ranker + BM25": query_evaluation([1.0, 0.5])}
    assert search_study.summary({"own": both})["Recall@10, own"].tolist() == [0.5, 0.75]
    assert "Recall@10" in search_study.table(both) and "validity_rate" not in search_study.table(both)
    rows = search_study.rows({"own": both})
    assert [row["key"] for row in rows][-1] == "search/own_hybrid_and_bm25/ms_alone" and rows[-1]["value"] == 2.0
    monkeypatch.setattr(evaluate, "evaluate_queries", lambda search, *asked, **options: (search, options["n_items"]))
    methods = {"BM25": SimpleNamespace(n_items=9, search=1), "dense": SimpleNamespace(search=2)}
    assert search_study.measure(methods, ["tent"], [1], None, seed=0) == {"BM25": (1, 9), "dense": (2, 9)}
    queries = pd.DataFrame({"query": ["tent", "gone"], "item_rows": [[1], []]})
    assert search_study.own_queries(SimpleNamespace(queries=queries))["query"].tolist() == ["tent"]
    assert search_study.default_base("smoke") == ""


def test_differences_are_of_the_same_queries_and_in_all_metrics():
    fused = query_evaluation([1, 0, 0, 0])
    of = {
        "dense + BM25": fused,
        "hybrid ranker": query_evaluation([1, 1, 1, 1]),
        "dense": query_evaluation([0, 0, 0, 0]),
    }
    ahead = search_study.ahead_of(of)
    assert set(ahead) == {"hybrid ranker", "dense"}
    assert ahead["hybrid ranker"]["mean"].to_dict() == {"recall@10": 0.75, "mrr": 0.75}  # and no validity rate
    table = search_study.difference_table(ahead)
    assert list(table) == ["n", "Recall@10", "MRR"] and table.loc["dense", "n"] == "4"
    assert table.loc["dense", "MRR"].startswith("−.250 (")
    rows = search_study.difference_rows("search_ahead/own_", ahead)
    assert [row["key"] for row in rows][:2] == ["search_ahead/own_hybrid/recall@10", "search_ahead/own_hybrid/mrr"]
    assert [row["n"] for row in rows] == [4] * 4 and rows[0]["value"] == 0.75
    equal = search_study.ahead_of({"dense + BM25": fused, "LLM": fused})["LLM"].loc["mrr"]
    certain = search_study.ahead_of(of | {"dense + BM25": of["dense"]})["hybrid ranker"].loc["mrr"]
    assert search_study.verdict(equal) == "no measurable difference"
    assert (
        search_study.verdict(certain) == "better"
        and search_study.verdict(-certain[["high", "low"]].set_axis(["low", "high"])) == "worse"
    )


def test_what_training_adds_by_set_of_queries():
    old, new = "seen item, seen kind", "unseen item, unseen kind"
    synthetic = {search_study.UNTRAINED: query_evaluation([0, 0, 1]), "hybrid ranker": query_evaluation([1, 1, 0])}
    own = {search_study.UNTRAINED: query_evaluation([0.5]), "hybrid ranker": query_evaluation([0.5])}
    gain = search_study.gain_of_training(
        {"synthetic": synthetic, "own": own}, pd.Series([old, old, new], index=[7, 3, 5])
    )
    means = {name: each.loc["mrr", "mean"] for name, each in gain.items()}
    expected = {"synthetic": 1 / 3, f"synthetic, {old}": 1.0, f"synthetic, {new}": -1.0, "own": 0.0}
    assert means == pytest.approx(expected)
    assert [int(each["n"].iloc[0]) for each in gain.values()] == [3, 2, 1, 1]
    assert search_study.key(f"synthetic, {new}") == "synthetic_unseen_item_unseen_kind"


def test_examples_of_training_are_counted_and_shown():
    chat = {"prompt": [{"content": "red pen"}], "completion": [{"content": "<|sid_0_1|>"}], "chat_template_kwargs": {}}
    counts = search_study.example_counts([{"task": "query_to_id", **chat}] * 3)
    assert counts.loc["query to id"].tolist() == [3, 1]
    tokenizer = SimpleNamespace(apply_chat_template=lambda chat, **_: "\n".join(one["content"] for one in chat))
    assert search_study.rendered(chat, tokenizer) == "red pen\n<|sid_0_1|>"
    table = torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]]))
    words = SimpleNamespace(decode=lambda ids: ["pen", "tent"][ids[0]])
    model = SimpleNamespace(get_input_embeddings=lambda: table)
    near = search_study.nearest_words(model, words, [np.array([2, 3])], [1], n=1)
    assert near == {"<|sid_0_1|>": "'tent'"}


def test_prefix_accuracy_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 0]])
    table = search_study.prefix_accuracy({"LLM": codes[[0, 2]]}, truth=codes[[1, 2]], codes=codes)
    assert table.loc["LLM"].tolist() == [1.0, 0.5]
    assert table.loc["most common prefix"].round(3).tolist() == [0.667, 0.333]
    assert list(table) == ["1 code", "2 codes"]


def test_lists_mark_what_is_right_and_leave_out_what_is_missing():
    titles = pd.Series(["Tent", "Lamp"])
    table = search_study.lists_table({"dense": np.array([1, 0, -1])}, relevant=np.array([0]), titles=titles)
    assert table["dense"].tolist() == ["Lamp", "✓ Tent", ""]


def test_hidden_items_have_no_text_and_are_in_no_history(tmp_path):
    items = [{"item_id": at, "title": f"item {at}", "description": "long"} for at in range(4)]
    write_folder(tmp_path / "shop", items, [("ann", [0, 1, 2, 3, 0])])
    shop = dataset.load(tmp_path / "shop")
    study = SimpleNamespace(is_hidden=lambda: np.array([False, True, False, False]))
    known, histories = search_study.known_data(shop, study)
    assert known["title"].tolist() == ["item 0", "", "item 2", "item 3"] and known["description"][1] == ""
    assert [history.tolist() for history in histories] == [[0, 2]]  # without the last two, which are held out
    assert shop.items["title"][1] == "item 1" and search_study.own_queries(shop) is None


# --- decoding ---


def test_held_out_items_are_no_prompts_and_tokens_name_items():
    rng = np.random.default_rng(0)
    ids = SemanticIDs.from_codes(np.stack([np.arange(40) // 8, np.arange(40) % 8], axis=1), codebook_size=8)
    vectors = rng.normal(size=(40, 4))
    task = decoding_study.similar_items(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), ids, seed=0)
    trie = PrefixTrie.build(ids.unique)
    prompts = decoding_study.items_of(torch.cat([task.pairs[:, :2], task.pairs[:, :2]], dim=1), task.tokens, trie)
    assert not set(prompts) & set(task.held_out) and set(prompts) | set(task.held_out) == set(range(40))
    answers = decoding_study.items_of(task.pairs, task.tokens, trie)
    assert (answers == task.neighbours[np.unique(prompts)].ravel()).all()
    wrong = task.pairs[:1].clone()
    wrong[0, 2] = task.tokens[0][-1]
    wrong[0, 3] = task.tokens[1][-1]
    assert decoding_study.items_of(wrong, task.tokens, trie).tolist() == ([-1] if ids.sizes[0] == 8 else [39])


def test_a_model_learns_and_its_search_is_timed(shop):
    task = decoding_study.similar_items(shop.vectors, shop.ids, seed=0)
    sizes = scale.get("smoke", similar_steps=2, dim=8)
    model, epochs = decoding_study.train(task, sizes, seed=0)
    prompts = {"input_ids": task.as_tokens[:2], "attention_mask": torch.ones_like(task.as_tokens[:2])}
    timed = decoding_study.Timed(scorers.CausalScorer(model, task.tokens))
    search = partial(beam_search.constrained_beam_search, timed, prompts, PrefixTrie.build(shop.ids.unique), 5, 5)
    seconds, found = decoding_study.best_seconds(search)
    assert np.isfinite(epochs[-1].loss) and found.items.shape == (2, 5)
    assert seconds > 0 and all(part > 0 for part in timed.parts.values())


# --- next item ---


@pytest.fixture
def evaluations() -> dict[str, evaluate.Evaluation]:
    """Of every method, 20 users with lists of 100, of which TIGER finds nothing."""
    rng = np.random.default_rng(1)
    made = {}
    for name in LABELS:
        rank = rng.integers(1, 200, 20).astype(float)
        rank[(rank > 100) | (name == "tiger")] = np.inf
        lists = rng.integers(0, 30, (20, 100))
        made[name] = evaluate.Evaluation(rank, lists, 1.0, name != "popularity", np.arange(20) < 12)
    return made


def test_lists_come_back_as_they_were_kept(evaluations, tmp_path):
    artefacts = Store("shop", "smoke", "", tmp_path)
    next_item_study.save_lists(artefacts, evaluations)
    loaded = next_item_study.load_lists(artefacts)
    groups = ["a", "b"] * 10
    for name, each in evaluations.items():
        assert (loaded[name].recommended == each.recommended[:, :10]).all()
        assert loaded[name].exclude_seen == each.exclude_seen
        assert (loaded[name].later_day == each.later_day).all()
        before, after = (evaluate.by_group(one, groups).xs("recall@10", level="metric") for one in (each, loaded[name]))
        assert before.equals(after)
    without = {name: each._replace(later_day=None) for name, each in evaluations.items()}
    next_item_study.save_lists(artefacts, without)
    assert all(each.later_day is None for each in next_item_study.load_lists(artefacts).values())


def test_tables_show_names_and_no_keys(evaluations):
    table = next_item_study.table({f"{name}_refit": each for name, each in evaluations.items()}, ["recall@10"])
    assert list(table.index) == [LABELS[name] for name in evaluations] and list(table) == ["Recall@10"]
    of_seeds = {name: [each] for name, each in evaluations.items()} | {"timeline": [evaluations["timeline"]] * 2}
    pairs = [("timeline", "sasrec"), ("timeline_item_knn", "timeline_item_knn")]
    rows = next_item_study.difference_rows(of_seeds, pairs, [0, 1])
    ahead = evaluate.differences(evaluations["timeline"], evaluations["sasrec"])
    for later_day in (False, True):
        table = next_item_study.difference_table(rows, later_day)
        metrics = [metric for metric in ahead.index if metric.startswith("later_day_") == later_day]
        assert list(table) == [metric_name(metric) for metric in metrics]
        assert later_day or list(table.index) == ["timeline − SASRec", "(timeline + item-kNN) − (timeline + item-kNN)"]
        for metric in metrics:
            found = table.loc["timeline − SASRec", metric_name(metric)]
            assert found == shown(*ahead.loc[metric]) + in_brackets(0.0)


def test_components_are_ranked_alone_and_with_item_knn(shop, new_timeline):
    histories, vectors = dataset.Histories.from_lists(shop.histories), shop.vectors
    untrained = next_item_study.untrained(histories, vectors)
    assert set(untrained) <= set(LABELS)
    model, prior = new_timeline(), untrained["item_knn"].prior
    ranks = next_item_study.component_ranks(model, {"item_knn": prior}, {"item_knn": (0.2, 0.3, 0.5)})
    ranks["code_head_item_knn"] = next_item_study.code_head_with_prior(model, prior)
    assert set(ranks) <= set(LABELS)
    lists = {name: rank(shop.histories[:3], 40, exclude_seen=False).items for name, rank in ranks.items()}
    for found in lists.values():
        assert (np.sort(found, axis=1) == np.arange(40)).all()
    assert len({found.tobytes() for found in lists.values()}) == len(lists)
    code, knn = recipes.log_probs(model, shop.histories[:3], weights=(1, 0)), prior(shop.histories[:3])
    assert (lists["code_head_item_knn"] == np.argsort(-(code + knn), axis=1, kind="stable")).all()


@pytest.mark.parametrize(
    ("histories", "why"),
    [(None, "has no histories"), ([("ann", [0, 1])], "has 1 histories"), ([("ann", [0, 1, 0])], "has 2 items")],
)
def test_a_shop_without_usable_histories_is_replaced(histories, why, tmp_path, monkeypatch):
    write_folder(tmp_path / "cold", [{"item_id": at, "title": "x"} for at in range(2)], histories)
    load = dataset.load  # making the demo shop takes seconds
    monkeypatch.setattr(dataset, "load", lambda data: SimpleNamespace(name="demo") if data == "demo" else load(data))
    shop, instead = next_item_study.load_shop(tmp_path / "cold")
    assert shop.name == "demo" and instead.startswith(f"cold {why}")


def test_what_chapter_07_reads_and_records(artefacts, shop, tmp_path):
    ids, tiger_ids, vectors = next_item_study.load_ids(SimpleNamespace(), artefacts, "")
    assert (ids.unique == tiger_ids.unique).all() and np.allclose(vectors, shop.vectors, atol=1e-6)
    items = [{"item_id": at, "title": f"item {at}"} for at in range(10)]
    write_folder(tmp_path / "warm", items, [("ann", [0, 1, 2])])
    warm, instead = next_item_study.load_shop(tmp_path / "warm")
    assert warm.name == "warm" and instead == ""
    assert next_item_study.time_split(warm.histories) == (None, "has no times")
    since_first = dataset.Histories.from_lists([[0, 1, 2]], times=[[0, 5, 9]], times_are_relative=True)
    assert "count from each user's first interaction" in next_item_study.time_split(since_first)[1]
    same_day = dataset.Histories.from_lists([[0, 1, 2]], times=[[5, 5, 5]])
    assert next_item_study.time_split(same_day)[1].startswith("has no time-based split: ")
    model = torch.nn.Linear(2, 1)
    runs = {"tiger": {seed: Trained(model, [Epoch(0, 1.0, 0.25, 7.0)], {"commit": "c"}) for seed in (0, 1)}}
    assert next_item_study.run_table(runs).loc["TIGER, seed 0"].tolist() == ["3", 1, 0, "0.2500", 7]
    rows = next_item_study.training_rows(runs)
    assert {row["key"]: row["value"] for row in rows}["training/tiger/validation_recall@10"] == 0.25
    times = next_item_study.waiting_times(lambda histories, k: None, warm.histories)
    assert set(times) == {"batched_ms", "alone_p50_ms", "alone_p99_ms"}


def test_beams_by_hand():
    ten = evaluate.Evaluation(np.array([1.0, np.inf]), np.array([[3, 99] * 5, [4, 4] * 5]), 0.5)
    assert next_item_study.beam_rows({10: ten}, n_items=9) == {
        10: {"recall@10": 0.5, "validity": 0.75, "ms a user": 250.0}
    }


# --- figures ---


def test_a_method_has_its_colour_in_every_figure(evaluations):
    lines = [
        line for line in figures_models.recall_curves(evaluations, 200).axes[0].lines if line.get_label()[0] != "_"
    ]
    shown = {line.get_label(): line.get_color() for line in lines}
    assert shown.pop("by chance") == "black"
    assert shown == {label: figures.COLOURS[label] for label in LABELS.values()}
    groups = {"length": ["a", "b"] * 10, "popularity": ["c"] * 20}
    bars = figures_models.recall_by_group(evaluations, groups).axes[1].containers
    found = {
        one.get_label(): matplotlib.colors.to_hex(one[0].get_facecolor()) for one in bars if one.get_label()[0] != "_"
    }
    assert {label: figures.COLOURS[label] for label in LABELS.values()} == found
    tests = {"dense": query_evaluation([1, 0]), "LLM": query_evaluation([0, 1])}
    panels = {"old": (tests, np.array([True, True])), "none": (tests, np.array([False, False]))}
    [axis] = figures_models.recall_panels(panels).axes  # an empty panel is left out
    assert [line.get_color() for line in axis.lines[::2]] == [figures.COLOURS["dense"], figures.COLOURS["LLM"]]
    plt.close("all")


def test_figures_of_training_and_beams_draw_what_they_are_given():
    losses = pd.DataFrame({"stage": ["rows", "full", "full"], "step": [1, 1, 2], "loss": [3.0, 2.0, 1.0]})
    assert [line.get_label() for line in figures_models.fine_tuning_loss(losses, 2.5).axes[0].lines][:2] == [
        "stage: rows",
        "stage: full",
    ]
    accuracy = pd.DataFrame({"1 code": [0.5, 0.1], "2 codes": [0.2, 0.0]}, index=["LLM, free", "most common prefix"])
    free, common = figures_models.prefix_accuracy(accuracy).axes[0].lines
    assert free.get_linestyle() == "--" and list(common.get_ydata()) == [0.1, 0.0]
    rows = {10: {"recall@10": 0.1, "ms per user": 1.0}, "exact": {"recall@10": 0.2, "ms per user": 9.0}}
    left, _ = figures_models.beam_widths(pd.DataFrame(rows).T).axes
    assert left.lines[1].get_ydata()[0] == 0.2
    tree = PrefixTrie.build(np.array([[0, 0], [0, 1], [1, 1]]))
    texts = [text.get_text() for text in figures_models.trie(tree).axes[0].texts]
    assert texts.count("1") == 3 and texts[-3:] == ["item 0", "item 1", "item 2"]
    plt.close("all")
