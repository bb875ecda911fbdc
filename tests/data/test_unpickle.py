"""Object arrays are read without running anything that the file asks for."""

from __future__ import annotations

import io
import os
import pickle
import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deeplense.data.read import read
from deeplense.data.unpickle import RefusedPickle, load_objects
from deeplense.errors import DataError, DeepLenseError

IMAGE = np.random.default_rng(0).random((8, 8))


def npy_with(payload: bytes) -> bytes:
    """An object .npy file around any pickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return file.getvalue() + payload


def objects(*items: object) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that exists only if somebody ran what stood in a pickle."""
    return tmp_path / "pwned"


def attacks(trap: Path) -> dict[str, bytes]:
    command = f"touch {trap}"
    inside = objects(IMAGE, Calls(os.system, command))
    return {
        "os.system": pickle.dumps(Calls(os.system, command)),
        "inside the array": pickle.dumps(inside),
        "eval": pickle.dumps(objects(Calls(eval, f"open({str(trap)!r}, 'w')"), 1.0)),
        "open": pickle.dumps(Calls(io.open, str(trap), "w")),
        "protocol 0": pickle.dumps(inside, protocol=0),
        "INST opcode": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "after a good array": b"("
        + pickle.dumps(objects(IMAGE, 1.0))[:-1]
        + b"cos\nsystem\n(S'"
        + command.encode()
        + b"'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x1andarray.__class__.__base__\x93.",
        "numpy's own loader": b"cnumpy\nload\n(S'" + str(trap).encode() + b"'\ntR.",
        "attribute": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
    }


@pytest.mark.parametrize("kind", attacks(Path("trap")))
@pytest.mark.parametrize("where", ["file", "folder", "npz"])
def test_a_pickle_is_never_executed(tmp_path, trap, kind, where):
    content = npy_with(attacks(trap)[kind])
    path = tmp_path / "x" / "no" / "a.npy"
    path.parent.mkdir(parents=True)
    if where == "npz":
        path = path.with_suffix(".npz")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="Python objects" if where == "npz" else "refused .*would run code"):
        read(path if where != "folder" else tmp_path / "x", max_bad_fraction=1.0)
    assert not trap.exists()


def test_the_trap_works(tmp_path, trap):
    """Without our reader the same file does run: so the test above can fail."""
    (tmp_path / "x.npy").write_bytes(npy_with(attacks(trap)["os.system"]))
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert trap.exists()


def test_the_message_names_the_function_and_the_way_out(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy_with(pickle.dumps(Calls(os.system, "true"))))
    with pytest.raises(DataError, match=r"x\.npy: it is a pickle that asks for (posix|nt)\.system.*allow_pickle=False"):
        read(tmp_path / "x.npy")


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("mass", [1.5e-23, np.float64(1.5e-23), np.array([1.5e-23]), np.array(1.5e-23)])
@pytest.mark.parametrize("dtype", ["f8", ">f4", "u1"])
def test_every_pickle_protocol_and_kind_of_number(tmp_path, protocol, mass, dtype):
    image = (100 * IMAGE).astype(dtype)
    pair = np.empty(2, object)
    pair[0], pair[1] = np.asfortranarray(image) if protocol % 2 else image, mass
    (tmp_path / "x.npy").write_bytes(npy_with(pickle.dumps(pair, protocol)))
    lenses = read(tmp_path / "x.npy")
    assert np.array_equal(lenses.images[0, 0], image.astype(np.float32))
    assert lenses.params.to_pydict() == {"m_axion": [1.5e-23]}


@pytest.mark.parametrize("names", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_names_of_numpy_1_and_2(names):
    written = pickle.dumps(objects(IMAGE, np.float32(2)), protocol=2)
    renamed = written.replace(b"numpy._core.multiarray", names).replace(b"numpy.core.multiarray", names)
    image, mass = load_objects(io.BytesIO(renamed))
    assert np.array_equal(image, IMAGE) and mass == 2


def test_pickle_of_python_2():
    # What Python 2 wrote for an object array of one uint8 image [[1, 200]]: bytes are text there.
    raw = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\n"
        b"(lcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nI2\nt"
        b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\xc8'\ntbatb."
    )
    (image,) = load_objects(io.BytesIO(raw))
    assert image.dtype == np.uint8 and image.tolist() == [[1, 200]]


@pytest.mark.parametrize(
    "array",
    [
        objects("text", 1.0),
        objects(IMAGE, "text"),
        objects(IMAGE, 1.0, 2.0),
        objects(IMAGE, IMAGE),
        objects({"image": IMAGE}, 1.0),
        objects(None, None),
    ],
)
def test_other_object_arrays_are_bad_images(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=r"not \[image, axion_mass\]"):
        read(tmp_path / "x.npy")


def test_an_allowed_name_cannot_be_changed_from_a_pickle():
    # BUILD with a dictionary would set attributes on whatever stands on the stack.
    with pytest.raises(ValueError, match="tries to change a function"):
        load_objects(io.BytesIO(b"cnumpy\ndtype\n(dS'hack'\nI1\nsb."))


def test_dtype_with_forged_state_does_not_reach_numpy():
    # numpy's own dtype would take flags that make raw bytes count as object pointers.
    forged = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI8\nI8\nI0\ntbI00\nS'AAAAAAAA'\ntb."
    )
    assert load_objects(io.BytesIO(forged)) == list("AAAAAAAA")


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(b"Nr" + (2**31).to_bytes(4, "little") + b".", id="memo"),
        pytest.param(b"\x96" + (2**36).to_bytes(8, "little") + b".", id="bytearray"),
        pytest.param(b"\x8e" + (2**36).to_bytes(8, "little") + b".", id="bytes"),
        pytest.param(b"\x80\x04\x95" + (2**36).to_bytes(8, "little") + b"N.", id="frame"),
    ],
)
def test_a_forged_number_claims_no_memory(forged):
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"object array"):
        load_objects(io.BytesIO(forged))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_refusal_carries_the_full_name():
    with pytest.raises(RefusedPickle, match=r"^subprocess\.Popen$"):
        load_objects(io.BytesIO(b"csubprocess\nPopen\n."))
    with pytest.raises(RefusedPickle, match=r"^os\.\\n\\x1b\[2J$"):
        load_objects(io.BytesIO(b"\x80\x04\x8c\x02os\x8c\x05\n\x1b[2J\x93."))


def test_damaged_files_give_only_our_own_errors(tmp_path):
    """A thousand random edits of good files: every one is read or refused in one line, none raises anything else."""
    draw = random.Random(0)
    originals = [npy_with(pickle.dumps(objects(IMAGE, np.float64(1)), protocol)) for protocol in (0, 2, 4)]
    plain = io.BytesIO()
    np.save(plain, IMAGE)
    path = tmp_path / "x.npy"
    for _ in range(1000):
        content = bytearray(draw.choice([*originals, plain.getvalue()]))
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.randrange(len(content))] if draw.random() < 0.2 else content)
        try:
            assert read(path).images.dtype == np.float32
        except DeepLenseError as error:
            assert "\n" not in str(error).strip()
