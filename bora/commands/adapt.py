"""The command `bora adapt RUN OUT --data FILE`: fit new tasks from a finished run's prior."""

import argparse

from bora.commands.common import COUNT, add_table, checked, columns_of, read_texts, run_parser
from bora.commands.exits import cli_errors
from bora.config.schema import Positive, Seed
from bora.lib.console import tell
from bora.lib.files import user_path, write_folder
from bora.use.adapt import adapt, describe_epochs, write_adapted
from bora.use.evaluation_files import hash_texts
from bora.use.new_tasks import encode_documents
from bora.use.restore import restore


def parser() -> argparse.ArgumentParser:
    parser = run_parser("adapt", "Fit new tasks from a finished run's prior, with Θ fixed.")
    add = parser.add_argument
    add("out", type=user_path, metavar="OUT", help="folder to write to, empty or new")
    add_table(parser)
    add("--tau", type=checked(Positive), metavar="TAU", help="precision of the prior (the run's)")
    add("--epochs", **COUNT, help="passes over the documents (cross-validated)")
    add("--lr", type=checked(Positive), default=1e-3, metavar="LR", help="learning rate (1e-3)")
    add("--batch-size", **COUNT, default=16, help="documents in a step (16)")
    add("--seed", type=checked(Seed), default=0, metavar="N", help="seed of the documents' order (0)")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        table = read_texts(arguments.data, columns_of(arguments, need_task=True))
        with write_folder(arguments.out) as folder:
            tell(f"loading {arguments.run}")
            restored = restore(arguments.run)
            tau = float(restored.summary["tau"]) if arguments.tau is None else arguments.tau
            options = {name: getattr(arguments, name) for name in ("epochs", "lr", "batch_size", "seed")}
            documents = encode_documents(restored, table)
            tell(documents.describe())
            model, about = adapt(restored, documents, tau, **options)
            write_adapted(model, restored, documents, about | {"data_sha256": hash_texts(table)}, folder)
        print(describe_epochs(about["epochs"], about["held_out_nll"]))
        distances = model.adapters.distances()
        for name, n, distance in zip(model.tasks, model.task_documents.tolist(), distances, strict=True):
            print(f"{name}: {n} documents, ‖θ−Θ‖ {distance:.3f}")
        print(f"adapted: {arguments.out.resolve()}")
