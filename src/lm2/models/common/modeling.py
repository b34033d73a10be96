"""
The shell of the models with memory tokens. All that has nothing to do with how memory works is LM2's own: input checks,
padding, documents, loading, generation.

Shapes: B rows, T tokens, D hidden size, M memory tokens.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, initialization
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRMSNorm, LlamaRotaryEmbedding

from ..lm2.cache_lm2 import BlockState
from ..lm2.layout_lm2 import Piece, count_seen, lay_out
from ..lm2.modeling_lm2 import PREFILL_SEGMENTS, LM2ForCausalLM, LM2Model, LM2PreTrainedModel
from .cache import MemoryTokenCache
from .configuration import MemoryTokenConfig
from .segment import SegmentBlock, SegmentPlan, plan_segment


class MemoryTokens(nn.Module):
    """Learned tokens, [M, D], as wide at the start as the embeddings (RMT's code, for both models)."""

    def __init__(self, config: MemoryTokenConfig):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(config.num_memory_tokens, config.hidden_size))

    def forward(self, num_rows: int) -> Tensor:
        """[B, M, D]."""
        return self.tokens.expand(num_rows, -1, -1)


class MemoryTokenPreTrainedModel(LM2PreTrainedModel):
    """Loading, saving and initialization."""

    config: MemoryTokenConfig
    config_class = MemoryTokenConfig
    cache_class: type[MemoryTokenCache]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MemoryTokens):
            std = self.config.memory_init_std
            initialization.normal_(module.tokens, std=self.config.initializer_range if std is None else std)


class MemoryTokenModel(MemoryTokenPreTrainedModel, LM2Model):
    """The decoder without its head; `forward` takes and returns what [`LM2Model`]'s does."""

    block_class: type[SegmentBlock]
    # Memory tokens before a segment, as a multiple of `num_memory_tokens`: 1 for RMT, 0 for ARMT.
    reads_memory_tokens: int

    def __init__(self, config: MemoryTokenConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.memory = MemoryTokens(config)
        self.layers = nn.ModuleList(self.block_class(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

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
        """All blocks on a call, which is cut into pieces that each stay inside one segment of every row."""
        segment_length, device = self.config.segment_length, hidden_BTD.device
        layout = lay_out(hidden_BTD.shape[1], num_seen, segment_length, valid, start, device)
        one_piece = layout.num_segments == 1
        pieces = [Piece(hidden_BTD, valid, start)] if one_piece else layout.split(hidden_BTD)
        num_write = self.config.num_memory_tokens
        num_read = self.reads_memory_tokens * num_write
        # All places of a segment at once: rotary types that look at the longest position must always see the same.
        places = torch.arange(num_read + segment_length + num_write, device=device).unsqueeze(0)
        cos, sin = self.rotary_emb(hidden_BTD, places)
        rope = (cos.squeeze(0), sin.squeeze(0))
        needs_mask = self.config._attn_implementation == "eager"
        plans = []
        for index, piece in enumerate(pieces):
            boundaries = (piece.valid_BT, piece.start_BT)
            inside = lay_out(piece.x_BT.shape[1], num_seen, segment_length, *boundaries, device)
            # What the last segment of a call would write is wanted by later calls only.
            writes = num_write if keep_state or index < len(pieces) - 1 else 0
            plans.append(plan_segment(inside, num_read, writes, segment_length, rope, needs_mask))
            num_seen = count_seen(num_seen, piece.x_BT.shape[1], *boundaries)
        records: list | None = None if recorded is None else []
        inputs = [piece.x_BT for piece in pieces]
        outputs, states, bank = self._run_segments(inputs, plans, states, bank, keep_state, records)
        if recorded is not None:
            recorded.extend(of_block[0] if one_piece else layout.join(of_block) for of_block in records)
        return outputs[0] if one_piece else layout.join(outputs), states, bank

    def _run_segments(
        self,
        pieces_BTD: list[Tensor],
        plans: list[SegmentPlan],
        states: Sequence[BlockState],
        bank: Tensor | None,
        keep_state: bool,
        records: list | None,
    ) -> tuple[list[Tensor], Sequence[BlockState], Tensor | None]:
        """All blocks on all pieces; `records` takes one list of the pieces' hidden states for every block."""
        raise NotImplementedError

    def _prepare_cache(self, cache, use_cache: bool | None, num_rows: int):
        if cache is None:
            if use_cache is None:
                use_cache = self.config.use_cache and not self.training
            if use_cache and self.training and self.gradient_checkpointing:
                raise ValueError("use_cache=True with gradient checkpointing; training does not need it, leave it out")
            return self.cache_class(self.config) if use_cache else None
        if not isinstance(cache, self.cache_class):
            raise ValueError(
                f"cache is a {type(cache).__name__}, the cache of another model; "
                f"use {self.cache_class.__name__}(model.config)"
            )
        return super()._prepare_cache(cache, use_cache, num_rows)


class MemoryTokenForCausalLM(MemoryTokenPreTrainedModel, LM2ForCausalLM):
    """The model with its head; takes and returns what `LlamaForCausalLM` does, and generates."""

    model_class: type[MemoryTokenModel]

    def __init__(self, config: MemoryTokenConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_llama(cls, model_or_path: LlamaForCausalLM | str | os.PathLike, **memory_fields):
        """
        Gives a pretrained Llama memory tokens, as wide as its embeddings unless `memory_init_std` says otherwise.

        Args:
            model_or_path: a `LlamaForCausalLM` (its weights are copied), or what its `from_pretrained` takes.
            memory_fields: fields that the configuration adds to `LlamaConfig`.

        Raises:
            ValueError: not a Llama, or a field that is the Llama's own.
        """
        llama = model_or_path
        if isinstance(llama, (str, os.PathLike)):
            llama = LlamaForCausalLM.from_pretrained(llama, dtype="auto")
        if not isinstance(llama, LlamaForCausalLM) or isinstance(llama, LM2ForCausalLM):
            raise ValueError(f"from_llama takes a LlamaForCausalLM or a path to one, not a {type(llama).__name__}")
        ours = cls.config_class.memory_fields()
        foreign = sorted(set(memory_fields) - set(ours))
        if foreign:
            raise ValueError(f"{', '.join(foreign)}: not a field of the memory; from_llama takes {', '.join(ours)}")
        inherited = llama.config.to_dict()
        for name in ("model_type", "architectures", "auto_map"):
            inherited.pop(name, None)
        embedding_std = float(llama.get_input_embeddings().weight.detach().float().std())
        config = cls.config_class(**inherited, **{"memory_init_std": embedding_std, **memory_fields})
        # Not `.to(dtype)`, which would round the rotary frequencies as well.
        attention = llama.config._attn_implementation
        model = cls._from_config(config, dtype=llama.dtype, attn_implementation=attention).to(llama.device)
        model.load_state_dict(llama.state_dict(), strict=False)
        model.generation_config = llama.generation_config
        return model

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs):
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is not supported: the state is of "
                f"type {self.cache_class.__name__}, which is small and does not grow; leave cache_implementation out"
            )
        cache = model_kwargs.get("cache")
        if cache is None and generation_config.use_cache is not False:
            cache = model_kwargs["cache"] = self.cache_class(self.config)
        if cache is not None and generation_config.prefill_chunk_size is None:
            generation_config.prefill_chunk_size = PREFILL_SEGMENTS * self.config.segment_length


__all__ = ["MemoryTokenForCausalLM", "MemoryTokenModel", "MemoryTokenPreTrainedModel"]
