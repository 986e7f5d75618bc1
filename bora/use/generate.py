"""The command `bora generate RUN`: several tasks continue the same prompts, side by side.

A row of the batch is one prompt under one task's θ_d (or Θ, or the frozen backbone: θ = 0, whose update adds
nothing), so that transformers' own `generate`, with its cache, samplers and stopping, answers for all at once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig

from bora.commands.exits import cli_errors
from bora.errors import UserError
from bora.use.common import check_tasks, restore_on, run_parser
from bora.use.restore import Restored
from bora.use.sampling import Options, add_options, options_of


class Speaker(NamedTuple):
    """Who answers: a task, Θ ("mean") or the frozen backbone ("base"), and the task's name in its prompt."""

    kind: str
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
        prompt: as given.
        speaker: who answers.
        sequence: from 0, among the answers of this speaker to this prompt.
        text: what follows the prompt, special tokens left out.
        ids: its tokens, an end-of-text token not among them.
        ended: whether it came to its end, rather than to max_new_tokens.
    """

    prompt: str
    speaker: Speaker
    sequence: int
    text: str
    ids: list[int]
    ended: bool

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary, with the speaker's two parts."""
        speaker = self.speaker._asdict()
        rest = {key: getattr(self, key) for key in ("sequence", "text", "ids", "ended")}
        return {"prompt": self.prompt, **speaker, **rest}


def generate(
    restored: Restored,
    tasks: Sequence[str],
    prompts: Sequence[str],
    *,
    mean: bool = False,
    base: bool = False,
    **options: Any,
) -> list[Answer]:
    """Each prompt continued by each task, in batches of mixed tasks.

    A prompt begins as training's documents do: beginning-of-text token, data.prompt with the task's name, and
    what data.template has before the text. Where data.prompt names the task, Θ and the backbone answer once
    for each of `tasks`, prompted with its name.

    Args:
        restored: a finished run.
        tasks: names of its tasks.
        prompts: texts to continue.
        mean, base: let Θ, and the frozen backbone, answer too.
        options: see Options.

    Returns:
        The answers, by prompt, then by speaker (tasks, Θ, backbone), then by sequence.

    Raises:
        UserError: an unknown task, nobody or nothing to answer, an option out of its range, or a prompt that
            does not fit the model.
    """
    how = Options(**options)
    how.check()
    check_tasks(restored, tasks)
    speakers = [Speaker("task", task) for task in tasks]
    for kind in (kind for kind, asked in (("mean", mean), ("base", base)) if asked):
        if restored.tokens.names_task and not tasks:
            raise UserError(f"--{kind}: the run's data.prompt names the task; give the name with --task")
        speakers += [Speaker(kind, task) for task in (tasks if restored.tokens.names_task else [None])]
    if not speakers or not prompts:
        raise UserError("give at least one --prompt, and at least one of --task, --mean and --base")
    rows = [(p, s, n) for p in prompts for s in speakers for n in range(how.num_return_sequences)]
    starts = {(p, s): _start(restored, s, p) for p in prompts for s in speakers}
    longest = max(map(len, starts.values())) + how.max_new_tokens
    positions = getattr(restored.model.backbone.model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise UserError(
            f"--max-new-tokens {how.max_new_tokens}: with the longest prompt that is {longest} tokens, and the "
            f"model has {positions} positions; choose fewer or shorten the prompt"
        )
    ends, pad = _ends(restored), restored.tokenizer.pad_token_id
    config = how.of_transformers(ends, min(ends, default=None) if pad is None else pad)
    answers = []
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        for first in range(0, len(rows), how.batch_size):
            some = rows[first : first + how.batch_size]
            found = continuations(restored, [starts[row[:2]] for row in some], [row[1] for row in some], config)
            for (prompt, speaker, sequence), (ids, ended) in zip(some, found, strict=True):
                text = _text(restored, starts[prompt, speaker], ids)
                answers.append(Answer(prompt, speaker, sequence, text, ids, ended))
    return answers


def continuations(
    restored: Restored, starts: list[list[int]], speakers: list[Speaker], how: GenerationConfig
) -> Iterator[tuple[list[int], bool]]:
    """One batch: what each speaker adds to its own start, and whether it came to its end."""
    model, width = restored.model, max(map(len, starts))
    device = model.backbone.model.device
    # Padded with the row's own first token. It is masked; but a repetition penalty reads every id there is, and
    # so it finds none that it would not find without padding.
    ids = [[start[0]] * (width - len(start)) + start for start in starts]
    mask = [[0] * (width - len(start)) + [1] * len(start) for start in starts]
    # GenerationMixin's, which transformers does not declare to be part of every PreTrainedModel.
    extend = cast(Callable[..., Tensor], model.backbone.model.generate)
    with model.backbone.routed(_theta(restored, speakers)):
        out = extend(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=how,
        )
    ends = _ends(restored)
    for row in out[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        yield row[:end], end is not None


@torch.no_grad()
def _theta(restored: Restored, speakers: Sequence[Speaker]) -> Tensor:
    """[R, P] each row's θ."""
    adapters = restored.model.adapters
    of: dict[Speaker, Tensor] = {}
    for speaker in dict.fromkeys(speakers):
        if speaker.kind == "task":
            assert speaker.task is not None  # Θ and the backbone alone may answer without a name
            theta = adapters.theta(adapters.task_names.index(speaker.task))
        else:
            theta = adapters.mean if speaker.kind == "mean" else torch.zeros_like(adapters.mean)
        of[speaker] = theta
    return torch.stack([of[speaker] for speaker in speakers])


def _ends(restored: Restored) -> set[int]:
    """Tokens that end a text: the tokenizer's, which training appends, and the model's own."""
    own = restored.model.backbone.model.generation_config.eos_token_id
    ends = [restored.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return {end for end in ends if end is not None}


def _start(restored: Restored, speaker: Speaker, prompt: str) -> list[int]:
    tokens = restored.tokens
    before_the_text = tokens.template.partition("{text}")[0]
    ids = restored.tokenizer(before_the_text + prompt, add_special_tokens=False).input_ids
    start = tokens.before(speaker.task) + ids
    if not start:
        raise UserError("--prompt: this model puts no token before a text, so an empty prompt gives it no start")
    return start


def _text(restored: Restored, start: list[int], ids: list[int]) -> str:
    """The new tokens as text. Decoded with the prompt: alone, some tokenizers drop the first word's space."""

    def decoded(tokens: list[int]) -> str:
        text = restored.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)  # a list of texts only for a list of lists

    before, whole = decoded(start), decoded(start + ids)
    return whole[len(before) :] if whole.startswith(before) else decoded(ids)


def tell(answers: Sequence[Answer], options: Options) -> None:
    """Print the answers, prompt by prompt, each under its speaker's name."""
    shown = None
    for answer in answers:
        if answer.prompt != shown:
            print(f"prompt: {answer.prompt}\n")
            shown = answer.prompt
        several = options.num_return_sequences > 1
        number = f" ({answer.sequence + 1} of {options.num_return_sequences})" if several else ""
        print(f"--- {answer.speaker}{number}\n{answer.prompt}{answer.text}\n")


def main() -> None:
    """Run the command line."""
    parser = run_parser("generate", "Let tasks of a finished run continue prompts, side by side.")
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="a task that answers; again for more"
    )
    parser.add_argument("--mean", action="store_true", help="Θ answers too")
    parser.add_argument("--base", action="store_true", help="the frozen backbone answers too")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a text to continue; again for more"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a line for each answer")
    add_options(parser)
    arguments = parser.parse_args()
    options = options_of(arguments)
    with cli_errors():
        options.check()
        restored = restore_on(arguments.run, arguments.device, arguments.dtype)
        answers = generate(
            restored, arguments.task, arguments.prompt, mean=arguments.mean, base=arguments.base, **asdict(options)
        )
    if arguments.json:
        for answer in answers:
            print(json.dumps(answer.as_json(), ensure_ascii=False))
    else:
        tell(answers, options)


if __name__ == "__main__":
    main()
