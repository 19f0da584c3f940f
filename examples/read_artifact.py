"""A reader of artifacts of the form `trellis`, written from docs/format.md with NumPy and Python's library alone.

It favours clear steps over speed: python examples/read_artifact.py DIR decodes the first rows.
"""

import hashlib
import json
import math
import sys
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np

TYPES = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32}


class Artifact:
    """An artifact on disk. Its row i is `row(i)`, a vector (d,).

    Tables that predict rows and have no `links` need `relations`, the integers (V,) of docs/format.md.
    """

    def __init__(self, directory, relations=None):
        # The files and their hash.
        text = Path(directory, "compressed_table.json").read_bytes()
        content = Path(directory, "compressed_table.safetensors").read_bytes()
        description = json.loads(text)
        unsigned = text.replace(f',"sha256":"{description["sha256"]}"'.encode(), b"")
        assert hashlib.sha256(content + unsigned).hexdigest() == description["sha256"]
        assert description["format_version"] == 7
        assert description["form"]["name"] == "trellis"
        self.rows, self.columns = description["shape"]
        self.state_bits = description["form"]["state_bits"]
        size = int.from_bytes(content[:8], "little")
        self.tensors, data = {}, content[8 + size :]
        for name, entry in json.loads(content[8 : 8 + size]).items():
            start, end = entry["data_offsets"]
            self.tensors[name] = np.frombuffer(data[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
        # What all rows share.
        self.bias = self.tensors["bias"].astype(np.float64).reshape(-1) * self.tensors.get("bias.scale", [[1]])[0][0]
        self.decoder = self.levels("decoder", self.columns)
        self.gain = self.tensors["gain"] * self.tensors["gain.scale"].astype(np.float64)
        pairs = self.inflated("tiers")
        self.tiers = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[: self.rows]
        # The steps of each tier, and where each row starts in the two streams.
        self.windows, self.integers, lengths, least = [], [], [], []
        for steps in self.tensors["steps"].tolist():
            self.integers.append([step - 64 for step in steps if step >= 64])
            self.windows.append([(1 << (step >> 4), step & 15) for step in steps if step < 64])
            lengths.append(sum(k for _, k in self.windows[-1]))
            least.append(2 * len(self.integers[-1]) + sum(self.integers[-1]))
        self.codes = np.unpackbits(self.tensors["codes"][2:])
        self.starts = np.cumsum([0, *np.array(lengths)[self.tiers]])
        if "integers" in self.tensors:
            low, high = self.inflated("lengths").astype(int).reshape(2, -1)
            self.integer_bits = np.unpackbits(self.tensors["integers"])
            self.integer_starts = np.cumsum([0, *(np.array(least)[self.tiers] + low + 256 * high)])
        if "maps" in self.tensors:
            self.maps = self.levels("maps", 24)
            self.relations = self.linked() if relations is None else np.asarray(relations, "<i4")
            assert hashlib.sha256(self.relations.tobytes()).digest()[:8] == self.tensors["relations"].tobytes()

    def inflated(self, name):
        return np.frombuffer(zlib.decompress(self.tensors[name].tobytes()), np.uint8)

    def levels(self, name, columns):
        scale = self.tensors[f"{name}.scale"].astype(np.float64)
        planes = self.inflated(name).astype(int).reshape(-1, len(scale), columns)
        f = planes[0] + (256 * planes[1] if len(planes) > 1 else 0)
        return np.where(f % 2 == 1, -(f + 1) // 2, f // 2) * scale

    def linked(self):
        kinds, low, middle, high = self.inflated("links").astype(int).reshape(4, self.rows)
        parents = np.where(kinds > 0, low + 256 * middle + 65536 * high, np.arange(self.rows))
        return (parents + (kinds << 22)).astype("<i4")

    def row(self, i):
        return self.bias + self.coefficients(i) @ self.decoder

    def coefficients(self, i):
        tier = self.tiers[i]
        c = np.array([*self.read_integers(i, tier), *self.read_windows(i, tier)][: len(self.decoder)])
        c = np.pad(c, (0, len(self.decoder) - len(c)))
        if "maps" not in self.tensors:
            return c
        kind, parent = self.relations[i] >> 22, self.relations[i] & (1 << 22) - 1
        c = c + self.maps[:, 0] * (math.log(i + 200) / 4 - 2) + self.maps[:, 1 + kind]
        return c + self.maps[:, 12 + kind] * self.coefficients(parent) if kind else c

    def read_windows(self, i, tier):
        bits = self.codes[self.starts[i] : self.starts[i + 1]]
        bits = np.concatenate([np.zeros(self.state_bits, int), bits])  # those before the first are 0
        ends = np.cumsum([k for _, k in self.windows[tier]][::-1])[::-1]
        for step, ((v, k), p) in enumerate(zip(self.windows[tier], ends, strict=True), len(self.integers[tier])):
            state = number(bits[p : p + self.state_bits])
            yield from (self.gain[tier, step] * codebook(8 * state + n) if k else 0.0 for n in range(v))

    def read_integers(self, i, tier):
        low_bits = self.integers[tier]
        if not low_bits:
            return
        stream = iter(self.integer_bits[self.integer_starts[i] : self.integer_starts[i + 1]].tolist())
        b = [0] * 6 + [next(stream) for _ in low_bits]
        lows = [number([next(stream) for _ in range(r)]) for r in low_bits]
        for n, (r, low) in enumerate(zip(low_bits, lows, strict=True)):
            high = 0
            while not next(stream):
                high += 1
            j = 2 * (b[n + 6] ^ b[n + 5] ^ b[n]) + (b[n + 4] ^ b[n + 2])
            u = (high << r) + low
            m = (u + 1) // 2 if u % 2 else -(u // 2)
            yield self.gain[tier, n] * 2.0**-r * ((m if j < 2 else -m) + (j - 1.5) / 4)


def number(bits):
    return int("".join(str(int(bit)) for bit in bits) or "0", 2)


def codebook(n):
    x = n + 1
    x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return float(np.float16(NormalDist().inv_cdf(((x ^ x >> 16) + 0.5) / 2**32)))


if __name__ == "__main__":
    artifact = Artifact(sys.argv[1])
    for row in range(min(5, artifact.rows)):
        print(row, artifact.row(row)[:5])
