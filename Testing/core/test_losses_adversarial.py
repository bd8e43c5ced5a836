"""Adversarial refinement by hand, and whom its gradients reach."""

import math

import numpy as np
import pytest
import torch

from medsegcore.losses.adversarial import AdversarialLoss
from medsegcore.networks import create_network


@pytest.fixture
def pair():
    torch.manual_seed(1)
    network = create_network("unet", {"in_channels": 2, "width": 4})
    loss = AdversarialLoss(in_channels=2, width=4)
    image = torch.randn(2, 2, 32, 32)
    target = (torch.rand(2, 1, 32, 32) < 0.3).float()
    return network, loss, image, target


def test_a_discriminator_without_opinion_adds_ln_2_to_the_cross_entropy(pair):
    network, loss, image, target = pair
    last = [m for m in loss.discriminator.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    logits = network(image)
    p = torch.softmax(logits, 1).detach().numpy()
    y = target.numpy()[:, 0].astype(int)
    plain = -np.log(np.where(y == 1, p[:, 1], p[:, 0])).mean()
    assert loss.for_network(logits, image, target).item() == pytest.approx(
        plain + 0.1 * math.log(2), abs=1e-5
    )
    assert loss.for_discriminator(logits, image, target).item() == pytest.approx(math.log(2))


def test_each_loss_teaches_its_own_network(pair):
    network, loss, image, target = pair
    loss.for_discriminator(network(image), image, target).backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in loss.discriminator.parameters())
    plain = create_network("unet", {"in_channels": 2, "width": 4})
    plain.load_state_dict(network.state_dict())
    loss.for_network(network(image), image, target).backward()
    torch.nn.functional.cross_entropy(plain(image), target[:, 0].long()).backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
    different = [
        not torch.allclose(a.grad, b.grad, atol=1e-7)
        for a, b in zip(network.parameters(), plain.parameters(), strict=True)
    ]
    assert any(different), "the discriminator's opinion reaches the network"


def test_a_trained_discriminator_tells_the_expert_from_noise(pair):
    network, loss, image, target = pair
    optimiser = torch.optim.Adam(loss.discriminator.parameters(), 1e-3)
    logits = network(image)
    start = loss.for_discriminator(logits, image, target).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss.for_discriminator(logits, image, target).backward()
        optimiser.step()
    assert loss.for_discriminator(logits, image, target).item() < 0.5 * start
