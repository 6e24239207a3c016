"""Times the forward pass of ESM-2 in PyTorch (transformers' EsmForMaskedLM, random weights), as `turboesm bench prefill` does.

    python tests/peers/prefill.py --size 650M --dtype bf16 --batch 16 --length 1024 --modes eager,sdpa,compile

Prints the median, fastest and slowest of CUDA-event timings after a warm-up. Needs torch with CUDA and transformers;
nothing else in the project needs this script. With --wait it says "ready" when a model is compiled and warm, and times
it when it is given a line on standard input, so that compare.py can let many compile at once and time one at a time.
"""

import argparse
import time

import torch
from transformers import EsmConfig, EsmForMaskedLM

SIZES = {  # layers, hidden, heads
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
    "15B": (48, 5120, 40),
}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def make_model(size, dtype, attention):
    layers, hidden, heads = SIZES[size]
    config = EsmConfig(
        vocab_size=33,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        position_embedding_type="rotary",
        token_dropout=True,
        mask_token_id=32,
        pad_token_id=1,
        max_position_embeddings=1026,
        attn_implementation=attention,
    )
    return EsmForMaskedLM(config).to("cuda", DTYPES[dtype]).eval()


def random_batch(batch, length):
    ids = torch.randint(4, 24, (batch, length), device="cuda")
    ids[:, 0], ids[:, -1] = 0, 2
    return ids


def warm_up(run):
    for _ in range(3):
        run()
    torch.cuda.synchronize()


def milliseconds(run, seconds):
    """Median, fastest and slowest of single runs, at least 5, for about this long."""
    times, start = [], time.monotonic()
    while len(times) < 5 or time.monotonic() - start < seconds:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times.sort()
    return times[len(times) // 2], times[0], times[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="650M")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=145, help="tokens, <cls> and <eos> counted")
    parser.add_argument("--modes", default="eager,sdpa,compile", help="comma-separated; compile is sdpa, reduce-overhead")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--wait", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    ids = random_batch(arguments.batch, arguments.length)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for mode in arguments.modes.split(","):
        model = make_model(arguments.size, arguments.dtype, "eager" if mode == "eager" else "sdpa")
        if mode == "compile":
            model = torch.compile(model, mode="reduce-overhead", fullgraph=False)
        with torch.inference_mode():
            run = lambda: model(ids).logits
            warm_up(run)
            if arguments.wait:
                print("ready", flush=True)
                input()
            median, fastest, slowest = milliseconds(run, arguments.seconds)
        print(
            f"{arguments.size} {arguments.dtype} {arguments.batch}x{arguments.length} {mode}: "
            f"{median:.3f} ms ({fastest:.3f} to {slowest:.3f})",
            flush=True,
        )
        del model


if __name__ == "__main__":
    main()
