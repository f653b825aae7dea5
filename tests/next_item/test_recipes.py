"""Recipes and runs of the next-item models: found again, stopped and resumed, on one process and on two."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from semid_lib.cli import main
from semid_lib.data import dataset, demo_shop, folder
from semid_lib.data.folder import open_store
from semid_lib.decoding import beam_search
from semid_lib.evaluation import metrics
from semid_lib.ids.semantic_ids import SemanticIDs
from semid_lib.next_item import batches, recipes, sasrec
from semid_lib.workbench import scale, training
from semid_lib.workbench.store import Store, hardware

# what two processes run: no dropout, and the first attempt is stopped at the last of the three steps of an epoch
PROGRAM = """
import sys
from semid_lib.cli import main
from semid_lib.next_item import tiger
from semid_lib.workbench import training
usual, left = tiger.Tiger.forward, [9]
training._SAVE_EVERY = 2

def forward(model, batch):
    left[0] -= 1
    if left[0] == 0:
        raise KeyboardInterrupt
    return usual(model, batch)

tiger.Tiger.forward = forward
if main(sys.argv[1:]) == 130:
    print("stopped")
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def shop_folder(tmp_path, monkeypatch):
    """A small shop with vectors and semantic IDs, and artefacts in a folder of its own."""
    folder = tmp_path / "small"
    demo_shop.write_demo_shop(folder, n_items=100, n_users=60, n_queries=5)
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "alone"))
    shop, rng = dataset.load(folder), np.random.default_rng(0)
    arrays = {}
    for prefix in ("", "rqvae_"):
        ids = SemanticIDs.from_codes(rng.integers(0, 8, (100, 2)), codebook_size=8)
        arrays |= {f"{prefix}{'unique_' if prefix else ''}codes": ids.codes}
        arrays |= {f"{prefix}disambiguation_code": ids.disambiguation_code}
    for artefacts in ("alone", "together"):
        shelf = Store(shop.name, "smoke", shop.fingerprint, root=tmp_path / artefacts)
        shelf.save("semantic_ids", arrays, codebook_size=8)
        shelf.save("embeddings", {"vectors": rng.normal(size=(100, 12)).astype(np.float32)})
    return folder


@pytest.fixture
def task(shop_folder):
    """The artefacts and task of chapter 07 for the shop."""
    shop, sizes = dataset.load(shop_folder), scale.get("smoke")
    split = dataset.leave_one_out(shop.histories)
    artefacts = Store(shop.name, sizes.name, shop.fingerprint)
    validation = recipes.sample(split.validation, sizes.validation_users)
    return artefacts, recipes.Task(split.train, validation, sizes, artefacts.path("runs"))


def refuse_training(monkeypatch):
    """From here on, a run must be found."""

    def refuse(*_):
        raise AssertionError("a run was not found")

    monkeypatch.setattr(training, "_one_epoch", refuse)


@pytest.mark.slow
def test_two_processes_that_are_stopped_end_as_one_that_is_not(shop_folder, tmp_path, capsys, monkeypatch):
    asked = ["train", "tiger", "--data", str(shop_folder), "--scale", "smoke"]
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {
        "SEMID_ARTEFACTS": str(tmp_path / "together"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [*command, tmp_path / "program.py", *asked], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("stopped") == 2
    assert done.stdout.count("Recall@10") == 1  # only the first process prints

    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert printed.split("Recall@10")[1].split()[0] == done.stdout.split("Recall@10")[1].split()[0]
    models, names = [], set()
    for artefacts in ("alone", "together"):
        monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / artefacts))
        [run] = (open_store(str(shop_folder), "smoke").path("runs")).glob("[!.]*")
        names.add(run.name)
        with monkeypatch.context() as patch:
            refuse_training(patch)
            models.append(recipes.task_of("tiger", str(shop_folder), "smoke")[1](0).model)
    assert len(names) == 1  # the number of processes is not part of it
    one, two = models
    for name, weight in one.state_dict().items():
        np.testing.assert_allclose(two.state_dict()[name], weight, atol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "split"), [("timeline", "time"), ("tiger", "leave_one_out"), ("sasrec", "leave_one_out")]
)
def test_each_model_is_trained_once(shop_folder, model, split, capsys, monkeypatch):
    options = {"data": str(shop_folder), "scale_name": "smoke", "split": split}
    recipes.train(model, seed=3, **options)
    first = capsys.readouterr().out
    assert "Recall@10" in first
    refuse_training(monkeypatch)
    recipes.train(model, seed=3, **options)
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="not found"):
        recipes.train(model, seed=4, **options)


@pytest.mark.parametrize(
    ("split", "times", "message"),
    [
        ("leave_one_out", [[1], [1, 2], [3, 4]], "leave-one-out needs a user with 3 interactions, there are 3 users"),
        ("time", [[7, 7, 7], [7, 7, 7, 7]], "the split would start at times 7, 7 and 7: expected increasing times"),
        ("time", [[second] for second in range(20)], "no user has interactions before time"),
        ("random", [[1, 2, 3]], "split is 'random', expected one of leave_one_out, time"),
    ],
)
def test_data_that_cannot_be_tested_are_refused_before_training(tmp_path, monkeypatch, split, times, message):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    items = [{"item_id": item, "title": f"item {item}"} for item in range(1, 5)]
    histories = [(f"user{at}", list(range(1, len(seconds) + 1))) for at, seconds in enumerate(times)]
    folder.write_folder(tmp_path / "shop", items, histories, [(f"user{at}", each) for at, each in enumerate(times)])
    refuse_training(monkeypatch)
    with pytest.raises(ValueError, match=message):
        recipes.train("sasrec", str(tmp_path / "shop"), "smoke", split=split)


def test_validation_of_users_who_buy_again_may_find_seen_items(task):
    again = dataset.leave_one_out(dataset.Histories.from_lists([[0, 1, 2, 0, 1, 2, 0]] * 30))
    assert not again.validation.exclude_seen
    other = task[1]._replace(train=again.train, validation=again.validation, runs=None)
    before = torch.random.get_rng_state()
    assert recipes.train_sasrec(other, n_items=3, n_epochs=1).best.validation == 1.0  # ten of three items are returned
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_a_chapter_finds_the_runs_of_the_command_and_no_others(shop_folder, task, monkeypatch):
    recipes.train("timeline", str(shop_folder), "smoke")
    artefacts, usual = task
    assert len(list(usual.runs.glob("[!.]*"))) == usual.sizes.n_seeds  # one for each of chapter 07
    vectors = recipes.normalize(artefacts.load("embeddings")["vectors"])
    refuse_training(monkeypatch)
    found = recipes.train_timeline(usual, recipes.load_ids(artefacts), vectors)
    assert not found.model.training
    assert found.best.validation == max(epoch.validation for epoch in found.epochs if epoch.validation >= 0)
    for other in (
        {"n_epochs": 1},
        {"seed": 9},
        {"ids": recipes.load_ids(artefacts, rqvae=True)},
        {"vectors": 2 * vectors},
        {"task": usual._replace(validation=None)},
        {"task": usual._replace(sizes=scale.get("smoke", batch_size=16))},
        {"task": usual._replace(train=dataset.leave_one_out(usual.train).train)},
    ):
        with pytest.raises(AssertionError, match="not found"):
            recipes.train_timeline(**{"task": usual, "ids": recipes.load_ids(artefacts), "vectors": vectors} | other)


def test_a_run_of_other_code_is_not_found(task, monkeypatch):
    run = recipes.train_sasrec(task[1], n_items=100)
    assert run.origin["trained_on"] == hardware()
    refuse_training(monkeypatch)
    source = inspect.getsource
    monkeypatch.setattr(recipes.store, "hardware", lambda: "another machine")
    monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "\n# a comment\n")
    assert recipes.train_sasrec(task[1], n_items=100).origin == run.origin
    for changed in (sasrec, batches, training, beam_search, metrics):
        monkeypatch.setattr(
            inspect, "getsource", lambda module, of=changed: source(module) + "\nx = 1" * (module is of)
        )
        with pytest.raises(AssertionError, match="not found"):
            recipes.train_sasrec(task[1], n_items=100)


def test_without_validation_the_last_weights_are_kept(task):
    trained = recipes.train_sasrec(task[1]._replace(validation=None, runs=None), n_items=100, n_epochs=3)
    assert [epoch.epoch for epoch in trained.epochs] == [1, 2, 3]
    assert trained.best.epoch == 3
    assert trained.seconds == trained.epochs[2].seconds > 0
    assert not task[1].runs.exists()


def test_missing_data_and_artefacts_are_named(shop_folder):
    with pytest.raises(FileNotFoundError, match="run the chapter that writes 'semantic_ids'"):
        recipes.train("tiger", str(shop_folder), "laptop")
    artefacts = Store("small", "smoke", dataset.load(shop_folder).fingerprint)
    saved = artefacts.load("semantic_ids")
    old = {name: saved[name] for name in ("codes", "disambiguation_code")}
    artefacts.save("semantic_ids", old, codebook_size=8)
    with pytest.raises(ValueError, match=r"an older version made it\. Run chapter 02 again"):
        recipes.train("tiger", str(shop_folder), "smoke")
    (shop_folder / "sequences.tsv.gz").unlink()
    (shop_folder / "timestamps.tsv.gz").unlink()
    with pytest.raises(ValueError, match="small has no histories: there is nothing to train on"):
        recipes.train("sasrec", str(shop_folder), "smoke")


def test_mixture_weights_make_the_targets_most_probable(shop, new_timeline):
    model, examples = new_timeline(), dataset.leave_one_out(dataset.Histories.from_lists(shop.histories)).validation
    found = recipes.mixture_weights(model, examples)

    def likelihood(share):
        log_probs = recipes.log_probs(model, list(examples.histories), weights=(share, 1 - share))
        return log_probs[np.arange(len(examples.targets)), examples.targets].mean()

    assert sum(found) == pytest.approx(1)
    assert likelihood(found[0]) >= max(likelihood(share) for share in np.linspace(0, 1, 21)) - 1e-5


def test_a_prior_that_knows_the_answers_gets_weight_and_one_that_misleads_gets_none(shop, new_timeline):
    examples = dataset.leave_one_out(dataset.Histories.from_lists(shop.histories)).validation
    answers = {history.tobytes(): target for history, target in zip(examples.histories, examples.targets, strict=True)}

    def prior(histories):
        scores = np.zeros((len(histories), 40), dtype=np.float32)
        scores[np.arange(len(histories)), [answers[history.tobytes()] for history in histories]] = 50
        return scores

    model, heads = new_timeline(), recipes.mixture_weights(new_timeline(), examples)
    found = recipes.mixture_weights(model, examples, prior)
    assert found[2] == 0.25 and found[0] / found[1] == pytest.approx(heads[0] / heads[1])
    misled = recipes.mixture_weights(model, examples, lambda histories: -prior(histories))
    assert misled == (*heads, 0)
