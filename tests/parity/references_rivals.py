"""
What RMT and ARMT compute, once more, as in `references.py`: float64, one document, token after token, head after head,
written from the equations of their papers (RMT: Bulatov et al. 2022, arXiv 2207.06881; ARMT: Rodkin et al. 2024, arXiv
2407.04841, section 2.2; DPFP: Schlag et al. 2021, arXiv 2102.11174).

Shapes: as there; M memory tokens, W width of keys before DPFP, P numbers of a key behind it.
"""

import torch
from parity.references import Part, mlp, plain_attention, sigmoid, to_logits
from torch import Tensor

EPSILON = 1e-5


def llama_block(block: Part, config, hiddens: list[Tensor]) -> list[Tensor]:
    """Llama's block on one segment, memory tokens included; places count from 0."""
    keys, values, outputs = [], [], []
    for place, hidden in enumerate(hiddens):
        x = block.norm("input_layernorm", hidden, config.rms_norm_eps)
        hidden = hidden + plain_attention(block, config, x, place, 0, keys, values)
        outputs.append(hidden + mlp(block, block.norm("post_attention_layernorm", hidden, config.rms_norm_eps)))
    return outputs


def segments_of(token_ids: list[int], length: int) -> list[list[int]]:
    return [token_ids[start : start + length] for start in range(0, len(token_ids), length)]


def is_cut(config, number: int) -> bool:
    return bool(config.bptt_segments) and number > 0 and number % config.bptt_segments == 0


def rmt_model(weights: dict[str, Tensor], config, token_ids: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits [T, V] of one document, and the memory [M, D] after its last full segment."""
    model = Part(weights)
    memory, outputs = list(model["model.memory.tokens"]), []
    for number, segment in enumerate(segments_of(token_ids, config.segment_length)):
        if is_cut(config, number):
            memory = [vector.detach() for vector in memory]
        is_full = len(segment) == config.segment_length
        embedded = [model["model.embed_tokens.weight"][token] for token in segment]
        hiddens = memory + embedded + (memory if is_full else [])
        for index in range(config.num_hidden_layers):
            hiddens = llama_block(model.part(f"model.layers.{index}."), config, hiddens)
        first = len(memory)
        outputs += hiddens[first : first + len(segment)]
        if is_full:
            memory = [model.norm("model.norm", hidden, config.rms_norm_eps) for hidden in hiddens[-first:]]
    return to_logits(model, config, outputs), [torch.stack(memory)]


def dpfp(x_W: Tensor, order: int) -> Tensor:
    """Products of each number of [relu(x), relu(-x)] with its 1st, 2nd, ... neighbour to the left, around the end."""
    halves = [torch.relu(number) for number in [*x_W, *(-x_W)]]
    return torch.stack([halves[i] * halves[i - shift] for shift in range(1, order + 1) for i in range(len(halves))])


def look_up(matrix_PD: Tensor, count_P: Tensor, key_P: Tensor) -> Tensor:
    return sum(number * row for number, row in zip(key_P, matrix_PD, strict=True)) / (count_P @ key_P + EPSILON)


def associate(memory: Part, config, matrix_PD: Tensor, count_P: Tensor, written: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All memory tokens of a segment write at once: each looks up what was there before any of them wrote."""
    next_matrix, next_count = matrix_PD, count_P
    for hidden in written:
        key = dpfp(memory.linear("key", hidden), config.dpfp_order)
        beta = sigmoid(memory.linear("beta", hidden))
        change = beta * (memory.linear("value", hidden) - look_up(matrix_PD, count_P, key))
        gamma = torch.clamp(1 - count_P @ key / (key @ key + EPSILON), 0, 1).detach()
        next_matrix = next_matrix + torch.outer(key, change)
        next_count = next_count + gamma * key
    return next_matrix, next_count


def armt_model(weights: dict[str, Tensor], config, token_ids: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits [T, V] of one document, and each block's matrix and counts, side by side, [P, D + 1]."""
    model = Part(weights)
    segments = segments_of(token_ids, config.segment_length)
    num_numbers = 2 * config.dpfp_order * config.memory_key_size
    matrices = [torch.zeros(num_numbers, config.hidden_size, dtype=torch.float64)] * config.num_hidden_layers
    counts = [torch.zeros(num_numbers, dtype=torch.float64)] * config.num_hidden_layers
    outputs = []
    for number, segment in enumerate(segments):
        is_full = len(segment) == config.segment_length
        hiddens = [model["model.embed_tokens.weight"][token] for token in segment]
        hiddens += list(model["model.memory.tokens"]) if is_full else []
        for index in range(config.num_hidden_layers):
            block = model.part(f"model.layers.{index}.")
            memory, matrix, count = block.part("memory."), matrices[index], counts[index]
            if is_cut(config, number):
                matrix, count = matrix.detach(), count.detach()
            if number > 0:
                queries = [dpfp(memory.linear("query", hidden), config.dpfp_order) for hidden in hiddens]
                reads = [look_up(matrix, count, query) for query in queries]
                hiddens = [hidden + read for hidden, read in zip(hiddens, reads, strict=True)]
            hiddens = llama_block(block, config, hiddens)
            if is_full:
                matrices[index], counts[index] = associate(memory, config, matrix, count, hiddens[len(segment) :])
        outputs += hiddens[: len(segment)]
    banks = [torch.cat([matrix, count[:, None]], dim=1) for matrix, count in zip(matrices, counts, strict=True)]
    return to_logits(model, config, outputs), banks
