"""`python -m bora.report` is `bora report`."""

import importlib

# By its name: the commands stand above the report, which knows nothing of them.
importlib.import_module("bora.commands.report").main()
