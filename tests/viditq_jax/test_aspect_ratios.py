import pytest
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma

from viditq_jax.aspect_ratios import ASPECT_RATIOS, nearest_bin

THEIRS = {
    256: pipeline_pixart_alpha.ASPECT_RATIO_256_BIN,
    512: pipeline_pixart_alpha.ASPECT_RATIO_512_BIN,
    1024: pipeline_pixart_alpha.ASPECT_RATIO_1024_BIN,
    2048: pipeline_pixart_sigma.ASPECT_RATIO_2048_BIN,
}
# diffusers leaves these out below 2048; the released code has them at every size.
LEFT_OUT = {0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88}


@pytest.mark.parametrize("pixels", ASPECT_RATIOS)
def test_sizes_are_those_of_diffusers_and_the_ones_it_leaves_out(pixels):
    ours = {found.aspect: (found.height, found.width) for found in ASPECT_RATIOS[pixels]}
    theirs = {float(label): (int(size[0]), int(size[1])) for label, size in THEIRS[pixels].items()}
    assert {label: ours[label] for label in theirs} == theirs
    assert ours.keys() - theirs.keys() == (LEFT_OUT if pixels < 2048 else set())


@pytest.mark.parametrize("pixels", ASPECT_RATIOS)
def test_sizes_have_about_the_area_and_the_ratio_that_they_stand_for(pixels):
    for found in ASPECT_RATIOS[pixels]:
        assert abs(found.height * found.width / pixels**2 - 1) < 0.15
        assert abs(found.height / found.width / found.aspect - 1) < 0.03
        assert found.height * 64 % pixels == found.width * 64 % pixels == 0


def test_nearest_bin_is_nearest_by_label():
    assert nearest_bin(720, 1280, 1024) == (0.57, 768, 1344)
    assert nearest_bin(1000, 1000, 512) == (1.0, 512, 512)
    assert nearest_bin(10_000, 1, 256) == (4.0, 512, 128)


def test_sizes_without_bins_are_refused():
    with pytest.raises(ValueError, match="choose one of 256, 512, 1024, 2048"):
        nearest_bin(8, 8, 640)
    with pytest.raises(ValueError, match="not positive"):
        nearest_bin(0, 8)
