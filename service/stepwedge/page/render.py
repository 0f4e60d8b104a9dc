"""The templates, and what they may call."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from stepwedge.page import words

STYLE = (Path(__file__).parent / "style.css").read_bytes()


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page."""
    return _ENVIRONMENT.get_template(template).render(values)


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _mark(state: str) -> words.Mark:
    return words.STATES.get(state, words.UNKNOWN)


def _made() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stepwedge.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": words.ago,
        "brief": words.brief,
        "duration": words.duration,
        "iso": words.iso,
        "mark": _mark,
        "moment": words.moment,
        "plural": _plural,
        "quoted": shlex.quote,
        "reason": words.reason_text,
        "seconds": words.seconds_of,
        "size": words.size,
    }
    environment.globals |= {
        "levels": words.LEVELS,
        "outcomes": words.OUTCOMES,
        "verdicts": words.VERDICTS,
        "action_words": words.ACTIONS,
    }
    return environment


_ENVIRONMENT = _made()
