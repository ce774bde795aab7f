"""Imaging findings on the ward page in Chromium, as whoever makes them would publish them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.messages import ClassProbability, Finding, ModelReference
from tests.chromium.conftest import Open
from tests.chromium.stage import ILL, Stage
from tests.chromium.test_board import row, until
from tests.worker.ward import finding, picture

HOSTILE = "<img src=x onerror='window.pwned=1'>\u202etxt.gnp"


def findings() -> list[Finding]:
    """An ordinary finding, taken two hours ago, and one whose every text is hostile."""
    now = datetime.now(UTC)
    classes = tuple(ClassProbability(f"{HOSTILE} {n}", n / 20) for n in range(12))
    return [
        finding(
            "imaged",
            time=now - timedelta(hours=2),
            quality=("low-contrast", "patient_rotated"),
            activation_png=picture(),
        ),
        finding(
            HOSTILE,
            HOSTILE,
            time=now - timedelta(days=3),
            outcome=HOSTILE,
            classes=classes,
            findings=(classes[0].name,),
            model=ModelReference(HOSTILE, 1, HOSTILE),
            backend=HOSTILE,
            modality=HOSTILE,
            body_part=HOSTILE,
            view=HOSTILE,
            quality=(HOSTILE,),
            activation_png=HOSTILE.encode(),
        ),
    ]


async def publish(running: Stage) -> None:
    """Publish the findings, on a topic that only now comes to be; a second time changes nothing."""
    admin: Any = AIOKafkaAdminClient(**running.settings.kafka_client())
    await admin.start()
    await admin.create_topics([NewTopic(running.settings.topic_findings, 2, 1)])
    await admin.close()
    await running.publish(running.settings.topic_findings, "k", findings())


async def test_a_finding_is_in_the_row_and_with_its_picture_in_the_details(
    running: Stage, visit: Open
) -> None:
    await running.ready()
    page = await visit(running.url)
    await running.send("imaged", **ILL)
    await publish(running)
    mark = row(page, "imaged").locator(".imaging")
    await mark.wait_for(timeout=30_000)
    assert (await mark.inner_text()).split() == [
        "CXR?",
        "0.87",
        "pneumonia",
        ",",
        "2",
        "quality",
        "flags",
        "2",
        "h",
    ]
    await row(page, "imaged").click()
    section = page.get_by_role("region", name="Imaging")
    await section.wait_for()
    told = await section.inner_text()
    for part in ("CXR: pneumonia 0.87", "2 h ago; view PA", "low contrast, patient rotated", "0.13"):
        assert part in told
    assert "pneumonia version 2" in told
    await until(page, "document.querySelector('.activation img').naturalWidth === 64")
    image = section.locator(".activation img")
    assert "its activation over the picture of" in str(await image.get_attribute("alt"))
    # The panel is drawn again with each change; the picture stays the same element, so it does not flicker.
    await page.evaluate("window.before = document.querySelector('.activation img')")
    await running.send("imaged", **(ILL | {"heart_rate": 151}))
    await page.locator(".details", has_text="151").wait_for(timeout=20_000)
    assert await page.evaluate("window.before === document.querySelector('.activation img')")


async def test_hostile_findings_are_text(running: Stage, visit: Open) -> None:
    await publish(running)
    for size in ({"width": 1440, "height": 900}, {"width": 390, "height": 844}):
        page = await visit(running.url, viewport=size)
        hostile = row(page, "<img src=x")
        await hostile.locator(".imaging").wait_for(timeout=30_000)
        await hostile.click()
        await page.get_by_role("region", name="Imaging").wait_for()
        assert "[U+202E]" in await page.locator(".finding h4").inner_text()
        assert "4 more classes" in await page.locator(".finding").inner_text()
        assert await page.locator("main img, main script").count() == 0
        assert await page.evaluate("window.pwned") is None
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
