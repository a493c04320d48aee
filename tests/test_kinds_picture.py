"""Pictures: files and arrays of every usual layout as values in raster order, and back."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.errors import SegueError
from segue.kinds import KINDS, Record
from segue.kinds.base import HEAD, Problems
from segue.kinds.picture_form import FRAME, Form, decode_items, encode_frames, grid
from segue.testing.kinds import check_kind

images = pytest.importorskip("PIL.Image")
PICTURE = KINDS["picture"]


def image(seed: int = 0, height: int = 20, width: int = 16, mode: str = "RGB") -> np.ndarray:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def cifar(count: int, labels: int = 1) -> tuple[bytes, np.ndarray]:
    pictures = np.stack([image(i, 32, 32) for i in range(count)])
    rows = np.concatenate([np.full((count, labels), 9, np.uint8), pictures.transpose(0, 3, 1, 2).reshape(count, -1)], 1)
    return rows.tobytes(), pictures


def painted(record: Record) -> np.ndarray:
    form, frames = decode_items(record.object)
    return np.stack([form.render(frame) for frame in frames])


@given(sort=st.sampled_from(["grey", "rgb", "palette"]), levels=st.integers(2, 16), width=st.integers(1, 9),
       counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_written_pictures_round_trip(tmp_path_factory, sort, levels, width, counts, seed) -> None:  # type: ignore[no-untyped-def]
    form, draw = Form(sort, levels, width), np.random.default_rng(seed)
    frames = [draw.integers(0, form.values, count) for count in counts]
    obj = encode_frames(form, frames)
    assert [len(obj)] * 2 == [len(grid(form, frames)), 1 + sum(counts) + len(counts) - 1]
    path = tmp_path_factory.mktemp("written") / "a.png"
    PICTURE.write([obj], path)
    [record] = PICTURE.read(path)
    assert record.object == obj
    PICTURE.write([obj, Record(encode_frames(Form("grey", 256, 3), [np.arange(256)]), name="other")], path)
    first, second = PICTURE.read(path)
    assert first.object == obj and second.object[1:] == list(map(str, range(256))) and second.name == f"{path}:other"


def test_the_grid_gives_the_position_of_each_value() -> None:
    frames = [np.zeros(6, int), np.zeros(3, int)]
    assert grid(Form("grey", 8, 2), frames).tolist() == [
        [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1],
        [1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert grid(Form("rgb", 8, 2), frames)[1:7, 2].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("format", ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"])
def test_every_image_format_is_read(tmp_path: Path, format: str) -> None:
    smooth = np.linspace(0, 255, 20 * 16).reshape(20, 16).astype(np.uint8)
    path = tmp_path / f"a.{format}"
    images.fromarray(np.stack([smooth] * 3, 2)).save(path)
    data = segue.read(path, levels=256)
    assert data.kind is PICTURE and data[0].object[0] == "grey256:16" and len(data[0]) == 321
    assert np.abs(painted(data[0])[0].astype(int) - smooth).max() <= 12


def test_exact_values_of_each_sort(tmp_path: Path) -> None:
    picture = image()
    images.fromarray(picture).save(tmp_path / "a.png")
    [rgb] = PICTURE.read(tmp_path / "a.png", levels=256, colour="rgb")
    assert rgb.object == ["rgb256:16", *map(str, picture.reshape(-1))]
    [palette] = PICTURE.read(tmp_path / "a.png", levels=2, colour="palette")
    assert palette.object[1:] == [str(value) for value in ((picture > 127) @ [4, 2, 1]).reshape(-1)]
    [upper] = PICTURE.read(tmp_path / "a.png", levels=256, colour="rgb", rows=3)
    assert upper.object == rgb.object[: 1 + 3 * 16 * 3]
    [small] = PICTURE.read(tmp_path / "a.png", side=8, levels=256)
    assert small.object[0] == "grey256:8" and len(small) == 1 + 8 * 10


def test_transparent_rotated_16_bit_and_animated_pictures_are_read(tmp_path: Path) -> None:
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8, :, 3] = 255
    images.fromarray(clear).save(tmp_path / "clear.png")
    [record] = PICTURE.read(tmp_path / "clear.png")
    assert (painted(record)[0, :8] == 0).all() and (painted(record)[0, 8:] == 255).all()
    exif = images.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    images.fromarray(image(height=8)).save(tmp_path / "turned.jpg", exif=exif)
    [record] = PICTURE.read(tmp_path / "turned.jpg", side=0)
    assert record.object[0] == "grey8:8" and len(record) == 129
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    images.fromarray(deep).save(tmp_path / "deep.png")
    [record] = PICTURE.read(tmp_path / "deep.png", levels=256)
    assert record.object[1:] == list(map(str, range(256)))
    frames = [images.fromarray(np.full((16, 16), value, np.uint8)) for value in (0, 255, 0)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    [record] = PICTURE.read(tmp_path / "film.gif")
    assert record.object == ["grey8:16", *["0"] * 256, FRAME, *["7"] * 256, FRAME, *["0"] * 256]


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int16])
def test_arrays_of_few_levels_reach_white(tmp_path: Path, dtype: type) -> None:
    digits = np.random.default_rng(0).integers(0, 17, (20, 8, 8))
    np.save(tmp_path / "digits.npy", digits.astype(dtype))
    data = segue.read(tmp_path / "digits.npy", kind="picture", side=8, levels=17)
    assert [list(map(int, record.object[1:])) for record in data] == digits.reshape(20, -1).tolist()


def test_tables_whose_header_is_longer_than_the_look_at_a_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64 * 64))
    header = ",".join(["label", *(f"pixel_of_place_{i}" for i in range(pixels.shape[1]))])
    rows = "".join(f"{i},{','.join(map(str, row))}\n" for i, row in enumerate(pixels))
    assert len(header) > HEAD
    (tmp_path / "a.csv").write_text(f"{header}\n{rows}")
    data = segue.read(tmp_path / "a.csv", side=64, levels=256)
    assert data.kind is PICTURE and [list(map(int, record.object[1:])) for record in data] == pixels.tolist()


def test_mnist_arrays_are_read(tmp_path: Path) -> None:
    pictures = np.stack([image(i, 16, 16, "L") for i in range(5)])
    (tmp_path / "t-images.gz").write_bytes(gzip.compress(idx(pictures)))
    (tmp_path / "t-labels.gz").write_bytes(gzip.compress(idx(np.arange(5, dtype=np.uint8))))
    data = segue.read(tmp_path, levels=256)
    assert len(data) == 5 and not data.problems and data.name(4).endswith("t-images.gz:5 (class 4)")
    assert all((painted(record)[0] == picture).all() for record, picture in zip(data, pictures))
    assert data.channels.keys() == {"grid"}
    (tmp_path / "whole").write_bytes(idx((pictures / 255).astype(">f4"), 13))
    reread = segue.read(tmp_path / "whole", kind="picture", levels=256)
    assert [record.object for record in reread] == [record.object for record in data]
    (tmp_path / "cut").write_bytes(idx(pictures)[:700])
    problems = Problems()
    assert len(list(PICTURE.read(tmp_path / "cut", problems))) == 2
    assert "record 3: the file was cut: it has 684 of 1,280 values" in str(problems[0])


@pytest.mark.parametrize("labels", [1, 2])
def test_cifar_batches_are_read(tmp_path: Path, labels: int) -> None:
    raw, pictures = cifar(3, labels)
    (tmp_path / "data_batch_1.bin").write_bytes(raw if labels == 1 else raw.replace(b"\x09\x09", b"\x09\x63"))
    data = segue.read(tmp_path, side=0, levels=256, colour="rgb")
    assert len(data) == 3 and all((painted(record)[0] == picture).all() for record, picture in zip(data, pictures))


@pytest.mark.parametrize("layout, count, frames", [
    ((16, 16), 1, 1), ((4, 16, 16), 4, 1), ((16, 16, 3), 1, 1), ((4, 16, 16, 3), 4, 1), ((4, 3, 16, 16), 4, 1),
    ((4, 5, 16, 16), 4, 5), ((4, 5, 16, 16, 3), 4, 5), ((4, 16, 16, 1), 4, 1)])
def test_numpy_arrays_are_read(tmp_path: Path, layout: tuple[int, ...], count: int, frames: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, layout, dtype=np.uint8)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    np.savez(tmp_path / "b.npz", x=array, y=np.arange(count))
    data, packed = (
        segue.read(tmp_path / name, kind="picture", levels=256) for name in ("a.npy", "b.npz"))
    assert len(layout) == 2 or segue.read(tmp_path / "a.npy").kind is PICTURE
    assert len(data) == count and data[0].object.count(FRAME) == frames - 1
    assert [record.object for record in data] == [record.object for record in packed]
    if layout[-1] == 16 and layout[1] != 3:
        assert (painted(data[0]).reshape(-1) == array.reshape(count, -1)[0]).all()


@pytest.mark.parametrize("sort", ["uint8", "int64", "float32", "bool"])
def test_bitmaps_of_noughts_and_ones_are_read(tmp_path: Path, sort: str) -> None:
    array = np.array([[[0, 1], [1, 0]], [[0, 0], [0, 0]]]).astype(sort)
    np.save(tmp_path / "a.npy", array)
    data = segue.read(tmp_path / "a.npy", kind="picture", side=2, levels=2)
    assert [record.object for record in data] == [["grey2:2", *"0110"], ["grey2:2", *"0000"]]


@pytest.mark.parametrize("content", [b"P2\n# by hand\n2 2\n255\n0 255\n255 0\n", b"P5 2 2 255\n\x00\xff\xff\x00"])
def test_greymaps_in_every_spelling_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pgm").write_bytes(content)
    data = segue.read(tmp_path / "a.pgm", side=2, levels=2)
    assert data.kind is PICTURE and data[0].object == ["grey2:2", *"0110"]


def test_the_contract(tmp_path: Path) -> None:
    images.fromarray(image()).save(tmp_path / "a.png")
    images.fromarray(image(1)).save(tmp_path / "b.jpg")
    frames = [images.fromarray(image(i, mode="L")) for i in range(3)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    images.fromarray(image(2)).save(tmp_path / "d.bmp")
    (tmp_path / "e.gz").write_bytes(gzip.compress(idx(np.stack([image(i, 9, 9, "L") for i in range(30)]))))
    (tmp_path / "f").write_bytes(idx(np.stack([image(i, 9, 9, "L") for i in range(30)])))
    (tmp_path / "g.bin").write_bytes(cifar(3)[0])
    np.save(tmp_path / "h.npy", np.stack([image(i) for i in range(3)]))
    PICTURE.write([encode_frames(Form("rgb", 4, 5), [np.arange(40) % 4, np.arange(7) % 4])] * 3, tmp_path / "i.png")
    for path in sorted(tmp_path.iterdir()):
        check_kind(PICTURE, [path], mutations=25)
    check_kind(PICTURE, [tmp_path / "a.png"], mutations=5, side=8, levels=4, colour="palette")


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    images.fromarray(image(height=64, width=64)).save(path)
    for options, message in (({"colour": "blue"}, "choose from grey, rgb, palette"), ({"levels": 1}, "give 2 to 256"),
                             ({"levels": 17, "colour": "palette"}, "give 2 to 16"), ({"side": 9999}, "give 0 to 4096"),
                             ({"rows": 0}, "rows=0"), ({"depth": 8}, "no option 'depth'")):
        with pytest.raises(SegueError, match=message):
            segue.read(path, **options)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(SegueError, match=r"a\.png: no picture that can be read"):
        segue.read(path)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O'}")
    with pytest.raises(SegueError, match="no array that can be read"):
        list(PICTURE.read(tmp_path / "b.npy"))
    np.save(tmp_path / "c.npy", np.full((3, 4, 5), np.nan))
    with pytest.raises(SegueError, match="finite"):
        segue.read(tmp_path / "c.npy", kind="picture")
    images.fromarray(np.zeros((200, 2), np.uint8)).save(tmp_path / "thin.png")
    with pytest.raises(SegueError, match="64 times as high as wide"):
        segue.read(tmp_path / "thin.png")
    with pytest.raises(SegueError, match="item 3, '8', is no value of grey8:16"):
        PICTURE.normalise("grey8:16 7 8")
    with pytest.raises(SegueError, match="begins with its sort"):
        PICTURE.normalise("1 2")
    assert PICTURE.normalise("1, 2", {"grey8:16", "0", FRAME}) == ["grey8:16", "1", "2"]


def test_text_with_pictures_beside_it_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("What the pictures show is said here. " * 200)
    images.fromarray(image(height=64, width=64)).save(tmp_path / "a.png")
    assert segue.read(tmp_path).kind.name == "text"


def test_blocks_are_shown() -> None:
    frames = [np.array([0, 7] * 8), np.full(16, 7), np.array([3])]
    lines = PICTURE.show(encode_frames(Form("grey", 8, 4), frames)).split("\n")
    assert lines[0] == "··██··██  ████████  ▒▒······" and len(lines) == 4
    assert lines[3] == "··██··██  ████████          "
    assert PICTURE.show(["7", "0", "0", "7"]) == "██··\n··██", "an answer without a beginning is shown too"
    assert PICTURE.show([]) == "··"


def test_completing_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stripes, upright or level, are learned; the lower half is drawn from the upper one."""
    from segue.cli import main

    def run(*arguments: str) -> None:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        assert end.value.code == 0

    folder = tmp_path / "stripes"
    folder.mkdir()
    for number in range(40):
        lines = np.tile(np.repeat([0, 255], 2 + number // 2 % 2)[None], (8, 4))[:, :8].astype(np.uint8)
        images.fromarray(lines if number % 2 else 255 - lines).save(folder / f"{number}.png")
    model, prime = str(tmp_path / "model"), str(folder / "1.png")
    run("fit", str(folder), "--out", model, "--steps", "100", "--seed", "1", "--set", "width=32", "--set", "depth=1",
        "--read", "side=8", "--read", "levels=2")
    assert segue.load(model).report["reading"] == {"side": 8, "levels": 2}
    run("evaluate", model, str(folder), "--json", str(tmp_path / "scores.json"))
    scores = segue.files.read_json(tmp_path / "scores.json")
    assert scores["unit"] == "dimension" and scores["bits_per_unit"] < 0.15
    run("continue", model, "--prime-file", prime, "-n", "32", "--read", "rows=4", "--out", str(tmp_path / "whole.png"))
    [completed], [expected] = PICTURE.read(tmp_path / "whole.png"), PICTURE.read(folder / "1.png", side=8, levels=2)
    assert completed.object == expected.object
    capsys.readouterr()
    run("continue", model, "--prime-file", prime, "-n", "32", "--read", "rows=4")
    assert "····████····████" in capsys.readouterr().out


def test_real_pictures(shared_data, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    digits = segue.read(shared_data("mnist-t10k"), side=0, levels=256)
    assert len(digits) == 10_000 and digits.total == 10_000 * 785 and not digits.problems
    assert digits.kind.reading(digits.codec()) == {"side": 28, "levels": 256, "colour": "grey"}
    letters = segue.read(shared_data("omniglot-small1") / "images_background_small1.zip", side=28, levels=2)
    assert len(letters) == 2_720 and len(letters.vocabulary) == 3
    content = gzip.decompress((shared_data("mnist-t10k") / "t10k-images-idx3-ubyte.gz").read_bytes())
    sample_file = tmp_path / "some-images-idx3-ubyte.gz"  # the first 400: each is read and compared several times
    sample_file.write_bytes(gzip.compress(content[:4] + (400).to_bytes(4, "big") + content[8 : 16 + 400 * 784]))
    check_kind(PICTURE, [sample_file], mutations=5)
