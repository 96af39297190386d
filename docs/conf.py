"""Configuration of the documentation; builds offline."""

import sys
from importlib.metadata import version as distribution_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import reference_pages

project = "inferscale"
author = "The inferscale authors"
copyright = "2026, the inferscale authors"
release = version = distribution_version("inferscale")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_theme = "furo"
html_title = "inferscale"
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_excludepatterns = ["tutorials/*"]  # executed by `make notebooks`, and shown as they are
nb_execution_raise_on_error = True
nb_execution_timeout = 300
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"  # fields of a dataclass are told once
default_role = "code"
suppress_warnings = ["myst.header", "ref.python"]  # the type `bytes` is not the attribute `bytes` of two classes
napoleon_use_ivar = True
reference_pages.write()
