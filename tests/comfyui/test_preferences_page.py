"""The page of a blind comparison in a real browser: pairs are answered, and what is downloaded is counted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from editor import FLAGS, find_chromium
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from nested_attention.evaluation.preferences import (
    Pair,
    count_preferences,
    read_answers,
    write_preferences,
)

pytestmark = pytest.mark.browser


def _reload_until_kept(page: Page, answers: int) -> None:
    """Load the page again: what was answered is still there.

    Chromium hands its local storage on a moment after a page has written to it, and a page that is loaded
    within that moment by another process does not see it yet.
    """
    deadline = time.monotonic() + 10
    while True:
        page.reload()
        found = page.locator("input[type=radio]:checked").count()
        if found == answers or time.monotonic() > deadline:
            break
        page.wait_for_timeout(100)
    assert found == answers


def test_answers_are_kept_downloaded_and_counted(tmp_path: Path) -> None:
    program, where = find_chromium()
    if program is None:
        pytest.skip(f"Chromium: {where}")
    paths = [tmp_path / f"{name}.png" for name in ("reference", "a", "b")]
    for path, level in zip(paths, (90, 40, 200), strict=True):
        Image.new("RGB", (64, 64), (level,) * 3).save(path)
    pairs = [Pair(f"p{n}", f"prompt {n}", (paths[0],), (paths[1], paths[2])) for n in range(3)]
    page_text, key = write_preferences(pairs, ("A model", "B model"))
    file = tmp_path / "study.html"
    file.write_text(page_text, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            page = browser.new_page()
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(file.as_uri())
            page.fill("#person", "Ann O'Neil")
            for number in range(3):
                section = page.locator("section.now")
                assert section.locator("h2").inner_text() == f"{number + 1} of 3"
                pair = section.get_attribute("data-pair")
                assert pair is not None
                side = "left" if key["pairs"][pair]["left"] == "B" else "right"
                for question in ("prompt", "identity", "overall"):
                    choice = "neither" if question == "prompt" else side
                    section.locator(f"[data-question={question}] input[value={choice}]").check()
                if number == 1:
                    browsers_own = page.evaluate("id")
                    _reload_until_kept(page, 6)
                    page.click("#next")
                if number < 2:
                    page.click("#next")
            assert page.inner_text("#left") == "complete"
            with page.expect_download() as download:
                page.click("#save")
            saved = tmp_path / download.value.suggested_filename
            download.value.save_as(saved)
        finally:
            browser.close()
    assert not complaints and saved.name == "answers-Ann_O_Neil.json"
    answers = read_answers(saved)
    assert len(browsers_own) == 16 and answers["id"] == browsers_own, "over a reload"
    assert answers["person"] == "Ann O'Neil" and len(answers["answers"]) == 9
    found = count_preferences(json.loads(json.dumps(key)), [answers])
    assert found["prompt"] == {"wins_of_a": None, "neither": 3}
    assert found["overall"]["wins_of_a"]["rate"] == 0  # B was chosen, wherever it stood
