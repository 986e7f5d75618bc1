"""The console script `bora`: `bora run …` is `python -m bora.commands.run …`."""

import runpy
import sys

import bora

# A module of bora.commands, and what it is for.
COMMANDS = {
    "run": "train, or sweep with -m: bora run tau=100",
    "ls": "list the runs below a folder: bora ls multirun",
    "report": "make tables, figures and a page from sweeps: bora report multirun/stdlib-opt_mini",
    "generate": "let tasks continue a prompt: bora generate RUN --task a --prompt b",
    "evaluate": "score new text, and find its likeliest task: bora evaluate RUN --data b.csv",
    "adapt": "fit new tasks from a run's prior: bora adapt RUN OUT --data new.csv",
    "export": "write PEFT adapters, or a merged model: bora export RUN OUT",
    "doctor": "count or measure what a run costs: bora doctor model=opt_mini tau=100",
    "completion": 'complete settings with TAB: eval "$(bora completion)"',
}


def main() -> None:
    """Hand the arguments to the command named first."""
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
    # As `python -m` does, so that DDP starts a run's other processes in the same way.
    runpy.run_module(f"bora.commands.{command}", run_name="__main__", alter_sys=True)
