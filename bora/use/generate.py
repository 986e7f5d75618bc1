"""Continue the same prompts under several tasks, side by side.

A row of the batch is one prompt under one task's θ_d, under Θ, or under the frozen backbone (θ = 0 adds nothing). So
transformers' `generate`, with its cache, samplers and stopping, continues all of them together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from bora.bayes.model import Under
from bora.errors import UserError
from bora.lib.console import progress
from bora.model.pretrained import max_positions
from bora.use.restore import Restored
from bora.use.sampling import Sampling


class Speaker(NamedTuple):
    """Who answers: a task, Θ ("mean") or the frozen backbone ("base"); and the task's name in its prompt."""

    kind: Under
    task: str | None

    def __str__(self) -> str:
        if self.kind == "task":
            return str(self.task)
        name = "Θ, the hierarchical mean" if self.kind == "mean" else "the frozen backbone"
        return name if self.task is None else f"{name}, prompted as {self.task}"


@dataclass(frozen=True)
class Answer:
    """One continuation.

    Attributes:
        prompt: the prompt, as given.
        speaker: who answers.
        sequence: index, from 0, among the answers of this speaker to this prompt.
        text: what follows the prompt, without special tokens.
        ids: its tokens, without an end-of-text token.
        ended: whether it reached an end-of-text token before max_new_tokens.
    """

    prompt: Any
    speaker: Speaker
    sequence: int
    text: str
    ids: list[int]
    ended: bool


def generate(
    restored: Restored,
    tasks: Sequence[str],
    prompts: Sequence[Any],
    *,
    mean: bool = False,
    base: bool = False,
    **options: Any,
) -> list[Answer]:
    """Continue each prompt under each task, in batches of mixed tasks.

    A prompt begins as training documents do: with the beginning-of-text token, data.prompt with the task's name, and what
    data.template has before the text. Or it is the cells that data.prompt uses, or a chat; see `Tokens.start`. If
    data.prompt names the task, Θ and the backbone answer once for each task, prompted with its name.

    Args:
        tasks: names of the run's tasks, or their beginnings, see `Restored.find_tasks`.
        prompts: texts to continue, or anything that `Tokens.start` accepts.
        mean, base: whether Θ, and the frozen backbone, answer too.
        options: see Sampling.

    Returns:
        The answers, by prompt, then by speaker (tasks, Θ, backbone), then by sequence.

    Raises:
        UserError: an unknown task, no speaker or prompt, a prompt that does not fit the model, or see Sampling.
        ValidationError: see Sampling.
    """
    sampling = Sampling(**options)
    tasks = restored.find_tasks(tasks)
    speakers = [Speaker("task", task) for task in tasks]
    asked: dict[Under, bool] = {"mean": mean, "base": base}
    others = [kind for kind, wanted in asked.items() if wanted]
    if others and restored.tokens.names_task and not tasks:
        raise UserError("the run's data.prompt names the task; give the name with --task")
    for kind in others:
        speakers += [Speaker(kind, task) for task in (tasks if restored.tokens.names_task else [None])]
    if not speakers or not prompts:
        raise UserError("give at least one --prompt, and at least one of --task, --mean and --base")
    rows = [(i, s, n) for i in range(len(prompts)) for s in speakers for n in range(sampling.num_return_sequences)]
    new = sampling.max_new_tokens
    starts = {(i, s): encode_start(restored, s.task, p, new) for i, p in enumerate(prompts) for s in speakers}
    found = continue_all(restored, [starts[i, s] for i, s, _ in rows], [s for _, s, _ in rows], sampling)
    return [Answer(prompts[i], speaker, n, *one) for (i, speaker, n), one in zip(rows, found, strict=True)]


def continue_all(
    restored: Restored, starts: Sequence[list[int]], speakers: Sequence[Speaker], sampling: Sampling
) -> list[tuple[str, list[int], bool]]:
    """Continue each start under its speaker, in batches of mixed speakers; return text, ids and ended, as in Answer.

    Raises:
        UserError: a start does not fit the model.
    """
    longest, new = max(map(len, starts)), sampling.max_new_tokens
    positions = max_positions(restored.model.backbone.model.config)
    if positions is not None and longest + new > positions:
        raise UserError(
            f"the longest prompt and {new} new tokens make {longest + new} tokens, and the model has {positions} "
            "positions; lower --max-new-tokens or shorten the prompt"
        )
    config = sampling.to_transformers(_end_tokens(restored), restored.model.backbone.model.generation_config)
    answers = []
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        size = sampling.batch_size if len(starts) == 1 or _answers_alike(restored) else 1
        for first in progress(range(0, len(starts), size), "answers"):
            some = slice(first, first + size)
            found = continue_batch(restored, list(starts[some]), list(speakers[some]), config)
            for start, (ids, ended) in zip(starts[some], found, strict=True):
                answers.append((_decode(restored, start, ids), ids, ended))
    return answers


def _answers_alike(restored: Restored) -> bool:
    """Return whether a model continues a text in one batch with a longer one as it does alone.

    If not, each row is a batch: RecurrentGemma reads the padding on the left, and RWKV mixes up the rows' states.
    """
    middle = restored.tokens.vocabulary // 2
    short, long = [middle - 2, middle - 1], [*range(middle, middle + 6)]
    config = GenerationConfig(max_new_tokens=2, output_logits=True, return_dict_in_generate=True)

    def logits(*starts: list[int]) -> Tensor:
        out: Any = _generate(restored, list(starts), torch.zeros_like(restored.model.adapters.mean), config)
        return torch.stack(out.logits)[:, 0].float()

    alone, beside = logits(short), logits(short, long)
    compared = 1 + int(alone[0].argmax() == beside[0].argmax())  # the second logits depend on the first token
    rounding = 1e-3 if restored.model.backbone.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(alone[:compared], beside[:compared], rtol=0, atol=rounding * float(alone.abs().max()))


def continue_batch(
    restored: Restored, starts: list[list[int]], speakers: list[Speaker], config: GenerationConfig
) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens that each speaker adds to its start, and whether they reached an end-of-text token."""
    out = _generate(restored, starts, _theta(restored, speakers), config)
    ends = config.eos_token_id or []
    for row in out[:, max(map(len, starts)) :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        yield row[:end], end is not None


def _generate(restored: Restored, starts: list[list[int]], theta: Tensor, config: GenerationConfig) -> Tensor:
    """Continue starts, padded on the left, by transformers: each row under its own θ [R, P], or all under one [P]."""
    model, width = restored.model, max(map(len, starts))
    # Pad with the row's own first token: a repetition penalty reads masked ids too, so it must not find others there.
    ids = [[start[0]] * (width - len(start)) + start for start in starts]
    mask = [[0] * (width - len(start)) + [1] * len(start) for start in starts]
    # transformers does not declare GenerationMixin to be part of every PreTrainedModel.
    transformers_generate = cast(Callable[..., Tensor], model.backbone.model.generate)
    with model.backbone.routed(theta), _without_defaults(model.backbone.model):
        return transformers_generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
        )


@contextmanager
def _without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's generation config from transformers' `generate` inside the context."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def _theta(restored: Restored, speakers: Sequence[Speaker]) -> Tensor:
    """Stack the speakers' θ, [R, P]."""
    adapters = restored.model.adapters
    others = {"mean": adapters.mean, "base": torch.zeros_like(adapters.mean)}
    index = {name: d for d, name in enumerate(adapters.names)}
    theta = {s: adapters.theta(index[s.task or ""]) if s.kind == "task" else others[s.kind] for s in set(speakers)}
    return torch.stack([theta[speaker] for speaker in speakers])


def _end_tokens(restored: Restored) -> set[int]:
    """Collect the tokens that end a text: the tokenizer's, which training appends, the model's own, a chat template's."""
    own = restored.model.backbone.model.generation_config.eos_token_id
    ends = [restored.tokenizer.eos_token_id, restored.tokens.end_of_turn, *(own if isinstance(own, list) else [own])]
    return {end for end in ends if end is not None and end < restored.tokens.vocabulary}


def encode_start(restored: Restored, task: str | None, prompt: Any, new: int) -> list[int]:
    """Encode a prompt, leaving room for `new` tokens if it is of a kind that `Tokens.start` shortens.

    Raises:
        UserError: see `Tokens.start`; or the prompt has no token, or one that the model does not have.
    """
    tokens, positions = restored.tokens, max_positions(restored.model.backbone.model.config)
    room = None if positions is None else max(1, min(tokens.max_tokens, positions - new))
    start = tokens.start(task, prompt, room)
    if not start:
        raise UserError("this model puts no token before a text, so --prompt must not be empty")
    tokens.require_embeddings(start, "the prompt")
    return start


def _decode(restored: Restored, start: list[int], ids: list[int]) -> str:
    """Decode the new tokens together with the prompt: without it some tokenizers drop the first word's space."""

    def plain(tokens: list[int]) -> str:
        text = restored.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)  # a list of texts only for a list of lists

    before, whole = plain(start), plain(start + ids)
    return whole[len(before) :] if whole.startswith(before) else plain(ids)
