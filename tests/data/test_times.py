"""Times in any unit: recognized where only one reading is sensible, refused otherwise."""

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_lib.data.times import check_seconds, nanosecond, nanoseconds

MOMENTS = (  # without the years in which .NET ticks and YYYYMMDDhh look like nanoseconds and seconds
    st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2099, 12, 31))
    .map(lambda moment: moment.replace(microsecond=0, tzinfo=datetime.UTC))
    .filter(lambda moment: moment.year not in (1990, 2033, 2034, 2035, 2036))
)
WRITTEN = {
    "Unix seconds": lambda moment: str(int(moment.timestamp())),
    "Unix milliseconds": lambda moment: str(int(moment.timestamp()) * 10**3),
    "Unix microseconds": lambda moment: str(int(moment.timestamp()) * 10**6),
    "Unix nanoseconds": lambda moment: str(int(moment.timestamp()) * 10**9),
    "times as YYYYMMDDhh": lambda moment: moment.strftime("%Y%m%d%H"),
    "times as YYYYMMDDhhmmss": lambda moment: moment.strftime("%Y%m%d%H%M%S"),
    "ISO": lambda moment: moment.isoformat(),
}


def fail(at: int, problem: str):
    raise ValueError(f"row {at + 1}: {problem}")


@given(st.lists(MOMENTS, min_size=1, max_size=5), st.sampled_from(sorted(WRITTEN)))
def test_a_time_is_the_same_in_whatever_unit_it_is_written(moments, unit):
    texts = [WRITTEN[unit](moment) for moment in moments]
    if unit == "times as YYYYMMDDhh":
        moments = [moment.replace(minute=0, second=0) for moment in moments]
    expected = [int(moment.timestamp()) * 10**9 for moment in moments]
    assert nanoseconds(pd.Series(texts), fail).tolist() == expected
    if unit.startswith("Unix"):
        assert nanoseconds(pd.Series([int(text) for text in texts]), fail).tolist() == expected
        assert [nanosecond(int(text)) for text in texts] == expected


@given(st.lists(MOMENTS, min_size=1, max_size=5), st.sampled_from(sorted(set(WRITTEN) - {"ISO", "Unix seconds"})))
def test_a_folder_takes_seconds_and_no_other_unit(moments, unit):
    check_seconds(np.array([int(moment.timestamp()) for moment in moments]), fail)
    with pytest.raises(ValueError, match=unit):
        check_seconds(np.array([int(WRITTEN[unit](moment)) for moment in moments]), fail)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2014", "2015"], "row 1: time 2014: the times look like years"),
        (["201405", "201406"], "look like months as YYYYMM"),
        (["41770.5", "41771"], "look like Excel's day numbers"),
        (["16200", "16201"], "look like days since 1970"),
        (["20141302", "20140101"], "row 1: time 20141302, expected dates as YYYYMMDD as in the other rows"),
        (["20140513.5", "20140514"], r"row 1: time 20140513\.5, expected dates as YYYYMMDD"),
        (["635355936000000000", "635355936000000001"], r"look like \.NET ticks"),
        (["now", "today"], "row 1: time 'now', expected an ISO date"),
        (["2014-05-13", "2014-05"], "row 2: time '2014-05', expected an ISO date"),
        (["2014-05-13", "2014"], "row 1: time '2014-05-13', expected a date or a Unix time"),
        (["7", "8"], "row 1: time 7 is in no known unit"),
        (["-1400000000"], "row 1: time -1400000000 is in no known unit"),
        (["1400000000", "1400000000000", "1400000001"], "row 2: time 1400000000000, expected Unix seconds as in the"),
        (["1400000000", "2014-05-13"], "row 2: time '2014-05-13', expected a date or a Unix time"),
        (["2014-05-13", "13.05.2014"], r"row 2: time '13\.05\.2014', expected an ISO date"),
        (["1989-12-31"], "row 1: time '1989-12-31', expected a time between 1990 and 2100"),
        (["9999-12-31"], "expected a time between 1990 and 2100"),
        (["inf"], "row 1: time 'inf', expected a date"),
        ([True, False], "row 1: time True, expected a date"),
        ([[1], [2]], r"row 1: time \[1\], expected an ISO date"),
    ],
)
def test_what_could_be_read_wrongly_is_refused_with_its_row(values, message):
    with pytest.raises(ValueError, match=message):
        nanoseconds(pd.Series(values), fail)


@pytest.mark.parametrize(
    ("value", "unit", "seconds"),
    [("41770.5", "excel", 1399809600), (7, "s", 7), ("7000", "ms", 7), (20140513, "s", 20140513)],
)
def test_a_unit_that_is_named_is_taken(value, unit, seconds):
    assert (nanoseconds(pd.Series([value]), fail, unit) // 10**9).tolist() == [seconds]


def test_a_unit_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"row 1: .* expected a time before 2100 in the unit 's'"):
        nanoseconds(pd.Series([1400000000000]), fail, "s")
    with pytest.raises(ValueError, match="time unit 'days', expected one of auto, s, ms"):
        nanoseconds(pd.Series([1]), fail, "days")


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(pd.to_datetime(["2014-05-13T16:53:20"])),
        pd.Series(pd.to_datetime(["2014-05-13T18:53:20"])).dt.tz_localize("Europe/Berlin"),
        pd.Series([1400000000, "1400000000"], dtype=object),
    ],
)
def test_columns_of_any_type_are_read(column):
    assert set(nanoseconds(column, fail) // 10**9) == {1400000000}


def test_seconds_that_happen_to_look_like_hours_stay_seconds_beside_others():
    assert (nanoseconds(pd.Series([1_400_000_000, 2_014_051_310]), fail) // 10**9).tolist() == [1400000000, 2014051310]
    check_seconds(np.array([1_400_000_000, 2_014_051_310]), fail)


def test_parts_of_a_second_keep_their_order():
    found = nanoseconds(pd.Series(["1400000000.9", "1400000000.1"]), fail)
    assert found[0] > found[1]
    assert (found // 10**9).tolist() == [1400000000] * 2
