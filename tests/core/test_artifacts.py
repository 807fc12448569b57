"""What stays on disk: the old file or the new one, a whole folder or none, one owner, faults named."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evenhand.core import artifacts
from evenhand.core.artifacts import (
    append_jsonl,
    cache_folder,
    claim,
    is_disk_full,
    manifest_faults,
    new_folder,
    provenance,
    read_json,
    require_free,
    sha256_file,
    sha256_folder,
    write_atomically,
    write_bytes,
    write_json,
    write_manifest,
    write_text,
)
from evenhand.core.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("place", "name"), [(Path, "write_bytes"), (os, "fsync"), (os, "replace")])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, place, name) -> None:
    file = tmp_path / "state.json"
    write_text(file, "old")

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device") as error:
        patch.setattr(place, name, full)
        write_text(file, "new")
    assert is_disk_full(error.value) and file.read_text() == "old" and names(tmp_path) == ["state.json"]
    write_text(file, "new")
    assert file.read_text() == "new"


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path) -> None:
    file = tmp_path / "x.bin"
    write_bytes(file, b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, write)
    assert file.read_bytes() == b"old" and names(tmp_path) == ["x.bin"]


def test_json(tmp_path) -> None:
    file = tmp_path / "x.json"
    value = {
        "a": float("nan"),
        "b": [np.float32(0.5), np.int64(3), float("inf")],
        "c": np.arange(2),
        "d": Path("p"),
        4: (1, None),
        "e": "ä",
    }
    write_json(file, value)
    assert read_json(file) == {"a": None, "b": [0.5, 3, None], "c": [0, 1], "d": "p", "4": [1, None], "e": "ä"}
    assert "NaN" not in file.read_text()
    file.write_text("{")
    with pytest.raises(UserError, match=r"x.json: not valid JSON \(.*\); restore the file or make it anew"):
        read_json(file)
    with pytest.raises(UserError, match=r"y.json: no such file"):
        read_json(tmp_path / "y.json")


def test_jsonl(tmp_path) -> None:
    for step in range(3):
        append_jsonl(tmp_path / "log.jsonl", {"step": step, "loss": float("nan")})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [{"step": n, "loss": None} for n in range(3)]


def test_a_new_folder_is_whole_or_absent(tmp_path) -> None:
    def build(fail: bool) -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_text("1")
            assert not (tmp_path / "out").exists()
            if fail:
                raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        build(fail=True)
    assert names(tmp_path) == []
    build(fail=False)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["sub"]
    with pytest.raises(UserError) as error:
        build(fail=False)
    assert str(error.value) == f"{tmp_path / 'out'}: exists already; choose another output folder or remove it"


def test_a_new_folder_may_replace_an_empty_one_and_starts_clean(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    stale = tmp_path / ".out.partial"
    (stale / "images").mkdir(parents=True)
    (stale / "half.png").write_text("of a killed run")
    with new_folder(tmp_path / "out") as folder:
        assert names(folder) == [".lock"]
        (folder / "x").write_text("1")
    assert names(tmp_path / "out") == ["x"] and names(tmp_path) == ["out"]


def test_require_free(tmp_path) -> None:
    require_free(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="exists already; choose another output folder or remove it"):
            require_free(taken)


def test_two_processes_cannot_share_a_folder_and_a_killed_one_frees_it(tmp_path) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from evenhand.core.artifacts import claim\n"
        "with claim(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError) as error, claim(folder):
            pass
        assert str(error.value) == f"{folder}: in use by process {other.pid}; wait for it or choose another output folder"
        other.send_signal(signal.SIGKILL)
        other.wait()
        with claim(folder) as mine:
            assert (mine / ".lock").read_text() == str(os.getpid())


def test_manifest_names_what_changed(tmp_path) -> None:
    for name in ("a", "b", "c", "sub/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content of " + name.encode())
    write_manifest(tmp_path)
    assert manifest_faults(tmp_path) == []
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"Content of b")
    (tmp_path / "sub" / "d").unlink()
    assert manifest_faults(tmp_path) == [
        f"{tmp_path / 'a'}: truncated (7 of 12 bytes)",
        f"{tmp_path / 'b'}: damaged (SHA-256 differs from the manifest)",
        f"{tmp_path / 'sub' / 'd'}: missing",
    ]
    (tmp_path / "manifest.json").unlink()
    assert manifest_faults(tmp_path) == [f"{tmp_path / 'manifest.json'}: no such file"]


def test_hashes(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "config.json").write_text("{}")
        (folder / "readme.txt").write_text(folder.name)  # not a weight, not a setting
    assert sha256_folder(folders[0]) == sha256_folder(folders[1])
    (folders[1] / "unet" / "config.json").rename(folders[1] / "config.json")
    assert sha256_folder(folders[0]) != sha256_folder(folders[1])


def test_links_are_followed_and_their_place_does_not_matter(tmp_path) -> None:
    for name in ("plain/part", "elsewhere", "linked"):
        (tmp_path / name).mkdir(parents=True)
    for folder in ("plain/part", "elsewhere"):
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "special_tokens_map.json").write_text("{}")
    (tmp_path / "linked/part").symlink_to("../elsewhere")
    assert sha256_folder(tmp_path / "linked") == sha256_folder(tmp_path / "plain")
    (tmp_path / "elsewhere/special_tokens_map.json").write_text("[]")
    assert sha256_folder(tmp_path / "linked") != sha256_folder(tmp_path / "plain")


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_without_an_end_are_refused(tmp_path, target: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/config.json").write_text("{}")
    (tmp_path / "a/b/again").symlink_to(target)
    with pytest.raises(UserError, match="again: a link that leads back to a folder around it") as error:
        sha256_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_one_folder_may_be_linked_twice_and_a_link_to_nothing_is_no_file(tmp_path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/config.json").write_text("{}")
    before = sha256_folder(tmp_path)
    for name in ("vae", "vae_2"):
        (tmp_path / name).symlink_to("weights")
    (tmp_path / "config.json").symlink_to("nowhere.json")
    assert sha256_folder(tmp_path) != before


def test_provenance() -> None:
    facts = provenance(seed=3)
    assert facts["seed"] == 3 and facts["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(facts))["made_at"].endswith("+00:00")


def test_provenance_without_git(monkeypatch) -> None:
    def absent(*args: object, **options: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(artifacts.subprocess, "run", absent)
    assert provenance()["git"] is None


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("writing: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "x"), False),
        (ValueError("x"), False),
    ],
)
def test_is_disk_full(error, full) -> None:
    assert is_disk_full(error) is full


def test_cache_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    assert cache_folder("latents") == tmp_path / "cache" / "latents" and (tmp_path / "cache" / "latents").is_dir()
    monkeypatch.delenv("EVENHAND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("latents") == tmp_path / "xdg" / "evenhand" / "latents"


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_that_another_editor_saved(tmp_path: Path, codec: str) -> None:
    (tmp_path / "x.json").write_bytes('{"a": "ä"}'.encode(codec))
    assert read_json(tmp_path / "x.json") == {"a": "ä"}


@pytest.mark.parametrize("data", ['{"a": "ä"}'.encode("cp1252"), b"[" * 200_000, b"9" * 5000])
def test_json_that_is_none_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.json: not valid JSON \(.*\); restore the file or make it anew"):
        read_json(tmp_path / "x.json")
