"""Table → tasks → splits → tokens → batches: the DataModule, and the one place of that order."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import pandas as pd
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from bora.data.batches import Batches, Documents, loader
from bora.data.select import Dropped, select
from bora.data.split import SPLITS, leakage, split
from bora.data.tokens import Encoded, Truncation, encode
from bora.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """The documents that a run is about, ready as tokens.

    Attributes:
        task_names: the D tasks in the order of selection.
        documents: one row a document kept: row (its number in the table as read), task, split,
            n_tokens, n_scored; and text.
        encoded: the tokens of each of those rows.
        dropped, truncation: what was left out.
        sha256: of every kept document's row, task, split and text.
    """

    task_names: list[str]
    documents: pd.DataFrame
    encoded: list[Encoded]
    dropped: Dropped
    truncation: Truncation
    sha256: str

    def per_task(self) -> pd.DataFrame:
        """Documents and scored tokens by task: n_train, n_val, n_test, train_tokens, test_tokens."""
        by = self.documents.groupby(["task", "split"])
        counts, scored = (
            x.unstack(fill_value=0).reindex(self.task_names) for x in (by.size(), by["n_scored"].sum())
        )
        return pd.DataFrame(
            {
                "n_train": counts["train"],
                "n_val": counts["validation"],
                "n_test": counts["test"],
                "train_tokens": scored["train"],
                "test_tokens": scored["test"],
            }
        )

    def tokens_sha256(self) -> str:
        """Of every kept document and its tokens, which another tokenizer makes others."""
        found = hashlib.sha256(self.sha256.encode())
        for document in self.encoded:
            found.update(f"{len(document.ids)} {document.n_prompt}\n".encode() + document.ids.tobytes())
        return found.hexdigest()

    def leakage(self) -> dict[str, dict[str, int]]:
        """Documents of validation and test whose text has been seen before; see `bora.data.split.leakage`."""
        return leakage(self.documents)

    def describe(self) -> str:
        """A few lines for a person: what is there, what was dropped, what was cut, what was seen before."""
        counts = self.per_task()
        tokens = self.documents["n_tokens"].sum()
        total = tokens + self.truncation.tokens
        return (
            f"{len(self.task_names)} tasks, {len(self.documents):,} documents: "
            f"{counts.n_train.sum():,} train ({counts.n_train.min()} to {counts.n_train.max()} a task, "
            f"{counts.train_tokens.sum():,} scored tokens), {counts.n_val.sum():,} validation, "
            f"{counts.n_test.sum():,} test\n"
            f"dropped: {self.dropped}\n"
            f"truncated: {self.truncation.documents:,} documents, "
            f"{self.truncation.tokens / total:.1%} of the tokens\n"
            f"leakage: {self._leakage_told()}"
        )

    def _leakage_told(self) -> str:
        said = [
            f"{n['in_all']:,} of {(self.documents['split'] == part).sum():,} {part} documents repeat a text of "
            f"{before} ({n['within_task']:,} of their own task)"
            for (part, n), before in zip(
                self.leakage().items(), ("training", "training or validation"), strict=True
            )
            if n["in_all"]
        ]
        return ", ".join(said) or "none"


def build_corpus(
    table: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    *,
    selection: dict,
    split_options: dict,
    encoding: dict,
) -> Corpus:
    """Select, encode, split.

    Args:
        table: columns task, text, and date where selection or split ask for one.
        selection, split_options, encoding: keyword arguments of `select`, `split`, `encode`.

    Raises:
        UserError: see those three; also where a task has too few documents with a token to score.
    """
    if "date" not in table:
        table = table.assign(date="")
    table, names, dropped = select(table, **selection)
    encoded, truncation = encode(table, tokenizer, **encoding)
    scored = pd.Series([e.n_scored for e in encoded], index=table.index)
    dropped.add("without a token to score", (scored < 1).sum())
    _need_three(table["task"], scored > 0)
    encoded = [e for e in encoded if e.n_scored > 0]
    table = table[scored > 0]
    documents = table.assign(
        row=table.index,
        split=split(table, **split_options),
        n_tokens=[len(e.ids) for e in encoded],
        n_scored=[e.n_scored for e in encoded],
    ).reset_index(drop=True)
    digest = hashlib.sha256()
    for record in zip(
        documents["row"], documents["task"], documents["split"], documents["text"], strict=True
    ):
        digest.update(json.dumps([int(record[0]), *record[1:]]).encode() + b"\n")
    corpus = Corpus(names, documents, encoded, dropped, truncation, digest.hexdigest())
    counts = corpus.per_task()
    for column, part in (("n_train", "training"), ("n_val", "validation"), ("n_test", "test")):
        if (counts[column] == 0).any():
            raise UserError(
                f"task {counts[column].idxmin()!r} is left without {part} documents; raise "
                "data.min_documents or change data.split"
            )
    return corpus


def _need_three(tasks: pd.Series, scored: pd.Series) -> None:
    """Refuse a task that could be split, were it not for documents without a token to score.

    Args:
        tasks, scored: of each document its task, and whether it has such a token.
    """
    counts = scored.groupby(tasks).agg(["sum", "size"])
    short = counts[(counts["sum"] < 3) & (counts["sum"] < counts["size"])]
    if len(short):
        n, of = short.iloc[0]
        raise UserError(
            f"task {short.index[0]!r} has {f'{n} documents' if n else 'no document'} with a token to score, of {of} "
            f"({len(short)} such task(s)), and needs three: behind the first token and data.prompt there is nothing "
            "within data.max_tokens; raise that, shorten the prompt, or drop short texts with data.min_characters"
        )


class TaskDataModule(L.LightningDataModule):
    """The batches of a Corpus.

    Args:
        corpus: the documents.
        pad_id: token id that fills rows on the right.
        batch_size: documents in a training batch, all processes together.
        eval_batch_size: the same in validation and test, where it changes speed alone.
        seed: of the training order.
        score_padding: score the padding too (the published code).
        order: of training (see Batches): bucketed | shuffled | fixed (one shuffled order for every
            epoch, and for validation and test too, as in the published code).
    """

    def __init__(
        self,
        corpus: Corpus,
        pad_id: int,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        score_padding: bool = False,
        order: str = "bucketed",
    ):
        super().__init__()
        self.corpus, self.pad_id, self.seed, self.order = corpus, pad_id, seed, order
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        index = {name: i for i, name in enumerate(corpus.task_names)}
        self._splits: dict[str, Documents] = {}
        for part in SPLITS:
            rows = corpus.documents.index[corpus.documents["split"] == part]
            tasks = [index[t] for t in corpus.documents.loc[rows, "task"]]
            self._splits[part] = Documents([corpus.encoded[i] for i in rows], tasks, pad_id, score_padding)

    @property
    def task_documents(self) -> list[int]:
        """N_d, training documents of each task."""
        return np.bincount(self._splits["train"].tasks, minlength=len(self.corpus.task_names)).tolist()

    @property
    def n_tokens(self) -> int:
        """T, scored training tokens of all tasks."""
        return sum(d.n_scored for d in self._splits["train"].documents)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self.eval_batch_size)

    def _loader(self, part: str, batch_size: int) -> DataLoader:
        documents, training = self._splits[part], part == "train"
        lengths = [len(d.ids) for d in documents.documents]
        order: str | Sequence[int] = self.order
        if self.order == "fixed":
            order = np.random.default_rng(self.seed).permutation(len(documents)).tolist()
        elif not training:  # by length, so that little is padded
            order = np.argsort(lengths, kind="stable").tolist()
        shares = {}
        if self.trainer:
            shares = {"rank": self.trainer.global_rank, "n_processes": self.trainer.world_size}
            shares["accumulate"] = self.trainer.accumulate_grad_batches if training else 1
        batches = Batches(lengths, batch_size, order, self.seed, **shares)
        if training:
            batches.check_trainable()
        return loader(documents, batches)
