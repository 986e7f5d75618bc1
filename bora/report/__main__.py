"""`python -m bora.report` is `bora report`."""

import runpy

# Not by an import: the commands stand above the report, which knows nothing of them.
runpy.run_module("bora.commands.report", run_name="__main__", alter_sys=True)
