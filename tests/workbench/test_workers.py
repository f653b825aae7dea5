"""Two worker processes on loopback give what one process gives, in its order, and one that is killed loses nothing."""

import ipaddress
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pytest

from semid_lib.cli import main
from semid_lib.serving import predict
from semid_lib.workbench import workers as distributed
from semid_lib.workbench.workers import BatchError, Cluster, here

# the second is Ray's own switch for one machine: everything listens on loopback
OTHERS = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def require_ray():
    """Without importing it: a `Cluster` has to set where it listens before."""
    if find_spec("ray") is None:
        pytest.skip("the extra 'distributed' is not installed")


@pytest.fixture(scope="module")
def cluster():
    require_ray()
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):  # before ray is imported
        os.environ[name] = OTHERS[name]
    import ray._private.node as starting

    with pytest.MonkeyPatch.context() as patch:  # Ray's processes have 30 s to start in: too few where others are busy
        patient = vars(time) | {"monotonic": lambda: time.monotonic() / 20}
        patch.setattr(starting, "time", SimpleNamespace(**patient))
        with Cluster(n_workers=2) as started:
            yield started


def numbers(n: int) -> list[pa.Table]:
    """n batches of 3 rows: 0, 1, 2; 3, 4, 5; ..."""
    return [pa.table({"x": range(at, at + 3)}) for at in range(0, 3 * n, 3)]


def test_a_batch_is_answered_by_as_many_rows():
    for answer in ([], [1, 2]):
        with pytest.raises(ValueError, match=rf"gave {len(answer)} rows, expected 3"):
            next(here(lambda answer=answer: lambda batch: pa.table({"y": answer}), numbers(1)))


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(cluster, tmp_path):
    def load():
        (tmp_path / f"loaded by {os.getpid()}").touch()

        def square(batch):
            x = batch["x"].to_numpy()
            if 9 in x and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            return pa.table({"square": x**2, "worker": [os.getpid()] * len(x)})

        return square

    answers = list(cluster.map(load, numbers(8)))
    assert (tmp_path / "died").exists()
    assert [answer["square"].to_pylist() for answer in answers] == [
        [x**2 for x in range(at, at + 3)] for at in range(0, 24, 3)
    ]
    workers = {pid for answer in answers for pid in answer["worker"].to_pylist()}
    assert os.getpid() not in workers
    assert {f"loaded by {pid}" for pid in workers} <= {path.name for path in tmp_path.iterdir()}
    assert len(list(tmp_path.glob("loaded by *"))) <= 3  # two, and the one that came after: a model is loaded once


@pytest.mark.slow
def test_an_error_names_its_rows_and_is_not_tried_again(cluster, tmp_path):
    def load():
        def fail(batch):
            if 9 in batch["x"].to_pylist():
                with open(tmp_path / "tried", "a") as tried:
                    tried.write("once ")
                raise ValueError("nine is not wanted")
            return batch

        return fail

    answers = cluster.map(load, numbers(6))
    assert [next(answers)["x"][0].as_py() for _ in range(3)] == [0, 3, 6]  # those before it are not lost
    with pytest.raises(BatchError, match=r"^rows 9 to 11: ValueError: nine is not wanted") as raised:
        next(answers)
    assert "in fail" in raised.value.__notes__[0]
    assert (tmp_path / "tried").read_text() == "once "


@pytest.mark.slow
def test_a_batch_that_kills_its_worker_each_time_is_named(cluster, tmp_path):
    def load():
        def die(batch):
            if 6 in batch["x"].to_pylist():
                with open(tmp_path / "tried", "a") as tried:
                    tried.write("once ")
                os._exit(1)
            return batch

        return die

    answers = cluster.map(load, numbers(4))
    assert [next(answers)["x"][0].as_py() for _ in range(2)] == [0, 3]
    with pytest.raises(BatchError, match=r"^a worker died over rows 6 to 8, even when it had no others: "):
        next(answers)
    assert (tmp_path / "tried").read_text().count("once") > 2


@pytest.mark.slow
def test_batches_are_read_as_they_are_needed(cluster):
    n_read = 0

    def endless():
        nonlocal n_read
        while True:
            n_read += 1
            yield pa.table({"x": [n_read]})

    answers = cluster.map(lambda: lambda batch: batch, endless())
    for at in range(1, 30):
        assert next(answers)["x"].to_pylist() == [at]
        assert n_read <= at + distributed._AHEAD * cluster.n_workers
    answers.close()


@pytest.mark.slow
def test_nobody_else_can_speak_to_it(cluster):
    import ray
    from ray._common.usage import usage_lib

    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    names, listening = set(), []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a worker that has nothing to do ends
            names.add(process.name())
            sockets = process.net_connections("inet")
            listening += [ipaddress.ip_address(one.laddr.ip) for one in sockets if one.status == psutil.CONN_LISTEN]
    assert {"raylet", "gcs_server"} <= names and len(listening) > 3
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in listening)
    assert not usage_lib.usage_stats_enabled()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert session.parents[1].stat().st_mode & 0o077 == 0  # what spills over is for this user alone


@pytest.fixture
def elsewhere(tmp_path_factory):
    """The address of a Ray cluster that other processes run, on loopback."""
    require_ray()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("ray")
    script = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}"]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=OTHERS, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(6000):  # a guard: it takes more than a minute on busy cores
            told = (folder / "log").read_text()
            if "Ray runtime started" in told or head.poll() is not None:
                break
            time.sleep(0.1)
        assert head.poll() is None and "Ray runtime started" in told, told
        yield address
    finally:
        with suppress(psutil.NoSuchProcess):  # it did not start
            for process in psutil.Process(head.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        head.kill()
        head.wait(30)


@pytest.mark.slow
def test_a_cluster_that_runs_already_is_joined_and_left(elsewhere):
    script = """if True:
        import os, ray, pyarrow
        from semid_lib.workbench import workers as distributed

        def load():
            return lambda batch: pyarrow.table({"y": [x**2 for x in batch["x"].to_pylist()], "by": [os.getpid()] * 2})

        for _ in range(2):
            answers = distributed.chosen()(load, [pyarrow.table({"x": [at, at + 1]}) for at in range(3)])
            answers = [answer.to_pydict() for answer in answers]
            assert [answer["y"] for answer in answers] == [[0, 1], [1, 4], [4, 9]], answers
            assert os.getpid() not in {by for answer in answers for by in answer["by"]}
            assert not ray.is_initialized()
    """
    environment = OTHERS | {"SEMID_RAY_ADDRESS": elsewhere, "PYTHONPATH": str(Path(distributed.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=600)


@pytest.mark.slow
def test_an_address_where_nobody_listens_is_said_at_once():
    require_ray()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        with pytest.raises(ConnectionError, match=rf"Ray \({address}\) did not answer: .*refused"), Cluster(1, address):
            pass


# --- the four uses ---


@pytest.mark.slow
def test_files_are_the_same(cluster, monkeypatch, tmp_path, shop, recommender_to_serve):
    monkeypatch.setattr(predict, "BLOCK", 8)
    recommender_to_serve.searcher = None  # it is of conftest, which workers cannot import
    ids = shop.items["item_id"].to_numpy()
    lines = [f'{{"user_id": "u{at}", "item_ids": {ids[rows].tolist()}}}' for at, rows in enumerate(shop.histories)]
    lines[5:5] = ["{", '{"user_id": "ann", "item_ids": [7]}', f'{{"user_id": "bo", "item_ids": [{10**30}]}}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    for name, run in (("alone.csv", here), ("shared.csv", cluster.map)):
        outcome = predict.predict(recommender_to_serve, "", tmp_path / "in.jsonl", tmp_path / name, run=run)
        assert outcome == (60, 3, 0)
    for ending in ("", ".rejected"):
        alone, shared = ((tmp_path / f"{name}.csv{ending}").read_bytes() for name in ("alone", "shared"))
        assert alone == shared and alone
    assert f"item id '{10**30}' is not in the catalogue" in alone.decode()


# --- what costs no cluster ---


@pytest.fixture
def asked(monkeypatch):
    """What clusters were asked for, which are none."""
    seen = []

    class Recorder(Cluster):
        map = staticmethod(here)

        def __enter__(self):
            seen.append((self.n_workers, self.address))
            return self

        def __exit__(self, *_):
            seen.append("left")

    monkeypatch.setattr(distributed, "Cluster", Recorder)
    for name in ("SEMID_WORKERS", "SEMID_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return seen


def test_the_environment_says_where(monkeypatch, asked):
    for name in ("SEMID_WORKERS", "SEMID_RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
    assert distributed.chosen() is here
    monkeypatch.setenv("SEMID_WORKERS", "3")
    run = distributed.chosen()
    assert not asked
    assert list(run(lambda: lambda batch: batch, numbers(2))) == numbers(2)
    monkeypatch.setenv("SEMID_RAY_ADDRESS", "auto")
    list(distributed.chosen()(lambda: lambda batch: batch, numbers(1)))
    list(distributed.chosen(2)(lambda: lambda batch: batch, numbers(1)))
    assert asked == [(3, None), "left", (3, "auto"), "left", (2, None), "left"]
    monkeypatch.setenv("SEMID_WORKERS", "many")
    with pytest.raises(ValueError, match="SEMID_WORKERS is 'many', expected a number of workers"):
        distributed.chosen()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_workers": 0}, "n_workers is 0, expected at least 1"),
        ({"address": "ray://head:10001"}, "the address is 'ray://head:10001', expected host:port"),
        ({"address": ""}, "the address is '', expected host:port"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**settings)


@pytest.mark.slow
def test_one_cluster_at_a_time(cluster):
    with pytest.raises(RuntimeError, match="already"), Cluster(1):
        pass


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'semid-lib\[distributed\]'"), Cluster(1):
        pass


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], None), (["--workers", "2"], (2, None)), (["--ray-address", "auto"], (None, "auto"))],
)
def test_the_command_shares_the_work_out(asked, served_folder, shop, tmp_path, arguments, expected):
    (tmp_path / "in.txt").write_text(f"ann {shop.items['item_id'][0]}\n")
    command = ["predict", "--model", str(served_folder), "--input-path", str(tmp_path / "in.txt")]
    assert main([*command, "--output-path", str(tmp_path / "out.csv"), *arguments]) == 0
    assert asked == ([expected, "left"] if expected else [])
