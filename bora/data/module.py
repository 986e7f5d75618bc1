"""A corpus as a Lightning data module."""

from collections.abc import Sequence

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from bora.bayes.levels import Levels
from bora.data.batches import Batches, Documents, loader
from bora.data.corpus import Corpus
from bora.data.split import SPLITS


class TaskDataModule(L.LightningDataModule):
    """The batches of a Corpus, for Lightning.

    Args:
        corpus: the documents.
        batch_size: documents in a training batch, all processes together.
        eval_batch_size: the same in validation and test, where it changes only speed and `val_perplexity_by_batch`.
        seed: seed of the training order.
        scored_padding: see Documents.
        levels, units: the levels above the tasks, and the documents' rows of the matrix, [N, L]; see bora.bayes.levels.
        order: training order (see Batches): bucketed | shuffled | fixed (one shuffled order for every
            epoch, and for validation and test too, as in the published code).
    """

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        scored_padding: int | None = None,
        order: str = "bucketed",
        levels: Levels | None = None,
        units: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__()
        self.corpus, self.seed, self.order, self.levels = corpus, seed, order, levels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        index = {name: i for i, name in enumerate(corpus.task_names)}
        self._splits: dict[str, Documents] = {}
        for part in SPLITS:
            rows = corpus.documents.index[corpus.documents["split"] == part]
            tasks = [index[t] for t in corpus.documents.loc[rows, "task"]]
            mine = None if units is None else [units[i] for i in rows]
            self._splits[part] = Documents([corpus.encoded[i] for i in rows], tasks, scored_padding, mine)

    @property
    def task_documents(self) -> list[int]:
        """N_d, the number of training documents of each task."""
        return self.corpus.per_task()["n_train"].tolist()

    @property
    def n_tokens(self) -> int:
        """T, the number of scored training tokens of all tasks."""
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
        shares, pinned = {}, False
        if self.trainer:
            pinned = self.trainer.strategy.root_device.type == "cuda"
            shares = {"rank": self.trainer.global_rank, "n_processes": self.trainer.world_size}
            shares["accumulate"] = self.trainer.accumulate_grad_batches if training else 1
        batches = Batches(lengths, batch_size, order, self.seed, **shares)
        if training:
            batches.check_trainable()
        return loader(documents, batches, pinned)
