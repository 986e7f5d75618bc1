"""A finished run as an object: its files as tables, and its model to use."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from bora.api.frames import documents as take_documents
from bora.api.run_files import RunFiles
from bora.api.show import Report, Scores, Voices
from bora.bayes.model import HierarchicalLoRA
from bora.data.columns import Columns, finish, text_table
from bora.data.errors import input_errors
from bora.data.prompts import prompt_columns, show_prompt
from bora.data.read import read_column
from bora.errors import UserError
from bora.lib.files import write_folder
from bora.model.lora import LowRank
from bora.report.write import write
from bora.runs.corpus import split_documents
from bora.use.adapt import adapt, write_adapted
from bora.use.ask import Ask
from bora.use.curvature import find_tau
from bora.use.evaluate import find_trained_on
from bora.use.evaluation_files import hash_texts
from bora.use.export import export
from bora.use.generate import generate
from bora.use.hub import push_to_hub
from bora.use.new_tasks import encode_documents
from bora.use.restore import Restored, find_tasks, restore
from bora.use.sampling import Sampling
from bora.use.score import guess_tasks, perplexities
from bora.use.variance import MAX_DOCUMENTS, find_shares
from bora.use.voices import MAX_NEW_TOKENS, find_voices, require_voices

log = logging.getLogger(__name__)


class Run(RunFiles):
    """A finished run and its model, which is loaded when it is first needed."""

    @cached_property
    def restored(self) -> Restored:
        """The epoch that validation chose: model, tokenizer, config."""
        return restore(self._directory.path, self._device, self._dtype)

    @property
    def model(self) -> HierarchicalLoRA:
        """The model, in evaluation mode."""
        return self.restored.model

    @property
    def mean(self) -> dict[str, LowRank]:
        """Θ by layer: A [r, n_in] and B [n_out, r]."""
        return self.model.mean

    def lora(self, task: str) -> dict[str, LowRank]:
        """Return a task's θ by layer: A [r, n_in] and B [n_out, r].

        Raises:
            UserError: the run has no such task, or several begin with that name; the message lists them, or similar ones.
        """
        (found,) = self.restored.find_tasks([task])
        return self.model.tasks[found]

    def generate(
        self,
        prompt: Any,
        tasks: str | Sequence[str] | None = None,
        *,
        mean: bool = False,
        base: bool = False,
        **options: Any,
    ) -> Voices:
        """Continue the same prompts under several tasks, side by side.

        Args:
            prompt: one, or P of them: a text; if the run's prompt uses columns, a dictionary of them, the text of the
                only one, or a frame with a row for each prompt; if it was trained on chats, a list of messages, or the
                user's text.
            tasks: one or more names; None for all tasks.
            mean, base: whether Θ, and the frozen backbone, answer too.
            options: max_new_tokens, do_sample, temperature, top_p, num_return_sequences, seed, …; see
                `bora.use.sampling.Sampling`.

        Returns:
            A frame of texts: a row for each prompt (and sequence, if there are several), a column for each speaker.

        Raises:
            UserError: see `bora.use.generate.generate`; or an option is unknown or out of its range.
        """
        one = (
            pd.api.types.is_scalar(prompt)
            or isinstance(prompt, Mapping)
            or (self.restored.tokens.chat and isinstance(next(iter(prompt), None), Mapping))
        )
        if isinstance(prompt, pd.DataFrame):
            prompt = [{str(key): cell for key, cell in row.items()} for row in prompt.to_dict("records")]
        prompts = [prompt] if one else list(prompt)
        sampling = _sampling(options)
        asked = self.tasks if tasks is None else _listed(tasks)
        answers = generate(self.restored, asked, prompts, mean=mean, base=base, **sampling.model_dump())
        return Voices.of(answers, [*map(show_prompt, prompts)], sampling.num_return_sequences)

    def voices(
        self,
        prompt: Any = None,
        tasks: str | Sequence[str] | None = None,
        *,
        frame: Any = None,
        documents: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Find how tasks speak, as `bora voices` does: each task's own tokens, and how all continue one prompt.

        Args:
            prompt: a prompt as for `generate`; None for the start of a validation document.
            tasks: one or more names; None for all tasks.
            frame: the frame that a run of `bora.fit` was trained on.
            documents: at most how many validation documents of each task to use; None for all.
            max_new_tokens: at most how many tokens to add to the prompt.

        Returns:
            The frames of `bora.use.voices.characteristic_tokens` and `bora.use.voices.continue_prompt`.

        Raises:
            UserError: all tasks are Θ; or see `generate`, and `bora.runs.corpus.split_documents`.
        """
        require_voices(self.summary)
        table = self._split("validation", frame)
        asked = self.tasks if tasks is None else find_tasks(_listed(tasks), self.tasks)
        how: dict[str, Any] = {"documents": documents, "max_new_tokens": max_new_tokens}
        return find_voices(self.restored, table, asked, prompt, **how)

    def variance(
        self, by: str | Sequence[str] = (), *, frame: Any = None, documents: int = MAX_DOCUMENTS, batch_size: int = 16
    ) -> pd.DataFrame:
        """Find how much tasks differ, and which columns explain that, from validation documents' gradients at Θ.

        Args:
            by: columns of the table or frame that the run was trained on.
            frame: that frame, if it was one.
            documents: at most how many documents to draw at random.
            batch_size: documents in a backward pass.

        Returns:
            See `bora.use.variance.find_shares`.

        Raises:
            UserError: see there, and `bora.runs.corpus.split_documents`.
        """
        table = self._split("validation", frame)

        def read(column: str, rows: pd.Index) -> list[str]:
            if frame is None:
                return read_column(self.config.data, column, rows, "by=")
            return take_documents(frame, Columns(None, column))["text"].reindex(rows).tolist()

        return find_shares(self.restored, table, read, _listed(by), documents, batch_size)

    def infer_tau(self, *, frame: Any = None, batch_size: int = 16) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Infer τ by the evidence, as `bora variance --tau` does: τ for inference, not the best τ for perplexity.

        Args:
            frame: the frame that the run was trained on, if it was one.
            batch_size: documents in a backward pass.

        Returns:
            The frames of `bora.use.curvature.infer_tau`: τ by group of parameters, and the evidence at a range of τ.

        Raises:
            UserError: see `bora.use.curvature.measure_curvature`, and `bora.runs.corpus.split_documents`.
        """
        return find_tau(self.restored, self._split("train", frame), batch_size)

    def score(
        self,
        frame: Any,
        *,
        task: str | None = None,
        text: str | None = None,
        include_trained: bool = False,
        batch_size: int = 32,
    ) -> Scores:
        """Measure the perplexity of new documents under their task's θ, under Θ and under the frozen backbone.

        Args:
            frame: a frame as for `bora.fit`, one row for each document.
            task, text: columns; None for those that the run was trained on.
            include_trained: measure also rows that the run was trained on, or chosen by.
            batch_size: documents in a forward pass.

        Returns:
            A frame with one row for each task: task, n_documents, n_tokens, nll (nats a token), perplexity,
            mean_model_perplexity, base_model_perplexity. Its `overall` has those of all tasks together.

        Raises:
            UserError: a column is missing, a row has no task of the run, or the run was trained on all of them.
        """
        found = self._documents(frame, task, text, labelled=True)
        trained_on = find_trained_on(found, [self._directory.trained_on()])
        if not include_trained and trained_on.any():
            if trained_on.all():
                raise UserError("the run was trained on all of these texts; give others, or include_trained=True")
            log.warning("left out: %d of %d rows, whose text the run was trained on", trained_on.sum(), len(found))
            found = found[~trained_on]
        per_task, overall = perplexities(self.restored, found, batch_size)
        scores = Scores(per_task)
        scores.overall = overall
        return scores

    def answer(
        self,
        frame: Any,
        *,
        task: str | None = None,
        text: str | None = None,
        per_task: int | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Answer each document's prompt under its task, under Θ and under the frozen backbone.

        Args:
            frame: a frame as for `bora.fit`, with the columns that the prompt uses.
            task, text: columns; None for those that the run was trained on.
            per_task: at most how many prompts of each task to draw at random; None for all.
            options: max_new_tokens, do_sample, …; see `bora.use.sampling.Sampling`.

        Returns:
            A frame with the rows of the given one: task, prompt, response, under_task, under_mean, under_base.
            `bora.use.answers.score_answers` scores it.

        Raises:
            UserError: see `bora.use.ask.generate_answers`; or a row has no task of the run.
        """
        found = self._documents(frame, task, text, labelled=True)
        ask = Ask(_sampling(options), per_task)
        ask.check(self.restored, found["task"])
        answers = ask.answers(self.restored, found)
        return answers.set_axis(frame.index[answers.index]) if isinstance(frame, pd.DataFrame) else answers

    def who_wrote(
        self, texts: str | Sequence[str] | pd.Series | pd.DataFrame, *, prior: str = "uniform", batch_size: int = 32
    ) -> pd.DataFrame:
        """Find the likeliest task of each text: p(d | text) ∝ p(d) p(text | θ_d)^(1/T), with the run's temperature T.

        Args:
            texts: one, or N of them; if documents have prompts, a frame with the columns that the run was trained on.
            prior: p(d): uniform | documents, by the tasks' numbers of training documents.
            batch_size: rows (document × task) in a forward pass.

        Returns:
            One row for each text: best, the likeliest task; posterior, its probability; and a column for each task with
            p(d | text). The index is that of a series or frame, otherwise the texts. A text without a token to score has
            '' and NaN.
        """
        if isinstance(texts, pd.DataFrame):
            table, index = self._documents(texts.assign(task=""), "task", None), texts.index
        else:
            if self.restored.tokens.answers:
                raise UserError("this run's documents have prompts; give a frame with their columns")
            listed = [texts] if isinstance(texts, str) else list(texts)
            with input_errors("who_wrote", {}):
                table = finish(text_table([{"text": listed}], {"text": "text"}))
            index = texts.index if isinstance(texts, pd.Series) else pd.Index(listed, name="text")
        return guess_tasks(self.restored, table, prior, batch_size).set_axis(index)

    def adapt(
        self,
        frame: Any,
        output: str | Path,
        *,
        task: str | None = None,
        text: str | None = None,
        tau: float | None = None,
        epochs: int | None = None,
        lr: float = 1e-3,
        batch_size: int = 16,
        seed: int = 0,
    ) -> "Run":
        """Fit new tasks from this run's prior, with Θ fixed, as `bora adapt` does.

        Args:
            frame: their documents, a frame as for `bora.fit`; nothing is held out.
            output: the new run's folder, which is empty or does not exist.
            task, text: columns; None for those that this run was trained on.
            tau: precision of the prior, 0 < τ < ∞; None for this run's.
            epochs: passes over the documents; None for the best number for documents held out of a first fit.
            lr, batch_size, seed: AdamW's learning rate, documents in a step, and the seed of their order.

        Returns:
            A run of the new tasks; it has no history and no documents.

        Raises:
            UserError: see `bora.use.adapt`; or `output` is not empty.
        """
        found, tau = self._documents(frame, task, text), self.tau if tau is None else tau
        with write_folder(Path(output)) as folder:
            new = encode_documents(self.restored, found)
            model, about = adapt(self.restored, new, tau, epochs, lr, batch_size, seed)
            write_adapted(model, self.restored, new, about | {"data_sha256": hash_texts(found)}, folder)
        return Run(output, self._device, self._dtype)

    def export(self, path: str | Path, tasks: str | Sequence[str] | None = None, merge: bool = False) -> Path:
        """Write PEFT adapters, a folder for each task and one for Θ, or one task's merged model, as `bora export` does.

        Args:
            path: the folder to write, which is empty or does not exist.
            tasks: one or more names; None for all, and Θ.
            merge: write the whole model of the one task.

        Returns:
            `path`.

        Raises:
            UserError: see `bora.use.export.export`.
        """
        export(self._directory.path, Path(path), None if tasks is None else _listed(tasks), merge)
        return Path(path)

    def push_to_hub(
        self, repo: str, tasks: str | Sequence[str] | None = None, merge: bool = False, private: bool = False
    ) -> str:
        """Export to a repository on the Hugging Face hub, as `bora export --push-to-hub` does.

        Args:
            repo: NAMESPACE/NAME, created if it does not exist.
            tasks, merge: see `export`.
            private: make the repository private.

        Returns:
            The repository's address.

        Raises:
            UserError: see `bora.use.hub.push_to_hub`.
        """
        return push_to_hub(self._directory.path, repo, None if tasks is None else _listed(tasks), merge, private)

    def report(self, output: str | Path | None = None) -> Report:
        """Write tables, figures and a page, index.html, as `bora report` does; a notebook shows the page.

        Args:
            output: the folder; None for report/ in the run's folder.

        Raises:
            UserError: the report extra is not installed, or the folder cannot be written.
        """
        return show_report(self._directory.path, output)

    def _split(self, split: str, frame: Any) -> pd.DataFrame:
        """Read the documents of a split again, from the frame that the run was trained on if it is given."""
        given = None if frame is None else self._documents(frame, None, None)
        return split_documents(self._directory, split, table=given)

    def _documents(self, frame: Any, task: str | None, text: str | None, labelled: bool = False) -> pd.DataFrame:
        """Read a frame's documents, by the run's columns if none are named; `labelled` requires tasks of the run."""
        own = self.config.data.model_dump()  # has no columns if the corpus is not a table
        messages = own.get("messages")
        text, chat = text or own.get("text", "text"), messages and (text or messages)
        task, prompt = task or own.get("task"), prompt_columns(own["prompt"])
        found = take_documents(frame, Columns(task, text, None, chat, prompt, own["levels"], need_levels=False))
        if not labelled:
            return found
        if n := int((found["task"] == "").sum()):
            raise UserError(f"{n} rows of the frame name no task; leave them out, or use who_wrote")
        if unknown := sorted(set(found["task"]) - set(self.tasks)):
            raise UserError(f"the run has no task {unknown[0]!r}; leave its rows out")
        return found


def show_report(folder: Path, output: str | Path | None) -> Report:
    """Write the report of the runs in a folder to `output`; None for report/ in that folder."""
    output = folder / "report" if output is None else Path(output)
    write([folder], output, None)
    return Report(output / "index.html")


def _sampling(options: dict[str, Any]) -> Sampling:
    """Read the options; raise a UserError if one is unknown or out of its range."""
    try:
        return Sampling(**options)
    except ValidationError as error:
        unknown = f"there is no such option; there are {', '.join(Sampling.model_fields)}"
        lines = (f"{e['loc'][0]}: {unknown if e['type'] == 'extra_forbidden' else e['msg']}" for e in error.errors())
        raise UserError("\n".join(lines)) from error


def _listed(values: Any) -> list[str]:
    """Return one or several texts or names as a list of strings."""
    return [str(value) for value in ([values] if pd.api.types.is_scalar(values) else values)]
