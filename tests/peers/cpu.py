"""Mean embeddings of a FASTA file on the CPU: `turboesm embed --device cpu` beside transformers' EsmModel in PyTorch.

    python tests/peers/cpu.py proteins.fasta [--threads 2] [--every 8] [--turboesm build/release/bin/turboesm]

PyTorch gets the sequences sorted by length, in batches of at most so many tokens, padding counted, each without more
memory traffic than a user would cause: inference mode, no LM head, means over the residues by a masked sum. What is
best of token budgets, eager attention and sdpa is found on every N-th protein (--every), separately for f32 and bf16,
and then timed on all of them. Times are of tokens to means, and of the whole process, its start and the model's
loading included; turboesm's are those that it reports itself, and of the whole process. The means of both are
compared. Needs torch and transformers; nothing else in the project needs this script.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from esm_torch import DEFAULT_MODEL, DTYPES, ROOT, mean_embeddings, read_fasta, token_ids

BUDGETS = [1024, 2048, 4096, 8192, 16384]


def load_model(model, dtype, attention):
    import torch
    from transformers import EsmModel

    kind = getattr(torch, DTYPES[dtype])
    return EsmModel.from_pretrained(model, add_pooling_layer=False, attn_implementation=attention, dtype=kind).eval()


def worker(arguments):
    """One process of PyTorch: as a user's would be, it loads, computes and saves the means."""
    import torch

    torch.set_num_threads(arguments.threads)
    tokens = token_ids(read_fasta(arguments.fasta)[:: arguments.every], arguments.model)
    model = load_model(arguments.model, arguments.dtype, arguments.attention)
    mean_embeddings(model, tokens[:4], 1024, "cpu")  # what is made once
    for budget in arguments.budgets:
        seconds, means = mean_embeddings(model, tokens, budget, "cpu")
        print(json.dumps({"budget": budget, "seconds": seconds, "tokens": sum(map(len, tokens))}), flush=True)
    if arguments.out:
        torch.save(means, arguments.out)


def run_worker(arguments, dtype, attention, budgets, every, out=None):
    command = [sys.executable, __file__, arguments.fasta, "--worker", "--model", arguments.model, "--dtype", dtype]
    command += ["--attention", attention, "--every", every, "--threads", arguments.threads]
    command += ["--budgets", ",".join(map(str, budgets))] + (["--out", out] if out else [])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
    start = time.monotonic()
    output = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    if output.returncode != 0:
        sys.exit(output.stderr)
    return [json.loads(line) for line in output.stdout.splitlines()], time.monotonic() - start


def run_turboesm(arguments, dtype, fasta, out, device):
    command = [arguments.turboesm, "embed", fasta, "-o", out, "--model", arguments.model, "--device", device]
    command += ["--dtype", dtype, "--quiet", "--json", "-"]
    command += ["--threads", arguments.threads] if device == "cpu" else []
    start = time.monotonic()
    output = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if output.returncode != 0:
        sys.exit(output.stderr)
    return json.loads(output.stdout)["report"]["seconds"], time.monotonic() - start


def compare(arguments, dtype, folder):
    fasta = folder / "proteins.fasta"
    records = read_fasta(arguments.fasta)[:: arguments.subset]
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    flops = work(arguments, [len(sequence) + 2 for _, sequence in records])
    full = argparse.Namespace(**{**vars(arguments), "fasta": fasta})

    from safetensors.numpy import load_file

    rows, embeddings = [], {}
    for device in arguments.devices.split(","):
        seconds, whole = run_turboesm(arguments, dtype, fasta, folder / "ours.safetensors", device)
        rows.append((f"turboesm, {device}", "", seconds, whole))
        embeddings[device] = load_file(folder / "ours.safetensors")["mean"]
    if "torch" not in arguments.skip:
        trials = []
        for attention in ["sdpa", "eager"]:
            results, _ = run_worker(full, dtype, attention, BUDGETS, arguments.every)
            trials += [(result["seconds"], attention, result["budget"]) for result in results]
            print(f"{dtype} {attention}, every {arguments.every}-th protein: " +
                  ", ".join(f"{r['budget']} tokens {r['seconds']:.2f} s" for r in results))
        _, attention, budget = min(trials)
        results, whole = run_worker(full, dtype, attention, [budget], 1, folder / "theirs.pt")
        rows.append(("PyTorch", f"{attention}, {budget} tokens", results[0]["seconds"], whole))

        import torch

        theirs = torch.load(folder / "theirs.pt").numpy()
        for device, ours in embeddings.items():
            error = abs(ours - theirs).max() / abs(theirs).max()
            print(f"{dtype}: largest difference of a mean, {device} to PyTorch, {error:.1e} of the largest mean")
    for name, what, seconds, whole in rows:
        print(f"| {dtype} | {name} | {what} | {seconds:.2f} | {whole:.2f} | {flops / seconds / 1e9:.0f} |", flush=True)


def work(arguments, lengths):
    """Multiply and add counted as two, of the layers alone."""
    c = json.loads((arguments.model / "config.json").read_text())
    products = 2 * (4 * c["hidden_size"] ** 2 + 2 * c["hidden_size"] * c["intermediate_size"]) * sum(lengths)
    return c["num_hidden_layers"] * (products + 4 * c["hidden_size"] * sum(n * n for n in lengths))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fasta")
    parser.add_argument("--model", type=pathlib.Path, default=DEFAULT_MODEL)
    parser.add_argument("--turboesm", default=ROOT / "build/release/bin/turboesm")
    parser.add_argument("--devices", default="cpu", help="of turboesm, comma-separated")
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--every", type=int, default=8, help="proteins that PyTorch's choices are tried on")
    parser.add_argument("--subset", type=int, default=1, help="take only every N-th protein of the file")
    parser.add_argument("--skip", default="", help="torch: ours alone")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--attention", help=argparse.SUPPRESS)
    parser.add_argument("--budgets", type=lambda text: [int(n) for n in text.split(",")], help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    import torch
    import transformers

    print(f"{datetime.date.today()}, {arguments.threads} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in arguments.dtypes.split(","):
            compare(arguments, dtype, pathlib.Path(folder))


if __name__ == "__main__":
    main()
