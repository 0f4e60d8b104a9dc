"""``stepwatch labels import``, ``stepwatch labels queue`` and ``stepwatch performance``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.errors import WatchError
from stepwatch.settings import Settings, load_settings

if TYPE_CHECKING:
    from stepwatch.database import Database
    from stepwatch.figures import Performance
    from stepwatch.packages import WatchedPackage

_MOST_BYTES = 64 << 20


def add(commands: Any) -> None:
    """Add the commands."""
    labels = commands.add_parser("labels", help="bring labels in, or list the studies that one is wanted of")
    topics = labels.add_subparsers(required=True, metavar="COMMAND")
    bring = topics.add_parser("import", help="read labels from a CSV file: all of it, or nothing")
    bring.add_argument("file", type=Path, metavar="FILE", help="columns study, finding, value, time")
    bring.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    bring.set_defaults(run=_import)
    wanted = topics.add_parser("queue", help="studies to label next: the audit first, then where most is to be learnt")
    wanted.add_argument("--budget", type=int, default=50, metavar="N", help="studies at most (50)")
    wanted.add_argument("--json", action="store_true", help="one JSON object per study")
    wanted.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    wanted.set_defaults(run=_queue)
    measured = commands.add_parser("performance", help="measured on labels beside estimated without, with intervals")
    measured.add_argument("--json", action="store_true", help="one JSON object per model")
    measured.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    measured.set_defaults(run=_performance)


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[tuple[Settings, Database, list[WatchedPackage]]]:
    from stepwatch.database import Database
    from stepwatch.packages import read_package

    settings = load_settings(options.config)
    if not settings.models:
        raise WatchError("models is empty: name the model's package in the settings")
    packages = [read_package(model) for model in settings.models]
    database = Database.open(settings.database_url)
    try:
        database.prepare()
        yield settings, database, packages
    finally:
        database.close()


def _import(options: argparse.Namespace) -> int:
    from stepwatch.labels import keep, read_csv

    try:
        if options.file.stat().st_size > _MOST_BYTES:
            raise WatchError(f"{options.file}: is larger than {_MOST_BYTES >> 20} MiB; cut it into several")
        text = options.file.read_text(encoding="utf-8")
    except OSError as error:
        raise WatchError(f"{options.file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WatchError(f"{options.file}: is not UTF-8") from None
    with _opened(options) as (settings, database, packages):
        findings = {name for package in packages for name in package.findings}
        labels = read_csv(text, audit_share=settings.performance.audit_share or None)
        for number, label in enumerate(labels, 1):
            if label.finding not in findings:
                raise WatchError(
                    f"{options.file}: row {number}: finding: no model has {label.finding!r}; "
                    f"wanted one of {', '.join(sorted(findings))}"
                )
        taken, _ = keep(database, labels, findings)
    print(f"{taken} labels taken, {len(labels) - taken} were there already")  # noqa: T201
    return 0


def _queue(options: argparse.Namespace) -> int:
    from stepwatch.audit import auditing
    from stepwatch.cohort import Cohort, terms_of
    from stepwatch.worklist import queue

    with _opened(options) as (settings, database, packages):
        audited = auditing(settings.performance.audit_readers, settings.performance.audit_share)
        for package in packages:
            cohort = Cohort(database, package, audited)
            cohort.refresh()
            found = queue(
                cohort.cases(settings.performance.window),
                cohort.labels(),
                package.findings,
                terms_of(package, settings),
                audit_share=settings.performance.audit_share,
                budget=options.budget,
            )
            for wanted in found:
                row = {"model": package.name, **asdict(wanted)}
                print(json.dumps(row) if options.json else f"{wanted.study}  {wanted.finding}  {wanted.reason}")  # noqa: T201
    return 0


def _performance(options: argparse.Namespace) -> int:
    from stepwatch.audit import auditing
    from stepwatch.cohort import Cohort, current, terms_of

    with _opened(options) as (settings, database, packages):
        audited = auditing(settings.performance.audit_readers, settings.performance.audit_share)
        for package in packages:
            cohort = Cohort(database, package, audited)
            cohort.refresh()
            found = current(cohort, package, settings, terms_of(package, settings))
            for line in [json.dumps(as_row(package, found))] if options.json else describe(package, found):
                print(line)  # noqa: T201
    return 0


def as_row(package: WatchedPackage, found: Performance) -> dict[str, Any]:
    """Everything that is known of a model, for JSON."""
    from stepwatch.performance import CANNOT_SEE, LABELS_FOLLOW, NOT_BELIEVED

    apart = found.parted()
    return {
        "model": package.name,
        "version": package.version,
        "labelled": dict(found.labelled),
        "figures": [asdict(figure) for figure in found.figures],
        "parted": [{"finding": finding, "measure": name} for finding, name in apart],
        "only_labelled": list(found.only_labelled),
        "prevalences": [asdict(item) for item in found.prevalences],
        "groups": [_finite(asdict(item)) for item in found.groups],
        "worst_gaps": [
            {"finding": finding, "measure": name, "value": value} for (finding, name), value in found.worst_gaps.items()
        ],
        "notes": [
            *([NOT_BELIEVED] if apart else []),
            *([LABELS_FOLLOW] if found.only_labelled else []),
            CANNOT_SEE,
        ],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """What cannot be said as null: JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def describe(package: WatchedPackage, found: Performance) -> list[str]:
    """The figures in lines for people."""
    from stepwatch.performance import CANNOT_SEE, LABELS_FOLLOW, NOT_BELIEVED

    apart = found.parted()
    figures = {(figure.finding, figure.measure, figure.how): figure for figure in found.figures}
    lines = [f"{package.name} {package.version}"]
    for finding in package.findings:
        only = ", which do not stand for the others" if finding in found.only_labelled else ""
        lines.append(f"  {finding}: {found.labelled.get(finding, 0)} labelled studies{only}")
        for name in dict.fromkeys(measure for of, measure, _ in figures if of == finding):
            texts = []
            for how in ("measured", "estimated"):
                figure = figures.get((finding, name, how))
                text = f"{figure.value:.3f} ({figure.low:.3f} … {figure.high:.3f})" if figure else "–"
                texts.append(f"{how} {text:<26}")
            lines.append(f"    {name:<14}{' '.join(texts)}{' parted' if (finding, name) in apart else ''}".rstrip())
    notes = [*([NOT_BELIEVED] if apart else []), *([LABELS_FOLLOW] if found.only_labelled else []), CANNOT_SEE]
    return [*lines, *notes]
