"""Clients of a service that runs in this process."""

import httpx
import pytest

from semid_lib.serving.http import web
from semid_lib.serving.http.middleware import Limits


@pytest.fixture
def new_client(recommender_to_serve, serve):
    """Makes a client of a new service."""

    def make(limits: Limits | None = None, recommender=recommender_to_serve, **more) -> httpx.Client:
        app = web.create_app(recommender, limits, **more)
        app.state.service.warm_up()
        client = httpx.Client(base_url=serve(app), timeout=30)
        client.service = app.state.service
        return client

    return make


@pytest.fixture
def client(new_client) -> httpx.Client:
    return new_client()


@pytest.fixture
def ids(shop) -> list[int]:
    return shop.items["item_id"].tolist()
