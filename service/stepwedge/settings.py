"""Every setting, its default, its unit. One YAML file, overridden by environment variables.

``stepwedge settings`` prints this reference. ``STEPWEDGE_NODE__PORT=11113`` overrides ``node: {port: …}``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as EnvironmentParseError

from stepwedge.errors import SettingsError, describe_validation

CONFIG_VARIABLE = "STEPWEDGE_CONFIG"
PREFIX = "STEPWEDGE_"

AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Role = Literal["viewer", "operator", "approver"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "approver")  # each may what the one before it may, and more
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Node(_Group):
    """The DICOM node that receives studies."""

    ae_title: AETitle = Field("STEPWEDGE", description="Our AE title. Associations that call another are rejected.")
    host: str = Field("127.0.0.1", description="Address to listen on. `0.0.0.0` for every interface.")
    port: Port = Field(11112, description="TCP port to listen on.")
    allowed_callers: list[AETitle] = Field(
        [], description="Calling AE titles that may send. Empty: any, which is accepted on a loopback address only."
    )
    maximum_associations: int = Field(50, ge=1, le=1000, description="Associations served at once.")
    association_timeout: Seconds = Field(30, description="Seconds to wait for association messages (ARTIM and ACSE).")
    dimse_timeout: Seconds = Field(60, description="Seconds to wait for a DIMSE message.")
    network_timeout: Seconds = Field(60, description="Seconds an association may be idle before it is aborted.")
    maximum_pdu_bytes: int = Field(131_072, ge=4096, le=1_048_576, description="Largest PDU that we receive, bytes.")
    maximum_instance_bytes: int = Field(
        1_073_741_824, ge=1_048_576, description="Largest data set that we store, bytes; larger ones get 0xA700."
    )


class Database(_Group):
    """Where the index and the queue are kept."""

    url: str | None = Field(
        None,
        description="`postgresql://USER@HOST:PORT/DATABASE` for a PostgreSQL that several nodes share, which is then "
        "the queue too; without it, SQLite files in `data_dir`. The password goes into one of the next two.",
    )
    password_file: Path | None = Field(None, description="File with the password of the PostgreSQL, and nothing else.")
    password: SecretStr | None = Field(
        None, description="The password itself, for the environment; leave it out of the settings file."
    )
    upgrade_at_start: bool = Field(
        True,
        description="Whether a role that starts upgrades the tables. Where it is false, a role refuses an older "
        "database until `stepwedge database upgrade` has run; SQLite files are always upgraded.",
    )


class Spool(_Group):
    """What is kept on disk."""

    reserve_bytes: int = Field(
        1_073_741_824,
        ge=0,
        description="Free bytes below which instances are refused with 0xA700. Below 32 MiB the worker begins nothing.",
    )
    quarantine_files: int = Field(500, ge=0, description="Most files kept in quarantine; more are only counted.")
    quarantine_bytes: int = Field(2_147_483_648, ge=0, description="Most bytes kept in quarantine.")
    instance_versions: int = Field(
        5, ge=1, le=100, description="Contents kept of one SOP instance that is sent again with another content."
    )


class Completeness(_Group):
    """When a study counts as complete."""

    quiet_seconds: Seconds = Field(10, description="Seconds without a new instance after which a study is complete.")
    quiet_seconds_by_modality: dict[str, Seconds] = Field(
        {"CT": 60, "MR": 60, "PT": 60, "NM": 60, "MG": 30, "US": 30},
        description="Overrides by modality; a study takes the longest of its modalities.",
    )
    open_association_seconds: Seconds = Field(
        300, description="A study waits this long beyond its last instance for an association that sent it to close."
    )
    poll_seconds: Seconds = Field(0.25, description="Seconds between two looks for complete studies.")


class Worker(_Group):
    """The process that analyses and delivers."""

    executor_id: str = Field(
        "worker-1", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Stable name; a restart under it resumes its work."
    )
    concurrency: int = Field(2, ge=1, le=64, description="Units of work analysed at once.")
    delivery_concurrency: int = Field(2, ge=1, le=64, description="Deliveries made at once.")
    analysis_attempts: int = Field(
        24,
        ge=1,
        le=1000,
        description="Attempts before a unit fails because no inference server answers; the default is 10 minutes.",
    )
    analysis_backoff_seconds: Seconds = Field(1, description="Seconds before the second attempt; doubles each time.")
    analysis_backoff_limit_seconds: Seconds = Field(30, description="Longest wait between two attempts, seconds.")
    delivery_backoff_seconds: Seconds = Field(5, description="Seconds before a delivery is tried again; doubles.")
    delivery_backoff_limit_seconds: Seconds = Field(
        300, description="Longest wait between two deliveries, seconds. Deliveries are tried until they succeed."
    )
    drain_seconds: Seconds = Field(30, description="Seconds that running work may take to finish after SIGTERM.")
    keep_workflows_days: float = Field(30, gt=0, description="Days for which finished workflow records are kept.")
    maximum_decoded_bytes: int = Field(
        536_870_912, ge=1_048_576, description="Largest decoded image, bytes; larger ones are rejected."
    )


class Inference(_Group):
    """The inference server."""

    host: str = Field("127.0.0.1", description="Address of the inference server.")
    port: Port = Field(3000, description="TCP port of the inference server.")
    url: str | None = Field(None, description="Where workers find it, if not at `http://host:port`.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`cuda` refuses to start without a working GPU; `auto` takes one where it can."
    )
    threads: int = Field(0, ge=0, description="Threads within one run on a CPU; 0: as many as there are cores.")
    concurrency: int = Field(2, ge=1, le=256, description="Requests that run at once; more wait.")
    maximum_waiting: int = Field(256, ge=1, description="Requests that may wait; more get 503 and are tried again.")
    timeout_seconds: Seconds = Field(30, description="Seconds that a worker waits for an answer.")
    maximum_request_bytes: int = Field(268_435_456, ge=1024, description="Largest request, bytes; larger get 413.")

    @property
    def base_url(self) -> str:
        return self.url or f"http://{self.host}:{self.port}"


class Http(_Group):
    """Health and metrics of a role; of all roles, and the operator's page, under `stepwedge serve`."""

    host: str = Field(
        "127.0.0.1",
        description="Address for /livez, /readyz and /metrics, which ask nobody who they are, and for the operator's "
        "page, which beyond loopback needs `page.tokens_file` or `page.oidc`.",
    )
    port: Port | None = Field(8080, description="TCP port; `null` for none.")


class Oidc(_Group):
    """Signing in to the operator's page through an OpenID provider."""

    issuer: str = Field(
        "",
        pattern=r"^(https?://[^@\s]+)?$",
        description="Address of the provider, as its tokens name it; `/.well-known/openid-configuration` is read below "
        "it. Empty: off.",
    )
    client_id: str = Field("", description="The page's identifier at the provider.")
    client_secret_file: Path | None = Field(None, description="File with the page's secret at the provider.")
    ca_file: Path | None = Field(
        None,
        description="File with the certificates (PEM) of the authority that vouches for the provider, where it is the "
        "site's own; the public authorities are then not trusted.",
    )
    scope: str = Field("openid profile groups", description="What is asked for; has to include `openid`.")
    roles_claim: str = Field("groups", description="The claim, a text or a list, that says what a person may do.")
    roles: dict[str, Role] = Field(
        {}, description="Values of that claim, and the role that each gives; of several the highest counts."
    )


class Page(_Group):
    """The operator's page on the HTTP port."""

    url: str = Field(
        "",
        pattern=r"^(https?://[^@/\s]+/?)?$",
        description="Its public address, as `https://stepwedge.example.org`: the only one that it then answers to, and "
        "where the OpenID provider sends people back. With `https` its cookies go over TLS alone.",
    )
    tokens_file: Path | None = Field(
        None, description="Tokens that people and programs sign in with (YAML); `stepwedge page-token` makes entries."
    )
    session_minutes: float = Field(60, gt=0, description="Minutes without a request after which one has to sign in.")
    session_hours: float = Field(
        12, gt=0, description="Hours after which one has to sign in in any case; more for a screen on the wall."
    )
    trusted_proxies: list[IPvAnyNetwork] = Field(
        [],
        description="Addresses or networks (10.42.0.0/16) of reverse proxies whose `X-Forwarded-For` says who asks, "
        "for the limits on requests.",
    )
    posts_per_minute: int = Field(60, ge=1, description="Requests that change something, or search, of one client.")
    sign_ins_per_minute: int = Field(10, ge=1, description="Attempts to sign in of one client.")
    oidc: Oidc = Oidc()


class Destination(_Group):
    """A node that takes results."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="Short name, as it appears in metrics.")
    host: str = Field(description="Address.")
    port: Port = Field(description="TCP port.")
    ae_title: AETitle = Field(description="The AE title to call.")
    accepts_demonstration: bool = Field(
        False, description="Results without an approved policy are delivered only where this is true."
    )
    timeout_seconds: Seconds = Field(30, description="Seconds to wait for the node.")


class Report(_Group):
    """What is written into the study."""

    picture: bool = Field(True, description="Also write a Secondary Capture that reads at a glance.")
    heat_map: bool = Field(
        True, description="Also write the heat map: a picture, and contours as a presentation state."
    )
    deferred: bool = Field(True, description="Write a report for deferred studies, saying that there is no AI result.")
    rejected: bool = Field(True, description="Write a report for rejected studies, saying why.")
    institution: str = Field("", max_length=64, description="Institution name in our objects.")


class Log(_Group):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    format: Literal["json", "console"] = Field("json", description="`console` for people.")


class Tracing(_Group):
    """OpenTelemetry traces: the way of each study through the roles."""

    endpoint: str = Field(
        "",
        pattern=r"^(https?://[^@\s]+)?$",
        description="URL of an OTLP/HTTP collector, e.g. `http://collector:4318`; `/v1/traces` is added. Empty: off.",
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of studies that are traced; all roles choose alike."
    )
    headers_file: Path | None = Field(
        None, description="File with HTTP headers for the collector, one `Name: value` a line, e.g. a token."
    )


class Watch(_Group):
    """The monitor (`stepwatch serve`), beside the other roles under `stepwedge serve`."""

    enabled: bool = Field(True, description="Whether it is started. It needs the `monitor` extra.")
    config: Path | None = Field(
        None,
        description="Its own settings (YAML; `stepwatch settings` prints them). Database, folder and models are those "
        "of the service where it, or the environment, does not say otherwise.",
    )
    url: str = Field(
        "http://127.0.0.1:9108",
        pattern=r"^https?://[^@\s]+$",
        description="Where the operator's page finds it, for drift, alarms, requests and reports.",
    )
    token_file: Path | None = Field(
        None,
        description="File with the monitor's own token (`http.token_file` there), so that alarms can be acknowledged "
        "on the page; without it the page shows the command.",
    )


class Constancy(_Group):
    """The reference set of each model package, sent through the running service."""

    enabled: bool = Field(
        True, description="Whether there are runs: `stepwedge serve` makes them once it is ready, then on schedule."
    )
    every_hours: float = Field(
        24, gt=0, le=24 * 7, description="Hours between two runs; where a CronJob makes them, set it to match."
    )
    timeout_seconds: Seconds = Field(600, description="Seconds after which studies that have not ended are missing.")


class Trust(_Group):
    """Whose signatures the site goes by."""

    keys: list[Path] = Field(
        [],
        description="Public keys (PEM). Where any are named, packages signed by anybody else, or by nobody, are "
        "refused. Without any, every result is a demonstration.",
    )


class Model(_Group):
    """A model package and the policy that it runs under."""

    package: Path = Field(description="Folder of the model package.")
    policy: Path = Field(description="File of the site policy.")


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

    data_dir: Path = Field(Path("stepwedge-data"), description="Folder for spool, database, results and keys.")
    site_key_file: Path | None = Field(
        None,
        description="File with the node's identity and site keys, e.g. from a Kubernetes Secret (`stepwedge keys new` "
        "makes one); without it, `keys/site.json` in `data_dir`, made at the first start.",
    )
    database: Database = Database()
    node: Node = Node()
    spool: Spool = Spool()
    completeness: Completeness = Completeness()
    worker: Worker = Worker()
    inference: Inference = Inference()
    http: Http = Http()
    page: Page = Page()
    report: Report = Report()
    log: Log = Log()
    tracing: Tracing = Tracing()
    watch: Watch = Watch()
    constancy: Constancy = Constancy()
    trust: Trust = Trust()
    models: list[Model] = Field([], description="The models to run. Each study goes to every one that selects it.")
    destinations: list[Destination] = Field([], description="The nodes that results are sent to.")

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

    @field_validator("destinations")
    @classmethod
    def _different_names(cls, value: list[Destination]) -> list[Destination]:
        names = [destination.name for destination in value]
        if len(set(names)) != len(names):
            raise ValueError("destinations must have different names")
        return value

    @property
    def database_file(self) -> Path:
        return self.data_dir / "db" / "stepwedge.sqlite"

    @property
    def queue_file(self) -> Path:
        return self.data_dir / "db" / "queue.sqlite"


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from a YAML file (or the one that STEPWEDGE_CONFIG names) and the environment.

    Relative paths in the file are relative to the file.

    Raises
    ------
    SettingsError
        If the file cannot be read or a value is wrong; names each field, what was found and what is wanted.
    """
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path = Path(os.environ[CONFIG_VARIABLE])
    values: dict[str, Any] = {}
    where = "environment"
    if path is not None:
        where = str(path)
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: the settings file cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: cannot be read as YAML: {error}") from None
        if read is not None and not isinstance(read, dict):
            raise SettingsError(f"{path}: wanted a mapping of settings at the top, found {type(read).__name__}")
        values = _relative_to(path.parent, read or {})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(describe_validation(where, error)) from None
    except EnvironmentParseError as error:
        raise SettingsError(f"environment: {error}; lists and mappings are given there as JSON") from None
    _check_exposure(settings)
    return settings


def _relative_to(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    values = _paths_in(values, folder, "data_dir", "site_key_file")
    if isinstance(values.get("models"), list):
        values["models"] = [
            _paths_in(model, folder, "package", "policy") if isinstance(model, dict) else model
            for model in values["models"]
        ]
    if isinstance(database := values.get("database"), dict):
        values["database"] = _paths_in(database, folder, "password_file")
    if isinstance(tracing := values.get("tracing"), dict):
        values["tracing"] = _paths_in(tracing, folder, "headers_file")
    if isinstance(watch := values.get("watch"), dict):
        values["watch"] = _paths_in(watch, folder, "config", "token_file")
    if isinstance(page := values.get("page"), dict):
        values["page"] = _paths_in(page, folder, "tokens_file")
        if isinstance(oidc := page.get("oidc"), dict):
            values["page"]["oidc"] = _paths_in(oidc, folder, "client_secret_file", "ca_file")
    if isinstance(trust := values.get("trust"), dict) and isinstance(trust.get("keys"), list):
        keys = [folder / key if isinstance(key, str) else key for key in trust["keys"]]
        values["trust"] = {**trust, "keys": keys}
    return values


def _paths_in(group: dict[str, Any], folder: Path, *names: str) -> dict[str, Any]:
    return {
        name: folder / value if name in names and isinstance(value, str) else value for name, value in group.items()
    }


def _check_exposure(settings: Settings) -> None:
    if settings.node.host not in LOOPBACK and not settings.node.allowed_callers:
        raise SettingsError(
            f"node.host is {settings.node.host}, beyond loopback, and node.allowed_callers is empty: anybody on the "
            "network could send studies; list the calling AE titles that may"
        )
    oidc = settings.page.oidc
    if oidc.issuer and not (oidc.client_id and oidc.roles and settings.page.url):
        raise SettingsError(
            "page.oidc.issuer is set, and page.oidc.client_id, page.oidc.roles or page.url is not: the provider needs "
            "to know who asks and where people come back to, and the page what they may do"
        )
    if oidc.issuer.startswith("http:") and urlsplit(oidc.issuer).hostname not in LOOPBACK:
        raise SettingsError(
            f"page.oidc.issuer is {oidc.issuer}: without https anybody on the way could say who signs in; give https"
        )
