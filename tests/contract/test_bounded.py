"""Invariant 8: what is kept of a text does not grow with its length."""

import os
import subprocess
import sys

import pytest
from contract.helpers import attention_window, logits_of, random_ids
from contract.subjects import SEGMENT, SUBJECT, subjects


@subjects("is_bounded", "has_memory")
def test_the_state_has_the_same_size_after_any_number_of_tokens(subject):
    model = subject.make()
    cache, sizes = subject.new_cache(model), []
    for seed in range(12):
        logits_of(model, random_ids(2, SEGMENT, seed), cache=cache)
        sizes.append(cache.num_bytes)
    # The first segments fill the window of attention.
    assert len(set(sizes[attention_window(model) :])) == 1
    logits_of(model, random_ids(2, 40 * SEGMENT), cache=cache)
    assert cache.num_bytes == sizes[-1]


def test_the_whole_past_is_not_bounded_and_says_so():
    model = SUBJECT["window-all"].make()
    with pytest.raises(ValueError, match="attention_window=None"):
        model.config.num_state_bytes(4)


STREAM = """
import re
import sys
import torch
from contract.subjects import SUBJECT

torch.set_num_threads(1)
CALL, SEGMENT = 2048, 64

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

for name in sys.argv[1:]:
    model = SUBJECT[name].make(hidden_size=64, segment_length=SEGMENT)
    cache, peaks = SUBJECT[name].new_cache(model), {}
    with torch.no_grad():
        for num_tokens in range(CALL, 65536 + 1, CALL):
            model(torch.zeros(1, CALL, dtype=torch.long), cache=cache, logits_to_keep=1)
            if num_tokens in (8192, 65536):
                peaks[num_tokens] = peak_kib()
    print(name, peaks[8192], peaks[65536])
"""


def test_the_peak_of_streaming_does_not_grow():
    names = ["default", "rmt", "armt"]
    done = subprocess.run(
        [sys.executable, "-c", STREAM, *names],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, after_8k, after_64k = line.split()
        # Keys and values of 56K tokens alone would be 57344 KiB; the allocator's own unrest is a few thousand.
        assert int(after_64k) - int(after_8k) < 57344 // 4, (name, after_8k, after_64k)
    assert len(done.stdout.splitlines()) == len(names)
