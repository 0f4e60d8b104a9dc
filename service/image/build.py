"""Builds the images, measures them, and puts their bills of materials and licences into a folder.

``make image``; with docker, podman or buildah, whichever is there. Where pip has an index or a certificate of its own
on this machine, the build gets them as secrets, which no layer keeps. Status 1 if an image is larger than it may be.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TOP = Path(__file__).parents[2]
_LISTS = "/usr/share/doc/stepwedge"
_ENGINES = ("docker", "podman", "buildah")
_HANDED_ON = ("cert", "index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout")  # pip's settings
_UNITS = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True, kw_only=True)
class Image:
    """One target of the Dockerfile."""

    target: str
    name: str
    largest_mb: int | None  # uncompressed, in millions of bytes; None: as large as it becomes
    variant: str = ""  # behind the tag and in the names of its lists
    arguments: tuple[str, ...] = ()


IMAGES = (
    Image(target="service", name="stepwedge", largest_mb=700),
    Image(target="monitor", name="stepwatch", largest_mb=800),
)
CUDA = Image(
    target="service", name="stepwedge", largest_mb=None, variant="-cuda", arguments=("--build-arg", "CUDA=1")
)  # fmt: skip


def find_engine() -> str:
    """The first engine that works here. Raises SystemExit."""
    for name in _ENGINES:
        # A client of docker may be there without its server.
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:  # noqa: S603
            return name
    raise SystemExit(f"None of {', '.join(_ENGINES)} works here; one of them builds the images.")


def build(engine: str, image: Image, tag: str, arguments: Sequence[str], secrets: Sequence[str]) -> str:
    """Build one target; the image's name with its tag."""
    command = [engine, "bud" if engine == "buildah" else "build"]
    if engine == "buildah":
        # Works without namespaces, as in a build that runs in a container itself.
        command += ["--isolation", "chroot", "--layers"]
    if engine != "docker":
        command += ["--format", "docker"]  # the OCI's own format has no health check
    reference = f"{image.name}:{tag}{image.variant}"
    command += [*secrets, *arguments, *image.arguments, "--target", image.target, "--tag", reference, str(_TOP)]
    _run(command)
    return reference


def size_mb(engine: str, reference: str) -> float:
    """Uncompressed size as the engine tells it, in millions of bytes."""
    if engine == "buildah":
        number, unit = _output([engine, "images", "--format", "{{.Size}}", f"localhost/{reference}"]).split()
        return float(number) * _UNITS[unit] / 1e6
    return int(_output([engine, "image", "inspect", "--format", "{{.Size}}", reference])) / 1e6


def read(engine: str, reference: str, path: str) -> str:
    """The text of a file in an image."""
    if engine != "buildah":
        return _output([engine, "run", "--rm", "--network", "none", "--entrypoint", "cat", reference, path])
    container = _output([engine, "from", "--pull-never", reference]).strip()
    try:
        return _output([engine, "run", "--isolation", "chroot", container, "--", "cat", path])
    finally:
        _run([engine, "rm", container], quiet=True)


def pip_secrets(folder: Path) -> list[str]:
    """Arguments that hand on this machine's index and certificate; none where pip runs as it comes."""
    found: dict[str, str] = {}
    for line in _output([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        named = re.fullmatch(rf"[\w:.]*?\.({'|'.join(_HANDED_ON)})='(.*)'", line)
        if named:
            found.setdefault(named[1].removeprefix("default-"), named[2])
    arguments: list[str] = []
    if certificate := found.pop("cert", ""):
        arguments += ["--secret", f"id=ca,src={certificate}"]
    # Folders of this machine are not in the build.
    addresses = {key: " ".join(url for url in value.split() if "file:" not in url) for key, value in found.items()}
    if kept := {key: value for key, value in addresses.items() if value}:
        file = folder / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in kept.items()), encoding="utf-8")
        arguments += ["--secret", f"id=pip,src={file}"]
    return arguments


def main() -> int:
    """Build, measure, write the lists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=_ENGINES, help="default: the first that works")
    parser.add_argument("--base", metavar="IMAGE", help="base image, to pin a digest or use a mirror of your own")
    parser.add_argument("--tag", default="dev", help="default: dev")
    parser.add_argument("--cuda", action="store_true", help="also the service with CUDA; it has no limit of size")
    parser.add_argument(
        "--out", type=Path, default=_TOP / "build" / "image", metavar="DIR", help="default: build/image"
    )
    options = parser.parse_args()
    engine = options.engine or find_engine()
    arguments = ["--build-arg", f"VERSION={options.tag}", "--build-arg", f"REVISION={_revision()}"]
    if options.base:
        arguments += ["--build-arg", f"PYTHON_IMAGE={options.base}"]
    too_large = False
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        secrets = pip_secrets(Path(folder))
        for image in (*IMAGES, CUDA) if options.cuda else IMAGES:
            reference = build(engine, image, options.tag, arguments, secrets)
            for name in ("sbom.cdx.json", "licences.txt"):
                file = options.out / f"{image.name}{image.variant}.{name}"
                file.write_text(read(engine, reference, f"{_LISTS}/{name}"))
            size, most = size_mb(engine, reference), image.largest_mb
            print(f"{reference}: {size:.0f} MB" + ("" if most is None else f", at most {most}"))  # noqa: T201
            too_large |= most is not None and size > most
    said = "An image is larger than it may be." if too_large else f"Bills of materials and licences: {options.out}"
    print(said)  # noqa: T201
    return int(too_large)


def _revision() -> str:
    result = subprocess.run(["git", "-C", str(_TOP), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return result.stdout.strip() or "unknown"


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if result.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    return result.stdout


def _run(command: Sequence[str], *, quiet: bool = False) -> None:
    said = subprocess.DEVNULL if quiet else None
    status = subprocess.run(command, check=False, stdout=said, env={**os.environ, "DOCKER_BUILDKIT": "1"}).returncode  # noqa: S603
    if status:
        raise SystemExit(f"{shlex.join(command)} ended with {status}")


if __name__ == "__main__":
    sys.exit(main())
