"""The recommender on Modal: an endpoint that sleeps while nobody asks, batch prediction, and chapters on a GPU.

    semid deploy upload --folder artefacts/demo/laptop/recommender
    modal deploy -m semid_lib.serving.modal_app

are all it takes with an account. What is deployed, and what it may cost, stands in environment variables: see
`deployment.Settings`, and SEMID_TOKEN for the bearer token. Both commands refuse what cannot work before anything is
sent or built; the others (predict, train, fetch, measure) do so too, which `modal run` could not: it builds images
before it calls anything.

The endpoint is `web.create_app` and nothing else. This is the only file that imports modal.
"""

import hashlib
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import modal

from semid_lib.serving.deployment import Settings, answer_rows, measure
from semid_lib.serving.http.middleware import TOKEN

_REPOSITORY = Path(__file__).resolve().parents[2]
_PYTHON = "3.11"
_VLLM = "vllm==0.32.0"  # no extra, since its wheels are for GPU boxes; it asks for the torch of constraints.txt
# and for other versions than those there of these
_VLLM_PINS = ("apache-tvm-ffi", "lark", "llvmlite", "numba", "numpy")
_SERVING = "embed,search,serve"  # as in the Dockerfile
_ROOM, _CACHE = Path("/semid"), "/semid-cache"  # where containers see the volumes
_DAY = 24 * 3600
_REFUSALS = (ValueError, OSError, ImportError, RuntimeError, modal.exception.Error)


def _command() -> str:
    """Which of modal's commands reads this file, if one does: deploy, serve, run."""
    import click

    context = click.get_current_context(silent=True)
    return "" if context is None else context.info_name or ""


def _settings() -> Settings:
    try:
        return Settings.from_environment()
    except ValueError as error:
        if _command():
            sys.exit(f"refused: {error}")
        raise


SETTINGS = _settings()


VOLUME = modal.Volume.from_name("semid", create_if_missing=True)  # models, data/, artefacts/, batch/
CACHE = modal.Volume.from_name("semid-cache", create_if_missing=True)


# --- refused before anything is built ---


def check_deployment(settings: Settings, token: str | None) -> str:
    """Refuse an endpoint that could not answer, or that everybody could ask by oversight; tells models apart.

    The token is looked at first, then the model: all files that its `config.json` names must be in the Volume, or in
    the commit on the Hub. Returns the checksum of that. Raises ValueError that says what to do; OSError or modal's
    errors without a network or an account.
    """
    settings.check_token(token)
    text, check = (_on_hub if settings.revision else _in_volume)(settings)
    try:
        config = json.loads(text)
        sums, searcher = dict(config["sha256"]), config.get("searcher", {}).get("type")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"the config.json of {settings.model} is not what save_pretrained wrote") from None
    check(sums)
    if settings.engine == "vllm" and searcher != "language model":
        raise ValueError(f"SEMID_ENGINE is vllm, and {settings.model} holds no language model")
    return hashlib.sha256(text).hexdigest()


def _in_volume(settings: Settings) -> tuple[bytes, Callable[[dict[str, str]], None]]:
    """The model's config.json, and what checks that files are there."""
    try:
        config = b"".join(VOLUME.read_file(f"{settings.model}/config.json"))
    except (FileNotFoundError, modal.exception.NotFoundError):
        raise ValueError(
            f"there is no model {settings.model!r} in the Volume: send one with "
            "`semid deploy upload --folder FOLDER`, or name a repository on the Hub and its commit "
            "(SEMID_MODEL, SEMID_REVISION)"
        ) from None

    there = {str(PurePosixPath(path).relative_to(settings.model)) for path in _files(settings.model)}

    def check(sums: dict[str, str]) -> None:
        if missing := sorted(set(sums) - there):
            raise ValueError(f"{settings.model} has no {missing[0]} in the Volume: send it again")

    return config, check


def _on_hub(settings: Settings) -> tuple[bytes, Callable[[dict[str, str]], None]]:
    from huggingface_hub import HfApi, get_token

    from semid_lib.serving import hub

    source = hub.Source(settings.model, settings.revision)
    config = hub.fetch(source, {"config.json": None}) / "config.json"
    if get_token() and not os.environ.get("HF_TOKEN") and not HfApi(token=False).repo_exists(settings.model):
        raise ValueError(f"{settings.model} is private: set HF_TOKEN, since containers do not have your login")
    return config.read_bytes(), partial(hub.check, source)


def _checked() -> str:
    """Which model `modal deploy` or `modal serve` is about to serve; they end here if it cannot be served."""
    if not modal.is_local() or _command() not in ("deploy", "serve"):
        return ""
    try:
        if __name__ != "semid_lib.serving.modal_app":
            raise ValueError("this file was named by its path, expected -m semid_lib.serving.modal_app")
        return check_deployment(SETTINGS, os.environ.get(TOKEN))
    except _REFUSALS as error:
        sys.exit(f"refused: {error}")


def _files(folder: str) -> Iterator[str]:
    try:
        for entry in VOLUME.listdir(folder, recursive=True):
            if entry.type == modal.types.FileEntryType.FILE:
                yield entry.path.lstrip("/")
    except (FileNotFoundError, modal.exception.NotFoundError):
        return


# --- what containers are made of ---


def _image(extras: str, vllm: bool = False, extra_index: str | None = None) -> modal.Image:
    """An image with what the extras need, at the versions of constraints.txt, and the code of this working tree.

    The code is added when a container starts: an edit builds nothing again. extra_index: of packages, where a CPU
    build of torch is found; without it pip takes CUDA's, which a CPU never uses.
    """
    image = modal.Image.debian_slim(_PYTHON)
    for name in ("pyproject.toml", "constraints.txt"):
        image = image.add_local_file(_REPOSITORY / name, f"/build/{name}", copy=True)
    wanted = f'".[{extras}]"' + f" {_VLLM}" * vllm
    loosen = f"sed -Ei '/^({'|'.join(_VLLM_PINS)})==/d' constraints.txt && " * vllm
    return image.run_commands(
        # an empty package that needs what ours does; its metadata stay, and tell the version
        "cd /build && mkdir semid_lib && touch semid_lib/__init__.py README.md LICENSE"
        f" && {loosen}pip install --no-cache-dir --constraint constraints.txt {wanted}"
        " && rm -r $(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')/semid_lib",
        env={"PIP_EXTRA_INDEX_URL": extra_index} if extra_index else None,
    ).add_local_python_source("semid_lib", ignore=["**/__pycache__", "**/*.pyc"])


_EXTRA_INDEX = os.environ.get("PIP_EXTRA_INDEX_URL")
CPU_IMAGE = _image(_SERVING, extra_index=_EXTRA_INDEX)
GPU_IMAGE = _image(f"{_SERVING},sft", vllm=SETTINGS.engine == "vllm")
CHAPTERS_IMAGE = _image(
    f"{_SERVING},fast,grammars,notebooks,queries,sft,tiger", extra_index=None if SETTINGS.gpu else _EXTRA_INDEX
).add_local_dir(_REPOSITORY / "notebooks", "/root/notebooks", ignore=["**/*.ipynb", "**/.ipynb_checkpoints"])

_ENVIRONMENT = {
    **SETTINGS.environment(),
    "SEMID_MODEL_STATE": _checked(),  # another model is another deployment, so that no old snapshot answers
    "OMP_NUM_THREADS": str(max(1, round(SETTINGS.cpu))),
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "0" if SETTINGS.revision else "1",
    "HF_HOME": f"{_CACHE}/huggingface",
    "TORCHINDUCTOR_CACHE_DIR": f"{_CACHE}/inductor",
    "TRITON_CACHE_DIR": f"{_CACHE}/triton",
    "VLLM_CACHE_ROOT": f"{_CACHE}/vllm",
}
_SECRETS = {name: os.environ[name] for name in (TOKEN, "HF_TOKEN") if os.environ.get(name)}
_CONTAINER = {
    "secrets": [modal.Secret.from_dict(_SECRETS)] if _SECRETS else [],
    "cpu": SETTINGS.cpu,
    "memory": SETTINGS.memory,
    "include_source": False,  # it is in the image already
}
_ENDPOINT = {
    **_CONTAINER,
    "env": _ENVIRONMENT,
    "volumes": {str(_ROOM): VOLUME.with_mount_options(read_only=True), _CACHE: CACHE},
    "scaledown_window": SETTINGS.scaledown,
    "min_containers": SETTINGS.min_containers,
    "max_containers": SETTINGS.max_containers,
    "timeout": SETTINGS.timeout,
    "startup_timeout": 900 if SETTINGS.gpu else 120,
    "enable_memory_snapshot": SETTINGS.snapshots,
}


# --- the endpoint ---


class _Endpoint:
    """What both classes do: the service of `web`, warm before the first question."""

    @modal.enter(snap=SETTINGS.snapshots)
    def load(self) -> None:
        """From the Volume or the Hub to a service that has answered; a snapshot is taken of what this leaves."""
        from semid_lib.serving.http import web

        web.log_as_json()
        self.token = os.environ.get(TOKEN)
        self.service = web.load_app(_model(), token=self.token, **SETTINGS.how())
        service = self.service.state.service
        if not SETTINGS.snapshots:  # as `web` does: beside the first answers
            service.warm_up_beside()
            return
        service.warm_up_rest()

    @modal.enter(snap=False)
    def wake(self) -> None:
        """What a snapshot must not decide: the token, which may be another since it was taken."""
        from semid_lib.serving.http import web

        if os.environ.get(TOKEN) != self.token:
            self.token = os.environ.get(TOKEN)
            self.service = web.create_app(self.service.state.service.recommender, token=self.token)

    @modal.asgi_app()
    def web(self):
        """The HTTP service itself."""
        return self.service


def _model() -> str:
    return SETTINGS.model if SETTINGS.revision else str(_ROOM / SETTINGS.model)


on_cpu = modal.App("semid")
on_gpu = modal.App("semid-gpu")


@on_cpu.cls(image=CPU_IMAGE, **_ENDPOINT)
@modal.concurrent(max_inputs=SETTINGS.concurrency)
class SmallModels(_Endpoint):
    """The timeline and the light model, on a CPU."""


@on_gpu.cls(
    image=GPU_IMAGE,
    gpu=SETTINGS.gpu or "L4",
    experimental_options={"enable_gpu_snapshot": True} if SETTINGS.snapshots else None,
    **_ENDPOINT,
)
@modal.concurrent(max_inputs=SETTINGS.concurrency)
class LanguageModel(_Endpoint):
    """A language model that writes semantic IDs, on a GPU, through transformers or vLLM."""


app = on_gpu if SETTINGS.gpu else on_cpu  # what `modal deploy` and `modal serve` take


@app.function(
    image=GPU_IMAGE if SETTINGS.gpu else CPU_IMAGE,
    env=_ENVIRONMENT,
    include_source=False,
    schedule=modal.Cron(SETTINGS.warm_up) if SETTINGS.warm_up else None,
    timeout=_ENDPOINT["startup_timeout"],
)
def keep_warm() -> None:
    """Ask the endpoint whether it is alive, which wakes a container; it stays for SEMID_SCALEDOWN seconds."""
    with urllib.request.urlopen(f"{_url()}/healthz", timeout=_ENDPOINT["startup_timeout"]) as answer:
        answer.read()


def _url() -> str:
    return (LanguageModel if SETTINGS.gpu else SmallModels)().web.get_web_url()


# --- batch ---

batch = modal.App("semid-batch")


@batch.function(
    image=GPU_IMAGE if SETTINGS.gpu else CPU_IMAGE,
    gpu=SETTINGS.gpu or None,
    env=_ENVIRONMENT,
    volumes={str(_ROOM): VOLUME, _CACHE: CACHE},
    timeout=_DAY,
    **_CONTAINER,
)
def answer(input_path: str, output_path: str, topk: int = 10, queries: bool = False) -> tuple[int, int]:
    """`predict.predict` on files of the Volume: how many lines were answered and rejected.

    Work is kept in the Volume after every block, so a container that is taken away goes on in the next one.
    """
    from semid_lib.serving import predict
    from semid_lib.serving.recommender import Recommender
    from semid_lib.workbench import store

    recommender = Recommender.from_pretrained(_model(), **SETTINGS.how())
    facts = str(recommender.source or store.sha256(Path(_model()) / "config.json"))
    return tuple(predict.predict(recommender, facts, _ROOM / input_path, _ROOM / output_path, topk, queries))


# --- chapters ---

training = modal.App("semid-training")


@training.function(
    image=CHAPTERS_IMAGE,
    gpu=SETTINGS.gpu or None,
    env={
        **_ENVIRONMENT,
        "SEMID_ARTEFACTS": f"{_ROOM}/artefacts",
        "SEMID_TRACKING": "0",  # its database is of one machine
        "PYTHONPATH": "/root",
        "HF_HUB_OFFLINE": "0",
    },
    volumes={str(_ROOM): VOLUME, _CACHE: CACHE},
    timeout=_DAY,
    **_CONTAINER,
)
def train(data: str = "demo", scale: str = "full", chapters: str = "01,02,07", commit: str = "") -> str:
    """Run chapters on a data set of the Volume (data/NAME) or on the demo shop; what they write stays in the Volume.

    Chapters that ran before on the same code and data are not run again; a training that was broken off goes on from
    its last checkpoint. commit: for the rows (`store.commit`).
    """
    os.environ["SEMID_COMMIT"] = commit
    folder = "demo" if data == "demo" else str(_ROOM / "data" / data)
    names = _chapters(Path("/root/notebooks"), chapters)
    return ", ".join(run_chapters(Path("/root/notebooks"), names, folder, scale, done=VOLUME.commit))


def _chapters(notebooks: Path, wanted: str) -> list[str]:
    """The chapters that "01,02,07" names, each after those that it needs."""
    from semid_lib.workbench import chapters

    known = chapters.in_order(notebooks)
    found = [name for name in known if {name, name[:2]} & set(wanted.split(","))]
    unknown = set(wanted.split(",")) - {name[:2] for name in known} - set(known)
    if unknown:
        raise ValueError(
            f"chapters is {wanted!r}, and there is no {min(unknown)!r}: expected some of {', '.join(known)}"
        )
    return found


def run_chapters(notebooks: Path, names: Sequence[str], data: str, scale: str, done: Callable[[], None]) -> list[str]:
    """Run chapters by `chapters.run`, so that all that `make run` writes stands beside their artefacts.

    A chapter that is up to date (`chapters.is_up_to_date`) is left alone. done: called after each, a failed one too.
    Returns the names of those that ran.
    Raises ValueError for bad data or an unknown scale, RuntimeError for a chapter that failed.
    """
    from semid_lib.data import dataset as datasets
    from semid_lib.workbench import chapters, store
    from semid_lib.workbench import scale as scales

    scales.get(scale)
    datasets.load(data)
    ran = []
    for name in names:
        if chapters.is_up_to_date(notebooks / f"{name}.py", store.open_store(data, scale)):
            continue
        facts = chapters.run(notebooks / f"{name}.py", data, scale)
        done()
        if facts["state"] != "executed":
            raise RuntimeError(f"{name} failed in {facts['cell']}: {facts['error']}")
        ran.append(name)
    return ran


# --- the commands: what they can refuse, they refuse before the first request ---


def upload(folder: Path, name: str | None = None) -> str:
    """Check a folder of `save_pretrained` by loading it, and send its files to the Volume as one change.

    name: in the Volume, by default that of the settings. Returns it.
    """
    from semid_lib.serving.recommender import Recommender

    name = name or SETTINGS.model
    Settings(model=name)
    Recommender.from_pretrained(folder)
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["sha256"]
    with VOLUME.batch_upload(force=True) as sending:
        for file in ["config.json", *names]:
            sending.put_file(folder / file, f"/{name}/{file}")
    return name


def predict_file(input_path: Path, output_path: Path, topk: int, queries: bool) -> tuple[int, int]:
    """`semid predict` with the work done on Modal: how many lines were answered and rejected.

    The same command goes on where a run that was broken off stopped.
    """
    from semid_lib.serving import batch_io, predict
    from semid_lib.workbench import store

    predict.check(input_path, output_path, topk, queries)
    settings = [store.sha256(input_path), topk, queries, SETTINGS.model, SETTINGS.revision]
    job = f"batch/{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    sent, made = f"{job}/input{batch_io.ending(input_path)}", f"{job}/output{output_path.suffix}"
    with VOLUME.batch_upload(force=True) as sending:
        sending.put_file(input_path, f"/{sent}")
    with modal.enable_output(), batch.run():
        answered, rejected = answer.remote(sent, made, topk, queries)
    beside = output_path.with_name(f"{output_path.name}.rejected")
    beside.unlink(missing_ok=True)
    if rejected:
        _download(f"{made}.rejected", beside)
    _download(made, output_path)
    VOLUME.remove_file(job, recursive=True)
    return answered, rejected


def run_training(data: str, scale: str, chapters: str, detach: bool) -> None:
    """Send a data set to the Volume, run chapters there, and fetch what `fetch` fetches."""
    from semid_lib.data import dataset as datasets
    from semid_lib.data import folder
    from semid_lib.workbench import remote as places
    from semid_lib.workbench import scale as scales
    from semid_lib.workbench import store

    scales.get(scale)
    _chapters(_REPOSITORY / "notebooks", chapters)
    datasets.load(data)
    name = "demo"
    if data != "demo":
        # below the folder's own name, so that files of two folders of one name do not mix
        name = f"{store.open_store(data, scale).folder.parent.name}/{store.data_name(data)}"
        home = places.local(data)
        with VOLUME.batch_upload(force=True) as sending:
            for path in folder.files_of(home):
                sending.put_file(path, f"/data/{name}/{path.relative_to(home).as_posix()}")
    commit = store.commit()
    with modal.enable_output(), training.run(detach=detach):
        asked = train.spawn(name, scale, chapters, commit["commit"] + "+" * commit["dirty"])
        if detach:
            print(f"it goes on without this terminal; then: semid deploy fetch --data {data}")
            return
        print(f"ran {asked.get() or 'nothing: all were up to date'}")
    fetch(data, scale)


def fetch(data: str, scale: str, everything: bool = False) -> list[Path]:
    """Executed chapters and result rows from the Volume to the local artefacts; everything: models, vectors, runs."""
    from semid_lib.workbench import store

    here = store.open_store(data, scale).folder
    there = f"artefacts/{here.parent.name}/{scale}"
    got = []
    for part in [there] if everything else [f"{there}/executed", f"{there}/rows"]:
        for file in _files(part):
            got.append(here / PurePosixPath(file).relative_to(there))
            _download(file, got[-1])
    if not got:
        raise ValueError(f"the Volume has no {there}: run chapters first (train)")
    return got


def _download(remote: str, local: Path) -> None:
    """A file of the Volume, whole or not at all."""
    local.parent.mkdir(parents=True, exist_ok=True)
    coming = local.with_name(local.name + ".download")
    with open(coming, "wb") as stream:
        for block in VOLUME.read_file(remote):
            stream.write(block)
    coming.replace(local)


def measure_endpoint(url: str, data: str, scale: str, cold: int, warm: int, wait: float | None) -> Path | None:
    """Print how fast an endpoint answers, and keep it as rows of `data` and `scale` for chapter 08."""
    from semid_lib.data import dataset as datasets
    from semid_lib.workbench import store

    shop = datasets.load(data)
    shelf = store.Store(shop.name, scale, shop.fingerprint)
    wait = SETTINGS.scaledown + 60 if wait is None else wait
    found = measure(url, os.environ.get(TOKEN), cold, warm, wait)
    rows = answer_rows(found, SETTINGS)
    for row in rows:
        print(f"{row['key']:40}{row['value']:10}  of {row['n']}")
    if found.missed:
        print(f"{found.missed} of {cold} were not cold: a container was awake after {wait:g} seconds; --wait longer")
    return shelf.record("08_endpoint", rows) if rows else None
