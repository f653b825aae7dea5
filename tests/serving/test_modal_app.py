"""The app on Modal, without Modal: its classes run here, its real client deploys to a server on loopback.

What Modal itself does with a snapshot, a GPU or a built image cannot be seen here.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hub_server import Hub
from loopback_modal import LoopbackModal
from modal_proto import api_pb2
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from semid_lib.cli import main
from semid_lib.data.folder import write_folder
from semid_lib.decoding import beam_search
from semid_lib.serving import modal_app, predict
from semid_lib.serving.deployment import Settings
from semid_lib.serving.http import web
from semid_lib.serving.http.service import Service
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import store

ROOT = Path(__file__).resolve().parents[2]
MODAL = [sys.executable, "-m", "modal"]


@pytest.fixture(autouse=True)
def no_compiled_loop(monkeypatch):
    """The images have no numba; here it would compile for seconds."""
    monkeypatch.setattr(beam_search, "_kernel", lambda: None)


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


def command(*words: str, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess:
    """A command in a process of its own, with no account unless the variables bring one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "SEMID_", "HF_TOKEN"))}
    environment = {**kept, "HOME": "/nonexistent", "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def put(cloud: LoopbackModal, folder: Path, name: str = "recommender") -> None:
    cloud.files["semid"] |= {f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir()}


# --- the endpoint ---


def ask(app, history: list[int], *tokens: str | None):
    """The answers to one question under several tokens; an application starts and stops once."""
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        for token in tokens:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            yield client.post("/recommend", json={"item_ids": history, "k": 5}, headers=headers)


@pytest.mark.parametrize("name", ["SmallModels", "LanguageModel"])
def test_an_endpoint_serves_what_web_serves(in_room, shop, monkeypatch, name):
    monkeypatch.setenv("SEMID_TOKEN", "open sesame")
    history = shop.items["item_id"].tolist()[:3]
    app = getattr(modal_app, name)().web.local()  # the enter hooks run first
    answer, *refused = ask(app, history, "open sesame", "open sesam", None)
    [expected] = ask(web.load_app(in_room, token="open sesame"), history, "open sesame")
    assert answer.status_code == 200 and answer.json() == expected.json()
    assert [each.status_code for each in refused] == [401, 401]
    best = Recommender.from_pretrained(in_room).recommend([history], k=5)
    assert [item["item_id"] for item in answer.json()["items"]] == best.item_ids[0].tolist()
    assert type(app) is type(web.load_app(in_room)) and app.user_middleware[0].cls is web.Guard


def test_the_token_is_that_of_now_not_of_the_snapshot(in_room, shop, monkeypatch):
    endpoint = modal_app.SmallModels._get_user_cls()()  # what a container makes, hook by hook
    hooks = {name: getattr(type(endpoint), name)._get_raw_f() for name in ("load", "wake", "web")}
    monkeypatch.setenv("SEMID_TOKEN", "old")
    hooks["load"](endpoint)
    before = endpoint.service
    hooks["wake"](endpoint)
    assert endpoint.service is before
    monkeypatch.setenv("SEMID_TOKEN", "new")
    hooks["wake"](endpoint)
    history = shop.items["item_id"].tolist()[:2]
    answers = ask(hooks["web"](endpoint), history, "old", "new")
    assert [answer.status_code for answer in answers] == [401, 200]
    assert endpoint.service.state.service.recommender is before.state.service.recommender


def test_everything_is_warm_before_a_snapshot(recommender_to_serve, monkeypatch):
    asked, warm = [], threading.Event()

    def warm_up_rest(_):
        time.sleep(0.2)
        warm.set()

    monkeypatch.setattr(Recommender, "from_pretrained", lambda *_, **how: asked.append(how) or recommender_to_serve)
    monkeypatch.setattr(Service, "warm_up_rest", warm_up_rest)
    for settings, how in (
        (Settings(), {}),
        (Settings(snapshot=False), {}),
        (Settings(gpu="L4", engine="vllm"), {"device": "cuda", "engine": "vllm"}),
    ):
        warm.clear()
        monkeypatch.setattr(modal_app, "SETTINGS", settings)
        endpoint = modal_app.SmallModels._get_user_cls()()
        type(endpoint).load._get_raw_f()(endpoint)
        assert asked.pop() == how
        assert warm.is_set() == settings.snapshots  # without one the rest is warmed beside the first answers
        assert warm.wait(10)


def test_a_broken_model_stops_the_container_at_once(in_room):
    (in_room / "items.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"items\.parquet is not the file that was saved"):
        modal_app.SmallModels().web.local()


def test_the_schedule_asks_the_endpoint(in_room, serve, monkeypatch):
    asked = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            asked.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    url = serve(app)
    monkeypatch.setattr(modal_app, "_url", lambda: url)
    modal_app.keep_warm.local()
    assert asked == ["/healthz"]


# --- deploying ---


def test_deploying_is_refused_before_anything_is_built(cloud, served_folder):
    def refused(*words: str, **variables: str) -> str:
        run = command(*MODAL, *words, "-m", "semid_lib.serving.modal_app", **variables)
        assert run.returncode == 1 and len(run.stderr.strip().splitlines()) == 1, run.stderr + run.stdout
        return run.stderr.removeprefix("refused: ")

    assert refused("serve").startswith("SEMID_TOKEN is not set")
    assert refused("deploy", SEMID_SCALEDOWN="1").startswith("SEMID_SCALEDOWN is 1, expected")
    by_path = command(*MODAL, "deploy", "semid_lib/serving/modal_app.py", SEMID_TOKEN="t")
    assert by_path.stderr.startswith("refused: this file was named by its path, expected -m")
    assert refused("deploy", SEMID_TOKEN="t").startswith("Token missing")  # Modal's own: no account
    assert "no model 'recommender' in the Volume" in refused("deploy", SEMID_TOKEN="t", **cloud.environment)
    put(cloud, served_folder)
    del cloud.files["semid"]["recommender/items.parquet"]
    with pytest.raises(ValueError, match=r"has no items\.parquet"):
        modal_app.check_deployment(Settings(), "t")
    assert {name for name, _ in cloud.calls} <= {"VolumeGetOrCreate", "VolumeListFiles", "VolumeGetFile2"}


def test_a_folder_without_a_language_model_is_not_for_vllm(cloud, served_folder):
    put(cloud, served_folder)
    modal_app.check_deployment(Settings(), "t")
    with pytest.raises(ValueError, match="holds no language model"):
        modal_app.check_deployment(Settings(gpu="L4", engine="vllm"), "t")
    cloud.files["semid"]["recommender/config.json"] = b"[]"
    with pytest.raises(ValueError, match=r"config\.json"):
        modal_app.check_deployment(Settings(), "t")


def deployed(cloud: LoopbackModal, **variables: str) -> dict:
    """What `modal deploy` made, by name: functions, and the images that they are built on."""
    run = command(*MODAL, "deploy", "-m", "semid_lib.serving.modal_app", **variables, **cloud.environment)
    assert run.returncode == 0, run.stdout + run.stderr
    [published] = cloud.asked("AppPublish")
    functions = {request.function.function_name: request.function for request in cloud.asked("FunctionCreate")}
    return {"": published.name, **functions}


def test_a_deployment_is_what_the_settings_say(cloud, served_folder):
    put(cloud, served_folder)
    made = deployed(cloud, SEMID_TOKEN="t")
    endpoint = made["SmallModels.*"]
    assert made.keys() == {"", "SmallModels.*", "keep_warm"} and made[""] == "semid"
    assert not endpoint.resources.gpu_config.gpu_type and endpoint.checkpointing_enabled
    scaling = endpoint.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 1, 60)
    assert (endpoint.max_concurrent_inputs, endpoint.timeout_secs, endpoint.resources.memory_mb) == (32, 60, 2048)
    assert {mount.mount_path: mount.read_only for mount in endpoint.volume_mounts} == {
        "/semid": True,
        "/semid-cache": False,
    }
    assert endpoint.method_definitions["web"].webhook_config.type == api_pb2.WEBHOOK_TYPE_ASGI_APP
    assert not endpoint.method_definitions["web"].webhook_config.requires_proxy_auth
    assert not made["keep_warm"].HasField("schedule")
    secrets = [dict(request.env_dict) for request in cloud.asked("SecretGetOrCreate")]
    assert {"SEMID_TOKEN": "t"} in secrets
    config = hashlib.sha256((served_folder / "config.json").read_bytes()).hexdigest()  # another model, another snapshot
    assert any(secret.get("SEMID_MODEL_STATE") == config for secret in secrets)
    assert not any("SEMID_TOKEN" in secret for secret in secrets if len(secret) > 1)


def test_a_gpu_is_taken_only_when_it_is_named(cloud, served_folder):
    put(cloud, served_folder)
    made = deployed(cloud, SEMID_PUBLIC="1", SEMID_GPU="L4", SEMID_MIN_CONTAINERS="1", SEMID_WARM_UP="*/4 8-18 * * 1-5")
    endpoint = made["LanguageModel.*"]
    assert made.keys() == {"", "LanguageModel.*", "keep_warm"} and made[""] == "semid-gpu"
    assert endpoint.resources.gpu_config.gpu_type == "L4" and endpoint.checkpointing_enabled
    assert dict(endpoint.experimental_options) == {"enable_gpu_snapshot": "True"}
    assert endpoint.autoscaler_settings.min_containers == 1
    assert made["keep_warm"].schedule.cron.cron_string == "*/4 8-18 * * 1-5"
    assert not made["keep_warm"].resources.gpu_config.gpu_type
    secrets = [dict(request.env_dict) for request in cloud.asked("SecretGetOrCreate")]
    assert any(secret.get("SEMID_GPU") == "L4" and secret["HF_HUB_OFFLINE"] == "1" for secret in secrets)


def test_a_model_on_the_hub_is_checked_there(cloud, served_folder, tmp_path):
    files = {path.name: path.read_bytes() for path in served_folder.iterdir()}
    with Hub() as hub:
        commit = hub.add("ann/shop", files, private=True)
        broken = hub.add("ann/broken", {name: files[name] for name in files if name != "items.parquet"})
        there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}

        def refused(model: str, revision: str, **variables: str) -> str:
            settings = {"SEMID_TOKEN": "t", "SEMID_MODEL": model, "SEMID_REVISION": revision}
            run = command(*MODAL, "deploy", "-m", "semid_lib.serving.modal_app", **settings, **there, **variables)
            assert run.returncode == 1 and len(run.stderr.strip().splitlines()) == 1, run.stderr
            return run.stderr

        assert "has no items.parquet" in refused("ann/broken", broken)
        assert "no repository on the Hub" in refused("ann/shop", commit)
        (tmp_path / "token").write_text("sesame_ann")  # a login, which containers do not have
        assert "ann/shop is private: set HF_TOKEN" in refused("ann/shop", commit)
        settings = {"SEMID_MODEL": "ann/shop", "SEMID_REVISION": commit, "HF_TOKEN": "sesame_ann"}
        assert "SmallModels.*" in deployed(cloud, SEMID_TOKEN="t", **settings, **there)
    secrets = [dict(request.env_dict) for request in cloud.asked("SecretGetOrCreate")]
    assert {"SEMID_TOKEN": "t", "HF_TOKEN": "sesame_ann"} in secrets
    assert any(secret.get("SEMID_REVISION") == commit and secret["HF_HUB_OFFLINE"] == "0" for secret in secrets)


# --- images ---


def built(cloud: LoopbackModal) -> list[str]:
    """The pip line of each image."""
    lines = [line for request in cloud.asked("ImageGetOrCreate") for line in request.image.dockerfile_commands]
    return [line for line in lines if "constraints.txt" in line]


def provided(extras: str) -> set[str]:
    """Names under which the extras' packages, and all that these need, are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = list(project["dependencies"])
    for extra in extras.split(","):
        waiting += project["optional-dependencies"][extra]
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # only on another platform
        for extra in requirement.extras:
            waiting += [
                line for line in needs if (marker := Requirement(line).marker) and marker.evaluate({"extra": extra})
            ]
        waiting += needs
    modules = importlib.metadata.packages_distributions()
    return {module for module, names in modules.items() if {canonicalize_name(name) for name in names} & found}


def imports(paths: list[Path]) -> set[str]:
    """Third-party modules that files import anywhere, functions and modules of ours that they lead to included."""
    seen, found, waiting = set(), set(), list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.startswith("semid_lib"):
                    waiting.append(ROOT / f"{name.replace('.', '/')}.py")
                else:
                    found.add(name.split(".")[0])
    return found - set(sys.stdlib_module_names)


LIBRARY = ROOT / "semid_lib"
# what functions that a container never calls import: other decoders, training on 4-bit weights, a compiled loop
ELSEWHERE = {"llguidance", "numba", "outlines", "outlines_core", "ray", "unsloth", "vllm", "xgrammar"}


@pytest.mark.parametrize(
    ("variables", "extras", "wanted"),
    [
        ({}, "embed,search,serve", [LIBRARY / "web.py", LIBRARY / "predict.py"]),
        ({"SEMID_GPU": "L4"}, "embed,search,serve,sft", [LIBRARY / "web.py", LIBRARY / "predict.py"]),
    ],
    ids=["cpu", "gpu"],
)
def test_the_image_installs_what_the_code_imports(cloud, served_folder, variables, extras, wanted):
    put(cloud, served_folder)
    deployed(cloud, SEMID_TOKEN="t", **variables)
    [line] = built(cloud)
    assert f'".[{extras}]"' in line and "--constraint constraints.txt" in line
    missing = imports(wanted) - provided(extras) - ELSEWHERE - ({"datasets", "peft", "trl"} if not variables else set())
    assert not missing, f"the image of {extras} lacks {sorted(missing)}"


def test_vllm_comes_with_the_versions_that_it_pins_itself(cloud, served_folder, tmp_path):
    config = json.loads((served_folder / "config.json").read_text())
    (served_folder / "config.json").write_text(json.dumps(config | {"searcher": {"type": "language model"}}))
    put(cloud, served_folder)
    made = deployed(cloud, SEMID_TOKEN="t", SEMID_GPU="L4", SEMID_ENGINE="vllm")
    assert not made["LanguageModel.*"].checkpointing_enabled and not made["LanguageModel.*"].experimental_options
    [line] = built(cloud)
    assert line.index("constraints.txt") < line.index("pip install") and "vllm==0.32.0" in line
    (tmp_path / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    subprocess.run(re.search(r"sed [^&]*", line)[0], shell=True, cwd=tmp_path, check=True)
    left = (tmp_path / "constraints.txt").read_text().splitlines()
    gone = [name for name in (ROOT / "constraints.txt").read_text().splitlines() if name not in left]
    assert [name.split("==")[0] for name in gone] == list(modal_app._VLLM_PINS)


def test_what_is_sent_is_enough_to_answer(cloud, served_folder, shop, tmp_path):
    """The files that Modal mounts, in an empty place, with the environment that it sets and no package but those of
    the image and of Modal's client: import, load, answer."""
    put(cloud, served_folder)
    deployed(cloud, SEMID_TOKEN="t", SEMID_SCALEDOWN="300")
    for mount in cloud.asked("MountGetOrCreate"):
        for file in mount.files:
            if file.filename.startswith("/root/"):
                target = tmp_path / "container" / file.filename.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(cloud.sent[file.sha256_hex])
    root = tmp_path / "container" / "root"
    assert (root / "semid_lib/serving/http/page/index.html").is_file() and not list(root.rglob("__pycache__"))
    everything = set(importlib.metadata.packages_distributions()) - {"semid_lib"}
    modals_own = provided("deploy")
    assert {"numba", "trl", "jupytext", "matplotlib"} <= everything - provided("embed,search,serve") - modals_own
    variables = {}
    for request in cloud.asked("SecretGetOrCreate"):
        variables |= dict(request.env_dict)
    code = f"""if True:
        import importlib.abc, json, sys, threading, time, urllib.request
        from pathlib import Path

        class OnlyWhatIsInstalled(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if path is None and name in {sorted(everything - provided("embed,search,serve") - modals_own)!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, OnlyWhatIsInstalled())
        from semid_lib.serving import modal_app
        assert Path(modal_app.__file__).is_relative_to({str(root)!r})
        assert modal_app.SETTINGS.scaledown == 300
        modal_app._ROOM = Path({str(served_folder.parent)!r})
        import uvicorn
        server = uvicorn.Server(uvicorn.Config(modal_app.SmallModels().web.local(), port=0, log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{{server.servers[0].sockets[0].getsockname()[1]}}"
        headers = {{"Authorization": "Bearer t", "Content-Type": "application/json"}}
        body = json.dumps({{"item_ids": {shop.items["item_id"].tolist()[:2]}, "k": 3}}).encode()
        print(urllib.request.urlopen(urllib.request.Request(url + "/recommend", body, headers)).read().decode())
        assert b"<html" in urllib.request.urlopen(url + "/").read()
        server.should_exit = True
        thread.join()
    """
    served_folder.rename(served_folder.with_name("recommender"))
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONPATH": str(root), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert len(json.loads(run.stdout.splitlines()[-1])["items"]) == 3


# --- upload ---


def test_a_folder_is_sent_whole_and_nothing_else(cloud, served_folder):
    (served_folder / "notes.txt").write_text("not of the model")
    assert main(["deploy", "upload", "--folder", str(served_folder)]) == 0
    sent = cloud.files["semid"]
    assert sent == {
        f"recommender/{path.name}": path.read_bytes() for path in served_folder.iterdir() if path.name != "notes.txt"
    }
    assert len(cloud.asked("VolumePutFiles")) == 1
    modal_app.check_deployment(Settings(), "t")
    assert main(["deploy", "upload", "--folder", str(served_folder), "--name", "shops/beauty"]) == 0
    modal_app.check_deployment(Settings(model="shops/beauty"), "t")


@pytest.mark.parametrize("broken", ["items.parquet", "model.safetensors", "config.json"])
def test_a_broken_folder_never_meets_the_network(cloud, served_folder, capsys, broken):
    (served_folder / broken).write_bytes(b"{}")
    assert main(["deploy", "upload", "--folder", str(served_folder)]) == 1
    assert capsys.readouterr().err.startswith("error: ") and cloud.calls == []
    (served_folder / broken).unlink()
    assert main(["deploy", "upload", "--folder", str(served_folder)]) == 1
    assert broken in capsys.readouterr().err and cloud.calls == []


def test_an_upload_refuses_a_name_that_leads_elsewhere(cloud, served_folder, capsys):
    assert main(["deploy", "upload", "--folder", str(served_folder), "--name", "../x"]) == 1
    assert "SEMID_MODEL is ../x" in capsys.readouterr().err and cloud.calls == []


# --- batch ---


@pytest.fixture
def histories(shop, tmp_path):
    ids = shop.items["item_id"].to_numpy()
    lines = [f"u{at} {' '.join(map(str, ids[history]))}\n" for at, history in enumerate(shop.histories)]
    path = tmp_path / "histories.txt"
    path.write_text("".join([*lines, "strange 999999\n"]))
    return path


@pytest.mark.parametrize("ending", predict.ENDINGS)
def test_batch_on_modal_gives_the_file_of_the_command(cloud, in_room, room, histories, tmp_path, ending):
    def in_a_container(sent, made, topk, queries):  # the Volume is mounted, and kept afterwards
        (room / sent).parent.mkdir(parents=True)
        (room / sent).write_bytes(cloud.files["semid"][sent])
        result = modal_app.answer.local(sent, made, topk, queries)
        for path in (room / sent).parent.iterdir():
            cloud.files["semid"][str(path.relative_to(room))] = path.read_bytes()
        return result

    cloud.run["answer"] = in_a_container
    there, here = tmp_path / f"there{ending}", tmp_path / f"here{ending}"
    words = ["--input-path", str(histories), "--topk", "4"]
    assert main(["deploy", "predict", *words, "--output-path", str(there)]) == 3  # a line was rejected
    assert main(["predict", *words, "--model", str(in_room), "--output-path", str(here)]) == 3
    assert there.read_bytes() == here.read_bytes()
    assert Path(f"{there}.rejected").read_bytes() == Path(f"{here}.rejected").read_bytes()
    assert not [path for path in cloud.files["semid"] if path.startswith("batch/")]
    assert not list(tmp_path.glob("*.download"))


def test_a_batch_that_cannot_run_never_meets_the_network(cloud, histories, tmp_path, capsys):
    for words in (
        ["--input-path", str(histories), "--output-path", "out.xlsx"],
        ["--input-path", str(histories), "--output-path", "out.csv", "--topk", "0"],
        ["--input-path", str(tmp_path / "none.txt"), "--output-path", "out.csv"],
    ):
        assert main(["deploy", "predict", *words]) == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert cloud.calls == []


# --- chapters ---

CHAPTER = """# %% [markdown]
# # A chapter

# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"

# %%
import numpy as np

from semid_lib.data import dataset as data
from semid_lib.workbench import store

shop = data.load(DATA)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
shelf.save("counts", {"n": np.array([len(shop.items)])})
shelf.record("NAME", [{"key": "count/items", "value": len(shop.items)}])
"""


@pytest.fixture
def shop_folder(tmp_path):
    items = [{"item_id": at, "title": f"thing {at}"} for at in range(5)]
    write_folder(tmp_path / "tiny", items)
    (tmp_path / "tiny" / "README.md").write_text("not data")
    return tmp_path / "tiny"


def test_chapters_run_once_and_leave_what_make_leaves(shop_folder, tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for name in ("01_first", "02_second"):
        (notebooks / f"{name}.py").write_text(CHAPTER.replace("NAME", name))
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    monkeypatch.setenv("SEMID_COMMIT", "abc+")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = []
    how = (notebooks, modal_app._chapters(notebooks, "02"), str(shop_folder), "smoke", lambda: kept.append(1))
    assert modal_app.run_chapters(*how) == ["02_second"] and kept == [1]
    folder = store.open_store(str(shop_folder), "smoke").folder
    assert sorted(path.name for path in (folder / "executed").glob("[!.]*")) == [
        f"02_second.{ending}" for ending in ("ipynb", "json", "log")
    ]
    [row] = json.loads((folder / "rows" / "02_second.json").read_text())
    assert (row["value"], row["scale"], row["commit"], row["dirty"]) == (5, "smoke", "abc", True)
    assert modal_app.run_chapters(*how) == []  # the same again
    (notebooks / "01_first.py").write_text(CHAPTER.replace("import numpy as np", "raise ValueError('broken')"))
    with pytest.raises(RuntimeError, match=r"01_first failed in In \[\d+\], .*ValueError: broken"):
        modal_app.run_chapters(notebooks, ["01_first"], *how[2:])
    assert not (folder / "executed" / "01_first.ipynb").exists()
    assert (folder / "executed" / "01_first.failed.ipynb").is_file() and kept == [1, 1]  # what it left is kept, too


def test_chapters_are_named_by_number_or_name():
    notebooks = ROOT / "notebooks"
    assert modal_app._chapters(notebooks, "07,01") == ["01_catalogue_and_embeddings", "07_next_item"]
    assert modal_app._chapters(notebooks, "02_semantic_ids") == ["02_semantic_ids"]
    for wanted in ("42", "", "01,", "1"):
        with pytest.raises(ValueError, match="expected some of 01_"):
            modal_app._chapters(notebooks, wanted)


def test_training_sends_data_and_brings_rows_back(cloud, shop_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    asked, here = [], store.open_store(str(shop_folder), "smoke").folder
    name = here.parent.name

    def in_a_container(*words):
        asked.append(words)
        for part in ("executed/01_a.ipynb", "rows/01_a.json", "recommender/config.json"):
            cloud.files["semid"][f"artefacts/{name}/smoke/{part}"] = part.encode()
        return "01_a"

    cloud.run["train"] = in_a_container
    words = ["deploy", "train", "--data", str(shop_folder), "--scale", "smoke", "--chapters", "01"]
    assert main(words) == 0
    [(data, scale, chapters, commit)] = asked
    assert (data, scale, chapters) == (f"{name}/tiny", "smoke", "01") and re.fullmatch(r"[0-9a-f]{40}\+?|\+", commit)
    sent = [path for path in cloud.files["semid"] if path.startswith("data/")]
    assert sent and not [path for path in sent if "README" in path]
    [line] = built(cloud)
    missing = imports(sorted((ROOT / "notebooks").glob("[0-9]*.py"))) - provided(re.search(r"\[([\w,]+)\]", line)[1])
    assert not missing - {"ray", "unsloth", "vllm"}, f"the image of the chapters lacks {sorted(missing)}"
    assert {str(path.relative_to(here)) for path in here.rglob("*.*")} == {"executed/01_a.ipynb", "rows/01_a.json"}
    assert main(["deploy", "fetch", "--data", str(shop_folder), "--scale", "smoke", "--everything"]) == 0
    assert (here / "recommender" / "config.json").read_bytes() == b"recommender/config.json"
    assert main(["deploy", "fetch", "--scale", "smoke"]) == 1  # the demo shop


def test_training_that_cannot_run_never_meets_the_network(cloud, tmp_path, capsys):
    for words in (["--data", str(tmp_path / "none")], ["--scale", "huge"], ["--chapters", "42"]):
        assert main(["deploy", "train", *words]) == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert cloud.calls == []


# --- measuring, the command line ---


def test_what_is_measured_stands_where_chapter_08_reads(serve, in_room, shop_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "artefacts"))
    monkeypatch.delenv("SEMID_TOKEN", raising=False)
    url = serve(web.load_app(in_room))
    words = ["--url", url, "--data", str(shop_folder), "--scale", "smoke", "--warm", "5", "--cold", "1", "--wait", "0"]
    assert main(["deploy", "measure", *words]) == 0
    printed = capsys.readouterr().out
    assert "deployment/endpoint_warm/p50_ms" in printed and "1 of 1 were not cold" in printed
    run = store.open_store(str(shop_folder), "smoke").folder
    rows = json.loads((run / "rows" / "08_endpoint.json").read_text())
    assert [row["key"] for row in rows] == [f"deployment/tiny/endpoint_warm/{name}" for name in ("p50_ms", "p95_ms")]
    assert main(["deploy", "measure", *words, "--warm", "0"]) == 1  # nothing to keep


def test_modal_reads_the_file_without_an_account():
    run = command(*MODAL, "run", "-m", "semid_lib.serving.modal_app::train", "--help")
    assert run.returncode == 0 and "--chapters" in run.stdout
    run = command(*MODAL, "run", "-m", "semid_lib.serving.modal_app::train")
    assert run.returncode != 0 and "Token missing" in run.stderr
    run = command(sys.executable, "-m", "semid_lib.cli", "deploy", "--help")
    assert run.returncode == 0 and "modal deploy -m semid_lib.serving.modal_app" in " ".join(run.stdout.split())
    run = command(sys.executable, "-m", "semid_lib.cli", "deploy", "upload", "--folder", "none", SEMID_CPU="x")
    assert run.returncode == 1 and run.stderr == "error: SEMID_CPU is x, expected a number\n"


def test_no_other_module_imports_modal():
    importing = re.compile(r"^\s*(import|from) modal\b", re.MULTILINE)
    files = [*LIBRARY.rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]
    assert [path.name for path in files if importing.search(path.read_text(encoding="utf-8"))] == ["modal_app.py"]
