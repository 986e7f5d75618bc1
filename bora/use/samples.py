"""Sample texts from a run that has just been trained, for its tracker."""

from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora.bayes.model import HierarchicalLoRA
from bora.config.schema import Config
from bora.data.prompts import show_prompt
from bora.runs.directory import RunDirectory
from bora.use.generate import generate
from bora.use.restore import Restored

N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS, MAX_PROMPT_CHARS = 2, 10, 40, 100


def sample_texts(
    model: HierarchicalLoRA,
    tokenizer: PreTrainedTokenizerBase,
    cfg: Config,
    directory: RunDirectory,
    documents: pd.DataFrame,
) -> pd.DataFrame:
    """Continue, under the first tasks side by side, the beginnings of validation documents of the first two tasks.

    If documents have prompts, the tasks answer those.

    Args:
        documents: the corpus's documents, columns task, split, text.

    Returns:
        Columns prompt, task, text; one row for each prompt and task.
    """
    restored = Restored(model, tokenizer, cfg, directory.summary(), directory)
    firsts = documents[documents["split"] == "validation"].drop_duplicates("task").head(N_PROMPTS)
    prompts: list[Any]
    if restored.tokens.answers:
        prompts = [prompt for prompt, _ in restored.tokens.ask(firsts)]
    else:
        starts = tokenizer([text[:MAX_PROMPT_CHARS] for text in firsts["text"]], add_special_tokens=False).input_ids
        prompts = [str(tokenizer.decode(start[:PROMPT_TOKENS])) for start in starts]
    tasks = model.adapters.task_names[: cfg.logger.samples]
    answers = generate(restored, tasks, prompts, max_new_tokens=NEW_TOKENS, do_sample=True, top_p=0.9)
    return pd.DataFrame(
        [(show_prompt(a.prompt), str(a.speaker), a.text) for a in answers], columns=["prompt", "task", "text"]
    )
