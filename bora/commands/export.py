"""The command `bora export RUN OUT`: write a finished run as PEFT adapters, or as a merged model; also to the hub."""

import argparse

from bora.commands.common import run_parser
from bora.commands.exits import cli_errors
from bora.errors import UserError
from bora.lib.console import tell
from bora.lib.files import user_path
from bora.use.export import export
from bora.use.hub import push_to_hub


def parser() -> argparse.ArgumentParser:
    parser = run_parser("export", "Write a run's LoRAs and the hierarchical mean as PEFT adapters, in a folder each.")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("out", type=user_path, nargs="?", metavar="OUT", help="folder to write to, empty or new")
    hub = "write to this repository on the Hugging Face hub instead"
    place.add_argument("--push-to-hub", metavar="NAMESPACE/NAME", help=hub)
    add = parser.add_argument
    add("--private", action="store_true", help="make the repository private")
    only = "export this task only (or the beginning of its name), without the mean; may be repeated"
    add("-t", "--task", action="append", dest="tasks", metavar="NAME", help=only)
    add(
        "--merge",
        action="store_true",
        help="write one task's whole model, its LoRA merged into the base model's weights",
    )
    return parser


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        tell(f"loading {arguments.run}")
        if arguments.out is None:
            repo = arguments.push_to_hub
            url = push_to_hub(arguments.run, repo, arguments.tasks, arguments.merge, arguments.private)
            print(f"repository: {url}")
            return
        if arguments.private:
            raise UserError("--private is for a repository: give --push-to-hub NAMESPACE/NAME instead of OUT")
        n = export(arguments.run, arguments.out, arguments.tasks, arguments.merge)
        print(f"{'merged model' if arguments.merge else f'{n} PEFT adapters'}: {arguments.out.resolve()}")
