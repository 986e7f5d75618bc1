"""The keywords of `bora.fit` and `bora.sweep`, each for one setting in conf/."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

from bora.config.compose import quote
from bora.config.schema import conf_folder
from bora.errors import UserError

# Keywords that are not Settings.
OWN = "task text date prompt messages levels model tau seeds output overrides".split()


class Settings(TypedDict, total=False):
    """Keyword → its type, and its setting in conf/, which has the defaults."""

    seed: Annotated[int, "seed"]
    n_tasks: Annotated[int | None, "data.n_tasks"]
    min_documents: Annotated[int | None, "data.min_documents"]
    documents_per_task: Annotated[int | None, "data.documents_per_task"]
    max_tokens: Annotated[int, "data.max_tokens"]
    batch_size: Annotated[int, "data.batch_size"]
    rank: Annotated[int, "lora.rank"]
    lr: Annotated[float | None, "optim.lr"]
    max_epochs: Annotated[int, "trainer.max_epochs"]
    device: Annotated[str, "trainer.accelerator"]


KEYS: dict[str, str] = {name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, None, None, True).items()}


def to_overrides(settings: Mapping[str, Any]) -> Iterator[str]:
    """Write keywords as the command line has them: max_epochs=4 as trainer.max_epochs=4; refuse unknown ones."""
    for name, value in settings.items():
        if name not in KEYS:
            close = difflib.get_close_matches(name, [*KEYS, *OWN], n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join([*OWN, *KEYS])}."
            raise UserError(f"there is no keyword {name}; {hint} Any other setting: overrides=['KEY=VALUE']")
        yield f"++{KEYS[name]}={to_word(value)}"


def to_word(value: Any) -> str:
    """Write a value as Hydra reads it: None as null, True as true, a list in brackets, a text literally, in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if hasattr(value, "tolist"):  # a NumPy value
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(to_word, value))}]"
    if isinstance(value, str):  # OmegaConf would interpolate ${…}
        return quote(re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", value))
    return f"{value}"


def model_overrides(model: str | Path) -> list[str]:
    """Write the choice of a model, a config in conf/model or the hub name or folder of a causal model, as overrides.

    Raises:
        UserError: it is neither a name nor a folder.
    """
    if not isinstance(model, (str, Path)):
        raise UserError(
            f"model takes a name or a folder, not a {type(model).__name__}; write a folder with save_pretrained"
        )
    model = str(model)
    known = (conf_folder() / "model" / f"{model}.yaml").is_file() and not model.startswith("_")
    return [f"model={model}"] if known else ["model=hub", f"++model.path={to_word(model)}"]
