"""At a run's end, fit the temperature of p(d | text) to validation documents; see bora.train.authorship."""

import logging

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from bora.bayes.model import HierarchicalLoRA
from bora.config.schema import Config
from bora.data.corpus import Corpus
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.train.authorship import fit_temperature, score_tasks
from bora.train.module import TrainingModule

log = logging.getLogger(__name__)

MIN_DOCUMENTS, MAX_DOCUMENTS = 20, 200
# Forwards here, each of a document under a task, relative to documents' forwards in training. Those have a backward too,
# so a run takes at most a tenth longer.
SHARE_OF_FORWARDS = 0.2


class FitTemperature(Callback):
    """Fit T when the test ends, while the model is still on its device and, if sharded, all processes still run it.

    Every process computes the same; the run's random state is not touched.

    Args:
        cfg: the run's config.
        tokens: how the run turns text into tokens.
        corpus: T is fitted to its validation documents, or a sample if there are many.

    Attributes:
        temperature: T; None if it was not fitted.
        note: how many documents it was fitted to, or why it was not.
    """

    def __init__(self, cfg: Config, tokens: Tokens, corpus: Corpus):
        self.cfg, self.tokens, self.corpus = cfg, tokens, corpus
        self.temperature: float | None = None
        self.note = ""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        try:
            n = self._fit(pl_module.model, trainer.global_step)
            self.note = f"fitted to {n} validation documents"
        except UserError as error:
            self.note = f"not fitted: {error}"

    def _fit(self, model: HierarchicalLoRA, n_steps: int) -> int:
        """Fit T and return the number of documents that it was fitted to.

        Args:
            n_steps: optimiser steps that training took.

        Raises:
            UserError: the tasks do not differ, or too few documents can be scored.
        """
        if len(self.corpus.task_names) == 1:
            raise UserError("there is one task")
        if not model.adapters.distances().any() and not self.tokens.names_task:
            raise UserError("all tasks share one model")
        documents = self.corpus.documents.query("split == 'validation' and piece == 0")
        n_trained = n_steps * self.cfg.trainer.accumulate_grad_batches * self.cfg.data.batch_size
        affordable = int(SHARE_OF_FORWARDS * n_trained / len(self.corpus.task_names))
        n = min(MAX_DOCUMENTS, len(documents), affordable)
        if n < MIN_DOCUMENTS:
            why = "there are only" if n == len(documents) else "a fifth of training's forwards is enough only for"
            raise UserError(f"{MIN_DOCUMENTS} validation documents are needed, but {why} {n}")
        log.info("temperature: scoring %d validation documents under %d tasks", n, len(self.corpus.task_names))
        documents = documents.sample(n, random_state=0)
        scores = score_tasks(model, self.tokens, documents, self.cfg.data.eval_batch_size)
        truth = documents["task"].map({name: d for d, name in enumerate(self.corpus.task_names)})
        self.temperature = fit_temperature(scores.nats, truth.to_numpy(np.int64))
        return n
