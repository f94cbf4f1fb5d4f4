"""A page to open a slide and look at what a model predicts for it: `delst demo`, or a Space that runs app.py.

`slide` (a slide predicted, in memory) -> `pictures` (maps, patches, the Poincare disk) -> `page` (needs gradio).
"""

from .page import build_page
from .slide import OpenSlide, open_slide

__all__ = ["OpenSlide", "build_page", "open_slide"]
