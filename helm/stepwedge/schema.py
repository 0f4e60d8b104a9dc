"""Writes values.schema.json: schema.yaml, with the settings of service and monitor as the programs take them.

``make chart`` runs it. So a misspelt setting is named at `helm install`, and not by a role that does not start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from stepwatch.settings import Settings as WatchSettings
from stepwedge.settings import Settings

CHART = Path(__file__).parent

# What the chart sets itself, because it depends on where things are mounted, or comes from a Secret. Dots lead inwards.
OWN = (
    "data_dir",
    "site_key_file",
    "database",
    "models",
    "node.host",
    "node.port",
    "http",
    "inference.host",
    "inference.port",
    "inference.url",
    "inference.device",
    "worker.executor_id",
    "tracing.headers_file",
    "trust",
    "watch",
    "page.url",
    "page.tokens_file",
    "page.oidc.issuer",
    "page.oidc.client_id",
    "page.oidc.client_secret_file",
    "page.oidc.ca_file",
    "page.oidc.roles_claim",
    "page.oidc.roles",
)
OWN_OF_THE_MONITOR = ("database_url", "data_dir", "models", "http")
_DROPPED = frozenset({"title", "default", "description", "format"})


def schema() -> dict[str, Any]:
    """The schema of the chart's values."""
    whole: dict[str, Any] = yaml.safe_load((CHART / "schema.yaml").read_text(encoding="utf-8"))
    whole["properties"]["settings"] = settings_schema(Settings, OWN)
    whole["properties"]["stepwatch"]["properties"]["settings"] = settings_schema(WatchSettings, OWN_OF_THE_MONITOR)
    return whole


def settings_schema(settings: type[BaseModel], own: tuple[str, ...]) -> dict[str, Any]:
    """What a program takes, but for what the chart sets itself."""
    described = settings.model_json_schema()
    found: dict[str, Any] = _plain(described, described.get("$defs", {}))
    for path in own:
        *groups, name = path.split(".")
        properties = found["properties"]
        for group in groups:
            properties = properties.get(group, {}).get("properties", {})
        properties.pop(name, None)
    return found


def _plain(part: Any, definitions: dict[str, Any]) -> Any:
    """Without references, and without what is for people only."""
    if isinstance(part, list):
        return [_plain(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _plain(definitions[part["$ref"].rpartition("/")[2]], definitions)
    kept = {}
    for key, value in part.items():
        if key == "properties":
            kept[key] = {name: _plain(item, definitions) for name, item in value.items()}
        elif key not in _DROPPED and key != "$defs":
            kept[key] = _plain(value, definitions)
    return kept


def text() -> str:
    """The file's contents."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(text(), encoding="utf-8")
