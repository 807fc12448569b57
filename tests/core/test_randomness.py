"""Named generators: equal names repeat, different names differ, the global state is left alone."""

import hashlib

import numpy as np
import torch

from evenhand.core.randomness import derive_seed, generator, torch_generator


def test_every_part_of_the_name_counts() -> None:
    seeds = {
        derive_seed(0, "noise"),
        derive_seed(1, "noise"),
        derive_seed(0, "split"),
        derive_seed(0, "noise", 1),
        derive_seed(0, "noise", 1, 1),
        derive_seed(0, "noise", 11),
        derive_seed(0, "noise", "a"),
    }
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "noise", 1) == derive_seed(0, "noise", "1")  # a sample id read from a file is text


def test_seeds_are_those_of_the_written_rule() -> None:
    """BLAKE2b of the parts joined by 0x1f, top bit cut off: results made today must be repeatable tomorrow."""
    digest = hashlib.blake2b(b"3\x1fsplit\x1fp17", digest_size=8).digest()
    assert derive_seed(3, "split", "p17") == int.from_bytes(digest, "little") // 2


def test_generators_repeat_and_leave_global_state_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    assert (generator(0, "a", 5).random(8) == generator(0, "a", 5).random(8)).all()
    assert not (generator(0, "a", 5).random(8) == generator(0, "a", 6).random(8)).any()
    first, second = (torch.randn(8, generator=torch_generator(0, "a", 5)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, torch.randn(8, generator=torch_generator(1, "a", 5)))
    assert (before[0] == np.random.get_state()[1]).all() and torch.equal(before[1], torch.get_rng_state())  # noqa: NPY002
