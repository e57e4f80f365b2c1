"""A growing tensor is a tensor that is concatenated, cropped and reordered."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sparsight.ops import GrowingTensor

HEADS, WIDTH = 2, 3


class Growing(RuleBasedStateMachine):
    """Any order of operations, beside plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = GrowingTensor()
        self.model = None
        self.count = 0

    @rule(new=st.integers(0, 9))
    def append(self, new):
        batch = 2 if self.model is None else self.model.shape[0]
        rows = torch.arange(batch * HEADS * new * WIDTH).view(batch, HEADS, new, WIDTH) + 1000.0 * self.count
        self.count += 1
        self.model = rows if self.model is None else torch.cat([self.model, rows], dim=2)
        assert torch.equal(self.buffer.append(rows), self.model)

    @rule(length=st.integers(-1, 30))
    def crop(self, length):
        self.buffer.crop(length)
        if self.model is not None:
            self.model = self.model[:, :, : max(length, 0)]

    @precondition(lambda self: self.model is not None)
    @rule(data=st.data())
    def take_batch(self, data):
        chosen = data.draw(st.lists(st.integers(0, self.model.shape[0] - 1), min_size=1, max_size=3))
        self.buffer.take_batch(torch.tensor(chosen))
        self.model = self.model[chosen]

    @invariant()
    def same(self):
        if self.model is None:
            assert self.buffer.empty and self.buffer.nbytes == 0
            return
        assert torch.equal(self.buffer.view, self.model)
        assert self.buffer.length == self.model.shape[2]
        assert self.buffer.empty == (self.model.shape[2] == 0)
        assert self.buffer.nbytes == self.model.numel() * 4


Growing.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestGrowing = Growing.TestCase


def test_view_of_nothing():
    with pytest.raises(RuntimeError, match="nothing was appended"):
        _ = GrowingTensor().view


def test_one_row_at_a_time_copies_seldom():
    buffer = GrowingTensor()
    places = {buffer.append(torch.zeros(1, 1, 1, 4)).data_ptr() for _ in range(2000)}
    assert len(places) < 20
