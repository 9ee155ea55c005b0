"""Links to the gallery's pages."""

import pytest

from dreamcore.errors import InvalidInput
from flows.prefect_ui.gallery_links import run_page, slug_of

DESTINATION = "s3://dreams/demo/"


def test_a_run_has_a_page_where_a_gallery_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DREAMGRID_GALLERY_URL", raising=False)
    assert run_page(DESTINATION, "run") is None
    for given, base in (
        ("http://127.0.0.1:8470", "http://127.0.0.1:8470"),
        ("https://box.example/gallery/?token=secret", "https://box.example/gallery"),
    ):
        monkeypatch.setenv("DREAMGRID_GALLERY_URL", given)
        assert run_page(DESTINATION, "20260102T030405Z-ab&c") == (
            f"{base}/d/{slug_of(DESTINATION)}/library?run=20260102T030405Z-ab%26c"
        )


@pytest.mark.parametrize("given", ["127.0.0.1:8470", "javascript:alert(1)", "http://", "http://[::1", "s3://dreams/"])
def test_what_is_no_address_of_a_page_is_named(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGRID_GALLERY_URL", given)
    with pytest.raises(InvalidInput, match="DREAMGRID_GALLERY_URL is"):
        run_page(DESTINATION, "run")
