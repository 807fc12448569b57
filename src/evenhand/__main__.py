"""``python -m evenhand``, and ``accelerate launch -m evenhand``."""

from evenhand.cli import main

main()
