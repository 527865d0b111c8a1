"""Records of `benchmarks/quality.py` as tables: for the README, and for the page of a run."""

from collections.abc import Mapping
from typing import Any

from viditq_jax.report.markdown import markdown_table

TITLES = {  # figures of a record, how tables call them, and digits
    "fid_to_real": ("FID to the drawings", 3),
    "fid_to_reference": ("FID to the reference", 3),
    "perceptual_to_real": ("perceptual, nearest drawing", 4),
    "perceptual_share_percent": ("perceptual, % of other noise", 2),
    "alignment": ("alignment", 2),
}
WORSE = {  # degradations
    "fid_to_real": "FID worse by",
    "perceptual_to_real": "perceptual worse by",
    "alignment": "alignment worse by",
}
_SAYS = {
    "yes": "is worse by less than 1%, if at all",
    "no": "is worse by 1% or more",
    "undecided": "may be worse by more or less than 1%: its interval holds 1%",
}

Record = Mapping[str, Any]


def quality_rows(record: Record) -> tuple[list[str], list[list[str]]]:
    """Titles, and a row a variant: figures with their intervals, and how much worse than the baseline."""
    head = ["variant", *(title for title, _ in TITLES.values()), *WORSE.values()]
    rows = []
    for name, found in record["variants"].items():
        cells = [_cell(found.get(key), digits) for key, (_, digits) in TITLES.items()]
        worse = found.get("degradation_percent", {})
        rows.append([name, *cells, *(_cell(worse.get(key), 2, "%") for key in WORSE)])
    return head, rows


def verdicts(record: Record) -> list[str]:
    """For each variant a sentence: which of its degradations are below 1 %, by their intervals."""
    sentences = []
    for name, found in record["variants"].items():
        parts = [
            f"{title.removesuffix(' worse by')} {_SAYS[found['degradation_percent'][key]['below_1_percent']]}"
            for key, title in WORSE.items()
            if key in found.get("degradation_percent", {})
        ]
        if parts:
            sentences.append(f"{name}: {'; '.join(parts)}.")
    return sentences


def quality_section(record: Record) -> str:
    """The section of the README."""
    head, rows = quality_rows(record)
    rows = [[f"`{row[0]}`" if row[0].startswith("w") else row[0], *row[1:]] for row in rows]
    each = record["pictures"] // record["prompts"]
    made = (
        f"{record['pictures']} pictures a variant, {record['prompts']} packaged prompts of {each} each, "
        f"{record['steps']} steps, guidance {record['guidance']:g}; reference {record['reference']}, "
        f"degradation against {record['baseline']}. In brackets intervals of 95%, by {record['resamples']} "
        f"resamples within prompts, paired between variants. {record['device_name']}, jax "
        f"{record['versions']['jax']}, {record['date']}."
    )
    return "\n\n".join(
        [made, markdown_table(head, rows), "\n".join(f"- {line}" for line in verdicts(record))]
    )


def _cell(figure: Mapping[str, float] | None, digits: int, unit: str = "") -> str:
    if figure is None:
        return ""
    value, low, high = (f"{figure[key]:z.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"
