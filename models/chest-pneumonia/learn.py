"""Training: from the train fold to the network's averaged weights."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from augment import augmented
from folds import CLASSES, Row, tensors
from network import Network
from numpy.typing import NDArray
from stepwedge.manifest import Input
from torch import Tensor

SIDE = 128  # pixels of the model's square input
_SEED = 20260
_BATCH = 32
_RATE = 2e-3
_DECAY = 0.02
_SMOOTHING = 0.05
_MIXUP = 0.2  # both parameters of the Beta distribution that mixes two images (Zhang et al. 2018)
_EMA = 0.997  # kept share of the averaged weights at each step


def input_spec(side: int = SIDE) -> Input:
    """The model's input as model.yaml states it. Percentiles make it blind to window and exposure index."""
    return Input.model_validate(
        {
            "name": "image",
            "rows": side,
            "columns": side,
            "presentation": {"kind": "percentile", "low": 0.5, "high": 99.5},
            "fit": "stretch",
            "resampling": "bilinear",
            "mean": [0.5],
            "sd": [0.25],
        }
    )


def plain_spec(side: int) -> Input:
    """The same presentation without normalisation: what augmentation works on."""
    return input_spec(side).model_copy(update={"mean": [0.0], "sd": [1.0]})


def train(images: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int) -> Network:
    """Train for a fixed number of epochs and give the averaged weights; nothing is selected by looking at a fold.

    Parameters
    ----------
    images
        (n, 1, 2 × SIDE, 2 × SIDE), presented on 0…255.
    labels
        (n,) indices into CLASSES.
    """
    torch.manual_seed(_SEED)
    data, target = torch.from_numpy(images), nnf.one_hot(torch.from_numpy(labels), len(CLASSES)).float()
    model = Network(len(CLASSES)).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    steps = epochs * (len(data) // _BATCH)
    step = 0
    for epoch in range(epochs):
        started, total = time.monotonic(), 0.0
        model.train()
        for chosen in torch.randperm(len(data))[: len(data) // _BATCH * _BATCH].view(-1, _BATCH):
            for group in optimiser.param_groups:
                group["lr"] = _rate(step / steps)
            batch = (augmented(data[chosen].float() / 255) - 0.5) / 0.25
            batch, wanted = _mixed(batch, target[chosen])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, _ = model(batch.to(memory_format=torch.channels_last))
            loss = nnf.cross_entropy(logits.float(), wanted, label_smoothing=_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimiser.step()
            step += 1
            _average(averaged, model, min(_EMA, (1 + step) / (10 + step)))
            total += loss.item() * len(chosen)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total / len(data):.4f}, {time.monotonic() - started:.0f} s", flush=True
        )
    return averaged


def _rate(done: float) -> float:
    """Warm-up over a twentieth, then a cosine to zero."""
    if done < 0.05:
        return _RATE * (done / 0.05 + 0.01)
    return _RATE * 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))


def _mixed(batch: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    share = float(np.random.default_rng(int(torch.randint(2**31, (1,)))).beta(_MIXUP, _MIXUP))
    order = torch.randperm(len(batch))
    return share * batch + (1 - share) * batch[order], share * wanted + (1 - share) * wanted[order]


@torch.no_grad()
def _average(averaged: Network, model: Network, keep: float) -> None:
    for mine, theirs in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.dtype.is_floating_point:
            mine.lerp_(theirs, 1 - keep)
        else:
            mine.copy_(theirs)


@torch.no_grad()
def answers(model: Network, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (n, classes) and embeddings (n, EMBEDDING) for input tensors."""
    parts = [model(torch.from_numpy(inputs[i : i + 128])) for i in range(0, len(inputs), 128)]
    return torch.cat([p[0] for p in parts]).numpy(), torch.cat([p[1] for p in parts]).numpy()


def training_images(data: Path, rows: list[Row]) -> NDArray[np.uint8]:
    """The training fold at twice the input's size, so that moving it costs no sharpness."""
    return np.round(tensors(data, rows, plain_spec(2 * SIDE)) * 255).astype(np.uint8)
