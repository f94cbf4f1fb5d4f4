"""Losses by a CUDA graph: what is around the graph, on a CPU with a stand-in for the recording."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from delst_hf.model import entailment, replay
from delst_hf.model.entailment import joint_entailment_losses
from delst_hf.model.replay import replayed


@pytest.fixture
def recordings(monkeypatch):
    """The number of replays of each recording, made by running the same code into the same memory."""
    counts = []

    def record(compute, device):
        results, index = compute(), len(counts)
        counts.append(0)

        def again():
            counts[index] += 1
            for own, new in zip(results, compute(), strict=True):
                own.copy_(new)

        return *results, again

    monkeypatch.setattr(replay, "_record", record)
    monkeypatch.setattr(replay, "_is_on_device", lambda x: True)
    monkeypatch.setattr(entailment, "_may_be_replayed", lambda x: True)
    monkeypatch.setattr(replay, "_graphs", {})
    monkeypatch.setattr(replay, "_serves", {"all": True})
    return counts


def make_batch(seed, rows=24):
    generator = torch.Generator().manual_seed(seed)
    image, gene = (torch.randn(rows, 8, generator=generator).requires_grad_() for _ in range(2))
    level = torch.randint(200, 4000, (rows,), generator=generator).float()
    return image, gene, level, torch.tensor(0.7, requires_grad=True), torch.arange(rows) % 3


def gradients(batch, weights=(0.2, 3.0)):
    losses = joint_entailment_losses(*batch)
    total = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    return [loss.detach() for loss in losses], torch.autograd.grad(total, [batch[0], batch[1], batch[3]])


def test_every_batch_has_its_own_losses_and_gradients(recordings):
    batches = [make_batch(seed) for seed in range(5)]
    found = [gradients(batch) for batch in batches]
    assert recordings == [5], "the first by the graph, too: a resumed run begins with it"
    replay._serves["all"] = False
    for (values, slopes), batch in zip(found, batches, strict=True):
        expected_values, expected_slopes = gradients(batch)
        torch.testing.assert_close(values, expected_values)
        torch.testing.assert_close(slopes, expected_slopes)


def test_two_batches_before_their_backward_passes(recordings):
    batches = [make_batch(seed) for seed in range(3)]
    losses = [joint_entailment_losses(*batch) for batch in batches]
    for batch, (cross, intra) in zip(batches, losses, strict=True):
        (cross + intra).mul_(2.0).backward()
        replay._serves["all"] = False
        _, expected = gradients(batch, (2.0, 2.0))
        torch.testing.assert_close((batch[0].grad, batch[1].grad, batch[3].grad), expected)
    assert recordings == [3]


def test_other_shapes_constants_and_needs_are_other_graphs(recordings):
    for _ in range(2):
        for batch in (make_batch(0), make_batch(0, rows=20)):
            gradients(batch)
            sum(joint_entailment_losses(*batch, cross_parent="image")).backward()
            frozen = [x.detach() for x in batch]
            frozen[0].requires_grad_()
            sum(joint_entailment_losses(*frozen)).backward()
    assert recordings == [2] * 6


def test_without_gradients_or_for_many_rows_the_plain_call(recordings, monkeypatch):
    batch = make_batch(0)
    with torch.no_grad():
        for _ in range(3):
            joint_entailment_losses(*batch)
    monkeypatch.setattr(replay, "MOST_ROWS", 10)
    for _ in range(3):
        gradients(batch)
    assert recordings == []


def test_what_cannot_be_recorded_falls_back_with_a_warning(recordings, monkeypatch):
    def fail(compute, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "_record", fail)
    batch = make_batch(0)
    with pytest.warns(UserWarning, match="CUDA graphs do not work on cpu .*operation not permitted"):
        first = gradients(batch)
    second = gradients(batch)
    torch.testing.assert_close(second, first)
    assert not replay._serves["all"]


def test_no_more_graphs_than_are_allowed(recordings, monkeypatch):
    monkeypatch.setattr(replay, "MOST_GRAPHS", 2)
    for rows in (10, 11, 12, 13):
        for seed in range(2):
            gradients(make_batch(seed, rows))
    assert recordings == [2, 2]


def test_a_loss_that_does_not_depend_on_an_input(recordings):
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    for _ in range(2):
        (loss,) = replayed(lambda x, y: [x.square().sum()], "square", [x, y])
    assert torch.autograd.grad(loss, [x, y], allow_unused=True)[0].tolist() == [2.0, 2.0, 2.0]
    assert recordings == [2]


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count, self.devices = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += not func.is_view
        self.devices |= {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        return result


def plain_losses(*batch, form="cone"):
    return entailment._joint_losses(("gene", "fewer", 1.25, (1.0, 1.0, 0.1), form, 0.1), *batch)


def test_the_gradients_of_two_losses_take_hardly_more_operations_than_those_of_their_sum(recordings):
    counts = []
    for losses in (plain_losses, lambda *batch: [sum(plain_losses(*batch))]):
        with Operations() as operations:
            replay._Graph(losses, make_batch(0), (True, True, False, True, False))
        counts.append(operations.count)
    assert counts[0] < 1.25 * counts[1], "a pass for each would be 1.5"


@pytest.mark.parametrize("form", entailment.ENTAILMENT_FORMS)
def test_a_recording_reads_no_number_and_copies_nothing_from_the_host(recordings, form):
    batch = [x.detach().to("meta").requires_grad_(x.requires_grad) for x in make_batch(0)]
    with Operations() as operations:
        graph = replay._Graph(lambda *batch: plain_losses(*batch, form=form), batch, (True, True, False, True, False))
    assert operations.devices == {"meta"}, "a device without numbers: reading one would have raised"
    assert graph.gradients.shape == (2, 2 * 24 * 8 + 1)
