"""How the sampler carries an error of each timestep group into the sample: where it is measured, and how large the noise is.

The embedded bases with DDIM, five uniform groups. Diffusers' DDIM clamps the predicted clean image to −1 … 1; `nothing clamped` is
the same sampler without this. Writes reports/search/sensitivity.json and .md: python benchmarks/sensitivity.py
"""

from typing import Any

import torch
from _manifest import REPORTS, markdown_table, publish

from prunekit._files import atomic_path
from prunekit.allocation import Sensitivity
from prunekit.groups import make_groups
from prunekit.sampling import make_sampler
from prunekit.sampling.disturbances import SensitivityOptions
from prunekit.steps.bases import open_base
from prunekit.steps.image_choice import images_of
from prunekit.steps.measuring_sensitivity import Sampled, chosen_measure, measure_sensitivity

FOLDER = REPORTS.parent / "search"
GROUPS, STEPS, COUNT = 5, 50, 128
WAYS = (  # where, size of the noise, whether the prediction is clamped
    ("pixels", 0.02, True),
    ("pixels", 0.002, True),
    ("pixels", 0.02, False),
    ("pixels", 0.002, False),
    ("features", 0.02, True),
    ("features", 0.002, True),
)


def measured(name: str, where: str, size: float, clamped: bool) -> Sensitivity:
    """The sensitivity of an embedded base."""
    base = open_base(f"embedded:{name}")
    shape = tuple(base.spec.example_inputs()["sample"].shape[1:])
    sampler = make_sampler("ddim", STEPS, base.parameterization, shape)
    sampler = sampler if clamped else sampler.for_latents()
    sampled = Sampled(base.model, name, base.spec, base.parameterization, sampler, "ddim", latent=False)
    measure = chosen_measure(where, False, False, "auto", lambda: images_of(base).train.images)
    groups = make_groups(base.schedule, count=GROUPS)
    options = SensitivityOptions(COUNT, size=size, batch_size=COUNT)
    return measure_sensitivity(sampled, groups, options, measure)


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in ("digits", "fashion"):
        for where, size, clamped in WAYS:
            found = measured(name, where, size, clamped)
            rows.append({"base": name, "in": where, "size": size, "clamped": clamped, "sensitivity": found.to_json()})
            print(name, where, size, clamped, [f"{group.amplification:.3g}" for group in found.groups], flush=True)
    publish("sensitivity", {"groups": GROUPS, "steps": STEPS, "samples": COUNT, "rows": rows}, FOLDER)
    with atomic_path(FOLDER / "sensitivity.md") as part:
        part.write_text(markdown(rows), encoding="utf-8")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    header = ["base, measured in, noise", *(f"group {index}" for index in range(GROUPS))]
    lines = []
    for row in rows:
        clamped = "" if row["clamped"] else ", nothing clamped"
        groups = row["sensitivity"]["groups"]
        lines.append(
            [
                f"{row['base']}, {row['in']}, {row['size']:g}{clamped}",
                *(f"{g['amplification']:.2g} ± {g['se']:.1g}" for g in groups),
            ]
        )
        if row["in"] == "pixels":
            lines.append(["the same at twice the noise, ratio", *(f"{group['linearity']:.2f}" for group in groups)])
    said = (
        "# How the sampler carries an error of each timestep group\n\n"
        f"White noise is added to every prediction in one group while DDIM draws {COUNT} samples in {STEPS} steps. The "
        "amplification is the mean square change of the sample, divided by the mean square of the noise that one prediction got, "
        "with its standard error over the samples. Group 0 is the cleanest. In features it is the squared distance, a sum; in "
        "pixels a mean. Noise is relative to the root mean square of each prediction. The ratio is that of the amplifications, 1 "
        "if the change of the sample is in proportion to the error. Made by `python benchmarks/sensitivity.py`.\n\n"
    )
    return said + markdown_table(header, lines)


if __name__ == "__main__":
    main()
