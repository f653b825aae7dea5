"""The checks of an auditor who trusts none of our code: files are read, split, ranked and counted here, by plain loops.

The only code of ours that is called is what is checked: `dataset.leave_one_out`, two baselines, `evaluate.evaluate` and
`evaluate.figures`. The demo shop is always audited, and Amazon Beauty if `SEMID_DATA` names the folder that holds it.
"""

import gzip
import json
import math
import os
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from semid_lib.data import dataset
from semid_lib.data.demo_shop import write_demo_shop
from semid_lib.evaluation import evaluate
from semid_lib.next_item.baselines import ItemKNN, Popularity

BEAUTY = Path(os.environ.get("SEMID_DATA", "no data")) / "beauty"
WHERE_IT_IS = [pytest.mark.slow, pytest.mark.skipif(not BEAUTY.is_dir(), reason="SEMID_DATA names no folder of it")]
K = 10


class Audited(NamedTuple):
    name: str
    users: list[str]  # as in the file
    histories: list[list[int]]  # item rows of each user: line numbers of the item file, from 0
    days: list[list[str]]  # the UTC date of each interaction
    n_items: int
    split: Any  # what is checked


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def read(folder: Path, name: str) -> Audited:
    row_of = {str(json.loads(line)["item_id"]): row for row, line in enumerate(lines(folder / "items.jsonl.gz"))}
    users, histories, days = [], [], []
    for bought, at in zip(lines(folder / "sequences.tsv.gz"), lines(folder / "timestamps.tsv.gz"), strict=True):
        (user, items), (again, times) = bought.split("\t"), at.split("\t")
        assert user == again
        users.append(user)
        histories.append([row_of[item] for item in items.split()])
        days.append([datetime.fromtimestamp(int(time), UTC).date().isoformat() for time in times.split()])
        assert len(days[-1]) == len(histories[-1])
    split = dataset.leave_one_out(dataset.load(folder).histories)
    return Audited(name, users, histories, days, len(row_of), split)


@pytest.fixture(scope="module", params=["demo", pytest.param("beauty", marks=WHERE_IT_IS)])
def audited(request, tmp_path_factory):
    if request.param == "beauty":
        return read(BEAUTY, "beauty")
    folder = tmp_path_factory.mktemp("shop")
    write_demo_shop(folder)
    return read(folder, "demo")


@pytest.fixture(scope="module")
def evaluations(audited):
    """Lists of 10 for the test users, by the library."""
    methods = {"popularity": Popularity, "item_knn": ItemKNN}
    train, test = audited.split.train, audited.split.test
    return {
        name: evaluate.evaluate(method(train, audited.n_items).rank, test, K, exclude_seen=True)
        for name, method in methods.items()
    }


def with_a_test(audited):
    """Positions of the users who have enough interactions to be tested."""
    return [user for user, history in enumerate(audited.histories) if len(history) >= 3]


def trained_on(history):
    return history[:-2] if len(history) >= 3 else history


# --- the split ---


def test_the_split_is_that_of_the_file(audited):
    split, users = audited.split, with_a_test(audited)
    assert [history.tolist() for history in split.train] == list(map(trained_on, audited.histories))
    for examples, held_out in ((split.validation, 2), (split.test, 1)):
        assert examples.users.tolist() == users
        assert list(examples.histories.user_ids) == [audited.users[user] for user in users]
        assert examples.targets.tolist() == [audited.histories[user][-held_out] for user in users]
        inputs = [history.tolist() for history in examples.histories]
        assert inputs == [audited.histories[user][:-held_out] for user in users]


def test_no_held_out_interaction_is_trained_on(audited):
    """Counts, in which order plays no part: training and the two held out items make up each user's history."""
    split = audited.split
    held_out = {user: [] for user in range(len(audited.users))}
    for examples in (split.validation, split.test):
        for user, target in zip(examples.users.tolist(), examples.targets.tolist(), strict=True):
            held_out[user].append(target)
    for user, (history, trained) in enumerate(zip(audited.histories, split.train, strict=True)):
        left = Counter(history)
        left.subtract(trained.tolist())
        left.subtract(held_out[user])
        assert not any(left.values())
        if len(set(history)) == len(history):
            assert not set(held_out[user]) & set(trained.tolist())


def test_a_later_day_is_what_the_raw_times_say(audited):
    for examples, held_out in ((audited.split.validation, 2), (audited.split.test, 1)):
        days = [audited.days[user] for user in examples.users.tolist()]
        assert examples.later_day.tolist() == [day[-held_out] > day[-held_out - 1] for day in days]


def test_counts_of_beauty_are_those_of_its_readme(audited):
    if audited.name == "beauty":
        trained = {item for history in audited.split.train for item in history.tolist()}
        assert (len(audited.users), audited.n_items, len(trained)) == (22_363, 12_101, 12_068)
        assert sum(map(len, audited.split.train)) == 153_776
        assert sum(target not in trained for target in audited.split.test.targets.tolist()) == 138
        assert sum(target not in trained for target in audited.split.validation.targets.tolist()) == 51
        assert audited.split.test.later_day.tolist().count(False) == 9_719


# --- the lists ---


def test_lists_hold_unseen_items_each_once(audited, evaluations):
    for found in evaluations.values():
        assert found.recommended.shape == (len(with_a_test(audited)), K)
        for user, items in zip(with_a_test(audited), found.recommended.tolist(), strict=True):
            assert len(set(items)) == K
            assert min(items) >= 0
            assert max(items) < audited.n_items
            assert not set(items) & set(audited.histories[user][:-1])


def test_figures_of_a_list_are_those_counted_by_hand(audited, evaluations):
    """From the lists to the figures: the target's place, looked up in each list."""
    for found in evaluations.values():
        hits, gain = [], []
        for user, items in zip(with_a_test(audited), found.recommended.tolist(), strict=True):
            target = audited.histories[user][-1]
            hits.append(target in items)
            gain.append(1 / math.log2(items.index(target) + 2) if target in items else 0.0)
        ours = evaluate.figures(found)["mean"]
        assert ours["recall@10"] == pytest.approx(sum(hits) / len(hits), abs=1e-9)
        assert ours["ndcg@10"] == pytest.approx(sum(gain) / len(gain), abs=1e-9)


# --- the figures, from the file ---


def figures(audited, scores_of) -> tuple[float, float]:
    """Recall@10 and NDCG@10 of scores, seen items left out; of equal scores the lower row is first."""
    recall = ndcg = 0.0
    users = with_a_test(audited)
    for user in users:
        *history, target = audited.histories[user]
        scores = scores_of(history)
        scores[history] = -np.inf
        better = np.count_nonzero(scores > scores[target]) + np.count_nonzero(scores[:target] == scores[target])
        if target not in history and better < K:
            recall += 1
            ndcg += 1 / math.log2(better + 2)
    return recall / len(users), ndcg / len(users)


def by_popularity(audited):
    counts = np.zeros(audited.n_items)
    for history in audited.histories:
        for item in trained_on(history):
            counts[item] += 1
    return lambda history: counts.copy()


def by_neighbours(audited):
    """The formula of `ItemKNN` at its defaults, pair by pair."""
    exponent, backward, decay, window = 0.2, 0.25, 0.7, 50
    counts = by_popularity(audited)([])
    weights: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for history in audited.histories:
        trained = trained_on(history)
        for later, item in enumerate(trained):
            for earlier in range(max(0, later - window), later):
                distance = later - earlier
                weights[trained[earlier]][item] += distance**-0.5
                weights[item][trained[earlier]] += backward * distance**-0.5
    near = {
        item: (
            np.array(list(others)),
            np.array([weight / (counts[item] * counts[other]) ** exponent for other, weight in others.items()]),
        )
        for item, others in weights.items()
    }

    def scores_of(history):
        votes = np.zeros(audited.n_items)
        for age, item in enumerate(reversed(history)):
            if item in near:
                others, weight = near[item]
                votes[others] += decay**age * weight  # each of the others is there once
        return np.where(votes > 0, votes, counts / counts.max() - 1)

    return scores_of


@pytest.mark.parametrize(("name", "scores"), [("popularity", by_popularity), ("item_knn", by_neighbours)])
def test_figures_are_those_recomputed_from_the_file(audited, evaluations, name, scores):
    ours = evaluate.figures(evaluations[name])["mean"]
    recall, ndcg = figures(audited, scores(audited))
    assert ours["recall@10"] == pytest.approx(recall, abs=1e-6)  # no user differs
    assert ours["ndcg@10"] == pytest.approx(ndcg, abs=1e-6)
    assert 0 < recall < 1
    if (audited.name, name) == ("beauty", "popularity"):
        assert round(recall, 4) == 0.0115  # as published
