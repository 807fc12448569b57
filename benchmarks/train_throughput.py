"""Training throughput: our loop beside diffusers' ``examples/text_to_image/train_text_to_image.py``.

Both fine-tune the same tiny model on the same images and prompts, with the same batch size, learning rate, optimizer, clipping and
weight average, in float32, each run in a process of its own, in turn. Only training steps are timed: start-up, the first steps and
what comes after the last are left out. Our cache of latents and text embeddings is filled before the first step; its time is given
apart, and counted in the figure for a run of 2000 steps. Samples a second of processor time are given beside those of wall time:
where other programs share the machine, only the former compare well.

    python benchmarks/train_throughput.py --diffusers-script PATH/TO/train_text_to_image.py

The script needs torchvision for five transforms only; a stand-in of the same effect is given to its process, since a torchvision
that fits a CPU build of torch is not always at hand. Images are in colour because the script converts every image to RGB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from evenhand.core.artifacts import sha256_file

LONG_RUN = 2000


class _Finished(Exception):
    """The last step is done; saving the model is not measured."""


@dataclass
class Clock:
    """Time and loss after every step; ends the run after the last one."""

    total: int
    times: list[float]
    processor_times: list[float]
    losses: list[float]
    cache_seconds: float = 0.0
    cache_processor_seconds: float = 0.0

    def tick(self, loss: float) -> None:
        """Note one step."""
        self.times.append(time.perf_counter())
        self.processor_times.append(time.process_time())
        self.losses.append(loss)
        if len(self.times) == self.total:
            raise _Finished


def main() -> None:
    """Run the pairs, print a table, write the result."""
    options = _options()
    if options.child:
        _child(json.loads(options.child.read_text()))
        return
    if options.diffusers_script is None:
        raise SystemExit("--diffusers-script: name diffusers' examples/text_to_image/train_text_to_image.py")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(work, options)
        load_before = os.getloadavg()[0]
        pairs = []
        for pair in range(options.pairs):
            order = ("evenhand", "diffusers") if pair % 2 == 0 else ("diffusers", "evenhand")
            runs = {side: _run(side, options.seed + pair, work, options) for side in order}
            pairs.append(runs)
            wall, processor = _line(runs, options, "times"), _line(runs, options, "processor_times")
            print(f"pair {pair + 1}: {wall} (wall), {processor} (processor)", flush=True)
    payload = _summary(pairs, options)
    payload["load_average_before"] = round(load_before, 2)
    path = write_result("train_throughput", payload, seeds=[options.seed + pair for pair in range(options.pairs)])
    print(json.dumps({key: value for key, value in payload.items() if key == "loss" or key.startswith("median")}, indent=2))
    print(f"written: {path}")


def _line(runs: dict[str, dict[str, Any]], options: argparse.Namespace, clock: str) -> str:
    ours, theirs = (_rate(runs[side], options, clock) for side in ("evenhand", "diffusers"))
    return f"{ours:.1f} / {theirs:.1f} samples/s = {ours / theirs:.2f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--diffusers-script", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="measured steps of a run")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _prepare(work: Path, options: argparse.Namespace) -> None:
    """One cohort, the same images as an imagefolder, and one model that both sides start from."""
    from evenhand.cohorts.cohort import Cohort
    from evenhand.cohorts.phantoms.cohort import write_phantoms
    from evenhand.models.tiny import TinySettings, init_tiny_latent

    cohort = write_phantoms("dermoscopy", work / "drawn", n=options.images, size=options.size, seed=options.seed)
    # the script knows no splits: every image is a training image, on both sides
    Cohort(cohort.schema, cohort.table.assign(split="train"), cohort.root).save(work / "cohort")
    folder = work / "imagefolder"
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as metadata:
        for image, prompt in zip(cohort.table["image"], cohort.table["prompt"], strict=True):
            name = Path(image).name
            (folder / name).write_bytes((cohort.root / image).read_bytes())
            metadata.write(json.dumps({"file_name": name, "text": prompt}) + "\n")
    # a few steps suffice: what the networks have learnt does not change how long they take
    init_tiny_latent(TinySettings(cohort=work / "cohort", out=work / "model", seed=options.seed, clip_steps=10, autoencoder_steps=30))


def _run(side: str, seed: int, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    place = work / f"{side}-{seed}"
    place.mkdir()
    job = {"side": side, "seed": seed, "work": str(work), "place": str(place), "script": str(options.diffusers_script.resolve())}
    job |= {"steps": options.steps + options.warm_up, "batch_size": options.batch_size, "size": options.size}
    job |= {"learning_rate": options.learning_rate}
    (place / "job.json").write_text(json.dumps(job))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "EVENHAND_CACHE": str(place / "cache"),
        "HF_DATASETS_CACHE": str(place / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(place / "job.json")]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads((place / "run.json").read_text())


def _child(job: dict[str, Any]) -> None:
    clock = Clock(job["steps"], [], [], [])
    try:
        {"evenhand": _ours, "diffusers": _theirs}[job["side"]](job, clock)
    except _Finished:
        Path(job["place"], "run.json").write_text(json.dumps(vars(clock)))


def _ours(job: dict[str, Any], clock: Clock) -> None:
    from evenhand.training import data, loop
    from evenhand.training.settings import TrainSettings

    step, fill = loop.training_step, data.latent_cache

    def timed_step(*given: Any) -> float:
        loss = step(*given)
        clock.tick(loss)
        return loss

    def timed_fill(*given: Any) -> Any:
        started, busy = time.perf_counter(), time.process_time()
        cache = fill(*given)
        clock.cache_seconds, clock.cache_processor_seconds = time.perf_counter() - started, time.process_time() - busy
        return cache

    loop.training_step, data.latent_cache = timed_step, timed_fill
    settings = {key: job[key] for key in ("steps", "batch_size", "learning_rate", "seed")}
    work = Path(job["work"])
    loop.train(
        TrainSettings(
            model=str(work / "model"),
            cohort=work / "cohort",
            out=Path(job["place"]) / "run",
            caption_dropout=0.0,
            precision="no",
            **settings,
        )
    )


def _theirs(job: dict[str, Any], clock: Clock) -> None:
    import datasets  # noqa: F401  these look for torchvision when they are imported, and must not find the stand-in
    import diffusers.utils
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from tqdm.auto import tqdm
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    sys.modules |= _torchvision_stand_in()
    diffusers.utils.check_min_version = lambda version: None
    shown = tqdm.set_postfix

    def timed_postfix(bar: Any, *given: Any, **figures: Any) -> None:
        shown(bar, *given, **figures)
        if "step_loss" in figures:
            clock.tick(figures["step_loss"])

    tqdm.set_postfix = timed_postfix
    work, place = Path(job["work"]), Path(job["place"])
    sys.argv = [
        job["script"],
        f"--pretrained_model_name_or_path={work / 'model'}",
        f"--train_data_dir={work / 'imagefolder'}",
        f"--output_dir={place / 'out'}",
        f"--resolution={job['size']}",
        f"--train_batch_size={job['batch_size']}",
        f"--max_train_steps={job['steps']}",
        f"--learning_rate={job['learning_rate']}",
        f"--seed={job['seed']}",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        "--mixed_precision=no",
        "--checkpointing_steps=1000000",
        "--use_ema",
        "--foreach_ema",  # off by default, but then the difference would partly be an option not set
    ]
    runpy.run_path(job["script"], run_name="__main__")


def _torchvision_stand_in() -> dict[str, types.ModuleType]:
    """``torchvision.transforms`` as far as the script uses it: images are of the right size already, so nothing is resampled."""
    import torch
    from PIL import Image

    class Compose:
        def __init__(self, parts: Sequence[Any]) -> None:
            self.parts = parts

        def __call__(self, value: Any) -> Any:
            for part in self.parts:
                value = part(value)
            return value

    class Fixed:
        """Resize and crop of an image that has the size already."""

        def __init__(self, size: int, interpolation: Any = None) -> None:
            self.size = size

        def __call__(self, image: Image.Image) -> Image.Image:
            if image.size != (self.size, self.size):
                raise ValueError(f"the stand-in does not resample: {image.size}, not {self.size}")
            return image

    class Lambda:
        def __init__(self, function: Any) -> None:
            self.function = function

        def __call__(self, value: Any) -> Any:
            return self.function(value)

    class ToTensor:
        def __call__(self, image: Image.Image) -> torch.Tensor:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)

    class Normalize:
        def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
            self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

        def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor.sub(self.mean).div_(self.std)

    transforms = types.ModuleType("torchvision.transforms")
    modes = types.SimpleNamespace(LANCZOS="lanczos", BILINEAR="bilinear")
    for name, part in {"Compose": Compose, "Resize": Fixed, "RandomCrop": Fixed, "CenterCrop": Fixed, "Lambda": Lambda,
                       "ToTensor": ToTensor, "Normalize": Normalize, "InterpolationMode": modes}.items():  # fmt: skip
        setattr(transforms, name, part)
    package = types.ModuleType("torchvision")
    package.transforms = transforms  # type: ignore[attr-defined]
    return {"torchvision": package, "torchvision.transforms": transforms}


def _rate(run: dict[str, Any], options: argparse.Namespace, clock: str = "times") -> float:
    """Samples a second over the measured steps."""
    times = run[clock]
    return options.steps * options.batch_size / (times[-1] - times[-1 - options.steps])


def _summary(pairs: list[dict[str, dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    clocks = {"processor_time": ("processor_times", "cache_processor_seconds"), "wall_time": ("times", "cache_seconds")}
    rows = {name: [_compared(runs, options, *clock) for runs in pairs] for name, clock in clocks.items()}
    medians = {
        f"median_{ratio}_{name}": statistics.median(row[ratio] for row in found)
        for name, found in rows.items()
        for ratio in ("ratio", "ratio_of_2000_steps")
    }
    return {
        "settings": {key: value for key, value in vars(options).items() if key not in ("child", "diffusers_script")},
        "diffusers_script_sha256": sha256_file(options.diffusers_script),
        "measured": "training steps only, each run in its own process, sides in turn; float32; foreach EMA on both sides",
        "reading": "wall time compares only on an idle machine (see load_average); with one thread, processor time is wall time on one",
        **medians,
        "loss": _losses(pairs),
        "pairs": rows,
    }


def _compared(runs: dict[str, dict[str, Any]], options: argparse.Namespace, clock: str, cache_clock: str) -> dict[str, float]:
    """Samples a second of both sides, and their ratio without and with the time that our cache takes."""
    ours, theirs = _rate(runs["evenhand"], options, clock), _rate(runs["diffusers"], options, clock)
    cache, samples = runs["evenhand"][cache_clock], LONG_RUN * options.batch_size
    return {
        "evenhand_samples_per_second": ours,
        "diffusers_samples_per_second": theirs,
        "ratio": ours / theirs,
        "cache_seconds": cache,
        "ratio_of_2000_steps": samples / (cache + samples / ours) / theirs,
    }


def _losses(pairs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Mean batch loss over the last half of all runs' steps, its standard error, and the difference in standard errors."""
    found: dict[str, Any] = {}
    for side in ("evenhand", "diffusers"):
        late = np.concatenate([runs[side]["losses"][len(runs[side]["losses"]) // 2 :] for runs in pairs])
        found[side] = {"mean": float(late.mean()), "standard_error": float(late.std(ddof=1) / math.sqrt(len(late))), "n": len(late)}
    spread = math.hypot(*(found[side]["standard_error"] for side in ("evenhand", "diffusers")))
    found["difference_in_standard_errors"] = (found["evenhand"]["mean"] - found["diffusers"]["mean"]) / spread
    return found


if __name__ == "__main__":
    main()
