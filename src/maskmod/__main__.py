"""``python -m maskmod``."""

from maskmod.cli import main

main()
