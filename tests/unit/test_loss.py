"""Losses summed over tokens, their global mean, and accuracy as greedy decoding would have it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from lm2.train.batches import Batch, Spans
from lm2.train.loss import (
    answer_accuracy,
    learned_places,
    scale_loss,
    supervised_logits,
    supervised_weight,
    token_losses,
)

VOCAB = 11


def _batch(rows: list[list[int]], answers: list[Spans], weights: Tensor | None = None) -> Batch:
    size = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (size - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (size - len(row)) for row in rows])
    labels = torch.full_like(input_ids, -100)
    for row, spans in enumerate(answers):
        for begin, end in spans:
            labels[row, begin:end] = input_ids[row, begin:end]
    return Batch(input_ids, labels, mask, weights, 0, "task", (1,) * len(rows), tuple(answers), "by hand")


def _random_batch(generator: torch.Generator, lengths: list[int], is_weighted: bool = False) -> Batch:
    rows = [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    answers: list[Spans] = [((length // 2, length // 2 + 1 + row % 2),) for row, length in enumerate(lengths)]
    batch = _batch(rows, answers)
    if not is_weighted:
        return batch
    return Batch(**{**vars(batch), "weights": torch.rand(batch.input_ids.shape, generator=generator) + 0.5})


def _picked(logits: Tensor, batch: Batch) -> Tensor:
    """Of all logits, those that the loss needs."""
    return logits[learned_places(batch.labels)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).double()


def test_sums_are_those_of_single_tokens(generator: torch.Generator) -> None:
    batch = _random_batch(generator, [9, 5, 7])
    logits = torch.randn(3, 9, VOCAB, generator=generator)
    expected = [
        cross_entropy(logits[row, place - 1], batch.input_ids[row, place])
        for row, spans in enumerate(batch.answers)
        for begin, end in spans
        for place in range(begin, end)
    ]
    loss, weight = token_losses(_picked(logits, batch), batch.labels)
    assert weight == len(expected) == supervised_weight(batch) == 4
    torch.testing.assert_close(loss, torch.stack(expected).sum())
    # transformers' own loss is the mean of the same.
    torch.testing.assert_close(
        loss / weight,
        cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100),
    )


def test_weights_count_labels(generator: torch.Generator) -> None:
    batch = _random_batch(generator, [6, 6], is_weighted=True)
    assert batch.weights is not None
    logits = torch.randn(2, 6, VOCAB, generator=generator)
    loss, weight = token_losses(_picked(logits, batch), batch.labels, batch.weights)
    places = [(row, place) for row, spans in enumerate(batch.answers) for b, e in spans for place in range(b, e)]
    losses = [cross_entropy(logits[row, t - 1], batch.input_ids[row, t]) * batch.weights[row, t] for row, t in places]
    torch.testing.assert_close(loss, torch.stack(losses).sum())
    torch.testing.assert_close(weight, torch.stack([batch.weights[place] for place in places]).sum())
    assert supervised_weight(batch) == pytest.approx(weight.item(), rel=1e-6)
    ones = torch.ones_like(batch.weights)
    torch.testing.assert_close(
        token_losses(_picked(logits, batch), batch.labels, ones),
        token_losses(_picked(logits, batch), batch.labels),
        check_dtype=False,
    )


def test_the_first_token_is_not_learned() -> None:
    batch = _batch([[1, 2, 3]], [((0, 3),)])
    assert supervised_weight(batch) == 2
    assert token_losses(torch.zeros(2, VOCAB), batch.labels)[1] == 2


def test_losses_are_float32_under_bfloat16(generator: torch.Generator) -> None:
    batch = _random_batch(generator, [40, 40])
    logits = torch.randn(2, 40, VOCAB, generator=generator).bfloat16()
    loss, _ = token_losses(_picked(logits, batch), batch.labels)
    assert loss.dtype == torch.float32
    expected, _ = token_losses(_picked(logits.float(), batch), batch.labels)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_nothing_to_learn_has_gradient_zero() -> None:
    batch = _batch([[1, 2, 3]], [()])
    logits = torch.randn(1, 3, VOCAB, requires_grad=True)
    loss, weight = token_losses(_picked(logits, batch), batch.labels)
    assert (loss.item(), weight.item(), supervised_weight(batch)) == (0, 0, 0)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("is_weighted", [False, True])
def test_accumulation_over_unequal_batches_equals_one_large_batch(
    generator: torch.Generator, model: nn.Module, is_weighted: bool
) -> None:
    """Also over processes, whose gradients DDP and FSDP average."""
    whole = _random_batch(generator, [9] * 6, is_weighted)
    labels = whole.labels.clone()
    # Row 0 alone has as many supervised tokens as all others together.
    labels[0] = whole.input_ids[0]

    def gradients(shares: list[list[list[int]]]) -> list[Tensor]:
        """Of processes that each read micro-batches of these rows."""
        micro = [
            [
                Batch(
                    **{
                        **vars(whole),
                        "input_ids": whole.input_ids[rows],
                        "labels": labels[rows],
                        "attention_mask": whole.attention_mask[rows],
                        "weights": None if whole.weights is None else whole.weights[rows],
                    }
                )
                for rows in share
            ]
            for share in shares
        ]
        total = sum(supervised_weight(batch) for share in micro for batch in share)
        sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for share in micro:
            model.zero_grad()
            for batch in share:
                logits = supervised_logits(model, batch)
                loss, _ = token_losses(logits, batch.labels, batch.weights)
                scale_loss(loss, total, len(shares)).backward()
            for summed, parameter in zip(sums, model.parameters(), strict=True):
                summed += parameter.grad / len(shares)
        return sums

    model.zero_grad()
    logits = model(input_ids=whole.input_ids, attention_mask=whole.attention_mask, use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
    counted = (labels[:, 1:] != -100) * (1.0 if whole.weights is None else whole.weights[:, 1:].double())
    ((losses * counted.flatten()).sum() / counted.sum()).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for shares in (
        [[[0, 1, 2, 3, 4, 5]]],
        [[[0], [1, 2, 3, 4], [5]]],
        [[[0, 1]], [[2, 3]], [[4, 5]]],
        [[[0], [1]], [[2, 3], [4, 5]]],
    ):
        for one, other in zip(expected, gradients(shares), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# --- logits ---


def test_supervised_logits_are_those_of_a_whole_forward(generator: torch.Generator, model: nn.Module) -> None:
    """Values, and gradients of all parameters; and the model is as it was afterwards."""
    batch = _random_batch(generator, [9, 5, 7])
    picked = supervised_logits(model, batch)
    picked.square().sum().backward()
    fast = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    places = [
        (row, t - 1) for row, spans in enumerate(batch.answers) for begin, end in spans for t in range(begin, end)
    ]
    slow = torch.stack([logits[place] for place in places])
    torch.testing.assert_close(picked, slow)
    slow.square().sum().backward()
    for one, other in zip(fast, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)
    assert logits.shape == (3, 9, VOCAB)


def test_supervised_logits_of_a_model_that_hides_its_output_layer(generator: torch.Generator, model: nn.Module) -> None:
    class Hiding(nn.Module):
        def forward(self, **inputs: Tensor) -> object:
            return model(**inputs)

    batch = _random_batch(generator, [6, 8])
    torch.testing.assert_close(supervised_logits(Hiding(), batch), supervised_logits(model, batch))


def test_the_output_layer_sees_learned_places_only(generator: torch.Generator, model: nn.Module) -> None:
    batch = _random_batch(generator, [9, 5, 7])
    seen = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))  # type: ignore[operator, union-attr]
    supervised_logits(model, batch)
    assert seen == [(4, 16)]


# --- accuracy ---


def _logits(batch: Batch, wrong: set[tuple[int, int]] = frozenset()) -> Tensor:  # type: ignore[assignment]
    """Logits that foretell every token but those at the places in `wrong`."""
    foretold = batch.input_ids.clone()
    for row, place in wrong:
        foretold[row, place] = (foretold[row, place] + 1) % VOCAB
    return _picked(nn.functional.one_hot(foretold, VOCAB).float().roll(-1, 1), batch)


def test_an_answer_is_right_if_all_its_tokens_are() -> None:
    batch = _batch([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2]], [((1, 3), (4, 6)), ((2, 5),)])
    assert answer_accuracy(_logits(batch), batch) == {1: (3, 3)}
    assert answer_accuracy(_logits(batch, {(0, 3), (1, 1)}), batch) == {1: (3, 3)}
    assert answer_accuracy(_logits(batch, {(0, 2)}), batch) == {1: (2, 3)}
    assert answer_accuracy(_logits(batch, {(0, 5)}), batch) == {1: (2, 3)}
    assert answer_accuracy(_logits(batch, {(1, 2), (1, 3), (1, 4)}), batch) == {1: (2, 3)}
    assert answer_accuracy(_logits(batch, {(0, 1), (0, 4), (1, 4)}), batch) == {1: (0, 3)}


def test_answers_are_counted_by_task() -> None:
    batch = _batch([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2], [3, 4, 5]], [((1, 3), (4, 6)), ((2, 5),), ((1, 2),)])
    batch = replace(batch, tasks=(4, 1, 4))
    assert answer_accuracy(_logits(batch, {(0, 3), (0, 5)}), batch) == {4: (2, 3), 1: (1, 1)}
    assert answer_accuracy(_logits(batch, {(1, 4)}), replace(batch, tasks=())) == {None: (3, 4)}


def test_no_question_is_no_score() -> None:
    batch = _batch([[1, 2]], [()])
    assert answer_accuracy(torch.zeros(0, VOCAB), batch) == {}


def test_accuracy_equals_greedy_decoding(generator: torch.Generator, model: nn.Module) -> None:
    """Greedy answers, one of which is then spoiled, count as right exactly if generate() writes the same."""
    rows, answers, spoiled = [], [], []
    for number in range(12):
        prompt = torch.randint(1, VOCAB, (1, 3 + number % 4), generator=generator)
        row = model.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()  # type: ignore[operator]
        if number % 3 == 0:
            place = prompt.shape[1] + number // 3 % 3
            row[place] = row[place] % (VOCAB - 1) + 1
            spoiled.append(number)
        rows.append(row)
        answers.append(((prompt.shape[1], prompt.shape[1] + 3),))
    batch = _batch(rows, answers)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    assert answer_accuracy(_picked(logits, batch), batch) == {1: (8, 12)}
    assert len(spoiled) == 4
