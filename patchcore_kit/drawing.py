"""What all figures share: colours and style, and words for those who do not see them."""

import html

from matplotlib.figure import Figure

# on white, and each but the first on the first, in a contrast of 3 and more
GOOD, DEFECTIVE, ACCENT, OTHER = "#00487c", "#e07900", "#cc79a7", "#949494"
WORDS = {0: GOOD, 1: "#a34700", -1: "#595959"}  # by label, for words: on white in a contrast of 4.5 and more
WIDTH = 9  # inches: what a notebook shows without shrinking
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.axisbelow": True,
    "font.size": 10,
    "legend.frameon": False,
}


def describe(figure: Figure, words: str, weights: str | None = None, more: str = "") -> None:
    """Keep what a figure shows in words, and write below it, small, what it was made with, and more."""
    made = "" if weights is None else f"weights: {weights}"
    figure.set_label(" ".join(filter(None, (words, made))))
    if weights is not None:
        figure.supxlabel(f"{more}   {made}".strip(), x=0.99, ha="right", fontsize="small", color=WORDS[-1])


def show_alt_texts() -> None:
    """In a notebook, from now on: every figure has the words that describe it as the alternative text of its picture.

    JupyterLab gives PNG pictures no such text, but shows HTML, so each is there as both, from one drawing, and keeps
    its words when the notebook is saved. Figures that say nothing of themselves, as one's own, are called "figure".
    Elsewhere it does nothing.
    """
    from IPython import get_ipython
    from matplotlib_inline.config import InlineBackend

    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.mimebundle_formatter.for_type(Figure, _with_alt_text)
        InlineBackend.instance(parent=shell).figure_formats = set()  # or each would be drawn a second time


def _with_alt_text(figure: Figure) -> tuple[dict, dict]:
    """What IPython shows of a figure: its picture, also as HTML with its words, and the words alone."""
    from IPython.core.pylabtools import print_figure

    picture, words = print_figure(figure, base64=True), figure.get_label() or "figure"
    if picture is None:  # of a figure without axes
        return {}, {}
    page = f'<img src="data:image/png;base64,{picture}" alt="{html.escape(words)}">'
    return {"image/png": picture, "text/html": page, "text/plain": words}, {"image/png": {"alt": words}}
