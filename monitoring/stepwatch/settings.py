"""Every setting of the monitor, its default, its unit. One YAML file, overridden by environment variables.

``stepwatch settings`` prints this reference. ``STEPWATCH_HTTP__PORT=9109`` overrides ``http: {port: …}``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stepwatch.errors import WatchError

CONFIG_VARIABLE = "STEPWATCH_CONFIG"
PREFIX = "STEPWATCH_"

Seconds = Annotated[float, Field(ge=0)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Http(_Group):
    """Metrics, status page, labels and Alertmanager's webhook."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(9108, ge=0, le=65535, description="TCP port.")
    token_file: Path | None = Field(
        None,
        description="File with the bearer token that the webhook, labels and acknowledgements ask for. Without one, "
        "all are refused.",
    )


class Model(_Group):
    """A model to watch."""

    package: Path = Field(description="Folder of its package: the baseline, and the constancy set.")
    policy: Path | None = Field(None, description="The site policy it runs under, with the site's own baseline.")


class Detection(_Group):
    """What is watched, and how."""

    config: Path | None = Field(None, description="Signals, strata and limits; the default suits radiographs.")
    poll_seconds: Seconds = Field(2, description="Seconds between two looks for new rows.")
    save_seconds: Seconds = Field(10, description="Longest time between two saves of the detectors' state, seconds.")


class Performance(_Group):
    """Decay and fairness, from labels."""

    window: int = Field(2000, ge=100, description="Studies over which performance is measured.")
    least: int = Field(30, ge=5, description="Labelled studies of a group below which nothing is said of it.")
    audit_share: float = Field(0.05, ge=0, le=1, description="Share of studies drawn for blinded reading.")
    audit_readers: list[str] = Field(
        [],
        description="Readers' codes (`stepwedge study --reader`) whose reports of drawn studies are blinded readings.",
    )


class Snapshot(_Group):
    """The Evidently page."""

    every_hours: float = Field(24, gt=0, description="Hours between two pages; one more on every alarm.")
    rows: int = Field(2000, ge=50, description="Latest studies compared.")
    timeout_seconds: Seconds = Field(600, description="Seconds after which its process is ended.")
    keep: int = Field(30, ge=1, description="Pages kept.")


class Retrain(_Group):
    """The loop back to training."""

    keys: list[Path] = Field([], description="Public keys (PEM) of people who may approve, promote and roll back.")
    retired_keys: list[Path] = Field(
        [],
        description="Public keys of people who may no longer: what they signed stays good, and they sign nothing new. "
        "A key moves here; one that is taken out altogether makes the log unreadable.",
    )
    trusted_keys: list[Path] = Field(
        [], description="Public keys that a package must be signed by to be a candidate; the service's `trust.keys`."
    )
    cool_down_hours: float = Field(168, ge=0, description="Hours in which the same cause opens no second request.")
    command: list[str] = Field(
        [], description="Program that trains a candidate: started without a shell, told the request in REQUEST_FILE."
    )
    timeout_seconds: Seconds = Field(86_400, description="Seconds after which the program is ended and has failed.")
    webhook_url: str | None = Field(None, description="Address told of an approved request, in place of a program.")
    webhook_key_file: Path | None = Field(None, description="Secret that signs that message (HMAC-SHA256).")
    locked_data: Path | None = Field(None, description="Folder of the locked cases that a candidate is judged on.")
    locked_labels: Path | None = Field(None, description="Their labels, as `package build` reads them.")
    worse_by: float = Field(0.05, ge=0, description="Expected cost a study that a candidate may be worse by at most.")
    subgroup_worse_by: float = Field(0.10, ge=0, description="The same for every subgroup.")
    every_subgroup: bool = Field(
        False, description="Whether a subgroup, or a finding, with too few locked cases keeps a candidate inconclusive."
    )
    live_link: Path | None = Field(
        None, description="Symbolic link that the service loads its package by; promotion turns it to the candidate."
    )
    reload_command: list[str] = Field(
        ["stepwedge", "reload"],
        description="Program that makes the service load what the link names. `stepwedge reload` reads the service's "
        "settings from STEPWEDGE_CONFIG, or from the file after --config.",
    )


class Log(_Group):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    format: Literal["json", "console"] = Field("json", description="`console` for people.")


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="null",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    database_url: str = Field(
        "sqlite:///stepwedge-data/db/stepwedge.sqlite", description="The service's database; ours are tables in it."
    )
    data_dir: Path = Field(Path("stepwedge-data/watch"), description="Folder for pages, requests and candidates.")
    models: list[Model] = Field([], description="The models to watch.")
    http: Http = Http()
    detection: Detection = Detection()
    performance: Performance = Performance()
    snapshot: Snapshot = Snapshot()
    retrain: Retrain = Retrain()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(  # the parent's signature
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment comes before the file, whose contents come as arguments."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from a YAML file (or the one that STEPWATCH_CONFIG names) and the environment.

    Relative paths are relative to the working folder.

    Raises
    ------
    WatchError
        If the file cannot be read or a value is wrong; names each field, what was found and what is wanted.
    """
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path = Path(os.environ[CONFIG_VARIABLE])
    values: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise WatchError(f"{path}: the settings file cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise WatchError(f"{path}: cannot be read as YAML: {error}") from None
        if read is not None and not isinstance(read, dict):
            raise WatchError(f"{path}: wanted a mapping of settings at the top, found {type(read).__name__}")
        values = read or {}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise WatchError(describe_validation(str(path or "environment"), error)) from None


def describe_validation(where: str, error: ValidationError) -> str:
    """Each wrong field on a line: which, what was found, what is wanted."""
    lines = [
        f"{where}: {'.'.join(str(part) for part in item['loc'])}: {item['msg']}; found {item['input']!r:.80}"
        for item in error.errors(include_url=False)
    ]
    return "\n".join(lines)
