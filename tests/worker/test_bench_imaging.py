"""`riskstream bench imaging`: what it measures is there; timings themselves are never judged."""

import asyncio

from worker import embedded
from worker.bench import imaging


def test_pictures_together_and_one_by_one_take_the_same_way(redis_server: embedded.Server) -> None:
    found = asyncio.run(imaging._throughput(f"redis://{redis_server.address}/0", 4, 64, 2))
    rates = found["rows_per_s"]
    assert rates.keys() == {"one_by_one", "together"}
    assert min(rates.values()) > 0
    ratio = found["together_over_one_by_one"]
    assert abs(ratio - rates["together"] / rates["one_by_one"]) < 0.01
    assert (found["pictures"], found["model"], found["backend"]) == (4, "pneumonia", "onnxruntime-cpu")


async def test_a_pacs_that_hangs_answers_once_it_lets_go() -> None:
    async with imaging._Pacs() as pacs:
        pacs.hang()
        reader, writer = await asyncio.open_connection("127.0.0.1", pacs.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        answer = asyncio.create_task(reader.readline())
        done, _ = await asyncio.wait({answer}, timeout=0.2)
        assert not done
        assert pacs.hung == 1
        pacs.let_go()
        assert await answer == b"HTTP/1.1 404 Not Found\r\n"
        writer.close()


def test_a_spread_is_of_all_phases_together() -> None:
    assert imaging._spread([1.0] * 99 + [100.0])["p50"] == 1.0
    assert imaging._spread([5.0, 5.0]) == {"records": 2, "p50": 5.0, "p99": 5.0}
