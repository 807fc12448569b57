"""What this machine has and lacks: versions, devices, room on the disk, and traps that are known."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from evenhand.core.artifacts import cache_folder, versions

Level = Literal["ok", "note", "fault"]

_LITTLE_DISK = 5 * 2**30  # a tiny run keeps checkpoints of some MB; a Stable Diffusion run keeps two of about 10 GB each
_NO_DISK = 2**29
_NEED_TORCHVISION = {"timm": "timm", "cleanfid": "clean-fid", "torch_fidelity": "torch-fidelity"}
_REINSTALL = "install Evenhand again: pip install -c constraints.txt -e ."
_STYLES = {"ok": "green", "note": "yellow", "fault": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A ``fault`` stops Evenhand from working, a ``note`` is good to know; ``remedy`` says what to do."""

    name: str
    value: str
    level: Level = "ok"
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at this machine. Nothing is changed but for the cache folder, which is made where it is absent."""
    return [
        *_versions(),
        torchvision_finding(),
        *_needs_torchvision(),
        *_devices(),
        _threads(),
        disk_finding("disk, working folder", Path.cwd()),
        *_cache(),
    ]


def render(findings: list[Finding]) -> Table:
    """Findings as a table."""
    table = Table(title="evenhand doctor", title_justify="left")
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.level]
        table.add_row(Text(finding.level, style=style), Text(finding.name), Text(finding.value), Text(finding.remedy))
    return table


def _versions() -> list[Finding]:
    """Packages whose behaviour enters a result; an absent one is a fault."""
    found = versions().items()
    return [Finding(name, value, "fault", _REINSTALL) if value == "absent" else Finding(name, value) for name, value in found]


def torchvision_finding() -> Finding:
    """Whether an installed torchvision can be imported; one that cannot breaks transformers and diffusers too.

    It is imported in a process of its own: a failed import leaves half-registered operators behind.
    """
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "absent, and not needed")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", "import torchvision; print(torchvision.__version__)"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode == 0:
        return Finding("torchvision", f"{done.stdout.strip()}, imports; not needed")
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("torchvision", f"cannot be imported ({reason})", "fault", "pip uninstall torchvision")


def _needs_torchvision() -> list[Finding]:
    remedy = "Evenhand does not use it; it asks for torchvision, which must fit this build of torch"
    found = [package for module, package in _NEED_TORCHVISION.items() if importlib.util.find_spec(module) is not None]
    return [Finding(package, "present", "note", remedy) for package in found]


def _devices() -> list[Finding]:
    """The device that accelerate chooses, every GPU, and the precision of training with ``--precision auto``."""
    try:
        import torch
        from accelerate import PartialState

        from evenhand.engine.devices import mixed_precision
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        return [Finding("libraries", f"cannot be imported ({reason})", "fault", f"mend a fault named above, or {_REINSTALL}")]
    device = PartialState().device
    findings = [Finding("device", str(device))]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        findings.append(Finding(f"GPU {index}", f"{torch.cuda.get_device_name(index)}, {_gib(free)} of {_gib(total)} free"))
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16 with loss scaling"}[mixed_precision("auto")]
    if device.type == "cpu":
        remedy = "phantoms and images up to 64 px train on a CPU; larger models want a GPU"
        return [*findings, Finding("precision", precision, "note", remedy)]
    return [*findings, Finding("precision", precision)]


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch
    except (ImportError, OSError, RuntimeError):
        return Finding("threads", f"{cores} cores")
    threads = torch.get_num_threads()
    value = f"{threads} on {cores} cores"
    if threads > cores:
        return Finding("threads", value, "note", f"more threads than cores wait for each other; set OMP_NUM_THREADS={cores}")
    return Finding("threads", value)


def disk_finding(name: str, folder: Path) -> Finding:
    """Free disk where ``folder`` lies, and whether one may write there."""
    free = shutil.disk_usage(folder).free
    value = f"{_gib(free)} free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding(name, f"{folder} cannot be written to", "fault", "choose another folder, or change its permissions")
    if free < _NO_DISK:
        return Finding(name, value, "fault", "free some space; checkpoints and caches do not fit")
    if free < _LITTLE_DISK:
        return Finding(name, value, "note", "enough for small models; a Stable Diffusion run keeps two checkpoints of some 10 GB each")
    return Finding(name, value)


def _cache() -> list[Finding]:
    source = "EVENHAND_CACHE" if os.environ.get("EVENHAND_CACHE") else "default; set EVENHAND_CACHE to move it"
    try:
        folder = cache_folder("")
    except OSError as error:
        remedy = "set EVENHAND_CACHE to a folder that can be written to"
        return [Finding("cache", f"cannot be made ({error})", "fault", remedy)]
    return [Finding("cache", f"{folder} ({source})"), disk_finding("disk, cache", folder)]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
