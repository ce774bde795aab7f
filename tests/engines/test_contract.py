"""The contract of `Engine` on the backends that run on any machine, and on the fake of TensorRT.

The fake proves nothing of a GPU: it proves that the order of copies, events, frees and threads is right.
"""

from collections.abc import Iterator

import pytest

from engines import repository
from engines.tensorrt_engine import TensorRTEngine
from tests.engines.contract import EngineContract, Opener
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT


class TestOnnxRuntime(EngineContract):
    exact = True

    @pytest.fixture
    def opener(self) -> Opener:
        return repository.open_engine


class TestTensorRTOnAFake(EngineContract):
    @pytest.fixture
    def opener(self) -> Iterator[Opener]:
        driver = FakeDriver()
        yield lambda config, plan: TensorRTEngine(config, plan, FakeTensorRT(driver), driver)
        driver.expect_clean()
