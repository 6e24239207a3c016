#!/usr/bin/env python3
"""NVIDIA's machine code of the Vulkan pipelines that turboesm has cached, which no tool of the driver shows.

    scripts/nvidia-machine-code.py ~/.cache/turboesm/vulkan-10de-....bin --out build/machine-code

Begin with an empty cache and run one command, so that the file has few pipelines. Each becomes FOLDER/N.sass; printed
for each: how many instructions it has, and how many of them are of which kind, the most frequent first.

The driver (580 was looked at) keeps a pipeline as a zstd frame. In it, behind the letters NVuc, a table of sections of
32 bytes begins at 0x40: kind, size, offset from NVuc. Kind 1 is the code. Needs Python's zstandard, and nvdisasm of a
CUDA toolkit, by --nvdisasm where it is not in the path.
"""

import argparse
import collections
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

FRAME, CONTAINER = b"\x28\xb5\x2f\xfd", b"NVuc"
SECTIONS_AT, SECTION_BYTES, MOST_SECTIONS, CODE = 0x40, 32, 32, 1


def frames(data):
    import zstandard

    at = data.find(FRAME)
    while at >= 0:
        decoder = zstandard.ZstdDecompressor().decompressobj()
        try:
            frame = decoder.decompress(data[at:])
        except zstandard.ZstdError:
            frame = None
        if frame is not None and decoder.eof:
            yield frame
            at = len(data) - len(decoder.unused_data)
        else:  # four bytes that happen to look like the beginning of a frame
            at += len(FRAME)
        at = data.find(FRAME, at)


def code_of(pipeline):
    """The machine code of a pipeline; None where it has none."""
    begin = pipeline.find(CONTAINER)
    if begin < 0:
        return None
    first, end = begin + SECTIONS_AT, len(pipeline) - SECTION_BYTES
    for at in range(first, min(first + MOST_SECTIONS * SECTION_BYTES, end), SECTION_BYTES):
        kind, size, offset = struct.unpack_from("<3I", pipeline, at)
        if kind == CODE and begin + offset + size <= len(pipeline):
            return pipeline[begin + offset : begin + offset + size]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--architecture", default="SM90", help="of the card, as nvdisasm names it (default: SM90)")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    codes = [code for code in map(code_of, frames(arguments.file.read_bytes())) if code]
    if not codes:
        sys.exit(f"{arguments.file}: no machine code was found")
    for number, code in enumerate(codes):
        with tempfile.NamedTemporaryFile() as raw:
            raw.write(code)
            raw.flush()
            command = [arguments.nvdisasm, "--binary", arguments.architecture, raw.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        path = arguments.out / f"{number}.sass"
        path.write_text(text)
        operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", text, re.MULTILINE)
        kinds = collections.Counter(operations).most_common(12)
        print(f"{path}: {len(operations)} instructions: " + ", ".join(f"{count} {kind}" for kind, count in kinds))


if __name__ == "__main__":
    main()
