"""The layers hold, modules stay small and say what they are, and the lock files name no address."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "service" / "stepwedge", ROOT / "monitoring" / "stepwatch")
LONGEST_MODULE = 450  # lines; what is longer is two things

MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_layers_and_fences_hold() -> None:
    """The contracts are in pyproject.toml, under tool.importlinter."""
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


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


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements-*.txt")), ids=lambda path: path.name)
def test_a_lock_file_names_versions_and_hashes_and_no_place_to_get_them_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "--hash=sha256:" in text
    assert "://" not in text
    assert "index-url" not in text
