"""The intensity window of an import: which grey values become black and white, from literals."""

import numpy as np
import pytest

from evenhand.cohorts.windows import Levels, Window, choose_window

RAMP = np.arange(4096, dtype=np.uint16)
CT = np.arange(-1024, 3072, dtype=np.int16)


def window(*images: np.ndarray, declared: tuple[float, float] | None = None) -> tuple[float, float]:
    levels = Levels()
    for image in images:
        levels.add(image, declared)
    found = choose_window(levels)
    return found.low, found.high


def spoiled(image: np.ndarray, number: int, value: int, times: int = 4) -> np.ndarray:
    image = np.tile(image, times)
    image[:number] = value
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RAMP, (0, 4095)),
        (RAMP // 4, (0, 1023)),
        (RAMP * 4, (0, 16383)),
        (RAMP * 16, (0, 65535)),  # twelve bits shifted to the upper end
        (RAMP[:3001], (0, 4095)),
        (RAMP[:256], (0, 255)),
        (np.array([0, 65535] * 50, np.uint16), (0, 65535)),  # a mask has no range
        (np.zeros(9, np.uint16), (0, 1)),
        (np.full(9, 512, np.uint16), (0, 1023)),
        (RAMP.astype(np.uint32) * 2**20, (0, 2**32 - 1)),
    ],
)
def test_unsigned_values_keep_0_as_black(image, expected) -> None:
    assert window(image) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (CT, (-1024, 3071)),
        (CT.astype(np.int32) * 1000, (-1024000, 3071000)),
        (np.array([-5, 7], np.int16), (-5, 7)),
        (np.full(9, -7, np.int16), (-7, -6)),
        (spoiled(CT, 9, -2000), (-2000, 3071)),  # no further from the others than they spread
        (spoiled(CT, 8000, -32768), (-1024, 3071)),  # padding, however much there is
    ],
)
def test_signed_values_use_their_range(image, expected) -> None:
    assert window(image) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (spoiled(RAMP, 1, 65535), (0, 4095)),  # one hot pixel
        (spoiled(RAMP, 2000, 65535), (0, 4095)),  # a burned-in marker, one value alone
        (np.concatenate([np.tile(RAMP, 4), np.array([65535, 60001, 50003], np.uint16)]), (0, 4095)),  # several hot pixels
        (np.concatenate([np.tile(CT, 4), np.array([30000, 31000, -31000, -32000], np.int16)]), (-1024, 3071)),
        (RAMP + np.uint16(30000), (30000, 34095)),  # CT stored with an offset, as DeepLesion is
        (spoiled(RAMP + np.uint16(30000), 500, 0), (30000, 34095)),  # with padding
        (RAMP[1500:2400], (1500, 2399)),
    ],
)
def test_few_pixels_do_not_make_all_images_black(image, expected) -> None:
    assert window(image) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.linspace(0, 1, 999, dtype=np.float32), (0, 1)),
        (np.linspace(0, 0.5, 999), (0, 1)),
        (np.linspace(0, 1000.5, 999), (0, 1000.5)),
        (np.linspace(-2.5, 1.25, 999), (-2.5, 1.25)),
        (np.arange(4096, dtype=np.float32), (0, 4095)),  # whole numbers are no fractions
        (np.linspace(0, 0.125, 999), (0, 0.125)),
        (np.full(9, 0.5), (0, 1)),
    ],
)
def test_floats(image, expected) -> None:
    assert window(image) == pytest.approx(expected)


def test_one_window_for_all_images_whatever_their_order() -> None:
    images = [RAMP[:100], RAMP[:5], RAMP[1000:4000]]
    assert window(*images) == window(*images[::-1]) == (0, 4095)


def test_a_declared_range_comes_first_unless_the_pixels_contradict_it() -> None:
    assert window(RAMP[:1500], declared=(0, 4095)) == (0, 4095)
    assert window(RAMP[:1500], declared=(0, 1023)) == (0, 2047)
    levels = Levels()
    levels.add(RAMP[:1500], (0, 4095))
    levels.add(RAMP[:1500], (0, 16383))
    assert choose_window(levels) == Window(0, 16383, "the range that the files declare")
    levels.add(RAMP[:1500], None)  # not all of them declare one
    assert choose_window(levels) == Window(0, 2047, "the range of the data, 0 to 1499")


def test_memory_is_bounded_whatever_the_values() -> None:
    levels = Levels()
    random = np.random.default_rng(0)
    for _ in range(4):
        levels.add(random.normal(size=200_000).astype(np.float32), None)
        levels.add(random.integers(-(2**31), 2**31, 200_000), None)
    assert levels.counts.sum() == 1_600_000 and len(levels.values) < 400_000


def test_scaling_and_clipping() -> None:
    window = Window(-100, 300, "")
    values = np.array([-32768, -101, -100, 0, 100, 300, 301], np.int16)
    np.testing.assert_allclose(window.scale(values), [0, 0, 0, 0.25, 0.5, 1, 1])
    assert window.outside(values) == 3
    np.testing.assert_allclose(Window(0, 2**32 - 1, "").scale(np.array([0, 2**31, 2**32 - 1], np.uint32)), [0, 0.5, 1], atol=1e-6)
    assert choose_window(Levels()).high == 255
