"""The recommender on Modal: an endpoint that sleeps without requests, batch predictions, and chapters on a GPU.

    semid deploy upload --folder artefacts/demo/laptop/recommender
    modal deploy -m semid_lib.serving.modal_app

deploy a folder. Environment variables say what is deployed and what it may cost: see `deployment.Settings`, and
SEMID_TOKEN for the bearer token. Settings that cannot work are refused before anything is sent or built.

The endpoint is `http.web.create_app`. This is the only module that imports modal.
"""

import hashlib
import json
import os
import sys
import urllib.request
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click
import modal

from semid_lib.serving import hub
from semid_lib.serving.deployment import Settings
from semid_lib.serving.http.middleware import TOKEN
from semid_lib.workbench.atomic import fresh_file

if TYPE_CHECKING:
    from semid_lib.serving.predict import Outcome

_REPOSITORY = Path(__file__).resolve().parents[2]
_PYTHON = "3.11"
_VLLM = "vllm==0.32.0"  # no extra, since its wheels are for GPU boxes; it needs the torch of constraints.txt
# and other versions of these packages
_VLLM_PINS = ("apache-tvm-ffi", "lark", "llvmlite", "numba", "numpy")
_SERVING = "embed,search,serve"  # as in the Dockerfile
_CHAPTERS = f"{_SERVING},fast,grammars,notebooks,queries,sft,tiger"
_ROOM, _CACHE = Path("/semid"), "/semid-cache"  # where containers see the volumes
_HOME = Path("/root")  # the working folder of Modal's containers
_DAY = 24 * 3600

VOLUME = modal.Volume.from_name("semid", create_if_missing=True)  # models, data/, artefacts/, batch/
CACHE = modal.Volume.from_name("semid-cache", create_if_missing=True)


# --- refused before anything is built ---


def check_deployment(settings: Settings, token: str | None) -> str:
    """Refuse an endpoint without a model, or one that is open to everyone by oversight.

    Returns what identifies the model: its commit, or the checksum of its `config.json`. Raises ValueError with what to
    do; OSError or modal's errors without a network or an account.
    """
    settings.check_token(token)
    if settings.revision:
        hub.check(hub.Source(settings.model, settings.revision), {"config.json": None})
        return settings.revision
    try:
        return hashlib.sha256(b"".join(VOLUME.read_file(f"{settings.model}/config.json"))).hexdigest()
    except (FileNotFoundError, modal.exception.NotFoundError):
        raise ValueError(
            f"there is no model {settings.model!r} in the Volume: send one with `semid deploy upload --folder FOLDER`, "
            "or name a repository on the Hub and its commit (SEMID_MODEL, SEMID_REVISION)"
        ) from None


def _checked() -> tuple[Settings, str]:
    """The settings, and for `modal deploy` and `modal serve` the state of the model, which must be there."""
    command = click.get_current_context(silent=True)
    is_deployed = modal.is_local() and command is not None and command.info_name in ("deploy", "serve")
    try:
        settings = Settings.from_environment()
        return settings, check_deployment(settings, os.environ.get(TOKEN)) if is_deployed else ""
    except (ValueError, OSError, modal.exception.Error) as error:
        if is_deployed:
            sys.exit(f"refused: {error}")
        raise


SETTINGS, _MODEL_STATE = _checked()


# --- what containers are made of ---


def _image(extras: str, vllm: bool = False, extra_index: str | None = None) -> modal.Image:
    """An image with what the extras need, at the versions of constraints.txt, and the code of this working tree.

    The code is added when a container starts, so an edit does not rebuild the image. `extra_index`: a package index
    with CPU builds of torch; without it pip installs CUDA's, which a CPU never uses.
    """
    image = modal.Image.debian_slim(_PYTHON)
    for name in ("pyproject.toml", "constraints.txt"):
        image = image.add_local_file(_REPOSITORY / name, f"/build/{name}", copy=True)
    wanted = f'".[{extras}]"' + f" {_VLLM}" * vllm
    loosen = f"sed -Ei '/^({'|'.join(_VLLM_PINS)})==/d' constraints.txt && " * vllm
    return image.run_commands(
        # an empty package with the requirements of ours; its metadata stay, and tell the version
        "cd /build && mkdir semid_lib && touch semid_lib/__init__.py README.md LICENSE"
        f" && {loosen}pip install --no-cache-dir --constraint constraints.txt {wanted}"
        " && rm -r $(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')/semid_lib",
        env={"PIP_EXTRA_INDEX_URL": extra_index} if extra_index else None,
    ).add_local_python_source("semid_lib", ignore=["**/__pycache__", "**/*.pyc"])


_EXTRA_INDEX = None if SETTINGS.gpu else os.environ.get("PIP_EXTRA_INDEX_URL")
IMAGE = _image(_SERVING + ",sft" * bool(SETTINGS.gpu), SETTINGS.engine == "vllm", _EXTRA_INDEX)
CHAPTERS_IMAGE = _image(_CHAPTERS, extra_index=_EXTRA_INDEX).add_local_dir(
    _REPOSITORY / "notebooks", str(_HOME / "notebooks"), ignore=["**/*.ipynb", "**/.ipynb_checkpoints"]
)
# which chapters need which
CHAPTERS_IMAGE = CHAPTERS_IMAGE.add_local_file(_REPOSITORY / "dvc.yaml", str(_HOME / "dvc.yaml"))

_ENVIRONMENT: dict[str, str | None] = {
    **SETTINGS.environment(),
    "SEMID_MODEL_STATE": _MODEL_STATE,  # another model is another deployment, so that no old snapshot answers
    "OMP_NUM_THREADS": str(max(1, round(SETTINGS.cpu))),
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "0" if SETTINGS.revision else "1",
    "HF_HOME": f"{_CACHE}/huggingface",
    "TORCHINDUCTOR_CACHE_DIR": f"{_CACHE}/inductor",
    "TRITON_CACHE_DIR": f"{_CACHE}/triton",
    "VLLM_CACHE_ROOT": f"{_CACHE}/vllm",
}
_SECRETS: dict[str, str | None] = {name: os.environ[name] for name in (TOKEN, "HF_TOKEN") if os.environ.get(name)}
_CONTAINER: dict[str, Any] = {
    "gpu": SETTINGS.gpu or None,
    "secrets": [modal.Secret.from_dict(_SECRETS)] if _SECRETS else [],
    "cpu": SETTINGS.cpu,
    "memory": SETTINGS.memory,
    "include_source": False,  # it is in the image already
}
_JOB: dict[str, Any] = {**_CONTAINER, "volumes": {str(_ROOM): VOLUME, _CACHE: CACHE}, "timeout": _DAY}
_STARTUP_SECONDS = 900 if SETTINGS.gpu else 120


def _model() -> str:
    return SETTINGS.model if SETTINGS.revision else str(_ROOM / SETTINGS.model)


# --- the endpoint ---

app = modal.App("semid-gpu" if SETTINGS.gpu else "semid")  # what `modal deploy` and `modal serve` take


@app.cls(
    image=IMAGE,
    env=_ENVIRONMENT,
    volumes={str(_ROOM): VOLUME.with_mount_options(read_only=True), _CACHE: CACHE},
    scaledown_window=SETTINGS.scaledown,
    min_containers=SETTINGS.min_containers,
    max_containers=SETTINGS.max_containers,
    timeout=SETTINGS.timeout,
    startup_timeout=_STARTUP_SECONDS,
    enable_memory_snapshot=SETTINGS.snapshots,
    experimental_options={"enable_gpu_snapshot": True} if SETTINGS.gpu and SETTINGS.snapshots else None,
    **_CONTAINER,
)
@modal.concurrent(max_inputs=SETTINGS.concurrency)
class Endpoint:
    """The HTTP service, warm before the first request."""

    @modal.enter(snap=SETTINGS.snapshots)
    def load(self) -> None:
        """Load the model from the Volume or the Hub; a snapshot is taken of the result.

        A container does not follow its folder: a snapshot would bring the old version back. Another version is another
        deployment (SEMID_MODEL_STATE).
        """
        from semid_lib.serving.http import web

        web.log_as_json()
        self.token = os.environ.get(TOKEN)
        self.service = web.load_app(_model(), token=self.token, check_seconds=0, **SETTINGS.how())
        service = self.service.state.service
        if SETTINGS.snapshots:
            service.warm_up_rest()
        else:  # as `web` does: during the first requests
            service.warm_up_beside()

    @modal.enter(snap=False)
    def wake(self) -> None:
        """Take the token of now: it may have changed since the snapshot."""
        from semid_lib.serving.http import web

        if os.environ.get(TOKEN) != self.token:
            self.token = os.environ.get(TOKEN)
            self.service = web.create_app(self.service.state.service.recommender, token=self.token)

    @modal.asgi_app()
    def web(self):
        """The HTTP service."""
        return self.service


@app.function(
    image=IMAGE,
    env=_ENVIRONMENT,
    include_source=False,
    schedule=modal.Cron(SETTINGS.warm_up) if SETTINGS.warm_up else None,
    timeout=_STARTUP_SECONDS,
)
def keep_warm() -> None:
    """Send a request, which wakes a container; it stays for SEMID_SCALEDOWN seconds."""
    with urllib.request.urlopen(f"{Endpoint().web.get_web_url()}/healthz", timeout=_STARTUP_SECONDS) as answer:
        answer.read()


# --- batch predictions and chapters ---

batch = modal.App("semid-batch")
training = modal.App("semid-training")


@batch.function(image=IMAGE, env=_ENVIRONMENT, **_JOB)
def answer(input_path: str, output_path: str, topk: int = 10, queries: bool = False) -> tuple[int, ...]:
    """`predict.predict` on files of the Volume: the numbers of its outcome.

    Each answered block is kept in the Volume, so if a container is taken away, the next one resumes.
    """
    from semid_lib.serving import predict

    here = _ROOM / input_path, _ROOM / output_path
    return tuple(predict.predict_folder(_model(), *here, SETTINGS.how(), k=topk, queries=queries))


@training.function(
    image=CHAPTERS_IMAGE,
    env={
        **_ENVIRONMENT,
        "SEMID_ARTEFACTS": f"{_ROOM}/artefacts",
        "SEMID_TRACKING": "0",  # its database is of one machine
        "PYTHONPATH": str(_HOME),
        "HF_HUB_OFFLINE": "0",
    },
    **_JOB,
)
def train(data: str = "demo", scale: str = "full", chapters: str = "01,02,07", commit: str = "") -> str:
    """Run chapters on a data set of the Volume (data/NAME) or on the demo shop; what they write stays in the Volume.

    Chapters that are up to date are skipped; an interrupted training resumes from its last checkpoint. `commit` is for
    the result rows (`store.commit`).
    """
    from semid_lib.chapters import runner
    from semid_lib.data.folder import open_store

    os.environ["SEMID_COMMIT"] = commit
    notebooks = _HOME / "notebooks"
    folder = "demo" if data == "demo" else str(_ROOM / "data" / data)
    ran = []
    for name in _chapters(chapters, notebooks):
        if not runner.is_up_to_date(notebooks / f"{name}.py", open_store(folder, scale)):
            facts = runner.run(notebooks / f"{name}.py", folder, scale)
            VOLUME.commit()
            if facts["state"] != "executed":
                raise runner.FailedError(f"{name} failed in {facts['cell']}: {facts['error']}")
            ran.append(name)
    return ", ".join(ran)


def _chapters(wanted: str, notebooks: Path) -> list[str]:
    """The chapters that "01,02,07" names, each after those that it needs."""
    from semid_lib.chapters import runner

    known = {name[:2]: name for name in runner.in_order(notebooks)}
    if unknown := set(wanted.split(",")) - set(known):
        raise ValueError(f"chapters is {wanted!r}, with {min(unknown)!r}: expected numbers such as {','.join(known)}")
    return [name for number, name in known.items() if number in wanted.split(",")]


# --- the commands of `semid deploy` ---


def upload(folder: Path, name: str | None = None) -> str:
    """Check a folder of `save_pretrained` by loading it, send its files to the Volume as one change, return its name.

    `name`: in the Volume, by default that of the settings.
    """
    from semid_lib.serving.recommender import Recommender

    name = Settings.from_environment({"SEMID_MODEL": name or SETTINGS.model}).model
    Recommender.from_pretrained(folder)
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["sha256"]
    _send({f"{name}/{file}": folder / file for file in ["config.json", *names]})
    return name


def predict_file(input_path: Path, output_path: Path, topk: int, queries: bool) -> "Outcome":
    """`semid predict` on Modal; the same call resumes."""
    from semid_lib.serving import predict

    with predict.opened(input_path, output_path, topk, queries) as source:
        settings = [source.facts(), topk, queries, SETTINGS.model, SETTINGS.revision]
    job = f"batch/{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    sent, made = f"{job}/input{source.ending}", f"{job}/output{output_path.suffix}"
    _send({sent: input_path})
    with modal.enable_output(), batch.run():
        outcome = predict.Outcome(*answer.remote(sent, made, topk, queries))
    beside = output_path.with_name(f"{output_path.name}.rejected")
    beside.unlink(missing_ok=True)
    _fetch({f"{made}.rejected": beside} if outcome.rejected else {})
    _fetch({made: output_path})
    VOLUME.remove_file(job, recursive=True)
    return outcome


def run_training(data: str, scale: str, chapters: str, detach: bool) -> None:
    """Send a data set to the Volume, run chapters there, and `fetch` the results."""
    from semid_lib.data import dataset, folder
    from semid_lib.workbench import remote, store

    _chapters(chapters, _REPOSITORY / "notebooks")
    dataset.load(data)
    name = "demo"
    if data != "demo":
        # under the name of its artefacts, so that files of two folders of one name do not mix
        name = f"{folder.open_store(data, scale).folder.parent.name}/{store.data_name(data)}"
        home = remote.local(data)
        _send({f"data/{name}/{path.relative_to(home).as_posix()}": path for path in folder.files_of(home)})
    commit = store.commit()
    with modal.enable_output(), training.run(detach=detach):
        call = train.spawn(name, scale, chapters, commit["commit"] + "+" * commit["dirty"])
        if detach:
            print(f"the run continues on Modal; fetch its results with: semid deploy fetch --data {data}")
            return
        print(f"ran {call.get() or 'nothing: all chapters are up to date'}")
    fetch(data, scale)


def fetch(data: str, scale: str, everything: bool = False) -> list[Path]:
    """Copy executed chapters and result rows, or everything, from the Volume to the local artefacts."""
    from semid_lib.data.folder import open_store

    here = open_store(data, scale).folder
    there = f"artefacts/{here.parent.name}/{scale}"
    try:
        entries = [entry for entry in VOLUME.listdir(there, recursive=True) if entry.type.name == "FILE"]
    except (FileNotFoundError, modal.exception.NotFoundError):
        entries = []
    names = [PurePosixPath(entry.path.lstrip("/")).relative_to(there) for entry in entries]
    names = [name for name in names if everything or name.parts[0] in ("executed", "rows")]
    if not names:
        raise ValueError(f"the Volume has no {there}: run chapters first (semid deploy train)")
    _fetch({f"{there}/{name}": here / name for name in names})
    return [here / name for name in names]


def _send(files: dict[str, Path]) -> None:
    """Put files into the Volume as one change."""
    with VOLUME.batch_upload(force=True) as sending:
        for name, path in files.items():
            sending.put_file(path, f"/{name}")


def _fetch(files: dict[str, Path]) -> None:
    for name, path in files.items():
        with fresh_file(path) as partial, open(partial, "wb") as stream:
            stream.writelines(VOLUME.read_file(name))
