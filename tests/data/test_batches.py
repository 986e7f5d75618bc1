import numpy as np
import torch

from bora.data.batches import Batches, Documents
from bora.data.encoding import Encoded
from tests.conftest import tiny_data

DOCUMENTS = Documents(
    [Encoded(np.array([5, 6, 7], dtype=np.int32), 0), Encoded(np.array([8, 9, 10, 11], dtype=np.int32), 2)],
    [1, 0],
    1,
)


def test_a_batch_is_padded_on_the_right_and_neither_padding_nor_prompt_is_labelled():
    batch = DOCUMENTS[[0, 1], 2]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1], [8, 9, 10, 11]]
    assert batch["labels"].tolist() == [[5, 6, 7, -100], [-100, -100, 10, 11]]
    assert batch["task"].tolist() == [1, 0]
    assert batch["batch_documents"] == 2


def test_every_document_once_an_epoch_in_an_order_of_seed_and_epoch():
    def epoch(seed, n):
        batches = Batches(23, 4, shuffle=True, seed=seed)
        batches.set_epoch(n)
        return [i for indices, _ in batches for i in indices]

    assert sorted(epoch(0, 0)) == list(range(23))
    assert epoch(0, 0) == epoch(0, 0)
    assert len({tuple(epoch(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_processes_share_each_batch_without_repeating_or_losing_a_document():
    for n_documents in (22, 23, 24, 25):
        alone = Batches(n_documents, 6, shuffle=True, seed=5)
        shares = [Batches(n_documents, 6, shuffle=True, seed=5, rank=r, n_processes=3) for r in range(3)]
        together = list(zip(*shares, strict=True))
        assert sum(len(indices) for step in together for indices, _ in step) == n_documents
        for step in together:
            merged = sorted(i for indices, _ in step for i in indices)
            assert {total for _, total in step} == {len(merged)}
        assert sorted(i for b, _ in alone for i in b) == sorted(i for s in together for b, _ in s for i in b)


def test_evaluation_order_is_by_length_and_complete():
    data = tiny_data({"a": 30, "b": 3}, batch_size=7)
    loader = data.val_dataloader()
    widths = [b["input_ids"].shape[1] for b in loader]
    assert widths == sorted(widths)
    assert sum(len(b["task"]) for b in loader) == 4


def test_task_documents_and_n_tokens_count_training_alone():
    data = tiny_data({"a": 5, "b": 3})
    assert data.task_documents == [5, 3]
    scored = sum(int((b["labels"][:, 1:] != -100).sum()) for b in data.train_dataloader())
    assert data.n_tokens == scored
    assert torch.is_tensor(next(iter(data.train_dataloader()))["task"])
