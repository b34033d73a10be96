"""Our models in lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness): any causal language model.

Importing this module registers the model class as "lm2". Models with a bounded state read texts of any length through
it, where the harness's own class would drop the beginning of what is longer than max_position_embeddings.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from lm2.eval.likelihood import score_continuations
from lm2.eval.runner import Decoding, answer, max_prompt_tokens, max_text_tokens

# What the harness's own class takes where a task does not say.
_DEFAULT_NEW_TOKENS = 256


@register_model("lm2")
class HarnessLM(TemplateLM):
    """A model and its tokenizer as the harness asks them; rows get what each would get alone, in any batch.

    Attributes:
        num_truncated: Requests so far whose beginning was not read.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        batch_size: int | str = 1,
        truncate: bool = False,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Takes a model, or loads one.

        Args:
            pretrained: A causal language model of transformers in evaluation mode, or a folder with one.
            tokenizer: The model's; a folder or None only with a folder in `pretrained`.
            batch_size: Rows at once.
            truncate: Let a model without a memory read the end of what is too long for it, instead of refusing.
            device: Where a folder's model goes; a model is used where it is.
            max_batch_size: Of the harness's search for a batch size, which is not done here.

        Raises:
            ValueError: a batch size that is no number.
        """
        super().__init__()
        if max_batch_size is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, but must be a number; it is not searched for")
        if isinstance(pretrained, str):
            pretrained, tokenizer = _load(pretrained, tokenizer, device)
        self.model, self.tokenizer = pretrained, tokenizer
        self.batch_size, self.truncate = int(batch_size), truncate
        self.num_truncated = 0

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context begins with."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int | None:
        """Tokens that a text may have; None without a limit."""
        return max_text_tokens(self.model)

    @property
    def tokenizer_name(self) -> str:
        """By which the harness keeps requests apart."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; with the special tokens that the tokenizer puts before texts, unless the text has them."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = bos is None or not string.startswith(bos)
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, each token from all before it."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        prefix = [self.prefix_token_id]
        rows = [(("", request.args[0]), prefix, text) for request, text in zip(requests, texts, strict=True)]
        return [total for total, _ in self._loglikelihood_tokens(rows, disable_tqdm=disable_tqdm)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        results: dict[int, tuple[float, bool]] = {}
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        for batch in _batches(_longest_first(lengths), self.batch_size):
            rows = [self._fit(requests[number][1], requests[number][2]) for number in batch]
            likelihoods = score_continuations(self.model, *zip(*rows, strict=True))
            for number, likelihood in zip(batch, likelihoods, strict=True):
                results[number] = (likelihood.log_probability, likelihood.is_greedy)
        return [results[number] for number in range(len(requests))]

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of a context that is too long for the model, if it may be cut."""
        limit = self.max_length
        # The last token of all predicts nothing.
        excess = 0 if limit is None else len(context) + len(continuation) - 1 - limit
        if excess <= 0 or not self.truncate or excess >= len(context):
            return context, continuation
        self.num_truncated += 1
        return context[excess:], continuation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the texts that end it."""
        results: dict[int, str] = {}
        contexts = [self.tok_encode(request.args[0]) for request in requests]
        by_options: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_options.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for alike in by_options.values():
            decoding = _decoding(requests[alike[0]].args[1])
            limit = max_prompt_tokens(self.model, decoding.max_new_tokens)
            order = [alike[place] for place in _longest_first([len(contexts[number]) for number in alike])]
            for batch in _batches(order, self.batch_size):
                prompts = [[np.array(contexts[number], dtype=np.int32)] for number in batch]
                answers = answer(self.model, self.tokenizer, prompts, decoding, limit if self.truncate else None)
                for number, given in zip(batch, answers, strict=True):
                    self.num_truncated += given.truncated_tokens > 0
                    results[number] = _before(given.text, decoding.ends)
        return [results[number] for number in range(len(requests))]


def _load(folder: str, tokenizer: Any, device: str | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    import lm2
    from lm2.data.tokenizer import load_tokenizer

    del lm2  # Its import makes our architectures known.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model.to(device or "cpu"), load_tokenizer(folder if tokenizer is None else tokenizer)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """So that rows of a batch are alike, and what does not fit shows at once."""
    return sorted(range(len(lengths)), key=lambda number: -lengths[number])


def _batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    rest = iter(numbers)
    while batch := list(islice(rest, size)):
        yield batch


def _decoding(options: dict[str, Any]) -> Decoding:
    """A task's `generation_kwargs`."""
    until = options.get("until") or ()
    ends = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0):
        temperature = 0.0
    drawn = {name: options.get(name) for name in ("top_k", "top_p")} if temperature > 0 else {}
    new_tokens = int(options.get("max_gen_toks", _DEFAULT_NEW_TOKENS))
    return Decoding(new_tokens, ends=ends, temperature=temperature, **drawn)


def _before(text: str, ends: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    for end in ends:
        text = text.split(end, 1)[0]
    return text
