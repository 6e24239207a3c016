"""turboesm and PyTorch side by side on one machine, in one run: the tables of docs/performance.md.

    python tests/peers/compare.py [--devices cuda,vulkan] [--proteins proteins.fasta] [--out DIR]

Forward passes: `turboesm bench prefill` beside transformers with eager attention, sdpa and torch.compile (prefill.py).
Proteins of unlike lengths, those of a FASTA file: `turboesm bench embed` beside transformers on padded batches (embed.py).
Decode attention: `turboesm bench decode` beside PyTorch's fp16 scaled_dot_product_attention (decode.py), whichever of its
backends is fastest. GPUs stand beside PyTorch on CUDA, and the CPU and software drivers, with smaller models, beside
PyTorch on the CPU. torch.compile takes minutes, so all models compile at once, and are timed one at a time afterwards.
With --out the tables and the programs' own reports are also written there, as peers.md and peers.json.
Needs torch and transformers; nothing else in the project needs this script.
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

from esm_torch import DEFAULT_MODEL, ROOT

HERE = pathlib.Path(__file__).parent
PREFILL = {  # by PyTorch's device: size, batch, length, modes of PyTorch
    "cuda": [
        ("8M", 1, 145, "eager,sdpa,compile"),
        ("650M", 1, 34, "eager,sdpa"),
        ("650M", 1, 145, "eager,sdpa,compile"),
        ("650M", 16, 1024, "eager,sdpa"),
        ("650M", 64, 256, "eager,sdpa,compile"),
        ("3B", 16, 1024, "sdpa"),
    ],
    "cpu": [("8M", 1, 145, "eager,sdpa"), ("8M", 8, 256, "eager,sdpa"), ("150M", 1, 145, "eager,sdpa")],
}
EMBED = {"cuda": ["650M"], "cpu": [str(DEFAULT_MODEL)]}  # official sizes, or a model's folder
DTYPE = {"cuda": "bf16", "cpu": "f32"}
DECODE = [(1, 143), (1, 1024), (1, 8192), (1, 65536), (16, 1024), (64, 1024), (64, 8192), (256, 1024)]
PRESETS = ["turbo", "f16"]


class Report:
    """Tables as they are printed, and what the programs reported."""

    def __init__(self):
        self.lines, self.results = [], []

    def line(self, text=""):
        print(text, flush=True)
        self.lines.append(text)

    def row(self, cells):
        self.line("| " + " | ".join("" if cell is None else cell for cell in cells) + " |")

    def header(self, cells):
        self.row(cells)
        self.row(["---"] * len(cells))

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "peers.md").write_text("\n".join(self.lines) + "\n")
        (folder / "peers.json").write_text(json.dumps(self.results, indent=1) + "\n")


class Peer:
    """One mode of one shape in PyTorch, warming up in a process of its own."""

    def __init__(self, size, dtype, batch, length, mode, device):
        command = [sys.executable, str(HERE / "prefill.py"), "--size", size, "--dtype", dtype, "--batch", str(batch)]
        command += ["--length", str(length), "--modes", mode, "--device", device, "--wait"]
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


def turboesm(arguments, report, *command):
    output = subprocess.run(
        [arguments.turboesm, *map(str, command), "--quiet", "--json", "-"], capture_output=True, text=True
    )
    if output.returncode != 0:
        print(output.stderr, file=sys.stderr)
        return None
    result = json.loads(output.stdout)
    report.results.append({"command": ["turboesm", *map(str, command)], "report": result})
    return result


def ratios(theirs, ours):
    """The best of theirs over each of ours."""
    known = [t for t in theirs if t]
    return " / ".join(f"{min(known) / t:.1f}" for t in ours if t) if known else ""


def milliseconds(seconds):
    if not seconds:
        return None
    return f"{seconds * 1e3:,.0f}" if seconds >= 1 else f"{seconds * 1e3:.4g}"


def prefill_table(arguments, report, devices, peer, dtype):
    peers = {}
    for size, batch, length, modes in PREFILL[peer]:
        for mode in modes.split(","):
            if mode in arguments.modes.split(",") and peer in arguments.peers:
                peers[size, batch, length, mode] = Peer(size, dtype, batch, length, mode, peer)
    deadline = time.monotonic() + arguments.patience
    ready = {key for key, process in peers.items() if process.wait_until_ready(deadline)}
    report.header(["model", "B x L"] + [f"turboesm {d}, ms" for d in devices] + ["eager", "sdpa", "torch.compile", "best / ours"])
    for size, batch, length, _ in PREFILL[peer]:
        shape = ["--size", size, "--dtype", dtype, "--batch", batch, "--length", length]
        ours = []
        for device in devices:
            result = turboesm(arguments, report, "bench", "prefill", *shape, "--device", device)
            ours.append(result["prefill"]["device_time"]["median_s"] * 1e3 if result else None)
        theirs = []
        for mode in ["eager", "sdpa", "compile"]:
            key = size, batch, length, mode
            theirs.append(peers[key].milliseconds() if key in ready else None)
        times = {mode: t for mode, t in zip(["eager", "sdpa", "compile"], theirs) if t}
        report.results.append({"peer": peer, "prefill": [size, dtype, batch, length], "milliseconds": times})
        cells = [f"{t:.3g}" if t else None for t in ours + theirs]
        report.row([f"{size} {dtype}", f"{batch} x {length}", *cells, ratios(theirs, ours)])


def embed_peer(arguments, size, dtype, peer):
    if peer not in arguments.peers:
        return None
    modes = [m for m in ["sdpa", "eager", "compile"] if m in arguments.embed_modes.split(",")]
    command = [sys.executable, HERE / "embed.py", arguments.proteins, "--size", size, "--dtype", dtype]
    command += ["--device", peer, "--modes", ",".join(modes), "--every", 4 if peer == "cuda" else 8, "--json"]
    output = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout) if output.returncode == 0 else None


def embed_table(arguments, report, devices, peer, dtype):
    heading = [f"turboesm {d}, ms" for d in devices]
    report.header(["model", "proteins", "tokens", *heading, "transformers, ms", "at its best", "best / ours"])
    for size in EMBED[peer]:
        model = ["--size", size] if "/" not in size else ["--model", size]
        ours, counts = [], {}
        for device in devices:
            command = ["bench", "embed", arguments.proteins, *model, "--dtype", dtype, "--device", device]
            result = turboesm(arguments, report, *command)
            ours.append(result["embed"]["host_time"]["median_s"] if result else None)
            counts = result["embed"] if result else counts
        theirs = embed_peer(arguments, size, dtype, peer)
        report.results.append({"peer": peer, "embed": [pathlib.Path(size).name, dtype], "result": theirs})
        best = theirs["median_s"] if theirs else None
        how = f"{theirs['mode']}, {theirs['budget']} tokens a batch" if theirs else None
        cells = [milliseconds(t) for t in ours]
        count = [str(counts.get(key, "")) for key in ["sequences", "tokens"]]
        report.row([f"{pathlib.Path(size).name} {dtype}", *count, *cells, milliseconds(best), how, ratios([best], ours)])


def decode_table(arguments, report, devices):
    from decode import attention_us

    report.header(["B x T"] + [f"{p} on {d}, us" for d in devices for p in PRESETS] + ["PyTorch fp16", "backend"])
    for batch, context in DECODE:
        ours = []
        for device in devices:
            shape = ["--kv", ",".join(PRESETS), "--dtype", "f16", "--batch", batch, "--context", context]
            result = turboesm(arguments, report, "bench", "decode", *shape, "--device", device)
            times = {r["kv"]: r["time"]["median_s"] * 1e6 for r in result["decode"]} if result else {}
            ours += [times.get(preset) for preset in PRESETS]
        results = attention_us(batch, context, 20, 64, repeats=50) if "cuda" in arguments.peers else {"": None}
        report.results.append({"peer": "cuda", "decode": [batch, context], "microseconds": results})
        best = min(results, key=results.get)
        cells = [f"{t:.1f}" if t else None for t in [*ours, results[best]]]
        report.row([f"{batch} x {context}", *cells, best])


def known_devices(arguments):
    """[(spec, kind)] of all that can be used."""
    output = subprocess.run([arguments.turboesm, "devices", "--json", "-"], capture_output=True, text=True)
    listed = json.loads(output.stdout)["devices"]
    return [(d["spec"], d["kind"]) for d in listed if not d["problem"]]


def is_gpu(known, device):
    for spec, kind in known:
        if spec == device or spec.startswith(device + ":"):
            return kind not in ["CPU", "software GPU"]
    sys.exit(f"{device}: there is no such device; turboesm devices lists those that can be used")


def first_of_each(known):
    """The first device of each back end, but for software drivers."""
    chosen = {}
    for spec, kind in known:
        if kind != "software GPU":
            chosen.setdefault(spec.split(":")[0], spec)
    return sorted(chosen.values())


def main():
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turboesm", default=str(ROOT / "build/release/bin/turboesm"))
    parser.add_argument("--devices", help="comma-separated (default: the first of each back end, but for software drivers)")
    parser.add_argument("--proteins", help="FASTA file for the table of mixed lengths; without it there is none")
    parser.add_argument("--dtype", help="default: bf16 on GPUs, f32 on the CPU")
    parser.add_argument("--modes", default="eager,sdpa,compile", help="of PyTorch, as far as a shape has them")
    parser.add_argument("--embed-modes", default="eager,sdpa", help="of PyTorch, for mixed lengths")
    parser.add_argument("--tables", default="prefill,embed,decode")
    parser.add_argument("--patience", type=float, default=900, help="seconds to wait for PyTorch's models to be ready")
    parser.add_argument("--out", type=pathlib.Path, help="folder for peers.md and peers.json")
    arguments = parser.parse_args()
    arguments.peers = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if not os.access(arguments.turboesm, os.X_OK):
        sys.exit(f"{arguments.turboesm}: there is no such program; build it with scripts/build.sh, or name one by --turboesm")
    known = known_devices(arguments)
    devices = arguments.devices.split(",") if arguments.devices else first_of_each(known)
    groups = {"cuda": [d for d in devices if is_gpu(known, d)], "cpu": [d for d in devices if not is_gpu(known, d)]}

    report = Report()
    version = subprocess.run([arguments.turboesm, "--version"], capture_output=True, text=True).stdout.strip()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    report.line(f"{datetime.date.today()}, {card}, {version}, torch {torch.__version__}, transformers {transformers.__version__}")
    for peer, group in groups.items():
        dtype = arguments.dtype or DTYPE[peer]
        if not group:
            continue
        there = "" if peer in arguments.peers else ", which this PyTorch or machine does not have"
        report.line(f"\n{', '.join(group)} beside PyTorch on {peer}{there}\n")
        if "prefill" in arguments.tables:
            prefill_table(arguments, report, group, peer, dtype)
            report.line()
        if "embed" in arguments.tables and arguments.proteins:
            embed_table(arguments, report, group, peer, dtype)
            report.line()
        if "decode" in arguments.tables and peer == "cuda":
            decode_table(arguments, report, group)
            report.line()
        if arguments.out:
            report.write(arguments.out)


if __name__ == "__main__":
    main()
