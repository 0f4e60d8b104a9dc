"""Lists what an image holds, as a CycloneDX bill of materials and as a table of licences, and refuses the GPL.

Run while the image is built, by the Python of its environment: ``inventory.py PROGRAM VERSION FOLDER``. It covers the
Python distributions and Debian's packages of the base. What a wheel carries inside itself (OpenBLAS in NumPy, libpq in
psycopg) is not listed apart: it is the wheel's own, under licences that the wheel's ``dist-info`` holds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

# The LGPL lets a program use a library that is replaceable; each that we ship is named here, with the reason.
LESSER = {
    "psycopg": "LGPL-3.0: imported unchanged, as its own package that can be replaced",
    "psycopg-binary": "LGPL-3.0: imported unchanged, as its own package that can be replaced",
}
# Distributions whose metadata names no licence: what the licence text that they come with is.
READ = {"sigstore-models": "MIT"}
# Exceptions of the GPL that let anybody link with what is under it, such as GCC's run-time libraries.
_EXCEPTION = re.compile(r"GPL-[\d.]+(?:-or-later|-only)?(?:-with-|\s+with\s+)[\w.-]*exception[\w.-]*", re.IGNORECASE)
_LESSER = re.compile(r"LGPL|Lesser General Public|Library General Public", re.IGNORECASE)
_STRONG = re.compile(r"(?<!L)A?GPL|(?<!Lesser )(?<!Library )General Public License", re.IGNORECASE)
_LONGEST = 120  # characters of a `License` field that is a name and not the text itself
_DEBIAN_FORMAT = "${binary:Package}\t${Version}\t${Architecture}\n"
_COPYRIGHTS = Path("/usr/share/doc")
# Several programs may be in one image; the namespace only makes a serial number that is the same for the same image.
_NAMESPACE = uuid.UUID("5f0c9c5e-6d3c-4d56-9f0e-6c1df2ab7b1e")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One package in the image."""

    kind: str  # "python" or "debian"
    name: str
    version: str
    licence: str  # as its own metadata says; empty where it says nothing
    expression: bool  # whether the licence is an SPDX expression by the metadata's own word
    purl: str


def licence_of(distribution: Distribution) -> tuple[str, bool]:
    """A distribution's licence, and whether it is an SPDX expression: the newest field that says something wins."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return expression.strip(), True
    named = (metadata.get("License") or "").strip()
    classified = [
        entry.rsplit(" :: ", 1)[1]
        for entry in metadata.get_all("Classifier") or []
        if entry.startswith("License :: ") and entry != "License :: OSI Approved"
    ]
    if classified:
        return "; ".join(dict.fromkeys(classified)), False
    first = named.splitlines()[0].strip() if named else ""
    return first[:_LONGEST], False


def objection(part: Part) -> str | None:
    """Why a Python distribution may not be in the image; None if it may."""
    licence = _EXCEPTION.sub("", part.licence)
    # `A OR B`, and two classifiers as some projects mean them, leave the choice to us.
    choices = re.split(r"\s+OR\s+", licence)
    if not licence.strip():
        return f"{part.name} {part.version}: its metadata names no licence; read its text, and name it in READ"
    if all(_STRONG.search(choice) for choice in choices):
        return f"{part.name} {part.version}: {part.licence}: the GPL may not be in the image"
    if all(_LESSER.search(choice) for choice in choices) and part.name not in LESSER:
        return f"{part.name} {part.version}: {part.licence}: the LGPL needs a reason in LESSER"
    return None


def python_parts() -> Iterator[Part]:
    """The distributions that this Python can import, by name."""
    found: dict[str, Part] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        licence, expression = licence_of(distribution)
        if not licence and name in READ:
            licence, expression = READ[name], True
        found.setdefault(
            name,
            Part(
                kind="python", name=name, version=distribution.version, licence=licence, expression=expression,
                purl=f"pkg:pypi/{name}@{distribution.version}",
            ),
        )  # fmt: skip
    yield from (found[name] for name in sorted(found))


def debian_parts() -> Iterator[Part]:
    """The packages of the base image. Their licences are those that Debian's copyright files name, all of them."""
    command = ["dpkg-query", "--show", "--showformat", _DEBIAN_FORMAT]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    except FileNotFoundError:
        return  # a base that is not Debian
    for line in sorted(listed.splitlines()):
        named, version, architecture = line.split("\t")
        name = named.split(":")[0]
        yield Part(
            kind="debian", name=name, version=version, licence=_copyright(name), expression=False,
            purl=f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={architecture}",
        )  # fmt: skip


def _copyright(name: str) -> str:
    file = _COPYRIGHTS / name / "copyright"
    if not file.is_file():
        return ""
    names = re.findall(r"^License:\s*(\S.*)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return "; ".join(sorted({found.strip() for found in names}))


def bill(program: str, version: str, parts: list[Part]) -> dict[str, Any]:
    """The bill of materials, CycloneDX 1.6. It is the same for the same image: it holds no time."""
    own = {"type": "container", "bom-ref": f"image:{program}", "name": program, "version": version}
    serial = uuid.uuid5(_NAMESPACE, json.dumps([program, version, *(part.purl for part in parts)]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": own, "properties": [{"name": "python", "value": sys.version.split()[0]}]},
        "components": [_component(part) for part in parts],
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": [part.purl for part in parts]}],
    }


def _component(part: Part) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library", "bom-ref": part.purl, "name": part.name, "version": part.version, "purl": part.purl,
    }  # fmt: skip
    if part.expression:
        component["licenses"] = [{"expression": part.licence}]
    elif part.licence:
        component["licenses"] = [{"license": {"name": part.licence}}]
    return component


def table(parts: list[Part]) -> str:
    """The licences, for people."""
    lines = ["kind\tname\tversion\tlicence"]
    for part in parts:
        where = f"see {_COPYRIGHTS / part.name}/copyright" if part.kind == "debian" else "?"
        lines.append(f"{part.kind}\t{part.name}\t{part.version}\t{part.licence or where}")
    lines += ["", *(f"{name}: {reason}" for name, reason in LESSER.items())]
    return "\n".join(lines) + "\n"


def main(program: str, version: str, folder: Path) -> int:
    """Write both lists into a folder; status 1 and why if something may not be in the image."""
    python = list(python_parts())
    objections = [said for part in python if (said := objection(part)) is not None]
    if objections:
        print("\n".join(objections), file=sys.stderr)  # noqa: T201
        return 1
    parts = [*python, *debian_parts()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sbom.cdx.json").write_text(json.dumps(bill(program, version, parts), indent=1) + "\n", encoding="utf-8")
    (folder / "licences.txt").write_text(table(parts), encoding="utf-8")
    print(f"{program}: {len(python)} Python distributions, {len(parts) - len(python)} Debian packages")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
