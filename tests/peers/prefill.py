"""Times the forward pass of ESM-2 in PyTorch (transformers' EsmForMaskedLM, random weights), as `turboesm bench prefill` does.

    python tests/peers/prefill.py --size 650M --dtype bf16 --batch 16 --length 1024 --modes eager,sdpa,compile

Prints the median, fastest and slowest of runs after a warm-up, by CUDA events or, with --device cpu, by the host's clock.
Needs torch and transformers; nothing else in the project needs this script. With --wait it says "ready" when a model is
compiled and warm, and times it when it is given a line on standard input, so that compare.py can let many compile at
once and time one at a time.
"""

import argparse
import time

import torch

from esm_torch import CLS, DTYPES, EOS, SIZES, make_model


def random_batch(batch, length, device):
    ids = torch.randint(4, 24, (batch, length), device=device)
    ids[:, 0], ids[:, -1] = CLS, EOS
    return ids


def cuda_clock(run):
    """Milliseconds of one call on the GPU's own clock."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def host_clock(run):
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def warm_up(run, clock):
    for _ in range(3):
        clock(run)


def milliseconds(run, clock, seconds):
    """Median, fastest and slowest of single runs, at least 5, for about this long."""
    times, start = [], time.monotonic()
    while len(times) < 5 or time.monotonic() - start < seconds:
        times.append(clock(run))
    times.sort()
    return times[len(times) // 2], times[0], times[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="650M")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=145, help="tokens, <cls> and <eos> counted")
    parser.add_argument("--modes", default="eager,sdpa,compile", help="comma-separated; compile is sdpa, reduce-overhead")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--wait", action="store_true")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    clock = cuda_clock if on_gpu else host_clock
    torch.manual_seed(1)
    ids = random_batch(arguments.batch, arguments.length, arguments.device)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if on_gpu else 'CPU'}")
    for mode in arguments.modes.split(","):
        model = make_model(arguments.size, arguments.dtype, "eager" if mode == "eager" else "sdpa", arguments.device)
        if mode == "compile":
            model = torch.compile(model, mode="reduce-overhead", fullgraph=False)
        with torch.inference_mode():
            run = lambda: model(ids).logits
            warm_up(run, clock)
            if arguments.wait:
                print("ready", flush=True)
                input()
            median, fastest, slowest = milliseconds(run, clock, arguments.seconds)
        print(
            f"{arguments.size} {arguments.dtype} {arguments.batch}x{arguments.length} {mode}: "
            f"{median:.3f} ms ({fastest:.3f} to {slowest:.3f})",
            flush=True,
        )
        del model


if __name__ == "__main__":
    main()
