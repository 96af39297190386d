"""What the pictures of the studies have in common."""

import re

from inferscale.viz.plots import COLOURS


def check_figure(figure, panels):
    """The package's colours and greys alone, at most six lines a panel, each named at its end, and no legend."""
    from matplotlib.colors import to_hex

    assert len(figure.axes) == panels
    for axes in figure.axes:
        assert axes.get_legend() is None
        colours = {to_hex(line.get_color()) for line in axes.lines}
        assert all(colour in COLOURS or re.fullmatch(r"#(..)\1\1", colour) for colour in colours), colours
        names = axes.get_legend_handles_labels()[1]
        assert 1 <= len(names) <= 6, names
        assert sorted(text.get_text() for text in axes.texts) == sorted(names)


def caught(monkeypatch):
    """Figures that are written from now on."""
    from matplotlib.figure import Figure

    found, write = [], Figure.savefig

    def keep(self, *args, **options):
        found.append(self)
        return write(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found
