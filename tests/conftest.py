"""What tests of several modules ask for."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Compute on one thread: small networks are no faster on more, and the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
