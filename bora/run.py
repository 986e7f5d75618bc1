"""The command: `python -m bora.run tau=100`, or as a sweep `python -m bora.run -m tau=0,100,inf`."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bora.config import check, config_folder, register_resolvers
from bora.errors import InputError

register_resolvers()
SHOW_TRACE = "HYDRA_FULL_ERROR" in os.environ


@hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> float:
    """One run of a sweep, or the only one; its validation perplexity, for sweepers to minimise."""
    settings = HydraConfig.get()
    sweep = settings.mode == RunMode.MULTIRUN
    try:
        # A mistake in the config is told before the imports below, which take seconds.
        check(cfg)
        from bora.results.run_directory import RunDirectory
        from bora.training import train

        folder = Path(settings.runtime.output_dir)
        summary = train(
            cfg,
            RunDirectory(folder),
            group=Path(settings.sweep.dir).name if sweep else cfg.name,
            name=folder.name if sweep else f"tau={cfg.tau:g},seed={cfg.seed}",
        )
    except Exception as error:
        if not sweep:  # Hydra would add a line of its own to one that is meant to stand alone
            leave(error)
        raise
    return summary["val_perplexity"]


def leave(error: Exception) -> None:
    """End with exit code 2 and one line on standard error, if the error is the user's to mend."""
    if SHOW_TRACE:
        return
    link: BaseException | None = error
    while link is not None and not isinstance(link, InputError):
        link = link.__cause__  # Hydra wraps what a reader or loader raises
    told = link or error
    if link is None and not isinstance(error, (HydraException, OmegaConfBaseException)):
        return
    if link is None and isinstance(error, InstantiationException) and error.__cause__ is not None:
        return  # a defect inside what was instantiated: its trace is needed
    words = str(told).split()  # Hydra's own messages take several lines
    if link is None and isinstance(error.__cause__, OmegaConfBaseException):
        words += str(error.__cause__).split()
    print("bora:", *words, file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Run the command line."""
    # Hydra would end the process with code 1 itself; with this set, errors reach us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        job()
    except Exception as error:
        leave(error)
        raise


if __name__ == "__main__":
    main()
