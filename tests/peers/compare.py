"""turboesm and PyTorch side by side on one machine, as the tables of docs/performance.md.

    python tests/peers/compare.py --turboesm build/release/bin/turboesm [--devices cuda,vulkan] [--dtype bf16]

Forward passes: `turboesm bench prefill` beside transformers with eager attention, sdpa and torch.compile (prefill.py).
Decode attention: `turboesm bench decode` beside PyTorch's fp16 scaled_dot_product_attention (decode.py), whichever of its
backends is fastest. torch.compile takes minutes, so all models compile at once, and are timed one at a time afterwards.
Needs torch with CUDA and transformers; nothing else in the project needs this script.
"""
import argparse
import datetime
import json
import os
import pathlib
import select
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
PREFILL = [  # size, batch, length, modes of PyTorch
    ("8M", 1, 145, "eager,sdpa,compile"),
    ("650M", 1, 34, "eager,sdpa"),
    ("650M", 1, 145, "eager,sdpa,compile"),
    ("650M", 16, 1024, "eager,sdpa"),
    ("650M", 64, 256, "eager,sdpa,compile"),
    ("3B", 16, 1024, "sdpa"),
]
DECODE = [(1, 143), (1, 1024), (1, 8192), (1, 65536), (16, 1024), (64, 1024), (64, 8192), (256, 1024)]
PRESETS = ["turbo", "f16"]


class Peer:
    """One mode of one shape in PyTorch, warming up in a process of its own."""

    def __init__(self, size, dtype, batch, length, mode):
        command = [sys.executable, str(HERE / "prefill.py"), "--size", size, "--dtype", dtype, "--batch", str(batch)]
        command += ["--length", str(length), "--modes", mode, "--wait"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def wait_until_ready(self, deadline):
        """Whether it is ready by then (time.monotonic()); if not, it is ended."""
        output = b""
        while b"ready\n" not in output:
            seconds = deadline - time.monotonic()
            readable = select.select([self.process.stdout], [], [], max(seconds, 0))[0]
            piece = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            if not piece:
                self.process.kill()
                return False
            output += piece
        return True

    def milliseconds(self):
        output, _ = self.process.communicate(b"\n")
        for line in output.decode().splitlines():
            if " ms (" in line:
                return float(line.split(": ")[-1].split(" ms")[0])
        return None


def turboesm(program, *arguments):
    output = subprocess.run([program, *arguments, "--quiet", "--json", "-"], capture_output=True, text=True)
    if output.returncode != 0:
        print(output.stderr, file=sys.stderr)
        return None
    return json.loads(output.stdout)


def row(cells):
    print("| " + " | ".join("" if cell is None else cell for cell in cells) + " |", flush=True)


def header(cells):
    row(cells)
    row(["---"] * len(cells))


def prefill_table(arguments, devices):
    peers = {}
    for size, batch, length, modes in PREFILL:
        for mode in modes.split(","):
            if mode not in arguments.modes.split(","):
                continue
            peers[size, batch, length, mode] = Peer(size, arguments.dtype, batch, length, mode)
    deadline = time.monotonic() + arguments.patience
    ready = {key for key, peer in peers.items() if peer.wait_until_ready(deadline)}
    header(["model", "B x L"] + [f"turboesm {d}, ms" for d in devices] + ["eager", "sdpa", "torch.compile", "best / ours"])
    for size, batch, length, _ in PREFILL:
        shape = ["--size", size, "--dtype", arguments.dtype, "--batch", str(batch), "--length", str(length)]
        ours = []
        for device in devices:
            result = turboesm(arguments.turboesm, "bench", "prefill", *shape, "--device", device)
            ours.append(result["prefill"]["device_time"]["median_s"] * 1e3 if result else None)
        theirs = []
        for mode in ["eager", "sdpa", "compile"]:
            key = size, batch, length, mode
            theirs.append(peers[key].milliseconds() if key in ready else None)
        known = [t for t in theirs if t]
        ratios = " / ".join(f"{min(known) / t:.1f}" for t in ours if t) if known else ""
        cells = [f"{t:.3g}" if t else None for t in ours + theirs]
        row([f"{size} {arguments.dtype}", f"{batch} x {length}", *cells, ratios])


def decode_table(arguments, devices):
    from decode import attention_us

    header(["B x T"] + [f"{p} on {d}, us" for d in devices for p in PRESETS] + ["PyTorch fp16", "backend"])
    for batch, context in DECODE:
        ours = []
        for device in devices:
            shape = ["--kv", ",".join(PRESETS), "--dtype", "f16", "--batch", str(batch), "--context", str(context)]
            result = turboesm(arguments.turboesm, "bench", "decode", *shape, "--device", device)
            times = {r["kv"]: r["time"]["median_s"] * 1e6 for r in result["decode"]} if result else {}
            ours += [times.get(preset) for preset in PRESETS]
        results = attention_us(batch, context, 20, 64, repeats=50)
        best = min(results, key=results.get)
        row([f"{batch} x {context}", *(f"{t:.1f}" if t else None for t in ours), f"{results[best]:.1f}", best])


def main():
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turboesm", default="build/release/bin/turboesm")
    parser.add_argument("--devices", default="cuda,vulkan")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--modes", default="eager,sdpa,compile", help="of PyTorch, as far as a shape has them")
    parser.add_argument("--patience", type=float, default=900, help="seconds to wait for PyTorch's models to be ready")
    arguments = parser.parse_args()
    devices = arguments.devices.split(",")
    version = subprocess.run([arguments.turboesm, "--version"], capture_output=True, text=True).stdout.strip()
    print(
        f"{datetime.date.today()}, {torch.cuda.get_device_name()}, {version}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n"
    )
    prefill_table(arguments, devices)
    print()
    decode_table(arguments, devices)


if __name__ == "__main__":
    main()
