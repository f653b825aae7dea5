"""The app on Modal, without Modal: its class runs here, its real client deploys to a server on loopback.

What Modal itself does with a snapshot, a GPU or a built image cannot be seen here.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from fastapi.testclient import TestClient
from loopback_modal import LoopbackModal
from modal_proto import api_pb2

from semid_lib.data.folder import open_store, write_folder
from semid_lib.decoding import beam_search
from semid_lib.serving import modal_app
from semid_lib.serving.deployment import Settings
from semid_lib.serving.http import web
from semid_lib.serving.http.service import Service
from semid_lib.serving.predict import predict
from semid_lib.serving.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_compiled_loop(monkeypatch):
    """The images have no numba; here it would compile for seconds."""
    monkeypatch.setattr(beam_search, "_compiled", lambda: None)


@pytest.fixture(scope="module")
def account():
    """A Modal account on loopback, and no other: the client of this process goes there."""
    with LoopbackModal() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def cloud(account):
    """The same, empty."""
    account.calls.clear()
    account.run.clear()
    for files in account.files.values():
        files.clear()
    account.files.setdefault("semid", {})
    return account


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder in place of the mounted Volume."""
    monkeypatch.setattr(modal_app, "_ROOM", tmp_path / "room")
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


@pytest.fixture
def in_room(room, served_folder):
    """The same with a model in it, where the default settings look."""
    served_folder.rename(room / "recommender")
    return room / "recommender"


def modal(*words: str, **variables: str) -> subprocess.CompletedProcess:
    """A command of modal in a process, with no account unless the variables bring one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "SEMID_", "HF_TOKEN"))}
    environment = {**kept, "HOME": "/nonexistent", "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "modal", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def put(cloud: LoopbackModal, folder: Path) -> None:
    cloud.files["semid"] |= {f"recommender/{path.name}": path.read_bytes() for path in folder.iterdir()}


# --- the endpoint ---


def ask(app, history: list[int], *tokens: str | None):
    """The answers to one question under several tokens; an application starts and stops once."""
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        for token in tokens:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            yield client.post("/recommend", json={"item_ids": history, "k": 5}, headers=headers)


def test_the_endpoint_serves_what_web_serves(in_room, shop, monkeypatch):
    monkeypatch.setenv("SEMID_TOKEN", "open sesame")
    history = shop.items["item_id"].tolist()[:3]
    app = modal_app.Endpoint().web.local()  # the enter hooks run first
    answer, *refused = ask(app, history, "open sesame", "open sesam", None)
    [expected] = ask(web.load_app(in_room, token="open sesame"), history, "open sesame")
    assert answer.status_code == 200 and answer.json() == expected.json()
    assert [each.status_code for each in refused] == [401, 401]
    assert app.user_middleware[0].cls is web.Guard
    (in_room / "items.parquet").write_bytes(b"")  # a broken model stops the container at once
    with pytest.raises(ValueError, match=r"items\.parquet is not the file that was saved"):
        modal_app.Endpoint().web.local()


def test_the_token_is_that_of_now_not_of_the_snapshot(in_room, shop, monkeypatch):
    endpoint = modal_app.Endpoint._get_user_cls()()  # what a container makes, hook by hook
    hooks = {name: getattr(type(endpoint), name)._get_raw_f() for name in ("load", "wake", "web")}
    monkeypatch.setenv("SEMID_TOKEN", "old")
    hooks["load"](endpoint)
    before = endpoint.service
    hooks["wake"](endpoint)
    assert endpoint.service is before
    monkeypatch.setenv("SEMID_TOKEN", "new")
    hooks["wake"](endpoint)
    answers = ask(hooks["web"](endpoint), shop.items["item_id"].tolist()[:2], "old", "new")
    assert [answer.status_code for answer in answers] == [401, 200]
    assert endpoint.service.state.service.recommender is before.state.service.recommender


def test_everything_is_warm_before_a_snapshot(recommender_to_serve, monkeypatch):
    asked, warmed = [], []
    monkeypatch.setattr(Recommender, "from_pretrained", lambda *_, **how: asked.append(how) or recommender_to_serve)
    monkeypatch.setattr(Service, "warm_up_rest", lambda _: warmed.append("before"))
    monkeypatch.setattr(Service, "warm_up_beside", lambda _: warmed.append("during"))
    for settings, when in (
        (Settings(), "before"),
        (Settings(snapshot=False), "during"),
        (Settings(gpu="L4", engine="vllm"), "during"),
    ):
        monkeypatch.setattr(modal_app, "SETTINGS", settings)
        endpoint = modal_app.Endpoint._get_user_cls()()
        type(endpoint).load._get_raw_f()(endpoint)
        assert (asked.pop(), warmed.pop()) == (settings.how(), when)


def test_the_schedule_asks_the_endpoint(serve, monkeypatch):
    asked = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            asked.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    url = serve(app)
    web = SimpleNamespace(get_web_url=lambda: url)
    monkeypatch.setattr(modal_app, "Endpoint", lambda: SimpleNamespace(web=web))
    modal_app.keep_warm.local()
    assert asked == ["/healthz"]


# --- deploying ---


def test_deploying_is_refused_before_anything_is_built(cloud, served_folder, monkeypatch):
    check = modal_app._checked
    with click.Context(click.Command("deploy"), info_name="deploy"):
        for variable, message in {
            "SEMID_SCALEDOWN": "SEMID_SCALEDOWN is 1",
            "SEMID_PUBLIC": "no model 'recommender'",
        }.items():
            with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f"refused: .*{message}"):
                patch.setenv(variable, "1")
                check()
        with pytest.raises(SystemExit, match="refused: SEMID_TOKEN is not set"):
            check()
        monkeypatch.setenv("SEMID_TOKEN", "t")
        put(cloud, served_folder)
        assert check()[1] == hashlib.sha256((served_folder / "config.json").read_bytes()).hexdigest()
        monkeypatch.setattr(modal_app.hub, "check", lambda *asked: commits.append(asked))
        monkeypatch.setenv("SEMID_MODEL", "ann/shop")
        monkeypatch.setenv("SEMID_REVISION", "a" * 40)
        commits: list = []
        assert check()[1] == "a" * 40 and commits == [(("ann/shop", "a" * 40), {"config.json": None})]
    assert {name for name, _ in cloud.calls} <= {"VolumeGetOrCreate", "VolumeGetFile2"}
    monkeypatch.setenv("SEMID_SCALEDOWN", "1")
    with pytest.raises(ValueError, match="SEMID_SCALEDOWN is 1"):  # for other commands
        check()


def deployed(cloud: LoopbackModal, **variables: str) -> tuple[dict, list[dict], str]:
    """What `modal deploy` made: app and functions by name, secrets, the pip line of the image."""
    run = modal("deploy", "-m", "semid_lib.serving.modal_app", **variables, **cloud.environment)
    assert run.returncode == 0, run.stdout + run.stderr
    [published] = cloud.asked("AppPublish")
    functions = {request.function.function_name: request.function for request in cloud.asked("FunctionCreate")}
    secrets = [dict(request.env_dict) for request in cloud.asked("SecretGetOrCreate")]
    lines = [line for request in cloud.asked("ImageGetOrCreate") for line in request.image.dockerfile_commands]
    [line] = [line for line in lines if "constraints.txt" in line]
    return {"": published.name, **functions}, secrets, line


NOT_INSTALLED = (
    "datasets jupytext llguidance matplotlib mlflow numba openai outlines papermill peft ray trl umap xgrammar"
)
CONTAINER = """
import importlib.abc, json, sys
from pathlib import Path

class OnlyWhatIsInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if path is None and name in {hidden!r}.split():
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, OnlyWhatIsInstalled())
from semid_lib.serving import modal_app
assert Path(modal_app.__file__).is_relative_to({root!r}) and modal_app.SETTINGS.scaledown == 300
modal_app._ROOM = Path({room!r})
endpoint = modal_app.Endpoint().web.local()
print(json.dumps([len(endpoint.state.service.recommender.recommend([{history}], k=3).item_ids[0])]))
"""


@pytest.mark.slow
def test_a_deployment_is_what_the_settings_say_and_enough_to_answer(cloud, in_room, shop, tmp_path):
    """The container: the files that Modal mounts, in an empty place, with the environment that it sets, and without
    packages of other extras."""
    put(cloud, in_room)
    made, secrets, line = deployed(cloud, SEMID_TOKEN="t", SEMID_SCALEDOWN="300")
    endpoint = made["Endpoint.*"]
    assert made.keys() == {"", "Endpoint.*", "keep_warm"} and made[""] == "semid"
    assert not endpoint.resources.gpu_config.gpu_type and endpoint.checkpointing_enabled
    scaling = endpoint.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 1, 300)
    assert (endpoint.max_concurrent_inputs, endpoint.timeout_secs, endpoint.resources.memory_mb) == (32, 60, 2048)
    mounts = {mount.mount_path: mount.read_only for mount in endpoint.volume_mounts}
    assert mounts == {"/semid": True, "/semid-cache": False}
    assert endpoint.method_definitions["web"].webhook_config.type == api_pb2.WEBHOOK_TYPE_ASGI_APP
    assert not made["keep_warm"].HasField("schedule")
    assert {"SEMID_TOKEN": "t"} in secrets and not any("SEMID_TOKEN" in one for one in secrets if len(one) > 1)
    config = hashlib.sha256((in_room / "config.json").read_bytes()).hexdigest()  # another model, another snapshot
    assert any(secret.get("SEMID_MODEL_STATE") == config for secret in secrets)
    assert '".[embed,search,serve]"' in line and "--constraint constraints.txt" in line

    root = tmp_path / "container"
    for mount in cloud.asked("MountGetOrCreate"):
        for file in mount.files:
            if file.filename.startswith("/root/"):
                target = root / file.filename.removeprefix("/root/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(cloud.sent[file.sha256_hex])
    assert (root / "semid_lib/serving/http/page/index.html").is_file() and not list(root.rglob("__pycache__"))
    history = shop.items["item_id"].tolist()[:2]
    code = CONTAINER.format(hidden=NOT_INSTALLED, root=str(root), room=str(in_room.parent), history=history)
    environment = {"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONPATH": str(root)}
    for secret in secrets:
        environment |= secret
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and json.loads(run.stdout.splitlines()[-1]) == [3], run.stderr


@pytest.mark.slow
def test_vllm_on_a_gpu_comes_with_the_versions_that_it_pins_itself(cloud, served_folder, tmp_path):
    put(cloud, served_folder)
    settings = {"SEMID_GPU": "L4", "SEMID_ENGINE": "vllm", "SEMID_MIN_CONTAINERS": "1"}
    made, secrets, line = deployed(cloud, SEMID_PUBLIC="1", SEMID_WARM_UP="*/4 8-18 * * 1-5", **settings)
    endpoint = made["Endpoint.*"]
    assert made[""] == "semid-gpu" and endpoint.resources.gpu_config.gpu_type == "L4"
    assert not endpoint.checkpointing_enabled and not endpoint.experimental_options
    assert endpoint.autoscaler_settings.min_containers == 1
    assert made["keep_warm"].schedule.cron.cron_string == "*/4 8-18 * * 1-5"
    assert not made["keep_warm"].resources.gpu_config.gpu_type
    assert any(secret.get("SEMID_GPU") == "L4" and secret["HF_HUB_OFFLINE"] == "1" for secret in secrets)
    assert '".[embed,search,serve,sft]"' in line and "vllm==0.32.0" in line
    (tmp_path / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    subprocess.run(re.search(r"sed [^&]*", line)[0], shell=True, cwd=tmp_path, check=True)
    left = (tmp_path / "constraints.txt").read_text().splitlines()
    gone = [name for name in (ROOT / "constraints.txt").read_text().splitlines() if name not in left]
    assert [name.split("==")[0] for name in gone] == list(modal_app._VLLM_PINS)


# --- upload, batch, chapters ---


def test_a_folder_is_sent_whole_and_nothing_else(cloud, served_folder):
    (served_folder / "notes.txt").write_text("not of the model")
    assert modal_app.upload(served_folder) == "recommender"
    assert cloud.files["semid"] == {
        f"recommender/{path.name}": path.read_bytes() for path in served_folder.iterdir() if path.name != "notes.txt"
    }
    assert len(cloud.asked("VolumePutFiles")) == 1
    assert modal_app.upload(served_folder, "shops/beauty") == "shops/beauty"
    assert modal_app.check_deployment(Settings(model="shops/beauty"), "t")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: modal_app.upload(path, "../x"),
        lambda path: modal_app.upload(path.parent),
        lambda path: modal_app.predict_file(path / "config.json", Path("out.csv"), 3, False),
        lambda path: modal_app.predict_file(path / "in.txt", Path("out.csv"), 0, False),
        lambda path: modal_app.predict_file(path / "in.txt", Path("out.csv"), 3, False),
        lambda path: modal_app.run_training(str(path / "none"), "smoke", "01", False),
        lambda path: modal_app.run_training("demo", "smoke", "42", False),
    ],
)
def test_what_cannot_work_never_meets_the_network(cloud, served_folder, wrong):
    with pytest.raises((ValueError, OSError)):
        wrong(served_folder)
    assert cloud.calls == []


def test_batch_on_modal_gives_the_file_of_the_command(cloud, in_room, room, shop, tmp_path):
    def in_a_container(sent, made, topk, queries):  # the Volume is mounted, and kept afterwards
        (room / sent).parent.mkdir(parents=True)
        (room / sent).write_bytes(cloud.files["semid"][sent])
        result = modal_app.answer.local(sent, made, topk, queries)
        for path in (room / sent).parent.iterdir():
            cloud.files["semid"][str(path.relative_to(room))] = path.read_bytes()
        return result

    ids = shop.items["item_id"].to_numpy()
    histories = tmp_path / "histories.txt"
    lines = [f"u{at} {' '.join(map(str, ids[history]))}\n" for at, history in enumerate(shop.histories)]
    histories.write_text("".join([*lines, "strange 999999\n"]))
    cloud.run["answer"] = in_a_container
    there, here = tmp_path / "there.csv", tmp_path / "here.csv"
    assert modal_app.predict_file(histories, there, 4, False) == (60, 1, 0)
    predict(Recommender.from_pretrained(in_room), "", histories, here, 4)
    assert there.read_bytes() == here.read_bytes()
    assert Path(f"{there}.rejected").read_bytes() == Path(f"{here}.rejected").read_bytes()
    assert not [path for path in cloud.files["semid"] if path.startswith("batch/")]


@pytest.mark.slow
def test_training_sends_data_and_brings_rows_back(cloud, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    write_folder(tmp_path / "tiny", [{"item_id": at, "title": f"thing {at}"} for at in range(5)])
    (tmp_path / "tiny" / "README.md").write_text("not data")
    data = str(tmp_path / "tiny")
    asked, here = [], open_store(data, "smoke").folder
    name = here.parent.name

    def in_a_container(*words):
        asked.append(words)
        for part in ("executed/01_a.ipynb", "rows/01_a.json", "recommender/config.json"):
            cloud.files["semid"][f"artefacts/{name}/smoke/{part}"] = part.encode()
        return "01_a"

    cloud.run["train"] = in_a_container
    modal_app.run_training(data, "smoke", "01", False)
    [(sent_data, scale, chapters, commit)] = asked
    assert (sent_data, scale, chapters) == (f"{name}/tiny", "smoke", "01")
    assert re.fullmatch(r"[0-9a-f]{40}\+?|\+", commit)
    sent = [path for path in cloud.files["semid"] if path.startswith("data/")]
    assert sent and not [path for path in sent if "README" in path]
    assert {str(path.relative_to(here)) for path in here.rglob("*.*")} == {"executed/01_a.ipynb", "rows/01_a.json"}
    modal_app.fetch(data, "smoke", everything=True)
    assert (here / "recommender" / "config.json").read_bytes() == b"recommender/config.json"
    modal_app.run_training(data, "smoke", "01", True)
    assert f"fetch its results with: semid deploy fetch --data {data}" in capsys.readouterr().out
    there = f"artefacts/{open_store('demo', 'smoke').folder.parent.name}/smoke"
    for left in ({}, {f"{there}/embeddings/x.npz": b""}):  # nothing, or what a run left that was stopped early
        cloud.files["semid"] = left
        with pytest.raises(ValueError, match="run chapters first"):
            modal_app.fetch("demo", "smoke")


def test_chapters_run_in_their_order_unless_they_are_up_to_date(monkeypatch, cloud):
    from semid_lib.chapters import runner

    ran, state = [], {"state": "executed", "cell": "In [1]", "error": "ValueError: broken"}
    monkeypatch.setenv("SEMID_COMMIT", "")
    monkeypatch.setattr(runner, "in_order", lambda _: ["01_a", "02_b", "07_c"])
    monkeypatch.setattr(runner, "is_up_to_date", lambda source, _: source.stem == "02_b")
    monkeypatch.setattr(runner, "run", lambda source, *_: ran.append(source.stem) or state)
    monkeypatch.setattr(modal_app.VOLUME, "commit", lambda: None)
    assert modal_app.train.local("demo", "smoke", "07,01,02", "abc+") == "01_a, 07_c" == ", ".join(ran)
    assert os.environ["SEMID_COMMIT"] == "abc+"
    state["state"] = "failed"
    with pytest.raises(RuntimeError, match=r"01_a failed in In \[1\]: ValueError: broken"):
        modal_app.train.local("demo", "smoke", "01", "")
    with pytest.raises(ValueError, match="with '42': expected numbers such as 01,02,07"):
        modal_app.train.local("demo", "smoke", "01,42", "")
