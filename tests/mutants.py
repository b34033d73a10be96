"""
Mutants: small ways to break the code, each with the test that must notice.

    python tests/mutants.py [name ...]      run all mutants, or the named ones; exit code 1 if one survives
    python tests/mutants.py --jobs 2        that many at a time

A mutant is applied to a copy of src, so the working tree is never touched. That every mutant's text still occurs
exactly once in the source is a test of the normal suite (test_mutants.py).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "src/lm2/models/lm2"


@dataclass(frozen=True)
class Mutant:
    """Replace `old`, which occurs once in `file`, by `new`, and `test` (a pytest node id) fails."""

    name: str
    file: str
    old: str
    new: str
    test: str


# Section: contract. Grouped by the file of the contract suite that catches them.
CAUSALITY = [
    Mutant(
        name="a segment reads the bank that it has just written",
        file=f"{MODEL}/memory_lm2.py",
        old="return banks[:, :num_segments], banks[:, -1]",
        new="return torch.cat([banks[:, 1:], banks[:, -1:]], 1)[:, :num_segments], banks[:, -1]",
        test="contract/test_causality.py::test_changing_a_token_moves_no_earlier_logit[default-sdpa]",
    ),
    Mutant(
        name="a segment reads the bank that it has just written, in turn",
        file=f"{MODEL}/memory_lm2.py",
        old=(
            "            banks.append(bank)\n"
            "            if g < num_writes:\n"
            "                bank = self.write_segment(bank, x_BGSD[:, g], full_BG[:, g])\n"
        ),
        new=(
            "            if g < num_writes:\n"
            "                bank = self.write_segment(bank, x_BGSD[:, g], full_BG[:, g])\n"
            "            banks.append(bank)\n"
        ),
        test="contract/test_causality.py::test_logits_have_no_gradient_at_later_tokens[attend]",
    ),
    Mutant(
        name="mask off by one",
        file=f"{MODEL}/attention_lm2.py",
        old="mask, causal = cell_C <= query_cell.unsqueeze(-1), False",
        new="mask, causal = cell_C <= query_cell.unsqueeze(-1) + 1, False",
        test="contract/test_causality.py::test_changing_a_token_moves_no_earlier_logit[window-2-sdpa]",
    ),
    Mutant(
        name="no mask for eager attention",
        file=f"{MODEL}/attention_lm2.py",
        old="and not (needs_mask and not sees_all):",
        new="and True:",
        test="contract/test_causality.py::test_changing_a_token_moves_no_earlier_logit[default-eager]",
    ),
    Mutant(
        name="input gate of the mean over the segment",
        file=f"{MODEL}/paper_lm2.py",
        old="g_in = self.input_gate(x_BTD).float().sigmoid()",
        new="g_in = self.input_gate(x_BTD.mean(1, keepdim=True).expand_as(x_BTD)).float().sigmoid()",
        test="contract/test_causality.py::test_changing_a_token_moves_no_earlier_logit[paper-sdpa]",
    ),
]

STREAMING = [
    Mutant(
        name="the pending write forgets the open segment",
        file=f"{MODEL}/block_lm2.py",
        old='memory_state = {"source": layout.open_cells(source)} if keep_state else {}',
        new='memory_state = {"source": layout.open_cells(source) * 0} if keep_state else {}',
        test="contract/test_streaming.py::test_pieces_equal_one_forward[default-uneven]",
    ),
    Mutant(
        name="scan merges with the wrong gate",
        file=f"{MODEL}/memory_lm2.py",
        old="second_keep * first_new + second_new)",
        new="first_keep * first_new + second_new)",
        test="contract/test_streaming.py::test_pieces_equal_one_forward[default-segment by segment]",
    ),
    Mutant(
        name="window slides too late",
        file=f"{MODEL}/attention_lm2.py",
        old="first = layout.num_segments - 1 + int(",
        new="first = layout.num_segments - 1 + 0 * int(",
        test="contract/test_streaming.py::test_pieces_equal_one_forward[window-2-segment by segment]",
    ),
    Mutant(
        name="frequencies depend on the length of the call",
        file=f"{MODEL}/modeling_lm2.py",
        old='if segment_length is not None and self.rotary_emb.rope_type in ("dynamic", "longrope"):',
        new="if False:",
        test="contract/test_streaming.py::test_rope_types[dynamic-2]",
    ),
    Mutant(
        name="the state has no gradient",
        file=f"{MODEL}/layout_lm2.py",
        old="return last[:, : self.num_open].clone()",
        new="return last[:, : self.num_open].detach().clone()",
        test="contract/test_streaming.py::test_gradients_through_a_cache_equal_those_of_one_forward[default]",
    ),
    Mutant(
        name="banks in the dtype of the model",
        file=f"{MODEL}/memory_lm2.py",
        old="banks = banks.flatten(-2)",
        new="banks = banks.flatten(-2).to(x_BGSD.dtype).float()",
        test="contract/test_streaming.py::test_banks_are_float32_in_any_dtype[bf16]",
    ),
]

ROWS = [
    Mutant(
        name="padding is counted",
        file=f"{MODEL}/layout_lm2.py",
        old="order = valid.cumsum(1) - 1",
        new="order = torch.ones_like(valid).cumsum(1) - 1",
        test="contract/test_rows.py::test_rows_of_a_ragged_batch_equal_rows_alone[default-left]",
    ),
    Mutant(
        name="a row writes when its neighbor's segment is full, at once",
        file=f"{MODEL}/memory_lm2.py",
        old="torch.where(is_full, keep, 1.0)",
        new="keep",
        test="contract/test_rows.py::test_a_row_that_is_all_padding_keeps_its_bank_and_gives_finite_numbers[default]",
    ),
    Mutant(
        name="a row writes when its neighbor's segment is full, in turn",
        file=f"{MODEL}/memory_lm2.py",
        old="return torch.where(full_B[:, None, None], bank, bank_BND)",
        new="return bank",
        test="contract/test_rows.py::test_a_row_that_is_all_padding_keeps_its_bank_and_gives_finite_numbers[attend]",
    ),
    Mutant(
        name="padding takes the last slot",
        file=f"{MODEL}/modeling_lm2.py",
        old="padding=bank.shape[1])",
        new="padding=0)",
        test="contract/test_rows.py::test_a_row_that_is_all_padding_keeps_its_bank_and_gives_finite_numbers[paper]",
    ),
]

DOCUMENTS = [
    Mutant(
        name="a reset keeps the bank, at once",
        file=f"{MODEL}/memory_lm2.py",
        old="keep, new = _restart(keep, new, reset_BG, initial)",
        new="pass",
        test="contract/test_documents.py::test_packed_documents_equal_documents_alone[default]",
    ),
    Mutant(
        name="a reset keeps the bank, in turn",
        file=f"{MODEL}/memory_lm2.py",
        old="bank_BND = torch.where(reset_B[:, None, None], initial, bank_BND)",
        new="pass",
        test="contract/test_documents.py::test_a_document_does_not_see_the_one_before_it[attend]",
    ),
    Mutant(
        name="a reset keeps the bank of the paper",
        file=f"{MODEL}/modeling_lm2.py",
        old="bank = torch.where(layout.reset_BG[:, :1, None], identity, bank)",
        new="pass",
        test="contract/test_documents.py::test_a_document_has_no_gradient_at_the_one_before_it[paper]",
    ),
    Mutant(
        name="segments do not start over with a document",
        file=f"{MODEL}/layout_lm2.py",
        old="document_start = torch.where(start, order, -1)",
        new="document_start = torch.where(start & False, order, -1)",
        test="contract/test_documents.py::test_packed_documents_equal_documents_alone[from-attention]",
    ),
    Mutant(
        name="the window reaches into the document before",
        file=f"{MODEL}/layout_lm2.py",
        old="number[rows[valid], segment[valid]] = position[valid] // length",
        new="number[rows[valid], segment[valid]] = order[valid] // length",
        test="contract/test_documents.py::test_packed_documents_equal_documents_alone[window-2]",
    ),
    Mutant(
        name="a reset of rows forgets nothing",
        file=f"{MODEL}/cache_lm2.py",
        old="self.num_document_tokens = self.num_document_tokens.index_fill(0, index, 0)",
        new="pass",
        test="contract/test_documents.py::test_reset_of_rows_makes_them_start_a_new_document[default]",
    ),
    Mutant(
        name="a state under the argument's old name is dropped",
        file=f"{MODEL}/modeling_lm2.py",
        old='@deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")',
        new="",
        test="contract/test_cache.py::test_a_state_under_its_old_name_is_not_dropped[default-without head]",
    ),
    Mutant(
        name="the model keeps the state of a call",
        file=f"{MODEL}/modeling_lm2.py",
        old="cache = self._prepare_cache(cache, use_cache, hidden.shape[0])",
        new="cache = self.latest = self._prepare_cache(cache, use_cache, hidden.shape[0])",
        test="contract/test_documents.py::test_modules_hold_no_state[default]",
    ),
    Mutant(
        name="the model goes on where the last call stopped",
        file=f"{MODEL}/modeling_lm2.py",
        old="return LM2Cache(self.config) if use_cache else None",
        new=(
            "self.kept = self.__dict__.get('kept') or LM2Cache(self.config)\n"
            "            if self.kept.batch_size not in (-1, num_rows): self.kept = LM2Cache(self.config)\n"
            "            return self.kept if use_cache else None"
        ),
        test="contract/test_documents.py::test_what_ran_before_makes_no_difference[default]",
    ),
]

MEMORY_OFF = [
    Mutant(
        name="padding is ignored without memory",
        file=f"{MODEL}/modeling_lm2.py",
        old=(
            "                input_ids,\n                attention_mask,\n                position_ids,\n"
            "                cache,\n                inputs_embeds,\n"
            "                use_cache=use_cache,\n"
        ),
        new=(
            "                input_ids,\n                None,\n                position_ids,\n"
            "                cache,\n                inputs_embeds,\n"
            "                use_cache=use_cache,\n"
        ),
        test="contract/test_memory_off.py::test_forward[plain-0]",
    ),
]

FROM_LLAMA = [
    Mutant(
        name="a retrofit starts to read at once",
        file=f"{MODEL}/modeling_lm2.py",
        old="memory.read.scale.zero_()",
        new="memory.read.scale.fill_(0.1)",
        test="contract/test_from_llama.py::test_a_fresh_retrofit_has_the_logits_of_the_llama_inside_a_window[default]",
    ),
    Mutant(
        name="a retrofit of the paper starts to read at once",
        file=f"{MODEL}/modeling_lm2.py",
        old="memory.scale.zero_()",
        new="memory.scale.fill_(0.1)",
        test="contract/test_from_llama.py::test_a_fresh_retrofit_has_the_logits_of_the_llama_inside_a_window[paper]",
    ),
    Mutant(
        name="rotary positions do not count the window",
        file=f"{MODEL}/attention_lm2.py",
        old="query_index, num_keys = query_cell + num_past,",
        new="query_index, num_keys = query_cell,",
        test="contract/test_from_llama.py::test_a_fresh_retrofit_has_the_logits_of_the_llama_inside_a_window[window 2]",
    ),
    Mutant(
        name="the window holds segments that were never read",
        file=f"{MODEL}/attention_lm2.py",
        old="past = (distance <= layout.number_BG.unsqueeze(-1)).unsqueeze(2)",
        new="past = (distance <= layout.number_BG.unsqueeze(-1) + 1).unsqueeze(2)",
        test="contract/test_from_llama.py::test_a_fresh_retrofit_has_the_logits_of_the_llama_inside_a_window[window 2]",
    ),
    Mutant(
        name="a closed memory has no gradient to open it",
        file=f"{MODEL}/attention_lm2.py",
        old="memory_share = scale_H1 * gate_BGQH",
        new="memory_share = scale_H1.detach() * gate_BGQH",
        test="contract/test_from_llama.py::test_every_memory_parameter_has_a_gradient_within_two_steps[default]",
    ),
    Mutant(
        name="training the memory only trains nothing of the write",
        file=f"{MODEL}/modeling_lm2.py",
        old='return ".memory." in parameter_name',
        new='return ".memory.read" in parameter_name',
        test="contract/test_from_llama.py::test_train_memory_only_changes_the_memory_and_nothing_else[default]",
    ),
]

GENERATE = [
    Mutant(
        name="a beam takes the pending write of another",
        file=f"{MODEL}/cache_lm2.py",
        old="            layer.state = layer.state.map(function)\n",
        new=(
            "            changed = {n: t if n == 'source' else function(t) for n, t in layer.state.tensors().items()}\n"
            "            layer.state = BlockState(**changed)\n"
        ),
        test="contract/test_generate.py::test_beam_search[default]",
    ),
    Mutant(
        name="the cache says that it has seen nothing",
        file=f"{MODEL}/cache_lm2.py",
        old="def get_seq_length(self) -> int:\n        return self._cache.num_columns",
        new="def get_seq_length(self) -> int:\n        return 0",
        test="contract/test_generate.py::test_turns_on_one_cache[default-all ids]",
    ),
    Mutant(
        name="a long prompt is read in one call",
        file=f"{MODEL}/modeling_lm2.py",
        old="generation_config.prefill_chunk_size = PREFILL_SEGMENTS * self.config.segment_length",
        new="pass",
        test="contract/test_generate.py::test_a_long_prompt_is_read_in_pieces_of_bounded_length",
    ),
    Mutant(
        name="any cache is taken",
        file=f"{MODEL}/modeling_lm2.py",
        old='if generation_config.cache_implementation not in (None, "dynamic"):',
        new="if False:",
        test="contract/test_generate.py::test_what_cannot_work_is_refused_with_a_reason[default]",
    ),
    Mutant(
        name="assistants may roll the state back",
        file=f"{MODEL}/modeling_lm2.py",
        old="_is_stateful = True",
        new="_is_stateful = False",
        test="contract/test_generate.py::test_what_cannot_work_is_refused_with_a_reason[default]",
    ),
]

SAVE_LOAD = [
    Mutant(
        name="NaN is loaded",
        file=f"{MODEL}/modeling_lm2.py",
        old="not bool(torch.isfinite(weight).all())",
        new="False",
        test="contract/test_save_load.py::test_numbers_that_are_none_are_refused_by_name[default-nan]",
    ),
]

CACHE = [
    Mutant(
        name="rows keep their number of tokens when they move",
        file=f"{MODEL}/cache_lm2.py",
        old="self.num_document_tokens = self.num_document_tokens.index_select(0, on_cpu)",
        new="self.num_document_tokens = self.num_document_tokens[on_cpu * 0]",
        test="contract/test_cache.py::test_rows_can_be_picked_and_repeated[default-select-open segment]",
    ),
    Mutant(
        name="detach does nothing",
        file=f"{MODEL}/cache_lm2.py",
        old="self._map(Tensor.detach)",
        new="pass",
        test="contract/test_cache.py::test_detach_cuts_the_graph[default]",
    ),
    Mutant(
        name="a saved state loses the bank of the paper",
        file=f"{MODEL}/cache_lm2.py",
        old='cache.bank = tensors.pop("bank", None)',
        new='tensors.pop("bank", None)',
        test="contract/test_cache.py::test_save_and_load[paper]",
    ),
    Mutant(
        name="the fingerprint misses a field",
        file=f"{MODEL}/configuration_lm2.py",
        old='    "memory_top_k",\n    "memory_null_slot",\n)',
        new='    "memory_null_slot",\n)',
        test="contract/test_cache.py::test_a_cache_of_another_model_is_refused_with_what_differs",
    ),
    Mutant(
        name="a state is a view of its call",
        file=f"{MODEL}/layout_lm2.py",
        old="return last[:, : self.num_open].clone()",
        new="return last[:, : self.num_open]",
        test="contract/test_cache.py::test_a_state_keeps_nothing_alive_but_itself[default]",
    ),
    Mutant(
        name="a state is one token larger than announced",
        file=f"{MODEL}/configuration_lm2.py",
        old="attended_tokens = self.attention_window * self.segment_length - 1",
        new="attended_tokens = self.attention_window * self.segment_length - 2",
        test="contract/test_cache.py::test_bytes_of_the_state[default]",
    ),
]

BOUNDED = [
    Mutant(
        name="the window grows",
        file=f"{MODEL}/attention_lm2.py",
        old="return segments[:, first : first + num_kept].flatten(1, 2).clone()",
        new="return segments[:, : first + num_kept].flatten(1, 2).clone()",
        test="contract/test_bounded.py::test_the_state_has_the_same_size_after_any_number_of_tokens[window-2]",
    ),
    Mutant(
        name="something of every call is kept",
        file=f"{MODEL}/cache_lm2.py",
        old="        self.num_columns += num_columns\n",
        new=(
            "        self.num_columns += num_columns\n"
            "        self.kept = [*getattr(self, 'kept', []), torch.ones(num_columns, 4 * self.config.hidden_size)]\n"
        ),
        test="contract/test_bounded.py::test_the_peak_of_streaming_does_not_grow",
    ),
]

TRAINING = [
    Mutant(
        name="truncated backpropagation cuts nothing, at once",
        file=f"{MODEL}/memory_lm2.py",
        old="_restart(keep, new, self._is_cut(number_BG), banks.detach())",
        new="_restart(keep, new, self._is_cut(number_BG), banks)",
        test="contract/test_training.py::test_bptt_segments_cuts_the_gradient_where_it_says[default-2]",
    ),
    Mutant(
        name="truncated backpropagation cuts nothing, in turn",
        file=f"{MODEL}/memory_lm2.py",
        old="bank_BND.detach(), bank_BND)",
        new="bank_BND, bank_BND)",
        test="contract/test_training.py::test_bptt_segments_cuts_the_gradient_where_it_says[attend-2]",
    ),
    Mutant(
        name="truncated backpropagation cuts at every other place",
        file=f"{MODEL}/memory_lm2.py",
        old="(number % self.bptt_segments == 0)",
        new="(number % self.bptt_segments == 1)",
        test="contract/test_training.py::test_bptt_segments_counts_the_segments_of_each_document[default]",
    ),
    Mutant(
        name="truncated backpropagation cuts nothing of the paper",
        file=f"{MODEL}/modeling_lm2.py",
        old="bank = torch.where(is_cut, bank.detach(), bank)",
        new="pass",
        test="contract/test_training.py::test_bptt_segments_cuts_the_gradient_where_it_says[paper-2]",
    ),
]

ENTROPY_FLOOR = [
    Mutant(
        name="the leak of an own write, trained",
        file=f"{MODEL}/memory_lm2.py",
        old="return banks[:, :num_segments], banks[:, -1]",
        new="return torch.cat([banks[:, 1:], banks[:, -1:]], 1)[:, :num_segments], banks[:, -1]",
        test="contract/test_entropy_floor.py::test_uniform_tokens_stay_unpredictable[default]",
    ),
    Mutant(
        name="the leak of an own write, trained on halves",
        file=f"{MODEL}/memory_lm2.py",
        old="return banks[:, :num_segments], banks[:, -1]",
        new="return torch.cat([banks[:, 1:], banks[:, -1:]], 1)[:, :num_segments], banks[:, -1]",
        test=(
            "contract/test_entropy_floor.py::"
            "test_a_symbol_is_unpredictable_before_it_is_seen_and_known_afterwards[default]"
        ),
    ),
    Mutant(
        name="the leak of a mean over the segment, trained",
        file=f"{MODEL}/paper_lm2.py",
        old="g_in = self.input_gate(x_BTD).float().sigmoid()",
        new="g_in = self.input_gate(x_BTD.mean(1, keepdim=True).expand_as(x_BTD)).float().sigmoid()",
        test=(
            "contract/test_entropy_floor.py::"
            "test_a_symbol_is_unpredictable_before_it_is_seen_and_known_afterwards[paper]"
        ),
    ),
]

PARAMETERS = [
    Mutant(
        name="parameters of the write count as the backbone's",
        file=f"{MODEL}/modeling_lm2.py",
        old='return ".memory." in parameter_name',
        new='return ".memory.read" in parameter_name',
        test="contract/test_parameters.py::test_default[8]",
    ),
]

CONTRACT = [
    *CAUSALITY,
    *STREAMING,
    *ROWS,
    *DOCUMENTS,
    *MEMORY_OFF,
    *FROM_LLAMA,
    *GENERATE,
    *SAVE_LOAD,
    *CACHE,
    *BOUNDED,
    *TRAINING,
    *ENTROPY_FLOOR,
    *PARAMETERS,
]

# Section: unit and parity.
# Grouped by the file of the parity and unit suites that catches them.
PARITY_MODELS = [
    Mutant(
        name="paper: Eq. 3 adds the read, not the slot",
        file=f"{MODEL}/paper_lm2.py",
        old="gated = (self.scale * g_out * slot_BTD)",
        new="gated = (self.scale * g_out * read)",
        test="parity/test_models.py::test_paper_model",
    ),
    Mutant(
        name="paper: Eq. 4 gates by the slot",
        file=f"{MODEL}/paper_lm2.py",
        old="g_in = self.input_gate(x_BTD)",
        new="g_in = self.input_gate(slot)",
        test="parity/test_models.py::test_paper_model",
    ),
    Mutant(
        name="paper: Eq. 5 gates by the token",
        file=f"{MODEL}/paper_lm2.py",
        old="g_forget = self.forget_gate(read)",
        new="g_forget = self.forget_gate(x_BTD)",
        test="parity/test_models.py::test_paper_model",
    ),
    Mutant(
        name="paper: Eq. 6 without tanh",
        file=f"{MODEL}/paper_lm2.py",
        old="g_in * read.float().tanh()",
        new="g_in * read.float()",
        test="parity/test_models.py::test_paper_model",
    ),
    Mutant(
        name="paper: slots see all cells",
        file=f"{MODEL}/paper_lm2.py",
        old="visible = visible.tril() if plan.causal else visible",
        new="visible = visible",
        test="parity/test_models.py::test_paper_model",
    ),
    Mutant(
        name="paper: fixed slots for the next segment",
        file=f"{MODEL}/modeling_lm2.py",
        old=".scatter(1, index_BTD, slot)[:, :-1]",
        new="[:, :-1]",
        test="parity/test_models.py::test_paper_model",
    ),
    Mutant(
        name="address: forgets the input gate",
        file=f"{MODEL}/memory_lm2.py",
        old="logits_SN.softmax(-1) * gate_S.unsqueeze(-1)",
        new="logits_SN.softmax(-1)",
        test="parity/test_models.py::test_segment_model[joint-address-input-1]",
    ),
    Mutant(
        name="start: modules without parameters of their own are left out",
        file=f"{MODEL}/modeling_lm2.py",
        old="super()._initialize_weights(module, is_custom_code=False)",
        new="super()._initialize_weights(module, is_custom_code)",
        test="unit/test_initialization.py::test_attended_slots_start_by_remembering",
    ),
    Mutant(
        name="rmt: writes from the learned start",
        file="src/lm2/models/rmt/modeling_rmt.py",
        old="bank[:, : plan.num_write]",
        new="initial[:, : plan.num_write]",
        test="parity/test_rivals.py::test_rmt[plain]",
    ),
    Mutant(
        name="rmt: memory without the final norm",
        file="src/lm2/models/rmt/modeling_rmt.py",
        old="self.norm(written)",
        new="written",
        test="parity/test_rivals.py::test_rmt[plain]",
    ),
    Mutant(
        name="rmt: memory goes on in a new document",
        file="src/lm2/models/common/segment.py",
        old="memory = torch.where(layout.reset_BG[:, 0, None, None], initial, memory)",
        new="pass",
        test="contract/test_documents.py::test_a_document_does_not_see_the_one_before_it[rmt]",
    ),
    Mutant(
        name="rmt, armt: gradients are not cut",
        file="src/lm2/models/common/segment.py",
        old="(number_B % bptt_segments == 0)",
        new="(number_B % bptt_segments == 99)",
        test="parity/test_rivals.py::test_rmt[bptt_segments=2]",
    ),
    Mutant(
        name="rmt: read tokens take no places",
        file="src/lm2/models/common/segment.py",
        old="0 if layout.offset == 0 else num_read + layout.offset",
        new="0 if layout.offset == 0 else layout.offset",
        test="contract/test_streaming.py::test_the_state_after_one_forward_equals_the_state_after_pieces[rmt]",
    ),
    Mutant(
        name="armt: no delta rule",
        file="src/lm2/models/armt/association_armt.py",
        old="self.value(hidden_BMD).float() - self._look_up(key_BMK, association)",
        new="self.value(hidden_BMD).float()",
        test="parity/test_rivals.py::test_armt[plain]",
    ),
    Mutant(
        name="armt: every write counts in full",
        file="src/lm2/models/armt/association_armt.py",
        old=".clamp(0, 1).detach()",
        new=".detach() * 0 + 1",
        test="parity/test_rivals.py::test_armt[plain]",
    ),
    Mutant(
        name="armt: the correction has a gradient",
        file="src/lm2/models/armt/association_armt.py",
        old=".clamp(0, 1).detach()",
        new=".clamp(0, 1)",
        test="parity/test_rivals.py::test_armt[plain]",
    ),
    Mutant(
        name="armt: products with the other neighbour",
        file="src/lm2/models/armt/association_armt.py",
        old="halves.roll(shift, dims=-1)",
        new="halves.roll(-shift, dims=-1)",
        test="parity/test_rivals.py::test_dpfp_by_hand",
    ),
    Mutant(
        name="armt: values do not start at zero",
        file="src/lm2/models/armt/modeling_armt.py",
        old="initialization.zeros_(module.value.weight)",
        new="pass",
        test="unit/test_initialization.py::test_a_fresh_armt_writes_nothing",
    ),
    Mutant(
        name="optimizer: Muon in bfloat16 on the CPU",
        file="src/lm2/train/optim.py",
        old="with KeepFloat32OnCPU():",
        new="with torch.no_grad():",
        test="unit/test_optim.py::test_muon_is_exact_to_float32_on_the_cpu",
    ),
    Mutant(
        name="recall: a question repeats any value",
        file="src/lm2/data/recall.py",
        old="    value_C[is_question] = value_C[source_C[is_question]]\n",
        new="",
        test="unit/test_recall.py::test_answers_are_the_latest_values",
    ),
    Mutant(
        name="recall: validation reads the rows of training",
        file="src/lm2/train/batches.py",
        old='Random(f"recall {split} ',
        new='Random(f"recall ',
        test="unit/test_recall.py::test_validation_of_recall_has_rows_of_its_own",
    ),
    Mutant(
        name="retention: a question becomes part of the text",
        file="src/lm2/eval/retention.py",
        old="copy.deepcopy(state)",
        new="state",
        test="unit/test_retention.py::test_an_answer_is_that_to_the_whole_text[tiny_lm2]",
    ),
    Mutant(
        name="retention: every distance begins at the story",
        file="src/lm2/eval/retention.py",
        old="story.noise[begin:end]",
        new="story.noise[:end]",
        test="unit/test_retention.py::test_an_answer_is_that_to_the_whole_text[tiny_rmt]",
    ),
    Mutant(
        name="loss: all answers are counted as one task's",
        file="src/lm2/train/loss.py",
        old="task = batch.tasks[row] if batch.tasks else None",
        new="task = batch.tasks[0] if batch.tasks else None",
        test="unit/test_loss.py::test_answers_are_counted_by_task",
    ),
    Mutant(
        name="demo: a question becomes part of the text",
        file="src/lm2/cli/demo.py",
        old="copy.deepcopy(state)",
        new="state",
        test="unit/test_demo.py::test_every_question_is_asked_of_the_whole_text_alone",
    ),
    Mutant(
        name="cost: reading with parameters that take gradients",
        file="src/lm2/eval/cost.py",
        old="with _frozen(model):",
        new="with torch.no_grad():",
        test="unit/test_cost.py::test_a_memory_costs_the_same_for_every_segment[tiny_rmt]",
    ),
    Mutant(
        name="reproduce: a closed terminal is not heard",
        file="src/lm2/cli/jobs.py",
        old="(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        new="(signal.SIGINT, signal.SIGTERM)",
        test="train/test_reproduce.py::test_interrupted_twice_it_ends_as_it_would_have",
    ),
    Mutant(
        name="reproduce: followers end stages by themselves",
        file="src/lm2/cli/reproduce.py",
        old="[replace(stage, until=end) for stage, end",
        new="[stage for stage, end",
        test="train/test_reproduce.py::test_rivals_read_the_same",
    ),
    Mutant(
        name="reproduce: all follow even with stages of their own",
        file="src/lm2/cli/reproduce.py",
        old="entry if own_stages else entries[0]",
        new="entries[0]",
        test="train/test_reproduce.py::test_with_stages_of_its_own_a_rival_does_not_wait_for_the_leader",
    ),
    Mutant(
        name="further questions: answered from the whole story",
        file="src/lm2/data/further.py",
        old="for told, ask in enumerate(ask_so_far(task, facts), start=1):",
        new="for told, ask in enumerate([list(ask_so_far(task, facts))[-1]] * len(facts), start=1):",
        test="unit/test_further.py::test_answers_are_the_solvers_from_the_facts_told_so_far[1]",
    ),
    Mutant(
        name="further questions: drawn evenly, whatever their answers",
        file="src/lm2/data/further.py",
        old="answer_text = rng.choice(sorted(texts_by_answer))",
        new="answer_text = rng.choice([answer for answer, texts in texts_by_answer.items() for _ in texts])",
        test="unit/test_further.py::test_every_answer_is_as_likely_and_questions_are_of_what_was_told",
    ),
    Mutant(
        name="further questions: of places that nobody has been in, too",
        file="src/lm2/data/further.py",
        old="if num_told[text] == most])",
        new="if num_told[text] <= most])",
        test="unit/test_further.py::test_every_answer_is_as_likely_and_questions_are_of_what_was_told",
    ),
    Mutant(
        name="further questions: asked before their fact",
        file="src/lm2/data/stream.py",
        old="            whole.append(item)\n            if item.answer is None:\n                told += 1\n",
        new="            if item.answer is None:\n                told += 1\n"
        "                whole += behind.pop(told, ())\n            whole.append(item)\n"
        "            if not item.answer:\n",
        test="unit/test_further.py::test_the_storys_own_questions_stay_and_the_length_holds",
    ),
    Mutant(
        name="further questions: more than fit",
        file="src/lm2/data/stream.py",
        old="                left -= len(item.ids)\n",
        new="",
        test="unit/test_further.py::test_only_as_many_as_fit",
    ),
    Mutant(
        name="further questions: validated on, too",
        file="src/lm2/train/batches.py",
        old='further_questions=recipe_stage.further_questions if split == "train" else 0,',
        new="further_questions=recipe_stage.further_questions,",
        test="unit/test_batches.py::test_training_asks_further_questions_and_validation_does_not",
    ),
    Mutant(
        name="reproduce: who was asked less is compared on everything",
        file="src/lm2/cli/reproduce_compare.py",
        old="common = ours & theirs",
        new="common = ours | theirs",
        test="train/test_reproduce.py::test_a_rival_may_be_asked_less",
    ),
    Mutant(
        name="schedule: steps are counted instead of tokens",
        file="src/lm2/train/sections.py",
        old="return step if self.total_tokens is None else tokens",
        new="return step",
        test="unit/test_curriculum.py::test_a_schedule_of_tokens_ends_when_they_are_read",
    ),
    Mutant(
        name="schedule: the rate falls with steps instead of tokens",
        file="src/lm2/train/optim.py",
        old="left = schedule.total - schedule.done(step, tokens)",
        new="left = schedule.total - step",
        test="unit/test_optim.py::test_wsd_over_tokens",
    ),
    Mutant(
        name="schedule: a rate of the tokens after the step",
        file="src/lm2/train/loop.py",
        old="learning_rate_at(recipe.schedule, state.progress.step, state.tokens)",
        new="learning_rate_at(recipe.schedule, state.progress.step, state.tokens + num_tokens)",
        test="train/test_reproduce.py::test_a_schedule_of_tokens_makes_all_read_as_much",
    ),
    Mutant(
        name="mean over seeds: of the first alone",
        file="src/lm2/eval/compare.py",
        old="_count_outcomes([*map(_by_sample, runs)], [], metric)",
        new="_count_outcomes([*map(_by_sample, runs)][:1], [], metric)",
        test="unit/test_scoring.py::test_a_mean_over_seeds_against_resampling_row_by_row",
    ),
    Mutant(
        name="evaluation: as many samples at all lengths",
        file="src/lm2/cli/eval_babilong.py",
        old="numbers * (len(lengths) // len(numbers))",
        new="numbers[:1] * len(lengths)",
        test="unit/test_cli_eval.py::test_lengths_with_samples_of_their_own",
    ),
    Mutant(
        name="reproduce: a folder can be used twice",
        file="src/lm2/cli/jobs.py",
        old="fcntl.LOCK_EX | fcntl.LOCK_NB",
        new="fcntl.LOCK_SH | fcntl.LOCK_NB",
        test="train/test_reproduce.py::test_a_folder_in_use_is_refused",
    ),
    Mutant(
        name="reproduce: jobs do not hold the folder",
        file="src/lm2/cli/jobs.py",
        old="pass_fds=(lock,)",
        new="pass_fds=()",
        test="train/test_reproduce.py::test_what_a_killed_command_leaves_running_holds_the_folder",
    ),
    Mutant(
        name="reproduce: lengths beyond a model's positions",
        file="src/lm2/cli/reproduce_checks.py",
        old="context_tokens(longest) >= limit",
        new="context_tokens(longest) >= 100 * limit",
        test="train/test_reproduce.py::test_what_is_refused_before_work",
    ),
    Mutant(
        name="cost: causal attention counts all pairs",
        file="src/lm2/eval/cost.py",
        old="pairs = square * (square + 1) // 2 + (num_queries - square) * num_keys",
        new="pairs = num_queries * num_keys",
        test="unit/test_cost.py::test_attention_counts_pairs",
    ),
    Mutant(
        name="reproduce: costs of retrieval are those of the whole context",
        file="src/lm2/cli/reproduce_cost.py",
        old="(read[entry.run_name] if entry.retrieves else of_leader)[length]",
        new="of_leader[length]",
        test="train/test_reproduce.py::test_costs_are_those_of_what_was_read",
    ),
    Mutant(
        name="mmlu: a group is the mean of its subjects",
        file="src/lm2/eval/mmlu.py",
        old="return {one.subject: one.n / total for one in members}",
        new="return {one.subject: 1 / len(members) for one in members}",
        test="unit/test_mmlu.py::test_a_group_counts_every_question_once",
    ),
    Mutant(
        name="mmlu: the paper's average is of the categories only",
        file="src/lm2/eval/mmlu.py",
        old="for share in shares) / len(shares)",
        new="for share in shares[:4]) / 4",
        test="unit/test_mmlu.py::test_a_group_counts_every_question_once",
    ),
    Mutant(
        name="harness: BABILong is right where the answer is in the output",
        file="src/lm2/eval/harness_babilong.py",
        old='float(is_exact(row["target"], outputs[0], row["question"], row["task"]))',
        new='float(row["target"] in outputs[0])',
        test="unit/test_harness_babilong.py::test_answers_are_right_by_exact_match",
    ),
    Mutant(
        name="comparison: samples of different tokenizers",
        file="src/lm2/eval/compare.py",
        old="if len(counted_by) > 1 and context_tokens(row.length):",
        new="if len(counted_by) > 2 and context_tokens(row.length):",
        test="unit/test_scoring.py::test_samples_made_by_different_tokenizers_are_not_compared",
    ),
    Mutant(
        name="comparison: right only where all seeds are",
        file="src/lm2/eval/compare.py",
        old="outcomes[row.task, row.length][num_right, num_baseline_right] += 1",
        new="outcomes[row.task, row.length][num_right // len(ours) * len(ours), num_baseline_right] += 1",
        test="unit/test_scoring.py::test_a_comparison_over_seeds_against_resampling_row_by_row",
    ),
    Mutant(
        name="rag: five where there are fewer",
        file="src/lm2/baselines/rag.py",
        old="later_first[: USUAL_TOP_K if self.top_k is None else self.top_k]",
        new="later_first[: 1 if self.top_k is None else self.top_k]",
        test="unit/test_rag.py::test_without_a_number_it_is_five_or_all_there_are",
    ),
    Mutant(
        name="likelihood: a piece begins with what the context predicts",
        file="src/lm2/eval/likelihood.py",
        old="last[number] = of_part[-1]",
        new="pass",
        test="unit/test_harness.py::test_pieces_of_a_continuation_change_nothing[lm2]",
    ),
    Mutant(
        name="harness: the end stays",
        file="src/lm2/eval/harness.py",
        old="text = text.split(end, 1)[0]",
        new="pass",
        test="unit/test_harness.py::test_generation_ends_before_the_first_of_its_ends[llama-1]",
    ),
    Mutant(
        name="harness: answers in the order of their lengths",
        file="src/lm2/eval/harness.py",
        old="return [results[number] for number in range(len(requests))]\n\n    def _fit",
        new="return list(results.values())\n\n    def _fit",
        test="unit/test_harness.py::test_loglikelihood_is_that_of_one_forward[lm2-1]",
    ),
    Mutant(
        name="rag: of equal passages the earlier ones",
        file="src/lm2/baselines/rag.py",
        old="(-scores[place], -place)",
        new="(-scores[place], place)",
        test="unit/test_rag.py::test_of_equal_passages_the_later_ones_are_taken",
    ),
    Mutant(
        name="rag: always in the order of similarity",
        file="src/lm2/baselines/rag.py",
        old='sorted(best) if self.order == "document" else best',
        new="best",
        test="unit/test_rag.py::test_words_in_common_are_found[document]",
    ),
    Mutant(
        name="rag: a fact is looked for from the beginning",
        file="src/lm2/baselines/rag.py",
        old="places[-1][1] if places else 0",
        new="0",
        test="unit/test_rag.py::test_recall_tells_equal_facts_apart",
    ),
    Mutant(
        name="address: no floor",
        file=f"{MODEL}/memory_lm2.py",
        old="gate_SN if self.training else above_floor(gate_SN, self.floor)",
        new="gate_SN",
        test="parity/test_memory.py::test_segments_that_hardly_address_a_slot_keep_it_to_the_bit",
    ),
    Mutant(
        name="address: the floor lets the rest through whole",
        file=f"{MODEL}/memory_lm2.py",
        old="(gate - floor).relu() / (1 - floor)",
        new="torch.where(gate > floor, gate, 0.0)",
        test="parity/test_memory.py::test_what_is_below_the_floor_is_exactly_zero",
    ),
    Mutant(
        name="address: a floor in training",
        file=f"{MODEL}/memory_lm2.py",
        old="gate_SN if self.training else above_floor(gate_SN, self.floor)",
        new="above_floor(gate_SN, self.floor)",
        test="parity/test_memory.py::test_segments_that_hardly_address_a_slot_keep_it_to_the_bit",
    ),
    Mutant(
        name="address: content without tanh",
        file=f"{MODEL}/memory_lm2.py",
        old="self.content(x_BGSD).tanh()",
        new="self.content(x_BGSD)",
        test="parity/test_models.py::test_segment_model[joint-address-input-1]",
    ),
    Mutant(
        name="attend: forget gate without the slot",
        file=f"{MODEL}/memory_lm2.py",
        old="torch.cat([carried, slot], dim=-1)",
        new="torch.cat([carried, carried], dim=-1)",
        test="parity/test_models.py::test_segment_model[joint-attend-input-1]",
    ),
    Mutant(
        name="separate: gate of the token",
        file=f"{MODEL}/memory_lm2.py",
        old="gate = self.output_gate(read).float().sigmoid()\n        scale_D",
        new="gate = self.output_gate(x_BGQD).float().sigmoid()\n        scale_D",
        test="parity/test_models.py::test_segment_model[separate-address-input-1]",
    ),
    Mutant(
        name="joint: slots with rotary position",
        file=f"{MODEL}/block_lm2.py",
        old="self._read_jointly(query, read_keys, plan)",
        new="self._read_jointly(layout.to_tokens(query_QHK), read_keys, plan)",
        test="parity/test_models.py::test_segment_model[joint-address-input-1]",
    ),
    Mutant(
        name="joint: slots are not normed",
        file=f"{MODEL}/memory_lm2.py",
        old="slot = self.norm(bank_ND.to(attention.k_proj.weight.dtype))",
        new="slot = bank_ND.to(attention.k_proj.weight.dtype)",
        test="parity/test_models.py::test_segment_model[joint-address-input-1]",
    ),
    Mutant(
        name="writes from the attention come from the input",
        file=f"{MODEL}/block_lm2.py",
        old="memory_state = self._write_bank(x_BTD,",
        new="memory_state = self._write_bank(self.input_layernorm(residual),",
        test="parity/test_models.py::test_segment_model[joint-address-attention-1]",
    ),
    Mutant(
        name="documents inherit the bank",
        file=f"{MODEL}/memory_lm2.py",
        old="            keep, new = _restart(keep, new, reset_BG, initial)\n",
        new="",
        test="parity/test_models.py::test_ragged_rows_of_several_documents",
    ),
    Mutant(
        name="truncation cuts the bank only",
        file=f"{MODEL}/block_lm2.py",
        old="layout.reset_BG is None and not may_cut",
        new="layout.reset_BG is None",
        test="parity/test_models.py::test_truncated_gradients",
    ),
    Mutant(
        name="truncation cuts nothing",
        file=f"{MODEL}/memory_lm2.py",
        old="return (number > 0) & (number % self.bptt_segments == 0)",
        new="return number < 0",
        test="parity/test_models.py::test_truncated_gradients",
    ),
    Mutant(
        name="paper: truncation cuts nothing",
        file=f"{MODEL}/modeling_lm2.py",
        old="bank = torch.where(is_cut, bank.detach(), bank)",
        new="",
        test="parity/test_models.py::test_paper_model_with_truncated_gradients",
    ),
    Mutant(
        name="the null slot holds something",
        file=f"{MODEL}/memory_lm2.py",
        old="F.pad(values, (0, 0, 0, 1))",
        new="F.pad(values, (0, 0, 0, 1), value=1.0)",
        test="parity/test_models.py::test_segment_model_options",
    ),
    Mutant(
        name="identity bank does not start over",
        file=f"{MODEL}/memory_lm2.py",
        old="torch.arange(num_slots, device=device) % size, size",
        new="torch.arange(num_slots, device=device).clamp(max=size - 1), size",
        test="parity/test_models.py::test_segment_model_options",
    ),
]

PARITY_MEMORY = [
    Mutant(
        name="scan drops the odd tail",
        file=f"{MODEL}/memory_lm2.py",
        old="return torch.cat([paired, even[:, -1:]], dim=1)",
        new="return torch.cat([paired, even[:, -2:-1]], dim=1)",
        test="parity/test_memory.py::test_linear_scan",
    ),
    Mutant(
        name="scan keeps the wrong neighbor",
        file=f"{MODEL}/memory_lm2.py",
        old="first_keep * second_keep, second_keep * first_new + second_new",
        new="first_keep * second_keep, first_keep * first_new + second_new",
        test="parity/test_memory.py::test_linear_scan",
    ),
    Mutant(
        name="erase weights do not see later tokens",
        file=f"{MODEL}/memory_lm2.py",
        old="weight = gate * F.pad(later_log_keep[..., 1:, :], (0, 0, 0, 1)).exp()",
        new="weight = gate",
        test="parity/test_memory.py::test_erase_and_add",
    ),
    Mutant(
        name="erase weights count the token itself",
        file=f"{MODEL}/memory_lm2.py",
        old="F.pad(later_log_keep[..., 1:, :], (0, 0, 0, 1)).exp()",
        new="later_log_keep.exp()",
        test="parity/test_memory.py::test_erase_and_add",
    ),
    Mutant(
        name="open gates are not clamped",
        file=f"{MODEL}/memory_lm2.py",
        old="gate = gate_SN.clamp(max=1 - 2**-24)",
        new="gate = gate_SN",
        test="parity/test_memory.py::test_gates_fully_open_overwrite",
    ),
    Mutant(
        name="tiny gates are rounded away",
        file=f"{MODEL}/memory_lm2.py",
        old="torch.log1p(-gate)",
        new="torch.log(1 - gate)",
        test="parity/test_memory.py::test_erase_and_add",
    ),
    Mutant(
        name="every gate leaks a little",
        file=f"{MODEL}/memory_lm2.py",
        old="gate = gate_SN.clamp(max=1 - 2**-24)",
        new="gate = gate_SN.clamp(min=1e-6, max=1 - 2**-24)",
        test="parity/test_memory.py::test_a_slot_that_no_token_addresses_stays_exactly",
    ),
    Mutant(
        name="top-k keeps one more",
        file=f"{MODEL}/slots_lm2.py",
        old="logits.topk(top_k, dim=-1)",
        new="logits.topk(top_k + 1, dim=-1)",
        test="parity/test_memory.py::test_attend_to_slots",
    ),
    Mutant(
        name="the mean key counts as a slot",
        file=f"{MODEL}/slots_lm2.py",
        old="(torch.log1p(-share) - share.log())",
        new="(-share.log())",
        test="parity/test_memory.py::test_the_kernel_reads_slots_as_explicit_weights_do",
    ),
    Mutant(
        name="the mean key's share stays in the average",
        file=f"{MODEL}/slots_lm2.py",
        old="(read.float() / (1 - share))",
        new="read.float()",
        test="parity/test_memory.py::test_the_kernel_reads_slots_as_explicit_weights_do",
    ),
    Mutant(
        name="the mean key's logit has no gradient",
        file=f"{MODEL}/slots_lm2.py",
        old="(query.float() * mean_key",
        new="(query.detach().float() * mean_key",
        test="parity/test_memory.py::test_the_kernel_reads_slots_as_explicit_weights_do",
    ),
    Mutant(
        name="shares of the mean key in float16",
        file=f"{MODEL}/slots_lm2.py",
        old="if dtype == torch.float16 or (",
        new="if (",
        test="parity/test_memory.py::test_the_kernel_reads_slots_in_low_precision",
    ),
    Mutant(
        name="logits pass in two numbers",
        file=f"{MODEL}/attention_lm2.py",
        old="    for _ in range(3):\n        parts",
        new="    for _ in range(2):\n        parts",
        test="parity/test_memory.py::test_three_bfloat16_numbers_hold_a_float32_exactly",
    ),
]

PARITY_ATTENTION = [
    Mutant(
        name="joint read takes the gate for the mass",
        file=f"{MODEL}/attention_lm2.py",
        old="memory_share = scale_H1 * gate_BGQH.unsqueeze(-1) * memory_mass / total",
        new="memory_share = scale_H1 * memory_mass / total",
        test="parity/test_attention.py::test_attention_after_an_earlier_call",
    ),
    Mutant(
        name="a negative scale is not taken by size",
        file=f"{MODEL}/attention_lm2.py",
        old="scale_H1.abs() * memory_mass",
        new="scale_H1 * memory_mass",
        test="parity/test_attention.py::test_attention_after_an_earlier_call",
    ),
    Mutant(
        name="tokens are not renormalized",
        file=f"{MODEL}/attention_lm2.py",
        old="return (from_tokens / total).to(dtype) +",
        new="return from_tokens.to(dtype) +",
        test="parity/test_attention.py::test_a_scale_of_zero_leaves_the_tokens_alone",
    ),
    Mutant(
        name="logits pass in one number",
        file=f"{MODEL}/attention_lm2.py",
        old="    for _ in range(3):\n        parts",
        new="    for _ in range(1):\n        parts",
        test="parity/test_attention.py::test_the_memorys_logit_passes_through_low_precision",
    ),
    Mutant(
        name="window does not slide",
        file=f"{MODEL}/attention_lm2.py",
        old="if num_kept == 0 or not layout.completes_any:",
        new="if num_kept == 0 or True:",
        test="parity/test_attention.py::test_attention_after_an_earlier_call",
    ),
]

PARITY_LAYOUT = [
    Mutant(
        name="position starts at the row, not the document",
        file=f"{MODEL}/layout_lm2.py",
        old="position = order - torch.where(document_start >= 0, document_start, -seen_B.unsqueeze(1))",
        new="position = order + seen_B.unsqueeze(1)",
        test="parity/test_layout.py::test_every_token_lies_where_the_walk_puts_it",
    ),
    Mutant(
        name="columns of rows that are gone are read",
        file=f"{MODEL}/layout_lm2.py",
        old="past_BF = past_BF[:, : self.offset]",
        new="past_BF = past_BF",
        test="parity/test_layout.py::test_columns_of_rows_that_are_gone_are_not_read",
    ),
    Mutant(
        name="the last segment of all alike rows is always full",
        file=f"{MODEL}/layout_lm2.py",
        old="full_BG[:, -1] = filled == 0 and num_tokens > 0",
        new="",
        test="parity/test_layout.py::test_what_is_known_of_every_segment",
    ),
    Mutant(
        name="resets are lost in a split",
        file=f"{MODEL}/layout_lm2.py",
        old="start = is_first & self.reset_BG[:, g : g + 1].cpu()",
        new="start = None",
        test="parity/test_layout.py::test_split_gives_calls_inside_one_segment_that_join",
    ),
    Mutant(
        name="tokens seen ignore resets",
        file=f"{MODEL}/layout_lm2.py",
        old="return torch.where(start.any(1), since_start, seen_B + valid.sum(1))",
        new="return seen_B + valid.sum(1)",
        test="parity/test_layout.py::test_tokens_seen",
    ),
]

CONFIGURATION = [
    Mutant(
        name="state bytes forget the null slot",
        file=f"{MODEL}/configuration_lm2.py",
        old="(self.num_memory_slots + self.memory_null_slot)",
        new="self.num_memory_slots",
        test="unit/test_configuration.py::test_bytes_of_a_full_state",
    ),
    Mutant(
        name="fingerprint forgets a field",
        file=f"{MODEL}/configuration_lm2.py",
        old='    "memory_top_k",\n    "memory_null_slot",',
        new='    "memory_top_k",',
        test="unit/test_configuration.py::test_the_fingerprint_changes_with_what_a_state_means",
    ),
    Mutant(
        name="misspelled fields pass",
        file=f"{MODEL}/configuration_lm2.py",
        old="        self._reject_misspelled_fields(kwargs)\n",
        new="",
        test="unit/test_configuration.py::test_a_wrong_field_is_named_with_its_value_and_the_fix",
    ),
    Mutant(
        name="paper takes options without effect",
        file=f"{MODEL}/configuration_lm2.py",
        old='            "memory_null_slot": False,\n',
        new="",
        test="unit/test_configuration.py::test_a_wrong_field_is_named_with_its_value_and_the_fix",
    ),
]

INPUTS = [
    Mutant(
        name="holes pass",
        file=f"{MODEL}/inputs_lm2.py",
        old="if bool((num_runs > 1).any()):",
        new="if False:",
        test="unit/test_inputs.py::test_a_bad_call_is_refused_and_changes_nothing",
    ),
    Mutant(
        name="gaps pass",
        file=f"{MODEL}/inputs_lm2.py",
        old="if bool(gaps.any()):",
        new="if False:",
        test="unit/test_inputs.py::test_a_bad_call_is_refused_and_changes_nothing",
    ),
    Mutant(
        name="tokens above the vocabulary pass",
        file=f"{MODEL}/modeling_lm2.py",
        old="if low < 0 or high >= self.config.vocab_size:",
        new="if low < 0 or high > self.config.vocab_size:",
        test="unit/test_inputs.py::test_a_bad_call_is_refused_and_changes_nothing",
    ),
    Mutant(
        name="caches of other rows pass",
        file=f"{MODEL}/modeling_lm2.py",
        old="if cache.is_initialized and cache.batch_size != num_rows:",
        new="if False:",
        test="unit/test_inputs.py::test_a_cache_of_other_rows",
    ),
    Mutant(
        name="caches of other models pass",
        file=f"{MODEL}/modeling_lm2.py",
        old="            cache.check_config(self.config)\n",
        new="            pass\n",
        test="unit/test_inputs.py::test_a_cache_of_another_model_names_what_differs",
    ),
    Mutant(
        name="infinite weights load",
        file=f"{MODEL}/modeling_lm2.py",
        old="torch.isfinite(weight).all()",
        new="(weight == weight).all()",
        test="unit/test_inputs.py::test_weights_that_are_no_numbers",
    ),
    Mutant(
        name="the cache counts columns of a call that fails",
        file=f"{MODEL}/modeling_lm2.py",
        old="        valid, start = read_boundaries(\n",
        new=(
            "        if cache is not None:\n"
            "            cache.num_columns += 1\n"
            "        valid, start = read_boundaries(\n"
        ),
        test="unit/test_inputs.py::test_a_bad_call_is_refused_and_changes_nothing",
    ),
    Mutant(
        name="a refusal is no ValueError",
        file=f"{MODEL}/modeling_lm2.py",
        old='raise ValueError("cache with gradient checkpointing',
        new='raise RuntimeError("cache with gradient checkpointing',
        test="unit/test_inputs.py::test_a_state_with_gradient_checkpointing",
    ),
]

UNIT = [
    *PARITY_MODELS,
    *PARITY_MEMORY,
    *PARITY_ATTENTION,
    *PARITY_LAYOUT,
    *CONFIGURATION,
    *INPUTS,
]

MUTANTS = [*CONTRACT, *UNIT]


def run(mutant: Mutant) -> str:
    """'caught', 'SURVIVED', or 'BROKEN' where the test could not even start."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "src"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / mutant.file
        source = path.read_text(encoding="utf-8")
        if source.count(mutant.old) != 1:
            return "BROKEN"
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider"]
        code = subprocess.run(
            [*command, str(ROOT / "tests" / mutant.test)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
    return {0: "SURVIVED", 1: "caught"}.get(code, "BROKEN")


def main() -> int:
    parser = argparse.ArgumentParser(description="Breaks the code in known ways and reports which tests notice.")
    parser.add_argument("names", nargs="*", help="names of mutants, or beginnings of their tests (contract/test_rows)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    options = parser.parse_args()
    names = tuple(options.names)
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names or mutant.test.startswith(names)]
    if not chosen:
        parser.error("no such mutant")
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = []
        for mutant, verdict in zip(chosen, pool.map(run, chosen), strict=True):
            verdicts.append(verdict)
            print(f"{verdict:8}  {mutant.name:64}  {mutant.test}", flush=True)
    print(f"{verdicts.count('caught')} of {len(verdicts)} mutants caught")
    return int(any(verdict != "caught" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
