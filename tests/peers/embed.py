"""Times mean embeddings of a FASTA file in PyTorch (transformers' EsmModel, random weights), as `turboesm bench embed` does.

    python tests/peers/embed.py proteins.fasta --size 650M --dtype bf16 [--device cuda] [--modes sdpa,eager,compile]

The sequences are sorted by length and padded to the longest of their batch. Which of the modes and of the token budgets
(padding counted) is fastest is found on every N-th protein (--every); that one is then timed on all of them, after a
pass to warm up. Times are from token ids to means in host memory. Needs torch and transformers; nothing else in the
project needs this script.
"""

import argparse
import json
import sys

from esm_torch import DEFAULT_MODEL, DTYPES, make_model, mean_embeddings, read_fasta, token_ids

BUDGETS = {"cuda": [8192, 16384, 32768, 65536], "cpu": [1024, 2048, 4096]}


def main():
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fasta")
    parser.add_argument("--size", default=str(DEFAULT_MODEL), help="an official size, or a folder with a config.json")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", choices=BUDGETS, default="cuda")
    parser.add_argument("--modes", default="sdpa,eager", help="comma-separated; compile is sdpa, dynamic shapes")
    parser.add_argument("--budgets", help="tokens of a batch, comma-separated (default: by device)")
    parser.add_argument("--every", type=int, default=1, help="proteins that modes and budgets are tried on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    budgets = [int(n) for n in arguments.budgets.split(",")] if arguments.budgets else BUDGETS[arguments.device]

    tokens = token_ids(read_fasta(arguments.fasta))
    trials = []
    for mode in arguments.modes.split(","):
        model = make_model(arguments.size, arguments.dtype, "eager" if mode == "eager" else "sdpa", arguments.device, False)
        if mode == "compile":
            model = torch.compile(model, dynamic=True)
        for budget in budgets:
            try:
                for _ in range(2):  # the first one warms up
                    seconds, _ = mean_embeddings(model, tokens[:: arguments.every], budget, arguments.device)
            except torch.OutOfMemoryError:
                break
            trials.append((seconds, mode, budget, model))
            print(f"{mode}, {budget} tokens a batch: {seconds:.3f} s", file=sys.stderr, flush=True)
    _, mode, budget, model = min(trials, key=lambda trial: trial[0])
    seconds = [mean_embeddings(model, tokens, budget, arguments.device)[0] for _ in range(1 + arguments.repeats)]
    times = sorted(seconds[1:])
    result = {
        "mode": mode,
        "budget": budget,
        "sequences": len(tokens),
        "tokens": sum(map(len, tokens)),
        "median_s": times[len(times) // 2],
        "fastest_s": times[0],
        "slowest_s": times[-1],
        "repeats": len(times),
    }
    if arguments.json:
        return print(json.dumps(result))
    print(
        f"{arguments.size} {arguments.dtype}, {result['sequences']} sequences of {result['tokens']} tokens: {mode}, "
        f"{budget} tokens a batch, {result['median_s']:.3f} s ({times[0]:.3f} to {times[-1]:.3f}), "
        f"{result['tokens'] / result['median_s']:.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
