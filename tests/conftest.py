"A cache of their own for all tests: what they build must not depend on, or end in, the user's."
import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
