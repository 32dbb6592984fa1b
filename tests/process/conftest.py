"""Processes that hold a mapping of every kind, started once for the tests of a module."""

from collections.abc import Iterator

import pytest
from process.freezing import LARGE_COPY_BYTES, Freezer, snapshots
from process.reading import Reader, hold_everything
from support.target import Target

from memfs.image.source import Workspace


@pytest.fixture(scope="session")
def _freezer() -> Iterator[Freezer]:
    with snapshots(copy_bytes=LARGE_COPY_BYTES) as registry:
        Reader.freezer = Freezer(registry)
        yield Reader.freezer


@pytest.fixture(scope="module", autouse=True)
def _let_go(_freezer: Freezer) -> Iterator[None]:
    yield
    _freezer.let_go()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Every kind. Read it through memfs only: /proc/PID/mem would touch its pages."""
    with hold_everything(tmp_path_factory.mktemp("everything")) as target:
        yield target


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Another process with every kind, which may be read through /proc/PID/mem."""
    with hold_everything(tmp_path_factory.mktemp("compared")) as target:
        yield target


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    """What one reader needs."""
    made = Workspace()
    yield made
    made.close()
