"""The console script `bora`: `bora run …` is `python -m bora.run …`."""

import runpy
import sys

# Command → the module that is run, and what it is for.
COMMANDS = {
    "run": ("bora.commands.run", "train, or sweep with -m: bora run tau=100"),
    "report": ("bora.commands.report", "tables, figures and a page from sweeps: bora report multirun/stdlib-opt_mini"),
    "adapt": ("bora.use.adapt", "fit new tasks from a run's prior: bora adapt RUN OUT --data new.csv"),
    "export": ("bora.use.export", "PEFT adapters, or a merged model, from a run: bora export RUN OUT"),
    "generate": ("bora.use.generate", "let tasks continue a prompt: bora generate RUN --task a --prompt b"),
    "evaluate": ("bora.use.evaluate", "perplexity and likeliest task of new text: bora evaluate RUN --data b.csv"),
    "doctor": ("bora.commands.doctor", "this machine, and what a run would cost: bora doctor model=opt_mini tau=100"),
}


def main() -> None:
    """Hand the arguments to the command named first."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: bora COMMAND …\n")
        for command, (_, meaning) in COMMANDS.items():
            print(f"  {command:<10}{meaning}")
        return
    if arguments[0] not in COMMANDS:
        print(f"bora: no command {arguments[0]!r}; there is {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [sys.argv[0], *arguments[1:]]
    # As `python -m` does it: processes that a run starts (ddp) are started the same way again.
    runpy.run_module(COMMANDS[arguments[0]][0], run_name="__main__", alter_sys=True)
