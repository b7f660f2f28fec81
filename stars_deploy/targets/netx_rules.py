"""What lava-dl's NetX and Lava do to a network silently, so that nothing corrupted is written.

NetX 0.6.0 scales every dense matrix up to fill eight bits; Lava's Dense then clips and truncates
it by rules that depend on the signs in the matrix. Most matrices survive, some do not; here both
steps are emulated and compared with what was meant. Convolution kernels are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Integers = NDArray[np.int64]

FIELD_LIMIT = 127  # kernel size, stride, padding, dilation, groups are kept in int8
THRESHOLD_LIMIT = 131071  # 17 bits
BIAS_LIMIT = 4095  # 12 bits and sign; int16 would wrap at 32768
WEIGHT_LOW, WEIGHT_HIGH = -128, 127  # what eight bits hold


def effective_dense(weight: Integers) -> NDArray[np.float64] | None:
    """Return the weights that Lava's Dense ends up with for a NetX file that holds `weight`.

    None where NetX itself fails. Emulates lava-dl 0.6.0 (weight normalisation of NetX) followed
    by lava-nc 0.10.0 (clipping and truncation in Dense, fixed_pt); not exact integers: the
    activation is shifted back by the exponent, so entries may be fractions.
    """
    if not weight.any():
        return None  # the exponent search fails on a matrix of zeros
    low, high = int(weight.min()), int(weight.max())
    if low < 0 < high and (high > 254 or low < -256):
        weight = np.clip(weight, -256, 254)
        low, high = int(weight.min()), int(weight.max())
    shift, bits = _normalisation(weight, low, high)
    # A negative shift is undefined in C; on the usual machines the result is zero.
    scaled = weight << shift if shift >= 0 else np.zeros_like(weight)
    effective: NDArray[np.float64] = _dense(scaled, bits).astype(np.float64) * 2.0**-shift
    return effective


def _normalisation(weight: Integers, low: int, high: int) -> tuple[int, int]:
    """Return NetX's left shift and number of weight bits."""
    if high < 0:
        room, mixed = -256 / low, 0
    elif low >= 0:
        room, mixed = 255 / high, 0
    else:
        room = min(127 / high if high > 0 else np.inf, -128 / low)
        mixed = 1
    shift = int(np.floor(np.log2(room))) + mixed
    zeros = next((n for n in range(8, 0, -1) if not (weight % (1 << n)).any()), 0)
    return shift, 8 - shift - (zeros - mixed)


def _dense(weight: Integers, bits: int) -> Integers:
    """Clip to eight bits and truncate to `bits`, by the signs that occur in the matrix."""
    low, high = int(weight.min()), int(weight.max())
    if low < 0 < high:
        return _truncate(np.clip(weight, -256, 255), 8 - bits + 1)
    sign = 1 if low >= 0 else -1
    return sign * _truncate(np.clip(sign * weight, 0, 255), 8 - bits)


def _truncate(weight: Integers, lost: int) -> Integers:
    """Clear the lowest bits; a negative number of them shifts everything out, as in C."""
    if lost < 0 or lost > 31:
        return np.zeros_like(weight)
    return (weight >> lost) << lost


def netx_problems(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[str]:
    """Return every reason why NetX would not compute this network as it is written."""
    branched = not_a_chain(document)
    if branched is not None:
        return [branched]  # NetX has no way to write it, so nothing else matters
    return [*_population_problems(document, arrays)] + [
        problem
        for entry in document["connections"]
        if "host_shift" not in entry  # no synapses: the encoding is named above
        for problem in _connection_problems(entry, arrays[entry["weight_key"]].astype(np.int64))
    ]


def not_a_chain(document: Mapping[str, Any]) -> str | None:
    """Return why a network is no plain chain of graded input, synapses and neurons, or None."""
    previous = "input"
    targets = {entry["target"]: entry for entry in document["connections"]}
    if document["input"]["encoding"] not in ("signed_q", "pixel_u8"):
        return f"input encoding {document['input']['encoding']} is not a graded message"
    if len(targets) < len(document["connections"]):
        return "several connections end in one population; NetX holds plain chains only"
    for entry in document["populations"]:
        connection = targets.get(entry["name"])
        if connection is None or connection["source"] != previous:
            return f"{entry['name']}: does not listen to {previous} alone; NetX holds chains only"
        if connection["delay"] != 0:
            return f"{connection['name']}: has a delay, which NetX ignores for convolutions"
        previous = entry["name"]
    return None


def _population_problems(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> Iterator[str]:
    for entry in document["populations"]:
        name, steps = entry["name"], entry["reset_interval"]
        if not 0 <= entry["vth"] <= THRESHOLD_LIMIT:
            yield f"{name}: vth {entry['vth']} is outside 0..{THRESHOLD_LIMIT}"
        if not -1 <= entry["du"] <= 4095 or not 0 <= entry["dv"] <= 4096:
            yield f"{name}: decays {entry['du']}, {entry['dv']} are outside -1..4095, 0..4096"
        if entry["reset_offset"] % steps != (1 + entry["depth"]) % steps:
            yield (
                f"{name}: reset_offset {entry['reset_offset']} is not the phase that NetX gives "
                f"to depth {entry['depth']}"
            )
        if entry["bias_key"] is not None:
            yield from _bias_problems(name, netx_bias(entry, arrays))


def _bias_problems(name: str, bias: NDArray[np.float64]) -> Iterator[str]:
    if (bias != np.rint(bias)).any():
        yield f"{name}: the bias is finer than NetX's fixed exponent of 6"
    if np.abs(bias).max() > BIAS_LIMIT:
        yield f"{name}: bias {int(np.abs(bias).max())} at exponent 6 exceeds {BIAS_LIMIT}"


def netx_bias(entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> NDArray[np.float64]:
    """Return the bias of a population in units of NetX's fixed exponent, 2^6."""
    mantissa: NDArray[np.float64] = arrays[entry["bias_key"]].astype(np.float64)
    scaled: NDArray[np.float64] = mantissa * 2.0 ** (int(entry["bias_exp"]) - 6)
    return scaled


def _connection_problems(entry: Mapping[str, Any], weight: Integers) -> Iterator[str]:
    name = entry["name"]
    low, high = int(weight.min()), int(weight.max())
    if entry["weight_exp"] != 0:
        yield f"{name}: weight exponent {entry['weight_exp']}, which Lava's Conv ignores"
    if low < WEIGHT_LOW or high > WEIGHT_HIGH:
        yield (
            f"{name}: weights from {low} to {high} are outside {WEIGHT_LOW}..{WEIGHT_HIGH}; "
            f"odd ones beyond it do not exist on the hardware"
        )
    if entry["kind"] == "conv":
        fields = {
            "kernel": weight.shape[2:],
            "stride": entry["stride"],
            "padding": entry["padding"],
            "dilation": entry["dilation"],
            "groups": [entry["groups"]],
        }
        for field, values in fields.items():
            if max(values) > FIELD_LIMIT:
                yield f"{name}: {field} {max(values)} exceeds the int8 that Lava keeps it in"
        return
    found = effective_dense(weight)
    if found is None:
        yield f"{name}: a dense matrix of zeros, on which NetX fails"
    elif not np.array_equal(found, weight):
        wrong = int((found != weight).sum())
        reason = ", because it has no positive weight" if high <= 0 else ""
        yield (
            f"{name}: NetX would change {wrong} of the {weight.size} weights of this dense matrix "
            f"(from {low} to {high}){reason}; run it in raw Lava"
        )
