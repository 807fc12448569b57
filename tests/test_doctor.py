"""Doctor: what it says of this machine, and of machines with a known trap."""

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from evenhand import doctor
from evenhand.doctor import Finding, disk_finding, examine, render, torchvision_finding

Usage = namedtuple("Usage", "total used free")
GIB = 2**30


def fake_package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def free_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(100 * GIB, 0, free))


def test_this_machine_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    free_disk(monkeypatch, 50 * GIB)
    found = by_name(examine())
    assert [finding for finding in found.values() if finding.level == "fault"] == []
    assert found["python"].value == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"].value.startswith("2.")
    assert found["precision"].value in ("float32", "bfloat16", "float16 with loss scaling")
    assert found["cache"].value == f"{tmp_path / 'cache'} (EVENHAND_CACHE)"
    assert found["disk, cache"].value == f"50.0 GiB free in {tmp_path / 'cache'}"
    assert found["disk, working folder"].value == f"50.0 GiB free in {Path.cwd()}"
    assert "cores" in found["threads"].value


def test_default_cache_says_how_to_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENHAND_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert by_name(examine())["cache"].value == f"{tmp_path / 'evenhand'} (default; set EVENHAND_CACHE to move it)"


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "file" / "cache"))
    finding = by_name(examine())["cache"]
    assert (finding.level, finding.remedy) == ("fault", "set EVENHAND_CACHE to a folder that can be written to")


def test_absent_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "versions", lambda: {"python": "3.11.7", "peft": "absent"})
    found = by_name(examine())
    assert (found["python"].level, found["peft"].level) == ("ok", "fault")
    assert found["peft"].remedy.startswith("install Evenhand again")


def test_torchvision_absent_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert torchvision_finding() == Finding("torchvision", "absent, and not needed", "ok", "")


def test_torchvision_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torchvision_finding() == Finding(
        "torchvision",
        "cannot be imported (RuntimeError: operator torchvision::nms does not exist)",
        "fault",
        "pip uninstall torchvision",
    )
    assert "torchvision" not in sys.modules  # looked at from outside: nothing half-imported stays here


def test_torchvision_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "torchvision", "__version__ = '0.28.0'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torchvision_finding() == Finding("torchvision", "0.28.0, imports; not needed", "ok", "")


def test_packages_that_want_torchvision_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("timm", "cleanfid"):
        fake_package(tmp_path, module, "raise AssertionError('only looked for, never imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = by_name(examine())
    assert (found["timm"].level, found["clean-fid"].level) == ("note", "note")
    assert "torch-fidelity" not in found


@pytest.mark.parametrize(("free", "level"), [(50 * GIB, "ok"), (2 * GIB, "note"), (GIB // 4, "fault")])
def test_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    free_disk(monkeypatch, free)
    finding = disk_finding("disk", tmp_path)
    assert finding.level == level
    assert finding.value == f"{free / GIB:.1f} GiB free in {tmp_path}"
    assert bool(finding.remedy) == (level != "ok")


def test_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: False)
    assert disk_finding("disk", tmp_path).value == f"{tmp_path} cannot be written to"
    assert disk_finding("disk", tmp_path).level == "fault"


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    finding = by_name(examine())["threads"]
    assert (finding.level, "OMP_NUM_THREADS=" in finding.remedy) == ("note", True)


def test_render_shows_every_finding_without_reading_markup() -> None:
    console = Console(width=100)
    findings = [Finding("cache", "/data [old] folder"), Finding("torchvision", "broken", "fault", "pip uninstall torchvision")]
    with console.capture() as capture:
        console.print(render(findings))
    text = capture.get()
    assert "/data [old] folder" in text
    assert "fault" in text
    assert "pip uninstall torchvision" in text
