"""How the site is built: `make docs`. See https://www.sphinx-doc.org/en/master/usage/configuration.html."""

import os
import sys
from pathlib import Path

import bora

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
os.environ["TQDM_DISABLE"] = "1"  # a page would keep every state of a notebook's bars

project, author = "bora", "the bora authors"
release = bora.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "named_tuples",
    "repository_links",
]
exclude_patterns = ["_build", "jupyter_execute", "extensions", "api/bora.rst", "api/modules.rst"]

# The Python reference: a page for each folder of the package, made at each build.
# Triton, which comes with torch for a GPU alone, must be there to import the kernel.
KERNEL = "**/softmax_kernel*"
apidoc_modules = [{"path": "../bora", "destination": "api", "module_first": True, "exclude_patterns": [KERNEL]}]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks are committed without outputs and run at each build; what fails in one fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True  # runs are not written into docs/
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True

# Docstrings: one backtick is code, as in Markdown; types are in the signature alone.
default_role = "code"
highlight_language = "text"  # an indented formula is no program
napoleon_use_param = napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "__init__"}
autoclass_content = "both"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# What the repository's own files link to: file or folder → the page that shows it.
STUDIES = [f"experiments/{readme.parent.name}" for readme in (HERE.parent / "experiments").glob("*/README.md")]
repository_pages = dict(zip(STUDIES, STUDIES, strict=True)) | {
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "docs/LOG.md": "LOG",
    "conf": "configuration",
    "experiments": "experiments/index",
}

html_theme = "furo"
html_title = f"bora {release}"
html_static_path = ["static"]
html_css_files = ["bora.css"]
html_copy_source = html_show_copyright = False
copybutton_prompt_text = "$ "
