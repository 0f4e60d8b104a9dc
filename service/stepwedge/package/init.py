"""The first draft of ``model.yaml``: what the graph and the labels say filled in, every other choice explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stepwedge.errors import PackageError
from stepwedge.package.dataset import Columns, distinct_labels, plain, read_table
from stepwedge.package.graph import Description, Tensor, describe, read_model

UNFINISHED = "FILL-IN"  # what a person has to replace; `build` refuses a description that holds it

# How far int8 outputs may differ between processors: steps of the output's quantisation.
_STEPS_APART = 2
_TOLERANCE = 0.002  # of float32 outputs: on GPUs sums are taken in another order

# Names of classes that say that nothing was found.
_NOTHING = frozenset({"normal", "no_finding", "no_findings", "negative", "none", "healthy", "clear"})

# SNOMED CT codes of findings on chest images, by class names in use: DICOM's own choice (PS3.16) where it has one, else
# as published value sets have them. A name that is not here is for a person to code.
_CODES: Mapping[str, tuple[str, str]] = {
    "pneumonia": ("233604007", "Pneumonia"),
    "bacterial_pneumonia": ("53084003", "Bacterial pneumonia"),
    "viral_pneumonia": ("75570004", "Viral pneumonia"),
    "pneumothorax": ("36118008", "Pneumothorax"),
    "effusion": ("60046008", "Pleural effusion"),
    "pleural_effusion": ("60046008", "Pleural effusion"),
    "cardiomegaly": ("287272002", "Cardiomegaly"),
    "atelectasis": ("46621007", "Atelectasis"),
    "emphysema": ("87433001", "Pulmonary emphysema"),
    "edema": ("19242006", "Pulmonary edema"),
    "pulmonary_edema": ("19242006", "Pulmonary edema"),
    "oedema": ("19242006", "Pulmonary edema"),
    "consolidation": ("95436008", "Lung consolidation"),
    "fibrosis": ("51615001", "Fibrosis of lung"),
    "tuberculosis": ("154283005", "Pulmonary tuberculosis"),
    "covid_19": ("840539006", "COVID-19"),
    "hiatal_hernia": ("84089009", "Hiatal hernia"),
    "rib_fracture": ("33737001", "Fracture of rib"),
}


def write_draft(model: Path, out: Path, *, labels: Path | None = None, columns: Columns | None = None) -> list[str]:
    """Write a commented ``model.yaml`` for a graph; what of it a person has to fill in.

    Raises
    ------
    PackageError
        If ``out`` exists, or the graph cannot be served.
    DatasetError
        If the labels cannot be read.
    """
    if out.exists():
        raise PackageError(f"{out}: is there already, and is not overwritten; move it away or give another --out")
    description = describe(read_model(model))
    names = distinct_labels(read_table(labels), (columns or Columns()).label) if labels else []
    text = _draft(model, description, names)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PackageError(f"{out}: cannot be written: {error.strerror}") from None
    return list(_unfinished(yaml.safe_load(text)))


def refuse_unfinished(file: Path) -> None:
    """Raise PackageError where a description still holds what a person has to fill in, naming each field."""
    try:
        contents = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PackageError(
            f"{file}: there is no description of the model; `stepwedge package init` writes a draft of it"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PackageError(f"{file}: cannot be read as YAML: {error}") from None
    fields = list(_unfinished(contents))
    if fields:
        raise PackageError(
            f"{file}: not finished: {UNFINISHED} stands at {', '.join(fields)}; the comments say what is wanted"
        )


def _unfinished(contents: Any, path: str = "") -> Iterator[str]:
    if isinstance(contents, dict):
        for key, value in contents.items():
            yield from _unfinished(value, f"{path}.{key}" if path else str(key))
            if UNFINISHED in str(key):
                yield path
    elif isinstance(contents, list):
        for index, value in enumerate(contents):
            yield from _unfinished(value, f"{path}[{index}]")
    elif isinstance(contents, str) and UNFINISHED in contents:
        yield path


def _draft(model: Path, description: Description, labels: Sequence[str]) -> str:
    spec = _image_input(model, description)
    _, channels, rows, columns = spec.shape
    scores = _scores(model, description)
    count = scores.shape[1] if isinstance(scores.shape[1], int) else len(labels) or 2
    activation = description.activations[scores.name]
    matched = len(labels) == count
    classes = list(labels) if matched else [f"class_{number}" for number in range(1, count + 1)]
    exclusive = activation == "softmax" or (
        activation == "none" and count > 1 and any(plain(name) in _NOTHING for name in classes)
    )
    step = description.quantised.get(scores.name)
    return _TEMPLATE.format(
        file=model.name,
        opset=description.opset,
        unfinished=UNFINISHED,
        name=re.sub(r"[^a-z0-9]+", "-", model.stem.casefold()).strip("-")[:48] or "model",
        input=_quoted(spec.name),
        rows=_size(rows),
        columns=_size(columns),
        channels=_size(channels),
        more_inputs=_more_inputs(description, spec),
        scores=_quoted(scores.name),
        other_outputs=_other_outputs(description, scores),
        classes=_classes(classes, matched, count),
        kind="exclusive" if exclusive else "independent",
        activation=activation,
        findings="\n".join(_finding(name) for name in classes if plain(name) not in _NOTHING),
        tolerance=_TOLERANCE if step is None else float(f"{_STEPS_APART * step:.2g}"),
        quantised="" if step is None else f"\n# This graph's scores are quantised in steps of {step:.3g}: two of them.",
    )


def _image_input(model: Path, description: Description) -> Tensor:
    images = [tensor for tensor in description.inputs if len(tensor.shape) == 4]
    if not images:
        found = ", ".join(f"{t.name} ({', '.join(map(str, t.shape))})" for t in description.inputs) or "none"
        raise PackageError(
            f"{model}: no input is of the shape (batch, channels, rows, columns); found {found}. A model of whole "
            "series (batch, images, channels, rows, columns) has to be described by hand: models/README.md"
        )
    spec = images[0]
    if isinstance(spec.shape[1], int) and spec.shape[1] not in (1, 3):
        raise PackageError(
            f"{model}: input {spec.name} is ({', '.join(map(str, spec.shape))}); wanted 1 or 3 channels, before rows "
            "and columns: export it so"
        )
    return spec


def _scores(model: Path, description: Description) -> Tensor:
    candidates = [tensor for tensor in description.outputs if len(tensor.shape) == 2 and tensor.type == "FLOAT"]
    if not candidates:
        found = ", ".join(f"{t.name} ({', '.join(map(str, t.shape))})" for t in description.outputs) or "none"
        raise PackageError(f"{model}: no output is of the shape (batch, classes), FLOAT; found {found}")
    return candidates[0]


def _size(size: int | str) -> str:
    return (
        str(size)
        if isinstance(size, int)
        else f"{UNFINISHED}  # the graph takes any size: give the one it was trained on"
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _more_inputs(description: Description, first: Tensor) -> str:
    others = [tensor for tensor in description.inputs if tensor != first]
    if not others:
        return ""
    lines = [
        f"  - {{name: {_quoted(tensor.name)}, rows: {UNFINISHED}, columns: {UNFINISHED}, channels: {UNFINISHED}, "
        f"presentation: {UNFINISHED}, mean: {UNFINISHED}, sd: {UNFINISHED}}}"
        for tensor in others
    ]
    return (
        "# The graph's further inputs, made of the same image; fields as under input.\nfurther_inputs:\n"
        + "\n".join(lines)
        + "\n"
    )


def _other_outputs(description: Description, scores: Tensor) -> str:
    others = [f"{t.name} ({', '.join(map(str, t.shape))})" for t in description.outputs if t != scores]
    return f"\n  # Its further outputs: {'; '.join(others)}." if others else ""


def _classes(classes: Sequence[str], matched: bool, count: int) -> str:
    if not matched:
        lines = [
            "  # The table of labels does not name as many classes as the graph has: give all, as labels spell them,",
            "  # and in the order of the graph's output.",
            "  classes:",
        ]
    else:
        lines = [
            "  # As in the table of labels, by the alphabet. A graph has an order of its own: put them into it.",
            "  classes:",
        ]
    if count > 1 or not matched:
        lines.append(
            f'    - "{UNFINISHED}: put the classes in the order of the graph\'s output, then delete this line"'
        )
    return "\n".join([*lines, *(f"    - {_quoted(name)}" for name in classes)])


def _finding(class_name: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", class_name.casefold()).strip("_")
    name = name if name[:1].isalpha() else f"finding_{name}"
    value, meaning = _CODES.get(plain(class_name), (UNFINISHED, UNFINISHED))
    return (
        f"  - name: {name}\n"
        f"    code: {{value: {_quoted(value)}, scheme: SCT, meaning: {_quoted(meaning)}}}\n"
        f"    positive: [{_quoted(class_name)}]"
    )


_TEMPLATE = """\
# What the model is: read by `stepwedge package build`, which refuses this file while {unfinished} stands in it.
# Drafted from {file} (ONNX opset {opset}). Unknown fields are errors. The format: models/README.md

schema: 1
name: {name}  # lower-case letters, digits and hyphens
version: 1.0.0  # three numbers
description: "{unfinished}: what it finds, on which images, and of which kind the network is"
licence: "{unfinished}: licence of the weights, e.g. Apache-2.0"
# true: every result is labelled as not for clinical use.
demonstration_only: true

# On which images it may be used. An empty list puts no condition on that attribute; an image that does not meet one
# is rejected (modality, body part, view) or deferred to a person (age, or an attribute that the header lacks).
intended_use:
  summary: "{unfinished}: for people, e.g. frontal chest radiographs of adults"
  modality: [CR, DX]  # Modality (0008,0060)
  body_part: []  # Body Part Examined (0018,0015), e.g. [CHEST]
  view: []  # View Position (0018,5101), e.g. [AP, PA]
  # age_years: [18, 120]  # from (inclusive), below (exclusive)

# How an image becomes the graph's input. It must be as in training, or the figures will be poor.
input:
  name: {input}
  unit: instance  # one image makes one input
  rows: {rows}
  columns: {columns}
  channels: {channels}
  # The grey scale on 0 to 1: {{kind: range}} is all that the stored bits can represent (an 8-bit picture divided by
  # 255), {{kind: percentile, low: 0.5, high: 99.5}} stretches between percentiles of the image, {{kind: window}} takes
  # the header's window.
  presentation: {unfinished}
  fit: stretch  # an image of another shape: stretch, crop (its centre) or pad (with black)
  resampling: bilinear  # bilinear, bicubic, lanczos or box
  # Then (value - mean) / sd, for each channel or one for all, e.g. [0.485] and [0.229]; [0.0] and [1.0] for none.
  mean: {unfinished}
  sd: {unfinished}
{more_inputs}
output:
  scores: {scores}  # (batch, classes){other_outputs}
  # embedding: a graph output (batch, features). Left out, it is taken from the graph: what goes into its last layer.
{classes}
  kind: {kind}  # exclusive: one class is true (softmax). independent: each is a yes or no of its own (sigmoid)
  activation: {activation}  # what the graph itself applies at its end: none (logits), sigmoid or softmax

# Where in the image the answer comes from. Left out: an activation map where the head of the graph allows it, else by
# covering parts of the image. {{kind: none}}, or {{kind: occlusion, grid: 7}} for 7 x 7 forward passes.
# explanation: {{kind: occlusion, grid: 7}}

# What is reported, with its code: SNOMED CT (scheme SCT) or RadLex (scheme RADLEX), or a code of
# your own (scheme 99 and a name); a value has at most 16 characters.
# Codes that are filled in are of findings in the chest: check them. Of exclusive classes a finding may join several
# (positive: [a, b]), may be among some only (among: [a, b, c]), and may hang on an earlier one (given: name).
findings:
{findings}

aggregation: max  # from the images of a study to the study: max or mean
# Largest difference from the golden outputs that another machine may give.{quantised}
golden_tolerance: {tolerance}
"""
