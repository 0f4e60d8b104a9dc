"""What the site's own policy made of the reference set when it was accepted.

Thresholds, prevalences and a gate that was fitted on the site's studies are no part of the package. They are kept by
the first run under a policy that a person has approved, and held against every later run. Under a policy that nobody
has approved they are kept by the very first run only; whatever is other than that stays a difference until a person
says that it is meant (``stepwedge constancy --accept``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stepwedge.constancy.compare import Decided
from stepwedge.durable import write_durably
from stepwedge.errors import StepwedgeError
from stepwedge.reference import folder

_SCHEMA = 1

Gates = Mapping[int, tuple[str, str, tuple[str, ...], str]]  # by case: state, verdict, reasons, tamper


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteAnswers:
    """What a policy brings to a model, as accepted."""

    schema: int = _SCHEMA
    model_digest: str
    policy_digest: str
    time: str  # ISO 8601 with offset: when they were accepted
    run: str
    decided: Mapping[str, Decided]  # by finding
    gates: Gates


_site_answers = TypeAdapter(SiteAnswers)


def read_site_answers(data_dir: Path, model: str) -> SiteAnswers | None:
    """The accepted ones of a model, or None before the first run. Raises StepwedgeError for a file that is damaged."""
    file = _file(data_dir, model)
    try:
        return _site_answers.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise StepwedgeError(
            f"{file}: the site's accepted answers cannot be read; restore the file, or accept today's anew with "
            "`stepwedge constancy --accept`"
        ) from None


def write_site_answers(data_dir: Path, model: str, answers: SiteAnswers) -> None:
    """Keep the accepted ones of a model."""
    file = _file(data_dir, model)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(file, (json.dumps(asdict(answers), indent=2) + "\n").encode())


def is_of_today(accepted: SiteAnswers | None, *, model_digest: str, policy_digest: str, approved: bool) -> bool:
    """Whether today's answers are to be held against these; else today's are the first of what was approved.

    A new package or an approved policy brings its own answers, which a person has answered for by approving it.
    """
    if accepted is None:
        return False
    if accepted.model_digest != model_digest:
        return False
    return accepted.policy_digest == policy_digest or not approved


def _file(data_dir: Path, model: str) -> Path:
    return folder(data_dir) / f"accepted.{model}.json"
