"""Loads an LSTM that everloop saved into torch.nn.LSTM, strictly, and compares what both compute in float64.

    python3 tests/strict_load.py FILE EXPECTED

FILE is a state dict in safetensors, its names under any prefix; EXPECTED has `input` (T,B,I), `h0`, `c0` and our
`output`, `hn`, `cn`. Needs torch: without it, it says so and that is no failure. tests/strict_load.rs runs it.
"""
import json
import struct
import sys

try:
    import torch
except (ImportError, OSError) as error:
    print(f"skipped: torch cannot be imported here ({error})")
    sys.exit(0)


def read(path):
    try:
        from safetensors.torch import load_file

        return load_file(path)
    except ImportError:
        pass
    raw = open(path, "rb").read()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    header.pop("__metadata__", None)
    types = {"F32": torch.float32, "F64": torch.float64}
    return {
        name: torch.frombuffer(data[slice(*entry["data_offsets"])], dtype=types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


state, expected = read(sys.argv[1]), read(sys.argv[2])
given, h0, c0, output, hn, cn = (expected[name].double() for name in ("input", "h0", "c0", "output", "hn", "cn"))
prefix = next(name for name in sorted(state) if name.endswith("weight_ih_l0"))[: -len("weight_ih_l0")]
hidden, outputs = cn.shape[2], hn.shape[2]
directions = output.shape[2] // outputs
lstm = torch.nn.LSTM(
    given.shape[2],
    hidden,
    hn.shape[0] // directions,
    bias=any("bias_" in name for name in state),
    bidirectional=directions == 2,
    proj_size=0 if outputs == hidden else outputs,
).double()
# a module for each part of the prefix
model = lstm
for part in reversed(prefix.split(".")[:-1]):
    outer = torch.nn.Module()
    outer.add_module(part, model)
    model = outer
try:
    print(model.load_state_dict(state, strict=True))
except RuntimeError as error:
    sys.exit(f"FAIL: {error}")
with torch.no_grad():
    y, (h, c) = lstm(given, (h0, c0))
for name, theirs, ours in (("output", y, output), ("hn", h, hn), ("cn", c, cn)):
    error = (theirs - ours).abs().max().item() if theirs.shape == ours.shape else float("inf")
    print(f"{name}: largest difference {error:.2e}")
    if not error <= 1e-12:
        sys.exit(f"FAIL: {name} differs")
print("ok")
