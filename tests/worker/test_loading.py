"""What a load looks at, in order: a worker and `model check` give the same reason."""

from pathlib import Path

import pytest

from engines import acceptance, repository
from engines.errors import EngineError
from tests.worker.ladders import put, settings, small
from worker import loading

UNREADABLE = b"no zip archive"


@pytest.mark.parametrize(
    ("damaged", "memory_mb", "reason"),
    [
        ((repository.GRAPH, repository.GOLDEN), 1, "memory-budget"),
        ((repository.GRAPH, repository.GOLDEN), None, "digest-mismatch"),
        ((repository.GOLDEN,), None, "golden-unreadable"),
    ],
)
def test_a_worker_and_model_check_name_the_first_of_several_reasons(
    damaged: tuple[str, ...], memory_mb: int | None, reason: str, tmp_path: Path
) -> None:
    put(tmp_path, *small())
    for name in damaged:
        (tmp_path / "small/1" / name).write_bytes(UNREADABLE)
    chosen = settings(tmp_path, model_memory_mb=memory_mb)
    with pytest.raises(EngineError) as refused:
        loading._proven(chosen, repository.read_config(tmp_path, "small"), chosen.backend, False)
    assert refused.value.reason == reason
    if memory_mb is None:  # `model check` has no budget
        assert acceptance.check(tmp_path, "small")[-1].detail.startswith(f"{reason}: ")
