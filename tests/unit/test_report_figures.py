"""Pictures of a report hold what they were given, in labels that can be read."""

from lm2.eval.report_figures import Curve, draw_cost, draw_training


def texts(figure) -> list[str]:
    figure.draw_without_rendering()
    return [label.get_text() for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]


def test_cost_has_a_point_for_each_length_and_names_the_longest():
    points = {
        "a $model": [("0k", 1.7e7, 1.0), ("4k", 1.5e9, 0.95), ("16k", 6.2e9, 0.92)],
        "other": [("0k", 1.8e7, 1.0), ("16k", 6.8e10, 0.08)],
    }
    figure = draw_cost(points)
    lines = figure.axes[0].get_lines()
    for line, (name, row) in zip(lines, points.items(), strict=True):
        assert line.get_label() == name
        assert line.get_xdata().tolist() == [operations for _, operations, _ in row]
        assert line.get_ydata().tolist() == [100 * share for _, _, share in row]
    assert [note.get_text() for note in figure.axes[0].texts] == ["16k", "16k"]
    labels = texts(figure)
    assert "1 G" in labels
    assert not any("$" in label for label in labels)


def test_training_has_a_line_for_each_repetition():
    curve = Curve(accuracy=[(1e6, 0.5), (2e6, 0.9)], loss=[(1e6, 2.0), (2e6, 0.1)], stage_ends=[1])
    figure = draw_training({"one": [curve, curve], "other": [curve]})
    above, below = figure.axes
    assert [line.get_ydata().tolist() for line in above.get_lines()] == [[50.0, 90.0]] * 3
    assert len(below.get_lines()) == 3
    assert not any("$" in label for label in texts(figure))
