"""Invariant 1: no logit depends on a later token."""

import pytest
import torch
from contract.helpers import assert_memory_matters, logits_of, other_ids, random_ids
from contract.subjects import LONGEST, SEGMENT, SUBJECT, subjects

CHANGED = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT - 1, 2 * SEGMENT, 3 * SEGMENT, LONGEST - 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@subjects()
def test_changing_a_token_moves_no_earlier_logit(subject, attention):
    model = subject.make(attn_implementation=attention)
    ids = random_ids(2, LONGEST)
    if subject.has_memory:
        assert_memory_matters(subject, model, ids)
    before = logits_of(model, ids)
    for changed in CHANGED:
        changed_ids = ids.clone()
        changed_ids[:, changed] = other_ids(ids[:, changed])
        after = logits_of(model, changed_ids)
        assert torch.equal(after[:, :changed], before[:, :changed]), changed
        assert not torch.equal(after[:, changed], before[:, changed]), changed


@subjects()
def test_logits_have_no_gradient_at_later_tokens(subject):
    model = subject.make()
    ids = random_ids(1, LONGEST)
    for position in (0, SEGMENT - 1, SEGMENT, 2 * SEGMENT + 3, LONGEST - 2):
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embeddings).logits[0, position].square().sum().backward()
        reach = embeddings.grad[0].abs().amax(-1)
        assert bool((reach[position + 1 :] == 0).all()), position
        # All segments so far have a say, also those that attention no longer spans.
        assert all(segment.max() > 0 for segment in reach[: position + 1].split(SEGMENT)), position


@subjects("has_memory")
def test_changing_a_token_moves_no_earlier_logit_of_a_packed_or_padded_row(subject):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    reset = torch.zeros(2, LONGEST, dtype=torch.bool)
    reset[0, 11] = reset[1, 3] = reset[1, 20] = True
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[1, -2:] = 0
    arguments = {"segment_reset": reset, "attention_mask": mask}
    before = logits_of(model, ids, **arguments)
    for changed in CHANGED[2:-1]:
        changed_ids = ids.clone()
        changed_ids[:, changed] = other_ids(ids[:, changed])
        after = logits_of(model, changed_ids, **arguments)
        assert torch.equal(after[0, 2:changed], before[0, 2:changed]), changed
        assert torch.equal(after[1, :changed], before[1, :changed]), changed
        assert not torch.equal(after[:, changed], before[:, changed]), changed


def test_memory_reaches_across_many_segments():
    # Without this, exact zeros at later tokens could come from a memory that carries nothing at all.
    model = SUBJECT["default"].make()
    ids = random_ids(1, 12 * SEGMENT)
    changed_ids = ids.clone()
    changed_ids[:, :SEGMENT] = other_ids(ids[:, :SEGMENT])
    moved = (logits_of(model, ids) - logits_of(model, changed_ids)).abs().amax((0, 2))
    assert bool((moved > 0).all())
