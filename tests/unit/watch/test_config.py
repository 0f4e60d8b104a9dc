"""A stream is declared in YAML; what is wrong in it is named."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from stepwatch.config import default_config, parse_config, read_config
from stepwatch.errors import WatchError

ROOT = Path(__file__).parents[3]


def test_the_documented_example_is_valid() -> None:
    config = read_config(ROOT / "monitoring" / "examples" / "padchest.yaml")
    assert config.source == "manufacturer"
    assert config.baseline.first == date(2009, 4, 1)
    assert "projection" in config.columns()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"families": {}}, "families"),
        ({"families": {"a": {"numbers": ["x"]}, "b": {"levels": ["x"]}}}, "x"),
        ({"families": {"a": {"numbers": ["x"], "colour": 1}}}, "colour"),
        ({"families": {"a": {"numbers": ["x"]}}, "false_alarm_every": 3}, "false_alarm_every"),
        ({"families": {"a": {"numbers": ["x"]}}, "off_days": ["domingo"]}, "off_days"),
        ({"families": {"a": {}}}, "nothing to watch"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(WatchError, match=named):
        parse_config(values, "watch.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "watch.yaml"
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(WatchError, match=r"watch\.yaml.*YAML"):
        read_config(file)


def test_holidays_count_as_off_days() -> None:
    config = parse_config({"families": {"a": {"numbers": ["x"]}}, "holidays": ["2026-12-25"]}, "watch.yaml")
    assert config.is_off(date(2026, 12, 25))
    assert config.is_off(date(2026, 12, 26))  # a Saturday
    assert not config.is_off(date(2026, 12, 24))


def test_the_default_watches_every_finding() -> None:
    assert "probability.pneumonia" in default_config(("pneumonia",)).columns()
