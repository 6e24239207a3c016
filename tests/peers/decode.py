"""PyTorch's fp16 decode attention beside `turboesm bench decode`: one query a head over cached K and V.

    python decode.py [--heads 20] [--head-dim 64] [--shapes 1x1024,64x8192]

Prints one line a shape: the median of CUDA-event timings in microseconds for every backend of scaled_dot_product_attention
that runs, and the best of them. Needs PyTorch with CUDA.
"""
import argparse

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def median_us(run, repeats):
    for _ in range(5):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def attention_us(batch, context, heads, head_dim, repeats):
    """Microseconds of each backend that takes the shape."""
    make = lambda length: torch.randn(batch, heads, length, head_dim, device="cuda", dtype=torch.float16)
    q, k, v = make(1), make(context), make(context)
    results = {}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                results[name] = median_us(lambda: F.scaled_dot_product_attention(q, k, v), repeats)
        except RuntimeError:  # this backend does not take the shape
            pass
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--shapes", default="1x143,1x1024,1x8192,1x65536,16x1024,64x1024,64x8192,256x1024")
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    print(torch.__version__, torch.cuda.get_device_name())
    for shape in args.shapes.split(","):
        batch, context = map(int, shape.split("x"))
        results = attention_us(batch, context, args.heads, args.head_dim, args.repeats)
        best = min(results, key=results.get)
        print(f"{shape}: best {best} {results[best]:.1f} us  " + "  ".join(f"{n} {t:.1f}" for n, t in results.items()))


if __name__ == "__main__":
    main()
