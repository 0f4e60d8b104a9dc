"""What `make image` builds, by a stand-in for the engine that notes what it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).parents[2] / "service" / "image" / "build.py"
ENGINE = """\
#!/bin/sh
echo "$@" >> "$NOTED"
case "$1 $2" in
    "image inspect") echo 500000000 ;;
    "run --rm") for last; do :; done; echo "$7 $last" ;;
esac
"""


def _built(folder: Path, *arguments: str) -> tuple[dict[str, list[str]], str]:
    """By tag, the words of its build; and what is said."""
    engine, noted = folder / "bin" / "podman", folder / "noted"
    engine.parent.mkdir()
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)
    command = [sys.executable, str(BUILD), "--engine", "podman", "--tag", "1.2.3", "--out", str(folder / "lists")]
    result = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PATH": f"{engine.parent}:{os.environ['PATH']}", "NOTED": str(noted)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    builds = [line.split() for line in noted.read_text(encoding="utf-8").splitlines() if line.startswith("build ")]
    return {words[words.index("--tag") + 1]: words for words in builds}, result.stdout


def test_both_images_are_built_with_their_lists(tmp_path: Path) -> None:
    built, said = _built(tmp_path)
    assert built.keys() == {"stepwedge:1.2.3", "stepwatch:1.2.3"}
    assert not [words for words in built.values() if "CUDA=1" in words]
    assert "stepwedge:1.2.3: 500 MB, at most 700" in said
    assert {file.name for file in (tmp_path / "lists").iterdir()} == {
        f"{image}.{name}" for image in ("stepwedge", "stepwatch") for name in ("sbom.cdx.json", "licences.txt")
    }


def test_the_service_with_cuda_comes_beside_the_one_without_under_names_of_its_own(tmp_path: Path) -> None:
    built, said = _built(tmp_path, "--cuda")
    assert built.keys() == {"stepwedge:1.2.3", "stepwatch:1.2.3", "stepwedge:1.2.3-cuda"}
    assert [tag for tag, words in built.items() if "CUDA=1" in words] == ["stepwedge:1.2.3-cuda"]
    assert "stepwedge:1.2.3-cuda: 500 MB\n" in said
    lists = tmp_path / "lists"
    assert (lists / "stepwedge.sbom.cdx.json").read_text().split()[0] == "stepwedge:1.2.3"
    assert (lists / "stepwedge-cuda.sbom.cdx.json").read_text().split()[0] == "stepwedge:1.2.3-cuda"
