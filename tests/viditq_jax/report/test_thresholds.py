import pytest

from viditq_jax.report import BelowThresholdError, check_thresholds, parse_thresholds

RECORDS = {
    "variants": {
        "float": {"psnr_db": None, "ssim": None, "latent_rel_l2": 0.0, "pictures": "float"},
        "good": {"psnr_db": 40.0, "ssim": 0.99, "latent_rel_l2": 0.01, "pictures": "good"},
        "bad": {"psnr_db": 29.9, "ssim": 0.8, "latent_rel_l2": 0.2, "pictures": "bad"},
    }
}


def test_thresholds_are_a_name_and_a_number() -> None:
    assert parse_thresholds(("psnr_db=30", "ssim=0.9")) == {"psnr_db": 30.0, "ssim": 0.9}
    for text in ("psnr_db", "psnr_db=", "psnr_db=high", "=x", "psnr_db=nan", "psnr_db=inf"):
        with pytest.raises(ValueError, match="is no threshold"):
            parse_thresholds((text,))


def test_a_threshold_that_is_reached_exactly_is_no_fault() -> None:
    check_thresholds(RECORDS, {"psnr_db": 29.9, "ssim": 0.8, "latent_rel_l2": 0.2})


def test_every_variant_and_measure_that_is_worse_is_named() -> None:
    with pytest.raises(BelowThresholdError) as found:
        check_thresholds(RECORDS, {"psnr_db": 30.0, "ssim": 0.9, "latent_rel_l2": 0.1})
    text = str(found.value)
    assert text.startswith("1 of 3 variants are worse than asked")
    assert "bad: psnr_db 29.9 is below 30" in text
    assert "bad: ssim 0.8 is below 0.9" in text
    assert "bad: latent_rel_l2 0.2 is above 0.1" in text
    assert "good" not in text


def test_sizes_must_not_be_above_and_a_measure_that_a_variant_lacks_is_a_fault() -> None:
    records = {"variants": {"small": {"weight_bytes_vs_bfloat16": 0.27}, "other": {"psnr_db": 30.0}}}
    with pytest.raises(
        BelowThresholdError, match=r"1 of 2 .*: other: weight_bytes_vs_bfloat16 was not measured"
    ):
        check_thresholds(records, {"weight_bytes_vs_bfloat16": 0.3})


def test_a_measure_that_the_run_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no variant has the measure lpips; this run has .*psnr_db"):
        check_thresholds(RECORDS, {"lpips": 0.1})
