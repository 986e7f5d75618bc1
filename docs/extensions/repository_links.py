"""Resolve links in the repository's own Markdown files, wherever a page includes them.

Such a link is to a file beside it in the repository. It leads to the page that shows this file if there is one, else to
the file as a download; a folder's name becomes plain code.
"""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

REPOSITORY = Path(__file__).parents[2]


class RepositoryLinks(SphinxTransform):
    """Resolve each link that MyST found no page for."""

    default_priority = 100

    def apply(self, **kwargs) -> None:
        page = Path(self.env.doc2path(self.env.docname))
        for link in list(self.document.findall(addnodes.pending_xref)):
            target, included = link["reftarget"], Path(link.source or page)
            if link.get("reftype") != "myst" or link.get("refdomain") == "doc" or target.startswith("#"):
                continue
            path = (included.parent / target).resolve()
            if not path.is_relative_to(REPOSITORY) or not path.exists():
                continue  # Sphinx will say that there is no such page
            link.replace_self(self.resolved(link, path))

    def resolved(self, link: addnodes.pending_xref, path: Path) -> nodes.Node:
        name = path.relative_to(REPOSITORY).as_posix()
        docname = self.config.repository_pages.get(name.removesuffix("/README.md"))
        common = {"refdoc": self.env.docname, "reftype": "myst", "refexplicit": True}
        found: nodes.Element
        if docname is not None:
            found = addnodes.pending_xref(refdomain="doc", reftarget=docname, reftargetid=None, **common)
        elif path.is_file():
            found = addnodes.download_reference(refdomain=None, reftarget=f"/../{name}", **common)
        else:
            return nodes.literal("", link.astext())
        found += link.children
        found.source, found.line = link.source, link.line
        return found


def setup(app: Sphinx) -> dict:
    app.add_config_value("repository_pages", {}, "env", dict)
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True}
