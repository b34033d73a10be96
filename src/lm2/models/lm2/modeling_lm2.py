"""
LM2: a Llama whose decoder blocks have a memory (Large Memory Models, arXiv 2502.06049).

What differs from transformers' Llama, whose modules and weights are used as they are:
- a row's tokens are cut into segments; self-attention spans a window of segments (`attention_window`), with rotary
  positions counted inside the window, so that any length is as good as a short one;
- blocks listed in `memory_layers` read a bank of slots before they write it: position t depends on tokens up to t, and
  on the bank as earlier segments left it;
- a call may hold any number of tokens, and a cache (`LM2Cache`) continues every row where it stopped;
- without memory blocks, nothing differs.

Shapes: B rows, T tokens, G segments, Q queries per segment, C cells, H heads, U key-value heads, K head width, N slots,
D hidden size.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.deprecation import deprecate_kwarg

from .attention_lm2 import plan_attention
from .block_lm2 import CallPlan, LM2DecoderLayer
from .cache_lm2 import BlockState, LM2Cache
from .configuration_lm2 import LM2Config
from .inputs_lm2 import read_boundaries
from .layout_lm2 import SegmentLayout, count_seen, lay_out
from .memory_lm2 import AddressWrite, AttendWrite, JointRead, SegmentMemory, SeparateRead
from .paper_lm2 import PaperMemory

# Linear layers of the backbone, for `peft.LoraConfig(target_modules=...)`: adapters there leave the memory alone, which
# is trained in full by `modules_to_save=["memory"]`.
LM2_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# generate() reads a long prompt in pieces of this many segments, which bounds its memory.
PREFILL_SEGMENTS = 16


class LM2PreTrainedModel(LlamaPreTrainedModel):
    """Loading, saving and initialization."""

    config: LM2Config
    config_class = LM2Config
    _no_split_modules = ["LM2DecoderLayer"]
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _is_stateful = True
    _can_record_outputs: dict = {}
    _tp_plan = None
    _pp_plan = None

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Of code that is not its own transformers leaves out modules without parameters of their own, in case that it
        # writes over what was loaded. Ours does not, and such a module may have a say in how its gates start.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SegmentMemory) and module.initial_slots is not None:
            # As wide as what is written later. Slots are normed when read: narrow ones would turn around at each
            # optimizer step, and in our trials kept attention itself from forming (docs/log.md).
            initialization.normal_(module.initial_slots, std=1.0)
        elif isinstance(module, AddressWrite):
            # Of unit width, as the queries that meet them start small.
            initialization.normal_(module.address, std=1.0)
            initialization.constant_(module.input_gate.bias, self.config.memory_input_gate_bias)
        elif isinstance(module, AttendWrite):
            initialization.constant_(module.input_gate.bias, self.config.memory_input_gate_bias)
            # Start by remembering, as recurrent networks do.
            initialization.constant_(module.forget_gate.bias, 1.0)
        elif isinstance(module, (JointRead, SeparateRead)):
            initialization.ones_(module.scale)
            if module.null_key is not None:
                initialization.normal_(module.null_key, std=std)
        elif isinstance(module, PaperMemory):
            initialization.ones_(module.scale)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        transformers' `from_pretrained`, which also looks at the numbers.

        Raises:
            ValueError: a weight is NaN or infinite; names it.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not weight.is_meta and not bool(torch.isfinite(weight).all()):
                raise ValueError(f"weight {name} has NaN or infinite numbers; load another checkpoint of this model")
        return loaded


class LM2Model(LM2PreTrainedModel, LlamaModel):
    """The decoder without its head: token ids to hidden states."""

    def __init__(self, config: LM2Config):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        block = LM2DecoderLayer if config.has_memory else LlamaDecoderLayer
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(block(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    # As Llama's own forward does; without it, `**kwargs` would take a state under its old name and drop it.
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: LM2Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        segment_reset: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """
        Reads tokens, after those that the cache has seen.

        Args:
            input_ids: int64 [B, T]; or `inputs_embeds`, [B, T, D].
            attention_mask: [B, T], or [B, columns seen + T] as generate() passes it; 0 at padding, on either side.
            position_ids: [B or 1, T]. Read for one thing: where positions start over, a new document begins.
            cache: state of the rows so far; changed only if the call succeeds.
            use_cache: whether to return the state; None is `config.use_cache`, and no in training.
            segment_reset: bool [B, T], True at tokens that begin a new document, which sees nothing of the one before.
            output_hidden_states: return the inputs of all blocks and the final state, each [B, T, D].

        Returns:
            `last_hidden_state` [B, T, D] (finite but meaningless at padding), `cache`, `hidden_states`.

        Raises:
            ValueError: inputs that contradict one another, the vocabulary or the cache; names the argument.
        """
        self._check_input(input_ids, inputs_embeds)
        if not self.config.has_memory:
            if segment_reset is not None:
                raise ValueError("segment_reset has no effect without memory (memory_layers is empty); leave it out")
            return super().forward(
                input_ids,
                attention_mask,
                position_ids,
                cache,
                inputs_embeds,
                use_cache=use_cache,
                output_hidden_states=output_hidden_states,
                **kwargs,
            )
        if kwargs.get("output_attentions"):
            raise ValueError(
                "output_attentions=True is not available: attention runs inside segments and over slots, so there is "
                "no map of T x T tokens; use output_hidden_states, or memory_layers=0"
            )
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._prepare_cache(cache, use_cache, hidden.shape[0])
        num_seen = torch.zeros(hidden.shape[0], dtype=torch.long)
        if cache is not None and cache.is_initialized:
            num_seen = cache.num_document_tokens
        valid, start = read_boundaries(
            (hidden.shape[0], hidden.shape[1]),
            attention_mask,
            position_ids,
            segment_reset,
            num_seen,
            num_columns=0 if cache is None else cache.num_columns,
            has_past=cache is not None and cache.is_initialized,
        )
        states: Sequence = [BlockState()] * len(self.layers) if cache is None else cache.states
        bank = None if cache is None else cache.bank
        recorded: list | None = [] if output_hidden_states else None
        hidden, states, bank = self._run(hidden, states, bank, num_seen, valid, start, cache is not None, recorded)
        hidden = self.norm(hidden)
        if cache is not None:
            num_new = hidden.shape[1] if valid is None else valid.sum(1)
            num_tokens = (cache.num_tokens if cache.is_initialized else torch.zeros_like(num_seen)) + num_new
            cache.commit(states, bank, hidden.shape[1], num_tokens, count_seen(num_seen, hidden.shape[1], valid, start))
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            cache=cache,
            hidden_states=None if recorded is None else (*recorded, hidden),
        )

    def _run(
        self,
        hidden_BTD: Tensor,
        states: Sequence[BlockState],
        bank: Tensor | None,
        num_seen: Tensor,
        valid: Tensor | None,
        start: Tensor | None,
        keep_state: bool,
        recorded: list | None,
    ) -> tuple[Tensor, Sequence[BlockState], Tensor | None]:
        """All blocks on a call: block by block, or segment by segment where a segment's read needs the one before."""
        segment_length, device = self.config.segment_length, hidden_BTD.device
        layout = lay_out(hidden_BTD.shape[1], num_seen, segment_length, valid, start, device)
        in_turn = self.config.memory_design == "paper" or self.config.memory_write_source == "attention"
        if not in_turn or layout.num_segments == 1:
            plan = self._plan(hidden_BTD, layout, num_seen, valid, start)
            return self._run_blocks(hidden_BTD, states, bank, plan, keep_state, recorded)
        outputs, records = [], []
        pieces = layout.split(hidden_BTD)
        for index, piece in enumerate(pieces):
            boundaries = (piece.valid_BT, piece.start_BT)
            inside = lay_out(piece.x_BT.shape[1], num_seen, segment_length, *boundaries, device)
            plan = self._plan(piece.x_BT, inside, num_seen, *boundaries)
            record: list | None = None if recorded is None else []
            keep_piece = keep_state or index < len(pieces) - 1
            hidden, states, bank = self._run_blocks(piece.x_BT, states, bank, plan, keep_piece, record)
            num_seen = count_seen(num_seen, piece.x_BT.shape[1], *boundaries)
            outputs.append(hidden)
            records.append(record)
        if recorded is not None:
            recorded.extend(layout.join(list(of_block)) for of_block in zip(*records, strict=True))
        return layout.join(outputs), states, bank

    def _plan(self, hidden_BTD: Tensor, layout: SegmentLayout, num_seen, valid, start) -> CallPlan:
        window, segment_length = self.config.attention_window, self.config.segment_length
        attention_layout = layout
        if window is None:
            window, segment_length = 1, None
            attention_layout = lay_out(layout.num_tokens, num_seen, None, valid, start, hidden_BTD.device)
        num_positions = (window - 1) * (segment_length or 0) + attention_layout.num_cells
        if segment_length is not None and self.rotary_emb.rope_type in ("dynamic", "longrope"):
            # These scale with the longest position asked for, which must not differ from call to call.
            num_positions = window * segment_length
        rope = self.rotary_emb(hidden_BTD, torch.arange(num_positions, device=hidden_BTD.device).unsqueeze(0))
        rope = tuple(table.squeeze(0) for table in rope)
        needs_mask = self.config._attn_implementation == "eager"
        attention = plan_attention(attention_layout, window, segment_length, rope, needs_mask)
        inside_segment = None
        if self.config.memory_design == "paper":
            same = attention_layout is layout and window == 1
            inside_segment = attention if same else plan_attention(layout, 1, segment_length, rope, needs_mask)
        return CallPlan(segments=layout, attention=attention, inside_segment=inside_segment)

    def _run_blocks(
        self, hidden_BTD: Tensor, states, bank: Tensor | None, plan: CallPlan, keep_state: bool, recorded: list | None
    ) -> tuple[Tensor, Sequence[BlockState], Tensor | None]:
        """Block after block; design "paper" sends the slots that are paired with the tokens along."""
        slot, next_states = None, []
        if self.config.memory_design == "paper":
            bank = self._start_paper_segment(bank, hidden_BTD, plan.segments)
            # Padding is paired with a place behind the last slot, which is dropped in the end.
            cell_BT = plan.segments.token_cells(hidden_BTD.shape[0], padding=bank.shape[1])
            index_BTD = cell_BT.unsqueeze(-1).expand(-1, -1, bank.shape[-1])
            slot = bank.gather(1, index_BTD.clamp(max=bank.shape[1] - 1))
        for block, state in zip(self.layers, states, strict=True):
            if recorded is not None:
                recorded.append(hidden_BTD)
            hidden_BTD, slot, next_state = block(hidden_BTD, slot, state, plan, keep_state)
            next_states.append(next_state)
        if slot is not None:
            bank = nn.functional.pad(bank, (0, 0, 0, 1)).scatter(1, index_BTD, slot)[:, :-1]
        return hidden_BTD, next_states, bank

    def _start_paper_segment(self, bank: Tensor | None, hidden_BTD: Tensor, layout: SegmentLayout) -> Tensor:
        """The bank M_1 of the segment: the identity at the start of a document, with truncated gradients if asked."""
        size, num_rows = self.config.hidden_size, hidden_BTD.shape[0]
        identity = torch.eye(size, device=hidden_BTD.device).expand(num_rows, -1, -1)
        if bank is None:
            return identity
        if layout.reset_BG is not None:
            bank = torch.where(layout.reset_BG[:, :1, None], identity, bank)
        if self.config.bptt_segments is not None and torch.is_grad_enabled():
            # Only where the segment begins: later calls must not cut off what the segment itself has written.
            is_cut = (layout.number_BG[:, 0] % self.config.bptt_segments == 0) & layout.begins
            is_cut = is_cut[:, None, None]
            bank = torch.where(is_cut, bank.detach(), bank)
        return bank

    def _check_input(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given.shape[0] == 0 or given.shape[1] == 0:
            raise ValueError(f"the input has the shape {tuple(given.shape)}; it needs at least one row and one token")
        # On an accelerator the look at the numbers would wait for the device; there the embedding itself complains.
        if input_ids is not None and input_ids.device.type == "cpu":
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids has the token {low if low < 0 else high}, outside the vocabulary of "
                    f"vocab_size={self.config.vocab_size}; use the tokenizer that belongs to this model"
                )

    def _prepare_cache(self, cache: LM2Cache | None, use_cache: bool | None, num_rows: int) -> LM2Cache | None:
        is_checkpointing = self.training and self.gradient_checkpointing
        if use_cache is None:
            use_cache = cache is not None or (self.config.use_cache and not self.training)
        if cache is None:
            if use_cache and is_checkpointing:
                raise ValueError("use_cache=True with gradient checkpointing; training does not need it, leave it out")
            return LM2Cache(self.config) if use_cache else None
        if not isinstance(cache, LM2Cache):
            raise ValueError(
                f"cache is a {type(cache).__name__}, the cache of another model; use LM2Cache(model.config)"
            )
        if is_checkpointing:
            raise ValueError("cache with gradient checkpointing: a replayed block would read the new state")
        if not use_cache:
            raise ValueError("cache with use_cache=False; the state goes on in the cache, so leave one out")
        if cache.config is not self.config:
            cache.check_config(self.config)
        if cache.is_initialized and cache.batch_size != num_rows:
            raise ValueError(
                f"the input has {num_rows} rows, the cache {cache.batch_size}; a cache continues its own rows "
                "(LM2Cache.select picks some, LM2Cache.batch_repeat_interleave repeats them)"
            )
        return cache


class LM2ForCausalLM(LM2PreTrainedModel, LlamaForCausalLM):
    """[`LM2Model`] with a language-modelling head; takes and returns what `LlamaForCausalLM` does, and generates."""

    def __init__(self, config: LM2Config):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LM2Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_llama(cls, model_or_path: LlamaForCausalLM | str | os.PathLike, **memory_fields) -> "LM2ForCausalLM":
        """
        Gives a pretrained Llama a memory whose output path starts at zero: within one attention window the logits are
        the Llama's, and gradients reach every memory parameter within two optimizer steps.

        Args:
            model_or_path: a `LlamaForCausalLM` (its weights are copied), or what its `from_pretrained` takes.
            memory_fields: fields that `LM2Config` adds to `LlamaConfig`.

        Raises:
            ValueError: not a Llama, or a field that is the Llama's own.
        """
        llama = model_or_path
        if isinstance(llama, (str, os.PathLike)):
            llama = LlamaForCausalLM.from_pretrained(llama, dtype="auto")
        if not isinstance(llama, LlamaForCausalLM) or isinstance(llama, LM2ForCausalLM):
            raise ValueError(f"from_llama takes a LlamaForCausalLM or a path to one, not a {type(llama).__name__}")
        ours = LM2Config.__annotations__
        foreign = sorted(set(memory_fields) - set(ours))
        if foreign:
            raise ValueError(f"{', '.join(foreign)}: not a field of the memory; from_llama takes {', '.join(ours)}")
        inherited = llama.config.to_dict()
        for name in ("model_type", "architectures", "auto_map"):
            inherited.pop(name, None)
        config = LM2Config(**inherited, **memory_fields)
        # Not `.to(dtype)`, which would round the rotary frequencies as well.
        attention = llama.config._attn_implementation
        model = cls._from_config(config, dtype=llama.dtype, attn_implementation=attention).to(llama.device)
        model.load_state_dict(llama.state_dict(), strict=False)
        model.generation_config = llama.generation_config
        with torch.no_grad():
            for block in model.model.layers:
                memory = getattr(block, "memory", None)
                if isinstance(memory, PaperMemory):
                    memory.scale.zero_()
                elif memory is not None:
                    memory.read.scale.zero_()
                    # Slots enter projections that were trained on the block's normed input.
                    memory.read.norm.weight.copy_(block.input_layernorm.weight)
        return model

    def train_memory_only(self) -> "LM2ForCausalLM":
        """Freezes everything but the memory; returns the model."""
        if not self.config.has_memory:
            raise ValueError("train_memory_only with memory_layers empty: nothing would be left to train")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(_is_memory(name))
        return self

    def count_parameters(self) -> dict[str, int]:
        """Numbers of parameters: of the Llama ("backbone"), of the memory, and both ("total"); tied weights once."""
        counts = {"backbone": 0, "memory": 0}
        for name, parameter in self.named_parameters():
            counts["memory" if _is_memory(name) else "backbone"] += parameter.numel()
        return counts | {"total": sum(counts.values())}

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """transformers' switch; reentrant checkpointing is refused, as it drops gradients of state that blocks pass."""
        options = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})
        if options["use_reentrant"]:
            raise ValueError("use_reentrant=True loses the gradient of the memory; use {'use_reentrant': False}")
        super().activation_checkpointing_enable(options, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs):
        if not self.config.has_memory:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is not supported: the state of an "
                "LM2 is an LM2Cache, which is small and does not grow; leave cache_implementation out"
            )
        cache = model_kwargs.get("cache")
        if cache is None and generation_config.use_cache is not False:
            cache = model_kwargs["cache"] = LM2Cache(self.config)
        if cache is not None and generation_config.prefill_chunk_size is None:
            generation_config.prefill_chunk_size = PREFILL_SEGMENTS * self.config.segment_length
        return None


def _is_memory(parameter_name: str) -> bool:
    return ".memory." in parameter_name


__all__ = ["LM2_LORA_TARGETS", "LM2ForCausalLM", "LM2Model", "LM2PreTrainedModel"]
