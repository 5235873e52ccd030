# SPDX-License-Identifier: Apache-2.0
import numpy as np
from matplotlib.figure import Figure

from recipes_lib.evaluation import page


def test_a_page_holds_its_figures_and_escapes_what_users_named():
    drawn = page.picture("one", Figure(), "what is <seen>", "a & b")
    text = page.document("A <title>", [page.table(("model", "n"), [("<b>", "1")]), page.figure(drawn)])
    assert "<script" not in text
    assert "<td>&lt;b&gt;</td>" in text
    assert "alt='what is &lt;seen&gt;'" in text
    assert "src='data:image/png;base64," in text
    assert "<title>A &lt;title&gt;</title>" in text


def test_long_tables_are_cut_with_a_word_about_it():
    text = page.table(("n",), [(str(number),) for number in range(page.MOST_ROWS + 5)])
    assert text.count("<tr>") == page.MOST_ROWS + 1
    assert "The first 50 of 55." in text


def test_files_are_written_beside_the_page(tmp_path):
    drawn = page.picture("one", Figure(), "alt", "caption")
    found = page.write(tmp_path, page.document("t", []), {"rows": [("a",), (1,)]}, [drawn])
    assert found == tmp_path / "index.html"
    assert (tmp_path / "rows.csv").read_text() == "a\n1\n"
    assert (tmp_path / "plots" / "one.png").read_bytes() == drawn.png


def test_few_models_are_drawn_one_by_one_and_many_as_a_spread():
    for models, legend in ((3, 3), (page.MOST_ARMS + 1, 3)):
        values = np.arange(2.0 * models).reshape(models, 2)
        names = [f"model {number}" for number in range(models)]
        ax = page.intervals(Figure().add_subplot(), names, values, values - 1, values + 1, none=0)
        shown = [label.get_text() for label in ax.get_legend().get_texts()]
        assert len(shown) == legend
        assert ("median" in shown) == (models > page.MOST_ARMS)


def test_a_missing_number_is_a_dash():
    assert (page.figured(None), page.figured(0.12345, 2)) == ("-", "0.12")
