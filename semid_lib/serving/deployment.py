"""An endpoint in the cloud: its settings, checked before they cost anything, and how fast it answers.

`modal_app` reads the settings; `measure` sends requests to any endpoint that serves `http.web`, wherever it runs.
"""

import os
import re
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semid_lib.data import dataset
from semid_lib.serving.http.middleware import TOKEN, check_token
from semid_lib.workbench import store

if TYPE_CHECKING:
    import httpx

_NAME = r"[\w-][\w.-]*"
_NAMES = rf"^{_NAME}(/{_NAME})*$"
_WHAT = {  # is expected of a field with a pattern
    "model": "the name of a folder in the Volume or of a repository on the Hub",
    "revision": "a commit, 40 hexadecimal digits: a branch or a tag may move",
    "gpu": "a name and perhaps a number, such as L4 or H100:2",
    "warm_up": "a cron line of five fields, such as */4 8-18 * * 1-5",
}


class Settings(BaseModel):
    """What is deployed, and what it may cost; each field is read from the environment variable behind it.

    The defaults are the cheapest that work: no GPU, no container without requests, never more than one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("recommender", pattern=_NAMES)  # SEMID_MODEL: in the Volume; with a revision on the Hub
    revision: str = Field("", pattern="^([0-9a-f]{40})?$")  # SEMID_REVISION: the commit of that repository
    engine: Literal["transformers", "vllm"] = "transformers"  # SEMID_ENGINE: what runs a language model
    gpu: str = Field("", pattern=r"^([A-Za-z][\w-]*!?(:[1-8])?)?$")  # SEMID_GPU: none, or Modal's name of one
    cpu: float = Field(2.0, ge=0.125, le=64)  # SEMID_CPU: cores that are reserved and paid for
    memory: int = Field(2048, ge=512, le=344064)  # SEMID_MEMORY: MiB that are reserved; more is used, and paid for
    scaledown: int = Field(60, ge=2, le=3600)  # SEMID_SCALEDOWN: seconds that an idle container waits for a request
    min_containers: int = Field(0, ge=0, le=100)  # SEMID_MIN_CONTAINERS: always running, also without requests
    max_containers: int = Field(1, ge=1, le=100)  # SEMID_MAX_CONTAINERS: limits the cost of a traffic peak
    concurrency: int = Field(32, ge=1, le=512)  # SEMID_CONCURRENCY: requests at once in one container
    timeout: int = Field(60, ge=21, le=3600)  # SEMID_TIMEOUT: seconds for a request; the service gives up after 20
    snapshot: bool = True  # SEMID_SNAPSHOT: start containers from a memory snapshot of a warm one
    warm_up: str = Field("", pattern=r"^(\S+(\s+\S+){4})?$")  # SEMID_WARM_UP: when to wake a container, in UTC
    public: bool = False  # SEMID_PUBLIC: answer everyone if there is no token

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.min_containers > self.max_containers:
            raise ValueError(f"SEMID_MIN_CONTAINERS is {self.min_containers}, expected at most SEMID_MAX_CONTAINERS")
        if self.engine == "vllm" and not self.gpu:
            raise ValueError("SEMID_ENGINE is vllm, expected a GPU with it (SEMID_GPU=L4)")
        if self.revision and self.model.count("/") != 1:
            raise ValueError(f"SEMID_MODEL is {self.model}, expected owner/name with SEMID_REVISION")
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the variables, by default of this process; one that is not set, or empty, is the default.

        Raises
        ------
        ValueError
            Naming the variable for a value that cannot work.

        Examples
        --------
        >>> Settings.from_environment({"SEMID_GPU": "L4", "SEMID_SCALEDOWN": "300"}).scaledown
        300
        """
        environment = os.environ if environment is None else environment
        found: dict[str, Any] = {field: environment.get(_variable(field)) for field in cls.model_fields}
        try:
            return cls(**{field: text for field, text in found.items() if text})
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # of `_fits`
                raise ValueError(first["msg"].removeprefix("Value error, ")) from None
            field = str(first["loc"][0])
            expected = _WHAT.get(field) or first["msg"].replace("Input should be ", "")
            raise ValueError(f"{_variable(field)} is {first['input']}, expected {expected}") from None

    def environment(self) -> dict[str, str]:
        """The variables of all values that are not the default: `from_environment` reads the same settings from them.

        >>> Settings(gpu="L4", snapshot=False).environment()
        {'SEMID_GPU': 'L4', 'SEMID_SNAPSHOT': '0'}
        """
        changed = self.model_dump(exclude_defaults=True)
        return {_variable(name): str(int(x) if isinstance(x, bool) else x) for name, x in changed.items()}

    def how(self) -> dict[str, Any]:
        """Arguments of `Recommender.from_pretrained` besides the model."""
        return {"device": "cuda" if self.gpu else "cpu", "revision": self.revision or None, "engine": self.engine}

    @property
    def snapshots(self) -> bool:
        """Whether containers start from snapshots; not with vLLM, where this is untested."""
        return self.snapshot and self.engine != "vllm"

    def check_token(self, token: str | None) -> None:
        """Raise ValueError for a token that no client can send, and for an endpoint that is open by oversight."""
        if bool(token) == self.public:
            found = "set and SEMID_PUBLIC is 1" if token else "not set, so the endpoint would answer everyone"
            raise ValueError(f"{TOKEN} is {found}: set either {TOKEN} or SEMID_PUBLIC=1")
        if token:
            check_token(token)


def _variable(field: str) -> str:
    return f"SEMID_{field.upper()}"


# --- how fast an endpoint answers ---


class Answers(NamedTuple):
    """Response times in seconds, as a client across the network sees them."""

    cold: list[float]  # first responses of new containers
    missed: int  # responses that were meant to be cold but came from a container that was awake
    warm: list[float]  # one after the other, on one connection


def measure(url: str, token: str | None, cold: int, warm: int, wait: float) -> Answers:
    """Time an endpoint: `cold` requests after `wait` idle seconds each, then `warm` requests in a row.

    The endpoint's /metrics tell whether a response was a container's first.

    Raises
    ------
    ValueError
        For a URL that would send the token unencrypted, and an endpoint that refuses or is another.
    OSError
        If the endpoint does not answer.
    """
    import httpx

    if not re.fullmatch(r"https://[^\s/?#@]+/?|http://(127\.0\.0\.1|localhost)(:\d+)?/?", url):
        raise ValueError(f"the URL is {url!r}, expected https://host, or http:// on this machine")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # a container that starts may take minutes for its first response
    client = partial(httpx.Client, base_url=url, headers=headers, timeout=600, follow_redirects=True)
    try:
        with client() as connection:
            can = connection.get("/catalogue").raise_for_status().json()
        body: dict[str, Any] = {"item_ids": []} if can["can_recommend"] else {"query": "a"}
        path = "/recommend" if can["can_recommend"] else "/search"
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(cold):
            time.sleep(wait)
            with client() as connection:
                seconds = _seconds(connection, path, body)
                lines = connection.get("/metrics").raise_for_status().text.splitlines()
            # requests that the container has answered, by its own count
            counts = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("semid_requests_total{")]
            times[sum(counts) == 1].append(seconds)
        with client() as connection:
            _seconds(connection, path, body)  # opens the connection
            return Answers(times[True], len(times[False]), [_seconds(connection, path, body) for _ in range(warm)])
    except httpx.TransportError as error:
        raise OSError(f"{url} does not answer: {error}") from error
    except httpx.HTTPStatusError as error:
        answer = error.response
        raise ValueError(f"{answer.request.url} answers {answer.status_code}: {answer.text[:200]}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{url} is another service: /catalogue does not list models") from error


def _seconds(connection: "httpx.Client", path: str, body: dict) -> float:
    started = time.perf_counter()
    connection.post(path, json=body | {"k": 10}).raise_for_status()
    return time.perf_counter() - started


def measure_endpoint(
    url: str, data: str, scale: str, cold: int, warm: int, wait: float | None
) -> tuple[Answers, list[dict[str, Any]], Path | None]:
    """`measure`, and keep the result as rows of a data set and scale, which chapter 08 reads.

    Returns
    -------
    answers : Answers
    rows : list of dict
    path : Path or None
        Of the rows; None if there are none.
    """
    settings, shop = Settings.from_environment(), dataset.load(data)
    answers = measure(url, os.environ.get(TOKEN), cold, warm, settings.scaledown + 60 if wait is None else wait)
    rows = answer_rows(answers, settings)
    return answers, rows, store.Store(shop.name, scale, shop.fingerprint).record("08_endpoint", rows) if rows else None


def answer_rows(answers: Answers, settings: Settings) -> list[dict[str, Any]]:
    """Result rows for `store.Store.record`; none without a measurement.

    >>> [row["key"] for row in answer_rows(Answers([2.0, 4.0], 1, []), Settings())]
    ['deployment/endpoint_cold/seconds']
    """
    found = {}
    if answers.cold:
        found["endpoint_cold/seconds"] = round(statistics.median(answers.cold), 3), len(answers.cold)
    for share in (50, 95) if answers.warm else ():
        milliseconds = 1000 * float(np.percentile(answers.warm, share))
        found[f"endpoint_warm/p{share}_ms"] = round(milliseconds, 1), len(answers.warm)
    endpoint = {name: getattr(settings, name) for name in ("gpu", "cpu", "engine", "snapshot")}
    return [{"key": f"deployment/{key}", "value": x, "n": n, "endpoint": endpoint} for key, (x, n) in found.items()]
