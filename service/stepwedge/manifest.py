"""A model package as the service loads it: what the model is, checked before anything runs.

A package is a folder. ``model.yaml`` describes it; ``SHA256SUMS`` lists the SHA-256 digest of every other file in
the format of ``sha256sum``, so that anyone can check it; the digest of that list is the digest of the package.
A signature, where there is one, is checked too. The format is described in ``models/README.md``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepwedge.errors import PackageError, describe_validation
from stepwedge.records import Code, ModelReference
from stepwedge.signing import SIGNATURE, Trust, is_signed, require_trusted, verify_folder

SUMS = "SHA256SUMS"
MANIFEST = "model.yaml"
CALIBRATION = "calibration.json"
GOLDEN = "golden.npz"
MODEL = "model.onnx"
GATE = "gate.npz"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CodedConcept(_Strict):
    """A code with its coding scheme (PS3.3 section 8.1)."""

    value: str = Field(max_length=16)
    scheme: str = Field(max_length=16)
    meaning: str = Field(max_length=64)

    def record(self) -> Code:
        return Code(value=self.value, scheme=self.scheme, meaning=self.meaning)


class IntendedUse(_Strict):
    """What the model may be used on. An empty list puts no condition on that attribute."""

    summary: str
    modality: list[str] = Field(min_length=1)
    body_part: list[str] = []
    view: list[str] = []
    age_years: tuple[float, float] | None = None  # from (inclusive), below (exclusive)


class PercentilePresentation(_Strict):
    """Grey scale stretched between two percentiles of the image: blind to window and exposure index."""

    kind: Literal["percentile"]
    low: float = Field(ge=0, lt=50)
    high: float = Field(gt=50, le=100)


class WindowPresentation(_Strict):
    """The header's window (0028,1050/1051); the image's own range where there is none."""

    kind: Literal["window"]


class RangePresentation(_Strict):
    """The full range that the stored bits can represent."""

    kind: Literal["range"]


Presentation = Annotated[PercentilePresentation | WindowPresentation | RangePresentation, Field(discriminator="kind")]


class Input(_Strict):
    """One input tensor, float32. Of one image: (batch, channels, rows, columns).

    Of a series or a study: (batch, images, channels, rows, columns), the images in the order of ``Stack``.
    """

    name: str
    unit: Literal["instance", "series", "study"] = "instance"  # what one run of the model is about
    rows: int = Field(ge=16, le=4096)
    columns: int = Field(ge=16, le=4096)
    channels: Literal[1, 3] = 1
    presentation: Presentation
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    resampling: Literal["bilinear", "bicubic", "lanczos", "box"] = "bilinear"
    mean: list[float] = [0.0]  # of the image on 0…1, per channel or one for all
    sd: list[float] = [1.0]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("mean", self.mean), ("sd", self.sd)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values, wanted 1 or {self.channels}")
        if any(value <= 0 for value in self.sd):
            raise ValueError("sd must be positive")
        return self


class Stack(_Strict):
    """Which images of a series or a study the model takes, and in which order."""

    order: Literal["position", "instance_number"] = "position"  # along the normal of the slices; (0020,0013)
    minimum: int = Field(default=1, ge=1)  # images; fewer defer
    maximum: int = Field(default=512, ge=1)  # images; of more, this many at even distances


class Output(_Strict):
    """What the graph gives. Each name is that of a graph output, (batch, …).

    ``activation_map`` is (batch, classes, rows, columns): what each place adds to each class's score.
    """

    scores: str
    embedding: str | None = None
    activation_map: str | None = None
    classes: list[str] = Field(min_length=1)
    kind: Literal["exclusive", "independent"]  # softmax-like classes, or one yes/no per class
    activation: Literal["none", "sigmoid", "softmax"] = "none"  # already applied inside the graph

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        if self.activation == "softmax" and self.kind == "independent":
            raise ValueError("activation softmax needs kind exclusive")
        if self.activation == "sigmoid" and self.kind == "exclusive":
            raise ValueError("activation sigmoid needs kind independent")
        if self.kind == "exclusive" and len(self.classes) < 2:
            raise ValueError("kind exclusive needs at least two classes")
        return self


class Explanation(_Strict):
    """Where in the image the answer comes from: the graph's activation map, or what covering parts of it changes."""

    kind: Literal["none", "activation_map", "occlusion"] = "none"
    grid: int = Field(default=7, ge=2, le=16)  # of an occlusion map: grid × grid forward passes


class FindingSpec(_Strict):
    """A finding in terms of the output's classes.

    With exclusive classes the finding is that the true class is one of ``positive`` rather than another of
    ``among`` (default: all classes). A finding with ``given`` is decided only where that finding is acted upon.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    code: CodedConcept
    positive: list[str] = Field(min_length=1)
    among: list[str] = []
    given: str | None = None


class Manifest(_Strict):
    """``model.yaml``."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=48)
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    description: str
    licence: str
    demonstration_only: bool = True
    intended_use: IntendedUse
    input: Input  # what the gate and people look at too
    further_inputs: list[Input] = []  # made of the same images
    stack: Stack = Stack()  # of a series or study
    output: Output
    explanation: Explanation = Explanation()
    findings: list[FindingSpec] = Field(min_length=1)
    aggregation: Literal["max", "mean"] = "max"  # from the accepted images of a study to the study
    golden_tolerance: float = Field(default=2e-3, gt=0)  # absolute, on the graph's outputs

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [finding.name for finding in self.findings]
        if len(set(names)) != len(names):
            raise ValueError("findings must have different names")
        known = set(self.output.classes)
        for index, finding in enumerate(self.findings):
            for class_name in (*finding.positive, *finding.among):
                if class_name not in known:
                    raise ValueError(
                        f"finding {finding.name}: {class_name!r} is not one of the classes {sorted(known)}"
                    )
            if finding.given is not None and finding.given not in names[:index]:
                raise ValueError(f"finding {finding.name}: given {finding.given!r} must be an earlier finding")
            if self.output.kind == "independent" and (len(finding.positive) != 1 or finding.among):
                raise ValueError(f"finding {finding.name}: independent classes take one positive and no among")
            if self.output.kind == "exclusive":
                among = set(finding.among) or known
                if not set(finding.positive) < among:
                    raise ValueError(f"finding {finding.name}: positive must be a part of among, not all of it")
        if len({spec.name for spec in self.inputs}) != len(self.inputs):
            raise ValueError("inputs must have different names")
        if (self.explanation.kind == "activation_map") != (self.output.activation_map is not None):
            raise ValueError("explanation kind activation_map needs output.activation_map, and the other way round")
        if any(spec.unit != self.input.unit for spec in self.further_inputs):
            raise ValueError(f"further_inputs must be of the unit of input, {self.input.unit}")
        if self.explanation.kind != "none" and self.input.unit != "instance":
            raise ValueError(f"explanation kind {self.explanation.kind} needs input unit instance")
        return self

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Every input tensor of the graph."""
        return (self.input, *self.further_inputs)


class CalibrationEvidence(_Strict):
    """How one method did on images that it was not fitted on (cross-validated by patient)."""

    log_loss: float
    calibration_error: float  # expected, over bins of equal number
    low: float  # 95 % interval of the calibration error, by patient
    high: float


class FindingCalibration(_Strict):
    """How the log-odds of one finding become a probability.

    ``sigmoid`` and ``temperature`` (intercept 0): sigmoid(slope × score + intercept). ``isotonic``: the probability
    between ``points`` (score, probability), linear between them and constant beyond. Where ``inconclusive`` is not
    empty, it says why there is too little evidence to decide on this finding: it gets no threshold.
    """

    method: Literal["sigmoid", "temperature", "isotonic", "none"]
    slope: float = Field(default=1.0, gt=0)
    intercept: float = 0.0
    points: list[tuple[float, float]] = []
    prevalence: float = Field(gt=0, lt=1)  # of the finding in the fold that it was fitted on
    positives: int = Field(ge=0)
    negatives: int = Field(ge=0)
    inconclusive: str = ""
    evidence: dict[str, CalibrationEvidence] = {}  # by method

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.method == "isotonic") != bool(self.points):
            raise ValueError("method isotonic needs points, and only it")
        scores, probabilities = ([pair[i] for pair in self.points] for i in (0, 1))
        if any(b <= a for a, b in pairwise(scores)) or any(b < a for a, b in pairwise(probabilities)):
            raise ValueError("points must rise in score, and not fall in probability")
        if any(not 0 < p < 1 for p in probabilities):
            raise ValueError("probabilities of points must lie between 0 and 1")
        return self


class Calibration(_Strict):
    """``calibration.json``."""

    findings: dict[str, FindingCalibration]


class Package(_Strict):
    """A verified package."""

    path: Path
    manifest: Manifest
    calibration: Calibration
    digest: str
    signer: str | None = None  # key id; None: not signed, so that every result stays a demonstration

    @property
    def reference(self) -> ModelReference:
        return ModelReference(name=self.manifest.name, version=self.manifest.version, digest=self.digest)

    @property
    def model_file(self) -> Path:
        return self.path / MODEL

    @property
    def gate_file(self) -> Path | None:
        """The fitted gate, where the package has one."""
        return self.path / GATE if (self.path / GATE).is_file() else None


def load_package(path: Path, trust: Trust | None = None) -> Package:
    """Read a package and check every byte of it against its list of digests, and against its signature.

    Parameters
    ----------
    trust
        The keys that a site trusts: where there are any, a package by anybody else is refused.

    Raises
    ------
    PackageError
        If a file is missing, altered or not listed, if the signature is wrong or not by a trusted key, or if a
        description is wrong; the message names the file or the field, what was found and what was wanted.
    """
    if not (path / MANIFEST).is_file():
        raise PackageError(f"{path}: no model package here ({MANIFEST} is missing); give a package's folder")
    digest = verify_digests(path)
    signer = verify_folder(path) if is_signed(path) else None
    require_trusted(path, trust or Trust())
    manifest = read_manifest(path / MANIFEST)
    try:
        calibration = Calibration.model_validate_json((path / CALIBRATION).read_bytes())
    except FileNotFoundError:
        raise PackageError(f"{path}: {CALIBRATION} is missing; build the package again") from None
    except ValidationError as error:
        raise PackageError(describe_validation(f"{path / CALIBRATION}", error)) from None
    missing = [f.name for f in manifest.findings if f.name not in calibration.findings]
    if missing:
        raise PackageError(f"{path / CALIBRATION}: no calibration for {', '.join(missing)}; build the package again")
    return Package(path=path, manifest=manifest, calibration=calibration, digest=digest, signer=signer)


def read_manifest(path: Path) -> Manifest:
    """Read ``model.yaml``. Raises PackageError that names each wrong field."""
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise PackageError(describe_validation(str(path), error)) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PackageError(f"{path}: cannot be read as YAML: {error}") from None


def package_files(path: Path) -> list[Path]:
    """Every file of a package but the list of digests and the signature, sorted, relative to ``path``."""
    left_out = {path / SUMS, path / SIGNATURE}
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file() and file not in left_out)


def digest_list(path: Path) -> str:
    """The contents of ``SHA256SUMS`` for the files as they are."""
    return "".join(
        f"{hashlib.sha256((path / file).read_bytes()).hexdigest()}  {file.as_posix()}\n" for file in package_files(path)
    )


def verify_digests(path: Path) -> str:
    """Check the files against ``SHA256SUMS`` and give the package's digest. Raises PackageError."""
    try:
        text = (path / SUMS).read_bytes().decode("utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        raise PackageError(f"{path}: {SUMS} is missing or unreadable; build the package again") from None
    wanted = digest_list(path)
    listed, actual = _parse_sums(text), _parse_sums(wanted)
    for file in sorted(listed.keys() | actual.keys()):
        if file not in actual:
            raise PackageError(f"{path}: {file} is missing; restore it from where the package came from")
        if file not in listed:
            raise PackageError(f"{path}: {file} does not belong to the package; remove it or build the package again")
        if listed[file] != actual[file]:
            raise PackageError(
                f"{path}: {file} is not the file that the package was built with (SHA-256 {actual[file][:12]}…, "
                f"wanted {listed[file][:12]}…); it is refused. Restore it from where the package came from"
            )
    if text != wanted:
        raise PackageError(f"{path}: {SUMS} is not as it was written; restore it from where the package came from")
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_sums(text: str) -> Mapping[str, str]:
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}


def selects(manifest: Manifest, *, modality: str, has_pixels: bool) -> bool:
    """Whether the model wants an image at all. What it then makes of it is the gate's matter."""
    return has_pixels and modality.upper() in {m.upper() for m in manifest.intended_use.modality}


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write ``calibration.json`` into a package's folder."""
    (path / CALIBRATION).write_text(
        json.dumps(calibration.model_dump(), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
