"""Which devices a training takes."""

from __future__ import annotations

import pytest
import torch

from simsearch.training import run


def test_training_takes_the_only_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []

    def set_device(device: torch.device) -> None:
        if device.index is None:
            raise ValueError("Expected a torch.device with a specified index")
        taken.append(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(run, "choose_device", lambda name: name)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert run._device("cuda") == torch.device("cuda")
    assert run._device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert run._device("cuda") == torch.device("cuda:2")
    assert taken == [torch.device("cuda:1"), torch.device("cuda:2")]
