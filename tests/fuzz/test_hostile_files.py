"""Files that are made to harm: small ones that would take memory, time, or a program to read."""

import contextlib
import gzip
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit._json import read_json
from prunekit.checkpoint import tensors
from prunekit.checkpoint.tensors import load_state, safetensors_shapes
from prunekit.cli.app import main
from prunekit.data import load_images
from prunekit.data.pictures import read_picture
from prunekit.errors import FileFormatError, LimitError, PrunekitError, UnsafeFileError
from prunekit.limits import raise_limit
from prunekit.recipe import load_recipe
from prunekit.training.checkpoints import latest_checkpoint, save_checkpoint


def refused(read, error=FileFormatError, match="."):
    """It is refused with little memory and time."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(error, match=match) as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
        assert time.monotonic() - began < 10
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *extra):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = zlib.compress(b"\0" * min((3 * width + 1) * height, 10**6))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_png_of_a_billion_pixels_is_refused_by_the_limits_name(tmp_path):
    (tmp_path / "x.png").write_bytes(png(40_000, 40_000))
    refused(lambda: read_picture(tmp_path / "x.png"), LimitError, "picture-pixels")


@pytest.mark.slow
def test_a_picture_above_pillows_own_limit_is_read(tmp_path):
    """190 megapixels, as scans have; Pillow alone refuses them."""
    Image.new("L", (14_000, 13_600), 7).save(tmp_path / "x.png", compress_level=1)
    assert (read_picture(tmp_path / "x.png", 16) == 7).all()


def test_a_text_bomb_in_a_png_is_refused_or_skipped(tmp_path):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 50_000_000))
    (tmp_path / "x.png").write_bytes(png(4, 4, text))
    refused(lambda: read_picture(tmp_path / "x.png"))


def test_an_eps_under_a_pictures_name_starts_no_program(tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) print\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(eps)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "EPS"  # so it is one that Pillow knows
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    refused(lambda: read_picture(tmp_path / "a.png"), match="broken picture")


def test_a_jpeg_of_a_thousand_scans_is_refused_by_the_limits_name(tmp_path):
    """Each scan takes as long as the whole picture, and as few bytes as a line."""
    Image.effect_noise((64, 64), 80).save(tmp_path / "x.jpg", progressive=True)
    assert read_picture(tmp_path / "x.jpg").shape == (64, 64, 1)
    content = (tmp_path / "x.jpg").read_bytes()
    last = content[content.rfind(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(content[:-2] + 1000 * last + content[-2:])
    refused(lambda: read_picture(tmp_path / "x.jpg"), LimitError, "jpeg-scans")


def test_a_deep_grey_picture_takes_no_eight_bytes_a_pixel(tmp_path):
    deep = np.full((3000, 3000), 514, np.uint16)
    Image.fromarray(deep).save(tmp_path / "x.png", compress_level=1)
    tracemalloc.start()
    assert (read_picture(tmp_path / "x.png", 16) == 2).all()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5 * deep.size  # the pixels as numpy sees them, and as bytes


def npz(path, header, content=b"", level=9):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        archive.writestr("images.npy", header + content)


def npy_header(shape, descr="|u1"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_an_npz_that_unpacks_to_more_than_the_limit_is_refused_until_it_is_raised(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_LIMITS", "unpacked-bytes=1000000")
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((2000, 32, 32), np.uint8))
    refused(lambda: load_images(str(tmp_path / "x.npz")), LimitError, "unpacked-bytes")
    raise_limit("unpacked-bytes", 10_000_000)
    assert len(load_images(str(tmp_path / "x.npz")).train) > 1000


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused_by_the_ratio(tmp_path):
    shape = (400_000, 32, 32, 1)
    archive = zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("images.npy", "w") as member:
        member.write(npy_header(shape))
        for _ in range(400):
            member.write(bytes(1_024_000))
    refused(lambda: load_images(str(tmp_path / "x.npz")), LimitError, "unpacked-ratio")


@pytest.mark.parametrize("shape", [(10**9, 64, 64), (2**40, 2**30, 4), (-4, -4, 4), (2**63, 8, 8)])
def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path, shape):
    npz(tmp_path / "x.npz", npy_header(shape))
    (tmp_path / "x.npy").write_bytes(npy_header(shape))
    refused(lambda: load_images(str(tmp_path / "x.npz")))
    refused(lambda: load_images(str(tmp_path / "x.npy")))


@pytest.mark.parametrize(
    "header",
    [b"{'descr': '|u1', 'fortran_order': False, 'shape': (", b"(" * 5000, b"{'descr': " + b"9" * 9000, b"\xff" * 40],
)
def test_a_header_that_is_no_python_is_refused(tmp_path, header):
    text = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "x.npy").write_bytes(text)
    npz(tmp_path / "x.npz", text)
    refused(lambda: load_images(str(tmp_path / "x.npy")))
    refused(lambda: load_images(str(tmp_path / "x.npz")))


@pytest.mark.parametrize(("place", "value"), [(6, 1), (8, 12), (8, 93)])
def test_an_npz_with_unusual_flags_or_compression_is_refused(tmp_path, place, value):
    """Encrypted; bzip2; Zstandard, which Python does not know."""
    npz(tmp_path / "x.npz", npy_header((4, 8, 8)), bytes(256))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[place] = value
    content[content.rfind(b"PK\x01\x02") + place + 2] = value
    (tmp_path / "x.npz").write_bytes(content)
    refused(lambda: load_images(str(tmp_path / "x.npz")), match="encrypted or of an unusual compression|no readable")


def test_an_archive_with_a_million_files_is_refused_by_its_directory(tmp_path):
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    directory = entry * 400_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(directory), 0, 0)
    (tmp_path / "x.npz").write_bytes(directory + end)
    refused(lambda: load_images(str(tmp_path / "x.npz")), LimitError, "zip-directory-bytes")


def test_a_gzipped_idx_bomb_is_read_no_further_than_its_header_says(tmp_path):
    header = struct.pack(">4I", 0x803, 2, 4, 4)
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(100_000_000), compresslevel=1))
    refused(lambda: load_images(str(tmp_path / "x-idx3-ubyte.gz")))
    (tmp_path / "y-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4I", 0x803, 2**20, 2**10, 2**10)))
    refused(lambda: load_images(str(tmp_path / "y-idx3-ubyte.gz")), LimitError, "unpacked-bytes")


def test_a_pickle_of_a_million_nested_tuples_is_refused_by_the_limits_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N" + b"\x85" * 3_000_000 + b".")
    refused(lambda: load_state(tmp_path / "x.pt"), LimitError, "pickle-containers")


def test_dicts_that_are_in_more_places_than_can_be_visited_are_refused(tmp_path):
    aliased = {"t": torch.zeros(1)}
    for _ in range(30):
        aliased = {"a": aliased, "b": [aliased, aliased]}
    deep = {"t": torch.zeros(1)}
    for _ in range(200):
        deep = {"k" * 1000: deep}
    wide = {"l": [[{"t": torch.zeros(1)}] * 20_000] * 20_000}
    for content in (aliased, deep, wide):
        torch.save(content, tmp_path / "x.pt")
        refused(lambda: load_state(tmp_path / "x.pt"), FileFormatError, "save the network's state dict by itself")


def test_a_dict_that_holds_itself_is_entered_once(tmp_path):
    circle = {"w": torch.zeros(1), "ema": [torch.ones(1)]}
    circle["self"] = [circle, {"again": circle}]
    torch.save({"model": circle}, tmp_path / "x.pt")
    refused(lambda: load_state(tmp_path / "x.pt"), FileFormatError, "a list without names")
    del circle["ema"]
    torch.save({"model": circle}, tmp_path / "x.pt")
    assert set(load_state(tmp_path / "x.pt")[1]) == {"w"}


def test_names_in_a_file_break_no_message(tmp_path):
    """A second line could be taken for prunekit's own word."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("images\nDone: all is well.\x1b[2J.npy", b"no array")
    refused(lambda: load_images(str(tmp_path / "x.npz")))
    folder = tmp_path / "x\ny\u2028z"
    folder.mkdir()
    (folder / "x.json").write_text("[]")
    refused(lambda: read_json(folder / "x.json"), match=r"x\\ny\\u2028z")


def test_a_pipe_named_as_a_checkpoint_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / f"step-00000009-{'a' * 16}.pt")
    assert latest_checkpoint(tmp_path) is None


def test_a_whole_checkpoint_above_a_limit_is_refused_by_its_name(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 3, {"weights": torch.zeros(4)})
    monkeypatch.setenv("PRUNEKIT_LIMITS", "pickle-bytes=10")
    with pytest.raises(LimitError, match="pickle-bytes"):
        latest_checkpoint(tmp_path)


def test_a_safetensors_header_of_900_000_empty_tensors_is_refused_by_the_limits_name(tmp_path):
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(900_000))
    header = f"{{{entries}}}".encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    del entries, header
    for read in (safetensors_shapes, load_state, lambda path: load_images(str(path))):
        refused(lambda read=read: read(tmp_path / "x.safetensors"), LimitError, "safetensors-header-bytes")


def test_a_second_pickle_is_no_decoy_for_the_one_that_torch_reads(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        content = {name: good.read(name) for name in good.namelist()}
    top = next(iter(content)).partition("/")[0]
    for decoy in ("decoy/data.pkl", f"{top}/sub/data.pkl", f"{top}/DATA.PKL"):
        with zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_STORED) as bad:
            bad.writestr(decoy, content[f"{top}/data.pkl"])
            for name, value in content.items():
                bad.writestr(name, value)
        refused(lambda: load_state(tmp_path / "bad.pt"))


def test_a_pickle_of_many_empty_containers_is_refused_by_the_limits_name(tmp_path):
    for name, old in (("new.pt", False), ("old.pt", True)):
        torch.save({"weight": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=not old)
        bomb = b"\x80\x02]" + b"(" + b"}" * 3_000_000 + b"e."
        if old:
            (tmp_path / name).write_bytes(bomb)
        else:
            with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("archive/data.pkl", bomb)
                archive.writestr("archive/version", "3\n")
        refused(lambda name=name: load_state(tmp_path / name), LimitError, "pickle-containers")


def test_a_torch_with_known_holes_reads_no_pickle(tmp_path, monkeypatch):
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt")
    monkeypatch.setattr(tensors.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UnsafeFileError, match=r"install torch 2\.10 or newer"):
        load_state(tmp_path / "x.pt")


def aliases(levels):
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        aliases(9),
        aliases(40),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "- " * 5000 + "x",
        "[" * 20_000,
        "name: 2024-13-45",
        "name: 2024-01-01 99:99:99",
        "seed: " + "9" * 5000,
        "x: 0b" + "1" * 5000,
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "<<: [1, 2]",
        "x: !!python/object/apply:os.system [true]",
        "name: \ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "x: .nan",
        "\x00",
        "a: b: c",
        "%YAML 9.9\n---\na: 1",
        "a: 1\n---\nb: 2",
    ],
)
def test_a_hostile_recipe_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    refused(lambda: load_recipe(tmp_path / "x.yaml"), PrunekitError)


def test_a_recipe_of_a_megabyte_is_refused_by_the_limits_name(tmp_path):
    (tmp_path / "x.yaml").write_text("a: " + "x" * 1_000_000)
    refused(lambda: load_recipe(tmp_path / "x.yaml"), LimitError, "yaml-bytes")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 1, 2**64 - 1, 3], np.uint64), "expected a whole number"),
        (np.array([0, 1, 2, 2**40], np.int64), "expected a whole number"),
        (np.array([0.0, 1.0, np.nan, 3.0]), "expected a whole number"),
    ],
)
def test_classes_that_would_wrap_are_refused(tmp_path, labels, said):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=labels)
    with pytest.raises(FileFormatError, match=said):
        load_images(str(tmp_path / "x.npz"), labels=True)


def test_latents_that_are_not_finite_are_named_by_their_row(tmp_path):
    latents = np.zeros((6, 4, 8, 8), np.float32)
    latents[4, 1, 2, 3] = np.nan
    np.savez(tmp_path / "x.npz", images=latents)
    with pytest.raises(FileFormatError, match=r"Row 4 of .* is not finite"):
        load_images(str(tmp_path / "x.npz"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("x.npy", "x.npz", "x-idx3-ubyte", "x.yaml", "x.pt", "x.safetensors"):
        os.mkfifo(tmp_path / name)
    for name in ("x.npy", "x.npz", "x-idx3-ubyte"):
        refused(lambda name=name: load_images(str(tmp_path / name)), PrunekitError)
    refused(lambda: load_recipe(tmp_path / "x.yaml"), PrunekitError)
    for name in ("x.pt", "x.safetensors"):
        refused(lambda name=name: load_state(tmp_path / name), PrunekitError)


def test_a_terminal_that_knows_ascii_only_gets_an_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prunekit", "allocate", "--budget", "0.8"])
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(screen), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    screen.flush()
    assert b"?" in screen.buffer.getvalue()
    assert (tmp_path / "allocation.json").is_file()


def test_the_command_line_says_how_to_raise_a_limit_and_raises_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRUNEKIT_LIMITS", "yaml-values=3")
    (tmp_path / "x.yaml").write_text("name: x\nbase: {checkpoint: 'embedded:digits'}\n")

    def said(*options):
        monkeypatch.setattr(
            sys, "argv", ["prunekit", *options, "run", str(tmp_path / "x.yaml"), "--output", "/dev/null/x"]
        )
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "prunekit --limit yaml-values=7 in front of the command" in said()
    assert "yaml-values" not in said("--limit", "yaml-values=7")
    assert "There is no limit 'nonsense'" in said("--limit", "nonsense=7")
