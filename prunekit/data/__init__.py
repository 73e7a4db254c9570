"""Real images: shipped ones, pictures in folders, zips and datasets, mapped arrays, idx files, latents of a codec."""

from prunekit.data.encoded_writer import EncodedWriter
from prunekit.data.encoding_head import Encoding
from prunekit.data.images import ImageData, ImageSplit
from prunekit.data.places import note_place, noted_places
from prunekit.data.sizes import Resolution, as_resolution, size_text
from prunekit.data.sources import as_images, load_images

__all__ = [
    "EncodedWriter",
    "Encoding",
    "ImageData",
    "ImageSplit",
    "Resolution",
    "as_images",
    "as_resolution",
    "load_images",
    "note_place",
    "noted_places",
    "size_text",
]
