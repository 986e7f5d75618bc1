import numpy as np
import pytest

from bora.data.batches import Batches, Documents
from tests.conftest import encoded_of, tiny_data

DOCUMENTS = Documents([encoded_of([5, 6, 7]), encoded_of([8, 9, 10, 11], 2, 1)], [1, 0])


def test_a_batch_is_padded_on_the_right_and_neither_padding_nor_prompt_is_labelled():
    batch = DOCUMENTS[[0, 1], 2]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch["labels"].tolist() == [[5, 6, 7, -100], [-100, -100, 10, 11]]
    assert batch["task"].tolist() == [1, 0]
    assert batch["batches"] == 2


LENGTHS = np.random.default_rng(0).integers(3, 60, 47)


@pytest.mark.parametrize("order", ["bucketed", "shuffled"])
def test_an_epoch_has_each_document_once_in_an_order_set_by_seed_and_epoch(order):
    def epoch(seed, n):
        batches = Batches(LENGTHS, 4, order, seed)
        batches.set_epoch(n)
        assert {k for _, k in batches} == {len(batches)} == {12}
        return [i for indices, _ in batches for i in indices]

    assert sorted(epoch(0, 0)) == list(range(47))
    assert epoch(0, 0) == epoch(0, 0)
    assert len({tuple(epoch(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


@pytest.mark.parametrize("order", ["bucketed", "shuffled", "given"])
@pytest.mark.parametrize("n_documents", [3, 22, 23, 24, 25])
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_processes_share_each_batch_without_repeating_or_losing_a_document(order, n_documents, batch_size):
    lengths = LENGTHS[:n_documents]
    how = list(reversed(range(n_documents))) if order == "given" else order
    one = Batches(lengths, max(batch_size, 3), how, seed=5)
    shares = [Batches(lengths, batch_size, how, seed=5, rank=r, n_processes=3) for r in range(3)]
    together = list(zip(*shares, strict=True))
    assert len(together) == len(shares[0])
    steps = [sorted(i for indices, _ in step for i in indices) for step in together]
    assert sorted(i for step in steps for i in step) == list(range(n_documents))
    assert all(indices for step in together for indices, _ in step)
    # If no batch of one process would be too small for three, the batches are the same.
    if n_documents % max(batch_size, 3) in (0, *range(3, 9)) and (order != "bucketed" or batch_size == 6):
        assert steps == [sorted(indices) for indices, _ in one]


@pytest.mark.parametrize("order", ["bucketed", "shuffled"])
def test_the_batches_of_an_accumulated_step_form_one_larger_batch(order):
    larger = [sorted(indices) for indices, _ in Batches(LENGTHS, 12, order, seed=2)]
    small = [indices for indices, _ in Batches(LENGTHS, 4, order, seed=2, accumulate=3)]
    assert len(small) == 3 * len(larger)
    steps = [np.concatenate(small[i : i + 3]) for i in range(0, len(small), 3)]
    assert [sorted(step.tolist()) for step in steps] == larger


def test_bucketed_batches_have_similar_tokens_and_little_padding():
    lengths = np.random.default_rng(1).integers(3, 129, 2000)

    def padding_and_tokens(order):
        batches = [indices for indices, _ in Batches(lengths, 16, order)]
        tokens = np.array([lengths[b].sum() for b in batches])
        return 1 - tokens.sum() / sum(len(b) * lengths[b].max() for b in batches), tokens

    padding, tokens = padding_and_tokens("bucketed")
    plain_padding, plain_tokens = padding_and_tokens("shuffled")
    assert padding < 0.12 < 0.4 < plain_padding
    assert tokens.std() < 0.1 * tokens.mean() < plain_tokens.std()


def test_batches_of_one_document_stay_so_if_one_is_much_longer():
    batches = [indices for indices, _ in Batches([500, 3, 3, 3, 3], 1)]
    assert sorted(batches) == [[0], [1], [2], [3], [4]]


def test_evaluation_order_is_by_length_and_complete():
    data = tiny_data({"a": 30, "b": 3}, batch_size=7)
    loader = data.val_dataloader()
    widths = [b["input_ids"].shape[1] for b in loader]
    assert widths == sorted(widths)
    assert sum(len(b["task"]) for b in loader) == 4
