"""The check of the built pages finds what it should."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "docs" / "_tools" / "check_site.py"


@pytest.fixture(scope="module")
def check_site():
    spec = importlib.util.spec_from_file_location("check_site", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, **bodies):
    for name, body in bodies.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>", "utf-8")
    return folder


def test_links_within_a_site_pass(check_site, tmp_path):
    links = (
        '<a href="other.html#place">a</a><a href="https://elsewhere.org/x">b</a><a href="#">c</a>'
    )
    assert check_site.main(write(tmp_path, index=links, other='<p id="place"></p>')) == 0


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="lost.html">a</a>', "no such file: lost.html"),
        ('<a href="other.html#lost">a</a>', "no such anchor: other.html#lost"),
        ('<a href="#lost">a</a>', "no such anchor: #lost"),
        ('<img src="lost.png">', "no such file: lost.png"),
        ('<span class="problematic">a</span>', "did not render"),
    ],
)
def test_faults_are_found(check_site, tmp_path, capsys, body, fault):
    assert check_site.main(write(tmp_path, index=body, other="")) == 1
    assert fault in capsys.readouterr().out


def test_a_heavy_start_page_is_a_fault(check_site, tmp_path, capsys):
    (tmp_path / "figure.png").write_bytes(bytes(check_site.LARGEST_START_PAGE))
    figure = '<img src="figure.png">'
    assert check_site.main(write(tmp_path, index=figure, other=figure)) == 1
    assert capsys.readouterr().out.startswith("index.html: 1000")
