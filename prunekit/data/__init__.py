"""Real images: the embedded digits, folders of pictures, arrays that are mapped, MNIST-style idx files, latents of a codec."""

from prunekit.data.images import ImageData, ImageSplit
from prunekit.data.places import note_place, noted_places
from prunekit.data.sources import as_images, load_images

__all__ = ["ImageData", "ImageSplit", "as_images", "load_images", "note_place", "noted_places"]
