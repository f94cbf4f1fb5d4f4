"""The page: open a slide, type genes, click a position."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import explain
from ..markup import as_html, element
from ..prediction.predictor import load_predictor
from ..prediction.reference import load_reference
from ..prediction.reliability import reliability
from .pictures import class_map, disk, marked, number_map, patch_facts, spots_table
from .slide import OpenSlide, open_slide

_NEIGHBOURS = 5
_STYLE = Path(__file__).with_name("page.css")
_WAYS = ["genes", "class", "radius"]


def build_page(model: str, slide: str | None = None, mpp: float | None = None) -> Any:
    """Build the page for one model.

    Args:
        model: Folder or Hub id of a checkpoint; with a head the page shows genes or classes, with a reference the spots most
            similar to a patch.
        slide: Slide to open at the start.
        mpp: Micrometres per pixel of that slide; by default those that its file states.

    Returns:
        A `gradio.Blocks` to launch.

    Raises:
        ImportError: If gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio, which is not installed: pip install 'delst-hf[demo]'.") from error
    page = _Page(model)
    first = page.first_genes()

    # gradio passes the progress and the position of a click to arguments of these types.
    def open_file(file: Any, mpp: float | None, way: str, asked: str, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        return page.open(file, mpp, way, asked, lambda share: progress(share, desc="patches"))

    def click(slide: OpenSlide | None, way: str, asked: str, event: gr.SelectData) -> list[Any]:
        return page.click(slide, way, asked, event.index)

    with gr.Blocks(title="DELST") as blocks:
        opened = gr.State(None)
        gr.HTML(
            f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style><h2>What a slide says, by {as_html(page.name)}</h2>"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                file = gr.File(label="Slide (JPEG, PNG, TIFF, SVS, ...)", value=slide, elem_id="slide", height=110)
                scale = gr.Number(
                    label="Micrometres per pixel, if the file does not state them", value=mpp, elem_id="mpp"
                )
                button = gr.Button("Open the slide", variant="primary", elem_id="open")
                told = gr.HTML(elem_id="told", elem_classes="delst-told")
                way = gr.Radio(_WAYS, value="genes" if first else "radius", label="Colour by", elem_id="way")
                asked = gr.Textbox(first, label="Genes, or a signature with weights (ERBB2:2, GRB7)", elem_id="genes")
                draw = gr.Button("Draw", elem_id="draw")
            with gr.Column(scale=2):
                picture = gr.Image(label="Map: click a place", interactive=False, elem_id="map", format="png")
                legend = gr.HTML(elem_id="legend")
            with gr.Column(scale=2):
                trust = gr.Image(label="Reliability", interactive=False, elem_id="reliability", format="png")
                trust_legend = gr.HTML(elem_id="reliability-legend")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                patch = gr.Image(label="Patch", interactive=False, elem_id="patch", height=260, format="png")
                facts = gr.HTML(elem_id="facts")
            with gr.Column(scale=3):
                spots = gr.HTML(elem_id="spots")
        place = gr.HTML(elem_id="disk")
        maps = [picture, legend, told]
        opening = [opened, trust, trust_legend, *maps]
        button.click(open_file, [file, scale, way, asked], opening)
        for event in (draw.click, asked.submit, way.change):
            event(page.draw, [opened, way, asked], maps)
        for shown in (picture, trust):
            shown.select(click, [opened, way, asked], [picture, patch, facts, spots, place])
        if slide is not None:
            blocks.load(open_file, [file, scale, way, asked], opening)
    return blocks


class _Page:
    """The actions of the page: each returns what gradio expects, and mistakes of the user are shown on the page."""

    def __init__(self, model: str):
        self.predictor = load_predictor(model)
        self.reference = load_reference(model, predictor=self.predictor)
        self.name = model.rstrip("/").rsplit("/", 1)[-1]

    def first_genes(self) -> str:
        """Return the gene that is predicted best, "" where none is."""
        genes = self.predictor.genes
        if "pearson" in genes and genes["pearson"].notna().any():
            return str(genes["pearson"].idxmax())
        return str(self.reference.genes[0]) if self.reference is not None and self.predictor.expression is None else ""

    def open(self, file: Any, mpp: float | None, way: str, asked: str, step: Any = None) -> list[Any]:
        """Open a slide."""
        if not file:
            return [None, None, "", None, "", _mistake("Choose the file of a slide first.")]
        try:
            slide = open_slide(self.predictor, str(file), mpp or None, self.reference, step)
        except Exception as error:  # whatever a file may be, the page stays
            return [None, None, "", None, "", _mistake(explain(error))]
        trust, legend = self._reliability(slide)
        return [slide, trust, legend, *self.draw(slide, way, asked)]

    def _reliability(self, slide: OpenSlide) -> tuple[np.ndarray, str]:
        ranks, name = reliability(slide.values["radius"], slide.distance, np.zeros(len(slide.source)))
        if ranks is not None:
            picture, legend = number_map(slide, ranks, "magma")
            return (
                picture,
                legend + f"<small>By {name}: 1 is trusted most, 0 least, within this slide only.</small>",
            )
        return slide.picture, "<small>No reference, and no radius in this geometry.</small>"

    def draw(self, slide: OpenSlide | None, way: str, asked: str) -> list[Any]:
        """Draw the map."""
        if slide is None:
            return [None, "", _mistake("Open a slide first.")]
        about = f"{len(slide.source)} patches of {slide.source.patch_um:g} um."
        try:
            if way == "class":
                if "probabilities" not in slide.values:
                    raise ValueError("This model has no head for classes: see delst fit --target labels.")
                return [*class_map(slide), about]
            if way == "radius":
                if not np.isfinite(slide.values["radius"]).any():
                    raise ValueError("This model's geometry has no radius.")
                return [*number_map(slide, slide.values["radius"], unit="radius"), about]
            values, lines = slide.score(asked)
            total = self.predictor.processor.feature_extractor.target_sum
            unit = f"log(1 + counts per {total:,.0f})"
            return [*number_map(slide, values, unit=unit), "<br>".join([about, *map(as_html, lines)])]
        except ValueError as error:
            return [slide.picture, "", _mistake(str(error))]

    def click(self, slide: OpenSlide | None, way: str, asked: str, place: Any) -> list[Any]:
        """Show the patch at a position (x, y) of the picture that was clicked."""
        if slide is None:
            return [None, None, _mistake("Open a slide first."), "", ""]
        number = slide.at(*place)
        picture = self.draw(slide, way, asked)[0]
        if number is None:
            return [picture, None, "There is no patch of tissue at this position.", "", ""]
        spots = "<p>The model has no reference. Make one: delst reference MODEL DATASET.</p>"
        if self.reference is not None:
            tangent = slide.values["tangent"][number : number + 1]
            rows = self.reference.nearest(self.predictor, tangent, min(_NEIGHBOURS, len(self.reference.spots)), "image")
            spots = spots_table(self.reference.describe(rows[0][0], rows[1][0]))
        return [
            marked(picture, slide, number), slide.patch(number), patch_facts(slide, number), spots,
            disk(slide, number, self.predictor, self.reference),
        ]  # fmt: skip


def _mistake(text: str) -> str:
    return element("p", text, role="alert")
