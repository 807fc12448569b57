"""Phantoms: what is drawn is what is asked for, and the oracle reads it back from pixels alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import chi2_contingency

from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.brain import HEAD_RADIUS, measures
from evenhand.cohorts.phantoms.drawing import fill, grid, moments_ellipse, overlap, reduce_to_32, smooth_field
from evenhand.cohorts.phantoms.phantom import BLOCK, parse_harder
from evenhand.core.errors import UserError
from evenhand.core.groups import Factor, Mix, observed_mix

NAMES = ["brain", "chest", "dermoscopy", "fundus"]


def right(name: str, images: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    read = MODALITIES[name].oracle(images)
    return {column: float((read[column] == table[column]).mean()) for column in MODALITIES[name].oracle_columns}


def valid(name: str, images: np.ndarray) -> float:
    return float(MODALITIES[name].oracle(images)["valid"].mean())


def blurred(images: np.ndarray) -> np.ndarray:
    sd = 0.6 * images.shape[1] / 32
    return gaussian_filter(images, (0, sd, sd, 0)[: images.ndim])


def test_the_table_of_modalities_is_the_contract() -> None:
    assert sorted(MODALITIES) == NAMES
    assert [MODALITIES[name].image_mode for name in NAMES] == ["L", "L", "RGB", "RGB"]
    assert MODALITIES["brain"].attributes == {"sex": ["male", "female"], "age_group": ["young", "old"]}
    assert MODALITIES["brain"].conditions == {"tumour": ["none", "tumour"]}
    assert "sex" in MODALITIES["fundus"].attributes and "sex" not in MODALITIES["fundus"].oracle_columns
    for name, kind in MODALITIES.items():
        assert kind.name == name
        assert set(kind.oracle_columns) <= set(kind.columns)


@pytest.mark.parametrize("name", NAMES)
def test_images_and_table_have_the_promised_form(name: str) -> None:
    kind = MODALITIES[name]
    for size in (24, 32, 48, 64):
        drawn = kind.generate(5, size=size, seed=3)
        assert drawn.images.shape == ((5, size, size) if kind.image_mode == "L" else (5, size, size, 3))
        assert drawn.images.dtype == np.float32
        assert drawn.images.min() >= 0 and drawn.images.max() <= 1
    assert list(drawn.table.columns) == ["subject_id", *kind.columns]
    assert drawn.table["subject_id"].is_unique
    for column, groups in kind.columns.items():
        assert set(drawn.table[column]) <= set(groups)


@pytest.mark.parametrize("name", NAMES)
def test_image_i_depends_on_the_seed_and_on_i_only(name: str) -> None:
    kind = MODALITIES[name]
    many = kind.generate(BLOCK + 9, seed=11)
    for n in (3, BLOCK, BLOCK + 2):
        few = kind.generate(n, seed=11)
        np.testing.assert_array_equal(few.images, many.images[:n])
        pd.testing.assert_frame_equal(few.table, many.table.iloc[:n])
    assert not np.array_equal(kind.generate(3, seed=12).images, many.images[:3])
    assert len(np.unique(many.images.reshape(len(many.images), -1), axis=0)) == len(many.images)


def test_blocks_bound_memory() -> None:
    sizes = [len(block.images) for block in MODALITIES["brain"].blocks(150, size=24)]
    assert sizes == [64, 64, 22]


def test_a_mix_sets_shares_and_the_rest_is_equal() -> None:
    table = MODALITIES["brain"].generate(2000, size=24, mix="sex=male:0.8,female:0.2", seed=1).table
    shares = {column: observed_mix(table, [column]).joint() for column in ("sex", "age_group", "tumour")}
    assert shares["sex"][("male",)] == pytest.approx(0.8, abs=0.03)  # 3.3 standard errors
    assert shares["age_group"][("old",)] == pytest.approx(0.5, abs=0.037)
    assert shares["tumour"][("tumour",)] == pytest.approx(0.5, abs=0.037)
    for a, b in (("sex", "age_group"), ("sex", "tumour"), ("age_group", "tumour")):
        assert chi2_contingency(pd.crosstab(table[a], table[b])).pvalue > 1e-3


def test_a_joint_mix_sets_prevalence_by_group() -> None:
    mix = "sex*tumour=male/tumour:0.4,male/none:0.1,female/tumour:0.05,female/none:0.45"
    drawn = MODALITIES["brain"].generate(1500, size=32, mix=mix, seed=2)
    read = MODALITIES["brain"].oracle(drawn.images)
    by_sex = read["tumour"].eq("tumour").groupby(read["sex"]).mean()
    assert by_sex["male"] == pytest.approx(0.8, abs=0.05)
    assert by_sex["female"] == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("mix", ["sex=male:1,female:0", "sex=male:1", Mix((Factor(("sex",), {("male",): 1.0}),))])
def test_an_absent_group_is_absent(mix: str | Mix) -> None:
    drawn = MODALITIES["brain"].generate(200, mix=mix)
    assert set(drawn.table["sex"]) == {"male"}
    assert set(MODALITIES["brain"].oracle(drawn.images)["sex"]) == {"male"}


def test_another_mix_keeps_the_nuisance() -> None:
    kind = MODALITIES["brain"]
    fixed = "age_group=young:1;tumour=none:1;sex="
    a, b = (kind.generate(40, mix=fixed + f"male:{share},female:{1 - share:.1f}", seed=4) for share in (0.3, 0.9))
    same = (a.table["sex"] == b.table["sex"]).to_numpy()
    assert 0 < same.sum() < 40
    np.testing.assert_array_equal(a.images[same], b.images[same])


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_reads_fresh_phantoms(name: str, size: int) -> None:
    drawn = MODALITIES[name].generate(384, size=size, seed=99)
    found = right(name, drawn.images, drawn.table)
    assert min(found.values()) >= 0.98, found
    assert valid(name, drawn.images) >= 0.98


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_tolerates_what_a_small_model_does_to_an_image(name: str) -> None:
    rng = np.random.default_rng(0)
    for size in (32, 64):
        drawn = MODALITIES[name].generate(128, size=size, seed=7)
        images, noise = drawn.images, rng.normal(0, 0.03, drawn.images.shape)
        changed = {
            "blur": blurred(images),
            "noise": images + noise,
            "low contrast": (images - 0.5) * 0.9 + 0.5,
            "high contrast": (images - 0.5) * 1.1 + 0.5,
            "dim": images * 0.9,
            "bright": images * 1.1,
            "all": (blurred(images) - 0.5) * 0.95 + 0.5 + noise,
        }
        for what, pixels in changed.items():
            found = right(name, pixels, drawn.table)
            assert min(found.values()) >= 0.95, (what, size, found)
            assert valid(name, pixels) >= 0.97, (what, size)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_other_things_are_not_valid(name: str, size: int) -> None:
    rng = np.random.default_rng(5)
    x, y = grid(size)
    radius = np.hypot(x, y)
    orange, yellow = np.array([0.8, 0.45, 0.25]), np.array([0.95, 0.8, 0.6])
    disc = np.where(radius[..., None] < 0.3, yellow, np.where(radius[..., None] < 1, orange, 0))
    others = {
        "noise": rng.random((40, size, size)),
        "colour noise": rng.random((40, size, size, 3)),
        "constant": np.broadcast_to(np.linspace(0, 1, 11)[:, None, None], (11, size, size)),
        "skin without lesion": np.broadcast_to(np.array([0.87, 0.69, 0.60]), (2, size, size, 3)),
        "blob": np.exp(-(radius**2) / rng.uniform(0.02, 1, (40, 1, 1))),
        "hole": 1 - np.exp(-(radius**2) / rng.uniform(0.02, 1, (40, 1, 1))),
        "disc": 1.0 * (radius < rng.uniform(0.3, 1, (40, 1, 1))),
        "coloured disc": disc,
        "smooth field": 0.5 + 0.25 * smooth_field(rng.standard_normal((60, 6, 6)), size),
        "gradient": np.broadcast_to((x + 1) / 2, (1, size, size)),
    }
    for other in set(NAMES) - {name}:
        others[other] = MODALITIES[other].generate(64, size=size).images
    own = MODALITIES[name].generate(64, size=size).images
    others["upside down" if name != "dermoscopy" else "negative"] = own[:, ::-1] if name == "chest" else 1 - own
    others["mostly noise"] = 0.3 * own + 0.7 * rng.random(own.shape)
    for what, images in others.items():
        assert valid(name, np.asarray(images)) <= 0.02, what


def test_pixels_that_are_not_numbers_are_not_valid() -> None:
    images = MODALITIES["brain"].generate(2).images
    images[1, 4, 4] = np.nan
    assert MODALITIES["brain"].oracle(images)["valid"].tolist() == [True, False]


def test_the_oracle_takes_no_images_and_refuses_other_shapes() -> None:
    for kind in MODALITIES.values():
        assert len(kind.oracle(np.zeros((0, 32, 32)))) == 0
        with pytest.raises(ValueError, match="the oracle reads"):
            kind.oracle(np.zeros((32, 32)))


def test_sex_leaves_no_trace_in_the_fundus() -> None:
    kind = MODALITIES["fundus"]
    male, female = (kind.generate(70, mix=f"sex={sex}:1", seed=8) for sex in ("male", "female"))
    assert set(male.table["sex"]) == {"male"} and set(female.table["sex"]) == {"female"}
    np.testing.assert_array_equal(male.images, female.images)


@pytest.mark.parametrize("name", NAMES)
def test_every_other_column_leaves_a_trace(name: str) -> None:
    kind = MODALITIES[name]
    for column in kind.oracle_columns:
        first, second = (kind.generate(8, mix=f"{column}={group}:1", seed=8).images for group in kind.columns[column][:2])
        assert np.abs(first - second).reshape(8, -1).max(axis=1).min() > 0.05, column


@pytest.mark.parametrize("harder", ["sex=female:4", {"sex=female": 4.0}])
def test_harder_widens_the_nuisance_of_one_group_only(harder: object) -> None:
    kind = MODALITIES["brain"]
    plain, hard = kind.generate(400, seed=6), kind.generate(400, seed=6, harder=harder)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(plain.table, hard.table)
    female = (plain.table["sex"] == "female").to_numpy()
    np.testing.assert_array_equal(plain.images[~female], hard.images[~female])
    corner = (slice(None), slice(0, 4), slice(0, 4))  # air: the absolute value of noise, so it grows with the root of 4
    assert hard.images[female][corner].mean() / plain.images[female][corner].mean() == pytest.approx(2, rel=0.02)
    shift = [np.stack(moments_ellipse(images[female] > 0.2)[:2]).var() for images in (plain.images, hard.images)]
    assert shift[1] / shift[0] == pytest.approx(4, rel=0.25)
    assert right("brain", hard.images, hard.table)["sex"] >= 0.98


def test_images_of_a_subject_share_anatomy_and_differ_in_pose() -> None:
    blocks = list(MODALITIES["brain"].blocks(60, size=32, seed=3, images_a_subject=3))
    images, table = blocks[0].images, blocks[0].table
    assert table["subject_id"].nunique() == 20
    assert (table.groupby("subject_id")[["sex", "age_group", "tumour"]].nunique() == 1).all(axis=None)
    assert not np.array_equal(images[0], images[1])
    radius = pd.Series(measures(images)["head_radius"])
    male = (table["sex"] == "male").to_numpy()
    within = radius[male].groupby(table["subject_id"][male]).std().mean()
    assert within < 0.5 * radius[male].std()


def test_the_head_is_as_big_as_drawn() -> None:
    drawn = MODALITIES["brain"].generate(300, size=64)
    radius = pd.Series(measures(drawn.images)["head_radius"]).groupby(drawn.table["sex"]).mean()
    for sex, drawn_radius in HEAD_RADIUS.items():
        assert radius[sex] == pytest.approx(drawn_radius, rel=0.08)  # the soft rim counts in part


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 0}, "phantom brain: n is 0; give at least 1"),
        ({"n": 2, "size": 16}, "phantom brain: size is 16; give at least 24"),
        ({"n": 2, "mix": "sexx=male:1"}, "mix: unknown attribute 'sexx'; did you mean 'sex'? There is: sex, age_group, tumour"),
        ({"n": 2, "harder": "sex=femal:2"}, "harder 'sex=femal': sex has no group 'femal'; did you mean 'female'"),
        ({"n": 2, "harder": "sexe=female:2"}, "harder 'sexe=female': unknown attribute 'sexe'; did you mean 'sex'?"),
        ({"n": 2, "harder": "sex=female"}, "cannot read '' with factor 'sex=female'; write for example 'sex=female:4'"),
        ({"n": 2, "harder": "sex=female:-1"}, "cannot read 'sex=female' with factor '-1'"),
    ],
)
def test_a_users_mistake_is_one_line(kwargs: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        MODALITIES["brain"].generate(**kwargs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_parse_harder_by_hand() -> None:
    assert parse_harder("sex=female:4; age_group=old:1.5") == {"sex=female": 4.0, "age_group=old": 1.5}
    assert parse_harder(None) == {}


def test_drawing_helpers_by_hand() -> None:
    blocks = np.arange(64 * 64, dtype=float).reshape(1, 64, 64)
    np.testing.assert_allclose(reduce_to_32(blocks)[0, 0, :2], [(0 + 1 + 64 + 65) / 4, (2 + 3 + 66 + 67) / 4])
    ring = np.array([[[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]]], dtype=bool)
    assert fill(ring).sum() == 9
    assert overlap(ring, fill(ring))[0] == pytest.approx(8 / 9)
    x, y = grid(128)
    cx, cy, covariance, _ = moments_ellipse(((x - 0.1) / 0.5) ** 2 + ((y + 0.2) / 0.3) ** 2 < 1)
    assert (cx[0], cy[0]) == (pytest.approx(0.1, abs=1e-3), pytest.approx(-0.2, abs=1e-3))
    np.testing.assert_allclose(np.sqrt(4 * np.diag(covariance[0])), [0.5, 0.3], atol=5e-3)
    field = smooth_field(np.random.default_rng(0).standard_normal((400, 9, 9)), 32)
    assert field.std() == pytest.approx(1, abs=0.02)
