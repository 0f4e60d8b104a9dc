"""The layers hold, modules stay small and say what they are, and the repository speaks of the product only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "service" / "stepwedge"
LONGEST_MODULE = 450  # lines; what is longer is two things

MODULES = sorted(PACKAGE.rglob("*.py"))

# Addresses that belong to whoever installs or builds, and paths of a machine on which somebody worked.
FOREIGN = re.compile(
    rb"(?:https?://)?(?:[a-z0-9-]+\.)*(?:pypi\.org|pythonhosted\.org|npmjs\.org|docker\.io|ghcr\.io|quay\.io)(?![a-z0-9-])"
    rb"|--(?:extra-)?index-url|artifactory|pypi-mirror"
    rb"|(?<![\w./$}~-])/(?:work|workspace|root|home|Users)/[\w.]",
    re.IGNORECASE,
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def module_id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_layers_and_fences_hold() -> None:
    """The contracts are in pyproject.toml, under tool.importlinter."""
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_what_others_may_call_says_what_it_does(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any(path.name == name and node.name == "main" for name in ("__main__.py", "isolated.py"))
    ]
    assert missing == []


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def test_no_tracked_file_names_a_registry_or_a_path_of_somebodys_machine() -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content or path == Path(__file__):
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if FOREIGN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line[:100].decode(errors='replace')}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "foreign"),
    [
        (b"--index-url https://mirror.example/simple", True),
        (b"see https://pypi.org/project/x", True),
        (b"image: ghcr.io/somebody/something", True),
        (b"cp /work/main/file .", True),
        (b"/home/somebody/data", True),
        (b'"/root/.cache"', True),
        (b"the role of work/listen", False),
        (b"WORKDIR /app", False),
        (b"stepwedge/work/x", False),
        (b"https://github.com/home/page", False),
    ],
)
def test_what_counts_as_foreign(line: bytes, foreign: bool) -> None:
    assert bool(FOREIGN.search(line)) is foreign
