"""`python -m bora.report` is `bora report`."""

import importlib

# Imported by name: the commands are above the report, which must not depend on them.
importlib.import_module("bora.commands.report").main()
