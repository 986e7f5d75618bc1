"""`python -m bora` is `bora`."""

from bora.cli import main

main()
