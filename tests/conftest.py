"Caches of their own for all tests: what they build must not depend on, or end in, the user's."
import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    "The package's; and torch.compile's, whose kernels of another processor would give other numbers."
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VQGEN_CACHE", "TORCHINDUCTOR_CACHE_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    "Ctrl-C means what it means in a terminal, also where the tests run in the background of a shell."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=200, help="damaged files that tests/test_hostile.py tries")
