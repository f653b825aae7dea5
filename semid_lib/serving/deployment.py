"""An endpoint in somebody's cloud: its settings, checked before they cost anything, and how fast it answers.

`modal_app` reads the settings; `measure` asks any endpoint that serves `web`, wherever it runs.
"""

import os
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from semid_lib.serving.http.middleware import TOKEN, check_token

_ENGINES = ("transformers", "vllm")
_YES_OR_NO = {"1": True, "0": False}


@dataclass(frozen=True)
class Settings:
    """What is deployed, and what it may cost; each field is read from the environment variable behind it.

    The defaults are the cheapest that work: no GPU, nothing runs while nobody asks, never more than one container.
    Raises ValueError that names the variable for a value that cannot work.

    >>> Settings(scaledown=1)
    Traceback (most recent call last):
    ValueError: SEMID_SCALEDOWN is 1, expected a number from 2 to 3600
    """

    model: str = "recommender"  # SEMID_MODEL: a folder in the Volume; with a revision a repository on the Hub
    revision: str = ""  # SEMID_REVISION: the commit of that repository, 40 hexadecimal digits
    engine: str = "transformers"  # SEMID_ENGINE: what runs a language model; vllm needs a GPU
    gpu: str = ""  # SEMID_GPU: none, or Modal's name of one, such as L4 or H100:2
    cpu: float = 2.0  # SEMID_CPU: cores that are reserved and paid for
    memory: int = 2048  # SEMID_MEMORY: MiB that are reserved; more is taken, and paid for, where it is needed
    scaledown: int = 60  # SEMID_SCALEDOWN: seconds that an idle container waits for the next question
    min_containers: int = 0  # SEMID_MIN_CONTAINERS: that run, and cost, even while nobody asks
    max_containers: int = 1  # SEMID_MAX_CONTAINERS: the bound on what a rush can cost
    concurrency: int = 32  # SEMID_CONCURRENCY: questions at once in one container, which answers them in batches
    timeout: int = 60  # SEMID_TIMEOUT: seconds for a question; the service itself gives up after 20
    snapshot: bool = True  # SEMID_SNAPSHOT: start containers from a picture of one that is warm
    warm_up: str = ""  # SEMID_WARM_UP: when to wake a container, as a cron line in UTC; none by default
    public: bool = False  # SEMID_PUBLIC: let everybody ask when there is no token

    def __post_init__(self):
        for field in ("cpu", "memory", "scaledown", "min_containers", "max_containers", "concurrency", "timeout"):
            low, high = _BOUNDS[field]
            if not low <= getattr(self, field) <= high:
                raise _wrong(field, getattr(self, field), f"a number from {low} to {high}")
        if self.min_containers > self.max_containers:
            raise _wrong("min_containers", self.min_containers, f"at most SEMID_MAX_CONTAINERS, {self.max_containers}")
        if self.engine not in _ENGINES:
            raise _wrong("engine", self.engine, " or ".join(_ENGINES))
        if self.engine == "vllm" and not self.gpu:
            raise _wrong("engine", self.engine, "a GPU beside it (SEMID_GPU=L4)")
        if not re.fullmatch(r"([A-Za-z][\w-]*!?(:[1-8])?)?", self.gpu):
            raise _wrong("gpu", self.gpu, "a name and perhaps a number, such as L4 or H100:2")
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", self.model):
            raise _wrong("model", self.model, "the name of a folder in the Volume or of a repository on the Hub")
        if self.revision and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise _wrong("revision", self.revision, "a commit, 40 hexadecimal digits: a branch or a tag may move")
        if self.revision and self.model.count("/") != 1:
            raise _wrong("model", self.model, "owner/name, as SEMID_REVISION is set, which is for the Hub")
        if self.warm_up and len(self.warm_up.split()) != 5:
            raise _wrong("warm_up", self.warm_up, "a cron line of five fields, such as */4 8-18 * * 1-5")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the variables, of this process by default; what is not set, or empty, is the default.

        >>> Settings.from_environment({"SEMID_GPU": "L4", "SEMID_SCALEDOWN": "300"}).scaledown
        300
        """
        environment = os.environ if environment is None else environment
        found = {field: environment.get(_variable(field), "") for field in _FIELDS}
        return cls(**{field: _read(field, text) for field, text in found.items() if text})

    def environment(self) -> dict[str, str]:
        """The variables of what is not the default, so that `from_environment` gives the same settings elsewhere.

        >>> Settings(gpu="L4", snapshot=False).environment()
        {'SEMID_GPU': 'L4', 'SEMID_SNAPSHOT': '0'}
        """
        return {
            _variable(name): str(int(value) if isinstance(value, bool) else value)
            for name, value in asdict(self).items()
            if value != _FIELDS[name].default
        }

    def how(self) -> dict[str, str]:
        """What `Recommender.from_pretrained` has to know beside the name of the model."""
        more = {"device": "cuda"} if self.gpu else {}
        if self.revision:
            more["revision"] = self.revision
        if self.engine != "transformers":
            more["engine"] = self.engine
        return more

    @property
    def snapshots(self) -> bool:
        """Whether containers start from snapshots; not with vLLM, which nobody has tried to wake from one."""
        return self.snapshot and self.engine != "vllm"

    def check_token(self, token: str | None) -> None:
        """Raises ValueError for a token that nobody could send, and for an endpoint that is open by oversight."""
        if token and self.public:
            raise ValueError(f"{TOKEN} is set and SEMID_PUBLIC=1, expected one of them")
        if not token and not self.public:
            raise ValueError(f"{TOKEN} is not set: the endpoint would answer everybody; SEMID_PUBLIC=1 if it should")
        if token:
            check_token(token)


_FIELDS = {field.name: field for field in fields(Settings)}
_BOUNDS = {
    "cpu": (0.125, 64),
    "memory": (512, 344064),
    "scaledown": (2, 3600),
    "min_containers": (0, 100),
    "max_containers": (1, 100),
    "concurrency": (1, 512),
    "timeout": (21, 3600),
}


def _variable(field: str) -> str:
    return f"SEMID_{field.upper()}"


def _wrong(field: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{_variable(field)} is {value}, expected {expected}")


def _read(field: str, text: str) -> Any:
    kind = type(_FIELDS[field].default)
    if kind is bool:
        if text not in _YES_OR_NO:
            raise _wrong(field, text, "0 or 1")
        return _YES_OR_NO[text]
    try:
        return kind(text)
    except ValueError:
        raise _wrong(field, text, "a whole number" if kind is int else "a number") from None


# --- how fast an endpoint answers ---


class Answers(NamedTuple):
    """Seconds that answers took, as a client across the network sees them."""

    cold: list[float]  # first answers of containers that had not answered before
    missed: int  # answers that were meant to be cold and came from a container that was awake
    warm: list[float]  # one after the other, on one connection


def measure(url: str, token: str | None, cold: int, warm: int, wait: float) -> Answers:
    """Ask a deployed `web` for ten items: `cold` times after `wait` idle seconds each, then `warm` times in a row.

    Whether an answer was a container's first is read from its /metrics. Raises ValueError for a URL that would send
    the token in the clear, numbers below zero, and an endpoint that refuses or is none of ours; OSError where none is.
    """
    import httpx

    if not re.fullmatch(r"https://[^\s/?#@]+/?|http://(127\.0\.0\.1|localhost)(:\d+)?/?", url):
        raise ValueError(f"the URL is {url!r}, expected https://host, or http:// on this machine")
    if min(cold, warm, wait) < 0:
        raise ValueError(f"cold {cold}, warm {warm} and wait {wait}, expected none below 0")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def client() -> httpx.Client:  # a container that starts may take minutes for its first answer
        return httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(600), follow_redirects=True)

    try:
        with client() as asking:
            question = _question(asking)
        seconds, first = [], []
        for _ in range(cold):
            time.sleep(wait)
            with client() as asking:
                seconds.append(_seconds(asking, *question))
                first.append(_answered(asking) == 1)
        with client() as asking:
            _seconds(asking, *question)  # opens the connection
            return Answers(
                [one for one, is_first in zip(seconds, first, strict=True) if is_first],
                first.count(False),
                [_seconds(asking, *question) for _ in range(warm)],
            )
    except httpx.TransportError as error:
        raise OSError(f"{url} does not answer: {error}") from error


def _checked(response) -> Any:
    if response.status_code != 200:
        raise ValueError(f"{response.request.url} answers {response.status_code}: {response.text[:200]}")
    return response


def _question(client) -> tuple[str, dict]:
    """What this endpoint can answer."""
    answer = _checked(client.get("/catalogue"))
    try:
        can_recommend = answer.json()["can_recommend"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{client.base_url} is no endpoint of this workbench: /catalogue tells no models") from error
    return ("/recommend", {"item_ids": [], "k": 10}) if can_recommend else ("/search", {"query": "a", "k": 10})


def _seconds(client, path: str, question: dict) -> float:
    started = time.perf_counter()
    _checked(client.post(path, json=question))
    return time.perf_counter() - started


def _answered(client) -> float:
    """Requests that the container has answered, by its own count."""
    lines = _checked(client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("semid_requests_total{"))


def answer_rows(answers: Answers, settings: Settings) -> list[dict[str, Any]]:
    """Result rows of what was measured, for `store.Store.record`; none of what was not.

    >>> [row["key"] for row in answer_rows(Answers([2.0, 4.0], 1, []), Settings())]
    ['deployment/endpoint_cold/seconds']
    """
    endpoint = {"endpoint": {name: getattr(settings, name) for name in ("gpu", "cpu", "engine", "snapshot")}}
    rows = []
    if answers.cold:
        value = round(statistics.median(answers.cold), 3)
        rows.append({"key": "deployment/endpoint_cold/seconds", "value": value, "n": len(answers.cold), **endpoint})
    if answers.warm:
        ranked = sorted(answers.warm)
        for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95)):
            value = round(1000 * ranked[min(int(share * len(ranked)), len(ranked) - 1)], 1)
            rows.append({"key": f"deployment/endpoint_warm/{name}", "value": value, "n": len(ranked), **endpoint})
    return rows
