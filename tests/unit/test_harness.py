"""lm-evaluation-harness on our models: the same numbers one by one, in batches, by streaming and by hand."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance
from tiny_models import POSITIONS, save, tiny_llama, tiny_lm2
from typer.testing import CliRunner

from lm2 import ARMTConfig, ARMTForCausalLM, RMTConfig, RMTForCausalLM
from lm2.cli.eval import evaluate
from lm2.data.tokenizer import load_tokenizer
from lm2.eval import likelihood
from lm2.eval.harness import HarnessLM
from lm2.eval.likelihood import score_continuations

TOKENIZER = load_tokenizer("builtin")
TINY = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def rival(model_class, config_class):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(**TINY, segment_length=16, num_memory_tokens=3, initializer_range=0.15))
    return model.eval()


MODELS = {
    "lm2": tiny_lm2(),
    "llama": tiny_llama(),
    "rmt": rival(RMTForCausalLM, RMTConfig),
    "armt": rival(ARMTForCausalLM, ARMTConfig),
}
CONTEXTS = [
    "Mary went to the kitchen. Where is Mary?",
    "It",
    "Nobody knew why the house was so old. " * 5 + "Or did they?",
    "A b",
]
CONTINUATIONS = [" kitchen", " was a dark and stormy night, and the rain fell in torrents upon us all.", " b c", " x"]


def requests(kind, rows):
    return [Instance(request_type=kind, doc={}, arguments=row, idx=0) for row in rows]


def by_hand(model, context, continuation):
    """One forward over the whole text, token by token."""
    whole = TOKENIZER(context + continuation)["input_ids"]
    start = len(TOKENIZER(context)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([whole]), use_cache=False).logits[0].double()
    total = sum(logits[place - 1].log_softmax(-1)[whole[place]].item() for place in range(start, len(whole)))
    greedy = all(logits[place - 1].argmax().item() == whole[place] for place in range(start, len(whole)))
    return total, greedy


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", list(MODELS))
def test_loglikelihood_is_that_of_one_forward(name, batch_size):
    model = MODELS[name]
    asked = HarnessLM(model, TOKENIZER, batch_size=batch_size)
    got = asked.loglikelihood(requests("loglikelihood", list(zip(CONTEXTS, CONTINUATIONS, strict=True))), True)
    for (total, greedy), context, continuation in zip(got, CONTEXTS, CONTINUATIONS, strict=True):
        want, want_greedy = by_hand(model, context, continuation)
        assert total == pytest.approx(want, abs=1e-3)
        assert greedy == want_greedy


@pytest.mark.parametrize("name", list(MODELS))
def test_the_likeliest_continuation_is_greedy(name):
    model = MODELS[name]
    ids = TOKENIZER(CONTEXTS[0])["input_ids"]
    written = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0)[0, len(ids) :]
    [right, wrong] = score_continuations(model, [ids, ids], [written.tolist(), [*written[:4].tolist(), 7]])
    assert right.is_greedy
    assert not wrong.is_greedy
    assert right.log_probability > wrong.log_probability


@pytest.mark.parametrize("name", ["lm2", "rmt", "armt"])
def test_pieces_of_a_continuation_change_nothing(name, monkeypatch):
    model = MODELS[name]
    rows = [list(range(300, 350)), list(range(400, 403)), []]
    contexts = [[5, 6, 7], list(range(100, 150)), [9]]
    whole = score_continuations(model, contexts, rows)
    monkeypatch.setattr(likelihood, "CALL_TOKENS", 21)
    for pieces, at_once in zip(score_continuations(model, contexts, rows), whole, strict=True):
        assert pieces.log_probability == pytest.approx(at_once.log_probability, abs=1e-3)
        assert pieces.is_greedy == at_once.is_greedy
    assert whole[2].log_probability == 0


@pytest.mark.parametrize("name", list(MODELS))
def test_rolling_counts_every_token_of_a_text(name):
    text = CONTEXTS[2]
    asked = HarnessLM(MODELS[name], TOKENIZER, batch_size=2)
    whole, short = asked.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,), ("It",)]), True)
    ids = [asked.prefix_token_id, *TOKENIZER(text)["input_ids"]]
    with torch.no_grad():
        logits = MODELS[name](torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    want = sum(logits[place, token].item() for place, token in enumerate(ids[1:]))
    assert whole == pytest.approx(want, abs=2e-3)
    assert short > whole


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", list(MODELS))
def test_generation_ends_before_the_first_of_its_ends(name, batch_size):
    model = MODELS[name]
    asked = HarnessLM(model, TOKENIZER, batch_size=batch_size)
    free = asked.generate_until(
        requests("generate_until", [(context, {"until": [], "max_gen_toks": 12}) for context in CONTEXTS]), True
    )
    for context, text in zip(CONTEXTS, free, strict=True):
        ids = TOKENIZER(context, return_tensors="pt")["input_ids"]
        new = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert text == TOKENIZER.decode(new, skip_special_tokens=True)
    ends = [text[len(text) // 2 : len(text) // 2 + 2] for text in free]
    asking = [
        (context, {"until": [end, "@@"], "max_gen_toks": 12}) for context, end in zip(CONTEXTS, ends, strict=True)
    ]
    for cut, text, end in zip(asked.generate_until(requests("generate_until", asking), True), free, ends, strict=True):
        assert cut == text.split(end, 1)[0]


def test_what_is_too_long_is_refused_or_cut_as_told():
    too_long = " kitchen" * (POSITIONS + 9)
    request = requests("loglikelihood", [(too_long, " garden")])
    with pytest.raises(ValueError, match="the model has positions for 512"):
        HarnessLM(MODELS["llama"], TOKENIZER).loglikelihood(request, True)
    cut = HarnessLM(MODELS["llama"], TOKENIZER, truncate=True)
    [(total, _)] = cut.loglikelihood(request, True)
    assert cut.num_truncated == 1
    assert total == pytest.approx(by_hand(MODELS["llama"], " kitchen" * POSITIONS, " garden")[0], abs=1e-3)
    whole = HarnessLM(MODELS["lm2"], TOKENIZER)
    [(total, _)] = whole.loglikelihood(request, True)
    assert whole.num_truncated == 0
    assert total == pytest.approx(by_hand(MODELS["lm2"], too_long, " garden")[0], abs=1e-3)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task with MMLU's columns on local files, and one that generates."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": f"Which is number {n}?", "choices": ["zero", "one", "two", "three"], "answer": n} for n in range(4)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}, dev: {data}}}}}\ntest_split: test\n"
    (folder / "small.yaml").write_text(
        f"""task: small_mmlu
{common}fewshot_split: dev
output_type: multiple_choice
doc_to_text: "{{{{question}}}} {{{{choices}}}} Answer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
""",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {"lm2": save(MODELS["lm2"], place / "lm2"), "llama": save(MODELS["llama"], place / "llama")}


def invoke(*arguments):
    return CliRunner().invoke(evaluate, ["harness", *map(str, arguments)])


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_a_local_task_runs_unchanged(folders, tasks, tmp_path, name):
    out = tmp_path / "results.json"
    done = invoke(folders[name], "--tasks", "small_mmlu", "--include-path", tasks, "--num-fewshot", 2, "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    document = json.loads(out.read_text("utf-8"))
    assert document["n-samples"]["small_mmlu"]["effective"] == 4
    accuracy = document["results"]["small_mmlu"]["acc,none"]
    assert accuracy * 4 == int(accuracy * 4)
    assert document["truncated_requests"] == 0
    assert "small_mmlu" in done.output


def test_the_harness_finds_the_class_and_loads_a_folder(folders):
    from lm_eval.api.registry import get_model

    asked = get_model("lm2").create_from_arg_string(
        f"pretrained={folders['lm2']}", {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    )
    rows = requests("loglikelihood", list(zip(CONTEXTS, CONTINUATIONS, strict=True)))
    assert asked.loglikelihood(rows, True) == HarnessLM(MODELS["lm2"], TOKENIZER, 2).loglikelihood(rows, True)
    with pytest.raises(ValueError, match="batch_size is 'auto'"):
        HarnessLM(MODELS["lm2"], TOKENIZER, "auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "small_mlu"), "did you mean 'small_mmlu'?"),
        (("--tasks", ","), "--tasks names none"),
        (("--tasks", "small_mmlu", "--limit", 0), "--limit is 0"),
        (("--tasks", "small_mmlu", "--overwrite"), "--overwrite has no effect"),
    ],
)
def test_bad_options_are_refused(folders, tasks, options, message):
    done = invoke(folders["lm2"], "--include-path", tasks, *options)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
