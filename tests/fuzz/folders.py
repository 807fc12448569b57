"""Ways to change a model's folder; each answers whether it must draw, be refused, or may do either."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

DRAWS, REFUSE, EITHER = "draws", "refuse", "either"
MARKER = "code-was-run"
UNET, VAE, TEXT = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
WEIGHTS = (UNET, VAE, TEXT)
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
_ODD: tuple[Any, ...] = (
    None,
    "x",
    "",
    [],
    {},
    [1],
    True,
    False,
    0,
    -1,
    1,
    3,
    7,
    64,
    0.5,
    -0.5,
    1e-30,
    1e308,
    2**70,
    float("nan"),
    float("inf"),
    [4, 8, 16],
)
_OTHERS = (  # pipelines and parts that are no Stable Diffusion
    "FluxPipeline", "StableDiffusionXLPipeline", "DDPMPipeline", "ImagenPipeline", "", "os.system", 7, None, ["StableDiffusionPipeline"],
)  # fmt: skip
_PARTS = (
    ("unet", ["diffusers", "UNet2DModel"]), ("unet", ["os", "system"]), ("vae", ["diffusers", "AutoencoderTiny"]), ("unet", [None, None]),
    ("text_encoder", ["transformers", "T5EncoderModel"]), ("scheduler", ["diffusers", "FlowMatchEulerDiscreteScheduler"]),
    ("vae", ["here", "Odd"]), ("unet", "UNet2DConditionModel"), ("vae", ["diffusers", "NoSuchClass"]), ("tokenizer", [None, None]),
)  # fmt: skip
_SCHEDULERS = (
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DDPMScheduler",
    "UniPCMultistepScheduler",
)


def rewrite(path: Path, data: bytes | str) -> None:
    """Write a file anew: it may be a link to the folder that all cases share."""
    path.unlink(missing_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    rewrite(path, json.dumps(content))


def tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change a weight file."""
    found = load_file(path)
    change(found)
    rewrite(path, save(found, metadata={"format": "pt"}))


def _plain(draw: random.Random, model: Path) -> str:
    return DRAWS


def _delete(draw: random.Random, model: Path) -> str:
    file = draw.choice(sorted(path for path in model.rglob("*") if path.is_file()))
    file.unlink()
    return EITHER if file.parent.name == "tokenizer" else REFUSE


def _delete_part(draw: random.Random, model: Path) -> str:
    shutil.rmtree(model / draw.choice(["unet", "vae", "text_encoder", "tokenizer", "scheduler"]))
    return REFUSE


def _cut(draw: random.Random, model: Path) -> str:
    file = draw.choice(sorted(path for path in model.rglob("*") if path.is_file()))
    data = file.read_bytes()
    rewrite(file, data[: draw.choice([0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 3])])
    return EITHER if file.parent.name == "tokenizer" else REFUSE


def _flip(draw: random.Random, model: Path) -> str:
    file = draw.choice(sorted(path for path in model.rglob("*") if path.is_file()))
    data = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 5])):
        data[draw.randrange(min(len(data), draw.choice([40, 2000, 10**7])))] ^= 1 << draw.randrange(8)
    rewrite(file, bytes(data))
    return EITHER


def _garbage(draw: random.Random, model: Path) -> str:
    """Something else in the place of a file."""
    file = model / draw.choice(["model_index.json", *CONFIGS, *WEIGHTS])
    ways = [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe{\x00}\x00",
        b"{}",
        b"7",
        pickle.dumps({"a": 1}),
        b"version https://git-lfs.github.com/spec/v1\n",
    ]
    if draw.random() < 0.15:
        file.unlink()
        file.mkdir()
        return REFUSE
    content = draw.choice(ways)
    rewrite(file, content)
    return EITHER if content == b"{}" else REFUSE


def _key(draw: random.Random, model: Path) -> str:
    """One key of a configuration dropped, or of another type."""
    path = model / draw.choice(CONFIGS)

    def change(content: dict[str, Any]) -> None:
        name = draw.choice(sorted(content))
        if draw.random() < 0.25:
            del content[name]
        else:
            content[name] = draw.choice(_ODD)

    edit(path, change)
    return EITHER


def _unknown_key(draw: random.Random, model: Path) -> str:
    edit(model / draw.choice(CONFIGS[:3]), lambda content: content.update({"a_key_of_tomorrow": draw.choice(_ODD[:10])}))
    return EITHER


def _variant(draw: random.Random, model: Path) -> str:
    """Half precision as the hub holds it, under its own file names or not."""
    kind = draw.choice([torch.float16, torch.bfloat16])
    named = draw.random() < 0.6
    for name in WEIGHTS:
        tensors(
            model / name,
            lambda found: found.update({key: value.to(kind) if value.is_floating_point() else value for key, value in found.items()}),
        )
        if named:
            (model / name).rename((model / name).with_suffix(".fp16.safetensors"))
    return EITHER if named and kind == torch.bfloat16 else DRAWS


def _one_variant(draw: random.Random, model: Path) -> str:
    path = model / draw.choice(WEIGHTS)
    path.rename(path.with_suffix(".fp16.safetensors"))
    return EITHER


def _mixed_precision(draw: random.Random, model: Path) -> str:
    tensors(
        model / draw.choice(WEIGHTS), lambda found: found.update({key: value.half() for key, value in found.items() if draw.random() < 0.5})
    )
    return EITHER


def _not_finite(draw: random.Random, model: Path) -> str:
    value = draw.choice([float("nan"), float("inf")])
    name, keys = draw.choice(
        [
            (UNET, ("conv_in.weight", "conv_out.bias")),
            (VAE, ("decoder.conv_in.weight", "decoder.conv_out.bias")),
            (TEXT, ("final_layer_norm.weight",)),
        ]
    )

    def change(found: dict[str, torch.Tensor]) -> None:
        key = next(full for full in found if full.endswith(draw.choice(keys[:1])))
        found[key].view(-1)[0] = value

    tensors(model / name, change)
    return REFUSE


def _huge(draw: random.Random, model: Path) -> str:
    tensors(model / draw.choice(WEIGHTS), lambda found: found.update({key: value * 1e30 for key, value in found.items()}))
    return EITHER


def _zeros(draw: random.Random, model: Path) -> str:
    tensors(model / UNET, lambda found: found.update({key: value * 0 for key, value in found.items()}))
    return EITHER


def _missing_tensor(draw: random.Random, model: Path) -> str:
    tensors(model / draw.choice(WEIGHTS), lambda found: found.pop(draw.choice(sorted(key for key in found if "position_ids" not in key))))
    return REFUSE


def _further_tensor(draw: random.Random, model: Path) -> str:
    if draw.random() < 0.3:
        places = torch.arange(24)[None]
        tensors(model / TEXT, lambda found: found.update({"text_model.embeddings.position_ids": places}))
        return DRAWS
    tensors(model / draw.choice(WEIGHTS), lambda found: found.update({draw.choice(["odd.weight", "a", "x" * 3000]): torch.ones(2)}))
    return REFUSE


def _shape(draw: random.Random, model: Path) -> str:
    def change(found: dict[str, torch.Tensor]) -> None:
        key = draw.choice(sorted(key for key in found if "position_ids" not in key))
        found[key] = draw.choice([torch.zeros(0), torch.ones(3, 5), torch.ones(()), found[key].flatten()[:-1].clone()])

    tensors(model / draw.choice(WEIGHTS), change)
    return REFUSE


def _old_names(draw: random.Random, model: Path) -> str:
    """The attention names of Stable Diffusion 1's first folders."""
    renames = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def change(found: dict[str, torch.Tensor]) -> None:
        for key in sorted(found):
            new = key
            for now, before in renames.items():
                new = new.replace(now, before)
            if new != key:
                found[new] = found.pop(key)

    tensors(model / VAE, change)
    return DRAWS


def _sharded(draw: random.Random, model: Path, *, fault: str = "") -> str:
    path = model / UNET
    found = load_file(path)
    path.unlink()
    names, places = sorted(found), {}
    for number, keys in enumerate((names[::2], names[1::2]), start=1):
        shard = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        rewrite(path.with_name(shard), save({key: found[key] for key in keys}, metadata={"format": "pt"}))
        places.update(dict.fromkeys(keys, shard))
    first = names[0]
    faults: dict[str, Any] = {"absent": "no-such.safetensors", "outside": "../../secret.safetensors", "pickle": "shard.bin"}
    faults |= {"number": 7, "null": None, "list": []}
    if fault == "lost tensor":
        del places[first]
    elif fault in faults:
        places[first] = faults[fault]
        if fault == "pickle":
            torch.save({first: found[first]}, path.with_name("shard.bin"))
    index: Any = {"metadata": {"total_size": 1}, "weight_map": places}
    index = {"no map": {}, "list map": {"weight_map": []}, "array": []}.get(fault, index)
    rewrite(path.with_name(f"{path.name}.index.json"), json.dumps(index)[: -5 if fault == "cut" else None])
    return REFUSE if fault else DRAWS


def _bad_shards(draw: random.Random, model: Path) -> str:
    faults = ["absent", "outside", "pickle", "number", "null", "list", "lost tensor", "no map", "list map", "array", "cut"]
    fault = draw.choice(faults)
    answer = _sharded(draw, model, fault=fault)
    return EITHER if fault == "lost tensor" else answer  # the shard still holds it


def _pickled(draw: random.Random, model: Path) -> str:
    path = model / draw.choice(WEIGHTS)
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    return REFUSE


def _linked(draw: random.Random, model: Path) -> str:
    part = model / draw.choice(["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
    part.rename(model.parent / "elsewhere")
    part.symlink_to(model.parent / "elsewhere", target_is_directory=True)
    return DRAWS


def _linked_file(draw: random.Random, model: Path) -> str:
    path = model / draw.choice([*WEIGHTS, *CONFIGS, "model_index.json"])
    blob = model.parent / "blob"
    path.rename(blob)
    path.symlink_to(blob)
    return DRAWS


def _cycle(draw: random.Random, model: Path) -> str:
    """Links that lead back, or nowhere."""
    way = draw.randrange(4)
    if way == 0:
        (model / "unet" / "again").symlink_to(model, target_is_directory=True)
        return EITHER
    path = model / draw.choice(["unet", "vae"])
    shutil.rmtree(path)
    path.symlink_to([path, model, model.parent / "nowhere", path][way])
    return REFUSE


def _class(draw: random.Random, model: Path) -> str:
    edit(model / "model_index.json", lambda content: content.update({"_class_name": draw.choice(_OTHERS)}))
    return REFUSE


def _part_class(draw: random.Random, model: Path) -> str:
    part, value = draw.choice(_PARTS)
    code = f"from pathlib import Path\nPath(__file__).parents[2].joinpath({MARKER!r}).touch()\nclass Odd: pass\n"
    rewrite(model / "vae" / "here.py", code)
    rewrite(model / "pipeline.py", code.replace("parents[2]", "parents[1]"))
    edit(model / "model_index.json", lambda content: content.update({part: value}))
    return REFUSE


def _scheduler(draw: random.Random, model: Path) -> str:
    name = draw.choice(_SCHEDULERS)
    edit(model / "model_index.json", lambda content: content.update({"scheduler": ["diffusers", name]}))
    edit(model / "scheduler/scheduler_config.json", lambda content: content.update({"_class_name": name}))
    return EITHER


def _as_on_the_hub(draw: random.Random, model: Path) -> str:
    """Parts that are listed and not there, and files that are there and not listed."""
    listed = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    }
    edit(model / "model_index.json", lambda content: content.update({key: value for key, value in listed.items() if draw.random() < 0.7}))
    for name in ("README.md", ".gitattributes", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", ".git/config"):
        if draw.random() < 0.5:
            (model / name).parent.mkdir(exist_ok=True)
            rewrite(model / name, b"x")
    return EITHER


def _run_folder(draw: random.Random, model: Path) -> str:
    """A run folder around the model, whole or not finished."""
    model.rename(model.parent / "inner")
    model.mkdir()
    finished = draw.random() < 0.5
    (model.parent / "inner").rename(model / ("model" if finished else "checkpoints"))
    return DRAWS if finished else REFUSE


def _tokenizer(draw: random.Random, model: Path) -> str:
    path = model / "tokenizer" / draw.choice(sorted(path.name for path in (model / "tokenizer").iterdir()))
    if path.name == "tokenizer_config.json":
        odd = [10**30, 0, -1, "77", None, 1, 5000, [], 2.5]
        edit(path, lambda content: content.update({"model_max_length": draw.choice(odd)}))
    elif path.suffix == ".json":
        edit(path, lambda content: _shift(content, draw))
    else:
        rewrite(path, draw.choice([b"", b"a b c d\n", b"\xff\xff\n", b"#version: 0.2\n" + b"l o\n" * 50]))
    return EITHER


def _shift(content: Any, draw: random.Random) -> None:
    """Ids that the text encoder does not have, or entries of another type."""
    vocabulary = content.get("model", {}).get("vocab") if isinstance(content.get("model"), dict) else content
    if not isinstance(vocabulary, dict) or not vocabulary:
        return
    for key in draw.sample(sorted(vocabulary), min(len(vocabulary), draw.choice([1, 50, 1000]))):
        vocabulary[key] = draw.choice([100_000, -1, 0, "x", None, 2**40, 2.5])


def _note(draw: random.Random, model: Path) -> str:
    """A damaged evenhand.json, or one with odd values."""
    odd = [
        "{",
        "[]",
        "null",
        '{"sampling": 7}',
        '{"sampling": {"steps": -1, "guidance_scale": "x"}}',
        '{"timestep_spacing": []}',
        "\ufeff{}",
        '{"guides": 3}',
    ]
    rewrite(model / "evenhand.json", draw.choice(odd))
    return EITHER


WAYS: dict[str, Callable[[random.Random, Path], str]] = {
    "plain": _plain, "file deleted": _delete, "part deleted": _delete_part, "file cut": _cut, "bits flipped": _flip, "garbage": _garbage,
    "key changed": _key, "key changed ": _key, "key changed  ": _key, "unknown key": _unknown_key, "half precision": _variant,
    "one variant file": _one_variant, "mixed precision": _mixed_precision, "not finite": _not_finite, "huge weights": _huge,
    "zeros": _zeros, "tensor missing": _missing_tensor, "tensor beside": _further_tensor, "shape": _shape, "old names": _old_names,
    "shards": _sharded, "bad shards": _bad_shards, "pickle": _pickled, "linked part": _linked, "linked file": _linked_file,
    "odd links": _cycle, "class": _class, "class of a part": _part_class, "scheduler": _scheduler, "as on the hub": _as_on_the_hub,
    "run folder": _run_folder, "tokenizer": _tokenizer, "tokenizer ": _tokenizer, "note": _note,
}  # fmt: skip
