"""Prompts: the official strings to the character, parts on and off, the plain form, chat templates."""

import hashlib
import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lm2.data.plain import answer_text, plain_prompt
from lm2.eval.prompts import PromptParts, build_prompt, encode_prompt, prompt_name

# sha256 (16 digits) of the official strings, taken from booydar/babilong ffa075fb, babilong/prompts.py: instruction,
# examples and post_prompt of a task as JSON with sorted keys.
OFFICIAL_SHA256 = {
    "qa1": "cd13225d6c6f697c",
    "qa2": "cd42e9420792b7b6",
    "qa3": "a22d5d7ff031ab7a",
    "qa4": "a574004e7fbf22aa",
    "qa5": "6be5cca18a1f8efc",
    "qa6": "a2c6b02ce509b1cd",
    "qa7": "338799d110868c53",
    "qa8": "cab0382c6320808c",
    "qa9": "067cfc36a641c70b",
    "qa10": "8d673bc301d31d23",
    "qa11": "eb456285278cdf1d",
    "qa12": "20bcb67a1326624a",
    "qa13": "6d9fb34821ce7264",
    "qa14": "0c37bf79232ee27f",
    "qa15": "38ab4b77e897764c",
    "qa16": "b9213771add741d1",
    "qa17": "bcfcb0e3fbd217d4",
    "qa18": "2c9b2420ac99bde9",
    "qa19": "c8d89a62f5c43aee",
    "qa20": "f078adbe8e90eae1",
}
NO_PARTS = PromptParts(instruction=False, examples=False, post_prompt=False)


def shipped() -> dict:
    return json.loads(resources.files("lm2.eval").joinpath("official_prompts.json").read_text("utf-8"))


def test_official_strings_are_unchanged_and_name_their_source():
    document = shipped()
    assert document["tasks"].keys() == OFFICIAL_SHA256.keys()
    for task, strings in document["tasks"].items():
        text = json.dumps(strings, ensure_ascii=False, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == OFFICIAL_SHA256[task], task
    for fact in ("booydar/babilong", "ffa075fb7aff504275037efc04d3aeaa5b1f65b0", "Apache License 2.0"):
        assert fact in document["notice"]


def test_a_whole_official_prompt():
    prompt = build_prompt("qa1", "\n Mary moved to the garden. \n", "Where is Mary? ", PromptParts())
    assert prompt == (
        "I will give you context with the facts about positions of different persons hidden in some random text and a "
        "question. You need to answer the question based only on the information from the facts. If a person was in "
        "different locations, use the latest location to answer the question.\n"
        "\n"
        "<example>\n"
        "Charlie went to the hallway. Judith come back to the kitchen. Charlie travelled to balcony. "
        "Where is Charlie?\n"
        "Answer: The most recent location of Charlie is balcony.\n"
        "</example>\n"
        "\n"
        "<example>\n"
        "Alan moved to the garage. Charlie went to the beach. Alan went to the shop. Rouse travelled to balcony. "
        "Where is Alan?\n"
        "Answer: The most recent location of Alan is shop.\n"
        "</example>\n"
        "\n"
        "Always return your answer in the following format: The most recent location of \u2019person\u2019 is "
        "\u2019location\u2019. Do not write anything else after that.\n"
        "\n"
        "<context>\n"
        "Mary moved to the garden.\n"
        "</context>\n"
        "\n"
        "Question: Where is Mary?"
    )


def test_parts_off_leave_nothing_at_the_start():
    assert build_prompt("qa1", "A.", "B? ", NO_PARTS) == "<context>\nA.\n</context>\n\nQuestion: B?"
    assert build_prompt("qa4", "A.", "B?", PromptParts(instruction=False, examples=False)) == (
        "Your answer should contain only one word - location. Do not write anything else after that.\n\n"
        "<context>\nA.\n</context>\n\nQuestion: B?"
    )
    # A part off in the middle leaves its blank lines, as in the official runs.
    without = build_prompt("qa4", "A.", "B?", PromptParts(examples=False))
    assert "information from the facts.\n\n\n\nYour answer" in without


@pytest.mark.parametrize("task", ["qa10", "qa16", "qa20"])
def test_the_stray_tag_after_examples_is_kept(task):
    assert build_prompt(task, "A.", "B?", PromptParts()).count("<context>\n") == 2
    assert "</example>\n<context>\n\n\nYour answer" in build_prompt(task, "A.", "B?", PromptParts())


def test_quirks_of_qa2():
    assert "random text and a question.You need" in build_prompt("qa2", "A.", "B?", PromptParts())


@given(st.text(), st.text(), st.sampled_from(sorted(OFFICIAL_SHA256)))
def test_any_context_and_question_goes_in_unchanged(context, question, task):
    prompt = build_prompt(task, context, question, NO_PARTS)
    assert prompt == f"<context>\n{context.strip()}\n</context>\n\nQuestion: {question}".strip()


def test_the_plain_prompt_is_the_training_form():
    prompt = build_prompt("qa1", " Mary moved to the garden.\n", "Where is Mary? ", None)
    assert prompt == plain_prompt("Mary moved to the garden.", "Where is Mary?")
    assert prompt + answer_text("garden") == " Mary moved to the garden. Question: Where is Mary? Answer: garden."


def test_names_say_what_is_on():
    assert prompt_name(None) == "plain"
    assert prompt_name(PromptParts()) == "instruction_yes_examples_yes_post_prompt_yes_chat_template_no"
    assert prompt_name(PromptParts(examples=False, chat_template=True)) == (
        "instruction_yes_examples_no_post_prompt_yes_chat_template_yes"
    )
    own = PromptParts(False, False, False, template="{context} {question}")
    other = PromptParts(False, False, False, template="{context}\n{question}")
    assert len({own.name, other.name, NO_PARTS.name}) == 3


def test_an_own_template():
    parts = PromptParts(examples=False, post_prompt=False, template="{question}|{context}|{instruction}")
    prompt = build_prompt("qa4", " A. ", "B?", parts)
    assert prompt.startswith("B?|A.|I will give you context")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{context}", "{question}"),
        ("{question}", "{context}"),
        ("{context} {question} {examples} {post_prompt}", "{instruction}"),
        ("{context} {question} {instruction} {examples} {post_prompt} {answer}", "{answer}"),
        ("{context} {question", "template is"),
        ("{} {context} {question} {instruction} {examples} {post_prompt}", "field {}"),
    ],
)
def test_a_bad_template_is_refused(template, message):
    with pytest.raises(ValueError, match="template") as error:
        PromptParts(template=template)
    assert message in str(error.value)


def test_an_unknown_task_is_refused():
    for parts in (None, PromptParts()):
        with pytest.raises(ValueError, match="task is 'qa21', but must be qa1 to qa20"):
            build_prompt("qa21", "A.", "B?", parts)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words and marks; a start token of its own; a chat template that writes the turns out."""
    words = ["[BOS]", "[UNK]", "<|user|>", "<|end|>", "<|reply|>", "A", "B", "Question", "context", "<", ">", "</", ":"]
    words += [".", "?"]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="[UNK]",
        bos_token="[BOS]",
        additional_special_tokens=["<|user|>", "<|end|>", "<|reply|>"],
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|reply|>{% endif %}"
    )
    return fast


def test_special_tokens_only_where_the_protocol_has_them(tokenizer):
    prompt = build_prompt("qa1", "A.", "B?", NO_PARTS)
    plain = build_prompt("qa1", "A.", "B?", None)
    official_ids = encode_prompt(prompt, tokenizer, NO_PARTS)
    assert tokenizer.convert_ids_to_tokens(official_ids)[:2] == ["[BOS]", "<"]
    assert tokenizer.convert_ids_to_tokens(encode_prompt(plain, tokenizer, None))[:2] == ["A", "."]


def test_the_chat_template_holds_the_prompt_as_one_user_message(tokenizer):
    parts = PromptParts(False, False, False, chat_template=True)
    prompt = build_prompt("qa1", "A.", "B?", parts)
    assert prompt == build_prompt("qa1", "A.", "B?", NO_PARTS)
    ids = encode_prompt(prompt, tokenizer, parts)
    body = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words[:2] == ["[BOS]", "<|user|>"]
    assert words[-2:] == ["<|end|>", "<|reply|>"]
    assert ids[2:-2] == body


def test_a_chat_template_that_is_missing_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="chat_template is on, but the tokenizer has none"):
        encode_prompt("A", bare, PromptParts(chat_template=True))
