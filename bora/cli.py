"""The console script `bora`."""

import importlib
import runpy
import sys

import bora
from bora.commands import COMMANDS
from bora.commands.exits import cli_errors


def main() -> None:
    """Run the command; report an error that the user can fix in a line."""
    with cli_errors():  # also those of --help and of imports
        hand_on()


def hand_on() -> None:
    """Run the command that the first argument names, or list the commands."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: bora COMMAND …\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<11}{purpose}")
        return
    if arguments[0] == "--version":
        print(f"bora {bora.__version__}")
        return
    command = arguments[0]
    if command not in COMMANDS:
        print(f"bora: no command {command!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [sys.argv[0], *arguments[1:]]
    if command == "run":  # like `python -m`, so that DDP starts a run's other processes in the same way
        runpy.run_module("bora.commands.run", run_name="__main__", alter_sys=True)
    else:
        importlib.import_module(f"bora.commands.{command}").main()
