"""The stage, and a browser whose pages must end without an error or a violation of their policy."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.chromium.stage import Stage, stage

FOLDER = Path(__file__).parent
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

Open = Callable[..., Awaitable[Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.chromium)


@pytest.fixture(scope="module")
def running() -> Iterator[Stage]:
    with stage() as started:
        yield started


class Complaints(list[str]):
    """What a browser says on its console as an error, what its scripts throw, and dialogs they open."""

    def forget(self, part: str) -> None:
        """Leave out complaints that a test has provoked."""
        self[:] = [one for one in self if part not in one]

    def listen(self, page: Any) -> None:
        page.on("console", lambda m: self.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("dialog", lambda dialog: self.append(f"dialog: {dialog.message}"))


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    found = Complaints()
    yield found
    assert found == []


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Any]:
    # Imported here, so that collecting these tests needs no extra.
    from playwright.async_api import async_playwright

    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    assert program, f"none of {', '.join(PROGRAMS)} is installed; on Debian: apt-get install chromium"
    # Chromium's sandbox does not start for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=program, args=arguments)
        yield launched
        await launched.close()


@pytest.fixture
def visit(browser: Any, complaints: Complaints) -> Open:
    """Opens a URL in a context of its own and waits until it is live, unless that is not to come."""

    async def opened(url: str, *, live: bool = True, **context: Any) -> Any:
        place = await browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | context))
        page = await place.new_page()
        complaints.listen(page)
        await page.goto(url)
        if live:
            await page.wait_for_selector("#link[data-state=live]", timeout=30_000)
        return page

    return opened
