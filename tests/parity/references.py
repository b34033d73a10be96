"""
What the model computes, once more: in float64, one row, one token, one slot and one head after the other, written from
the equations (LM2, arXiv 2502.06049, Eq. 1-6, and the package's description of its own reads and writes). Slow and
obvious; nothing is shared with the package but the names of its parameters and of its configuration's fields.

Shapes: T tokens of a document, D hidden size, N slots, H attention heads, U key-value heads, M memory heads, K or E
width of a head, A width of an address, V vocabulary. A bank is a list of N vectors [D]; a list of vectors is otherwise
one vector per token.
"""

import math

import torch
from torch import Tensor


class Part:
    """The parameters whose names begin with a prefix."""

    def __init__(self, weights: dict[str, Tensor], prefix: str = ""):
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.weights

    def part(self, prefix: str) -> "Part":
        return Part(self.weights, self.prefix + prefix)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = self[f"{name}.weight"] @ x
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return x / torch.sqrt((x * x).mean() + eps) * self[f"{name}.weight"]


def float64_weights(model) -> dict[str, Tensor]:
    """A model's parameters as float64 leaves of their own."""
    return {name: weight.detach().double().requires_grad_() for name, weight in model.named_parameters()}


# --- pieces ---


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def rotate(x_K: Tensor, position: int, theta: float) -> Tensor:
    """Rotary position: the pair (x_i, x_{i + K/2}) turns by position * theta^(-2i/K)."""
    half = len(x_K) // 2
    angle = torch.tensor([position * theta ** (-2 * i / len(x_K)) for i in range(half)], dtype=torch.float64)
    first, second = x_K[:half], x_K[half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])


def mlp(block: Part, x: Tensor) -> Tensor:
    gate = block.linear("mlp.gate_proj", x)
    return block.linear("mlp.down_proj", gate * sigmoid(gate) * block.linear("mlp.up_proj", x))


def best(logits: list[Tensor], top_k: int | None) -> list[int]:
    """Indices of the k largest logits; of all of them where k is None."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i].item())
    return order if top_k is None else order[:top_k]


def softmax_average(logits: list[Tensor], vectors: list[Tensor], top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """The softmax average of the vectors, and the sum of the exponentiated logits."""
    kept = best(logits, top_k)
    mass = sum(torch.exp(logits[i]) for i in kept)
    return sum(torch.exp(logits[i]) / mass * vectors[i] for i in kept), mass


def joint_softmax(
    token_logits: list[Tensor],
    token_values: list[Tensor],
    mass_memory: Tensor,
    read: Tensor,
    gate: Tensor,
    scale: Tensor,
) -> Tensor:
    """
    One softmax over slots and tokens for one query and one head, the memory's share gated and scaled:
    (Z_tok o_tok + f g Z_mem o_mem) / (Z_tok + |f| Z_mem).
    """
    mass_tokens = sum(torch.exp(logit) for logit in token_logits)
    from_tokens = sum(torch.exp(logit) * value for logit, value in zip(token_logits, token_values, strict=True))
    total = mass_tokens + torch.abs(scale) * mass_memory
    return (from_tokens + scale * gate * mass_memory * read) / total


def scan(keep_G: Tensor, new_G: Tensor) -> list[Tensor]:
    """x_g = keep_g * x_{g-1} + new_g, from zero."""
    states, x = [], torch.zeros_like(new_G[0])
    for keep, new in zip(keep_G, new_G, strict=True):
        x = keep * x + new
        states.append(x)
    return states


def erase_and_add(bank: list[Tensor], gate_TN: Tensor, content_TE: Tensor) -> list[Tensor]:
    """Every token in turn: slot_n <- (1 - a_tn) slot_n + a_tn c_t."""
    for gate_N, content in zip(gate_TN, content_TE, strict=True):
        bank = [(1 - gate) * slot + gate * content for gate, slot in zip(gate_N, bank, strict=True)]
    return bank


# --- design "segment" ---


def address_write(write: Part, config, bank: list[Tensor], tokens: list[Tensor]) -> list[Tensor]:
    num_heads = config.num_memory_heads
    width = config.hidden_size // num_heads
    for x in tokens:
        query_MA = write.linear("query", x).view(num_heads, -1)
        content_ME = torch.tanh(write.linear("content", x)).view(num_heads, width)
        gate_M = sigmoid(write.linear("input_gate", x))
        parts = []
        for m in range(num_heads):
            logit_N = write["address"][m] @ query_MA[m] / math.sqrt(config.head_dim)
            address_N = torch.exp(logit_N) / torch.exp(logit_N).sum()
            floor = config.memory_write_floor
            gate_1N = torch.clamp((gate_M[m] * address_N - floor) / (1 - floor), min=0.0).unsqueeze(0)
            of_head = [slot[m * width : (m + 1) * width] for slot in bank]
            parts.append(erase_and_add(of_head, gate_1N, content_ME[m].unsqueeze(0)))
        bank = [torch.cat([parts[m][n] for m in range(num_heads)]) for n in range(len(bank))]
    return bank


def attend_write(write: Part, config, bank: list[Tensor], tokens: list[Tensor]) -> list[Tensor]:
    num_heads = config.num_memory_heads
    width = config.hidden_size // num_heads
    keys = [write.linear("key", x).view(num_heads, width) for x in tokens]
    values = [write.linear("value", x).view(num_heads, width) for x in tokens]
    written = []
    for slot in bank:
        normed = write.norm("norm", slot, config.rms_norm_eps)
        query = write.linear("query", normed).view(num_heads, width)
        heads = []
        for m in range(num_heads):
            logits = [query[m] @ key[m] / math.sqrt(width) for key in keys]
            heads.append(softmax_average(logits, [value[m] for value in values])[0])
        carried = torch.cat(heads)
        g_in = sigmoid(write.linear("input_gate", carried))
        g_forget = sigmoid(write.linear("forget_gate", torch.cat([carried, normed])))
        written.append(g_in * torch.tanh(carried) + g_forget * slot)
    return written


def joint_slots(block: Part, config, bank: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of the slots, each [U, K], the null slot last."""
    read, num_heads = block.part("memory.read."), config.num_key_value_heads
    normed = [read.norm("norm", slot, config.rms_norm_eps) for slot in bank]
    keys = [block.linear("self_attn.k_proj", slot).view(num_heads, -1) for slot in normed]
    values = [block.linear("self_attn.v_proj", slot).view(num_heads, -1) for slot in normed]
    if config.memory_null_slot:
        keys.append(read["null_key"])
        values.append(torch.zeros_like(values[0]))
    return keys, values


def separate_slots(block: Part, config, bank: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of the slots, each [M, E], the null slot last."""
    read, num_heads = block.part("memory.read."), config.num_memory_heads
    normed = [read.norm("norm", slot, config.rms_norm_eps) for slot in bank]
    keys = [read.linear("key", slot).view(num_heads, -1) for slot in normed]
    values = [read.linear("value", slot).view(num_heads, -1) for slot in normed]
    if config.memory_null_slot:
        keys.append(read["null_key"])
        values.append(torch.zeros_like(values[0]))
    return keys, values


def separate_read(block: Part, config, slots: tuple[list[Tensor], list[Tensor]], x: Tensor) -> Tensor:
    """Eq. 1-3 for one token: f * g_out * E_mem."""
    read, num_heads = block.part("memory.read."), config.num_memory_heads
    width = config.hidden_size // num_heads
    query = read.linear("query", x).view(num_heads, width)
    keys, values = slots
    heads = []
    for m in range(num_heads):
        logits = [query[m] @ key[m] / math.sqrt(width) for key in keys]
        heads.append(softmax_average(logits, [value[m] for value in values], config.memory_top_k)[0])
    e_mem = torch.cat(heads)
    gated = sigmoid(read.linear("output_gate", e_mem)) * e_mem
    return torch.cat([read["scale"][m] * gated[m * width : (m + 1) * width] for m in range(num_heads)])


def attention_heads(block: Part, config, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query [H, K], key [U, K] and value [U, K] of one token, without positions."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return tuple(block.linear(name, x).view(-1, config.head_dim) for name in names)


def segment_block(block: Part, config, hiddens: list[Tensor], has_memory: bool) -> tuple[list[Tensor], list | None]:
    """One block on one document: states of its tokens, and its bank after all segments that are full."""
    length, window, num_heads = config.segment_length, config.attention_window, config.num_attention_heads
    queries_per_key = num_heads // config.num_key_value_heads
    theta = config.rope_parameters["rope_theta"]
    write = address_write if config.memory_write == "address" else attend_write
    bank = initial_bank(block, config) if has_memory else None
    keys, values, sources, outputs = [], [], [], []
    for t, hidden in enumerate(hiddens):
        number = t // length
        if has_memory and t % length == 0 and t > 0 and config.bptt_segments and number % config.bptt_segments == 0:
            bank = [slot.detach() for slot in bank]
        if has_memory and t % length == 0:
            slots = (joint_slots if config.memory_read == "joint" else separate_slots)(block, config, bank)
        x = block.norm("input_layernorm", hidden, config.rms_norm_eps)
        query, key, value = attention_heads(block, config, x)
        # Positions of the document itself, not of the window: attention sees only their differences.
        keys.append([rotate(key[u], t, theta) for u in range(config.num_key_value_heads)])
        values.append(value)
        oldest = 0 if window is None else max(0, (number - window + 1) * length)
        seen = range(oldest, t + 1)

        reads, masses = [], []
        if has_memory and config.memory_read == "joint":
            slot_keys, slot_values = slots
            for h in range(num_heads):
                u = h // queries_per_key
                logits = [query[h] @ slot_key[u] / math.sqrt(config.head_dim) for slot_key in slot_keys]
                of_head = [slot_value[u] for slot_value in slot_values]
                kept = best(logits, config.memory_top_k)
                read, mass = softmax_average([logits[i] for i in kept], [of_head[i] for i in kept])
                reads.append(read)
                masses.append(mass)
            gates = sigmoid(block.linear("memory.read.output_gate", torch.cat(reads)))
        heads = []
        for h in range(num_heads):
            u = h // queries_per_key
            rotated = rotate(query[h], t, theta)
            logits = [rotated @ keys[s][u] / math.sqrt(config.head_dim) for s in seen]
            of_head = [values[s][u] for s in seen]
            if reads:
                scale = block["memory.read.scale"][h]
                heads.append(joint_softmax(logits, of_head, masses[h], reads[h], gates[h], scale))
            else:
                heads.append(softmax_average(logits, of_head)[0])
        hidden = hidden + block.linear("self_attn.o_proj", torch.cat(heads))
        if has_memory and config.memory_read == "separate":
            hidden = hidden + separate_read(block, config, slots, x)
        after = block.norm("post_attention_layernorm", hidden, config.rms_norm_eps)
        outputs.append(hidden + mlp(block, after))

        if has_memory:
            sources.append(x if config.memory_write_source == "input" else after)
            if len(sources) == length:
                bank, sources = write(block.part("memory.write."), config, bank, sources), []
    return outputs, bank


def initial_bank(block: Part, config) -> list[Tensor]:
    if config.memory_init == "learned":
        return list(block["memory.initial_slots"])
    eye = torch.eye(config.hidden_size, dtype=torch.float64)
    return [eye[n % config.hidden_size] for n in range(config.num_memory_slots)]


def segment_model(weights: dict[str, Tensor], config, token_ids: list[int]) -> tuple[Tensor, list]:
    """Logits [T, V] of one document, and the banks of the blocks that have one, [N, D] each."""
    model = Part(weights)
    hiddens = [model["model.embed_tokens.weight"][token] for token in token_ids]
    banks = []
    for index in range(config.num_hidden_layers):
        has_memory = index in config.memory_block_indices
        hiddens, bank = segment_block(model.part(f"model.layers.{index}."), config, hiddens, has_memory)
        if has_memory:
            banks.append(torch.stack(bank))
    return to_logits(model, config, hiddens), banks


def to_logits(model: Part, config, hiddens: list[Tensor]) -> Tensor:
    normed = [model.norm("model.norm", hidden, config.rms_norm_eps) for hidden in hiddens]
    return torch.stack([model.linear("lm_head", hidden) for hidden in normed])


# --- design "paper" ---


def paper_model(weights: dict[str, Tensor], config, token_ids: list[int]) -> tuple[Tensor, list]:
    """
    Eq. 1-6 for one document, token after token through all blocks. Token i of a segment is paired with slot i: it
    brings M_1[i] from the bank, hands M_{t+1}[i] from block t to the next, and leaves the last one in the bank.
    """
    model, length = Part(weights), config.segment_length
    bank = list(torch.eye(config.hidden_size, dtype=torch.float64))
    blocks = [model.part(f"model.layers.{index}.") for index in range(config.num_hidden_layers)]
    # Of every block: keys and values of all tokens of the document, and the slots M_t[j] of the segment so far.
    keys, values, slots = ([[] for _ in blocks] for _ in range(3))
    outputs = []
    for position, token in enumerate(token_ids):
        number, i = divmod(position, length)
        if i == 0:
            slots = [[] for _ in blocks]
            if config.bptt_segments and number % config.bptt_segments == 0:
                bank = [slot.detach() for slot in bank]
        oldest = 0 if config.attention_window is None else max(0, (number - config.attention_window + 1) * length)
        hidden, slot = model["model.embed_tokens.weight"][token], bank[i]
        for index, block in enumerate(blocks):
            x = block.norm("input_layernorm", hidden, config.rms_norm_eps)
            attended = plain_attention(block, config, x, position, oldest, keys[index], values[index])
            hidden = hidden + attended
            if index in config.memory_block_indices:
                slots[index].append(slot)
                gated, slot = paper_memory(block.part("memory."), config, x, slot, slots[index])
                hidden = hidden + gated
            after = block.norm("post_attention_layernorm", hidden, config.rms_norm_eps)
            hidden = hidden + mlp(block, after)
        bank = [*bank[:i], slot, *bank[i + 1 :]]
        outputs.append(hidden)
    return to_logits(model, config, outputs), [torch.stack(bank)]


def plain_attention(block: Part, config, x: Tensor, position: int, oldest: int, keys: list, values: list) -> Tensor:
    """Llama's causal self-attention for one token, which appends its own key and value."""
    theta = config.rope_parameters["rope_theta"]
    query, key, value = attention_heads(block, config, x)
    keys.append([rotate(key_K, position, theta) for key_K in key])
    values.append(value)
    heads = []
    for h in range(config.num_attention_heads):
        u = h // (config.num_attention_heads // config.num_key_value_heads)
        rotated = rotate(query[h], position, theta)
        seen = range(oldest, position + 1)
        logits = [rotated @ keys[s][u] / math.sqrt(config.head_dim) for s in seen]
        heads.append(softmax_average(logits, [values[s][u] for s in seen])[0])
    return block.linear("self_attn.o_proj", torch.cat(heads))


def paper_memory(memory: Part, config, x: Tensor, slot: Tensor, slots: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Eq. 1-6 for token i: `x` is E_t[i], `slot` is M_t[i], `slots` are M_t[0..i], those that the causal mask shows."""
    query = memory.linear("query", x)
    logits = [query @ memory.linear("key", other) / math.sqrt(config.hidden_size) for other in slots]
    e_mem, _ = softmax_average(logits, [memory.linear("value", other) for other in slots], config.memory_top_k)  # Eq. 1
    g_out = sigmoid(memory.linear("output_gate", e_mem))  # Eq. 2
    gated = memory["scale"] * g_out * slot  # Eq. 3, and a factor that is 1 in a fresh model
    g_in = sigmoid(memory.linear("input_gate", x))  # Eq. 4
    g_forget = sigmoid(memory.linear("forget_gate", e_mem))  # Eq. 5
    return gated, g_in * torch.tanh(e_mem) + g_forget * slot  # Eq. 6


# --- places of tokens ---


def place_row(
    valid_T: list[bool], start_T: list[bool], num_seen: int, segment_length: int | None
) -> tuple[list[tuple[int, int, int] | None], list[bool], int]:
    """
    Where one row's columns lie, walking from left to right.

    Returns:
        Per column None (padding) or (ordinal of the segment among those the row touches, cell, position in the
        document); whether each touched segment starts a document; and the document's tokens seen after the call.
    """
    places, resets = [], [False]
    position, ordinal, is_first = num_seen, 0, True
    for valid, start in zip(valid_T, start_T, strict=True):
        if not valid:
            places.append(None)
            continue
        if start:
            position = 0
        cell = position if segment_length is None else position % segment_length
        if not is_first and cell == 0:
            ordinal += 1
            resets.append(False)
        if start:
            resets[ordinal] = True
        places.append((ordinal, cell, position))
        position, is_first = position + 1, False
    return places, resets, position
