"""Peak memory of train, generate and audit on a Stable Diffusion 1.5 folder at 512 px, as the hub holds it.

    python benchmarks/full_size.py --work runs/full-size
    python benchmarks/full_size.py --work runs/full-size --baseline CHECKOUT/src

The weights are random: only memory and time are measured. The folder has what older folders on the hub have: half-precision weights in
files of the ``fp16`` variant, the autoencoder's attention under its names before diffusers 0.18, ``position_ids`` in the text encoder, and
a safety checker. ``--baseline`` measures the same commands with another version of Evenhand, which is given the same configuration in
float32 under today's names. Each command runs in a process of its own; peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import read_json, write_json

SIDE, IMAGES = 512, 40
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def main() -> None:
    """Make the folder and the cohort that are missing, run the three commands, and write what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="src folder of another version to measure beside this one")
    parser.add_argument("--make", choices=("hub", "float32"), help="write this model folder and end")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.make:
        _write_folder(options.work / options.make, hub=options.make == "hub")
        return
    if not (options.work / "cohort").exists():
        write_phantoms("dermoscopy", options.work / "cohort", n=IMAGES, size=SIDE, seed=0)
    before = RESULTS / "full_size.json"
    costs = read_json(before)["costs"] if before.exists() else {}
    model = "float32" if options.baseline else "hub"
    # in a process of its own: the peak memory of a child begins with what its parent holds
    subprocess.run([sys.executable, __file__, "--work", str(options.work), "--make", model], check=True)
    costs["baseline" if options.baseline else "now"] = _measured(options.work, model, options.baseline)
    print(write_result("full_size", {"side": SIDE, "images": IMAGES, "costs": costs}, seeds=[0]).read_text())


def _measured(work: Path, model: str, source: Path | None) -> dict[str, Any]:
    """Seconds, peak memory and the end of the output of each command."""
    out = work / f"out-{model}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    run, drawn, cohort = str(out / "run"), str(out / "drawn"), str(work / "cohort")
    commands = {
        "train": [
            *("train", "--model", str(work / model), "--cohort", cohort, "--out", run),
            *("--lora", "8", "--steps", "2", "--batch-size", "1"),
        ],
        "generate": ["generate", "--model", run, "--out", drawn, "--like", cohort, "--n", "8", "--steps", "2", "--guidance-scale", "1"],
        "audit": ["audit", "--real", cohort, "--synthetic", drawn, "--out", str(out / "audit.json")],
    }
    environment = os.environ | {"EVENHAND_CACHE": str(out / "cache")} | ({"PYTHONPATH": str(source)} if source else {})
    call = "from evenhand.cli import main; main()"
    costs: dict[str, Any] = {"git": _commit(source or Path(__file__).parent)}
    for name, words in commands.items():
        start = time.perf_counter()
        with (out / f"{name}.log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-c", call, *words], env=environment, stdout=log, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
        costs[name] = {
            "command": [Path(word).name if word.startswith(str(work)) else word for word in words],
            "exit": os.waitstatus_to_exitcode(status),
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_gib": round(used.ru_maxrss / 2**20, 2),
            "last_line": ((out / f"{name}.log").read_text().splitlines() or [""])[-1].replace(f"{work}/", "")[:200],
        }
        print(name, costs[name], flush=True)
    return costs


def _commit(folder: Path) -> str:
    return subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def _write_folder(folder: Path, *, hub: bool) -> None:
    """Stable Diffusion 1.5's configuration with random weights."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    torch.manual_seed(0)
    dtype, variant = (torch.float16, "fp16") if hub else (torch.float32, None)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # its defaults are those of Stable Diffusion 1
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=SIDE,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768, vocab_size=49408
    )
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", CLIPTextModel(text))):
        part.to(dtype).save_pretrained(partial / name, variant=variant)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False
    ).save_pretrained(partial / "scheduler")
    _tokenizer().save_pretrained(partial / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    if hub:
        _make_old(partial)
        index |= {
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        }
    write_json(partial / "model_index.json", index)
    partial.rename(folder)


def _make_old(folder: Path) -> None:
    """Names of tensors and files as older folders have them."""
    weights = folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({_old_name(name): tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    text = folder / "text_encoder" / "model.fp16.safetensors"
    tensors = load_file(text)
    prefix = next(name for name in tensors if name.endswith("position_embedding.weight")).removesuffix("position_embedding.weight")
    save_file({**tensors, f"{prefix}position_ids": torch.arange(77)[None]}, text, metadata={"format": "pt"})
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=768))
    checker.to(torch.float16).save_pretrained(folder / "safety_checker", variant="fp16")
    (folder / "feature_extractor").mkdir()
    write_json(folder / "feature_extractor" / "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224})


def _old_name(name: str) -> str:
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _tokenizer() -> CLIPTokenizer:
    """CLIP's size of vocabulary without its merges, which cannot be had offline: every letter is a token."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"unused{i}</w>" for i in range(49406 - len(tokens))]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


if __name__ == "__main__":
    main()
