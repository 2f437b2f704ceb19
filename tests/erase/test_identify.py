"""What is told of single images."""

import torch
from torch import nn
from torch.nn import functional

from pbe_fast.erase import Outcome


def test_an_outcome_is_a_loss_and_the_likeliest_label() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-5.0, -4.0, -4.5]])
    images, labels = logits.reshape(3, 3, 1, 1), torch.tensor([0, 1, 1])
    measure = Outcome(nn.Flatten())
    found = measure(images, labels)
    assert found.shape[1:] == measure.shape
    assert found[:, 1].tolist() == [0, 0, 1]
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found[:, 0], expected)
