"""The site: README first, the notebooks as they were committed, and the reference from docstrings.

`make docs` builds it. The source directory is the root of the repository, so that links work there as on the site.
"""

import configparser
import inspect
import json
import re
import sys
from importlib import import_module
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The wings, in the order of the site: a folder of nbs/ and a package of dilo/ each.
WINGS = {
    "data": "Images, their masks, and the files they are kept in.",
    "saliency": "Where the foreground is, found without labels.",
    "augmentation": "Views of an image: crops, colours, and the foreground on another background.",
    "training": "Encoders, the methods that teach them, and runs that can be stopped.",
    "evaluation": "What an encoder has learned, and what it looks at.",
    "transfer": "Boxes, pixels, fine classes, attributes and landmarks, with any encoder.",
    "study": "Many runs side by side: figures, ablations, the report.",
}
settings = configparser.ConfigParser()
settings.read(ROOT / "settings.ini")
settings = settings["DEFAULT"]

project = author = settings["title"]
author = settings["author"]
version = release = settings["version"]
project_copyright = settings["copyright"]

extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "README"
kept = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "nbs", "docs"}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in kept]  # not walked: photos, runs, .venv
exclude_patterns += ["docs/index.md", "docs/static", "nbs/index.ipynb", "**/.ipynb_checkpoints"]
include_patterns = ["**.md", "**.ipynb"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = settings["title"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which a browser refuses to do from the disk
pygments_style, pygments_dark_style = "friendly", "github-dark"


def notebooks(wing):
    "The notebooks of a wing in their order; of other pages of that kind, those beside the wings and the stages."
    if wing == "pipeline":
        return sorted(ROOT.glob("nbs/stages/*.ipynb"))
    if wing in WINGS:
        # the methods of training come after its models
        found = (ROOT / "nbs" / wing).rglob("[0-9]*.ipynb")
        return sorted(found, key=lambda p: str(p).replace("/methods/", "/01_methods/"))
    return sorted(ROOT.glob("nbs/[0-9]*.ipynb"))


def faces(wing):
    "The modules whose public names the reference page of a wing shows."
    if wing in WINGS:
        return [f"dilo.{wing}"]
    return [f"dilo.{path.stem[3:]}" for path in notebooks(wing)]


def title_and_summary(path):
    "The first two lines of a notebook: every notebook starts with `# TITLE` and `> SUMMARY`."
    text = "".join(json.loads(path.read_text())["cells"][0]["source"])
    title, summary = re.match(r"# (.+)\n+((?:> ?.*\n?)+)", text).groups()
    return title, re.sub(r"^> ?", "", summary, flags=re.M).replace("\n", " ").strip()


def home(face, name):
    "The module below the package `face` that defines a name, or `face`."
    below = (m for key, m in sorted(sys.modules.items()) if key.startswith(f"{face.__name__}."))
    return next((m for m in below if name in getattr(m, "__all__", [])), face)


def described(face, name):
    "The directive that shows one public name; of a constant its value, where that is short."
    thing, full = getattr(face, name), f"{face.__name__}.{name}"
    if inspect.isclass(thing):
        return f".. autoclass:: {full}\n" + "   :no-members:\n" * issubclass(thing, BaseModel)
    if inspect.isroutine(thing) or hasattr(thing, "py_func"):  # the latter is compiled by numba
        return f".. autofunction:: {full}\n"
    value = re.sub(r"\s+", " ", repr(thing)).replace("typing.", "")
    same = " at 0x" not in value and str(ROOT) not in value  # on every machine and in every run
    return f".. py:data:: {name}\n" + f"   :value: {value}\n" * (same and len(value) <= 200)


def write_pages(app, config):
    "Writes two pages a wing, which git ignores: its notebooks, and the reference of its public names."
    others = {
        "settings": "The settings of a study, and the command line.",
        "pipeline": "The notebooks that the pipeline runs, one a stage.",
    }
    made = {
        ROOT / "docs" / name: text for wing, summary in (WINGS | others).items() for name, text in pages(wing, summary)
    }
    for old in [*ROOT.glob("docs/wings/*"), *ROOT.glob("docs/reference/*")]:
        if old not in made:
            old.unlink()
    for path, text in made.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def pages(wing, summary):
    "The names in docs/ of the pages of a wing, and their text."
    title, listed, refers = wing.capitalize(), notebooks(wing), wing != "pipeline"
    how = [f"# {title}", summary]
    how += [f"The public names are in the [reference](../reference/{wing}.md)."] if refers else []
    for path in listed:
        name, line = title_and_summary(path)
        how.append(f"[{name}](/{path.relative_to(ROOT)})\n: {line}")
    how.append("\n".join(["```{toctree}", ":hidden:", "", *(f"/{p.relative_to(ROOT)}" for p in listed), "```"]))
    yield f"wings/{wing}.md", "\n\n".join(how) + "\n"
    if refers:
        reference = [f"# {title}", summary, f"How it works is told in the [notebooks](../wings/{wing}.md)."]
        yield f"reference/{wing}.md", "\n\n".join([*reference, *map(documented, faces(wing))]) + "\n"


def documented(name):
    "The reference of what a module makes public, under the names of the modules that define it."
    face, homes, parts = import_module(name), {}, []
    for public in (n for n in face.__all__ if not inspect.ismodule(getattr(face, n))):
        homes.setdefault(home(face, public), []).append(public)
    for module, names in homes.items():
        told = "\n".join(plain(inspect.getdoc(module) or ""))
        listed = "\n".join(described(face, public) for public in names)
        parts.append(
            f"## {module.__name__}\n\n```{{eval-rst}}\n{told}\n\n.. py:currentmodule:: {face.__name__}\n\n{listed}```"
        )
    return "\n\n".join(parts)


def read_source(app, docname, source):
    "README gets the lists of docs/index.md; notebooks lose what nbdev hides, and its directives."
    if docname == root_doc:
        source[0] += "\n" + (ROOT / "docs/index.md").read_text()
    if not app.env.doc2path(docname).suffix == ".ipynb":
        return
    notebook = json.loads(source[0])
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        directives = dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", text, re.M))
        if cell["cell_type"] == "code":
            if {"hide", "default_exp"} & set(directives):
                continue
            cell["source"] = re.sub(r"^#\|.*\n?", "", text, flags=re.M)
            if "hide_input" in directives:
                cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "remove-input"]
            alt = directives.get("fig-alt", "What the code above shows")
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
            for output in cell["outputs"]:
                if "text" in output:  # of a progress bar, its last state
                    output["text"] = re.sub(r"[^\n]*\r(?!\n)", "", "".join(output["text"]))
        cells.append(cell)
    source[0] = json.dumps(notebook | {"cells": cells})


def plain(text, module=None):
    "The lines of a docstring as reStructuredText: plain sentences and lists, code between backticks, public names as links."

    def code(span):
        public = re.fullmatch(r"\w+", span) and span in getattr(module, "__all__", [])
        return f":py:obj:`{span} <{module.__name__}.{span}>`" if public else f"``{span}``"

    parts = re.split(r"`+([^`]+)`+", text)
    parts[::2] = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [code(span) for span in parts[1::2]]
    for before in range(0, len(parts) - 2, 2):  # reStructuredText wants code apart from letters
        parts[before] += "\\ " if re.search(r"\w$", parts[before]) else ""
        parts[before + 2] = re.sub(r"^(?=[\w(])", r"\\ ", parts[before + 2])
    return re.sub(r"(?<!\n)\n(?=- )", "\n\n", "".join(parts), count=1).splitlines()


def read_docstring(app, what, name, thing, options, lines):
    "Docstrings are plain text; fields of settings are listed with what they mean."
    module = sys.modules.get(name.rpartition(".")[0]) or sys.modules.get(name.rpartition(".")[0].rpartition(".")[0])
    lines[:] = plain("\n".join(lines), module)
    if what == "class" and issubclass(thing, BaseModel):
        lines.append("")
        for field, told in thing.model_fields.items():
            default = "" if told.default in (None, PydanticUndefined) else f", by default ``{told.default!r}``"
            default = ", a section" if isinstance(told.default, BaseModel) else default
            meaning = f": {' '.join(plain(told.description))}" if told.description else ""
            lines.append(f"- ``{field}``{default}{meaning}")
    lines.append("")


def read_signature(app, what, name, thing, options, signature, returned):
    "Settings are listed below their class instead."
    return ("", None) if what == "class" and issubclass(thing, BaseModel) else None


def settle_links(app, doctree):
    "A link to a folder leads to where the repository is kept; one to the notebook of README to the first page."
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link.get("reftype") != "myst":
            continue
        if link["reftarget"] == "nbs/index":
            link["reftarget"] = root_doc
        path = (ROOT / link["refdoc"]).parent.joinpath(link["reftarget"]).resolve()
        if not link["refdomain"] and "/" in link["reftarget"] and path.is_dir():
            uri = f"{settings['git_url']}/tree/{settings['branch']}/{path.relative_to(ROOT).as_posix()}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri))


def link_notebooks(app, doctree, docname):
    "Code that names a notebook, as `nbs/tutorials/01_photos.ipynb` or `01_photos`, becomes a link to its page."
    pages = {doc: doc for doc in app.env.found_docs if doc.startswith("nbs/")}
    pages |= {doc.rpartition("/")[2]: doc for doc in pages if re.search(r"/\d+_\w+$", doc)}
    for code in list(doctree.findall(nodes.literal)):
        page = pages.get(code.astext().removesuffix(".ipynb"))
        linked = isinstance(code.parent, nodes.reference) or isinstance(code.parent.parent, nodes.reference)
        if page and not linked:
            link = nodes.reference("", "", refuri=app.builder.get_relative_uri(docname, page), internal=True)
            code.replace_self(link)
            link += code


def mathml(block):
    "Writes a formula as MathML, which browsers show without a script."

    def visit(self, node):
        try:
            self.body.append(tex2mathml(node.astext(), block))
        except MathError as error:
            raise ValueError(f"{node.astext()}: {error}") from error
        raise nodes.SkipNode

    return visit, None


def start_page(app, error):
    "The page of README is also the one that a folder opens with."
    if not error and app.builder.format == "html":
        (app.outdir / "index.html").write_bytes((app.outdir / f"{root_doc}.html").read_bytes())


def setup(app):
    app.add_html_math_renderer("mathml", mathml(False), mathml(True))
    for event, hook in {
        "config-inited": write_pages,
        "source-read": read_source,
        "autodoc-process-docstring": read_docstring,
        "autodoc-process-signature": read_signature,
        "doctree-read": settle_links,
        "doctree-resolved": link_notebooks,
        "build-finished": start_page,
    }.items():
        app.connect(event, hook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
