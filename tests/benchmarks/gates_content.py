"""What the content gate refuses, and what it refuses that it should not, on real images. ``make bench-gates``.

The gate is fitted on the gate fold; every figure is of the test fold, which shares no patient with it, or of images of
another source. Prints tables, and JSON as its last line. "Refused" is rejected or deferred, by the structure of the
pixels or by what they show: such an image gets no answer. The changes are made here, most of them in another way than
those that the gate learns from (``package.corruptions``). Sources that are absent are named and their rows left out.
``--notes-out`` writes the rows for ``package build --notes``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom.data
import yaml
from PIL import Image as Pillow
from sklearn.datasets import load_sample_images

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "models" / "chest-pneumonia")]

from changes import (  # noqa: E402 - after the path to it
    Change,
    Pixels,
    blank,
    cut_short,
    exposed,
    garbled_rows,
    grains,
    half_anywhere,
    lost_rows,
    moved,
    narrow_window,
    noise,
    on_part,
    out_of_focus,
    part,
    repeated_rows,
    shifted_rows,
    sixteen_bits,
    speckled,
    stamped,
)
from folds import read_image, read_rows  # noqa: E402
from stepwedge.dicom.attributes import read_dataset  # noqa: E402
from stepwedge.dicom.decode import decode  # noqa: E402
from stepwedge.errors import DecodeError, StepwedgeError  # noqa: E402
from stepwedge.gate.content import ContentGate, judge_content  # noqa: E402
from stepwedge.gate.validity import judge_pixels, pixel_statistics  # noqa: E402
from stepwedge.manifest import Input  # noqa: E402
from stepwedge.package.figures import Measured  # noqa: E402
from stepwedge.package.fit_content import fit_content  # noqa: E402
from stepwedge.package.fit_tamper import share  # noqa: E402
from stepwedge.records import FloatArray, GateVerdict, Image, Verdict  # noqa: E402
from stepwedge.simulate import wrap_image  # noqa: E402

CHANGED = 200  # images of the test fold that are changed
DRAWN = 200  # images of noise, blank images and cuts of photographs, of each kind
FALSE_REJECTION = 0.01
SEED = 23
SHARED = Path(os.environ.get("STEPWEDGE_SHARED", TESTS.parents[1] / "shared"))
SPEC = Input(name="image", rows=224, columns=224, presentation={"kind": "range"})
# Frontal chests among the sample objects: of another population, but no other anatomy.
CHESTS = ("RG1_", "CR-MONO1-10-chest", "chest_jpeg_baseline")
SMALLEST = 64  # pixels of a side: smaller samples show nothing
LARGEST_BYTES = 2**29
ALIKE = 0.999  # correlation of thumbnails from which two files show the same image

# The share refused that each row should reach.
CONTENT, TURNED, CROPPED, GREYS, FLIPPED = 0.99, 0.99, 0.95, 0.99, 0.90

ANYTHING = ("content_not_intended", "image_blank", "image_saturated")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of image that must be refused, and the reasons that are right for it."""

    what: str
    reasons: tuple[str, ...]
    goal: float | None = None  # share refused


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the images of one kind."""

    kind: Kind
    refused: Measured
    named: Measured  # share of the refused whose reason is right


TURNS: Sequence[tuple[Kind, Change]] = (
    (Kind(what="inverted", reasons=("image_inverted",), goal=TURNED), lambda image, _: image.max() - image),
    (Kind(what="rotated by 90°", reasons=("image_rotated",), goal=TURNED), lambda image, _: np.rot90(image)),
    (Kind(what="rotated by 180°", reasons=("image_rotated",), goal=TURNED), lambda image, _: np.rot90(image, 2)),
    (Kind(what="rotated by 270°", reasons=("image_rotated",), goal=TURNED), lambda image, _: np.rot90(image, 3)),
    (Kind(what="left and right exchanged", reasons=("image_flipped",), goal=FLIPPED), lambda image, _: image[:, ::-1]),
)
_CUT = partial(Kind, reasons=("image_cropped",))
PARTS: Sequence[tuple[Kind, Change]] = (
    (_CUT(what="half of the area, anywhere", goal=CROPPED), half_anywhere),
    (_CUT(what="left half"), part(0, 0, 1, 0.5)),
    (_CUT(what="right half"), part(0, 0.5, 1, 0.5)),
    (_CUT(what="upper half"), part(0, 0, 0.5, 1)),
    (_CUT(what="lower half"), part(0.5, 0, 0.5, 1)),
    (_CUT(what="middle, half of each side"), part(0.25, 0.25, 0.5, 0.5)),
)
_BLURRED = partial(Kind, reasons=("image_blurred",), goal=GREYS)
_GREYS = partial(Kind, reasons=("image_grey_scale", "image_saturated"), goal=GREYS)
LOOKS: Sequence[tuple[Kind, Change]] = (
    (_BLURRED(what="out of focus, a disc of 1.5 % in radius"), out_of_focus),
    (_BLURRED(what="moved by 5 %"), moved),
    (_GREYS(what="saturated, exposed threefold"), exposed(3.0, 0.0)),
    (_GREYS(what="saturated, threefold and dark"), exposed(3.0, 0.5)),
    (_GREYS(what="narrow window, a sixth of the grey scale"), narrow_window),
    (_GREYS(what="dark window, on a quarter of the grey scale"), on_part(0.0, 0.25)),
    (_GREYS(what="bright window, on a quarter of the grey scale"), on_part(0.75, 0.25)),
    (Kind(what="dark window, on 40 % of the grey scale", reasons=("image_grey_scale",)), on_part(0.0, 0.4)),
    (Kind(what="writing across", reasons=("content_not_intended",)), stamped),
    (Kind(what="under noise in proportion", reasons=("content_not_intended",), goal=CONTENT), speckled),
    (Kind(what="under uniform noise", reasons=("content_not_intended",), goal=CONTENT), grains),
)


_TRUNCATED = partial(Kind, reasons=("image_truncated", "image_saturated"), goal=1.0)
_BITS = partial(Kind, reasons=("image_grey_scale", "image_saturated", "image_blank", "content_not_intended"), goal=1.0)
FAULTS: Sequence[tuple[Kind, Change]] = (
    (_TRUNCATED(what="a row repeated to the end"), repeated_rows),
    (_TRUNCATED(what="a tenth of the rows lost"), lost_rows),
    (_TRUNCATED(what="40 % missing, filled with grey"), cut_short),
    (Kind(what="an eighth of the rows garbled", reasons=("image_truncated", "content_not_intended")), garbled_rows),
    (Kind(what="a sixth of the rows shifted", reasons=("image_truncated", "content_not_intended")), shifted_rows),
    (_BITS(what="12 bits declared as 16"), sixteen_bits(lambda values: values, 65535)),
    (_BITS(what="12 bits with the bytes exchanged"), sixteen_bits(lambda values: values.byteswap(), 65535)),
    (_BITS(what="12 bits cut to the lower 10"), sixteen_bits(lambda values: values & 1023, 1023)),
    (_BITS(what="12 bits cut to the lower 8"), sixteen_bits(lambda values: values & 255, 255)),
)


# --- Images of other sources --------------------------------------------------------------------------------------


def photographs(folder: Path | None, rng: np.random.Generator, count: int) -> Iterator[FloatArray]:
    """Cuts of scikit-learn's two photographs and of those in ``folder``, each on 0…1; all kinds equally often."""
    whole = [np.asarray(Pillow.fromarray(image).convert("L"), np.float32) for image in load_sample_images().images]
    for file in sorted(folder.iterdir()) if folder else ():
        if file.suffix.lower() in {".jpg", ".jpeg", ".png"}:
            with Pillow.open(file) as picture:
                picture.thumbnail((1200, 1200))
                whole.append(np.asarray(picture.convert("L"), np.float32))
    for index in range(count):
        image = whole[index % len(whole)] / 255
        rows, columns = rng.uniform(0.35, 1.0, 2)
        yield part(rng.uniform(0, 1 - rows), rng.uniform(0, 1 - columns), rows, columns)(image, rng)


def samples() -> tuple[list[Image], list[Image]]:
    """Different images of other anatomy and modalities, and frontal chests, of real sample objects at hand."""
    folders = [SHARED / "data" / "dicom", Path(pydicom.data.__file__).parent / "test_files"]
    try:
        import data_store
    except ImportError:
        print("pydicom-data is not installed: its samples are left out")
    else:
        folders.append(Path(data_store.__path__[0]) / "data")
    others, chests = [], []
    seen: list[FloatArray] = []
    for file in sorted(file for folder in folders for file in folder.glob("*.dcm")):
        try:
            image = decode(read_dataset(file), maximum_bytes=LARGEST_BYTES)
        except StepwedgeError:
            continue
        picture = Pillow.fromarray(image.pixels).resize((32, 32), Pillow.Resampling.BOX)
        thumb = np.asarray(picture, np.float32).ravel()
        thumb = (thumb - thumb.mean()) / (np.linalg.norm(thumb - thumb.mean()) + 1e-6)
        if min(image.pixels.shape) < SMALLEST or any(float(thumb @ other) > ALIKE for other in seen):
            continue
        seen.append(thumb)
        (chests if file.name.startswith(CHESTS) else others).append(image)
    return others, chests


def adults() -> list[Path]:
    """Half of the adults, by patient. The other half was looked at when the gate's rules were chosen."""
    folder = SHARED / "data" / "nih"
    if not (folder / "labels.csv").is_file():
        print(f"no radiographs of adults in {folder}: left out")
        return []
    with (folder / "labels.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    return [folder / "images" / row["file"] for row in records if _digest(row["nih_patient_id"]) % 2 == 1]


def _digest(patient: str) -> int:
    return int(hashlib.sha256(patient.encode()).hexdigest(), 16)


# --- Judging ------------------------------------------------------------------------------------------------------


def judged(image: Image, gate: ContentGate) -> GateVerdict:
    """By the structure of the pixels first, then by what they show."""
    statistics = pixel_statistics(image)
    structure = judge_pixels(image, statistics, SPEC)
    return judge_content(image, statistics, gate) if structure.verdict is Verdict.ACCEPT else structure


def on_unit(values: Pixels) -> Image:
    """An image whose stored range is 0…1."""
    return Image(pixels=np.ascontiguousarray(values, np.float32), value_range=(0.0, 1.0))


def outcome(kind: Kind, images: Iterable[Image], gate: ContentGate) -> Outcome:
    """How many are refused, and for how many of those the reason is right."""
    verdicts = [judged(image, gate) for image in images]
    refused = np.array([verdict.verdict is not Verdict.ACCEPT for verdict in verdicts], bool)
    right = np.array([bool(codes & set(kind.reasons)) for codes in map(_codes, verdicts)])
    deferred = sum(verdict.verdict is Verdict.DEFER for verdict in verdicts)
    note = f"{deferred} of them deferred" if deferred else ""
    found = share(f"{kind.what}: refused", refused, note)
    return Outcome(kind=kind, refused=found, named=share(f"{kind.what}: reason right", right[refused]))


def _codes(verdict: GateVerdict) -> set[str]:
    return {reason.code for reason in verdict.reasons}


def untouched(what: str, images: Iterable[Image], gate: ContentGate) -> list[Measured]:
    """How many of the images are rejected, deferred and accepted."""
    verdicts = np.array([judged(image, gate).verdict for image in images], object)
    return [
        share(f"{what}: {name}", np.asarray(verdicts == verdict, bool))
        for name, verdict in (("rejected", Verdict.REJECT), ("deferred", Verdict.DEFER), ("accepted", Verdict.ACCEPT))
    ]


def short_objects(planes: Sequence[FloatArray], rng: np.random.Generator) -> Measured:
    """DX objects whose pixel data end early."""
    refused = []
    for plane in planes:
        dataset = wrap_image(np.round(plane * 255).astype(np.uint8), rng=rng, shortest_side=256)
        dataset.PixelData = dataset.PixelData[: 2 * int(rng.uniform(0.3, 0.99) * len(dataset.PixelData) / 2)]
        try:
            decode(dataset)
            refused.append(False)
        except DecodeError:
            refused.append(True)
    return share("pixel data shorter than the header says: refused", np.array(refused, bool))


def measure(gate: ContentGate, clean: Sequence[Path], options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Everything that must be refused, by table."""
    rng = np.random.default_rng(SEED)
    chosen = [clean[index] for index in rng.permutation(len(clean))[: options.n]]
    planes = [read_image(file).pixels / np.float32(255) for file in chosen]
    tables = {}
    for title, changes in (("Turned", TURNS), ("Cut to a half", PARTS), ("Other looks", LOOKS), ("Faults", FAULTS)):
        tables[title] = [
            outcome(kind, (on_unit(change(plane, rng)) for plane in planes), gate) for kind, change in changes
        ]
    other = partial(Kind, reasons=ANYTHING, goal=CONTENT)
    drawn = min(DRAWN, options.n)
    kinds = [
        outcome(other(what=f"{kind} noise"), (on_unit(noise(kind, rng)) for _ in range(drawn)), gate)
        for kind in ("uniform", "Gaussian", "salt and pepper", "coarse")
    ]
    kinds.append(outcome(other(what="blank"), (on_unit(blank(rng)) for _ in range(drawn)), gate))
    cuts = photographs(options.photographs, rng, drawn)
    kinds.append(outcome(other(what="photographs, cuts"), map(on_unit, cuts), gate))
    kinds.append(outcome(other(what="other anatomy and modalities"), samples()[0], gate))
    tables["Something else altogether"] = kinds
    return tables


# --- The bench ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _parser().parse_args(arguments)
    started = time.perf_counter()
    folder = SHARED / "data" / "pneumonia"
    if not (folder / "labels.csv").is_file():
        raise SystemExit(f"The radiographs are not in {SHARED}; STEPWEDGE_SHARED can name another place.")
    rows = read_rows(folder)
    fitting = [row for row in rows if row.fold == "gate"]
    images = (read_image(folder / "images" / row.file) for row in fitting)
    gate = fit_content(images, [row.patient for row in fitting], false_rejection=FALSE_REJECTION)
    clean = [folder / "images" / row.file for row in rows if row.fold == "test"]
    plain = untouched("test fold, untouched", map(read_image, clean), gate)
    if grown := adults():
        plain += untouched("adults (NIH), untouched", map(read_image, grown), gate)
    plain += untouched("frontal chests among sample objects", samples()[1], gate)
    tables = measure(gate, clean, options)
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(SEED)
    short = short_objects([read_image(file).pixels / np.float32(255) for file in clean[: options.n // 4]], rng)
    _print(gate, plain, short, tables, seconds)
    _write(gate, plain, short, tables, options.notes_out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=CHANGED, help="images of the test fold that are changed")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs beside scikit-learn's two")
    parser.add_argument("--notes-out", type=Path, help="YAML file with the rows for `package build --notes`")
    return parser


def _line(row: Measured) -> str:
    return f"  {row.what:58s} {row.value:7.1%} ({row.low:.1%}–{row.high:.1%})  n {row.n:4d}"


def _verdict(found: Outcome) -> str:
    """Whether the goal is met: by the share itself, which the interval stands beside."""
    goal = found.kind.goal
    return "" if goal is None else f"goal ≥ {goal:.0%}: {'met' if found.refused.value >= goal else 'MISSED'}"


def _print(
    gate: ContentGate,
    plain: Sequence[Measured],
    short: Measured,
    tables: Mapping[str, Sequence[Outcome]],
    seconds: float,
) -> None:
    print(f"Gate fitted on {gate.images} images of {gate.patients} patients for {gate.false_rejection:.1%} of them")
    print("\nUntouched")
    for row in plain:
        print(_line(row))
    for title, outcomes in tables.items():
        print(f"\n{title}")
        for found in outcomes:
            named = f"reason right {found.named.value:.1%} ({found.named.low:.1%}–{found.named.high:.1%})"
            print(f"{_line(found.refused)}  {_verdict(found):18s}  {named}  {found.refused.note}")
        if title == "Faults":
            print(_line(short))
    print(f"\n{seconds:.0f} s")


def _write(
    gate: ContentGate,
    plain: Sequence[Measured],
    short: Measured,
    tables: Mapping[str, Sequence[Outcome]],
    notes_out: Path | None,
) -> None:
    rows = [*plain, short]
    for found in (found for outcomes in tables.values() for found in outcomes):
        parts = [found.refused.note, f"reason right for {found.named.value:.1%} of these"]
        rows.append(found.refused.model_copy(update={"note": "; ".join(filter(None, parts))}))
    result = {
        "fitted_on": gate.images,
        "false_rejection": gate.false_rejection,
        "untouched": [row.model_dump() for row in plain],
        "short": short.model_dump(),
        "tables": {
            title: [
                {"goal": found.kind.goal, "refused": found.refused.model_dump(), "named": found.named.model_dump()}
                for found in outcomes
            ]
            for title, outcomes in tables.items()
        },
    }
    print(json.dumps(result, ensure_ascii=False))
    if notes_out is not None:
        text = yaml.safe_dump(
            {"content_detection": [row.model_dump() for row in rows]}, sort_keys=False, allow_unicode=True, width=120
        )
        notes_out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
