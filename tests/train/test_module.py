"""Lightning trains the model: accumulated batches equal larger ones, and a checkpoint holds exactly the model's state."""

import math
from types import SimpleNamespace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from bora.model.likelihood import n_scored
from bora.train.module import TrainingModule
from bora.train.perplexity import DocumentNLL, Groups, paired_difference
from tests.conftest import hierarchical, random_factors, silent_trainer, tiny_data, tiny_opt


def build(data, tau: float = 5.0, **options) -> TrainingModule:
    torch.manual_seed(0)
    model = hierarchical(tiny_opt(), data.corpus.task_names, data.task_documents, data.n_tokens, tau, **options)
    return TrainingModule(model, lr=1e-2)


def fit(batch_size: int, accumulate: int = 1, tau: float = 5.0) -> TrainingModule:
    data = tiny_data({"a": 6, "b": 3}, batch_size)
    module = build(data, tau)
    silent_trainer(max_epochs=2, accumulate_grad_batches=accumulate).fit(module, data)
    return module


def test_accumulated_batches_equal_a_larger_batch_even_if_the_last_window_is_short():
    # 9 documents: two windows of 2 × 3 and 1 × 3, against batches of 6 and 3.
    accumulated, whole = fit(batch_size=3, accumulate=2), fit(batch_size=6)
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict(), rtol=0, atol=1e-5)


def test_the_logged_gradient_norms_equal_those_of_the_steps_gradients():
    data = tiny_data({"a": 6, "b": 3}, batch_size=9)
    module, alone = build(data), build(data).model
    silent_trainer(max_steps=1, log_every_n_steps=1).fit(module, data)
    (batch,) = data.train_dataloader()
    alone.objective(batch).loss.backward()
    expected = {"tasks": alone.adapters.stored.grad.to_dense().norm(), "mean": alone.adapters.mean.grad.norm()}
    assert module.gradient_norms == pytest.approx({f"grad_norm/{k}": float(v) for k, v in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("tau", [0.0, 5.0, math.inf])
def test_running_averages_are_validated_and_do_not_change_training(tau):
    data = tiny_data({"a": 6, "b": 3}, batch_size=3)
    plain, averaged = build(data, tau), build(data, tau)
    averaged.average = True
    steps, nlls = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            steps.append(module.model.adapters.mean.detach().clone())

        def on_validation_end(self, trainer, module):
            expected = steps[0]
            for t, mean in enumerate(steps[1:], 2):
                expected = expected + 10 / (t + 9) * (mean - expected)
            if tau:  # at τ = 0 it is computed from the tasks
                torch.testing.assert_close(module.model.adapters.mean.detach(), expected)
            batches = list(data.val_dataloader())
            nats = sum(float(module.model.nll(batch).sum()) for batch in batches)
            assert float(trainer.callback_metrics["val/nll"]) == pytest.approx(
                nats / sum(int(n_scored(batch["labels"]).sum()) for batch in batches), rel=1e-5
            )
            nlls.append(float(trainer.callback_metrics["val/nll"]))

    silent_trainer(max_epochs=3).fit(plain, data)
    silent_trainer(max_epochs=3, callbacks=[Watch()]).fit(averaged, data)
    assert len(nlls) == 3
    theirs, ours = (module.model.adapters for module in (plain, averaged))
    for name in ours.suffixes if tau else ("stored",):  # at τ = 0 Θ is not trained
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


def test_at_tau_zero_the_mean_is_the_average_of_the_tasks():
    adapters = fit(batch_size=4, tau=0.0).model.adapters
    torch.testing.assert_close(adapters.mean, adapters.stored.mean(0))
    assert adapters.distances().min() > 0


def test_a_checkpoint_holds_what_is_trained_and_must_be_complete():
    data = tiny_data({"a": 3, "b": 2})
    module, other = build(data), build(data)
    random_factors(module.model)
    state = module.state_dict()
    assert sum(value.numel() for value in state.values()) == 3 * module.model.n_parameters
    # As Lightning loads it.
    other.load_state_dict(state, strict=other.strict_loading)
    torch.testing.assert_close(other.state_dict(), state, rtol=0, atol=0)
    for spoiled in ({f"model.{key}": value for key, value in state.items()}, {}):
        with pytest.raises(RuntimeError, match="key"):
            other.load_state_dict(spoiled, strict=False)


def test_dropout_differs_by_batch_epoch_and_process_and_is_off_outside_training():
    data = tiny_data({"a": 6, "b": 3}, batch_size=9)
    plain, module = build(data), build(data, dropout=0.5)
    random_factors(plain.model)
    random_factors(module.model)
    (batch,) = data.train_dataloader()

    def loss(epoch: int, batch_idx: int, rank: int) -> float:
        module._trainer = SimpleNamespace(world_size=1, global_rank=rank, current_epoch=epoch, global_step=0)
        return float(module.training_step(batch, batch_idx))

    places = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    losses = [loss(*place) for place in places]
    assert len(set(losses)) == 4
    assert [loss(*place) for place in places] == losses  # whatever has been drawn before
    assert torch.equal(module.model.nll(batch), plain.model.nll(batch))
    assert torch.equal(module.eval().model.objective(batch).loss, plain.model.objective(batch).loss)


def test_the_nll_of_a_single_document_keeps_its_shape():
    metric = DocumentNLL(2, 1)
    metric.update(torch.tensor([[1.0], [3.0]]), torch.tensor([4]), torch.tensor([0]))
    nats, tokens = metric.found()
    assert (nats.tolist(), tokens.tolist()) == ([[1], [3]], [4])
    assert paired_difference(nats[1] - nats[0], tokens, Groups(torch.tensor([0]), 1))["difference"].tolist() == [0.5]


def test_a_paired_difference_and_its_error_equal_those_of_a_ratio_of_sums_over_documents():
    rng = np.random.default_rng(0)
    document = rng.permutation(np.repeat(np.arange(60), 3))  # each document in three pieces
    tokens, task = rng.integers(5, 40, 180), np.repeat([0, 1, 2], [40, 19, 1])
    nll = np.stack([rng.normal(mean, 0.5, 180) * tokens for mean in (3, 3.2)])
    metric = DocumentNLL(2, 60)
    for some in np.array_split(np.arange(180), 7):
        metric.update(*(torch.tensor(v) for v in (nll[:, some], tokens[some], document[some])))
    nats, n_tokens = metric.found()
    found = paired_difference(nats[1] - nats[0], n_tokens, Groups(torch.tensor(task), 3))
    whole = pd.DataFrame({"d": nll[1] - nll[0], "t": tokens}).groupby(document).sum()
    for d in range(2):
        difference, t = whole[task == d].to_numpy().T
        ratio = difference.sum() / t.sum()
        residual = difference - ratio * t
        error = math.sqrt(len(t) * residual.var(ddof=1)) / t.sum()
        assert found["difference"][d].item() == pytest.approx(ratio)
        # Around the ratio, not around the residuals' mean, which is 0.
        assert found["error"][d].item() == pytest.approx(error, rel=1e-9)
    assert math.isnan(found["error"][2].item())
