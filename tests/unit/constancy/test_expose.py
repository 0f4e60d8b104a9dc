"""What a constancy run notes of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwedge.constancy import expose


def test_the_driver_of_the_graphics_card_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(expose, "_NVIDIA", file)
    assert "nvidia-driver" not in expose._versions()
    # The form of NVIDIA's module, of a machine that has one: no card here.
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC 12\n")
    assert expose._versions()["nvidia-driver"] == "550.54.15"
    file.write_text("something else\n")
    assert expose._versions()["nvidia-driver"] == "unknown"
