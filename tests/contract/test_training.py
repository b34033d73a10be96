"""Training by other people's tools (Trainer, PEFT, compile, autocast), checkpointing, and truncated backpropagation."""

import pytest
import torch
import torch.nn.functional as F
from contract.helpers import assert_close, assert_memory_matters, assert_same_gradients, gradients, random_ids, stream
from contract.subjects import LONGEST, SEGMENT, SUBJECT, VOCAB, subjects
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from lm2 import LM2_LORA_TARGETS


class Texts(torch.utils.data.Dataset):
    """24 fixed texts of four segments."""

    def __init__(self):
        self.ids = random_ids(24, 4 * SEGMENT)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def train(model, folder, resume_from=None, **arguments) -> Trainer:
    arguments = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    } | arguments
    trainer = Trainer(model, TrainingArguments(str(folder), **arguments), train_dataset=Texts())
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@subjects(only=("default", "attend", "paper", "rmt", "armt"))
def test_trainer_with_accumulation_checkpointing_and_resume(subject, tmp_path):
    uninterrupted = train(subject.make(), tmp_path / "whole", activation_checkpointing=True)
    assert len(losses(uninterrupted)) == 6
    assert losses(uninterrupted)[-1] < losses(uninterrupted)[0]
    resumed = train(
        subject.make(), tmp_path / "more", tmp_path / "whole" / "checkpoint-3", activation_checkpointing=True
    )
    assert losses(resumed) == losses(uninterrupted)
    expected = uninterrupted.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())


def test_trainer_loss_does_not_depend_on_how_a_batch_is_accumulated(tmp_path):
    subject = SUBJECT["default"]
    accumulated = train(subject.make(), tmp_path / "2x2", max_steps=2)
    at_once = train(
        subject.make(), tmp_path / "1x4", max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=1
    )
    assert losses(accumulated) == pytest.approx(losses(at_once), abs=1e-4)
    # The head's gradient is the one that a wrong scale of the loss would change.
    assert_close(accumulated.model.lm_head.weight, at_once.model.lm_head.weight)


@pytest.mark.parametrize("layout", ["plain", "packed"])
@subjects()
def test_gradient_checkpointing_changes_nothing(subject, layout):
    ids = random_ids(2, LONGEST)
    arguments = {}
    if layout == "packed":
        arguments["position_ids"] = torch.cat([torch.arange(SEGMENT + 3), torch.arange(LONGEST - SEGMENT - 3)])[None]
    outcomes = []
    for checkpointing in (False, True):
        model = subject.make().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        loss = model(ids, labels=ids, use_cache=False, **arguments).loss
        loss.backward()
        outcomes.append((loss.detach(), gradients(model)))
        assert all(layer.gradient_checkpointing == checkpointing for layer in model.model.layers)
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1].keys() == outcomes[1][1].keys()
    assert all(torch.equal(outcomes[0][1][name], outcomes[1][1][name]) for name in outcomes[0][1])


@subjects("has_memory")
def test_checkpointing_refuses_what_it_would_get_wrong(subject):
    model = subject.make().train()
    with pytest.raises(ValueError, match="use_reentrant=True loses the gradient"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(random_ids(2, SEGMENT), cache=subject.new_cache(model))


def lora(model):
    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(r=2, target_modules=LM2_LORA_TARGETS, modules_to_save=["memory"], init_lora_weights=False)
    )


@subjects(only=("default", "all-other", "paper", "rmt", "armt"))
def test_peft_trains_adapters_and_memory_only(subject, tmp_path):
    model = lora(subject.make())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_" in name for name in trainable)
    assert all("lora_" in name or ".memory." in name for name in trainable)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable if "lora_" in name}
    assert adapted == set(LM2_LORA_TARGETS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # Random targets and several segments, so that all of the memory has a gradient.
    ids = random_ids(4, 4 * SEGMENT)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.0)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trainable), name

    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)

    loaded = PeftModel.from_pretrained(subject.make(), tmp_path).eval()
    parameters = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameters[name], parameter), name
    # Matrix products may round differently by where in memory a file's tensors lie.
    with torch.no_grad():
        assert_close(loaded(input_ids=ids).logits, expected)


def token_losses(logits, targets):
    return F.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1), reduction="sum")


def cut_gradients(subject, ids, targets, bptt_segments: int):
    """What truncation means: read segment by segment, and detach the state before every bptt_segments-th."""
    # A model that would cut, but never comes to it, makes the slots' keys anew from the detached bank.
    model = subject.make(bptt_segments=1000)
    cache = subject.new_cache(model)
    for index, (piece, of_piece) in enumerate(zip(ids.split(SEGMENT, 1), targets.split(SEGMENT, 1), strict=True)):
        if index > 0 and index % bptt_segments == 0:
            cache.detach()
        token_losses(model(piece, cache=cache).logits, of_piece).backward(retain_graph=True)
    return gradients(model)


ALL_WITH_ONE_WINDOW = ("default", "gqa", "separate", "attend", "from-attention", "top-k", "paper", "rmt", "armt")


@pytest.mark.parametrize("bptt_segments", [2, 3])
@subjects(only=ALL_WITH_ONE_WINDOW)
def test_bptt_segments_cuts_the_gradient_where_it_says(subject, bptt_segments):
    model = subject.make(bptt_segments=bptt_segments)
    assert_memory_matters(subject, model, random_ids(2, LONGEST))
    ids, targets = random_ids(2, 7 * SEGMENT + 3), random_ids(2, 7 * SEGMENT + 3, seed=2)
    expected = cut_gradients(subject, ids, targets, bptt_segments)

    loss = token_losses(model(ids, use_cache=False).logits, targets)
    loss.backward()
    actual = gradients(model)
    assert_same_gradients(actual, expected)
    for sizes in ([SEGMENT], [5, 1]):
        token_losses(stream(model, ids, sizes, subject.new_cache(model)), targets).backward()
        assert_same_gradients(gradients(model), expected)

    # The values are those without truncation; the gradients are not.
    untruncated = subject.make()
    full_loss = token_losses(untruncated(ids, use_cache=False).logits, targets)
    assert_close(loss / targets.numel(), full_loss / targets.numel())
    full_loss.backward()
    not_cut = gradients(untruncated)
    written = [name for name in actual if ".memory." in name and name.endswith(subject.written)]
    assert any((actual[name] - not_cut[name]).norm() > 0.01 * not_cut[name].norm() for name in written)


@subjects(only=ALL_WITH_ONE_WINDOW)
def test_bptt_segments_counts_the_segments_of_each_document(subject):
    lengths = ((3 * SEGMENT + 2, 4 * SEGMENT + 1), (SEGMENT - 3, 6 * SEGMENT + 6))
    reset = torch.zeros(2, sum(lengths[0]), dtype=torch.bool)
    for row, (first, _) in enumerate(lengths):
        reset[row, first] = True
    ids, targets = random_ids(2, reset.shape[1]), random_ids(2, reset.shape[1], seed=2)
    of_documents = [
        cut_gradients(subject, document[None], of_document[None], bptt_segments=2)
        for row, of_row in enumerate(lengths)
        for document, of_document in zip(ids[row].split(of_row), targets[row].split(of_row), strict=True)
    ]
    # A document of less than one segment writes nothing, so it has no gradient there.
    names = {name for of_document in of_documents for name in of_document}
    expected = {name: sum(of_document.get(name, 0) for of_document in of_documents) for name in names}

    model = subject.make(bptt_segments=2)
    token_losses(model(ids, segment_reset=reset, use_cache=False).logits, targets).backward()
    assert_same_gradients(gradients(model), expected)


@subjects(only=("default", "attend", "all-other", "paper", "rmt", "armt"))
def test_a_block_compiles_without_graph_breaks(subject):
    ids = random_ids(2, 2 * SEGMENT)
    model = subject.make().train()
    model(ids, labels=ids, use_cache=False).loss.backward()
    expected = gradients(model)
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert_same_gradients(gradients(model), expected)


@subjects(only=("default",))
def test_a_block_compiles_with_inductor(subject):
    ids = random_ids(2, 2 * SEGMENT)
    model = subject.make()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch._dynamo.reset()
        model.model.layers[0].compile(fullgraph=True)
        assert_close(model(ids, use_cache=False).logits, expected)


@subjects("is_float32")
def test_bf16_autocast(subject):
    model = subject.make().train()
    ids = random_ids(2, LONGEST)
    loss = model(ids, labels=ids, use_cache=False).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast_loss = model(ids, labels=ids, use_cache=False).loss
    autocast_loss.backward()
    assert not torch.equal(loss, autocast_loss)
    assert autocast_loss.item() == pytest.approx(loss.item(), rel=0.05)
    for name, gradient in gradients(model).items():
        assert bool(torch.isfinite(gradient).all()), name


@subjects(only=("bf16",))
def test_bf16_weights_train(subject):
    model = subject.make().train()
    ids = random_ids(4, LONGEST)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first_loss = loss = model(ids, labels=ids, use_cache=False).loss
    for _ in range(10):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
    assert loss < first_loss - 0.1
