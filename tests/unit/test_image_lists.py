"""What may be in an image, and how its bill of materials says what is."""

from __future__ import annotations

import importlib.util
import sys
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest


def _script(name: str) -> ModuleType:
    """A script of the images, which belongs to no package: it runs where only Python is."""
    file = Path(__file__).parents[2] / "service" / "image" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"image_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


inventory = _script("inventory")
build = _script("build")


class _Distribution:
    """What ``importlib.metadata`` gives, of which only the metadata are read."""

    def __init__(self, **fields: str | list[str]) -> None:
        self.metadata = Message()
        for name, value in fields.items():
            for each in value if isinstance(value, list) else [value]:
                self.metadata[name.replace("_", "-")] = each


def _part(licence: str, name: str = "some", *, kind: str = "python") -> object:
    return inventory.Part(
        kind=kind, name=name, version="1", licence=licence, expression=True, purl=f"pkg:pypi/{name}@1"
    )


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "Apache-2.0 AND BSD-3-Clause",
        "MPL-2.0",
        "GPL-2.0-or-later OR MIT",
        "BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1",
    ],
)
def test_a_licence_that_lets_us_ship_is_taken(licence: str) -> None:
    assert inventory.objection(_part(licence)) is None


@pytest.mark.parametrize(
    "licence",
    ["GPL-3.0-only", "GNU General Public License v3 (GPLv3)", "AGPL-3.0-or-later", "MIT AND GPL-2.0-only"],
)
def test_the_gpl_is_refused_and_named(licence: str) -> None:
    assert "the GPL may not be in the image" in inventory.objection(_part(licence))


def test_the_lgpl_needs_a_reason() -> None:
    assert "needs a reason" in inventory.objection(_part("LGPL-3.0-only"))
    assert inventory.objection(_part("LGPL-3.0-only", "psycopg")) is None


def test_a_distribution_that_names_no_licence_is_refused() -> None:
    assert "names no licence" in inventory.objection(_part(""))


def test_the_newest_field_that_names_a_licence_wins() -> None:
    classifiers = ["License :: OSI Approved", "License :: OSI Approved :: BSD License", "Topic :: Printing"]
    assert inventory.licence_of(_Distribution(License_Expression="MIT", License="BSD")) == ("MIT", True)
    assert inventory.licence_of(_Distribution(License="See file", Classifier=classifiers)) == ("BSD License", False)
    assert inventory.licence_of(_Distribution(License="Apache 2.0\n\nthe whole text")) == ("Apache 2.0", False)
    assert inventory.licence_of(_Distribution()) == ("", False)


def test_the_same_parts_give_the_same_bill() -> None:
    parts = [_part("MIT", "a"), _part("Debian's words", "b", kind="debian")]
    assert inventory.bill("stepwedge", "1", parts) == inventory.bill("stepwedge", "1", parts)
    other = inventory.bill("stepwedge", "2", parts)
    assert other["serialNumber"] != inventory.bill("stepwedge", "1", parts)["serialNumber"]


def test_an_index_and_a_certificate_go_to_the_build_as_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = (
        "global.cert='/etc/ssl/own.pem'\nglobal.index-url='https://index.example/simple'\nglobal.find-links='/wheels'\n"
    )
    monkeypatch.setattr(build, "_output", lambda _: told)
    arguments = build.pip_secrets(tmp_path)
    assert arguments == [
        *("--secret", "id=ca,src=/etc/ssl/own.pem"),
        *("--secret", f"id=pip,src={tmp_path / 'pip.conf'}"),
    ]
    assert (tmp_path / "pip.conf").read_text() == "[global]\nindex-url = https://index.example/simple\n"


def test_nothing_goes_to_the_build_where_pip_runs_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_output", lambda _: "")
    assert build.pip_secrets(tmp_path) == []
