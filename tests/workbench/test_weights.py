"""Files of weights: equal bytes for equal content, and shapes and configs that are checked before a model is made."""

import math
import struct
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open

from semid_lib.workbench.weights import check_config, check_shapes, save_weights, shapes_of


def test_equal_content_is_equal_bytes(tmp_path):
    facts = {name: 'ü\n"\x7f' for name in "hgfedcba"}
    for kind in (
        {"a": np.ones((2, 3), np.float32)},
        {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.bfloat16)},
    ):
        found = set()
        for _ in range(20):
            save_weights(tmp_path / "x.safetensors", kind, dict(facts))
            found.add((tmp_path / "x.safetensors").read_bytes())
        assert len(found) == 1
        with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
            assert file.metadata() == facts
            assert all(torch.equal(file.get_tensor(name), torch.as_tensor(value)) for name, value in kind.items())


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b"{" * 9],
)
def test_what_is_no_file_of_weights_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        shapes_of(tmp_path / "model.safetensors")


def test_shapes_are_held_against_a_config_without_reading_the_weights(tmp_path):
    save_weights(tmp_path / "x.safetensors", {"a": np.zeros((2, 3)), "b": np.zeros(0)})
    check_shapes(tmp_path / "x.safetensors", {"a": (2, 3)})
    for expected, message in {
        ("a", (2, 4)): r"x\.safetensors: tensor 'a' has shape \(2, 3\), expected shape \(2, 4\)",
        ("c", (1,)): r"tensor 'c' is missing, expected shape \(1,\) by the config",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_shapes(tmp_path / "x.safetensors", dict([expected]))


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...] = (2, 2)
    dim: int = 4
    n_words: int = 0
    rate: float = 0.5

    def __post_init__(self):
        check_config(self, least={"n_words": 0, "rate": 0}, below={"rate": 1})


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("dim", 0), ("dim", 2.0), ("dim", True), ("dim", "4"), ("dim", 2**63), ("dim", None), ("dim", np.int64(4)),
        ("n_words", -1), ("rate", 1), ("rate", -0.1), ("rate", math.nan), ("rate", "hot"), ("rate", True),
        ("sizes", [2, 2]), ("sizes", ()), ("sizes", (2, 0)), ("sizes", (2, 2.0)), ("sizes", "ab"), ("sizes", None),
    ],
)  # fmt: skip
def test_a_config_has_the_right_types_in_their_ranges(field, wrong):
    assert Shape(dim=1, n_words=0, rate=0) == Shape((2, 2), 1, 0, 0.0)
    with pytest.raises(ValueError, match=f"{field} is .*, expected"):
        Shape(**{field: wrong})
