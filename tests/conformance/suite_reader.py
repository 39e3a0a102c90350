# SPDX-License-Identifier: Apache-2.0
"""Reading a conformance suite with NumPy alone: manifest, vectors, models and their weights."""
import json
import pathlib
import struct

import numpy as np

RAW = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1", "BF16": "<u2"}


def read(path):
    """-> {name: array}. BF16 becomes float64; I8, F8_E4M3 and F8_E8M0 stay bytes."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], RAW[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
    return tensors


def write(path, tensors):
    """float64 as F64, others as they are (integers as I32)."""
    header, chunks, offset = {}, [], 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
            array = array.astype("<i4")
        dtype = {"f8": "F64", "i4": "I32", "u1": "U8"}[array.dtype.str[1:]]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        chunks.append(array.tobytes())
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])


def e8m0(code):
    return np.ldexp(1.0, code.astype(int) - 127)


def e4m3(code):
    code = code.astype(int)
    exponent, fraction = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, np.ldexp(fraction / 8.0, -6), np.ldexp(1 + fraction / 8.0, exponent - 7))
    value = np.where((exponent == 15) & (fraction == 7), np.nan, value)
    return np.where(code >> 7 == 1, -value, value)


def mxfp4(code, scale):
    """Bytes [rows, columns / 2]: the low nibble is the even column; a scale for 32 columns."""
    pairs = np.stack([E2M1[code & 15], E2M1[code >> 4]], -1).reshape(len(code), -1)
    return pairs * np.repeat(e8m0(scale), 32, 1)[:, :pairs.shape[1]]


def fp8(code, scale, rows, columns):
    tiles = np.repeat(np.repeat(e8m0(scale), rows, 0), columns, 1)
    return e4m3(code) * tiles[:code.shape[0], :code.shape[1]]


def weights(path):
    """A model's checkpoint in float64 under its released names; tables of experts as integers."""
    stored, out = read(path), {}
    for name, value in stored.items():
        scale = stored.get(name.removesuffix("weight") + "scale") if name.endswith("weight") else None
        if name.endswith("scale") and value.dtype == np.uint8:
            continue
        if scale is None:
            out[name] = value
        else:
            out[name] = mxfp4(value, scale) if ".experts." in name and "shared" not in name else fp8(value, scale, 128, 128)
    return out


class Suite:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        manifest = json.loads((self.folder / "manifest.json").read_text())
        self.version, self.vectors = manifest["version"], {v["name"]: v for v in manifest["vectors"]}

    def tensors(self, vector):
        return read(self.folder / vector["file"])

    def model(self, vector):
        """-> (config.json, weights)."""
        folder = (self.folder / vector["file"]).parent
        return json.loads((folder / "config.json").read_text()), weights(folder / "model.safetensors")
