"""The items of the demo shop, made once."""

import pytest

from semid_lib.data import dataset


@pytest.fixture(scope="session")
def demo_items():
    return dataset.load("demo").items
