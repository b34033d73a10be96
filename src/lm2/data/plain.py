"""The plain text form of a task: what a model trained on the task reads, and what evaluation's plain prompt gives it.

One line: the context's sentences, `Question: Where is Mary? Answer: garden.`, every part led by a space. Byte-level BPE
begins a new token at such a space, so the tokens of a text are those of its parts in a row; with newlines between parts
they would not be, for some tokenizers join a newline to the full stop before it. Ours; the official prompt is another
one (lm2.eval.prompts).
"""

# Ends every answer: no bAbI answer holds one, and the official metric cuts outputs at the first one.
ANSWER_END = "."


def context_text(context: str) -> str:
    """The context as its part of the text: stripped, and led by a space as every sentence is."""
    return f" {context.strip()}"


def question_text(question: str) -> str:
    """What asks, up to the place where the answer begins: `" Question: Where is Mary? Answer:"`."""
    return f" Question: {question.strip()} Answer:"


def answer_text(target: str) -> str:
    """What a model is to write after `question_text`, its end included: `" garden."`."""
    return f" {target}{ANSWER_END}"


def plain_prompt(context: str, question: str) -> str:
    """The whole text before the answer. Encoded without special tokens it equals the training streams' tokens."""
    return context_text(context) + question_text(question)
