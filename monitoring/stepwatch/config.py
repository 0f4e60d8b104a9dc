"""What is watched in a stream of studies: its columns, strata, signals and limits. Read from YAML; typed, validated."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepwatch.errors import WatchError
from stepwatch.settings import describe_validation

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Column = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Family(_Part):
    """Signals that tell of the same thing. Families share the bound on false alarms equally."""

    numbers: list[Column] = Field([], description="Columns of numbers: level, tails, missing values.")
    levels: list[Column] = Field([], description="Columns of categories: each level's share, missing, never seen.")
    probabilities: list[Column] = Field([], description="Columns of calibrated probabilities: prevalence.")
    tells_of: Literal["acquisition", "population", "prediction", "outcome"] = Field(
        "acquisition", description="What a change here is a change of."
    )
    together: bool = Field(
        False, description="Also watch each number given the others, and how far a study lies from the usual ones."
    )


class Labels(_Part):
    """Where labels come in the stream, to bet on the calibration of a probability."""

    probability: Column = Field(description="Column of the calibrated probability.")
    label: Column = Field(description="Column of the label, 0 or 1; empty where a study has none.")


class Stretch(_Part):
    """A stretch of the stream by its time column, both days included, or a file of its own."""

    file: Path | None = Field(None, description="Parquet or CSV file with the same columns.")
    first: date | None = Field(None, alias="from", description="First day.")
    last: date | None = Field(None, alias="until", description="Last day.")


class WatchConfig(_Part):
    """Everything that a monitor has to be told of a stream."""

    time: Column = Field("time", description="Column of the study's time, or day.")
    study: Column | None = Field(None, description="Column of the study; of several rows of one the first counts.")
    source: Column | None = Field(
        None, description="Column of where a study comes from (scanner): signals are compared within each."
    )
    off_days: list[Weekday] = Field(["saturday", "sunday"], description="Days compared with each other only.")
    holidays: list[date] = Field([], description="Days that count as off days.")
    families: dict[str, Family] = Field(min_length=1, description="Signals by family.")
    labels: list[Labels] = Field([], description="Labels in the stream.")
    baseline: Stretch = Stretch()
    watch: Stretch = Stretch()
    false_alarm_every: float = Field(
        200_000, ge=1000, description="Studies between two false alarms, at least, that the limits are made for."
    )
    least_baseline: int = Field(
        400,
        ge=50,
        description="Studies of a stratum (source, and working or off days) below which none of it is judged.",
    )

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        columns = [column for _, family in self.families.items() for column in _columns(family)]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"columns in more than one place of families: {', '.join(twice)}")
        if not columns:
            raise ValueError("families name no column; there is nothing to watch")
        if any("." in family or "=" in family for family in self.families):
            raise ValueError("a family's name must not hold '.' or '='")
        return self

    def columns(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        own = [self.time, *(name for name in (self.study, self.source) if name)]
        labels = [name for pair in self.labels for name in (pair.probability, pair.label)]
        families = [column for family in self.families.values() for column in _columns(family)]
        return tuple(dict.fromkeys([*own, *families, *labels]))

    def is_off(self, day: date) -> bool:
        """Whether a day is compared with off days."""
        return WEEKDAYS[day.weekday()] in self.off_days or day in self.holidays


def _columns(family: Family) -> list[str]:
    return [*family.numbers, *family.levels, *family.probabilities]


def read_config(file: Path) -> WatchConfig:
    """Read a configuration. Raises WatchError: names each field, what was found and what is wanted."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WatchError(f"{file}: the configuration cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WatchError(f"{file}: cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise WatchError(f"{file}: wanted a mapping at the top, found {type(values).__name__}")
    for name in ("baseline", "watch"):
        stretch = values.get(name)
        if isinstance(stretch, dict) and isinstance(stretch.get("file"), str):
            values[name] = {**stretch, "file": file.parent / stretch["file"]}
    return parse_config(values, str(file))


def parse_config(values: dict[str, Any], where: str) -> WatchConfig:
    """A configuration from its values. Raises WatchError."""
    try:
        return WatchConfig.model_validate(values)
    except ValidationError as error:
        raise WatchError(describe_validation(where, error)) from None


def default_config(findings: tuple[str, ...] = ()) -> WatchConfig:
    """The configuration for observations of radiographs, with the given findings; labels come after their studies."""
    pixels = ["mean", "sd", "p01", "p50", "p99", "low_share", "high_share", "entropy", "sharpness"]
    return WatchConfig(
        time="time",
        source="scanner",
        least_baseline=200,
        labels=[Labels(probability=f"probability.{name}", label=f"label.{name}") for name in findings],
        families={
            "patient": Family(numbers=["age_years"], levels=["sex"], tells_of="population"),
            "view": Family(levels=["view_position", "body_part", "modality"], tells_of="population"),
            "exposure": Family(numbers=["exposure", "kvp", "pixel_spacing", "rows", "columns"]),
            "format": Family(levels=["manufacturer", "transfer_syntax", "photometric", "bits_stored", "sender"]),
            "pixels": Family(numbers=[f"pixel_{name}" for name in pixels], together=True),
            "embedding": Family(numbers=[f"embedding.{i}" for i in range(8)], together=True),
            "prediction": Family(
                probabilities=[f"probability.{finding}" for finding in findings], tells_of="prediction"
            ),
            "outcome": Family(
                numbers=["tamper_measure"], levels=["state", "gate", "gate_reason", "tamper"], tells_of="outcome"
            ),
            "speed": Family(numbers=["ms.infer"], tells_of="outcome"),
        },
    )
