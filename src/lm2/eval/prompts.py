"""Prompts of BABILong: the official ones, part by part, and the plain form of this project's training streams."""

import hashlib
import json
import string
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from lm2.data.plain import plain_prompt
from lm2.eval.metrics import check_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cache
def _official() -> dict[str, Any]:
    """The official strings; the file names their source, licence and commit."""
    return json.loads(resources.files("lm2.eval").joinpath("official_prompts.json").read_text("utf-8"))


@dataclass(frozen=True)
class PromptParts:
    """Which parts an official prompt has (BABILong, Kuratov et al. 2024, run_model_on_babilong.py).

    Attributes:
        instruction: The task in words comes first.
        examples: Two or three worked examples follow.
        post_prompt: The form of the answer follows.
        chat_template: The whole prompt becomes one user message of the tokenizer's chat template.
        template: Another template than the official one, with the fields {instruction}, {examples}, {post_prompt},
            {context} and {question}; at least the last two.

    Raises:
        ValueError: the template lacks {context} or {question}, or has other fields, or drops a part that is on.
    """

    instruction: bool = True
    examples: bool = True
    post_prompt: bool = True
    chat_template: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        if self.template is None:
            return
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise ValueError(f"template is {self.template!r}, but {error}") from error
        parts = ("instruction", "examples", "post_prompt")
        if unknown := sorted(set(fields) - {*parts, "context", "question"}):
            raise ValueError(f"template has the field {{{unknown[0]}}}, but only the official fields can be filled")
        needed = ("context", "question", *(part for part in parts if getattr(self, part)))
        for name in needed:
            if name not in fields:
                raise ValueError(f"template is {self.template!r}, but must hold {{{name}}}, or that part must be off")

    @property
    def name(self) -> str:
        """The flags as official result files have them in their names; another template adds its fingerprint."""
        flags = ("instruction", "examples", "post_prompt", "chat_template")
        name = "_".join(f"{flag}_{'yes' if getattr(self, flag) else 'no'}" for flag in flags)
        if self.template is None:
            return name
        return f"{name}_template_{hashlib.sha256(self.template.encode()).hexdigest()[:8]}"


def build_prompt(task: str, context: str, question: str, parts: PromptParts | None) -> str:
    """The text that a model is asked with, before any chat template.

    Args:
        task: "qa1" to "qa20".
        context: The sample's `input`.
        question: The sample's question.
        parts: Parts of the official prompt, or None for the plain one: context and question in the form that this
            project's training streams have (lm2.data.plain).

    Raises:
        ValueError: no such task.
    """
    check_task(task)
    if parts is None:
        return plain_prompt(context, question)
    strings = _official()["tasks"][task]
    chosen = {part: text if getattr(parts, part) else "" for part, text in strings.items()}
    template = _official()["template"] if parts.template is None else parts.template
    return template.format(context=context.strip(), question=question, **chosen).strip()


def prompt_name(parts: PromptParts | None) -> str:
    """The name that prediction rows and scores carry for a prompt: "plain", or the flags of the official parts."""
    return "plain" if parts is None else parts.name


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase", parts: PromptParts | None) -> list[int]:
    """Token ids of a prompt that `build_prompt` made with the same parts.

    A plain prompt gets no special tokens, as in training. An official one gets the tokenizer's, as in the official
    runs; with the chat template on it is the one user message, and the reply is opened.

    Raises:
        ValueError: the chat template is on, but the tokenizer has none.
    """
    if parts is None or not parts.chat_template:
        return tokenizer(prompt, add_special_tokens=parts is not None)["input_ids"]
    if tokenizer.chat_template is None:
        raise ValueError("chat_template is on, but the tokenizer has none: turn it off, or choose an instruct model")
    message = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(message, tokenize=True, add_generation_prompt=True, return_dict=True)
    return ids["input_ids"]
