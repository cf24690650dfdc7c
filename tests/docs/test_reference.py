"""docs/reference/ says what the code says."""

import pytest

from tests.docs.reference.pages import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_what_the_code_says(name: str) -> None:
    path = FOLDER / name
    written = path.read_text() if path.exists() else ""
    assert written == PAGES[name](), f"docs/reference/{name} is old: run scripts/reference"


def test_every_page_in_the_folder_is_written_by_the_code() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(PAGES)
