"""The reference of all settings, as ``stepwedge settings`` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stepwedge.settings import PREFIX, Settings

_INTRODUCTION = (
    "# Settings",
    "",
    "Printed by `stepwedge settings`. One YAML file (`--config`, or `STEPWEDGE_CONFIG`), overridden by environment",
    "variables. Entries of a mapping, such as `completeness.quiet_seconds_by_modality`, are added to its defaults.",
    "Lists of models and destinations come from the file, or as JSON from `STEPWEDGE_MODELS` and",
    "`STEPWEDGE_DESTINATIONS`.",
    "",
)


def reference() -> str:
    """The reference of all settings as a Markdown page."""
    lines = [*_INTRODUCTION, "| setting | environment variable | default | meaning |", "|---|---|---|---|"]
    for name, info in _walk(Settings, ""):
        default = "required" if info.is_required() else _shown(info.get_default(call_default_factory=True))
        variable = f"`{PREFIX}{name.replace('.', '__').upper()}`" if "[]" not in name else ""
        lines.append(f"| `{name}` | {variable} | {default} | {info.description or ''} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return f"`{text}`"


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", info
        for item in getattr(annotation, "__args__", ()):
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from _walk(item, f"{prefix}{name}[].")
