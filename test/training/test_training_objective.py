from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from dtp_ros.sim.instructions import phrases
from dtp_ros.sim.tasks import TASKS
from dtp_ros.training.demonstrations import TASK_NAMES
from dtp_ros.training.objective import CENTRE, SPREAD, Batch, Batches, Objective


@pytest.fixture
def batches(frames, statistics, config, tokenizer):
    return Batches(frames, statistics, config, tokenizer, seed=1)


def one(batch: Batch, index: int) -> Batch:
    """Sample `index` alone, without the padding of the others."""
    part = Batch(*(getattr(batch, f.name)[index : index + 1] for f in fields(Batch)))
    return replace(part, words=part.words[:, : int(part.lengths)])


def test_every_word_of_every_phrase_is_known(tokenizer):
    for task in TASKS.values():
        for phrase in phrases(task):
            assert 0 not in tokenizer.encode(phrase).ids


def test_a_batch_is_the_same_whenever_it_is_asked_for(batches):
    first, other = batches(3, 8), batches(4, 8)
    for field in fields(Batch):
        assert getattr(batches(3, 8), field.name).equal(getattr(first, field.name))
    assert not first.pixels.equal(other.pixels)


def test_what_a_batch_holds_follows_from_the_frames(batches, frames, statistics, tokenizer):
    index = np.arange(12)
    batch = batches.plain(index)
    for i in index:
        words = batch.words[i, : batch.lengths[i]].tolist()
        assert tokenizer.decode(words) == TASKS[TASK_NAMES[frames.tasks[i]]].instruction
        np.testing.assert_array_equal(batch.pixels[i].permute(1, 2, 0).numpy(), frames.images[i])
        physical = frames.actions[i, :6].clip(statistics.q01[:6], statistics.q99[:6])
        middle = statistics.q01 + (batch.bins[i].numpy() + 0.5) / 256 * (statistics.q99 - statistics.q01)
        assert (np.abs(middle[:6] - physical) <= (statistics.q99 - statistics.q01)[:6] / 512 + 1e-6).all()
        assert batch.bins[i, 6] == 255 * frames.actions[i, 6]
        np.testing.assert_allclose(
            batch.positions[i].reshape(3, 3).numpy() * SPREAD + CENTRE, frames.positions[i], atol=1e-6
        )


def test_what_later_tokens_see_is_drawn_from_the_soft_targets(batches, frames):
    """Else they would know from one exact bin that a way is over; the loss still asks for the true bins."""
    index = np.arange(12)
    assert batches.plain(index).known.equal(batches.plain(index).bins[:, :6])
    away = torch.cat([(batch.known - batch.bins[:, :6]) for batch in (batches(i, 64) for i in range(20))]).double()
    inner = torch.cat([batch.bins[:, :6] for batch in (batches(i, 64) for i in range(20))])
    away = away[(inner > 10) & (inner < 245)]  # where no end of the range cuts
    assert abs(float(away.mean())) < 0.1
    assert float(away.std()) == pytest.approx(2.0, abs=0.15)
    known = batches(3, 64).known
    assert known.min() >= 0
    assert known.max() <= 255


def test_headings_follow_from_the_label(batches, frames):
    """Above the source, the label's yaw is half of what brings the gripper's heading to the source's.

    Both headings come as cosine and sine of twice the angle, of a block of four times.
    """
    index = np.arange(len(frames))
    headings = batches.plain(index).headings.numpy()
    times = np.array([4 if "stack" in TASK_NAMES[task] else 2 for task in frames.tasks])
    source, gripper = (np.arctan2(headings[:, i + 1], headings[:, i]) for i in (0, 2))
    left = np.angle(np.exp(1j * (source - gripper))) / times
    level = np.abs(frames.actions[:, 3:5]).max(axis=1) < 0.01  # else the label's Euler angles mix
    reaching = (frames.held == 0) & (frames.actions[:, 6] == 1) & level & (np.abs(frames.actions[:, 5]) > 0.01)
    assert reaching.sum() > 10
    turned = np.angle(np.exp(1j * times * (2 * frames.actions[:, 5] - left))) / times
    assert np.abs(turned[reaching]).max() < 0.05


def test_a_share_of_image_tokens_is_hidden_and_nothing_else_changes(frames, statistics, config, tokenizer, batches):
    dropped = Batches(frames, statistics, config, tokenizer, seed=1, drop=0.4)(3, 256)
    shares = dropped.hidden.float().mean(dim=1)
    assert float(shares.mean()) == pytest.approx(0.2, abs=0.03)
    assert float(shares.std()) > 0.1  # each sample has its own
    plain = batches(3, 256)
    assert not plain.hidden.any()
    for field in fields(Batch):
        assert field.name == "hidden" or getattr(dropped, field.name).equal(getattr(plain, field.name))


def test_what_is_hidden_moves_no_action_and_no_position(network, batches, monkeypatch):
    """Other tokens in the hidden places give the same actions, as if they were not there."""
    batch = batches(0, 6)
    hidden = torch.rand(6, network.config.side**2) < 0.4
    batch = replace(batch, hidden=hidden)
    objective = Objective(network).eval()
    with torch.no_grad():
        before = objective(batch)
        own = network.image_tokens(batch.pixels)
        monkeypatch.setattr(network, "image_tokens", lambda pixels: torch.where(hidden[..., None], 7.0, own))
        after = objective(batch)
        monkeypatch.setattr(network, "image_tokens", lambda pixels: torch.where(hidden[..., None], own, 7.0))
        others = objective(batch)
    for name in ("action", "position", "heading", "held"):
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert abs(float(others["action"] - before["action"])) > 1e-3


def test_padding_changes_nothing(network, tokenizer, batches):
    """Losses of a batch with phrases of many lengths are the mean of the samples' own, each without padding."""
    batch = batches(0, 6)
    assert len(set(batch.lengths.tolist())) > 1
    objective = Objective(network).eval()
    with torch.no_grad():
        together = objective(batch)
        alone = [objective(one(batch, i)) for i in range(6)]
    for name in ("action", "pointing", "position", "heading", "held"):
        mean = torch.stack([losses[name] for losses in alone]).mean()
        torch.testing.assert_close(together[name], mean, atol=2e-5, rtol=1e-5)


def test_the_action_loss_is_the_cross_entropy_of_soft_bins(network, tokenizer, batches):
    """In float64 numpy: Gaussians of 2 bins about the true value, summing to 1; one bin for the gripper."""
    batch = batches.plain(np.arange(4))
    kept = []
    handle = network.lm_head.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        loss = float(Objective(network)(batch)["action"])
    handle.remove()
    logits = kept[0][..., network.config.vocabulary :].double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    place = (batch.action.double().numpy() + 1) / 2 * 256
    target = np.exp(-0.5 * ((np.arange(256) + 0.5 - place[..., None]) / 2) ** 2)
    target /= target.sum(-1, keepdims=True)
    expected = -(target * log_p).sum(-1)
    rows = np.arange(4)
    expected[:, 6] = -log_p[rows, 6, batch.bins[:, 6].numpy()]
    assert loss == pytest.approx(expected.mean(), abs=1e-5)


def test_a_few_steps_lower_every_loss(network, tokenizer, batches):
    objective = Objective(network)
    optimiser = torch.optim.AdamW(objective.parameters(), 3e-3)
    batch = batches.plain(np.arange(16))
    history = []
    for _ in range(40):
        losses = objective(batch)
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in ("action", "pointing", "position"):
        assert history[-1][name] < 0.8 * history[0][name], name
