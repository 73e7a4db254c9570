"""How similar models of the digits are for the same noise: other seeds, another width, no training, and the demo's experts.

The embedded base (6,000 train steps) is compared with a second seed of 1,500 steps, with the demo's five experts, and with an
untrained network. The second seed is compared with a third, and with a network of half the width. The trainings and the demo are
ordinary runs in a folder, so they resume. They take about a quarter of an hour on one core, and the measurements four minutes.
Writes reports/consistency: python benchmarks/consistency.py [--quick] [--runs FOLDER]
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _manifest import REPORTS, markdown_table, publish

from prunekit._files import atomic_path
from prunekit.checkpoint import Base, save_base
from prunekit.consistency import ConsistencyOptions
from prunekit.recipe import Recipe, load_recipe
from prunekit.runs.experts_run import Run
from prunekit.schedule import Parameterization
from prunekit.steps.bases import open_base
from prunekit.steps.opening import open_model
from prunekit.steps.two_models import Compared, compare, write_comparison

ROOT = Path(__file__).resolve().parents[1]
BASE = "base, seed 0, 6,000 steps"
STEPS = 1500
NARROW = {"block_out_channels": [16, 32]}
PICTURED = {"seeds": 0, "experts": 4}  # comparisons that are published whole
TEXT = """# Same noise, other model: how alike the images are

{count} pairs from the same initial noise, {steps} steps of {sampler}, on the embedded digits (8×8 pixels). SSIM with
a {window}×{window} Gaussian window (σ = {sigma:.2f}; the usual 11×11 does not fit), data range 1; Pearson's
correlation over a pair's pixels; mean squared difference of images in 0 … 1. Shuffled pairs are of the same images
with other partners: what two images of this data have in common anyway. Mean ± standard error over pairs; one seed of
the noise and one training of each network. Made by `python benchmarks/consistency.py`.

## Finished images
{images}
The other networks were trained for {trained:,} steps instead of the base's 6,000, on the same 1,498 images. `half the
width` has {narrow} instead of {wide} channels. The untrained network is the control: what equal noise and an equal
sampler alone make alike. All networks were trained on the same few images; how much of the
similarity comes from that was not measured.

## Along the way
Predictions of the clean image at some of the evaluations, the base and seed 1, each on its own trajectory; the last
column is seed 1 asked about the *base's* states.

{along}
Shuffled pairs are similar in the middle, where a prediction is hardly more than the data's mean image: a high
figure there means little by itself; compare it with the shuffled column. At the noisy end the predictions
differ most and matter least: a clean image read from predicted noise multiplies the error of the prediction by b/a, which is 51 at
t = 880 and 130 at t = 980, and in the next state the sampler multiplies it by a, which is as small. [Pairs](seeds/pairs.png),
[curves](seeds/curves.png).

## Seams of the demo's experts
At the first timestep of the noisier group both neighbours are asked about the same state. Differences are root mean
squares over the pixels of the predicted clean image, in 0 … 1; `ratio` is the jump over the mean of both experts'
differences from the base: 0 for no jump, √2 where the two deviate from the base as unrelated ones would, 2 at most.

{seams}
The experts' own trajectories; every figure is of {count} states. [Pairs](experts/pairs.png),
[curves](experts/curves.png).
"""


def seeded(name: str, seed: int, steps: int, config: dict[str, Any] | None = None) -> Recipe:
    """The recipe of the embedded base with another seed and length, and another architecture if given."""
    recipe = load_recipe(ROOT / "recipes" / "digits-base.yaml")
    model = dict(recipe.base.model or {})
    model["config"] = {**model["config"], **(config or {})}
    train = replace(recipe.base.train, seed=seed, steps=steps)
    return recipe.model_copy(update={"name": f"{name}-{steps}", "base": replace(recipe.base, model=model, train=train)})


def made(runs: Path, steps: int) -> dict[str, str]:
    """Every model by its name in the tables: trained now, or loaded from an earlier training."""
    recipes = [seeded("seed-1", 1, steps), seeded("seed-2", 2, steps), seeded("narrow", 2, steps, NARROW)]
    for recipe in (*recipes, load_recipe(ROOT / "recipes" / "digits-demo.yaml")):
        print(recipe.name, flush=True)
        Run(recipe, runs / recipe.name.removeprefix("digits-")).execute()
    untrained = open_base("embedded:digits")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        save_base(
            Base(untrained.spec.build(), untrained.spec, Parameterization(untrained.schedule)), runs / "untrained.pt"
        )
    return {
        BASE: "embedded:digits",
        f"seed 1, {steps:,} steps": str(runs / f"seed-1-{steps}" / "base.pt"),
        f"seed 2, {steps:,} steps": str(runs / f"seed-2-{steps}" / "base.pt"),
        f"half the width, seed 2, {steps:,} steps": str(runs / f"narrow-{steps}" / "base.pt"),
        "untrained": str(runs / "untrained.pt"),
        "the demo's experts": str(runs / "demo" / "experts"),
    }


def estimate(found: dict[str, Any], form: str = ".3f") -> str:
    """Mean ± standard error."""
    return "–" if found["mean"] is None else f"{found['mean']:{form}} ± {found['se']:{form}}"


def image_row(compared: Compared) -> list[str]:
    models, images = compared.data.to_json()["models"], compared.data.to_json()["images"]
    measures = ("ssim", "correlation", "mse")
    cells = [estimate(images[kind][measure]) for measure in measures for kind in ("same", "shuffled")]
    return [f"{models['a']['name']} / {models['b']['name']}", *cells]


def step_rows(compared: Compared) -> list[list[str]]:
    steps = compared.data.to_json()["steps"]
    return [
        [
            f"{step['timestep']:g}",
            *(estimate(step[kind][measure]) for measure in ("ssim", "correlation") for kind in ("same", "shuffled")),
            estimate(step["forced"]["ssim"]),
        ]
        for step in steps[:: max(1, len(steps) // 10)]
    ]


def seam_rows(compared: Compared) -> list[list[str]]:
    return [
        [
            f"{seam['groups'][0]} and {seam['groups'][1]}",
            str(seam["timestep"]),
            *(estimate(seam[name], ".4f") for name in ("jump", "cleaner", "noisier")),
            estimate(seam["ratio"], ".2f"),
        ]
        for seam in compared.data.to_json()["seams"]
    ]


def write_text(found: list[Compared], trained: int, folder: Path) -> None:
    """The tables, with their captions."""
    settings, ssim = found[0].data.to_json()["settings"], found[0].data.to_json()["ssim"]
    kinds = [f"{name}{of}" for name in ("SSIM", "correlation", "MSE") for of in ("", ", shuffled")]
    along = ["t", *kinds[:4], "SSIM on the base's states"]
    seams = ["groups", "t", "jump", "cleaner expert from the base", "noisier expert from the base", "ratio"]
    wide = (load_recipe(ROOT / "recipes" / "digits-base.yaml").base.model or {})["config"]["block_out_channels"]
    text = TEXT.format(
        **{key: settings[key] for key in ("count", "steps", "sampler")},
        **{key: ssim[key] for key in ("sigma", "window")},
        trained=trained,
        narrow=" and ".join(map(str, NARROW["block_out_channels"])),
        wide=" and ".join(map(str, wide)),
        images=markdown_table(["models", *kinds], [image_row(compared) for compared in found]),
        along=markdown_table(along, step_rows(found[PICTURED["seeds"]])),
        seams=markdown_table(seams, seam_rows(found[PICTURED["experts"]])),
    )
    with atomic_path(folder / "consistency.md") as part:
        part.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short trainings, few pairs and steps")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "consistency", help="where trainings are kept")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "consistency")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 3 if options.quick else STEPS
    models = made(options.runs, steps)
    base, one, two, narrow, untrained, experts = models
    asked = ConsistencyOptions(count=8, steps=10) if options.quick else ConsistencyOptions(count=256, batch_size=128)
    found = []
    for pair in ((base, one), (one, two), (one, narrow), (base, untrained), (base, experts)):
        a, b = (open_model(models[name]) for name in pair)
        found.append(compare(a, b, pair, asked))
    for name, number in PICTURED.items():
        write_comparison(found[number], options.output / name)
    comparisons = [
        {k: compared.data.to_json()[k] for k in ("models", "settings", "images", "seams")} for compared in found
    ]
    write_text(found, steps, options.output)
    publish("consistency", {"threads": torch.get_num_threads(), "comparisons": comparisons}, options.output)


if __name__ == "__main__":
    main()
