"""Labelled images: a table of labels (CSV) and the files that it names, checked before anything is computed.

A row is an image. ``file`` is its path in the data folder, ``patient`` whose it is; labels stand in one column
(several separated by ``|``) or in one 0/1 column for each class; ``fold`` may say what the image is for, and further
columns name subgroups. Folds are made of whole patients.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from stepwedge.errors import StepwedgeError

FOLDS = ("train", "calibrate", "gate", "test")

# Shares of the patients where the table has no folds: calibration needs most, because rare findings need counts.
SHARES: Mapping[str, float] = {"calibrate": 0.4, "gate": 0.3, "test": 0.3}
_SPLIT_KEY = "stepwedge folds 1"

LABEL_SEPARATOR = "|"
_MOST_PROBLEMS = 10  # lines of an error message: what is wrong in ten rows is rarely different in the eleventh

# Columns that are taken for subgroups where none are named, and how they are called.
_SUBGROUPS = {
    "sex": "sex",
    "gender": "sex",
    "patient_sex": "sex",
    "patient_gender": "sex",
    "view": "view",
    "view_position": "view",
    "age": "age",
    "age_years": "age",
    "patient_age": "age",
    "manufacturer": "manufacturer",
    "scanner": "scanner",
    "site": "site",
}
_AGE_EDGES = (1, 6, 18, 40, 65)  # years: infants, small children, children, and the adult thirds common in imaging
_YES, _NO = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})


class DatasetError(StepwedgeError):
    """The labelled images cannot be used as they are."""


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One image of a labelled data set."""

    file: Path
    patient: str
    fold: str  # one of FOLDS
    labels: frozenset[str]  # classes of the model; none: no class is present
    subgroups: Mapping[str, str] = field(default_factory=dict)  # e.g. {"sex": "F"}; unknown ones are left out


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what. None: found by its name."""

    file: str = "file"
    label: str | None = None
    patient: str | None = None
    fold: str = "fold"
    subgroups: Sequence[str] | None = None
    ignored_labels: frozenset[str] = frozenset()  # labels that are no class of the model, and are known not to be


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file as read: names of columns, and rows with the lines that they end on."""

    file: Path
    names: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, str]]]


def read_labels(
    labels: Path, data: Path, classes: Sequence[str], *, exclusive: bool, columns: Columns | None = None
) -> list[LabelledImage]:
    """Read and check a table of labels.

    Parameters
    ----------
    data
        The folder that the column ``file`` is relative to, or one that holds a folder ``images`` that it is.
    classes
        The model's classes. Labels are matched without regard to case, spaces and underscores.
    exclusive
        Whether one class is always true: then a row without a label is an error.

    Raises
    ------
    DatasetError
        Naming line and column of each trouble: a missing column or file, a label that is no class, a patient in two
        folds, a file that is listed twice; or that there are no rows.
    """
    columns = columns or Columns()
    table = read_table(labels)
    column = _required(table, columns.file, "--file-column")
    patient_column = _patient_column(table, columns.patient)
    cells = _label_cells(table, classes, columns)
    fold_column = columns.fold if columns.fold in table.names else None
    subgroups = _subgroup_columns(table, columns.subgroups)
    root = _root(data, table, column)
    problems: list[str] = []
    seen_files: dict[str, int] = {}
    seen_folds: dict[str, tuple[str, int]] = {}
    images = []
    for line, row in table.rows:
        name, patient = row[column], _patient(row[patient_column])
        found, trouble = cells(row)
        problems += [f"line {line}, {text}" for text in trouble]
        if exclusive and not found and not trouble:
            problems.append(f"line {line}: no label; one of {_listed(classes)} is wanted")
        if not name or not (root / name).is_file():
            problems.append(f"line {line}, column {column}: there is no file {name!r} in {root}")
        elif name in seen_files:
            problems.append(f"line {line}, column {column}: {name!r} is listed on line {seen_files[name]} already")
        seen_files.setdefault(name, line)
        if not patient:
            problems.append(f"line {line}, column {patient_column}: no patient; folds are made of whole patients")
        fold = row[fold_column].casefold() if fold_column else fold_of(patient)
        if fold not in FOLDS:
            problems.append(f"line {line}, column {fold_column}: {fold!r} is no fold; wanted one of {_listed(FOLDS)}")
        before, where = seen_folds.setdefault(patient, (fold, line))
        if patient and before != fold:
            problems.append(
                f"line {line}, column {fold_column}: the patient is in fold {fold} here and in fold {before} on line "
                f"{where}; figures from images of a patient that something was fitted on would be too good"
            )
        images.append(
            LabelledImage(
                file=root / name,
                patient=patient,
                fold=fold,
                labels=found,
                subgroups={group: value for group, key in subgroups.items() if (value := _subgroup(group, row[key]))},
            )
        )
    _refuse(table.file, problems)
    return images


def read_table(file: Path) -> Table:
    """Read a CSV file: UTF-8 with or without a mark, separated by commas, semicolons or tabs.

    Raises DatasetError if it cannot be read, has no rows, or has a row of another length than its first.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{file}: the table of labels cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{file}: the table of labels is not UTF-8 text; save it as CSV in UTF-8") from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=separator)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DatasetError(f"{file}: line {reader.line_num}: cannot be read as CSV: {error}") from None
    if len(lines) < 2:
        raise DatasetError(
            f"{file}: there are no images in it; wanted a line of column names and a line for each image"
        )
    names = lines[0][1]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError(f"{file}: line 1: the column {twice[0]!r} is there twice")
    _refuse(
        file,
        [f"line {n}: {len(cells)} cells, wanted {len(names)}" for n, cells in lines[1:] if len(cells) != len(names)],
    )
    return Table(file=file, names=names, rows=[(n, dict(zip(names, cells, strict=True))) for n, cells in lines[1:]])


def distinct_labels(table: Table, column: str | None = None) -> list[str]:
    """Every label in the label column, sorted; empty where there is no such column."""
    name = _label_column(table, column)
    if name is None:
        return []
    return sorted({label for _, row in table.rows for label in _split(row[name])})


def fold_of(patient: str) -> str:
    """The fold of a patient by a hash of the name: the same on every machine and whoever else is in the table."""
    digest = hashlib.sha256(f"{_SPLIT_KEY}/{patient}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    ends = accumulate(SHARES.values())
    return next((fold for fold, end in zip(SHARES, ends, strict=True) if place < end), list(SHARES)[-1])


def of_fold(images: Iterable[LabelledImage], fold: str) -> list[LabelledImage]:
    """The images of one fold, in order."""
    return [image for image in images if image.fold == fold]


def age_group(years: float) -> str:
    """The age group of the card's subgroups, e.g. ``18 to 39``; years."""
    edges = (0, *_AGE_EDGES)
    low = max(edge for edge in edges if edge <= years)
    above = [edge for edge in edges if edge > years]
    if not low:
        return f"under {above[0]}"
    return f"{low} to {above[0] - 1}" if above else f"{low} and older"


def plain(name: str) -> str:
    """A name for comparison: without regard to case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _required(table: Table, name: str, option: str) -> str:
    if name not in table.names:
        raise DatasetError(
            f"{table.file}: there is no column {name!r}; its columns are {_listed(table.names)}. "
            f"Name the right one with {option}"
        )
    return name


def _patient_column(table: Table, name: str | None) -> str:
    if name is not None:
        return _required(table, name, "--patient-column")
    exact = [n for n in table.names if plain(n) in {"patient", "patient_id", "patientid"}]
    close = [n for n in table.names if re.search(r"patient(_?id)?$", plain(n))]
    found = exact[:1] if len(exact) == 1 else close
    if len(found) != 1:
        which = f"several columns may name the patient: {_listed(found)}" if found else "no column names the patient"
        raise DatasetError(
            f"{table.file}: {which}. Its columns are {_listed(table.names)}. Name the right one with --patient-column: "
            "folds are made of whole patients"
        )
    return found[0]


def _patient(cell: str) -> str:
    """Spreadsheets write a number as 10027.0 where one row lacks it."""
    return cell.removesuffix(".0") if re.fullmatch(r"\d+\.0", cell) else cell


def _label_column(table: Table, name: str | None) -> str | None:
    if name is not None:
        return _required(table, name, "--label-column")
    exact = [n for n in table.names if plain(n) in {"label", "labels"}]
    close = [n for n in table.names if plain(n).endswith(("_label", "_labels"))]
    found = exact or close
    if len(found) > 1:
        raise DatasetError(f"{table.file}: several columns may hold labels: {_listed(found)}; name one: --label-column")
    return found[0] if found else None


class _LabelCells:
    """Reads a row's labels: from one column, or from one column for each class."""

    def __init__(self, column: str | None, classes: Mapping[str, str], ignored: frozenset[str]) -> None:
        self._column = column
        self._classes = classes  # by plain name, or the column of each class by its name
        self._ignored = ignored

    def __call__(self, row: Mapping[str, str]) -> tuple[frozenset[str], list[str]]:
        """The classes that are present, and what is wrong."""
        if self._column is None:
            return self._by_class(row)
        labels = [label for label in _split(row[self._column]) if plain(label) not in self._ignored]
        wrong = [label for label in labels if plain(label) not in self._classes]
        found = frozenset(self._classes[plain(label)] for label in labels if plain(label) in self._classes)
        return found, [
            f"column {self._column}: {label!r} is no class of the model; its classes are "
            f"{_listed(self._classes.values())} (--ignore-label leaves a label out)"
            for label in wrong
        ]

    def _by_class(self, row: Mapping[str, str]) -> tuple[frozenset[str], list[str]]:
        found, wrong = [], []
        for name, column in self._classes.items():
            cell = row[column].casefold()
            if cell in _YES:
                found.append(name)
            elif cell not in _NO:
                wrong.append(f"column {column}: found {row[column]!r}, wanted 0 or 1")
        return frozenset(found), wrong


def _label_cells(table: Table, classes: Sequence[str], columns: Columns) -> _LabelCells:
    by_plain = {plain(name): name for name in classes}
    if len(by_plain) < len(classes):
        raise DatasetError("two classes of the model differ only in case, spaces or underscores; rename one of them")
    column = _label_column(table, columns.label)
    if column is not None:
        return _LabelCells(column, by_plain, frozenset(map(plain, columns.ignored_labels)))
    named = {plain(name): name for name in table.names}
    missing = [name for name in classes if plain(name) not in named]
    if missing:
        raise DatasetError(
            f"{table.file}: there is no column 'label', and no column for each class ({_listed(missing)} missing); "
            f"its columns are {_listed(table.names)}. Name the column of labels with --label-column"
        )
    return _LabelCells(None, {name: named[plain(name)] for name in classes}, frozenset())


def _subgroup_columns(table: Table, named: Sequence[str] | None) -> dict[str, str]:
    """Columns by the name of the subgroup."""
    if named is not None:
        return {_SUBGROUPS.get(plain(n), plain(n)): _required(table, n, "--subgroup") for n in named}
    found: dict[str, str] = {}
    for name in table.names:
        if plain(name) in _SUBGROUPS:
            found.setdefault(_SUBGROUPS[plain(name)], name)
    return found


def _subgroup(group: str, cell: str) -> str:
    if group != "age":
        return cell
    try:
        years = float(cell.rstrip("yY"))  # DICOM writes 061Y
    except ValueError:
        return ""
    return age_group(years) if 0 <= years < 130 else ""


def _root(data: Path, table: Table, column: str) -> Path:
    if not data.is_dir():
        raise DatasetError(f"{data}: there is no such folder; --data is the folder that holds the images")
    within = data / "images"
    first = table.rows[0][1][column]
    return within if within.is_dir() and not (data / first).is_file() else data


def _split(cell: str) -> list[str]:
    return [label.strip() for label in cell.split(LABEL_SEPARATOR) if label.strip()]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _refuse(file: Path, problems: Sequence[str]) -> None:
    if not problems:
        return
    shown = [f"{file}: {problem}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        shown.append(f"{file}: and {len(problems) - _MOST_PROBLEMS} more like these")
    raise DatasetError("\n".join(shown))
