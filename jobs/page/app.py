"""What stands on the page, and what happens on it. Gradio draws it."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from fastmaker.jobs.cli import pictures
from fastmaker.jobs.clients import explaining
from fastmaker.jobs.clients.sources import Source
from fastmaker.jobs.page import asking, batch, corrections, markup
from fastmaker.jobs.page.asking import Asked

SHOWN_EXAMPLES = 48
SESSIONS = 50  # whose last image is kept
THUMBNAIL = (160, 160)  # pixels
LABEL = {"classification": "It is", "multilabel": "It shows", "regression": "Its numbers are"}
Updates = dict[Any, Any]  # by component


def build(source: Source, examples: Sequence[Path], saved: corrections.Corrections | None) -> gradio.Blocks:
    """Return the page, which is not served yet."""
    with gradio.Blocks(title="fastmaker", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gradio.HTML(f"<h1>{markup.title(source.title)}</h1>")
        with gradio.Tabs():
            with gradio.Tab("One image"):
                OneImage(source, examples, saved)
            with gradio.Tab("Many images"):
                ManyImages(source)
    page.state_session_capacity = SESSIONS
    return page.queue(default_concurrency_limit=4)


def _as_uploaded(payload: Any) -> Any:
    """Return (path, name) of an uploaded file, in place of what Gradio would make of it: another picture."""
    return (payload.path, payload.orig_name or Path(payload.path).name) if payload and payload.path else None


def _several_as_uploaded(payload: Any) -> list:
    files = getattr(payload, "root", payload) or []
    return [_as_uploaded(file) for file in (files if isinstance(files, list) else [files])]


class OneImage:
    """The tab on which one image is asked about."""

    def __init__(self, source: Source, examples: Sequence[Path], saved: corrections.Corrections | None):
        self.source, self.examples, self.saved = source, examples[:SHOWN_EXAMPLES], saved
        self.asked = gradio.State()
        self.explainer = explaining.Explainer(source) if source.bundle and explaining.is_installed() else None
        with gradio.Row():
            with gradio.Column():
                self._build_input()
            with gradio.Column():
                self._build_answer()
        self._build_correction()
        with gradio.Accordion("The raw answer", open=False):
            self.raw = gradio.HTML()
            self.download = gradio.DownloadButton("Download the raw answer", visible=False)
        with gradio.Accordion("The same without this page", open=False):
            gradio.HTML(markup.requests(source.requests))
        self._connect()

    def _build_input(self) -> None:
        self.picture = gradio.Image(
            label="Drop, paste or take an image", type="filepath", sources=["upload", "webcam", "clipboard"], height=320
        )
        self.picture.preprocess = _as_uploaded
        if self.examples:
            thumbnails = [(_thumbnail(file), file.name) for file in self.examples]
            self.gallery = gradio.Gallery(
                thumbnails, label="Or pick one", columns=4, height=200, allow_preview=False, format="png", buttons=[]
            )

    def _build_answer(self) -> None:
        self.said = gradio.HTML(markup.note("There is no image yet."))
        self.threshold = gradio.Slider(0, 1, 0.5, step=0.01, label="Threshold of labels", visible=False)
        self.opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="Opacity of the mask", visible=False)
        shown = partial(gradio.Image, interactive=False, visible=False, format="png", buttons=["fullscreen"])
        self.drawing = shown(
            label="As the model was given it", alt_text="The image as the model was given it, with its answer"
        )
        self.explain = gradio.Button("Show where the network looked", visible=False)
        self.map = shown(
            label="Where the network looked", alt_text="The image, the redder the more it spoke for the label"
        )

    def _build_correction(self) -> None:
        with gradio.Group(visible=False) as self.correction:
            self.label = gradio.Dropdown([], label=LABEL["classification"], allow_custom_value=True, visible=False)
            self.labels = gradio.Dropdown([], label=LABEL["multilabel"], multiselect=True, visible=False)
            self.numbers = gradio.Textbox(label=LABEL["regression"], visible=False)
            self.save = gradio.Button("This is wrong: save the image with what I say")
            self.kept = gradio.HTML()

    def _connect(self) -> None:
        shown = [self.asked, self.said, self.threshold, self.opacity, self.drawing, self.raw, self.download]
        shown += [self.explain, self.map, self.correction, self.label, self.labels, self.numbers, self.kept]
        private: dict[str, Any] = {"api_visibility": "private"}
        self.picture.change(self.ask, [self.picture, self.opacity], shown, **private)
        if self.examples:
            self.gallery.select(self.pick, None, self.picture, **private)
        self.threshold.change(self.choose, [self.asked, self.threshold], self.said, show_progress="hidden", **private)
        self.opacity.release(self.redraw, [self.asked, self.opacity], self.drawing, show_progress="hidden", **private)
        self.explain.click(self.look, self.asked, self.map, **private)
        given = [self.asked, self.label, self.labels, self.numbers]
        self.save.click(self.correct, given, self.kept, **private)

    def pick(self, event: gradio.SelectData) -> str:
        """Return the file of the example that was picked."""
        return str(self.examples[event.index])

    def ask(self, uploaded: tuple[str, str] | None, opacity: float) -> Updates:
        """Ask about the image that was dropped, pasted, taken or picked."""
        hidden = dict.fromkeys(
            (
                self.threshold,
                self.opacity,
                self.drawing,
                self.download,
                self.explain,
                self.map,
                self.correction,
            ),
            gradio.update(visible=False),
        )
        if uploaded is None:
            empty = {self.asked: None, self.said: markup.note("There is no image yet."), self.raw: "", self.kept: ""}
            return hidden | empty
        path, name = uploaded
        asked = asking.ask(self.source, name, Path(path).read_bytes())
        shown = {self.asked: asked, self.said: markup.answer(asked), self.raw: markup.raw(asked), self.kept: ""}
        if asked.raw:
            shown[self.download] = gradio.update(value=_written(Path(path), asked.raw), visible=True)
        if drawn := asking.draw(asked, opacity):
            shown[self.drawing] = gradio.update(value=drawn, visible=True)
        shown[self.threshold] = gradio.update(visible=asked.task == "multilabel")
        shown[self.opacity] = gradio.update(visible=bool(asked.mask and not asked.note))
        shown[self.explain] = gradio.update(visible=bool(self.explainer and asked.task in explaining.TASKS))
        return hidden | shown | self._correction_of(asked)

    def _correction_of(self, asked: Asked) -> Updates:
        """Return what lets a person say what an image shows, if that can be said of the task."""
        if not self.saved or asked.task not in corrections.TASKS:
            return {}
        answer, task = asked.answer, asked.task
        choices = list(
            self.source.labels or answer.get("probabilities") or [one["label"] for one in answer.get("top", [])]
        )
        return {
            self.correction: gradio.update(visible=True),
            self.label: gradio.update(visible=task == "classification", choices=choices, value=answer.get("label")),
            self.labels: gradio.update(visible=task == "multilabel", choices=choices, value=answer.get("labels", [])),
            self.numbers: gradio.update(
                visible=task == "regression", value=" ".join(f"{value:g}" for value in answer.get("values", []))
            ),
        }

    def choose(self, asked: Asked | None, threshold: float) -> str:
        """Return the answer with the labels over another threshold; the model is not asked again."""
        return markup.answer(asked, threshold) if asked else ""

    def redraw(self, asked: Asked | None, opacity: float) -> Image.Image | None:
        """Return the image under its mask."""
        return asking.draw(asked, opacity) if asked else None

    def look(self, asked: Asked | None) -> Updates:
        """Return the map of what spoke for the label of the answer."""
        if not (asked and self.explainer):
            return {self.map: gradio.update(visible=False)}
        label = explaining.label_of(asked.answer)
        picture = pictures.enlarged(self.explainer.picture(asked.image, label))
        picture.thumbnail((asking.WIDEST, asking.WIDEST))
        return {self.map: gradio.update(value=picture, label=f"Where the network looked for {label}", visible=True)}

    def correct(self, asked: Asked | None, label: str | None, labels: list[str], numbers: str) -> str:
        """Save the image with what a person says, and return what became of that."""
        if not asked or not self.saved:
            return markup.fault("There is no image yet.")
        known = list(asked.answer.get("probabilities", ()))
        given = {"classification": label or "", "multilabel": labels or [], "regression": numbers}.get(asked.task, "")
        try:
            return markup.note(self.saved.save(asked.image, asked.name, asked.task, given, known))
        except (corrections.CorrectionError, OSError) as error:
            return markup.fault(asking.reason(error))


class ManyImages:
    """The tab on which the images of a folder or a zip are asked about."""

    def __init__(self, source: Source):
        self.source = source
        self.files = gradio.File(file_count="multiple", label="Images, or a zip of them", height=140)
        self.folder = gradio.UploadButton("Or a folder", file_count="directory")
        self.said = gradio.HTML(markup.note("There are no images yet."))
        self.download = gradio.DownloadButton("Download the table as CSV", visible=False)
        self.sheet = gradio.Image(
            label="Contact sheet",
            alt_text="The images, each with its answer below",
            interactive=False,
            visible=False,
            format="png",
            buttons=["fullscreen", "download"],
        )
        for given in (self.files, self.folder):
            given.preprocess = _several_as_uploaded
            shown = [self.said, self.download, self.sheet]
            given.upload(self.ask, given, shown, api_visibility="private", show_progress_on=self.said)

    def ask(self, uploads: list[tuple[str, str]], progress: Any = gradio.Progress()) -> Updates:  # noqa: B008  Gradio's way
        """Ask about each image."""
        hidden = dict.fromkeys((self.download, self.sheet), gradio.update(visible=False))
        try:
            files, notes = batch.images(uploads)
            asked = []
            for one in batch.ask_all(self.source, files):
                asked.append(one)
                progress((len(asked), len(files)), unit="images")
        except batch.BatchError as error:
            return hidden | {self.said: markup.fault(str(error))}
        table = Path(tempfile.mkdtemp(dir=Path(uploads[0][0]).parent), "answers.csv")
        batch.write_csv(asked, table)
        return {
            self.said: markup.batch(asked, notes),
            self.download: gradio.update(value=str(table), visible=True),
            self.sheet: gradio.update(value=batch.sheet(asked), visible=any(one.raw for one in asked)),
        }


def _thumbnail(file: Path) -> Image.Image:
    """Return a small picture of a file, an empty one of a broken image: it can be picked as well."""
    drawn = asking.draw(Asked(file.name, file.read_bytes(), error="not asked"))
    drawn = drawn or Image.new("RGB", THUMBNAIL, "white")
    drawn.thumbnail(THUMBNAIL)
    return drawn


def _written(beside: Path, raw: bytes) -> str:
    """Write the answer for an uploaded file into a new folder beside it, and return its path."""
    file = Path(tempfile.mkdtemp(dir=beside.parent), "answer.json")
    file.write_bytes(raw)
    return str(file)
