"""Training a TIGER from the command line: one process, two that are stopped and started again, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semid_lib import data, scale, synthetic, train_tiger
from semid_lib.semantic_ids import SemanticIDs
from semid_lib.store import Store
from semid_lib.tiger import Tiger

# what two processes run: no dropout, and the first attempt is stopped at the last of the three steps of an epoch
PROGRAM = """
import sys
from semid_lib import scale, tiger, train_tiger, training
scale._SIZES["tiger_dropout"] = (0.0, 0.1, 0.2)
usual, left = tiger.Tiger.forward, [9]
training.fit.__defaults__ = (*training.fit.__defaults__[:-1], 2)  # save_every

def forward(model, batch):
    left[0] -= 1
    if left[0] == 0:
        raise KeyboardInterrupt
    return usual(model, batch)

tiger.Tiger.forward = forward
try:
    train_tiger.main(sys.argv[1:])
except KeyboardInterrupt:
    print("stopped")
sys.exit(train_tiger.main(sys.argv[1:]))
"""


@pytest.fixture
def shop_folder(tmp_path, monkeypatch):
    """A small shop with semantic IDs, and artefacts in a folder of its own."""
    folder = tmp_path / "small"
    synthetic.write_demo_shop(folder, n_items=100, n_users=60, n_queries=5)
    monkeypatch.setenv("SEMID_ARTEFACTS", str(tmp_path / "alone"))
    monkeypatch.setitem(scale._SIZES, "tiger_dropout", (0.0, 0.1, 0.2))
    for artefacts in ("alone", "together"):
        shop = data.load(folder)
        shelf = Store(shop.name, "smoke", shop.fingerprint, root=tmp_path / artefacts)
        ids = SemanticIDs.from_codes(np.random.default_rng(0).integers(0, 8, (100, 2)), codebook_size=8)
        arrays = {"codes": ids.codes, "disambiguation_code": ids.disambiguation_code}
        shelf.save("semantic_ids", arrays, codebook_size=8)
    return folder


def test_two_processes_that_are_stopped_end_as_one_that_is_not(shop_folder, tmp_path, capsys):
    asked = ["--data", str(shop_folder), "--scale", "smoke"]
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {
        "SEMID_ARTEFACTS": str(tmp_path / "together"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    done = subprocess.run(
        [*command, tmp_path / "program.py", *asked], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("stopped") == 2
    assert done.stdout.count("Recall@10") == 1  # only the first process prints

    assert train_tiger.main(asked) == 0
    printed = capsys.readouterr().out
    assert printed.split("Recall@10")[1].split()[0] == done.stdout.split("Recall@10")[1].split()[0]
    alone, together = (tmp_path / name / "small" / "smoke" for name in ("alone", "together"))
    one, two = (Tiger.from_pretrained(folder / "tiger") for folder in (alone, together))
    for name, weight in one.state_dict().items():
        np.testing.assert_allclose(two.state_dict()[name], weight, atol=2e-4, err_msg=name)
    for folder in (alone, together):
        assert not (folder / "tiger_checkpoints").exists()


def test_what_is_missing_is_said_in_a_line(shop_folder, tmp_path, capsys):
    assert train_tiger.main(["--data", str(shop_folder), "--scale", "laptop"]) == 2
    assert "run the chapter that writes 'semantic_ids'" in capsys.readouterr().err
    (shop_folder / "sequences.tsv.gz").unlink()
    (shop_folder / "timestamps.tsv.gz").unlink()
    assert train_tiger.main(["--data", str(shop_folder), "--scale", "smoke"]) == 2
    assert capsys.readouterr().err == "error: small has no histories: there is nothing to train on\n"
