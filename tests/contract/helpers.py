"""What several files of the contract suite do with models: feed them in pieces, pad rows, compare numbers."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from contract.subjects import SEGMENT, TINY, VOCAB, Subject, enlarge
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

# On float32 logits of size 1.
TOLERANCE = 1e-4


def random_ids(num_rows: int, num_tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def other_ids(ids: Tensor) -> Tensor:
    """Ids that differ everywhere."""
    return (ids + 1) % VOCAB


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor, **arguments) -> Tensor:
    return model(ids, **arguments).logits


def cut(ids: Tensor, sizes: Iterable[int]) -> list[Tensor]:
    """Pieces of [B, T] ids; the sizes are used over and over until all tokens are taken."""
    pieces, first, sizes = [], 0, itertools.cycle(sizes)
    while first < ids.shape[1]:
        size = next(sizes)
        pieces.append(ids[:, first : first + size])
        first += size
    return pieces


def stream(model: PreTrainedModel, ids: Tensor, sizes: Iterable[int], cache) -> Tensor:
    """Logits of all tokens, read piece by piece through a cache."""
    return torch.cat([model(piece, cache=cache).logits for piece in cut(ids, sizes)], dim=1)


def pad(rows: Sequence[Tensor], left: Sequence[int], num_columns: int, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids in a batch, row i after left[i] columns of padding: ids and attention mask, [B, num_columns]."""
    ids = torch.full((len(rows), num_columns), filler)
    mask = torch.zeros(len(rows), num_columns, dtype=torch.long)
    for index, (row, first) in enumerate(zip(rows, left, strict=True)):
        ids[index, first : first + len(row)] = row
        mask[index, first : first + len(row)] = 1
    return ids, mask


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to float32 rounding, parameter by parameter, relative to the length of the gradient."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        error = (actual[name] - gradient).norm() / gradient.norm()
        assert error < TOLERANCE, (name, error)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """All gradients, taken off the model."""
    taken = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return taken


def attention_window(model: PreTrainedModel) -> int | None:
    """Segments that self-attention spans: one, where a configuration leaves no choice."""
    return getattr(model.config, "attention_window", 1)


def assert_memory_matters(subject: Subject, model: PreTrainedModel, ids: Tensor) -> None:
    """What earlier segments wrote changes the logits of later ones, and only those; else a test would prove nothing."""
    full, ablated = logits_of(model, ids, use_cache=False), subject.ablated_logits(model, ids)
    assert torch.equal(full[:, :SEGMENT], ablated[:, :SEGMENT])
    for segment in (full - ablated)[:, SEGMENT:].split(SEGMENT, dim=1):
        assert segment.abs().max() > 0.1


def enlarged_llama(**fields) -> LlamaForCausalLM:
    """A tiny Llama with weights as large as those of the subjects."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = LlamaForCausalLM(LlamaConfig(**(TINY | fields)))
    return enlarge(llama).eval()
