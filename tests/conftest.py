"""Settings that all tests share."""

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

# The same examples in every run, so that a change is judged by what it changes. To look for new
# ones: pytest --hypothesis-profile=search.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, phases=[Phase.reuse, Phase.generate])
# 50 times as many examples where a test asks for its number in proportion (``scaled``).
settings.register_profile("long", settings.get_profile("search"), max_examples=5000, database=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure is not kept for the user who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache") / "tuning.json"
        patch.setattr("tersor.tuning.database.default_path", lambda: path)
        # Two tests compile the same model, and the first may have made times up.
        patch.setattr("tersor.tuning.reuse.DAYS", 0)
        # Whatever a test compiles is checked at every stage for more than a user waits for.
        patch.setattr("tersor.pipeline.legality.HARD", True)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run what `make test` leaves out")
    parser.addoption("--run-big", action="store_true", help="also run tests that take gigabytes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything, big = config.getoption("--all"), config.getoption("--run-big")
    left_out = [i for i in items if not _is_run(i, everything=everything, big=big)]
    if left_out:
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left_out)


def _is_run(item: pytest.Item, *, everything: bool, big: bool) -> bool:
    if item.get_closest_marker("big") and not big:
        return False
    if everything:
        return True
    if item.get_closest_marker("sweep"):
        return False
    sample = item.get_closest_marker("sample")
    # By a hash of the name, so that a parameter that repeats at the same pace is not always left out.
    return sample is None or _hash(item.nodeid) % sample.args[0] == 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest(), "big")
