"""A patient who starts anew after days of silence leaves the same alerts, wherever chunks are cut."""

import pytest

from engines.engine import Engine
from tests.worker.records import HOUR, T0, LocalPath
from tests.worker.shelf import course

ILL, BACK = (
    course("p-1", 0, T0, [h / 6 for h in range(7)] + [1.0] * 3),
    course("p-1", 10, T0 + 70 * HOUR, [1.0] * 4),
)


def published(engine: Engine, chunk: int) -> list[tuple[bytes | None, bytes]]:
    path = LocalPath(engine, publish_scores=False)
    path.process_now([*ILL, *BACK], chunk)
    return [(message.key, message.value) for name in path.outbox.by_voice().values() for message in name]


@pytest.mark.parametrize("chunk", [1, 4, 10, 13])
def test_the_expiry_of_what_was_left_does_not_depend_on_chunks(engine: Engine, chunk: int) -> None:
    together = published(engine, 512)
    assert published(engine, chunk) == together
    transitions = [value.split(b'"transition":"')[1].split(b'"')[0] for _, value in together]
    assert transitions.count(b"expired") == 2
    assert transitions.index(b"raised") < transitions.index(b"expired") < len(transitions) - 1
