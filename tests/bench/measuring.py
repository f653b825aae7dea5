"""What the benches share: a process of its own for a measurement, and result rows."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd

from semid_lib.data import dataset
from semid_lib.studies.growth import catalogue
from semid_lib.workbench import store


def sample_of(data: str, scale: str) -> catalogue.Sample:
    """The sample of a data set on which chapters 01 and 02 have run at this scale."""
    shop = dataset.load(data)
    return catalogue.sample(shop, store.Store(shop.name, scale, shop.fingerprint))


def alone(work, *arguments, timeout: float | None = None):
    """What the work returns in a fresh process. Raises its errors, TimeoutError, or BrokenProcessPool if it died."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result(timeout)
        except TimeoutError:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def record(shelf: store.Store, step: str, topic: str, lines: list[dict]) -> None:
    """Print lines of a table, whose "method" is the name of each, and keep their numbers as result rows."""
    print(topic, pd.DataFrame(lines).round(3).to_string(index=False, na_rep=""), sep="\n")
    rows = [
        {"key": f"{topic}/{line['method']}/{name}", "value": round(float(value), 7)}
        for line in lines
        for name, value in line.items()
        if name != "method" and np.isfinite(value)
    ]
    print(shelf.record(step, rows), store.hardware())
