import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import toy_runs
from tests.toy_runs import RNG, VARIANTS
from viditq_jax.report import grid, read_run, write_report
from viditq_jax.report.charts import drift_chart, layers_chart, recipes_chart, svg_uri


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return toy_runs.plain(tmp_path)


def test_the_page_shows_every_picture_and_every_figure_and_needs_no_other_file(run: Path) -> None:
    page = write_report(run)[1].read_text()
    shown = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    original = read_run(run).pictures
    expected = [original[variant][i] for i in range(3) for variant in VARIANTS]
    assert len(shown) == len(expected)
    for data, picture in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)
    assert "33.25 dB" in page
    assert "0.500x" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_prompts_and_recipes_cannot_inject_markup(run: Path) -> None:
    page = write_report(run)[1].read_text()
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in page
    assert "cheap &amp; good" in page


def test_pictures_that_are_compared_are_in_the_page_once_and_stills_stand_for_videos(videos: Path) -> None:
    """The script lays over one another what lies in the rows; animations would not keep time."""
    page = write_report(videos)[1].read_text()
    stills = [
        base64.b64decode(data) for data in re.findall(r'data-still="data:image/png;base64,([^"]+)"', page)
    ]
    run = read_run(videos)
    for data, (i, name) in zip(stills, ((i, name) for i in range(3) for name in VARIANTS), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), run.still(name, i))
    assert page.count('id="compare-') == len(set(re.findall(r'id="(compare-[\w-]+)"', page))) > 0


def test_the_page_may_load_nothing(run: Path) -> None:
    assert "default-src 'none'; img-src data:" in write_report(run)[1].read_text()


def test_the_page_is_well_formed(run: Path) -> None:
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag not in ("meta", "img", "input"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(write_report(run)[1].read_text())
    assert open_tags == []


def test_the_grid_has_a_column_a_variant_and_a_row_a_prompt(run: Path) -> None:
    loaded = read_run(run)
    pixels = np.asarray(grid(loaded, scale=2))
    for variant in VARIANTS:
        for picture in loaded.pictures[variant]:
            tile = picture.repeat(2, 0).repeat(2, 1)
            windows = np.lib.stride_tricks.sliding_window_view(pixels, tile.shape)[:, :, 0]
            assert (windows == tile).all((2, 3, 4)).sum() == 1


def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metrics\.json"):
        write_report(tmp_path / "nothing")
    (run / "w8a8/manifest.jsonl").unlink()
    with pytest.raises(ValueError, match="variant 'w8a8'"):
        write_report(run)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"variants": {}}', '{"variants": {"float": {}}}'])
def test_broken_records_are_refused(run: Path, text: str) -> None:
    (run / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged|need the same pictures"):
        write_report(run)


def test_a_record_or_a_picture_that_is_missing_is_named(run: Path) -> None:
    records = json.loads((run / "metrics.json").read_text())
    del records["device"]
    (run / "metrics.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"lacks what the page shows: .*device"):
        write_report(run)
    lines = (run / "w8a8/manifest.jsonl").read_text().splitlines(keepends=True)
    (run / "w8a8/manifest.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match="need the same pictures, found"):
        write_report(run)


@pytest.fixture
def two_models(run: Path) -> Path:
    return toy_runs.two_models(run)


def texts(figure) -> list[str]:
    """All texts that a figure shows."""
    return [item.get_text() for item in figure.findobj(lambda item: hasattr(item, "get_text"))]


def test_charts_show_every_variant_of_every_model(two_models: Path) -> None:
    run = read_run(two_models)
    assert run.models == {
        "default": {"float": "default/float", "w8a8": "default/w8a8"},
        "stressed": {"w8a8": "stressed/w8a8"},
    }
    lines = [line for axis in drift_chart(run).axes for line in axis.lines]
    np.testing.assert_array_equal(lines[0].get_ydata(), [0.01, 0.02])
    assert len(lines) == 2 * 2 * 2  # models, distances, the variant and the floor
    assert {"default model", "stressed model", "rounding alone"} <= set(texts(drift_chart(run)))
    assert {"w8a8, default", "w8a8, stressed", "33", "27", "mlp/fc1"} <= set(texts(layers_chart(run)))
    assert {"33.2", "w8a8", "red apple\ndefault"} <= set(texts(recipes_chart(run)))


def test_the_page_of_two_models_holds_their_figures_and_charts(two_models: Path) -> None:
    page = write_report(two_models)[1].read_text()
    assert page.count("data:image/svg+xml") == 2
    assert "0.1250" in page
    assert "45.0 dB" in page
    assert "artifact on disk" not in page
    assert (two_models / "recipes.png").is_file()
    assert np.asarray(Image.open(two_models / "grid.png")).ndim == 3


def test_a_run_without_drift_and_layers_is_drawn_without_their_charts(run: Path) -> None:
    page = write_report(run)[1].read_text()
    assert "svg+xml" not in page
    assert "Drift" not in page
    assert drift_chart(read_run(run)) is None
    assert layers_chart(read_run(run)) is None


def test_equal_runs_give_equal_pages(two_models: Path) -> None:
    chart = svg_uri(drift_chart(read_run(two_models)))
    assert svg_uri(drift_chart(read_run(two_models))) == chart


def test_every_layer_is_in_a_table_too(two_models: Path) -> None:
    page = write_report(two_models)[1].read_text()
    assert page.count("<details>") == 2  # a model each
    assert "Every layer of the stressed model" in page
    for figure in ("33.0", "27.0"):
        assert page.count(f'<td class="number">{figure}</td>') == 2


def test_a_search_is_shown_where_it_is_given(run: Path, tmp_path: Path) -> None:
    folder = toy_runs.search(tmp_path)
    assert "Which bits where" not in write_report(run)[1].read_text()
    page = write_report(run, search=folder)[1].read_text()
    assert page.count("data:image/svg+xml") == 2  # sensitivities, and quality over size
    assert "A search for 6 bits from w4a8" in page
    rows = re.findall(r"<tr><td>(?:uniform|milp)</td>.*", page)
    assert [re.findall(r">([^<]+)</td>", row) for row in rows] == [
        ["uniform", "4", "4.00", "4.00 MB", "30.50 dB", "0.1250"],
        ["milp", "6", "6.00", "6.00 MB", "35.25 dB", "0.1250"],
        ["uniform", "8", "8.00", "8.00 MB", "inf", "0.1250"],
    ]


@pytest.fixture
def videos(run: Path) -> Path:
    return toy_runs.videos(run)


def test_videos_play_side_by_side_without_loss_and_lie_frame_by_frame(videos: Path) -> None:
    page = write_report(videos)[1].read_text()
    shown = [base64.b64decode(data) for data in re.findall(r'src="data:image/webp;base64,([^"]+)"', page)]
    samples = read_run(videos).pictures
    expected = [samples[variant][i] for i in range(3) for variant in VARIANTS]
    assert len(shown) == len(expected)
    for data, video in zip(shown, expected, strict=True):
        animated = Image.open(io.BytesIO(data))
        for i, frame in enumerate(video):
            animated.seek(i)
            np.testing.assert_array_equal(np.asarray(animated.convert("RGB")), frame)
    strips = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(strips[0]))))
    assert sheet.shape == (2 * (18 + 128), 3 * 128, 3)
    np.testing.assert_array_equal(sheet[18 : 18 + 128 : 16, ::16], np.concatenate([*samples["float"][0]], 1))
    assert "flicker, levels" in page
    assert "0.125" in page
    assert (videos / "strips.png").is_file()


def test_one_video_may_lie_beside_pictures(run: Path) -> None:
    records = json.loads((run / "metrics.json").read_text())
    temporal = ("frame_consistency", "flicker_levels", "warping_error_levels", "motion_error_px")
    variants = {}
    for variant in VARIANTS:
        folder = run / "videos" / variant
        folder.mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (8, 24, 3), np.uint8)).save(folder / "0.png")
        entry = {"index": 0, "condition": "pizza spinning", "file": "0.png", "frames": 3}
        (folder / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
        figures = {"psnr_db": None if variant == "float" else 41.5, **dict.fromkeys(temporal, 0.375)}
        variants[variant] = {"pictures": f"videos/{variant}", **figures}
    records["video"] = {"condition": "pizza spinning", "fps": 8.0, "variants": variants}
    (run / "metrics.json").write_text(json.dumps(records))
    page = write_report(run)[1].read_text()
    assert page.count("data:image/webp;base64,") == len(VARIANTS)
    assert all(word in page for word in ("pizza spinning", "41.50 dB", "0.375", "motion error, pixels"))
