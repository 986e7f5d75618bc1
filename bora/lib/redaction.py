"""Secrets kept out of what is written and printed: passwords in URLs, keys of the environment and of the config.

The command line's own are put into the environment before Hydra reads it (`set_aside`), so that nothing that repeats
the command line has any. What has keys is redacted by its keys and written anew (`redacted`). Only free text, the lines
of logs and errors, is searched for what looks like a secret (`redacted_words`).
"""

import argparse
import itertools
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import yaml
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString, Transformer
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from bora.errors import UserError
from bora.lib.files import write_text_atomically

# Stands where a secret stood. Plain letters: it must be a value to YAML, to Hydra's command line and in a URL alike.
MARK = "__redacted__"
# What a word in a key or an environment variable ends with that holds a secret, with anything before it: PGPASSWORD.
ENDINGS = (
    "password", "passwords", "passwd", "passphrase", "apikey", "apikeys", "accesskey", "privatekey", "secretkey",
    "apitoken", "accesstoken", "authtoken",
)  # fmt: skip
# Its last word: clientSecret, ssh.private-key, db_pass. Not "tokens", which are counted here, but where they are texts.
LAST = {
    "secret", "secrets", "token", "credential", "credentials", "auth", "authorization", "bearer", "pass", "pwd", "pat",
    "jwt", "cookie", "cookies",
}  # fmt: skip
# A key is one, but for these.
NO_SECRET_KEYS = {"public", "primary", "foreign", "sort", "group", "cache", "index", "unique", "join"}
# Where a secret lies is none.
PLACES = {"file", "path", "dir", "folder", "command", "url", "uri"}
# The same in free text.
SECRET = (
    r"(?:\w[_-]?key|secret|token|credential|password|passwd|passphrase|authorization|bearer"
    r"|(?<![A-Za-z0-9])(?:pass|pwd|pat|jwt|auth))"
)
# Characters of a secret that is looked for by itself: a shorter one would be found where it is none.
SHORTEST = 8
# Texts of the experiment, which decide its tokens: kept to the letter.
TEXTS = {"data.prompt", "data.template"}
# What the experiment is made of, where a secret of the environment can only be found by chance; options of groups too.
NAMES = re.compile(
    r"name|init_from|likelihood|data|model|lora|prior|optim|trainer|logger|experiment|sweep|.*/.*"
    r"|(?:data|model)\.(?:name|path)|data\.(?:reader\.)?(?:path|task|text|date|_target_)|model\.loader\..*"
    r"|data\.(?:order|selection|modules|split\..*)|model\.(?:dtype|attention|quantization)|(?:lora|prior|optim)\..*"
)
OVERRIDES = "hydra.overrides.task", "hydra.overrides.hydra"  # where Hydra keeps the command line

# accessToken is two words, WANDB_API_KEY three.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")
_ASIDE = re.compile(r"\$\{(?:oc\.decode:\$\{)?oc\.env:BORA_\d+_SECRET\}+")  # as set_aside writes it
# user:password@host. In a database's URL a password may have any character: it ends with the last @ of the value, or of
# the word where the URL stands in a text. Elsewhere a / ends the host, and a:b@c may come after it.
_DATABASE = re.compile(r"\A((?!https?:)[\w+.-]+://[^/?#\s:'\"]*):.*@", re.DOTALL | re.IGNORECASE)
_PASSWORD = re.compile(r"((?<!http)(?<!https)://[^/?#\s:'\"]*):[^\s'\"]*@", re.IGNORECASE)
_HTTP_PASSWORD = re.compile(r"(?<=://)([^/?#\s:]*):[^/?#\s]*@")
_ODD_PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*):(?!\d+[/?#])[^@\s]*@")  # with a / that should be %2F
_BARE_TOKEN = re.compile(r"(?<=http://|ttps://)[^/?#\s:@]+@", re.IGNORECASE)  # token@host
# Also in a fragment, in a database's options, and in what stands in a query with its signs as codes.
_QUERY = re.compile(
    rf"((?:[?&#;]|%3B|%26|%3F)[\w.-]*(?:{SECRET}|pwd|signature|\bsig)(?:=|%3D))(?:(?!%3B|%26)[^&#;\s'\"])+",
    re.IGNORECASE,
)
# key=value, {key:value} and {'key': 'value'}, as command lines and errors have it.
_PAIR = re.compile(
    rf"((?:^|[\s'\",\[{{(])[+~]*[\w./@-]*{SECRET}(?:=|:(?=\S)|['\"]: ?))(?!null\b|None\b)"
    r"(?:'[^']*'|\"[^\"]*\"|\[[^\]]*\]?|\{[^}]*\}?|[^\s'\",\]})]+)",
    re.IGNORECASE,
)
_OPTION = re.compile(
    rf"(--[\w-]*(?:{SECRET}|passwords|secrets|credentials)\s+)(?!-)[^\s'\"]+", re.IGNORECASE
)  # --password 1234

T = TypeVar("T")


def redacted(value: T, key: str = "") -> T:
    """The same with MARK in the place of secrets: in texts; in lists; in dictionaries, whose keys tell of some, too.

    Keys and numbers stay; so does a text that holds no secret, and a second time nothing changes.

    Args:
        key: where in the config the value stands; some values there are no place for secrets.
    """
    found: Any = value
    if isinstance(value, Mapping):
        found = {
            name: MARK
            if child is not None and holds_secret(str(name), child)
            else redacted(child, f"{key}.{name}".lstrip("."))
            for name, child in value.items()
        }
    elif isinstance(value, (list, tuple)):
        each = _override if key in OVERRIDES else redacted
        found = type(value)(each(child, key) for child in value)
    elif isinstance(value, str) and key not in TEXTS:
        found = _without_passwords(value)
        if not NAMES.fullmatch(key):
            found = _without_known(found)
    return found


def holds_secret(key: str, value: Any = None) -> bool:
    """Whether a key, or the name of an environment variable, is one of a secret, or lies below one that is.

    Args:
        value: what stands there; tokens that are no number may be secret ones.
    """
    return any(_names_secret(part, value) for part in key.lstrip("+~").split("."))


def _names_secret(name: str, value: Any) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or name in ("PWD", "OLDPWD") or words[-1] in PLACES:
        return False
    pairs = {" ".join(pair) for pair in itertools.pairwise(words)}
    return (
        any(word.endswith(ENDINGS) for word in words)
        or words[-1] in LAST
        or (words == ["tokens"] and not isinstance(value, (int, float)))
        or (words[-1] == "key" and len(words) > 1 and words[-2] not in NO_SECRET_KEYS)
        or any(
            f"{kind} key{s}" in pairs for kind in ("private", "secret", "api", "access") for s in ("", "s")
        )
    )


def redacted_words(text: str) -> str:
    """`redacted` for free text, which may repeat a command line: by the keys that it seems to have, too."""
    return _OPTION.sub(rf"\1{MARK}", _PAIR.sub(rf"\1{MARK}", _without_known(_without_passwords(text))))


def _override(line: str, key: str) -> str:
    """`redacted` for one of Hydra's overrides."""
    name, equals, value = line.partition("=")
    plain = name.lstrip("+~")
    return name + equals + redacted({plain: value})[plain] if equals else line


def _without_passwords(text: str) -> str:
    text = _ASIDE.sub(MARK, text)
    for pattern in (_DATABASE, _PASSWORD, _HTTP_PASSWORD, _ODD_PASSWORD):
        text = pattern.sub(rf"\1:{MARK}@", text)
    return _QUERY.sub(rf"\1{MARK}", _BARE_TOKEN.sub(f"{MARK}@", text))


def _without_known(text: str) -> str:
    """Without what the environment has under a secret's name, WANDB_API_KEY or HF_TOKEN, whatever stands around it."""
    values = {value.strip() for name, value in os.environ.items() if holds_secret(name)}
    secrets = {v for v in values if len(v) >= SHORTEST and not _is_file(v)}
    for secret in sorted(secrets | {repr(s)[1:-1] for s in secrets}, key=len, reverse=True):
        text = text.replace(secret, MARK)
    return text


def _is_file(value: str) -> bool:
    """Whether it says where a secret lies, and is none itself. One in 64 random keys begins with /, too."""
    return value[0] in "/~." and os.path.exists(os.path.expanduser(value))


def set_aside() -> None:
    """Put the command line's secrets into the environment, and have its overrides say where they are.

    What repeats the command line then has none: Hydra's files, its messages and a sweep's list of jobs, what W&B notes of
    the command, processes that are started by it.

    Raises:
        UserError: a sweep over secrets, whose folders would be named by them; or one that cannot be read.
    """
    sys.argv[1:] = [_set_aside(word) for word in sys.argv[1:]]


def _set_aside(word: str) -> str:
    option = re.match(r"-+([^\s=]+)", word)
    if option and holds_secret(option[1]):
        # Hydra would say that it does not know it, and repeat its value.
        raise UserError(f"there is no option --{option[1]}")
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        safe = redacted_words(word)
        if safe == word:
            return word  # an option, or Hydra will say what is wrong with it, and repeat some of it
        # Not from Hydra's error, which has pieces of it.
        raise UserError(f"{safe} cannot be read, and holds a secret; put its value in quotes") from None
    key, value = override.key_or_group, override._value
    choices = value.list if isinstance(value, ChoiceSweep) else value
    given = _aside(choices, key, holds_secret(key, _plain(value)))
    if given == choices:
        return word
    if override.is_sweep_override() or key.startswith("hydra.sweeper.params"):
        raise UserError(
            f"{override.get_key_element()} holds a secret, and the folders of a sweep are named by what it varies; "
            "give one value, and vary something else"
        )
    return f"{override.get_key_element()}={Transformer.str(given)}"


def _aside(value: Any, key: str, secret: bool) -> Any:
    """A value of an override with its secrets in the environment; `secret`: all that it has is one."""
    if isinstance(value, dict):
        return {
            name: _aside(
                child, f"{key}.{_plain(name)}", secret or holds_secret(str(_plain(name)), _plain(child))
            )
            for name, child in value.items()
        }
    if isinstance(value, list):
        return [_aside(child, key, secret) for child in value]
    plain = _plain(value)
    # An interpolation is not the secret, but where it lies.
    if plain is None or "${" in str(plain) or not (secret or redacted(plain, key) != plain):
        return value
    number = 0
    while f"BORA_{number}_SECRET" in os.environ:
        number += 1
    os.environ[f"BORA_{number}_SECRET"] = str(plain)
    where = f"${{oc.env:BORA_{number}_SECRET}}"
    return QuotedString(where if isinstance(plain, str) else f"${{oc.decode:{where}}}", Quote.single)


def _plain(value: Any) -> Any:
    """A value of an override as the config will have it."""
    return value.text if isinstance(value, QuotedString) else value


def as_yaml(config: Any) -> str:
    """Plain values as OmegaConf writes a config, and reads it again."""
    return yaml.dump(
        config, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper()
    )


def redact_file(path: Path) -> None:
    """Take the secrets out of a YAML file that holds a config or overrides, if it is there and has any."""
    if not path.is_file():
        return
    found = OmegaConf.to_container(OmegaConf.load(path))
    safe = redacted(found, OVERRIDES[0] if isinstance(found, list) else "")
    if safe != found:
        write_text_atomically(path, as_yaml(safe))


def hydra_files(cfg: DictConfig, settings: HydraConf) -> dict[str, str]:
    """What Hydra would write of a job into .hydra/, without secrets: file → YAML.

    Hydra writes it before a job starts, into whatever folder: also into one that another run is in, or that holds a run
    with other settings. So conf/config.yaml has it write none, and the run writes these when the folder is its own.
    """
    found = {
        "config.yaml": redacted(OmegaConf.to_container(cfg)),
        "hydra.yaml": redacted({"hydra": OmegaConf.to_container(settings, enum_to_str=True)}),
        "overrides.yaml": redacted(OmegaConf.to_container(settings.overrides.task), OVERRIDES[0]),
    }
    return {file: as_yaml(content) for file, content in found.items()}


def redact_hydra(settings: HydraConf) -> None:
    """Take the secrets out of what Hydra wrote before a job where it was asked to, and of what the job will log.

    Not by Hydra's own config of callbacks and logs: a saved config that is run again has none.
    """
    if settings.output_subdir is not None:
        for file in (Path(settings.runtime.output_dir) / settings.output_subdir).glob("*.yaml"):
            redact_file(file)
    if settings.mode == RunMode.MULTIRUN:
        redact_file(Path(settings.sweep.dir) / "multirun.yaml")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Formatter(handler.formatter or logging.Formatter()))


class Parser(argparse.ArgumentParser):
    """Of a command line; what it says of one that is wrong repeats no secret."""

    def error(self, message: str) -> NoReturn:
        super().error(redacted_words(message))


class Formatter(logging.Formatter):
    """A log's lines, errors and their traces without secrets, formatted as another does."""

    def __init__(self, other: logging.Formatter):
        super().__init__()
        self.other = other

    def format(self, record: logging.LogRecord) -> str:
        return redacted_words(self.other.format(record))


def print_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints of an error that nobody caught, without secrets."""
    print(redacted_words("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
