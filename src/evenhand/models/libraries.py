"""What diffusers and transformers say: kept quiet where a user of ours cannot act on it, cut to a line where one can."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

# What diffusers, transformers and what they are built on raise on a folder that is not what it says: anything. The tokenizers library
# raises Exception itself, strict settings a class of their own, and an absent library ImportError.
LOAD_ERRORS = (Exception,)


def brief(error: BaseException) -> str:
    """The first line of what a library says, without a final full stop."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return f"no {shortened(lines[0])}" if isinstance(error, KeyError) else shortened(lines[0].rstrip(".:"))


def shortened(text: str, most: int = 300) -> str:
    """What a foreign file says, cut to ``most`` letters, and none of them one that a terminal obeys."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep advice of diffusers and transformers that a user of ours cannot act on from the terminal."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    barred = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(diffusers|transformers|huggingface_hub)(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library in barred:
            library.enable_progress_bar()
