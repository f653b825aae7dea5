"""Places in an object store: what is fetched is what was sent, only changes travel, and one sentence says why not.

The store is moto's S3 server on loopback, or a server of ours that refuses everything.
"""

import http.server
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.fs
import pytest
from conftest import free_port

from semid_lib.chapters import runner
from semid_lib.cli import main
from semid_lib.data import dataset, folder
from semid_lib.data.folder import open_store
from semid_lib.next_item.timeline import Timeline, TimelineConfig
from semid_lib.serving.recommender import Recommender
from semid_lib.workbench import remote, store

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-of-the-tests"
SHOP = [{"item_id": 7, "title": "Red pen"}, {"item_id": 9, "title": "Tent"}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A cache and credentials of the test's own."""
    monkeypatch.setenv("SEMID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def place(here, s3_server, monkeypatch, request):
    """The address of a new folder in a bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    bucket(s3_server).create_dir("tests")
    return f"s3://tests/{abs(hash(request.node.nodeid))}"


def bucket(url):
    return pyarrow.fs.S3FileSystem(endpoint_override=url, allow_bucket_creation=True)


def elsewhere(monkeypatch, path):
    """As on another machine: nothing has been fetched there."""
    monkeypatch.setenv("SEMID_CACHE", str(path))


def stored(place, **files):
    """Files put into the store by somebody else."""
    system, path = pyarrow.fs.FileSystem.from_uri(place)
    for name, content in files.items():
        with system.open_output_stream(f"{path}/{name.replace('__', '.')}", compression=None) as stream:
            stream.write(content)
    return system, path


def contents(path):
    names = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {str(file.relative_to(path)): file.read_bytes() for file in names}


def test_paths_of_this_machine_are_their_own(tmp_path):
    assert remote.local(tmp_path) == remote.fetch(tmp_path) == tmp_path
    assert remote.fetch("somewhere/else").as_posix() == "somewhere/else"
    assert remote.send(tmp_path / "nothing") is None


@pytest.mark.parametrize("wrong", ["s3://", "s3://bucket//x", "s3://bucket/../x", "s3:///x", "s3://bucket/./x"])
def test_an_address_that_is_none_is_refused(here, wrong):
    with pytest.raises(ValueError, match=r"is no address, expected one like s3://bucket/folder"):
        remote.local(wrong)


@pytest.mark.parametrize("wrong", [f"s3://me:{SECRET}@bucket/x", f"s3://bucket/x?secret_key={SECRET}", "s3://b/x#y"])
def test_an_address_with_credentials_is_refused_without_repeating_them(here, wrong):
    with pytest.raises(ValueError, match="belong in the environment") as caught:
        dataset.load(wrong)
    assert SECRET not in str(caught.value)


def test_only_what_changed_is_fetched(place):
    system, path = stored(place, a__txt=b"one", b__txt=b"two")
    copy = remote.fetch(place)
    assert contents(copy) == {"a.txt": b"one", "b.txt": b"two"}
    (copy / "ours.txt").write_text("not in the store")
    before = {name: (copy / name).stat().st_ino for name in ("a.txt", "b.txt")}
    stored(place, a__txt=b"new")  # of the same length, perhaps in the same second
    system.delete_file(f"{path}/b.txt")
    stored(place, c__txt=b"", **{"deep/d__txt": b"four"})
    assert remote.fetch(place) == copy
    assert contents(copy) == {"a.txt": b"new", "c.txt": b"", "deep/d.txt": b"four", "ours.txt": b"not in the store"}
    assert (copy / "a.txt").stat().st_ino != before["a.txt"]
    again = (copy / "a.txt").stat().st_ino
    remote.fetch(place)
    assert (copy / "a.txt").stat().st_ino == again
    (copy / "a.txt").write_text("changed here")
    assert remote.fetch(f"{place}/a.txt").read_text() == "new"


def test_only_what_changed_is_sent_and_the_last_written_arrives_last(place, monkeypatch, tmp_path):
    copy = remote.local(place)
    (copy / "deep").mkdir(parents=True)
    for name in ("z.txt", "deep/a.txt", "b.partial"):
        (copy / name).write_text(name)
    sent = []
    copy_files = pyarrow.fs.copy_files
    monkeypatch.setattr(pyarrow.fs, "copy_files", lambda *words: (sent.append(words[1]), copy_files(*words)))
    remote.send(place)
    assert [name.rpartition("/")[2] for name in sent] == ["z.txt", "a.txt"]
    remote.send(place)
    assert len(sent) == 2
    (copy / "z.txt").write_text("another")
    remote.send(place)
    assert [name.rpartition("/")[2] for name in sent[2:]] == ["z.txt"]
    elsewhere(monkeypatch, tmp_path / "other")
    assert contents(remote.fetch(place)) == {"z.txt": b"another", "deep/a.txt": b"deep/a.txt"}
    (remote.local(place) / "z.txt").unlink()
    remote.send(f"{place}/z.txt")
    assert not remote.exists(f"{place}/z.txt")
    assert remote.exists(place)


def test_a_data_set_is_loaded_from_a_store(place, tmp_path):
    folder.write_folder(tmp_path / "shop", SHOP, [("ann", [7, 9])])
    stored(f"{place}/shop", **{file.name: file.read_bytes() for file in (tmp_path / "shop").iterdir()})
    here, there = dataset.load(tmp_path / "shop"), dataset.load(f"{place}/shop/")
    assert (there.name, there.fingerprint) == ("shop", here.fingerprint)
    pd.testing.assert_frame_equal(there.items, here.items)
    system, path = pyarrow.fs.FileSystem.from_uri(f"{place}/shop")
    system.delete_file(f"{path}/items.jsonl.gz")
    stored(f"{place}/shop", items__csv=b"item_id,title\n7,Pen\n9,x\n")  # with both, it would be refused
    assert dataset.load(f"{place}/shop").items["title"].tolist() == ["Pen", "x"]


def test_artefacts_and_rows_lie_in_a_store(place, monkeypatch, tmp_path):
    monkeypatch.setenv("SEMID_ARTEFACTS", place)
    shelf = store.Store("demo", "smoke", "f")
    assert not shelf.has("things")
    assert shelf.rows() == []
    with pytest.raises(FileNotFoundError, match=rf"{place}/demo/smoke/things.safetensors is missing: run the chapter"):
        shelf.load("things")
    shelf.save("things", {"a": np.arange(3)})
    shelf.save_batches("many", "a", [np.ones(2), np.ones(1)])
    shelf.record("01_first", [{"key": "a/b", "value": 1}])
    shelf.path("report").mkdir()
    (shelf.path("report") / "page.txt").write_text("a page")
    shelf.send("report")
    elsewhere(monkeypatch, tmp_path / "other")
    again = store.Store("demo", "smoke", "f")
    assert again.folder != shelf.folder
    assert again.has("things")
    assert again.load("things")["a"].tolist() == [0, 1, 2]
    assert again.load("many")["a"].tolist() == [1, 1, 1]
    assert [row["value"] for row in again.rows()] == [1]
    assert (remote.fetch(f"{place}/demo/smoke/report") / "page.txt").read_text() == "a page"
    elsewhere(monkeypatch, tmp_path / "cache")
    shelf.save("things", {"a": np.arange(2)})
    elsewhere(monkeypatch, tmp_path / "other")
    assert again.load("things")["a"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="other data"):
        store.Store("demo", "smoke", "g").load("things")


@pytest.fixture
def recommender(shop):
    config = TimelineConfig(sizes=shop.ids.sizes, text_dim=8, n_items=40, dim=8, n_layers=1)
    return Recommender(Timeline(config, shop.ids.unique, shop.vectors), shop.ids, shop.items)


@pytest.mark.slow
def test_a_recommender_and_its_answers_lie_in_a_store(place, recommender, monkeypatch, tmp_path):
    recommender.save_pretrained(f"{place}/model")
    elsewhere(monkeypatch, tmp_path / "other")
    loaded = Recommender.from_pretrained(f"{place}/model")
    ids = recommender.items["item_id"].tolist()
    np.testing.assert_array_equal(loaded.recommend([ids[:3]]).item_ids, recommender.recommend([ids[:3]]).item_ids)
    lines = f"ann {ids[0]} {ids[1]}\nbob {ids[2]}\ncem nonsense\n"
    stored(place, histories__txt=lines.encode())
    words = ["predict", "--model", f"{place}/model", "--input-path", f"{place}/histories.txt", "--topk", "3"]
    assert main([*words, "--output-path", f"{place}/answers/preds.csv"]) == 2
    (tmp_path / "histories.txt").write_text(lines)
    assert (
        main([*words[:4], str(tmp_path / "histories.txt"), *words[5:], "--output-path", str(tmp_path / "p.csv")]) == 2
    )
    elsewhere(monkeypatch, tmp_path / "third")
    answers = contents(remote.fetch(f"{place}/answers"))
    assert answers["preds.csv"] == (tmp_path / "p.csv").read_bytes()
    assert answers["preds.csv.rejected"] == (tmp_path / "p.csv.rejected").read_bytes()
    stored(place, histories__txt=lines.replace("nonsense", "").encode())
    assert main([*words, "--output-path", f"{place}/answers/preds.csv"]) == 0
    assert not remote.exists(f"{place}/answers/preds.csv.rejected")


CHAPTER = """# %% tags=["parameters"]
DATA = "demo"
SCALE = "laptop"

# %%
from semid_lib.data import dataset as data
from semid_lib.workbench import store

shop = data.load(DATA)
shelf = store.Store(shop.name, SCALE, shop.fingerprint)
shelf.record("01_toy", [{"key": "toy/items", "value": shop.counts["n_items"]}])
shelf.path("page.txt").write_text("a page")
"""


@pytest.mark.slow
def test_a_chapter_runs_on_data_in_a_store_and_leaves_all_it_wrote_there(place, monkeypatch, tmp_path):
    folder.write_folder(tmp_path / "shop", SHOP)
    stored(f"{place}/shop", **{file.name: file.read_bytes() for file in (tmp_path / "shop").iterdir()})
    (tmp_path / "01_toy.py").write_text(CHAPTER)
    monkeypatch.setenv("SEMID_ARTEFACTS", f"{place}/runs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(ValueError, match=f"DATA is '{place}/nothing', expected demo or a folder"):
        runner.run(tmp_path / "01_toy.py", f"{place}/nothing", "smoke")
    facts = runner.run(tmp_path / "01_toy.py", f"{place}/shop", "smoke")
    assert (facts["state"], facts["rows"]) == ("executed", 1), facts
    elsewhere(monkeypatch, tmp_path / "other")
    shelf = open_store(f"{place}/shop", "smoke")
    assert shelf.rows()[0]["value"] == 2
    left = contents(remote.fetch(f"{place}/runs/{shelf.folder.parent.name}/smoke"))
    assert not [name for name in left if name.endswith((".lock", ".partial"))]
    assert {"page.txt", "executed/01_toy.ipynb", "executed/01_toy.json", "metrics/01_toy.json"} <= left.keys()


# --- what goes wrong ---


def test_what_is_not_there_is_named(place, capsys):
    for where in (place, "s3://no-such-bucket/shop"):
        with pytest.raises(ValueError, match=rf"{where} is not there"):
            dataset.load(where)
    with pytest.raises(ValueError, match=r"s3://no-such-bucket/shop-f/smoke/a\.safetensors is not there"):
        store.Store("shop", "smoke", "f", root="s3://no-such-bucket").save("a", {"a": np.zeros(1)})
    with pytest.raises(ValueError, match="foo://x/y: pyarrow knows no such kind of place"):
        dataset.load("foo://x/y")
    assert main(["predict", "--model", place, "--input-path", "x.txt", "--output-path", "y.csv"]) == 1
    assert f"error: {place} is not there" in capsys.readouterr().err


def test_what_this_machine_cannot_do_is_not_blamed_on_the_store(place):
    stored(place, a__txt=b"one")
    remote.local(place).parent.mkdir(parents=True)
    remote.local(place).touch()  # a file where a folder has to be
    with pytest.raises(FileExistsError, match=r"File exists"):
        remote.fetch(place)


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_a_store_that_refuses_or_is_away_is_one_clear_error(here, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for ask in (remote.fetch, dataset.load, Recommender.from_pretrained, remote.exists):
            with pytest.raises(
                ValueError, match=r"^s3://bucket/shop: the store refuses this: expected credentials"
            ) as no:
                ask("s3://bucket/shop")
            assert SECRET not in str(no.value)
        server.shutdown()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match=r"^s3://bucket/shop: the store cannot be reached, or broke off") as away:
        dataset.load("s3://bucket/shop")
    assert SECRET not in str(away.value)


def test_a_save_replaces_the_whole_folder_in_the_store(place, recommender, monkeypatch, tmp_path):
    stored(f"{place}/model", query_model__safetensors=b"of an older one", **{"llm/added_tokens__json": b'{"red": 3}'})
    recommender.save_pretrained(f"{place}/model")
    elsewhere(monkeypatch, tmp_path / "other")
    copy = remote.fetch(f"{place}/model")
    assert sorted(contents(copy)) == ["config.json", "items.parquet", "model.safetensors", "semantic_ids.npz"]
    Recommender.from_pretrained(f"{place}/model").save_pretrained(f"{place}/model")
    Recommender.from_pretrained(f"{place}/model")
    stored(f"{place}/model", notes__txt=b"mine")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt'"):
        Recommender.from_pretrained(f"{place}/model").save_pretrained(f"{place}/model")


def test_no_credential_is_written_anywhere(place, here, recommender):
    recommender.save_pretrained(f"{place}/model")
    store.Store("shop", "smoke", "f", root=place).save("things", {"a": np.arange(3)})
    files = [file for file in here.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
