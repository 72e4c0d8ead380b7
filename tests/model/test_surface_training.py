"""Two steps of training in the two ways that the documentation names: transformers' Trainer, and Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panoptile.model import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor


class Scenes(torch.utils.data.Dataset[dict[str, Any]]):
    """Random images with random instance maps, ready for the network."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64}, ignore_index=0)
        images = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(count)]
        maps = [np.kron(rng.integers(0, 4, (4, 4)), np.ones((16, 16), int)) for _ in range(count)]
        inputs = processor(images, maps, {1: 0, 2: 4, 3: 2}, return_tensors="pt")
        self.items = [{key: values[i] for key, values in inputs.items()} for i in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Images in a batch, labels in lists, as the documentation's examples have it."""
    batch: dict[str, Any] = {
        k: torch.stack([item[k] for item in items]) for k in ("pixel_values", "pixel_mask")
    }
    return batch | {k: [item[k] for item in items] for k in ("mask_labels", "class_labels")}


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def has_moved(network: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    return all(bool(p.isfinite().all()) for p in network.parameters()) and any(
        not torch.equal(p, before[name]) for name, p in network.named_parameters()
    )


@pytest.fixture(autouse=True)
def _forget_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings for the process; other tests must not inherit them."""
    yield
    state = pytest.importorskip("accelerate").state
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


@pytest.fixture
def network(swin_folder: Path) -> Mask2FormerForUniversalSegmentation:
    return Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder, train_num_points=64).train()


def test_two_steps_under_trainer(network: Mask2FormerForUniversalSegmentation, tmp_path: Path) -> None:
    """``Trainer`` finds the labels and the loss by itself, evaluates, and saves weights that load again."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        prediction_loss_only=True,
    )
    trainer = transformers.Trainer(
        model=network,
        args=arguments,
        train_dataset=Scenes(4),
        eval_dataset=Scenes(2),
        data_collator=collate,
    )
    before = weights_of(network)
    result = trainer.train()
    assert result.global_step == 2
    assert 0 < result.training_loss < 1e4
    assert has_moved(network, before)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert trainer.evaluate()["eval_loss"] > 0
    network.save_pretrained(tmp_path / "trained")
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "trained")
    assert torch.equal(again.class_predictor.weight, network.class_predictor.weight)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_steps_under_accelerate(network: Mask2FormerForUniversalSegmentation, precision: str) -> None:
    """A loop of one's own, in fp32 and in bf16: the loss is fp32, outputs keep their names, weights move."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    loader = torch.utils.data.DataLoader(Scenes(4), batch_size=2, collate_fn=collate)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    model, optimiser, loader = accelerator.prepare(network, optimiser, loader)
    before = weights_of(network)
    for batch in loader:
        output = model(**batch)
        assert output.loss.dtype == torch.float32
        assert type(output).__name__ == "Mask2FormerForUniversalSegmentationOutput"
        accelerator.backward(output.loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.01)
        optimiser.step()
        optimiser.zero_grad()
    assert has_moved(network, before)
    unwrapped = accelerator.unwrap_model(model)
    assert isinstance(unwrapped, Mask2FormerForUniversalSegmentation)
