"""FLOPs of training runs."""

import pytest
import torch

from inferscale.flops import FlopCallback, FlopCounter
from tests.tiny_models import tiny_model


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        ids = torch.arange(6) + index
        return {"input_ids": ids, "labels": ids}


def test_a_trainer_counts_forward_and_backward(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    callback = FlopCallback()
    trainer = Trainer(tiny_model(), arguments, train_dataset=Rows(), callbacks=[callback])
    trainer.train()

    model, ids = tiny_model().train(), torch.stack([Rows()[0]["input_ids"], Rows()[1]["input_ids"]])
    with FlopCounter(model, mode="exact") as by_hand:
        model(input_ids=ids, labels=ids).loss.backward()
    assert callback.counter.flops == 2 * by_hand.flops
    logged = [row["flops"] for row in trainer.state.log_history if "loss" in row]
    assert logged == [by_hand.flops, 2 * by_hand.flops]
    with FlopCounter(model, mode="exact") as forward:
        model(input_ids=ids)
    assert 2.5 * forward.flops < by_hand.flops < 3.1 * forward.flops
    model(input_ids=ids)  # nothing counts any more
    assert callback.counter.flops == 2 * by_hand.flops


def test_a_module_of_ones_own_is_counted():
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3, bias=False))
    with FlopCounter(module, mode="exact") as counter:
        module(torch.zeros(5, 4))
    assert counter.flops == 2 * 5 * (4 * 8 + 8 * 3)
