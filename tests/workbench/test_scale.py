"""The dial: three settings, none of them empty, no fourth."""

import pytest

from semid_lib.workbench import scale


def test_sizes_never_shrink_as_the_dial_turns():
    sizes = [vars(scale.get(name)) for name in ("smoke", "laptop", "full")]
    assert [size["name"] for size in sizes] == list(scale.NAMES)
    for field in sizes[0].keys() - {"name"}:
        values = [float("inf") if size[field] is None else size[field] for size in sizes]
        assert values == sorted(values), field
        assert values[0] > 0 or field == "tiger_dropout"


@pytest.mark.parametrize("name", ["", "Laptop", "huge", None])
def test_another_name_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=f"{name!r}.*smoke, laptop, full"):
        scale.get(name)
