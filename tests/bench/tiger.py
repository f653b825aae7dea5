"""TIGER trained for longer than at `laptop`: hours of one core instead of minutes, with dropout.

Dropout and epochs are arguments; all other settings are those of the scale. The test users are looked at once, by the
epoch that is best on validation.
"""

from functools import partial

import typer

from semid_lib.data import dataset
from semid_lib.evaluation import evaluate
from semid_lib.next_item import recipes
from semid_lib.studies import next_item_study as study
from semid_lib.workbench import scale
from semid_lib.workbench.store import Store


def main(data: str, scale_name: str = "laptop", dropout: float = 0.1, epochs: int = 30, seed: int = 0) -> None:
    """Train, evaluate with seen items excluded and allowed, and record the rows. data: a folder, after chapter 02."""
    task, _ = recipes.task_of("tiger", data, scale_name)
    shop = dataset.load(data)
    artefacts = Store(shop.name, scale_name, shop.fingerprint)
    task = task._replace(sizes=scale.get(scale_name, shop.name, tiger_dropout=dropout, tiger_epochs=epochs))
    run = recipes.train_tiger(task, recipes.load_ids(artefacts, rqvae=True), seed, progress=True)
    print(study.run_table({"tiger": {seed: run}}).to_string(), flush=True)
    test = recipes.sample(dataset.leave_one_out(shop.histories).test, task.sizes.test_users)
    measure = partial(evaluate.evaluate, run.model.rank, test, progress=True)
    found = {"tiger_long": measure(k=min(task.sizes.list_length, len(shop.items)))}
    if test.exclude_seen:
        found["tiger_long_seen_allowed"] = measure(k=10, exclude_seen=False)
    rows = [row for name, each in found.items() for row in evaluate.rows(f"next_item/{name}", [each], [seed])]
    rows = [row | run.origin for row in rows] + study.training_rows({"tiger_long": {seed: run}})
    print(study.table(found).to_string())
    print(artefacts.record("tiger_long", rows))


if __name__ == "__main__":
    typer.run(main)
