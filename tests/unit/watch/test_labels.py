"""Labels from CSV and JSON."""

from __future__ import annotations

import json

import pytest
from stepwatch.errors import WatchError
from stepwatch.labels import keep, read_csv, read_json, take
from watch_bench import Bench
from watched import FINDINGS

STUDY = "0123456789abcdef0123456789abcdef"
TIME = "2026-03-02T14:05:00+01:00"
HEAD = "study,finding,value,time,reader,audit,probability_drawn\n"
ROW = {"study": STUDY, "finding": "pneumonia", "value": 1, "time": TIME}


def test_csv_and_json_say_the_same() -> None:
    from_csv = read_csv(HEAD + f"{STUDY},pneumonia,present,{TIME},r1,true,0.05\n")[0]
    row = ROW | {"reader": "r1", "audit": True, "probability_drawn": 0.05}
    from_json = read_json(json.dumps([row]))[0]
    assert from_csv.label == from_json.label
    assert (from_csv.source, from_json.source) == ("csv", "http")
    assert (from_csv.value, from_csv.audit, from_csv.probability_drawn) == (1.0, True, 0.05)


@pytest.mark.parametrize(
    ("given", "value"), [("present", 1.0), ("Absent", 0.0), ("indeterminate", None), ("0.25", 0.25), (1, 1.0)]
)
def test_values(given: object, value: float | None) -> None:
    assert read_json(json.dumps([ROW | {"value": given}]))[0].value == value


def test_a_spreadsheet_may_begin_with_a_mark_and_leave_columns_out() -> None:
    assert read_csv(f"\ufeffstudy,finding,value,time\r\n{STUDY},pneumonia,0,{TIME}\r\n")[0].reader == ""


def test_the_settings_share_is_taken_where_a_label_of_the_audit_says_none() -> None:
    assert read_json(json.dumps([ROW | {"audit": True}]), audit_share=0.05)[0].probability_drawn == 0.05
    with pytest.raises(WatchError, match="row 1: probability_drawn"):
        read_json(json.dumps([ROW | {"audit": True}]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study": "1.2.840.10008.1"}, "row 2: study: .*not a UID"),
        ({"finding": ""}, "row 2: finding"),
        ({"value": "maybe"}, "row 2: value"),
        ({"value": 1.5}, "row 2: value"),
        ({"value": True}, "row 2: value"),
        ({"value": ""}, "row 2: value"),
        ({"time": "yesterday"}, "row 2: time"),
        ({"time": "2026-03-02T14:05:00"}, "row 2: time.*offset"),
        ({"reader": "x" * 65}, "row 2: reader"),
        ({"reader": "a\nb"}, "row 2: reader"),
        ({"audit": "perhaps"}, "row 2: audit"),
        ({"audit": True, "probability_drawn": 0}, "row 2: probability_drawn"),
        ({"audit": True, "probability_drawn": "NaN"}, "row 2: probability_drawn"),
        ({"patient": "x"}, "row 2: 'patient'"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_field_and_nothing_is_read(change: dict[str, object], said: str) -> None:
    with pytest.raises(WatchError, match=said):
        read_json(json.dumps([ROW, ROW | change]))


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'{"a": 1}'])
def test_what_is_no_list_of_objects_is_refused(body: bytes) -> None:
    with pytest.raises(WatchError, match="labels: "):
        read_json(body)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column study"),
        ("study,finding,value\n", "no column time"),
        ("study,finding,value,time,name\n", "'name' that is not known"),
        (f"study,finding,value,time\n{STUDY},pneumonia,1\n", "row 1: wanted 4 values"),
        (f"study,finding,value,time\n{STUDY},pneumonia,1,{TIME},x\n", "row 1: wanted 4 values"),
        ('study,finding,value,time\n"a', "is no CSV"),
    ],
)
def test_what_is_no_table_is_refused(text: str, said: str) -> None:
    with pytest.raises(WatchError, match=said):
        read_csv(text)


def test_a_wrong_value_is_not_quoted() -> None:
    with pytest.raises(WatchError) as caught:
        read_json(json.dumps([ROW | {"study": "DOE^JANE"}]))
    assert "DOE" not in str(caught.value)


def test_the_same_label_twice_is_one_row_and_an_unknown_finding_is_refused(bench: Bench) -> None:
    bench.database.prepare()
    labels = read_json(json.dumps([ROW, ROW | {"finding": "gout"}]))
    assert keep(bench.database, labels, FINDINGS) == (1, {"unknown_finding": 1})
    assert keep(bench.database, labels, FINDINGS) == (0, {"unknown_finding": 1})
    assert [label for _, label in bench.database.labels()] == labels[:1]


def test_what_comes_by_http_is_csv_or_json_and_says_so(bench: Bench) -> None:
    bench.database.prepare()
    csv = HEAD + f"{STUDY},pneumonia,present,{TIME},,,\n"
    assert take(bench.database, csv.encode(), "csv", FINDINGS) == (1, {})
    assert take(bench.database, json.dumps([ROW]).encode(), "json", FINDINGS) == (0, {})  # the same label
    assert [label.source for _, label in bench.database.labels()] == ["http"]
    with pytest.raises(WatchError, match="not UTF-8"):
        take(bench.database, b"\xff", "csv", FINDINGS)
