"""What waiting OpenMP threads cost: the demo's denoiser, images per second, on an idle and on a busy machine.

Settings take turns within every round, since what else runs on the machine changes from minute to minute; the load average of the last
minute and the processes that could run stand beside every figure.

    python benchmarks/threads.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BATCH, STEPS = 50, 25  # as generation draws


def main() -> None:
    """Run the rounds, print a table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--busy", type=int, default=2, help="processes that compute without end, in half of the measurements")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_measured(options.seconds)))
        return
    runs: list[dict[str, Any]] = []
    for round_ in range(options.rounds):
        for busy in (0, options.busy):
            for name in list(SETTINGS)[:: 1 if round_ % 2 == 0 else -1]:
                runs.append({"round": round_, "busy_processes": busy, "setting": name, **_run(name, busy, options.seconds)})
                print(runs[-1], flush=True)
    _report(runs, options)


def _report(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    from common import write_result

    medians = {
        f"{busy} busy processes": {
            name: statistics.median(run["images_per_second"] for run in runs if (run["setting"], run["busy_processes"]) == (name, busy))
            for name in SETTINGS
        }
        for busy in (0, options.busy)
    }
    settings = {key: value for key, value in vars(options).items() if key != "child"}
    payload = {"settings": settings, "batch": BATCH, "solver_steps": STEPS, "median_images_per_second": medians, "runs": runs}
    path = write_result("threads", payload, seeds=[0])
    print(json.dumps(medians, indent=2))
    print(f"written: {path}")


def _run(name: str, busy: int, seconds: float) -> dict[str, Any]:
    """One measurement in a process of its own, beside ``busy`` others."""
    free = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", "--seconds", str(seconds)]
        done = subprocess.run(command, env=free | SETTINGS[name], capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return dict(json.loads(done.stdout))


def _measured(seconds: float) -> dict[str, Any]:
    """Images per second of a network of the demo's size; its weights are random, which changes nothing of the time."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    latents, text = torch.randn(BATCH, 4, 16, 16), torch.randn(BATCH, 16, 64)
    evaluations, load = 0, os.getloadavg()[0]
    with torch.no_grad():
        unet(latents, 500, encoder_hidden_states=text)
        running = _running()
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            unet(latents, 500, encoder_hidden_states=text)
            evaluations += 1
        elapsed = time.perf_counter() - started
    return {
        "images_per_second": round(evaluations * BATCH / STEPS / elapsed, 2),
        "threads": torch.get_num_threads(),
        "load_average": round(load, 2),
        "runnable": running,
    }


def _running() -> int | None:
    """Processes that run or could run, this one among them, where the system says so."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except OSError:
        return None


if __name__ == "__main__":
    main()
