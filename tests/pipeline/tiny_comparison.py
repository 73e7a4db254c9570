"""What the tests of recipes that compare have in common: a tiny network to train, and a recipe from a dictionary."""

import json

import yaml
from networks import UNET_CONFIG

from prunekit.recipe import load_recipe

TINY_MODEL = {
    "class": "UNet2DModel",
    "config": {
        **json.loads(json.dumps(UNET_CONFIG)),  # lists for YAML
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "add_attention": False,
    },
}
TINY_SCHEDULE = {"kind": "linear", "num_timesteps": 50}


def recipe_of(folder, data):
    """A recipe as a user gives it: by a file, here in a folder."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_recipe(path)
