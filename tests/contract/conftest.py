import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # Bit equality asks for a fixed order of summation; and tests run in several processes.
    torch.set_num_threads(1)
