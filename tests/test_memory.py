"""What a training needs of memory, and what is said when it is not there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbldm.run.errors import InputError
from sbldm.run.folder import load_preset
from sbldm.run.models import MODELS
from sbldm.training import memory
from sbldm.training.memory import LiveBytes, check_memory, training_bytes

CPU = torch.device("cpu")
KB = 4 * 256  # of 256 numbers


def test_what_lives_at_once_is_counted() -> None:
    """Three tensors of a kilobyte, of which at most two live at once; a view is none of its own."""
    with LiveBytes() as live:
        one = torch.ones(256)
        two = one + 1
        del one
        three = two.view(16, 16) * 2
        assert live.now == 2 * KB
        del two
    assert (live.now, live.peak) == (KB, 2 * KB) and three.numel() == 256


def test_a_backward_pass_keeps_activations() -> None:
    """Of n layers with a squared activation each, n kept inputs are added to the gradients."""
    with torch.device("meta"):
        weights = [nn.Parameter(torch.zeros(256)) for _ in range(10)]
        x = torch.zeros(256)
        with LiveBytes() as live:
            for weight in weights:
                x = (x * weight).square()
            before = live.now
            x.sum().backward()
    assert before >= 10 * 2 * KB - KB  # products, and squares as the next layer's inputs
    assert live.peak >= before


@pytest.mark.parametrize("model", [name for name in MODELS if MODELS[name].stages])
def test_every_model_is_counted(model: str) -> None:
    """For each stage more than its weights with gradients and moments, and more with a larger batch."""
    preset = load_preset("demo", model)
    for stage in MODELS[model].stages:
        found = training_bytes(preset, stage)
        values = preset.stage(stage)
        more = preset.but(**{stage: values.but(batch_size=2 * values.batch_size)})
        assert training_bytes(more, stage) > found > 1e6


def test_fast_trains_within_eight_gigabytes() -> None:
    """Counted in single precision; `small` within one."""
    fast, small = load_preset("fast"), load_preset("small")
    assert max(training_bytes(fast, stage) for stage in ("autoencoder", "diffusion")) < 6e9
    assert max(training_bytes(small, stage) for stage in ("autoencoder", "diffusion")) < 1e9


def test_advice_is_of_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several channels are told of a preset of several, never of phantoms'."""
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2**30)
    with pytest.raises(InputError, match=r"take a new run with --preset multimodal \("):
        check_memory(load_preset("multimodal_fast"), "autoencoder", CPU, mixed=False)


def test_too_little_memory_is_said_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the preset that fits; without a word where it fits or nobody knows."""
    fast = load_preset("fast")
    for free in (None, 64 * 2**30):
        monkeypatch.setattr(memory, "_free_bytes", lambda device, free=free: free)
        check_memory(fast, "autoencoder", CPU, mixed=False)
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2**30)
    with pytest.raises(
        InputError,
        match=r"autoencoder of the preset 'fast' needs .* GB .*1.1 GB are free on cpu; .*--preset small",
    ):
        check_memory(fast, "autoencoder", CPU, mixed=False)
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2**20)
    with pytest.raises(InputError, match="lower batch_size"):
        check_memory(load_preset("small"), "diffusion", CPU, mixed=True)
