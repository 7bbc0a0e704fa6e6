import pytest

from kexue.experiments import report


@pytest.fixture(autouse=True)
def every_axis_is_labelled(monkeypatch):
    """Figures of experiments: each panel with data names the quantity, and where it has one the unit, of both axes."""
    save = report.save_figure

    def checked(draw, path):
        def draw_and_check(figure):
            draw(figure)
            for axes in figure.axes:
                where = f"{path}: panel {axes.get_title()!r}"
                if axes.has_data() and axes.get_label() != "<colorbar>":
                    assert axes.get_xlabel() or figure.get_supxlabel() or not axes.xaxis.get_visible(), where
                    shared = [other.get_ylabel() for other in axes.get_shared_y_axes().get_siblings(axes)]
                    assert any(shared) or figure.get_supylabel(), where

        save(draw_and_check, path)

    monkeypatch.setattr(report, "save_figure", checked)
