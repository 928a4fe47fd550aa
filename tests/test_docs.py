"The site: it builds without a warning, and opens from the disk with every link, picture and the search in order."

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import BROWSER, clone

in_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
PARTS = """() => ({
    links: [...document.links].map(link => link.href),
    ids: [...document.querySelectorAll("[id]")].map(part => part.id),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    unnamed: [...document.images].filter(i => !i.alt).map(i => i.src),
    headings: document.querySelectorAll("h1").length,
    wide: document.documentElement.scrollWidth > innerWidth,
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the site of a fresh clone; a warning fails."
    project = clone(tmp_path_factory.mktemp("docs") / "dilo")
    told = project.run("sphinx-build", "-q", "-W", "--keep-going", "-j", "auto", "-c", "docs", ".", "_docs/html")
    assert told.strip() == ""
    assert project.run("git", "status", "--porcelain") == "", "what is built is ignored by git"
    return project.folder / "_docs/html"


@pytest.fixture(scope="module")
def heard(page):
    "What goes wrong in the browser, and the addresses it asks for."
    heard = {"errors": [], "asked": []}
    page.on("console", lambda message: heard["errors"].append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard["errors"].append(str(error)))
    page.on("requestfailed", lambda request: heard["errors"].append(request.url))
    page.on("request", lambda request: heard["asked"].append(request.url))
    return heard


def test_every_notebook_and_public_module_has_a_page(site):
    "All but the notebook that README is written from, which is the first page."
    root = site.parents[1]
    notebooks = [p.relative_to(root).with_suffix(".html") for p in root.glob("nbs/**/[!.]*.ipynb")]
    assert [str(n) for n in notebooks if not (site / n).exists()] == ["nbs/index.html"]
    first = (site / "index.html").read_text()
    captions = ["Start", "Tutorials", "How to", "How it works", "Results", "Reference"]
    assert all(f'<span class="caption-text">{caption}</span>' in first for caption in captions)
    reference = "".join(p.read_text() for p in site.glob("docs/reference/*.html"))
    assert all(f'id="dilo.{name}"' in reference for name in ("config.Settings", "cli.main"))


@in_browser
def test_pages_open_from_the_disk_and_links_lead_somewhere(site, page, heard):
    pages = {}
    for file in sorted(site.rglob("*.html")):
        page.goto(file.as_uri())
        pages[file] = page.evaluate(PARTS)
    assert len(pages) > 60
    lost = set()
    for file, parts in pages.items():
        for link in map(urlsplit, parts["links"]):
            if link.scheme != "file":
                continue
            target, part = Path(unquote(link.path)), unquote(link.fragment)
            if not target.is_file() or (part and target in pages and part not in pages[target]["ids"]):
                lost.add((str(file.relative_to(site)), link.path, part))
    assert lost == set()
    for what in ("broken", "unnamed"):
        assert {str(file): parts[what] for file, parts in pages.items() if parts[what]} == {}, what
    headless = {file.name for file, parts in pages.items() if parts["headings"] != 1}
    assert headless <= {"search.html"}, "a script writes that one's heading"
    assert heard["errors"] == [] and {url.split(":")[0] for url in heard["asked"]} <= {"file", "data"}


@in_browser
def test_search_needs_no_network(site, page, heard):
    page.goto((site / "index.html").as_uri())
    page.get_by_role("textbox", name="Search").first.fill("saliency")
    page.keyboard.press("Enter")
    page.locator("#search-results li a").nth(5).wait_for()
    found = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any("docs/reference/" in link for link in found) and any("/nbs/" in link for link in found)
    page.goto(found[0])
    assert "saliency" in page.locator("article").inner_text().lower()
    assert heard["errors"] == []


@in_browser
def test_pages_fit_a_phone(site, page):
    page.set_viewport_size({"width": 390, "height": 800})
    files = [site / "index.html", *site.glob("nbs/tutorials/*.html"), *site.glob("docs/*/*.html")]
    wide = []
    for file in files:
        page.goto(file.as_uri())
        wide += [file.name] if page.evaluate(PARTS)["wide"] else []
    assert wide == []
