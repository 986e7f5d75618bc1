"""The commands, one file each."""

# A module of bora.commands, and what it is for.
COMMANDS = {
    "run": "train, or sweep with -m: bora run tau=100",
    "ls": "list the runs below a folder: bora ls multirun",
    "report": "make tables, figures and a page from sweeps: bora report multirun/stdlib-opt_mini",
    "generate": "continue a prompt under tasks: bora generate RUN --task a --prompt b",
    "evaluate": "score new text, and find its likeliest task: bora evaluate RUN --data b.csv",
    "voices": "show how each task speaks: its own tokens, and one prompt continued by all: bora voices RUN",
    "variance": "rank columns by what they would explain: bora variance RUN --by party",
    "adapt": "fit new tasks from a run's prior: bora adapt RUN OUT --data new.csv",
    "export": "write PEFT adapters, or a merged model: bora export RUN OUT",
    "doctor": "count or measure what a run costs: bora doctor model=opt_mini tau=100",
    "completion": 'complete settings with TAB: eval "$(bora completion)"',
}
