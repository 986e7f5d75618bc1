"""The command `bora generate RUN --task NAME --prompt TEXT`: continue prompts under tasks, side by side."""

import argparse
import json
from collections.abc import Sequence
from typing import Annotated, Any

from bora.commands.common import add_device, checked, run_parser, utf8
from bora.commands.exits import cli_errors
from bora.use.generate import Answer, generate
from bora.use.restore import restore
from bora.use.sampling import Sampling


def parser() -> argparse.ArgumentParser:
    parser = run_parser("generate", "Continue prompts under tasks of a finished run, side by side.")
    add = parser.add_argument
    several: dict[str, Any] = {"action": "append", "default": [], "type": utf8}
    add("--task", metavar="NAME", help="a task, or the beginning of its name; may be repeated", **several)
    add("--mean", action="store_true", help="continue prompts under Θ, too")
    add("--base", action="store_true", help="continue prompts under the frozen backbone, too")
    asked = "a text, a question, or JSON with the columns that the run's prompt uses; may be repeated"
    add("--prompt", metavar="TEXT", help=asked, **several)
    add("--json", action="store_true", help="print each answer as a JSON object on one line")
    for name, field in Sampling.model_fields.items():
        flag, text = f"--{name.replace('_', '-')}", field.description
        if field.annotation is bool:
            add(flag, action="store_true", help=text)
        else:
            add(flag, type=checked(Annotated[field.annotation, field]), default=field.default, metavar="N", help=text)
    add_device(parser)
    return parser


def to_json(answer: Answer) -> str:
    """Write an answer as one line of JSON."""
    content = {"sequence": answer.sequence, "text": answer.text, "ids": answer.ids, "ended": answer.ended}
    return json.dumps({"prompt": answer.prompt, **answer.speaker._asdict(), **content}, ensure_ascii=False)


def show(answers: Sequence[Answer], n_sequences: int, continued: bool) -> None:
    """Print the answers, prompt by prompt, each under its speaker's name.

    Args:
        continued: print each answer after its prompt, whose text it continues.
    """
    prompt = None
    for answer in answers:
        if answer.prompt != prompt:
            prompt = answer.prompt
            print(f"prompt: {prompt}\n")
        number = f" ({answer.sequence + 1} of {n_sequences})" if n_sequences > 1 else ""
        print(f"--- {answer.speaker}{number}\n{answer.prompt if continued else ''}{answer.text}\n")


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        options = Sampling(**{name: getattr(arguments, name) for name in Sampling.model_fields}).model_dump()
        restored = restore(arguments.run, arguments.device, arguments.dtype)
        answers = generate(
            restored, arguments.task, arguments.prompt, mean=arguments.mean, base=arguments.base, **options
        )
        if arguments.json:
            for answer in answers:
                print(to_json(answer))
        else:
            show(answers, options["num_return_sequences"], continued=not restored.tokens.answers)
