"""Alignment in miniature: guides are softened on a tenth of the images."""

from collections.abc import Iterator

import pytest

from evenhand.alignment import softening


@pytest.fixture(autouse=True, scope="module")
def few_images() -> Iterator[None]:
    """Of the untuned model, 20 images say how certain guides are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softening, "IMAGES", 20)
        yield
